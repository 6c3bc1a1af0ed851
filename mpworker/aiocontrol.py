"""The verbs of `mpworker.control` in an event loop."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from mpworker.checks import check_seconds
from mpworker.control import RESULTS_BUFFER, check_queue_names
from mpworker.queues import QueueState

if TYPE_CHECKING:
    from mpworker.aioresults import AsyncSubscription
    from mpworker.loopclient import LoopClient
    from mpworker.worker import ProcessWorker


class AsyncControl:
    """What an `AsyncProcessWorker` can do besides taking tasks."""

    _client: "LoopClient"
    _pool: "ProcessWorker"

    async def queues(self) -> dict[str, QueueState]:
        """How each queue is just now: see `ProcessWorker.queues`.

        Raises:
            WrongEventLoop: The worker is in use by another event loop.
        """
        answer = await self._client.ask({"verb": "queues"}) or {}
        return {name: QueueState(**state) for name, state in answer.items()}

    async def set_queue(self, name: str, **options: Any) -> None:
        """Make a queue, or change one while it is in use: see `ProcessWorker.set_queue`.

        Args:
            name: Of the queue.
            **options: `weight`, `max_running`, `rate`, `burst`, as for `QueueOptions`; what is left out stays.

        Raises:
            InvalidArgument: There is no such option, or it has a wrong type.
            ConfigurationError: One is out of its bounds, or there are too many queues.
            WorkerStopped: The worker was stopped.
            WrongEventLoop: The worker is in use by another event loop.

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

    async def set_rate(self, rate: float | None, burst: int | None = None) -> None:
        """Limit how many tasks of all queues together start per second, from now on: see `ProcessWorker.set_rate`.

        Args:
            rate: Starts per second, None for no limit.
            burst: How many may start at once when none has for long; None for as many as there are children.

        Raises:
            InvalidArgument: One has a wrong type.
            ConfigurationError: One is out of its bounds.
            WorkerStopped: The worker was stopped.
            WrongEventLoop: The worker is in use by another event loop.
        """
        self._client.check()
        self._pool.set_rate(rate, burst)

    async def pause(self, *queues: str) -> None:
        """Start nothing more, until `resume`: see `ProcessWorker.pause`.

        Args:
            *queues: Names of queues; none for all of them, those still to come included.

        Raises:
            InvalidArgument: A name is no str.
            WrongEventLoop: The worker is in use by another event loop.
        """
        await self._client.ask({"verb": "pause", "names": check_queue_names(queues)})

    async def drain(self, *queues: str, timeout: float | None = None) -> bool:
        """Wait until all that these queues have taken so far has ended; what comes from now on waits until `resume`.

        See `ProcessWorker.drain`. What waits at `max_pending` counts as taken.

        Args:
            *queues: Names of queues; none for all of them, those still to come included.
            timeout: Seconds to wait; None for no limit.

        Returns:
            True if all has ended. False if the time was over first, or `resume` or a stop came; after the time nothing
            new starts all the same, until `resume`.

        Raises:
            InvalidArgument: A name is no str, or `timeout` no number.
            ConfigurationError: `timeout` is out of its bounds.
            WrongEventLoop: The worker is in use by another event loop.
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        answer = await self._client.ask({"verb": "drain", "names": check_queue_names(queues)}, timeout)
        return bool(answer and answer["drained"])

    async def resume(self, *queues: str) -> None:
        """The end of a `pause` or `drain` with the same arguments.

        Args:
            *queues: Names of queues; none ends every `drain`, and a pause of all, and leaves those alone that were
                paused by name.

        Raises:
            InvalidArgument: A name is no str.
            WrongEventLoop: The worker is in use by another event loop.
        """
        await self._client.ask({"verb": "resume", "names": check_queue_names(queues)})

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
        among them.

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
            ConfigurationError: One is out of its bounds, or there is no such policy or status.
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
