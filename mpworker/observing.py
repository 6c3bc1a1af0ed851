"""All that a program can put beside and around its tasks, in one argument: checked once, at the edge."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mpworker.hooks import Hooks, Tracer, check_hooks, check_tracer
from mpworker.logs import Logger, as_logger
from mpworker.middleware import check_middleware


@dataclass(frozen=True)
class Observing:
    """See `ProcessWorker` for each."""

    hooks: Hooks | None = None
    tracer: Tracer | None = None
    logger: "Logger | logging.Logger | None" = None
    submit_middleware: Sequence[Callable[..., Any]] = ()
    execute_middleware: Sequence[Callable[..., Any]] = ()

    def __post_init__(self) -> None:
        plain = object.__setattr__  # the class is frozen
        check_hooks(self.hooks)
        check_tracer(self.tracer)
        as_logger(self.logger)
        for name in ("submit_middleware", "execute_middleware"):
            plain(self, name, check_middleware(name, getattr(self, name)))
