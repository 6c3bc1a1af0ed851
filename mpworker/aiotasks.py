"""The verbs of `mpworker.tasks` in an event loop."""

import asyncio
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mpworker.aiodocs import like
from mpworker.aiofuture import AsyncTaskFuture, awaited_of
from mpworker.checks import check_seconds
from mpworker.idempotency import LookAgain
from mpworker.registering import Look, accept, check_task, has_too_many_keys, registration, task_after, task_at
from mpworker.retention import Retention
from mpworker.task import Task, TaskInfo, TaskStatus
from mpworker.tasks import Tasks, all_ended

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

    @like(Tasks.register_task)
    async def register_task(self, task: Task[T]) -> AsyncTaskFuture[T]:
        """As `ProcessWorker.register_task`.

        It is on its way when this returns, whose only wait is for whether its `id` is free, or its idempotency key
        known, if it has one.

        Returns:
            A future to await, as from `submit`; that of the first task if its idempotency key is known: who cancels it
            cancels it for all who have it.

        Raises:
            QueueFull: As for `submit`.

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
        client = self._client
        looks_for: Task[Any] = task
        if task.id is None and task.idempotency_key is None and not has_too_many_keys(client):
            try:
                return self._accept(task, Look())
            except LookAgain as other:  # a middleware has given it a key
                looks_for = other.task
        if self._naming is None:
            self._naming = asyncio.Lock()
        async with self._naming:
            while True:
                look = await client.carry_out_soon(registration(client).looking(client, looks_for))
                try:
                    return self._accept(task, look)
                except LookAgain as other:
                    if other.task.idempotency_key == looks_for.idempotency_key:
                        raise
                    looks_for = other.task

    def _accept(self, task: Task[T], look: Look) -> AsyncTaskFuture[T]:
        client = self._client
        enter = partial(accept, client, self._pool._defaults, look=look)
        return awaited_of(enter(task) if client.submission is None else client.submission.submit(enter, task))

    @like(Tasks.register_tasks)
    async def register_tasks(self, *tasks: Task[T]) -> list[AsyncTaskFuture[T]]:
        """As `ProcessWorker.register_tasks`."""
        return [await self.register_task(task) for task in tasks]

    @like(Tasks.register_task_at)
    async def register_task_at(self, when: float | datetime, task: Task[T]) -> AsyncTaskFuture[T]:
        """As `ProcessWorker.register_task_at`."""
        return await self.register_task(task_at(when, task))

    @like(Tasks.register_task_after)
    async def register_task_after(self, delay: float, task: Task[T]) -> AsyncTaskFuture[T]:
        """As `ProcessWorker.register_task_after`."""
        return await self.register_task(task_after(delay, task))

    async def execute_task(self, task: Task[T], timeout: float | None = None) -> T:
        """Carry out a task and await its result; see `register_task`.

        If the asyncio task that awaits it is cancelled, then so is the call.

        Args:
            task: The task.
            timeout: Seconds; when they are over this raises TimeoutError, and the task goes on: `Task(timeout=...)`
                stops an attempt, and `deadline` all of them. None for no limit.
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        future = await self.register_task(task)
        try:
            await asyncio.wait([future], timeout=timeout)
        except asyncio.CancelledError:
            future.cancel()
            raise
        if not future.done():
            raise TimeoutError(f"task {future.task_id} has not ended within {timeout:g} s")
        return future.result()

    @like(Tasks.set_retention)
    async def set_retention(self, retention: Retention) -> None:
        """As `ProcessWorker.set_retention`."""
        self._client.check()
        self._pool.set_retention(retention)

    @like(Tasks.set_hooks)
    async def set_hooks(self, hooks: "Hooks | None") -> None:
        """As `ProcessWorker.set_hooks`.

        They are called in the event loop: a slow one holds it up.
        """
        self._client.check()
        self._pool.set_hooks(hooks)

    @like(Tasks.get_task)
    async def get_task(self, task_id: str) -> AsyncTaskInfo:
        """As `ProcessWorker.get_task`.

        Args:
            task_id: As `AsyncTaskFuture.task_id`, or the id that its `Task` had.
        """
        return _to_await(await self._client.carry_out_soon(self._pool._getting(task_id)))

    @like(Tasks.get_tasks)
    async def get_tasks(
        self, *, status: TaskStatus | str | None = None, queue: str | None = None, limit: int = 100
    ) -> list[AsyncTaskInfo]:
        """As `ProcessWorker.get_tasks`."""
        infos = await self._client.carry_out_soon(self._pool._getting_all(status, queue, limit))
        return [_to_await(info) for info in infos]

    @like(Tasks.metrics)
    async def metrics(self) -> "Metrics":
        """As `ProcessWorker.metrics`."""
        return await self._client.carry_out_soon(self._pool._counting())

    @like(Tasks.cancel_task)
    async def cancel_task(self, task_id: str) -> bool:
        """As `ProcessWorker.cancel_task`.

        Its future raises `TaskCancelled`, while one that is cancelled itself raises `asyncio.CancelledError`.
        """
        return await self._client.carry_out_soon(self._pool._cancelling(task_id))

    @like(Tasks.cancel_all)
    async def cancel_all(self) -> int:
        """As `ProcessWorker.cancel_all`."""
        return await self._client.carry_out_soon(self._pool._cancelling_all())

    @like(Tasks.retry_task)
    async def retry_task(self, task_id: str) -> AsyncTaskFuture[Any]:
        """As `ProcessWorker.retry_task`."""
        return awaited_of(await self._client.carry_out_soon(self._pool._retrying(task_id)))

    @like(Tasks.wait)
    async def wait(self, timeout: float | None = None) -> bool:
        """As `ProcessWorker.wait`."""
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        self._client.check()
        left = [*self._client.pending.values(), *self._client.due]
        return await self._client.until(all_ended(left), timeout)


def _to_await(info: TaskInfo) -> AsyncTaskInfo:
    known = {field.name: getattr(info, field.name) for field in fields(TaskInfo)}
    return AsyncTaskInfo(**known | {"future": None if info.future is None else awaited_of(info.future)})
