"""Middleware: that around submissions, and how that for the children goes there."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final, TypeAlias

from mpworker.errors import ConfigurationError, InvalidArgument, SerializationError
from mpworker.hooks import refuse_awaited
from mpworker.ipc import payload
from mpworker.task import Task

Submit: TypeAlias = Callable[[Task[Any]], Any]
SubmitMiddleware: TypeAlias = Callable[[Submit, Task[Any]], Any]
# Is told of a middleware that failed after its task was accepted: its name, and what it raised, or did else.
Failed: TypeAlias = Callable[[str, BaseException | None, str], None]

MIDDLEWARE_MAX: Final = 100


def check_middleware(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """A sequence of functions."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidArgument(f"{name} must be a sequence of functions, not {value!r}")
    layers: tuple[Any, ...] = tuple(value)
    if len(layers) > MIDDLEWARE_MAX:
        raise ConfigurationError(f"{name} must have at most {MIDDLEWARE_MAX} functions, not {len(layers)}")
    for layer in layers:
        if not callable(layer):
            raise InvalidArgument(f"{name} must be a sequence of functions, and {layer!r} is none")
        refuse_awaited(name, layer)
    return layers


def pickled(layers: tuple[Callable[..., Any], ...]) -> bytes:
    """The execution middleware, as it goes to the children.

    Raises:
        SerializationError: One cannot be pickled.
    """
    if not layers:
        return b""
    try:
        return payload.dumps(layers)
    except payload.Unserializable as error:
        from mpworker import hints

        what = next(filter(None, map(hints.culprit, layers)), "")
        raise SerializationError(f"the execute_middleware cannot be pickled: {error}{what}") from error


class Submission:
    """The middleware around each submission, the first one outermost.

    What one raises before its task was accepted is raised to the caller: nothing has been submitted. What it does wrong
    afterwards is told of, and the caller has the future all the same. An interrupt, such as a KeyboardInterrupt, is not
    its doing: it goes on to the caller, and the task stays accepted.

    Args:
        layers: The middleware.
        failed: Is told of one that failed.
    """

    def __init__(self, layers: tuple[SubmitMiddleware, ...], failed: Failed) -> None:
        self._layers = layers
        self._failed = failed

    def submit(self, innermost: Submit, task: Task[Any]) -> Any:
        """Submit a task by way of all of them."""
        return self._enter(0, innermost, task)

    def _enter(self, depth: int, innermost: Submit, task: Task[Any]) -> Any:
        if not isinstance(task, Task):
            raise InvalidArgument(f"call_next needs a Task, not a {type(task).__name__}")
        if depth == len(self._layers):
            return innermost(task)
        layer = self._layers[depth]
        accepted: list[Any] = []

        def call_next(task: Task[Any]) -> Any:
            accepted.append(self._enter(depth + 1, innermost, task))
            return accepted[-1]

        try:
            returned = layer(call_next, task)
        except (Exception, SystemExit, GeneratorExit) as error:  # all others interrupt the caller from outside
            if not accepted:
                raise
            self._failed(payload.name_of_callable(layer), error, "")
            return accepted[-1]
        if isinstance(returned, Future) or (accepted and returned is accepted[-1]):
            return returned
        why = f"it returned a {type(returned).__name__}, not the future that call_next returns"
        if not accepted:
            raise InvalidArgument(f"submit_middleware {payload.name_of_callable(layer)!r}: {why}")
        self._failed(payload.name_of_callable(layer), None, why)
        return accepted[-1]
