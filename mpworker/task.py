"""A task as an object, and what can be known of one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from mpworker.checks import check_seconds, check_text, shown
from mpworker.errors import ConfigurationError, InvalidArgument, SerializationError
from mpworker.options import TaskDefaults

if TYPE_CHECKING:
    from mpworker.future import TaskFuture
    from mpworker.retry import RetryPolicy

T = TypeVar("T")

DETAILS_BYTES_MAX: Final = 1 << 14
_AS_WORKER: Any = ...
_NONE: Final = ""
_QUEUE: Final = "default"
_PRIORITY: Final = 0
_ONE: Final = 1


class TaskStatus(StrEnum):
    """Where a task is on its way; the last four are final."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"

    @property
    def is_final(self) -> bool:
        """Will it never change again?"""
        return self in _FINAL


_FINAL: Final = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.TIMED_OUT)


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """A call, and all that is to be said of it; for `ProcessWorker.register_task`.

    What is left out of `timeout`, `retries`, `crash_retries` and `retry_policy` is as for the worker. A `Task` is a
    value: it may be registered any number of times, and each time is a task of its own. One with an `id` may be
    registered again only when the task that has it is forgotten, and one with an `idempotency_key` is the same task
    until then.

    Attributes:
        fn: Any callable that can be pickled, as for `submit`.
        args: Its arguments.
        kwargs: Its keyword arguments.
        id: The id, 1 to 200 characters, that no other task has while this one has not ended or is remembered, and none
            of those that the worker makes itself, which end in its own numbers; None for one of these.
        name: For people; "" for that of `fn`.
        queue: The name of the queue.
        priority: In it, the lowest number goes first.
        weight: Of those with the same priority, the highest number goes first.
        timeout: Seconds an attempt may run; None for no limit.
        deadline: When it must have ended, all attempts together: seconds from its registration, or a datetime with a
            time zone. Then it ends TIMED_OUT, and it never starts afterwards. None for never.
        retries: Further attempts after an exception or a timeout.
        crash_retries: Further attempts after the child died; None means as `retries`.
        retry_policy: After what pause these begin, and after which exceptions none does.
        run_at: When it is to be queued: seconds from its registration, or a datetime with a time zone; None for now.
        concurrency_key: Of all tasks with the same one, at most `concurrency` run at once; "" for no such limit.
        concurrency: See there. Where tasks of a key say different numbers, the least of those that run holds for all.
        idempotency_key: Registered again with the same key, the same call gives the future of the first one, as long
            as that has not ended or is remembered, and another call raises DuplicateTask; None for no such key. It is
            forgotten with its task, and the call then runs again: with the default `Retention` when 1,000 further tasks
            have ended. Who needs more says so: `Retention(max_entries=100_000, ttl=3600.0)`. The
            same is what has the same `fn` and equal arguments, as they were when it was registered: equal values of
            the same types, dicts and sets in any order. A function that can be imported is the same by its module and
            name; any other callable, and an object of any other class, by what is pickled of it. Nothing else counts:
            no option, `id` or `metadata`.
        fingerprint: Stands for the arguments in that: for those that are never pickled in the same way, or are large.
        metadata: Anything that JSON can write, for `mpworker.current()` and `get_task`; 16 KiB at most. Each key, also
            of a dict within, is a str.

    Raises:
        InvalidArgument: An attribute has a wrong type.
        ConfigurationError: One is out of its bounds, or `run_at` is later than `deadline`.
        SerializationError: JSON cannot write the metadata, or would make a str of one of its keys.

    Example:
        >>> from mpworker import ProcessWorker, Task
        >>> with ProcessWorker(n=1) as w:
        ...     future = w.register_task(Task(pow, (2, 10), id="power", priority=-1, deadline=60.0))
        ...     future.result(), w.get_task("power").status.value
        (1024, 'completed')
    """

    fn: Callable[..., T]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = field(default=None, kw_only=True)
    name: str = field(default=_NONE, kw_only=True)
    queue: str = field(default=_QUEUE, kw_only=True)
    priority: int = field(default=_PRIORITY, kw_only=True)
    weight: int = field(default=_ONE, kw_only=True)
    timeout: float | None = field(default=_AS_WORKER, kw_only=True)
    deadline: float | datetime | None = field(default=None, kw_only=True)
    retries: int = field(default=_AS_WORKER, kw_only=True)
    crash_retries: int | None = field(default=_AS_WORKER, kw_only=True)
    retry_policy: "RetryPolicy | None" = field(default=_AS_WORKER, kw_only=True)
    run_at: float | datetime | None = field(default=None, kw_only=True)
    concurrency_key: str = field(default=_NONE, kw_only=True)
    concurrency: int = field(default=_ONE, kw_only=True)
    idempotency_key: str | None = field(default=None, kw_only=True)
    fingerprint: str | None = field(default=None, kw_only=True)
    metadata: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise InvalidArgument(f"a Task needs a callable, not {self.fn!r}: write Task(f, (x,)), not Task(f(x))")
        # Most tasks say little: what is as usual, which `is` tells at once, needs no check.
        if type(self.args) is not tuple and (isinstance(self.args, str | bytes) or not isinstance(self.args, Sequence)):
            raise InvalidArgument(f"args must be a tuple of arguments, not {self.args!r}")
        if type(self.kwargs) is not dict or self.kwargs:
            _check_kwargs(self.kwargs)
        if type(self.metadata) is not dict or self.metadata:
            checked_metadata(self.metadata)
        if self.id is not None:
            check_text("id", self.id, 1)
        if self.idempotency_key is not None:
            check_text("idempotency_key", self.idempotency_key, 1)
        if self.fingerprint is not None:
            check_text("fingerprint", self.fingerprint, 1)
        if self.name is not _NONE:
            check_text("name", self.name, 0)
        if self.deadline is not None or self.run_at is not None:
            check_when("deadline", self.deadline)
            check_when("run_at", self.run_at)
            if isinstance(self.deadline, datetime) is isinstance(self.run_at, datetime):
                self.refuse_to_begin_late()
        said: Any = self
        if not (
            said.timeout is _AS_WORKER
            and said.retries is _AS_WORKER
            and said.crash_retries is _AS_WORKER
            and said.retry_policy is _AS_WORKER
            and said.queue is _QUEUE
            and said.priority is _PRIORITY
            and said.weight is _ONE
            and said.concurrency_key is _NONE
            and said.concurrency is _ONE
        ):
            TaskDefaults(**self.options())

    def refuse_to_begin_late(self) -> None:
        """Who says when it is queued and when it must have ended says that in this order.

        Which is the later one of seconds from the registration and a datetime is only known at that.

        Raises:
            ConfigurationError: It would be queued after its deadline.
        """
        run_at: Any = self.run_at
        deadline: Any = self.deadline
        if run_at is None or deadline is None:
            return
        if isinstance(run_at, datetime) is not isinstance(deadline, datetime):
            run_at, deadline = monotonic_at(run_at), monotonic_at(deadline)
        if run_at > deadline:
            raise ConfigurationError(
                f"run_at must not be later than deadline={self.deadline!r}, not {self.run_at!r}: it would never begin"
            )

    def options(self) -> dict[str, Any]:
        """What it says of the options that tasks share: for `ProcessWorker.options`."""
        inherited = ("timeout", "retries", "crash_retries", "retry_policy")
        said = {name: getattr(self, name) for name in inherited if getattr(self, name) is not _AS_WORKER}
        own = ("queue", "priority", "weight", "concurrency_key", "concurrency")
        return said | {name: getattr(self, name) for name in own}

    def options_said(self) -> dict[str, Any]:
        """Those of them that are others than a task has that says nothing."""
        usual = {each.name: each.default for each in fields(self)}
        return {name: value for name, value in self.options().items() if value != usual[name]}


def _check_kwargs(kwargs: Any) -> None:
    if not isinstance(kwargs, Mapping):
        raise InvalidArgument(f"kwargs must be a dict, not {shown(kwargs)}")
    for name in kwargs:
        if not isinstance(name, str):
            raise InvalidArgument(f"each key in kwargs must be a str, the name of an argument, not {shown(name)}")


def checked_metadata(metadata: Any) -> dict[str, Any]:
    """What goes along with a task.

    Raises:
        InvalidArgument: It is no dict.
        SerializationError: JSON cannot write it, or would make a str of one of its keys.
        ConfigurationError: It is too long.
    """
    import json

    if not isinstance(metadata, Mapping):
        raise InvalidArgument(f"metadata must be a dict, not {shown(metadata)}")
    try:
        text = json.dumps(dict(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise SerializationError(f"metadata must be what JSON can write: {error}") from error
    _check_keys(metadata)
    if len(text) > DETAILS_BYTES_MAX:
        raise ConfigurationError(f"metadata must have at most {DETAILS_BYTES_MAX} bytes as JSON, not {len(text)}")
    return dict(metadata)


def _check_keys(value: Any) -> None:
    """What JSON could write, it writes with keys of another type as text, and two of them may become one."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if not isinstance(key, str):
                raise SerializationError(f"each key in metadata must be a str, not {key!r}, which JSON would make one")
            _check_keys(each)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_keys(each)


@dataclass(frozen=True, slots=True)
class AttemptInfo:
    """One attempt of a task.

    Attributes:
        status: "running", or how it ended: as `TaskStatus`.
        pid: The process id of the child.
        started_at: When it began, in seconds since the epoch.
        ended_at: When it ended; None while it runs.
        cause: If the child died: as `mpworker.errors.WorkerCrashed.cause`. Else "".
        error: What it has raised, or what its result was refused for, in a line; "" for none, and where that is no
            longer kept: it is of the last three attempts of a task, and as long as `Retention` keeps what failed.
    """

    status: TaskStatus
    pid: int
    started_at: float
    ended_at: float | None
    cause: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What is known of a task at one moment.

    Attributes:
        task_id: Its id.
        name: Its name, or that of its function.
        status: Where it is on its way.
        queue: The name of its queue.
        priority: As in `Task`.
        weight: As in `Task`.
        attempts: Its attempts, the first one first; of more than a hundred, some in the middle are left out.
        run_at: When it is or was to be queued, in seconds since the epoch; None for at once.
        deadline: When it must have ended, likewise.
        metadata: As in `Task`.
        retry_of: The id of the task that `retry_task` has run again by this one; "" for none.
        future: The future of its result: always while it has not ended, afterwards if the outcome is kept.
    """

    task_id: str
    name: str
    status: TaskStatus
    queue: str
    priority: int
    weight: int
    attempts: tuple[AttemptInfo, ...]
    run_at: float | None
    deadline: float | None
    metadata: Mapping[str, Any]
    retry_of: str
    future: "TaskFuture[Any] | None"


OR_A_DATETIME: Final = " or a datetime with a time zone"


def check_when(name: str, value: Any) -> None:
    """A moment: seconds from now, or a datetime with a time zone; None for none."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigurationError(
                f"{name} must have a time zone, such as datetime.now(timezone.utc) has, not {value!r}"
            )
    elif value is not None:
        check_seconds(name, value, zero=True, instead=OR_A_DATETIME)


def monotonic_at(when: float | datetime | None) -> float | None:
    """A moment on the monotonic clock, which is the same for all processes here and never jumps."""
    if when is None:
        return None
    import time

    now = time.monotonic()
    return now + (when.timestamp() - time.time() if isinstance(when, datetime) else float(when))
