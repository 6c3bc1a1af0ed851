"""`map` in an event loop: the same chunks and windows, and nothing that waits for them blocks.

Plain iterables are read where the results are taken, as in `mpworker.mapping`; asynchronous ones by a task of the loop,
the *feeder*, since results must come while the next item does not.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from mpworker.aiofuture import Wakes
from mpworker.chunks import Chunk
from mpworker.mapping import SLOW_INPUT, Mapping

if TYPE_CHECKING:
    from mpworker.loopclient import LoopClient


def _is_async(iterable: Any) -> bool:
    return hasattr(type(iterable), "__aiter__")


class AsyncMapping(Mapping):
    """One `map` under way in an event loop; the arguments are those of `Mapping`."""

    client: "LoopClient"

    def __init__(self, client: "LoopClient", function: Any, iterables: Sequence[Any], *rest: Any) -> None:
        self._feed_from: AsyncIterator[Any] | None = None
        fed = any(map(_is_async, iterables))
        super().__init__(client, function, [() for _ in iterables] if fed else iterables, *rest)
        if fed:
            self._remaining = -1
            self._feed_from = _zipped(iterables) if self._spread else aiter(iterables[0])
        self._loop = client.check()
        self._held: list[Any] = []  # items that are still to be sent, together
        self._send_held_at: asyncio.TimerHandle | None = None
        self._moves: list[Wakes] = []  # those that wait for the feeder, or the feeder for the others

    async def results_as_they_come(self) -> AsyncGenerator[Any]:
        """The results in the order of the input."""
        feeder: asyncio.Task[None] | None = None
        try:
            self._begin()
            if self._feed_from is not None:
                feeder = self._loop.create_task(self._feed(self._feed_from))
            async for result in self._each_async():
                yield result
        finally:
            self._abandon()
            if feeder is not None:
                feeder.cancel()
                await asyncio.wait([feeder])

    async def _each_async(self) -> AsyncIterator[Any]:
        while True:
            chunk = self._turn()
            if chunk is not None:
                await self._until_ready(chunk)
                for result in self._take(chunk):
                    yield result
            elif self._exhausted:
                break
            else:
                await self._until_moved(self._deadline)
        if self._failure is not None:
            raise self._failure

    async def _until_ready(self, chunk: Chunk) -> None:
        if chunk.ready:
            await asyncio.sleep(0)  # results that are always there must not keep the loop from others
            return
        waiter = Wakes(self._loop)
        chunk.add_waiter(waiter)
        try:
            if not chunk.ready:
                await self._until_woken(waiter, self._deadline)
        finally:
            chunk.remove_waiter(waiter)

    async def _until_woken(self, waiter: Wakes, deadline: float | None) -> None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        await asyncio.wait([waiter.future], timeout=left)
        if not waiter.ready:
            raise TimeoutError(f"map({self._name}) was not done within {self._timeout} s")

    # ------------------------------------------------------------ the feeder

    def fill(self) -> None:
        """Send chunks until the window is full; with a feeder, have it do so."""
        if self._feed_from is None:
            super().fill()
        else:
            self._move()

    async def _feed(self, source: AsyncIterator[Any]) -> None:
        try:
            async for item in source:
                self._held.append(item)
                if len(self._held) >= self._together():
                    self._send_held()
                elif self._send_held_at is None:
                    self._send_held_at = self._loop.call_later(SLOW_INPUT, self._send_held)
                while not self._exhausted and not self._has_room():
                    await self._until_moved(None)
                if self._exhausted:
                    return  # what was read cannot be sent
            self._send_held()
        except Exception as error:  # noqa: BLE001  # the input's own
            self._send_held()
            self._failure = self._failure or error
        finally:
            self._exhausted = True
            if self._send_held_at is not None:
                self._send_held_at.cancel()
            self._move()

    def _together(self) -> int:
        """How many items go in the next chunk."""
        most = self._size if self._items_max is None else min(self._size, self._items_max - self._items)
        return max(1, most)

    def _has_room(self) -> bool:
        full = self._items_max is not None and self._items + len(self._held) >= self._items_max
        return len(self._chunks) < self.window and not full

    def _send_held(self) -> None:
        if self._send_held_at is not None:
            self._send_held_at.cancel()
            self._send_held_at = None
        items, self._held = self._held, []
        if items and not self._exhausted:
            try:
                self._send(items, self._chunks)
            except Exception as error:  # noqa: BLE001  # the worker was stopped
                self._failure = error
                self._exhausted = True
            self._move()

    def _move(self) -> None:
        for waiter in self._moves:
            waiter.wake()

    async def _until_moved(self, deadline: float | None) -> None:
        waiter = Wakes(self._loop)
        self._moves.append(waiter)
        try:
            await self._until_woken(waiter, deadline)
        finally:
            self._moves.remove(waiter)


async def _zipped(iterables: Sequence[Any]) -> AsyncIterator[tuple[Any, ...]]:
    """One item of each, until the first is at its end."""
    sources = [aiter(each) if _is_async(each) else iter(each) for each in iterables]
    end = object()
    while True:
        items = []
        for source in sources:
            item = await anext(source, end) if isinstance(source, AsyncIterator) else next(source, end)
            if item is end:
                return
            items.append(item)
        yield tuple(items)
