"""The first thing that a worker does: start its supervisor. The rest of the client is loaded while that comes up."""

from __future__ import annotations

import os
from collections.abc import Callable

from mpworker import clients
from mpworker.launch import Supervisor, launch
from mpworker.logs import as_logger, level_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from mpworker.logger import Logger
    from mpworker.observing import Observing
    from mpworker.options import WorkerOptions


class Start:
    """What a client begins with; around the making of the client, whose failure ends the supervisor.

    Args:
        options: The worker's options.
        initializer: Called in each child before its first task, with initargs.
        initargs: Its arguments.
        observing: What is beside and around the tasks.
        how: Starts the supervisor; see `mpworker.launch.launch`.

    Attributes:
        prefix: Of the ids of its tasks.
        logger: Takes the client's records.
        supervisor: The process, which may still be on its way.

    Raises:
        ConfigurationError: No interpreter can be started.
        SerializationError: The initializer or an execution middleware cannot be pickled.
        OSError: No memory, descriptor or process is left.
    """

    __slots__ = ("logger", "prefix", "supervisor")

    def __init__(
        self,
        options: WorkerOptions,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        observing: Observing,
        how: Callable[..., Supervisor] = launch,
    ) -> None:
        clients.sweep()
        self.prefix = f"{os.urandom(4).hex()}-"
        self.logger: Logger = as_logger(observing.logger)
        middleware = b""
        if observing.execute_middleware:
            from mpworker.middleware import pickled  # not before: no start shall wait for it

            middleware = pickled(observing.execute_middleware)
        self.supervisor = how(options, self.prefix, initializer, initargs, level_of(self.logger), middleware)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, _error: object, _trace: object) -> None:
        if kind is not None:
            self.supervisor.hang_up()
            self.supervisor.close()
            if self.supervisor.arenas is not None:
                self.supervisor.arenas.close()
