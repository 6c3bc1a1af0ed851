"""The first thing that a worker does: start its supervisor. The rest of the client is loaded while that comes up."""

from __future__ import annotations

import errno
import os
import sys

from mpworker import clients, programs, uncollected
from mpworker.errors import ConfigurationError
from mpworker.ipc.levels import WARNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from mpworker.client import Client
    from mpworker.launch import Supervisor
    from mpworker.logger import Logger
    from mpworker.observing import Observing
    from mpworker.options import WorkerOptions
    from mpworker.service.recovery import Recovery


class Beginning:
    """What a client begins with; around the making of the client, whose failure lets go of the supervisor.

    Attributes:
        prefix: Of the ids of its tasks.
        supervisor: The process, which may still be on its way.
    """

    __slots__ = ("_logger", "prefix", "supervisor")

    _logger: Logger | None
    prefix: str
    supervisor: Supervisor

    @property
    def logger(self) -> Logger:
        """Takes the client's records."""
        if self._logger is None:
            from mpworker.logs import as_logger

            self._logger = as_logger(None)
        return self._logger

    def recovery_of(self, client: Client) -> Recovery | None:
        """What a client does when its supervisor dies; None if that is the end of it."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, _error: object, _trace: object) -> None:
        if kind is not None:
            self.supervisor.hang_up()
            self.supervisor.close()
            if self.supervisor.arenas is not None:
                self.supervisor.arenas.close()


class Start(Beginning):
    """What a client begins with; around the making of the client, whose failure ends the supervisor.

    Args:
        options: The worker's options.
        initializer: Called in each child before its first task, with initargs.
        initargs: Its arguments.
        observing: What is beside and around the tasks.
        inline: Makes what is in place of a supervisor; None for a process.

    Attributes:
        prefix: Of the ids of its tasks.
        supervisor: The process, which may still be on its way.

    Raises:
        ConfigurationError: No interpreter can be started.
        SerializationError: The initializer or an execution middleware cannot be pickled.
        OSError: No memory, descriptor or process is left.
    """

    __slots__ = ()

    def __init__(
        self,
        options: WorkerOptions,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        observing: Observing,
        inline: Callable[..., Supervisor] | None = None,
    ) -> None:
        clients.sweep()
        self.prefix = f"{os.urandom(4).hex()}-"
        self._logger: Logger | None = None
        if inline is not None:
            self.supervisor = inline(options, self.prefix, initializer, initargs, *self._said(observing))
            return
        begun = _begin(options.python)
        try:
            uncollected.load("mpworker.launch")  # all of this while it comes up
            from mpworker.launch import launch

            said = self._said(observing)
            self.supervisor = launch(begun, options, self.prefix, initializer, initargs, *said)
        except BaseException:
            begun.abandon()
            raise

    def _said(self, observing: Observing) -> tuple[int, bytes]:
        """What a supervisor is told of what is beside and around the tasks: the log's level, and a pickle."""
        middleware = b""
        if observing.execute_middleware:
            from mpworker.middleware import pickled  # not before: no start shall wait for it

            middleware = pickled(observing.execute_middleware)
        if observing.logger is None and "logging" not in sys.modules:
            return WARNING, middleware  # what it begins with: the supervisor need not wait until it is imported
        from mpworker.logs import as_logger, level_of

        self._logger = as_logger(observing.logger)
        return level_of(self._logger), middleware


def _begin(python: str) -> programs.Begun:
    """Start the processes.

    Args:
        python: The interpreter, "" for this one.
    """
    if getattr(sys, "frozen", False) and not python:
        raise ConfigurationError(
            "this interpreter is frozen into a program: pass python=PATH of an interpreter to start"
        )
    python = python or sys.executable
    if not os.path.isfile(python) or not os.access(python, os.X_OK):
        raise ConfigurationError(f"no executable at {python!r}: pass python=PATH of an interpreter to start")
    try:
        return programs.Begun(python)
    except OSError as error:
        from mpworker.ipc.limits import explained

        explanation = explained(error, "no supervisor can be started")
        if explanation is not error:
            raise explanation from error
        if error.errno in (errno.ENOEXEC, errno.ENOENT, errno.EACCES):
            why = f"{python!r} is no program ({error.strerror}): pass python=PATH of an interpreter"
            raise ConfigurationError(why) from error
        raise
