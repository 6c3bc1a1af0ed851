"""What a command can end with: its exit codes, and the errors that lead to them."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CommandError", "ExitCode", "one_line"]


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    """All is done, and all of it went well."""
    SOME_FAILED = 1
    """All is done, and some items failed."""
    USAGE = 2
    """Nothing was done: an option, the target, an input or the output is not as it must be."""
    BROKEN_OFF = 3
    """The run could not go on (disk full, input unreadable half way, pool lost); `--resume` can."""
    NOT_STARTED = 4
    """No item was done, for no process could be started: what is to be preloaded raises, or memory is short."""
    UNREACHABLE = 69
    """No supervisor listens there, or, for `serve`, another one does: EX_UNAVAILABLE of sysexits.h."""
    CRASHED = 70
    """The supervisor has failed, or its children do: EX_SOFTWARE."""
    SYSTEM = 71
    """The system refuses something that the supervisor needs: EX_OSERR."""
    CONFIG = 78
    """The configuration is wrong, and stays so if it is tried again: EX_CONFIG."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT, as shells have it."""
    UNREAD = 141
    """Whoever read standard output has gone, as `head` does: 128 + SIGPIPE, and no word about it."""


class CommandError(Exception):
    """A command can't do what it was asked; its text is the one line that the user reads.

    Args:
        message: What happened and what to do, on one line.
        exit_code: What the process ends with.
    """

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def one_line(error: BaseException) -> str:
    """Return what an error says with its line breaks folded, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
