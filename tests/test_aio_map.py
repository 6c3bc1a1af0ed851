"""`map` of the pool in an event loop."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import cast

import pooljobs
import pytest
from loops import begun, client_of, run, until
from pooljobs import Gate

from mpworker import AsyncProcessWorker
from mpworker.errors import ConfigurationError, InvalidArgument, SerializationError


class Pulled:
    """An iterator that counts how far it was read."""

    def __init__(self, stop: int) -> None:
        self.count = 0
        self._stop = stop

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.count == self._stop:
            raise StopIteration
        self.count += 1
        return self.count - 1


class PulledAsync(Pulled):
    def __aiter__(self) -> AsyncIterator[int]:
        return cast("AsyncIterator[int]", self)

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    __iter__ = None  # type: ignore[assignment]


SOURCES = pytest.mark.parametrize("source", [Pulled, PulledAsync])


@SOURCES
@pytest.mark.parametrize("chunksize", [None, 1, 7], ids=str)
def test_map_is_in_order(source: type[Pulled], chunksize: int | None) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            results = [each async for each in w.map(pooljobs.square, source(2000), chunksize=chunksize)]
            assert results == [n * n for n in range(2000)]
            assert [each async for each in w.map(pooljobs.square, source(0))] == []

    run(main)


@SOURCES
def test_map_is_lazy(source: type[Pulled]) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            endless = source(-1)
            results = w.map(pooljobs.square, endless, buffersize=5)
            assert endless.count == 0
            for number in range(20):
                assert await anext(results) == number * number
                for _ in range(20):
                    await asyncio.sleep(0)
                assert endless.count <= number + 7
            await results.aclose()  # type: ignore[attr-defined]
            count = endless.count
            assert await w.submit(abs, -1) == 1
            assert endless.count == count

    run(main)


def test_map_of_several_iterables() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            assert [each async for each in w.map(pooljobs.add, [1, 2, 3], [10, 20])] == [11, 22]
            assert [each async for each in w.map(pooljobs.add, PulledAsync(9), [10, 20])] == [10, 21]
            assert [each async for each in w.map(pooljobs.add, [10, 20, 30], PulledAsync(2))] == [10, 21]

    run(main)


@SOURCES
def test_an_item_that_fails(source: type[Pulled]) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            results = w.map(pooljobs.fail_if_odd, source(4))
            assert await anext(results) == 0
            with pytest.raises(ValueError, match=r"^1$"):
                await anext(results)
            assert [each async for each in results] == []
            mixed = [each async for each in w.map(pooljobs.fail_if_odd, source(4), return_exceptions=True)]
            assert [str(each) for each in mixed] == ["0", "1", "2", "3"]
            unsendable = [1, pooljobs.Unpicklable(), 3]
            mixed = [each async for each in w.map(str, unsendable, return_exceptions=True)]
            assert mixed[::2] == ["1", "3"]
            assert isinstance(mixed[1], SerializationError)

    run(main)


def test_an_input_that_fails_ends_the_map_after_what_came_before() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise LookupError("no more")

    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            results = w.map(abs, broken(), chunksize=5)
            assert [await anext(results), await anext(results)] == [1, 2]
            with pytest.raises(LookupError, match="no more"):
                await anext(results)

    run(main)


def test_a_slow_asynchronous_input_holds_up_no_result() -> None:
    async def main() -> None:
        items: asyncio.Queue[int] = asyncio.Queue()

        async def slow() -> AsyncIterator[int]:
            while True:
                yield await items.get()

        async with AsyncProcessWorker(n=1) as w:
            results = w.map(abs, slow(), chunksize=100)
            for number in range(3):
                items.put_nowait(-number)
                assert await anext(results) == number  # though the chunk is not full, and no more comes
            await results.aclose()  # type: ignore[attr-defined]

    run(main)


def test_items_of_a_chunk_that_cannot_be_unpickled_together_come_once_each() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            items = [1, pooljobs.Unloadable(), 3, 4]
            mixed = [each async for each in w.map(str, items, chunksize=4, return_exceptions=True)]
            assert [mixed[0], *mixed[2:]] == ["1", "3", "4"]
            assert isinstance(mixed[1], SerializationError)

    run(main)


@SOURCES
def test_a_map_has_a_time_limit(source: type[Pulled], gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            with pytest.raises(TimeoutError, match=r"was not done within 0\.05 s"):
                async for _ in w.map(pooljobs.hold, [gate.folder] * 3, source(3), timeout=0.05):
                    pass
            assert await w.submit(abs, -1) == 1, "and what ran was interrupted"

    run(main)


def test_a_map_that_is_closed_interrupts_what_runs(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            results = w.map(lambda item: item or pooljobs.hold(gate_folder, item), [1, 0, 2], chunksize=1)
            assert await anext(results) == 1
            await begun(gate)
            await results.aclose()  # type: ignore[attr-defined]
            assert await w.submit(abs, -1) == 1, "the only child is free"

    gate_folder = gate.folder
    run(main)


def test_cancelling_the_task_that_awaits_a_map_interrupts_what_runs(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:

            async def waits() -> None:
                async for _ in w.map(pooljobs.hold, [gate.folder] * 4, chunksize=2):
                    pytest.fail("nobody opens the gate")

            for _ in range(20):
                task = asyncio.create_task(waits())
                await begun(gate)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await w.submit(abs, -1) == 1, "the only child is free"
                assert not gate.begun(), "no other item has begun"

    run(main)


def test_other_tasks_run_while_results_are_taken_that_are_there() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            results = w.map(pooljobs.square, range(30), chunksize=1)
            assert await anext(results) == 0
            await until(lambda: not client_of(w).pending)
            ticking = asyncio.create_task(tick())
            assert [each async for each in results] == [n * n for n in range(1, 30)]
            assert ticks >= 29
            ticking.cancel()

    run(main)


def test_several_maps_and_calls_at_once() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:

            async def total(stop: int) -> int:
                return sum([each async for each in w.map(abs, range(stop))])

            totals = await asyncio.gather(*(total(stop) for stop in range(0, 3000, 300)), w.submit(abs, -1))
            assert totals == [*(sum(range(stop)) for stop in range(0, 3000, 300)), 1]

    run(main)


def test_what_a_map_is_given_is_checked_at_the_call() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            for args, says in (((3, []), "needs a callable"), ((abs,), "at least one"), ((abs, 3), "needs iterables")):
                with pytest.raises(InvalidArgument, match=says):
                    w.map(*args)  # type: ignore[call-overload]
            with pytest.raises(ConfigurationError, match="chunksize must be at least 1"):
                w.map(abs, [], chunksize=0)
            with pytest.raises(InvalidArgument, match="is asynchronous"):
                await anext(w.map(main, [1]))
            with pytest.raises(SerializationError, match="cannot be pickled"):
                await anext(w.map(pooljobs.Unpicklable().__eq__, [1]))

    run(main)
