"""How a task as an object is submitted: its options, its details, its id and its idempotency key."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from mpworker.checks import check_number, check_seconds
from mpworker.client import Client
from mpworker.errors import ConfigurationError, DuplicateTask, InvalidArgument
from mpworker.future import TaskFuture, in_queue
from mpworker.idempotency import Idempotency, Known, LookAgain
from mpworker.ipc import details
from mpworker.options import TaskDefaults
from mpworker.outcomes import FINAL_STATUSES, final_status
from mpworker.steps import Steps, answered
from mpworker.task import OR_A_DATETIME, Task, checked_metadata, monotonic_at

if TYPE_CHECKING:
    from mpworker.client import Call, Make

T = TypeVar("T")

EPOCH_MAX: Final = 1e11
_TOGETHER: Final = 128  # calls, so that a supervisor begins with the first of many while the others are made


class _Token:
    """Of those that look for an id at the same time, the first to send its task uses it up; the others look again."""


class Look(NamedTuple):
    """What was found of a task's key and id.

    Attributes:
        known: The task of its key, None for none.
        future: The future of that.
        id: The id that was looked for.
        taken: How the task that has it has ended, or that it has not; None if there is none.
        token: If none has.
        trusts: Nothing was looked for, nor can be: what is known here must do.
    """

    known: Known | None = None
    future: Any = None
    id: str | None = None
    taken: str | None = None
    token: _Token | None = None
    trusts: bool = False


_UNFINISHED: Final = "unfinished"
_NOTHING: Final = Look()
_TRUSTING: Final = Look(trusts=True)


class Registration:
    """What a client keeps for the tasks that are objects. Made when first needed: most workers never register one.

    Attributes:
        named: The futures of tasks with an id of the user's own, while somebody has them.
        idempotency: The idempotency keys.
    """

    def __init__(self) -> None:
        self.named: WeakValueDictionary[str, TaskFuture[Any]] = WeakValueDictionary()
        self.idempotency = Idempotency()
        self._tokens: WeakValueDictionary[str, _Token] = WeakValueDictionary()  # while somebody looks
        self._lock = threading.RLock()  # a signal handler may register, too

    def looking(self, client: Client, task: Task[Any]) -> Steps[Look]:
        """The steps to what must be known before a task is sent."""
        client.refuse_if_forked()
        known, future = yield from self.idempotency.looking(client, task.idempotency_key)
        if known is not None or task.id is None:
            return Look(known, future)
        with self._lock:
            token = self._tokens.setdefault(task.id, _Token())
            future = self.named.get(task.id)
        # What was sent and has not ended may be on its way; what has ended may be forgotten, though its future is held.
        if future is not None and not future.ready:
            taken: str | None = _UNFINISHED
        else:
            found = yield from looking_up(client, task.id)
            taken = None if found is None else found["status"]
        return Look(None, None, task.id, taken, token)

    def take(self, own: str, future: TaskFuture[Any], token: _Token | None) -> bool:
        """This future's task gets the id; False if another one has got it since the look."""
        with self._lock:
            if token is not None and self._tokens.pop(own, None) is not token:
                return False
            self.named[own] = future
        return True

    def give_back(self, own: str, future: TaskFuture[Any]) -> None:
        """It was not sent."""
        with self._lock:
            if self.named.get(own) is future:
                del self.named[own]


def registration(client: Client) -> Registration:
    """That of a client."""
    if client.registration is None:
        made = Registration()
        if client.registration is None:
            client.registration = made  # no call since the look: several threads may need it first
    return client.registration


def has_too_many_keys(client: Client) -> bool:
    """Is it time to forget some idempotency keys?"""
    return client.registration is not None and client.registration.idempotency.has_too_many()


def check_task(task: object) -> None:
    """It is a `Task`."""
    if not isinstance(task, Task):
        if isinstance(task, (list, tuple)):
            kind = type(task).__name__
            raise InvalidArgument(f"register_task needs a Task, not a {kind}: register_tasks(*tasks) takes many")
        raise InvalidArgument(f"register_task needs a Task, not {task!r}")


def _check_without_time(task: Any) -> None:
    check_task(task)
    if task.run_at is not None:
        raise ConfigurationError(
            f"the Task says run_at={task.run_at!r} itself: register it by register_task, or leave that out"
        )


def task_at(when: float | datetime, task: Task[T]) -> Task[T]:
    """The same, to be queued then."""
    _check_without_time(task)
    if isinstance(when, datetime):
        return replace(task, run_at=when)
    at = check_number("when", when, 0.0, EPOCH_MAX, instead=OR_A_DATETIME)
    return replace(task, run_at=max(0.0, at - time.time()))


def task_after(delay: float, task: Task[T]) -> Task[T]:
    """The same, to be queued in so many seconds."""
    _check_without_time(task)
    return replace(task, run_at=check_seconds("delay", delay, zero=True))


def register(client: Client, defaults: TaskDefaults, task: Task[Any]) -> TaskFuture[Any]:
    """Submit a task, or find the future of the one with its idempotency key; see `ProcessWorker.register_task`."""
    if task.id is None and task.idempotency_key is None:
        return accept(client, defaults, task)
    if not client.may_wait:  # a middleware has given it one, where nothing can be asked without holding up the loop
        return accept(client, defaults, task, _TRUSTING)
    while True:
        look = client.carry_out(registration(client).looking(client, task))
        try:
            return accept(client, defaults, task, look)
        except LookAgain:
            pass


def accept(client: Client, defaults: TaskDefaults, task: Task[Any], look: Look = _NOTHING) -> TaskFuture[Any]:
    """Send a task, unless its idempotency key is known.

    Args:
        client: Who sends it.
        defaults: Its options, where it does not say others.
        task: The task.
        look: What was found of its key and id.

    Raises:
        LookAgain: That is no longer so.
    """
    if task.idempotency_key is None:
        return _register(client, defaults, task, look)
    return registration(client).idempotency.register(
        client, task, look, lambda: _register(client, defaults, task, look)
    )


def submit_as_task(
    client: Client, defaults: TaskDefaults, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> TaskFuture[Any]:
    """`submit` where there is middleware around it, which is handed a `Task`."""
    if not callable(fn):
        raise InvalidArgument(f"submit needs a callable, not {fn!r}: write submit(f, x), not submit(f(x))")
    assert client.submission is not None
    names = ("queue", "priority", "weight", "timeout", "retries", "crash_retries", "retry_policy")
    said: dict[str, Any] = {name: getattr(defaults, name) for name in (*names, "concurrency_key", "concurrency")}
    task = Task(fn, args, kwargs, **said)
    future: TaskFuture[Any] = client.submission.submit(lambda task: register(client, defaults, task), task)
    return future


def key_of(client: Client, task_id: str | None) -> int:
    """The number of the task that has this id, 0 if none is known here."""
    if not isinstance(task_id, str):
        raise InvalidArgument(f"a task id is a str, not {task_id!r}")
    future = client.registration.named.get(task_id) if client.registration is not None else None
    return future._key if future is not None else client.key_of(task_id)


def looking_up(client: Client, task_id: str | None) -> Steps[dict[str, Any] | None]:
    """The steps to what the supervisor tells of the task that has this id."""
    key = key_of(client, task_id)
    answer = yield from answered(client, {"verb": "task"} | ({"task": key} if key else {"id": task_id}))
    found: dict[str, Any] | None = answer["task"]
    return found


def register_all(client: Client, defaults: TaskDefaults, tasks: Iterable[Task[Any]]) -> list[TaskFuture[Any]]:
    """`register` for each, and most of them in one go; if one raises, those before it are registered."""
    futures: list[TaskFuture[Any]] = []
    calls: list[Call] = []
    try:
        for task in tasks:
            check_task(task)
            is_asked_for = task.id is not None or task.idempotency_key is not None
            if is_asked_for or len(calls) == _TOGETHER:
                calls, sent = [], calls
                _submit_together(client, sent, futures)
            if is_asked_for:
                futures.append(register(client, defaults, task))
            else:
                calls.append(_call_of(client, defaults, task))
    finally:
        _submit_together(client, calls, futures)
    return futures


def _submit_together(client: Client, calls: list["Call"], futures: list[TaskFuture[Any]]) -> None:
    sent: list[TaskFuture[Any]] = []
    client.submit_all(calls, sent)
    futures += sent


def _call_of(client: Client, defaults: TaskDefaults, task: Task[Any]) -> "Call":
    if task.run_at is not None:
        task.refuse_to_begin_late()
    key, shared = client.option_table.say(defaults.but(**task.options()))
    said: dict[str, Any] = dict(shared or {})
    times = {"deadline": monotonic_at(task.deadline), "run_at": monotonic_at(task.run_at)}
    said |= {name: at for name, at in times.items() if at is not None}
    for name in ("id", "name"):
        if getattr(task, name):
            said[name] = getattr(task, name)
    if task.idempotency_key is not None:
        said["keyed"] = True
    if task.metadata:
        said["metadata"] = checked_metadata(task.metadata)
    make: Make = partial(in_queue, task.queue)
    if task.name:
        make = lambda client, number, _: in_queue(task.queue, client, number, task.name)  # noqa: E731
    return task.fn, tuple(task.args), dict(task.kwargs), key, details.pack(said) if said else b"", make


def _register(client: Client, defaults: TaskDefaults, task: Task[Any], look: Look) -> TaskFuture[Any]:
    call = _call_of(client, defaults, task)
    return client.submit(*call) if task.id is None else _register_named(client, task, task.id, call, look)


def _register_named(client: Client, task: Task[Any], own: str, call: "Call", look: Look) -> TaskFuture[Any]:
    registered = registration(client)
    number = own.removeprefix(client.prefix)
    if number != own and number.isdecimal():
        raise DuplicateTask(f"the id {own!r} is one of those that the worker gives to tasks without one of their own")
    held = registered.named.get(own)
    if look.id == own:
        token, taken = look.token, look.taken
    else:  # a middleware has given it this one, in an event loop that does not wait for a question
        ended = final_status(held.status) if held is not None and held.ready else _UNFINISHED
        token, taken = None, None if held is None else ended
    if taken is not None:
        kept = ", and is remembered for as long as Retention says" if taken in FINAL_STATUSES else ""
        raise DuplicateTask(f"there is a task with the id {own!r}, which is {taken.replace('_', ' ')}{kept}")
    made: list[TaskFuture[Any]] = []

    def make_named(client: Client, number: int, name: str) -> TaskFuture[Any]:
        future = in_queue(task.queue, client, number, task.name or name)
        future.take_id(own)
        if not registered.take(own, future, None if made else token):
            raise LookAgain(task)
        made[:] = [future]
        return future

    try:
        return client.submit(*call[:-1], make_named)
    except BaseException:
        for future in made:
            registered.give_back(own, future)
        raise
