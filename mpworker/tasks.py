"""The verbs for tasks as objects: register, look up, cancel, run again."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakValueDictionary

from mpworker.checks import check_int, check_number, check_seconds
from mpworker.client import Client
from mpworker.errors import ConfigurationError, DuplicateTask, InvalidArgument, TaskNotFound
from mpworker.future import TaskFuture, in_queue
from mpworker.idempotency import Idempotency
from mpworker.ipc.codec import CRON_KEYS
from mpworker.options import TaskDefaults
from mpworker.queues import check_queue_name
from mpworker.retention import Retention, check_retention
from mpworker.task import (
    AttemptInfo,
    Task,
    TaskInfo,
    TaskStatus,
    check_when,
    checked_metadata,
    monotonic_at,
)

if TYPE_CHECKING:
    from mpworker.metrics import Metrics

T = TypeVar("T")

LIMIT_MAX: Final = 100_000
EPOCH_MAX: Final = 1e11


class Tasks:
    """What a `ProcessWorker` can do with tasks besides `submit` and `map`."""

    _client: Client
    _defaults: TaskDefaults

    # Made when first needed: most workers never register a task.
    _named: "WeakValueDictionary[str, TaskFuture[Any]] | None" = None
    _idempotency: "Idempotency | None" = None

    # ------------------------------------------------------------ register

    def register_task(self, task: Task[T]) -> TaskFuture[T]:
        """Have a child carry out a task.

        Args:
            task: The task.

        Returns:
            The future of its result; that of the first one if its idempotency key is known.

        Raises:
            InvalidArgument: It is no `Task`.
            ConfigurationError: One of its options is out of its bounds, or its queue is refused.
            DuplicateTask: Its id is another task's, or its idempotency key belongs to another call.
            SerializationError: Its function, an argument or its metadata cannot be sent.
            WorkerStopped: The worker was stopped, or made before this process was forked.
            QueueFull: `max_pending` tasks are unfinished, and `submit_timeout` is over.
        """
        if not isinstance(task, Task):
            raise InvalidArgument(f"register_task needs a Task, not {task!r}")
        if task.idempotency_key is None:
            return self._register(task)
        if self._idempotency is None:
            self._idempotency = Idempotency()
        return self._idempotency.register(task, lambda: self._register(task))

    def register_tasks(self, *tasks: Task[T]) -> list[TaskFuture[T]]:
        """`register_task` for each; if one raises, those before it are registered."""
        return [self.register_task(task) for task in tasks]

    def register_task_at(self, when: float | datetime, task: Task[T]) -> TaskFuture[T]:
        """`register_task` with `run_at`.

        Args:
            when: A datetime with a time zone, or seconds since the epoch.
            task: The task.
        """
        if isinstance(when, datetime):
            return self.register_task(replace(task, run_at=when))
        at = check_number("when", when, 0.0, EPOCH_MAX)
        return self.register_task(replace(task, run_at=max(0.0, at - time.time())))

    def register_task_after(self, delay: float, task: Task[T]) -> TaskFuture[T]:
        """`register_task` with `run_at`: in so many seconds from now."""
        return self.register_task(replace(task, run_at=check_seconds("delay", delay, zero=True)))

    def execute_task(self, task: Task[T], timeout: float | None = None) -> T:
        """Carry out a task and wait for its result; see `register_task` and `TaskFuture.result`."""
        return self.register_task(task).result(timeout)

    def _register(self, task: Task[T]) -> TaskFuture[T]:
        check_when("deadline", task.deadline)
        key, shared = self._client.say_options(replace(self._defaults, **task.options()))
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
            return self._client.submit(task.fn, tuple(task.args), dict(task.kwargs), key, said or None, make)
        return self._register_named(task, task.id, key, said, make)

    def _register_named(
        self, task: Task[T], own: str, key: int, said: dict[str, Any], make: Callable[..., TaskFuture[Any]]
    ) -> TaskFuture[T]:
        if self._named is None:
            self._named = WeakValueDictionary()
        named = self._named
        if own in named or self._client.key_of(own) or self._info(own) is not None:
            raise DuplicateTask(f"another task has the id {own!r}")

        def make_named(client: Client, number: int, name: str) -> TaskFuture[Any]:
            future = make(client, number, name)
            future._id = own
            named[own] = future
            return future

        try:
            return self._client.submit(task.fn, tuple(task.args), dict(task.kwargs), key, said, make_named)
        except BaseException:
            named.pop(own, None)
            raise

    def set_retention(self, retention: Retention) -> None:
        """Remember tasks that have ended in another way, from now on.

        Args:
            retention: How.

        Raises:
            InvalidArgument: It is no `Retention`.
            WorkerStopped: The worker was stopped.
        """
        retention = check_retention(retention)
        self._client.refuse_if_closed()
        told = asdict(retention)
        told["interval"] = told.pop("cleanup_interval")
        self._client.tell({"verb": "retention", "options": told})
        if self._idempotency is None:
            self._idempotency = Idempotency()
        self._idempotency.retention = retention

    # ------------------------------------------------------------ look up

    def get_task(self, task_id: str) -> TaskInfo:
        """What is known of a task now, before its end and after.

        Args:
            task_id: As `TaskFuture.task_id`, or the id that its `Task` had.

        Raises:
            InvalidArgument: It is no str.
            TaskNotFound: No task of this worker has the id, or it has ended and is no longer remembered.
        """
        report = self._info(task_id)
        if report is None:
            raise _not_found(task_id)
        return self._told(report)

    def get_tasks(
        self, *, status: TaskStatus | str | None = None, queue: str | None = None, limit: int = 100
    ) -> list[TaskInfo]:
        """What is known of many tasks: first those that have not ended, the oldest first, then the newest of the rest.

        Args:
            status: Only those with this status; None for any.
            queue: Only those of this queue; None for any.
            limit: At most so many, 1 to 100,000.

        Raises:
            InvalidArgument: One has a wrong type.
            ConfigurationError: There is no such status, or `limit` is out of its bounds.
        """
        if status is not None:
            status = _checked_status(status)
        if queue is not None:
            queue = check_queue_name(queue)
        limit = check_int("limit", limit, 1, LIMIT_MAX)
        answer = self._client.request({"verb": "tasks", "status": status, "queue": queue, "limit": limit})
        return [self._told(report) for report in answer["tasks"]] if answer else []

    def metrics(self) -> "Metrics":
        """Counts of tasks by where they are and how they ended, since the start.

        After the stop all are 0 but `results_dropped`.
        """
        from mpworker.metrics import metrics_from

        fanout = self._client.fanout
        dropped = {"results_dropped": fanout.dropped} if fanout is not None else {}
        return metrics_from(dropped | (self._client.request({"verb": "metrics"}) or {}))

    def _info(self, task_id: str) -> dict[str, Any] | None:
        if not isinstance(task_id, str):
            raise InvalidArgument(f"a task id is a str, not {task_id!r}")
        key = self._key(task_id)
        answer = self._client.request({"verb": "task"} | ({"task": key} if key else {"id": task_id}))
        return answer["task"] if answer else None

    def _key(self, task_id: str) -> int:
        if not isinstance(task_id, str):
            raise InvalidArgument(f"a task id is a str, not {task_id!r}")
        future = self._named.get(task_id) if self._named is not None else None
        return future._key if future is not None else self._client.key_of(task_id)

    def _told(self, report: dict[str, Any]) -> TaskInfo:
        client = self._client
        key = report["key"]
        epoch = time.time() - time.monotonic()
        future = client.pending.get(key)
        if not isinstance(future, TaskFuture):
            future = self._kept(report) if report.get("kept") else None
        attempts = [
            AttemptInfo(TaskStatus(status), pid, began + epoch, None if ended is None else ended + epoch, cause)
            for status, pid, began, ended, cause in report["attempts"]
        ]
        run_at, deadline_at = report.get("run_at"), report["deadline_at"]
        return TaskInfo(
            task_id=report.get("id") or f"{client.prefix}{key}",
            name=report.get("name") or client.functions.live.get(report["function"], "") or _name_of(future),
            status=TaskStatus(report["status"]),
            queue=report["queue"],
            priority=report["priority"],
            weight=report["weight"],
            attempts=tuple(attempts),
            run_at=None if run_at is None else run_at + epoch,
            deadline=None if deadline_at is None else deadline_at + epoch,
            metadata=report.get("metadata", {}),
            retry_of=f"{client.prefix}{report['retry_of']}" if "retry_of" in report else "",
            future=future,
        )

    def _kept(self, report: dict[str, Any]) -> TaskFuture[Any] | None:
        """A future of what the supervisor has kept."""
        client = self._client
        key = client.new_key()
        future = in_queue(report["queue"], client, key, report.get("name") or "")
        future._id = report.get("id") or f"{client.prefix}{report['key']}"
        future._told_before = True
        client.pending[key] = future
        answer = client.request({"verb": "outcome", "task": report["key"], "as": key})
        if not answer or not answer["known"]:
            client.pending.pop(key, None)
            return None
        return future

    # ------------------------------------------------------------ cancel, run again, wait

    def cancel_task(self, task_id: str) -> bool:
        """Cancel a task by its id; see `TaskFuture.cancel`.

        Returns:
            True if it will end cancelled, False if it had ended.

        Raises:
            InvalidArgument: The id is no str.
            TaskNotFound: No task of this worker has the id.
        """
        key = self._key(task_id)
        future = self._client.pending.get(key)
        if isinstance(future, TaskFuture):
            return bool(future.cancel())
        if future is not None or (not key and self._info(task_id) is None):  # a chunk of a map is no task
            raise _not_found(task_id)
        if key >= CRON_KEYS:  # nobody has a future of it
            return self._client.cancel(key)
        return False

    def cancel_all(self) -> int:
        """Cancel every task, begun or not; of a `map`, every item that has not begun.

        Returns:
            How many tasks had not ended.
        """
        answer = self._client.request({"verb": "cancel_all"})
        return int(answer["cancelled"]) if answer else 0

    def retry_task(self, task_id: str) -> TaskFuture[Any]:
        """Run a task once more that failed, timed out or was cancelled: as a new task, with an id of its own.

        The old one stays as it ended. Attempts and retries count from the beginning; a deadline is not taken over.

        Raises:
            InvalidArgument: The id is no str.
            TaskNotFound: No task of this worker has the id, or it is no longer remembered.
            ConfigurationError: It has not ended, or has ended well.
        """
        report = self._info(task_id)
        if report is None:
            raise _not_found(task_id)
        status = TaskStatus(report["status"])
        if not status.is_final or status is TaskStatus.COMPLETED:
            raise ConfigurationError(f"task {task_id} is {status.value}: only what failed can be run again")
        client = self._client
        client.refuse_if_closed()
        key = client.new_key()
        future: TaskFuture[Any] = TaskFuture(client, key, report.get("name") or "")
        client.pending[key] = future
        answer = client.request({"verb": "again", "task": report["key"], "as": key})
        if not answer or not answer["again"]:
            client.pending.pop(key, None)
            raise TaskNotFound(f"the call of task {task_id} is no longer remembered")
        return future

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything that has been accepted so far has ended; more may be submitted meanwhile.

        Args:
            timeout: Seconds; None for no limit.

        Returns:
            False if the time was over first.
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        client = self._client
        client.refuse_if_forked()
        left = list(client.pending.values())

        def ended() -> bool:
            while left and (left[-1].has_ended() if not isinstance(left[-1], TaskFuture) else left[-1].ready):
                left.pop()
            return not left

        client.poll()
        return ended() or client.wait_for(client.when(ended), timeout)


def _name_of(future: TaskFuture[Any] | None) -> str:
    return future._name if future is not None else ""


def _not_found(task_id: str) -> TaskNotFound:
    return TaskNotFound(f"no task has the id {task_id!r}, or it has ended and is no longer remembered")


def _checked_status(status: TaskStatus | str) -> str:
    try:
        return TaskStatus(status).value
    except ValueError:
        known = ", ".join(repr(each.value) for each in TaskStatus)
        raise ConfigurationError(f"status must be one of {known}, not {status!r}") from None
