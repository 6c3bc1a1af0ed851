"""The verbs for tasks as objects: register, look up, cancel, run again. What they need is loaded when one is called."""

from __future__ import annotations

import time

from mpworker.checks import check_int, check_seconds
from mpworker.errors import ConfigurationError, TaskNotFound
from mpworker.ipc.codec import CRON_KEYS
from mpworker.options import TaskDefaults
from mpworker.steps import Steps, answered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from typing import Any, Final, TypeVar

    from mpworker.client import Client
    from mpworker.future import TaskFuture
    from mpworker.hooks import Hooks
    from mpworker.metrics import Metrics
    from mpworker.retention import Retention
    from mpworker.task import Task, TaskInfo, TaskStatus

    T = TypeVar("T")


LIMIT_MAX: Final = 100_000


class Tasks:
    """What a `ProcessWorker` can do with tasks besides `submit` and `map`."""

    _client: Client
    _defaults: TaskDefaults

    # ------------------------------------------------------------ register

    def register_task(self, task: Task[T]) -> TaskFuture[T]:
        """Have a child carry out a task.

        Args:
            task: The task.

        Returns:
            The future of its result; if its idempotency key is known that of the first one, or one more of it if nobody
            holds that.

        Raises:
            InvalidArgument: It is no `Task`.
            ConfigurationError: One of its options is out of its bounds, or its queue is refused.
            DuplicateTask: There is a task with its id, unfinished or still remembered, even if that is of the same
                `Task`; the id is one of the worker's own; or its idempotency key belongs to another call.
            TaskNotFound: The task of its idempotency key has ended, nobody holds its future, and its outcome has been
                let go for want of `Retention.max_bytes`. It is not run twice.
            SerializationError: Its function, an argument or its metadata cannot be sent.
            WorkerStopped: The worker was stopped, or made before this process was forked.
            QueueFull: `max_pending` tasks are unfinished, and `submit_timeout` is over, also while another thread sends
                the task of its idempotency key.
        """
        from mpworker import registering

        registering.check_task(task)
        client, defaults = self._client, self._defaults
        if client.submission is not None:
            future: TaskFuture[T] = client.submission.submit(
                lambda task: registering.register(client, defaults, task), task
            )
            return future
        return registering.register(client, defaults, task)

    def register_tasks(self, *tasks: Task[T]) -> list[TaskFuture[T]]:
        """`register_task` for each; if one raises, those before it are registered and run, and the rest is not.

        Those that have neither an `id` nor an `idempotency_key` are sent together.
        """
        from mpworker import registering

        if self._client.submission is not None:
            return [self.register_task(task) for task in tasks]
        return registering.register_all(self._client, self._defaults, tasks)

    def register_task_at(self, when: float | datetime, task: Task[T]) -> TaskFuture[T]:
        """`register_task` with `run_at`.

        Args:
            when: A datetime with a time zone, or seconds since the epoch.
            task: The task, which says no `run_at` itself.

        Raises:
            InvalidArgument: `when` is neither, or `task` no `Task`.
            ConfigurationError: `when` is out of its bounds or later than the deadline, or the task has a `run_at`.
        """
        from mpworker import registering

        return self.register_task(registering.task_at(when, task))

    def register_task_after(self, delay: float, task: Task[T]) -> TaskFuture[T]:
        """`register_task` with `run_at`: in so many seconds from now.

        Args:
            delay: Seconds, 0 or more.
            task: The task, which says no `run_at` itself.

        Raises:
            InvalidArgument: `delay` is no number, or `task` no `Task`.
            ConfigurationError: `delay` is out of its bounds or later than the deadline, or the task has a `run_at`.
        """
        from mpworker import registering

        return self.register_task(registering.task_after(delay, task))

    def execute_task(self, task: Task[T], timeout: float | None = None) -> T:
        """Carry out a task and wait for its result; see `register_task` and `TaskFuture.result`.

        Args:
            task: The task.
            timeout: Seconds; when they are over this raises TimeoutError, and the task goes on: `Task(timeout=...)`
                stops an attempt, and `deadline` all of them. None for no limit.
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        return self.register_task(task).result(timeout)

    def set_retention(self, retention: Retention) -> None:
        """Remember tasks that have ended in another way, from now on.

        Args:
            retention: How.

        Raises:
            InvalidArgument: It is no `Retention`.
            WorkerStopped: The worker was stopped.
        """
        from dataclasses import asdict

        from mpworker.retention import check_retention

        retention = check_retention(retention)
        self._client.refuse_if_closed()
        told = asdict(retention)
        told["interval"] = told.pop("cleanup_interval")
        message = {"verb": "retention", "options": told}
        self._client.note_standing("retention", message)
        self._client.tell(message)

    # ------------------------------------------------------------ look up

    def get_task(self, task_id: str) -> TaskInfo:
        """What is known of a task now, before its end and after.

        Args:
            task_id: As `TaskFuture.task_id`, or the id that its `Task` had.

        Raises:
            InvalidArgument: It is no str.
            TaskNotFound: No task of this worker has the id, or it has ended and is no longer remembered.
            WorkerStopped: The worker has stopped.
            SupervisorLost: Its supervisor has died.
        """
        return self._client.carry_out(self._getting(task_id))

    def _getting(self, task_id: str) -> Steps[TaskInfo]:
        """The steps of `get_task`."""
        from mpworker import registering

        report = yield from registering.looking_up(self._client, task_id)
        if report is None:
            raise _not_found(task_id)
        return (yield from self._telling(report))

    def get_tasks(
        self, *, status: TaskStatus | str | None = None, queue: str | None = None, limit: int = 100
    ) -> list[TaskInfo]:
        """What is known of many tasks: first those that have not ended, the oldest first, then the newest of the rest.

        None after the stop.

        Args:
            status: Only those with this status; None for any.
            queue: Only those of this queue; None for any.
            limit: At most so many, 1 to 100,000.

        Raises:
            InvalidArgument: One has a wrong type.
            ConfigurationError: There is no such status, `limit` is out of its bounds, or there is no such queue and
                `unknown_queues` is "refuse".
            SupervisorLost: The supervisor has died.
            StartFailed: It never came to work.
        """
        return self._client.carry_out(self._getting_all(status, queue, limit))

    def _getting_all(self, status: TaskStatus | str | None, queue: str | None, limit: int) -> Steps[list[TaskInfo]]:
        """The steps of `get_tasks`."""
        if status is not None:
            status = _checked_status(status)
        if queue is not None:
            from mpworker.queues import check_queue_name

            queue = check_queue_name(queue)
            self._client.queues.look_for(queue)
        limit = check_int("limit", limit, 1, LIMIT_MAX)
        answer = yield {"verb": "tasks", "status": status, "queue": queue, "limit": limit}
        if answer is None:
            self._client.refuse_unless_stopped()
        infos = []
        for report in answer["tasks"] if answer else []:
            infos.append((yield from self._telling(report)))  # noqa: PERF401  # a comprehension cannot yield
        return infos

    def set_hooks(self, hooks: Hooks | None) -> None:
        """Call these hooks from now on, and none that were set before.

        They are told of tasks that are accepted from now on. What was accepted while there were hooks, or a tracer, is
        told on, to those hooks that are set when something happens.

        Args:
            hooks: A `Hooks`; None for none.

        Raises:
            InvalidArgument: It is neither.
            WorkerStopped: The worker was stopped.

        Example:
            >>> from mpworker import Hooks, ProcessWorker
            >>> begun = []
            >>> with ProcessWorker(n=1) as w:
            ...     w.set_hooks(Hooks(on_start=begun.append))
            ...     w.submit(abs, -3).result()
            3
            >>> [event.name for event in begun]
            ['abs']
        """
        from mpworker.hooks import check_hooks

        hooks = check_hooks(hooks)
        self._client.refuse_if_closed()
        self._client.observer.watch(hooks)

    def metrics(self) -> Metrics:
        """Counts of tasks by where they are and how they ended, since the start.

        After the stop they are those of its end: what it has cut short was cancelled.

        Raises:
            SupervisorLost: The supervisor has died, and its counts with it.
            StartFailed: It never came to work.
        """
        return self._client.carry_out(self._counting())

    def _counting(self) -> Steps[Metrics]:
        """The steps of `metrics`."""
        from mpworker.metrics import metrics_from

        client = self._client
        told = yield {"verb": "metrics"}
        if told is None:
            client.refuse_unless_stopped()
            from mpworker.ipc import json

            told = json.loads(client.farewell or b"{}")  # there was no room for it in the ring of who read nothing
        if client.fanout is not None:
            told["results_dropped"] = client.fanout.dropped
        if client.arenas is not None and "arena_bytes" in told:
            told["arena_bytes"]["calls"] = client.arenas.taken
        return metrics_from(told | client.observer.counts(told.pop("middleware_errors", 0)))

    def _telling(self, report: dict[str, Any]) -> Steps[TaskInfo]:
        import binascii

        from mpworker.future import TaskFuture
        from mpworker.outcomes import describe_error
        from mpworker.recalling import name_in, recalling
        from mpworker.task import AttemptInfo, TaskInfo, TaskStatus

        client = self._client
        key = report["key"]
        epoch = time.time() - time.monotonic()
        future = client.pending.get(key)
        if not isinstance(future, TaskFuture):
            future = (yield from recalling(client, report)) if report.get("kept") else None
        attempts = [
            AttemptInfo(
                TaskStatus(status),
                pid,
                began + epoch,
                None if ended is None else ended + epoch,
                cause,
                describe_error(code, binascii.a2b_base64(told)) if told else "",
            )
            for status, pid, began, ended, cause, code, told in report["attempts"]
        ]
        run_at, deadline_at = report.get("run_at"), report["deadline_at"]
        return TaskInfo(
            task_id=report.get("id") or f"{client.prefix}{key}",
            name=name_in(client, report) or _name_of(future),
            status=TaskStatus(report["status"]),
            queue=report["queue"],
            priority=report["priority"],
            weight=report["weight"],
            attempts=tuple(attempts),
            run_at=None if run_at is None else run_at + epoch,
            deadline=None if deadline_at is None else deadline_at + epoch,
            metadata=report.get("metadata", {}),
            retry_of=_id_in(client, report.get("retry_of", "")),
            future=future,
        )

    # ------------------------------------------------------------ cancel, run again, wait

    def cancel_task(self, task_id: str) -> bool:
        """Cancel a task by its id; see `TaskFuture.cancel`.

        Returns:
            True if it will end cancelled, False if it had ended.

        Raises:
            InvalidArgument: The id is no str.
            TaskNotFound: No task of this worker has the id.
            WorkerStopped: The worker has stopped.
            SupervisorLost: Its supervisor has died.
        """
        from mpworker import registering
        from mpworker.future import TaskFuture

        future = self._client.pending.get(registering.key_of(self._client, task_id))
        if isinstance(future, TaskFuture):
            return bool(future.cancel())
        return self._client.carry_out(self._cancelling(task_id))

    def _cancelling(self, task_id: str) -> Steps[bool]:
        """The steps of `cancel_task`."""
        from mpworker import registering
        from mpworker.future import TaskFuture

        key = registering.key_of(self._client, task_id)
        future = self._client.pending.get(key)
        if not isinstance(future, TaskFuture):
            # A chunk of a map is no task.
            if future is not None or (not key and (yield from registering.looking_up(self._client, task_id)) is None):
                raise _not_found(task_id)
            if key < CRON_KEYS:
                return False
        # Of a run of a recurring task nobody has a future.
        answer = yield {"verb": "cancel", "task": key}
        return bool(answer and answer["cancelled"])

    def cancel_all(self) -> int:
        """Cancel every task, begun or not; of a `map`, every item that has not begun.

        Returns:
            How many tasks had not ended.

        Raises:
            WorkerStopped: The worker has stopped.
            SupervisorLost: Its supervisor has died.
        """
        return self._client.carry_out(self._cancelling_all())

    def _cancelling_all(self) -> Steps[int]:
        """The steps of `cancel_all`."""
        answer = yield from answered(self._client, {"verb": "cancel_all"})
        return int(answer["cancelled"])

    def retry_task(self, task_id: str) -> TaskFuture[Any]:
        """Run a task once more that failed, timed out or was cancelled: as a new task, with an id of its own.

        The old one stays as it ended. Attempts and retries count from the beginning; a deadline is not taken over. At
        `max_pending` it waits for room as `submit` does.

        Raises:
            QueueFull: `max_pending` tasks are unfinished, and `submit_timeout` is over.
            InvalidArgument: The id is no str.
            TaskNotFound: No task of this worker has the id, or it is no longer remembered.
            ConfigurationError: It has not ended, or has ended well.
            WorkerStopped: The worker has stopped.
            SupervisorLost: Its supervisor has died.
        """
        return self._client.carry_out(self._retrying(task_id))

    def _retrying(self, task_id: str) -> Steps[TaskFuture[Any]]:
        """The steps of `retry_task`."""
        from mpworker import registering
        from mpworker.recalling import awaiting, getting
        from mpworker.task import TaskStatus

        report = yield from registering.looking_up(self._client, task_id)
        if report is None:
            raise _not_found(task_id)
        status = TaskStatus(report["status"])
        if not status.is_final or status is TaskStatus.COMPLETED:
            raise ConfigurationError(
                f"task {task_id} is {status.value}: only what failed, timed out or was cancelled can be run again"
            )
        client = self._client
        client.refuse_if_closed()
        client.make_room()
        future = awaiting(client, report)
        if not (yield from getting(client, future, report, "again", "again")):
            raise TaskNotFound(f"the call of task {task_id} is no longer remembered, or an object shared in it is gone")
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
        ended = all_ended(list(client.pending.values()))
        client.poll()
        return ended() or client.wait_for(client.when(ended), timeout)


def all_ended(left: list[Any]) -> Callable[[], bool]:
    """A test whether all of these futures and chunks have ended."""
    from mpworker.future import TaskFuture

    def ended() -> bool:
        while left and (left[-1].has_been_told() if isinstance(left[-1], TaskFuture) else left[-1].has_ended()):
            left.pop()
        return not left

    return ended


def _id_in(client: Client, told: int | str) -> str:
    """The id of a task: the user's own, or the worker's of this number."""
    return told if isinstance(told, str) else f"{client.prefix}{told}"


def _name_of(future: TaskFuture[Any] | None) -> str:
    return future._name if future is not None else ""


def _not_found(task_id: str) -> TaskNotFound:
    return TaskNotFound(f"no task has the id {task_id!r}, or it has ended and is no longer remembered")


def _checked_status(status: TaskStatus | str) -> str:
    from mpworker.task import TaskStatus

    try:
        return TaskStatus(status).value
    except ValueError:
        known = ", ".join(repr(each.value) for each in TaskStatus)
        raise ConfigurationError(f"status must be one of {known}, not {status!r}") from None
