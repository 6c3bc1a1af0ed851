"""What a program may be told of its tasks while they live: what `hooks=` and `tracer=` take."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, TypeAlias

from mpworker.errors import InvalidArgument
from mpworker.functions import is_asynchronous
from mpworker.task import TaskStatus


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One thing that has happened to a task. It holds nothing of the call, its result or its metadata.

    Attributes:
        kind: "queued", "start", "retry" or "finish".
        task_id: As `TaskFuture.task_id`.
        name: That of the task, or of its function.
        queue: The name of its queue.
        at: When it happened, in seconds since the epoch; so for all that is a time.
        attempt: Which one starts or has ended, 1 for the first; 0 if none has.
        pid: Its child; 0 if no attempt was running.
        started_at: When the attempt began; None if none was running.
        ended_at: When it ended; None if it runs, or none was running.
        status: How the attempt ("retry") or the task ("finish") ended; else None.
        cause: If the child died: as `mpworker.errors.WorkerCrashed.cause`; "lost" if the supervisor did. Else "".
        pause: Seconds until the next attempt, with "retry"; else None.
        run_at: When a task for later is to be queued; None for at once.
    """

    kind: Literal["queued", "start", "retry", "finish"]
    task_id: str
    name: str
    queue: str
    at: float
    attempt: int = 0
    pid: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    status: TaskStatus | None = None
    cause: str = ""
    pause: float | None = None
    run_at: float | None = None


Hook: TypeAlias = Callable[[TaskEvent], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Functions that are called with a `TaskEvent` when something happens to a task.

    They run in this process, one after the other and in the order of the events of each task: in one thread of the
    worker's own, or in the event loop of an `AsyncProcessWorker`, which a slow one holds up. In the thread it delays
    the next ones and nothing else; if it stays behind by over 100,000 events, further ones are dropped, and counted in
    `metrics().observer_drops`. What one raises is logged, counted in `metrics().observer_errors`, and changes nothing.
    A stop waits for them as it does for callbacks.

    A task is told of from its acceptance on: one that came before the hooks were set is not. Neither are the items of a
    `map`: there are millions of them, they travel in chunks whose size follows the measured time of a call, and a
    record for each would cost more than the call.

    Attributes:
        on_queued: Once for each task, when it was accepted, also if it is for later: then `run_at` says when. It is not
            called again when that time comes, or for another attempt: `on_retry` has told of that.
        on_start: Each attempt, when a child has begun it.
        on_retry: An attempt has ended, and another follows after `pause` seconds.
        on_finish: Once for each task, when it has ended for ever; often just before its future says so.

    Raises:
        InvalidArgument: One is not callable, or asynchronous.

    Example:
        >>> from mpworker import Hooks, ProcessWorker
        >>> ended = []
        >>> with ProcessWorker(n=1, hooks=Hooks(on_finish=ended.append)) as w:
        ...     w.submit(len, "four").result()
        4
        >>> [(event.name, event.status.value, event.attempt) for event in ended]
        [('len', 'completed', 1)]
    """

    on_queued: Hook | None = None
    on_start: Hook | None = None
    on_retry: Hook | None = None
    on_finish: Hook | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            check_callable(field.name, getattr(self, field.name), optional=True)


class Tracer(Protocol):
    """Something that makes a span of each attempt: what `tracer=` takes. It is called as `Hooks` are.

    An attempt that could not be told of as begun, because its child died first, is started and ended at once.
    """

    def start(self, event: TaskEvent, /) -> Any:
        """An attempt has begun, at `event.started_at`; its span, which may be anything."""

    def end(self, span: Any, event: TaskEvent, /) -> object:
        """It has ended: `event.kind` is "retry" or "finish"."""


def check_callable(name: str, value: Any, *, optional: bool = False) -> None:
    """A function that is no asynchronous one."""
    if value is None and optional:
        return
    if not callable(value):
        raise InvalidArgument(f"{name} must be callable{' or None' if optional else ''}, not {value!r}")
    refuse_awaited(name, value)


def refuse_awaited(name: str, value: Any) -> None:
    """Raise InvalidArgument for a function that returns something to be awaited."""
    if is_asynchronous(value):
        raise InvalidArgument(f"{name} must be a plain function: {value!r} is asynchronous, and nobody awaits it here")


def check_hooks(value: Any) -> Hooks | None:
    """Hooks, None for none."""
    if value is not None and not isinstance(value, Hooks):
        raise InvalidArgument(f"hooks must be a Hooks or None, not {value!r}")
    return value


def check_tracer(value: Any) -> Tracer | None:
    """A tracer, None for none."""
    if value is not None:
        for name in ("start", "end"):
            if not callable(getattr(value, name, None)):
                raise InvalidArgument(f"tracer must have the methods start and end, which {value!r} has not")
            refuse_awaited(f"tracer.{name}", getattr(value, name))
    return value  # type: ignore[no-any-return]
