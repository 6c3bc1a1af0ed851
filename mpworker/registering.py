"""How a task as an object is submitted: its options, its details, its id and its idempotency key."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from mpworker.client import Client
from mpworker.errors import DuplicateTask, InvalidArgument
from mpworker.future import TaskFuture, in_queue
from mpworker.idempotency import Idempotency
from mpworker.options import TaskDefaults
from mpworker.steps import Steps
from mpworker.task import Task, check_when, checked_metadata, monotonic_at


class Registration:
    """What a client keeps for the tasks that are objects. Made when first needed: most workers never register one.

    Attributes:
        named: The futures of tasks with an id of the user's own, while somebody has them.
        idempotency: The idempotency keys.
    """

    def __init__(self) -> None:
        self.named: WeakValueDictionary[str, TaskFuture[Any]] = WeakValueDictionary()
        self.idempotency = Idempotency()


def registration(client: Client) -> Registration:
    """That of a client."""
    if client.registration is None:
        client.registration = Registration()
    return client.registration


def register(client: Client, defaults: TaskDefaults, task: Task[Any]) -> TaskFuture[Any]:
    """Submit a task, or find the future of the one with its idempotency key; see `ProcessWorker.register_task`."""
    if task.id is None:
        return accept(client, defaults, task)
    return client.carry_out(registering(client, defaults, task))


def registering(client: Client, defaults: TaskDefaults, task: Task[Any]) -> Steps[TaskFuture[Any]]:
    """The steps of `register` for a task with an id."""
    found = (yield from looking_up(client, task.id)) is not None
    return accept(client, defaults, task, found)


def accept(client: Client, defaults: TaskDefaults, task: Task[Any], found: bool = False) -> TaskFuture[Any]:
    """Send a task, unless its idempotency key is known.

    Args:
        client: Who sends it.
        defaults: Its options, where it does not say others.
        task: The task.
        found: The supervisor knows one of its id.
    """
    if task.idempotency_key is None:
        return _register(client, defaults, task, found)
    return registration(client).idempotency.register(task, lambda: _register(client, defaults, task, found))


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
    answer = yield {"verb": "task"} | ({"task": key} if key else {"id": task_id})
    return answer["task"] if answer else None


def _register(client: Client, defaults: TaskDefaults, task: Task[Any], found: bool) -> TaskFuture[Any]:
    check_when("deadline", task.deadline)
    key, shared = client.option_table.say(replace(defaults, **task.options()))
    said: dict[str, Any] = dict(shared or {})
    times = {"deadline": monotonic_at(task.deadline), "run_at": monotonic_at(task.run_at)}
    said |= {name: at for name, at in times.items() if at is not None}
    for name in ("id", "name"):
        if getattr(task, name):
            said[name] = getattr(task, name)
    if task.metadata:
        said["metadata"] = checked_metadata(task.metadata)
    make: Callable[[Client, int, str], TaskFuture[Any]] = partial(in_queue, task.queue)
    if task.name:
        make = lambda client, number, _: in_queue(task.queue, client, number, task.name)  # noqa: E731
    if task.id is None:
        return client.submit(task.fn, tuple(task.args), dict(task.kwargs), key, said or None, make)
    if found:
        raise DuplicateTask(f"another task has the id {task.id!r}")
    return _register_named(client, task, task.id, key, said)


def _register_named(client: Client, task: Task[Any], own: str, key: int, said: dict[str, Any]) -> TaskFuture[Any]:
    named = registration(client).named
    if own in named or client.key_of(own):
        raise DuplicateTask(f"another task has the id {own!r}")

    def make_named(client: Client, number: int, name: str) -> TaskFuture[Any]:
        future = in_queue(task.queue, client, number, task.name or name)
        future.take_id(own)
        named[own] = future
        return future

    try:
        return client.submit(task.fn, tuple(task.args), dict(task.kwargs), key, said, make_named)
    except BaseException:
        named.pop(own, None)
        raise
