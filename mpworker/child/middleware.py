"""The middleware that the client has put around the execution of every task.

A middleware surrounds a task and does not decide on it: what the task's own call returns or raises is the outcome,
whatever the middleware around it return, raise or swallow. The call runs exactly once, even where one of them raises
before it comes to that, or never does. So none of them can change a task by its own fault, and nobody has to guess what
an exception means: one that is not the very exception that the task raised is the middleware's, is told to the client,
and goes no further.

What is no fault of theirs passes: the interrupt of a task that is late or cancelled, and Ctrl-C.
"""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias

from mpworker.context import TaskContext
from mpworker.ipc import payload, tracebacks
from mpworker.ipc.failures import cut

Layer: TypeAlias = Callable[[Callable[[], Any], TaskContext], object]
Failed: TypeAlias = Callable[[str, str], None]


class Middleware:
    """All of them, the outermost first.

    Args:
        layers: The middleware.
        context: Makes the context of the task that runs.
        failed: Is told the name of one that raised, and where.
    """

    def __init__(self, layers: tuple[Layer, ...], context: Callable[[], TaskContext | None], failed: Failed) -> None:
        self.layers = layers
        self.context = context
        self.failed = failed

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function with all of them around it."""
        return partial(self._run, call)

    def _run(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        context = self.context()
        assert context is not None  # it is called by a task
        return _Attempt(self, context, call, args, kwargs).enter(0)


class _Attempt:
    """One call of a task's function."""

    __slots__ = ("_args", "_call", "_context", "_depth", "_error", "_kwargs", "_middleware", "_ran", "_trace", "_value")

    def __init__(
        self,
        middleware: Middleware,
        context: TaskContext,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._middleware = middleware
        self._context = context
        self._call = call
        self._args = args
        self._kwargs = kwargs
        self._depth = -1  # the innermost that was entered
        self._ran = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._trace: TracebackType | None = None

    def enter(self, depth: int) -> Any:
        """See to it that all inside of this depth has run; the outcome of the task."""
        if depth > self._depth:
            self._depth = depth
            layers = self._middleware.layers
            if depth == len(layers):
                self._run_task()
            else:
                self._run_layer(layers[depth], depth + 1)
                if not self._ran:  # a layer has swallowed a Ctrl-C that came to one inside of it
                    self._run_task()
        if self._error is not None:
            raise self._error.with_traceback(self._trace)  # of the task alone, however many layers it has passed
        return self._value

    def _run_task(self) -> None:
        self._ran = True
        try:
            self._value = self._call(*self._args, **self._kwargs)
        except BaseException as error:  # noqa: BLE001  # raised again by every layer
            self._error = error
            self._trace = error.__traceback__

    def _run_layer(self, layer: Layer, inside: int) -> None:
        try:
            layer(partial(self.enter, inside), self._context)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is not the task's
            if error is not self._error:
                self._middleware.failed(payload.name_of_callable(layer), where(error))
        else:
            if self._depth < inside:
                self._middleware.failed(payload.name_of_callable(layer), "it did not call call_next()")
        if self._depth < inside:
            try:
                self.enter(inside)
            except BaseException as error:
                if error is not self._error:
                    raise  # the interrupt


def where(error: BaseException) -> str:
    """The type of an exception and the places that it has passed, but nothing that it says: that may be anything."""
    trace = error.__traceback__
    places = tracebacks.of_trace(trace.tb_next if trace is not None else None)  # without the frame that called it
    return cut(f"{places}{type(error).__qualname__}")
