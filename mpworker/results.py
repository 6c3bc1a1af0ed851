"""The results of all tasks as a stream: what `ProcessWorker.subscribe_results` gives, and what comes out of it.

A subscription has a buffer of its own, which whoever reads the event ring fills (`mpworker.subscribers`), so a slow one
holds up nobody. There is no lock: that several threads fill and empty it, and that each of them can be interrupted,
rests on the rules of `mpworker.reader`. What must be whole is a look and an act with no call in between, or with one
native call at the end. The subscription of an event loop, in `mpworker.aioresults`, has the same buffer.
"""

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

from mpworker.checks import check_seconds
from mpworker.outcomes import final_status
from mpworker.task import TaskStatus
from mpworker.waiting import WaitedFor, wake_all

if TYPE_CHECKING:
    from mpworker.background import Background
    from mpworker.future import TaskFuture
    from mpworker.subscribers import Fanout

DROP_NEWEST: Final = "drop_newest"
DROP_OLDEST: Final = "drop_oldest"
BLOCK: Final = "block"
POLICIES: Final = (DROP_NEWEST, DROP_OLDEST, BLOCK)


class TaskResult:
    """How one task ended. It never changes.

    The value, or the exception, is unpickled when it is first asked for, in the thread that asks, and then is the same
    object for the task's future and for every subscription, as it is for all who call `result()` of one future.

    Attributes:
        task_id: As the future's.
        name: Of the function; of a run of a recurring task that of its `Task`, or the one it was registered by.
        queue: In which the task was.
        status: One of the final ones of `TaskStatus`.
    """

    __slots__ = ("_future",)

    def __init__(self, future: "TaskFuture[Any]") -> None:
        self._future = future

    @property
    def task_id(self) -> str:
        """As the future's."""
        return self._future.task_id

    @property
    def name(self) -> str:
        """Of the function."""
        return self._future._name

    @property
    def queue(self) -> str:
        """In which the task was."""
        return self._future.queue

    @property
    def status(self) -> TaskStatus:
        """How it ended."""
        return TaskStatus(final_status(self._future.status))

    def result(self) -> Any:
        """The task's value, or what it raised, as `TaskFuture.result` gives it, at once.

        Raises:
            TaskCancelled: It was cancelled.
            Exception: What the task raised, with the child's traceback as its cause, or one of `mpworker.errors`.
        """
        try:
            return self._future.result()
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642  # the traceback would hold it in a cycle

    def exception(self) -> BaseException | None:
        """What the task raised, or None if it has a value, as `TaskFuture.exception` gives it, at once."""
        try:
            return self._future.exception()
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642  # as in `result`

    def __repr__(self) -> str:
        return f'<TaskResult {self.task_id} ("{self.name}") {self.status}>'


class Buffered(WaitedFor):
    """What every subscription has: results come in, wait, and are taken out; who waits for one is another's concern.

    Args:
        fanout: Where they come from.
        size: How many may wait.
        policy: Of POLICIES.
        queues: The names of those whose results come in; None for all.
        statuses: The final ones that do.
    """

    def __init__(
        self, fanout: "Fanout", size: int, policy: str, queues: frozenset[str] | None, statuses: frozenset[str] | None
    ) -> None:
        self._fanout = fanout
        self._client = fanout.client
        self._size = size
        self._drops_oldest = policy == DROP_OLDEST
        self._blocks = policy == BLOCK
        self._queues = queues
        self._statuses = statuses
        self._buffer: deque[TaskResult] = deque()
        self._append = self._buffer.append
        self._came = self._taken = 0  # into the buffer and out of it; so many are in it as the two differ
        self._dropped = 0
        self._left_out = fanout.left_out
        self._seen = fanout.published  # the number of the last result that was looked at
        self._closed = False
        self.full = False  # so that nothing may start: set when it is full, cleared when it is half empty
        self._waiters = []
        self._number = fanout.add(self)

    @property
    def dropped(self) -> int:
        """How many results of its filter it had no room for; always 0 with `policy="block"`.

        Besides, runs of recurring tasks of which nothing was sent, because this process has read nothing for so long
        that 100,000 records waited for it.
        """
        return self._dropped + self._fanout.left_out - self._left_out

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._came - self._taken} of {self._size}"
        return f"<{type(self).__name__} {state}, {self.dropped} dropped>"

    # ------------------------------------------------------------ in

    def offer(self, number: int, result: TaskResult, queue: str, status: str) -> None:
        """The n-th result of the worker has come; it may be offered again."""
        if self._queues is not None and queue not in self._queues:
            return
        if self._statuses is not None and status not in self._statuses:
            return
        if number > self._seen and not self._closed:  # from here to the end of each branch there is one call, the last
            self._seen = number
            if self._came - self._taken < self._size or self._blocks:
                self._came += 1
                if self._blocks and self._came - self._taken >= self._size:
                    self.full = True
                self._append(result)
            elif self._drops_oldest:
                oldest = self._buffer[0]  # kept until the end of this: its own end may run code of the user's
                del self._buffer[0]
                self._taken += 1
                self._dropped += 1
                self._fanout.dropped += 1
                self._came += 1
                self._append(result)
                del oldest
            else:
                self._dropped += 1
                self._fanout.dropped += 1
        if self.full:
            self._fanout.tell()
        if self._waiters:
            wake_all(self._waiters)

    # ------------------------------------------------------------ out

    def _take(self) -> TaskResult | None:
        """What has come first, if there is any."""
        result = None
        buffer = self._buffer
        if buffer and not self._closed:  # no call from here on
            result = buffer[0]
            self._taken += 1
            del buffer[0]
            if self._came - self._taken <= self._size >> 1:
                self.full = False
        if self._blocks:
            self._fanout.tell_for_sure()
        return result

    def _take_or_end(self) -> tuple[TaskResult | None, bool]:
        over = self._closed or self._client.is_over()  # first: nothing comes afterwards
        result = self._take()
        return result, over and result is None

    def close(self) -> None:
        """Unsubscribe: what was not taken is let go, and whoever iterates comes to the end."""
        self._closed = True
        self.full = False
        self._buffer.clear()
        self._fanout.remove(self._number)
        if not self._client.is_fork():
            self._tell_of_end()

    def _tell_of_end(self) -> None:
        """It is closed: let the pool go on, and wake whoever waits."""
        raise NotImplementedError


class Subscription(Buffered):
    """A stream of `TaskResult`; made by `ProcessWorker.subscribe_results`.

    It is an iterator, and an asynchronous one, that ends when the worker has stopped and everything was taken, or when
    it is closed. Of several threads that iterate over it each gets a part. One that is dropped unsubscribes itself.
    """

    @property
    def ready(self) -> bool:
        """Is there something to take, or will nothing more come?"""
        return bool(self._buffer) or self._closed or self._client.is_over()

    def get(self, timeout: float | None = None) -> TaskResult | None:
        """The next result.

        Args:
            timeout: Seconds to wait, 0 for what is there; None waits as long as it takes.

        Returns:
            None if no more will come: the worker has stopped and everything was taken, or this is closed.

        Raises:
            TimeoutError: None has come in time.
            InvalidArgument: `timeout` is no number.
            ConfigurationError: It is out of its bounds.
            WorkerStopped: This process is a fork of the one that subscribed.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w, w.subscribe_results() as results:
            ...     future = w.submit(pow, 2, 10)
            ...     results.get(timeout=60.0).result()
            1024
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        client = self._client
        client.refuse_if_forked()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            result, ended = self._take_or_end()
            if result is not None or ended:
                return result
            if not client.wait_for(self, None if deadline is None else max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"no result has come within {timeout} s")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TaskResult:
        result = self.get()
        if result is None:
            raise StopIteration
        return result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskResult:
        self._client.refuse_if_forked()
        self._fanout.watch(self._number)
        while True:
            result, ended = self._take_or_end()
            if result is not None:
                return result
            if ended:
                raise StopAsyncIteration
            await self._wait_in_loop()

    async def _wait_in_loop(self) -> None:
        background = self._client.background
        waiter = _LoopWaiter(background)
        try:
            self.add_waiter(waiter)
            background.at_end.append(waiter)
            background.need()
            if not self.ready:
                await waiter.told
        finally:
            self.remove_waiter(waiter)
            try:
                background.at_end.remove(waiter)
            except ValueError:
                pass  # the worker is over

    def _tell_of_end(self) -> None:
        self._fanout.tell_for_sure()
        wake_all(self._waiters)
        self._client.wake_everybody()  # the one that reads the ring may wait for this
        self._client.background.look()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LoopWaiter:
    """An event loop that waits for a subscription; the background thread tells it, as it does the audience of a future.

    Args:
        background: That thread.
    """

    def __init__(self, background: "Background") -> None:
        import asyncio

        self._background = background
        self._loop = asyncio.get_running_loop()
        self._announced = False
        self.told: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> None:
        """Have the loop told."""
        if not self._announced:
            self._announced = True
            self._background.announce(self)

    def tell_waiters(self) -> bool:
        """Tell it."""
        try:
            self._loop.call_soon_threadsafe(self._tell)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more
        return True

    def callbacks(self) -> tuple[()]:
        """There are none: see `mpworker.background`."""
        return ()

    def _tell(self) -> None:
        if not self.told.done():
            self.told.set_result(None)
