"""The results of all tasks as a stream in an event loop: what `AsyncProcessWorker.subscribe_results` gives.

The loop that watches the worker's descriptor fills the buffers as it settles futures, so nobody else reads, and nobody
waits but in the loop. All that a subscription does is done there, with one exception: one that is dropped may be freed
in any thread, in the middle of anything. Its end, and a `close`, is therefore told by a call that the loop is to make.
"""

import asyncio
from typing import TYPE_CHECKING, Self

from mpworker.aiofuture import Wakes
from mpworker.checks import check_seconds
from mpworker.results import Buffered, TaskResult
from mpworker.subscribers import Fanout
from mpworker.waiting import wake_all

if TYPE_CHECKING:
    from mpworker.loopclient import LoopClient


class AsyncSubscription(Buffered):
    """A stream of `TaskResult`; made by `AsyncProcessWorker.subscribe_results`.

    It is an asynchronous iterator that ends when the worker has stopped and everything was taken, or when it is
    closed. Of several asyncio tasks that iterate over it each gets a part. One that is dropped unsubscribes itself.
    Results that are there are taken without giving way to others, at most as many as its buffer holds.
    """

    _client: "LoopClient"

    async def get(self, timeout: float | None = None) -> TaskResult | None:
        """The next result. Who is cancelled while it waits takes none.

        Args:
            timeout: Seconds to wait, 0 for what the event loop has taken in; None waits as long as it takes.

        Returns:
            None if no more will come: the worker has stopped and everything was taken, or this is closed.

        Raises:
            TimeoutError: None has come in time.
            InvalidArgument: `timeout` is no number.
            ConfigurationError: It is out of its bounds.
            WorkerStopped: This process is a fork of the one that subscribed.
            WrongEventLoop: The worker is in use by another event loop.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker
            >>> async def main():
            ...     async with AsyncProcessWorker(n=1) as w, w.subscribe_results() as results:
            ...         future = w.submit(pow, 2, 10)
            ...         return (await results.get(timeout=60.0)).result()
            >>> asyncio.run(main())
            1024
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        loop = self._client.check()
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            result, ended = self._take_or_end()
            if result is not None or ended:
                return result
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise TimeoutError(f"no result has come within {timeout} s")
            await self._until_woken(loop, left)

    async def _until_woken(self, loop: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        waiter = Wakes(loop)
        ends = self._client.over_waiters
        try:
            self._waiters.append(waiter)
            ends.append(waiter)
            await asyncio.wait([waiter.future], timeout=timeout)
        finally:
            for line in (self._waiters, ends):
                if waiter in line:
                    line.remove(waiter)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskResult:
        result = await self.get()
        if result is None:
            raise StopAsyncIteration
        return result

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _tell_of_end(self) -> None:
        self._client.call_soon(self._end)

    def _end(self) -> None:
        self._fanout.tell()
        wake_all(self._waiters)


class LoopFanout(Fanout):
    """The subscriptions of an event loop's client, which has room for every word: what the ring has not, waits."""

    client: "LoopClient"
    subscription = AsyncSubscription

    def watch(self, number: int) -> None:
        """Nothing: the loop reads."""

    def _died(self, number: int) -> None:
        self.remove(number)
        if not self.client.is_fork():
            self.client.call_soon(self.tell)
