"""All that a program can put beside and around its tasks, in one argument: checked once, at the edge.

What it is checked by is loaded where there is something to check: no start shall wait for the rest.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence
    from typing import Any

    from mpworker.hooks import Hooks, Tracer
    from mpworker.logger import Logger


class Observing:
    """See `ProcessWorker` for each.

    Raises:
        InvalidArgument: One has a wrong type.
        ConfigurationError: There is too much middleware.
    """

    __slots__ = ("execute_middleware", "hooks", "logger", "submit_middleware", "tracer")

    def __init__(
        self,
        hooks: Hooks | None = None,
        tracer: Tracer | None = None,
        logger: Logger | logging.Logger | None = None,
        submit_middleware: Sequence[Callable[..., Any]] = (),
        execute_middleware: Sequence[Callable[..., Any]] = (),
    ) -> None:
        if hooks is not None or tracer is not None:
            from mpworker.hooks import check_hooks, check_tracer

            check_hooks(hooks)
            check_tracer(tracer)
        if logger is not None:
            from mpworker.logs import as_logger

            as_logger(logger)
        self.hooks = hooks
        self.tracer = tracer
        self.logger = logger
        self.submit_middleware = _checked("submit_middleware", submit_middleware)
        self.execute_middleware = _checked("execute_middleware", execute_middleware)


def _checked(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    if value == ():
        return ()
    from mpworker.middleware import check_middleware

    return check_middleware(name, value)
