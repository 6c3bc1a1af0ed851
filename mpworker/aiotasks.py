"""The verbs of `mpworker.tasks` in an event loop."""

import asyncio
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mpworker.aiofuture import AsyncTaskFuture
from mpworker.checks import check_seconds
from mpworker.future import TaskFuture
from mpworker.registering import accept, looking_up
from mpworker.retention import Retention
from mpworker.task import Task, TaskInfo, TaskStatus
from mpworker.tasks import all_ended, check_task, task_after, task_at

if TYPE_CHECKING:
    from mpworker.hooks import Hooks
    from mpworker.loopclient import LoopClient
    from mpworker.metrics import Metrics
    from mpworker.worker import ProcessWorker

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AsyncTaskInfo(TaskInfo):
    """What is known of a task at one moment: a `TaskInfo` whose future is awaited.

    Attributes:
        future: The future of its result: always while it has not ended, afterwards if the outcome is kept.
    """

    future: AsyncTaskFuture[Any] | None  # type: ignore[assignment]  # no other class has both


class AsyncTasks:
    """What an `AsyncProcessWorker` can do with tasks besides `submit` and `map`."""

    _client: "LoopClient"
    _pool: "ProcessWorker"
    _naming: asyncio.Lock | None = None  # between the look whether an id is free, and its use

    async def register_task(self, task: Task[T]) -> AsyncTaskFuture[T]:
        """Have a child carry out a task: see `ProcessWorker.register_task`.

        It is on its way when this returns, whose only wait is for whether its `id`, if it has one, is free.

        Args:
            task: The task.

        Returns:
            A future to await, as from `submit`; that of the first task if its idempotency key is known: who cancels it
            cancels it for all who have it.

        Raises:
            InvalidArgument: It is no `Task`.
            ConfigurationError: One of its options is out of its bounds, or its queue is refused.
            DuplicateTask: Its id is another task's, or its idempotency key belongs to another call.
            SerializationError: Its function, an argument or its metadata cannot be sent.
            WorkerStopped: The worker was stopped, or made before this process was forked.
            QueueFull: As for `submit`.
            WrongEventLoop: The worker is in use by another event loop.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker, Task
            >>> async def main():
            ...     async with AsyncProcessWorker(n=1) as w:
            ...         future = await w.register_task(Task(pow, (2, 10), id="power"))
            ...         return await future, (await w.get_task("power")).status.value
            >>> asyncio.run(main())
            (1024, 'completed')
        """
        self._client.check()
        check_task(task)
        if task.id is None:
            return self._accept(task, False)
        if self._naming is None:
            self._naming = asyncio.Lock()
        async with self._naming:
            found = await self._client.carry_out_soon(looking_up(self._client, task.id))
            return self._accept(task, found is not None)

    def _accept(self, task: Task[T], found: bool) -> AsyncTaskFuture[T]:
        client, defaults = self._client, self._pool._defaults
        if client.submission is None:
            return _awaited(accept(client, defaults, task, found))
        return _awaited(client.submission.submit(lambda task: accept(client, defaults, task, found), task))

    async def register_tasks(self, *tasks: Task[T]) -> list[AsyncTaskFuture[T]]:
        """`register_task` for each; if one raises, those before it are registered."""
        return [await self.register_task(task) for task in tasks]

    async def register_task_at(self, when: float | datetime, task: Task[T]) -> AsyncTaskFuture[T]:
        """`register_task` with `run_at`.

        Args:
            when: A datetime with a time zone, or seconds since the epoch.
            task: The task.
        """
        return await self.register_task(task_at(when, task))

    async def register_task_after(self, delay: float, task: Task[T]) -> AsyncTaskFuture[T]:
        """`register_task` with `run_at`: in so many seconds from now."""
        return await self.register_task(task_after(delay, task))

    async def execute_task(self, task: Task[T], timeout: float | None = None) -> T:
        """Carry out a task and await its result; see `register_task`.

        If the asyncio task that awaits it is cancelled, then so is the call.

        Args:
            task: The task.
            timeout: Seconds; when they are over this raises TimeoutError, and the task goes on. None for no limit.
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        future = await self.register_task(task)
        try:
            await asyncio.wait([future], timeout=timeout)
        except asyncio.CancelledError:
            future.cancel()
            raise
        if not future.done():
            raise TimeoutError(f"task {future.task_id} has not ended within {timeout} s")
        return future.result()

    async def set_retention(self, retention: Retention) -> None:
        """Remember tasks that have ended in another way, from now on: see `ProcessWorker.set_retention`.

        Args:
            retention: How.

        Raises:
            InvalidArgument: It is no `Retention`.
            WorkerStopped: The worker was stopped.
            WrongEventLoop: The worker is in use by another event loop.
        """
        self._client.check()
        self._pool.set_retention(retention)

    async def set_hooks(self, hooks: "Hooks | None") -> None:
        """Call these hooks from now on, and none that were set before: see `ProcessWorker.set_hooks`.

        They are called in the event loop: a slow one holds it up.

        Args:
            hooks: A `Hooks`; None for none.

        Raises:
            InvalidArgument: It is neither.
            WorkerStopped: The worker was stopped.
            WrongEventLoop: The worker is in use by another event loop.
        """
        self._client.check()
        self._pool.set_hooks(hooks)

    async def get_task(self, task_id: str) -> AsyncTaskInfo:
        """What is known of a task now, before its end and after.

        Args:
            task_id: As `AsyncTaskFuture.task_id`, or the id that its `Task` had.

        Raises:
            InvalidArgument: It is no str.
            TaskNotFound: No task of this worker has the id, or it has ended and is no longer remembered.
            WrongEventLoop: The worker is in use by another event loop.
        """
        return _to_await(await self._client.carry_out_soon(self._pool._getting(task_id)))

    async def get_tasks(
        self, *, status: TaskStatus | str | None = None, queue: str | None = None, limit: int = 100
    ) -> list[AsyncTaskInfo]:
        """What is known of many tasks: first those that have not ended, the oldest first, then the newest of the rest.

        Args:
            status: Only those with this status; None for any.
            queue: Only those of this queue; None for any.
            limit: At most so many, 1 to 100,000.

        Raises:
            InvalidArgument: One has a wrong type.
            ConfigurationError: There is no such status, or `limit` is out of its bounds.
            WrongEventLoop: The worker is in use by another event loop.
        """
        infos = await self._client.carry_out_soon(self._pool._getting_all(status, queue, limit))
        return [_to_await(info) for info in infos]

    async def metrics(self) -> "Metrics":
        """Counts of tasks by where they are and how they ended, since the start. All are 0 after the stop.

        Raises:
            WrongEventLoop: The worker is in use by another event loop.
        """
        return await self._client.carry_out_soon(self._pool._counting())

    async def cancel_task(self, task_id: str) -> bool:
        """Cancel a task by its id.

        Its future raises `TaskCancelled`, while one that is cancelled itself raises `asyncio.CancelledError`.

        Returns:
            True if it will end cancelled, False if it had ended.

        Raises:
            InvalidArgument: The id is no str.
            TaskNotFound: No task of this worker has the id.
            WrongEventLoop: The worker is in use by another event loop.
        """
        return await self._client.carry_out_soon(self._pool._cancelling(task_id))

    async def cancel_all(self) -> int:
        """Cancel every task, begun or not; of a `map`, every item that has not begun.

        Returns:
            How many tasks had not ended.

        Raises:
            WrongEventLoop: The worker is in use by another event loop.
        """
        return await self._client.carry_out_soon(self._pool._cancelling_all())

    async def retry_task(self, task_id: str) -> AsyncTaskFuture[Any]:
        """Run a task once more that failed, timed out or was cancelled: see `ProcessWorker.retry_task`.

        Raises:
            InvalidArgument: The id is no str.
            TaskNotFound: No task of this worker has the id, or it is no longer remembered.
            ConfigurationError: It has not ended, or has ended well.
            WrongEventLoop: The worker is in use by another event loop.
        """
        return _awaited(await self._client.carry_out_soon(self._pool._retrying(task_id)))

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything that has been accepted so far has ended; more may be submitted meanwhile.

        Args:
            timeout: Seconds; None for no limit.

        Returns:
            False if the time was over first.

        Raises:
            WrongEventLoop: The worker is in use by another event loop.
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        self._client.check()
        left = [*self._client.pending.values(), *self._client.due]
        return await self._client.until(all_ended(left), timeout)


def _awaited(future: TaskFuture[T]) -> AsyncTaskFuture[T]:
    return cast("AsyncTaskFuture[T]", future.awaited)  # type: ignore[attr-defined]  # each future of a LoopClient has one


def _to_await(info: TaskInfo) -> AsyncTaskInfo:
    known = {field.name: getattr(info, field.name) for field in fields(TaskInfo)}
    return AsyncTaskInfo(**known | {"future": None if info.future is None else _awaited(info.future)})
