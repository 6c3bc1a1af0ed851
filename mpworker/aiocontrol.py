"""The verbs of `mpworker.control` in an event loop."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mpworker.aiodocs import like
from mpworker.checks import check_seconds
from mpworker.control import RESULTS_BUFFER, Control, draining, is_drained
from mpworker.queues import QueueState

if TYPE_CHECKING:
    from mpworker.aioresults import AsyncSubscription
    from mpworker.loopclient import LoopClient
    from mpworker.shared import Shared
    from mpworker.worker import ProcessWorker

T = TypeVar("T")


class AsyncControl:
    """What an `AsyncProcessWorker` can do besides taking tasks."""

    _client: "LoopClient"
    _pool: "ProcessWorker"

    @like(Control.share)
    async def share(self, obj: T) -> "Shared[T]":
        """As `ProcessWorker.share`, whose wait for room lets the event loop go on; the write does not.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker
            >>> def look_up(table, key):
            ...     return table.value[key]
            >>> async def main():
            ...     async with AsyncProcessWorker(n=1) as w:
            ...         with await w.share({"a": 1, "b": 2}) as table:
            ...             return await w.submit(look_up, table, "b")
            >>> asyncio.run(main())
            2
        """
        from mpworker.sharing import share_soon

        return await share_soon(self._client, obj)

    @like(Control.queues)
    async def queues(self) -> dict[str, QueueState]:
        """As `ProcessWorker.queues`."""
        return await self._client.carry_out_soon(self._pool._telling_queues())

    @like(Control.set_queue)
    async def set_queue(self, name: str, **options: Any) -> None:
        """As `ProcessWorker.set_queue`.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker
            >>> async def main():
            ...     async with AsyncProcessWorker(n=1, queues={"mail": 2}) as w:
            ...         await w.set_queue("mail", rate=5.0)
            ...         return (await w.queues())["mail"].weight
            >>> asyncio.run(main())
            2
        """
        self._client.check()
        self._pool.set_queue(name, **options)

    @like(Control.set_rate)
    async def set_rate(self, rate: float | None, burst: int | None = None) -> None:
        """As `ProcessWorker.set_rate`."""
        self._client.check()
        self._pool.set_rate(rate, burst)

    @like(Control.pause)
    async def pause(self, *queues: str) -> None:
        """As `ProcessWorker.pause`."""
        await self._client.carry_out_soon(self._pool._steering("pause", queues))

    @like(Control.drain)
    async def drain(self, *queues: str, timeout: float | None = None) -> bool:
        """As `ProcessWorker.drain`.

        What waits at `max_pending` counts as taken.
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        self._client.check()
        message = draining(self._client, queues)
        return is_drained(self._client, await self._client.ask(message, timeout))

    @like(Control.resume)
    async def resume(self, *queues: str) -> None:
        """As `ProcessWorker.resume`."""
        await self._client.carry_out_soon(self._pool._steering("resume", queues))

    def subscribe_results(
        self,
        buffer: int = RESULTS_BUFFER,
        policy: Literal["drop_newest", "drop_oldest", "block"] = "drop_newest",
        queues: Iterable[str] | None = None,
        statuses: Iterable[str] | None = None,
    ) -> "AsyncSubscription":
        """The results of all tasks that end from now on, as they end: see `ProcessWorker.subscribe_results`.

        Not a coroutine: it has begun when this returns. The event loop itself fills the buffer, also while nobody
        takes results; a task that was cancelled, or refused by `submit_timeout`, while it waited at `max_pending` is
        among them, and so are the runs of recurring tasks.

        Args:
            buffer: How many results wait to be taken, 1 to 16,777,216.
            policy: What happens when so many do: "drop_newest", "drop_oldest" or "block". With "block", a coroutine
                that awaits a future while nobody takes the results may wait for ever; no other one does.
            queues: Names of queues; None for all.
            statuses: Of "completed", "failed", "cancelled" and "timed_out", or as `TaskStatus`; None for all.

        Returns:
            An asynchronous iterator over `TaskResult`. It ends when the worker has stopped and all was taken; leaving
            an `async with` block of it, or dropping it, ends the subscription.

        Raises:
            InvalidArgument: An argument has a wrong type.
            ConfigurationError: One is out of its bounds, there is no such policy or status, or there is no such queue
                and `unknown_queues` is "refuse".
            WorkerStopped: The worker was stopped, or made before this process was forked.
            WrongEventLoop: The worker is in use by another event loop, or none runs here.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker
            >>> async def main():
            ...     async with AsyncProcessWorker(n=2) as w:
            ...         results = w.subscribe_results(statuses=["completed"])
            ...         futures = [w.submit(pow, 2, n) for n in (8, 9, 10)]
            ...     return sorted([each.result() async for each in results])
            >>> asyncio.run(main())
            [256, 512, 1024]
        """
        self._client.check()
        from mpworker.aioresults import LoopFanout  # not before: no start shall wait for it
        from mpworker.subscribers import subscribe

        subscription: AsyncSubscription = subscribe(self._client, buffer, policy, queues, statuses, LoopFanout)
        return subscription
