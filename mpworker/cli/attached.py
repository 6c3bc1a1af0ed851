"""What the commands share that attach to a supervisor which runs as a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mpworker.cli.errors import CommandError, ExitCode
from mpworker.connected import ConnectedWorker, connect
from mpworker.errors import ConfigurationError, ConnectError, MPWorkerError

__all__ = ["COMMAND_NAME", "attached", "carry_out", "socket_option"]

COMMAND_NAME = "mpworker command"
"""What one that only asks calls itself: it is not shown among the programs."""
_CONNECT_SECONDS = 5.0


def socket_option(command: Any) -> Any:
    """The option that names the supervisor."""
    return click.option("--socket", metavar="PATH", help="Of the supervisor. [MPWORKER_SOCKET, or the usual places]")(
        command
    )


def attached(
    socket: str | None, name: str = COMMAND_NAME, reconnect_timeout: float = 0.0, **options: Any
) -> ConnectedWorker:
    """Attach to it.

    Args:
        socket: Its socket; None for the usual places.
        name: What this command calls itself.
        reconnect_timeout: Seconds to wait for another supervisor if that one dies.
        **options: Others of `ConnectedWorker`.

    Raises:
        CommandError: None listens there, or it refuses.
    """
    try:
        waits = {"connect_timeout": _CONNECT_SECONDS, "reconnect_timeout": reconnect_timeout}
        return connect(socket, name=name, **waits, **options)
    except ConnectError as error:
        raise CommandError(str(error), ExitCode.UNREACHABLE) from error


def carry_out(socket: str | None, act: Callable[[ConnectedWorker], Any]) -> Any:
    """Attach, do something, and detach; what that returns.

    Raises:
        CommandError: That cannot be done.
    """
    with attached(socket) as w:
        try:
            return act(w)
        except ConfigurationError:
            raise
        except MPWorkerError as error:
            raise CommandError(str(error), ExitCode.BROKEN_OFF) from error
