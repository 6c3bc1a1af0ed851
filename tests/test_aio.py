"""`AsyncProcessWorker`: the pool in an event loop that it never blocks, and with no thread."""

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pooljobs
import programs
import pytest
from pooljobs import Gate

import mpworker
from mpworker import AsyncProcessWorker, AsyncTaskFuture
from mpworker.errors import (
    ConfigurationError,
    InvalidArgument,
    RemoteTraceback,
    SerializationError,
    StartFailed,
    SupervisorLost,
    TaskCancelled,
    TaskNotFound,
    TaskTimeout,
    WorkerCrashed,
    WorkerStopped,
    WrongEventLoop,
)
from mpworker.ipc._native import RingCorrupt
from mpworker.loopclient import LoopClient

GUARD = 60.0  # seconds; only a bound for what would hang


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it, with no thread beside this one at its end, and nothing said to the loop's exception handler."""
    said: list[dict[str, Any]] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with asyncio.timeout(GUARD):
            await main()
        gc.collect()  # what nobody asked for is told of when it is freed

    threads = threading.active_count()
    asyncio.run(guarded())
    assert threading.active_count() == threads
    assert not said


async def until(condition: Callable[[], object]) -> None:
    """Let the loop go round until something is so."""
    while not condition():
        await asyncio.sleep(0)


async def begun(gate: Gate) -> None:
    """Wait until one more task is in `hold`."""
    await until(gate.begun)
    gate.wait_begun()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def client_of(w: AsyncProcessWorker) -> LoopClient:
    return w._client


# ------------------------------------------------------------ submit


def test_a_call_is_awaited() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            future = w.submit(pow, 2, 10)
            assert isinstance(future, AsyncTaskFuture)
            assert await future == 1024
            assert await w.submit(lambda *args, **kwargs: (args, kwargs), 1, fn=2) == ((1,), {"fn": 2})
            with pytest.raises(ValueError, match=r"^wrong$") as caught:
                await w.submit(pooljobs.fail, "wrong")
            assert isinstance(caught.value.__cause__, RemoteTraceback)
            seen = w.submit(lambda: mpworker.current().task_id)
            assert await seen == seen.task_id
            assert seen.task_id in repr(seen)
            assert "finished" in repr(seen)
            assert "unfinished" in repr(w.submit(abs, 1))

    run(main)


def test_what_asyncio_offers_for_futures_works() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            assert await asyncio.gather(*(w.submit(pooljobs.square, n) for n in range(200))) == [
                n * n for n in range(200)
            ]
            done, pending = await asyncio.wait([w.submit(pooljobs.square, n) for n in range(5)])
            assert {future.result() for future in done} == {0, 1, 4, 9, 16}
            assert not pending
            found = [await each for each in asyncio.as_completed([w.submit(abs, n) for n in range(5)])]
            assert sorted(found) == [0, 1, 2, 3, 4]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(awaits(w, number)) for number in range(20)]
            assert [task.result() for task in tasks] == list(range(20))

    async def awaits(w: AsyncProcessWorker, number: int) -> int:
        return await w.submit(abs, -number)

    run(main)


def test_what_is_wrong_with_a_call_is_told_at_once() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_payload_bytes=1 << 14) as w:
            with pytest.raises(SerializationError, match="cannot be pickled"):
                w.submit(abs, pooljobs.Unpicklable())
            with pytest.raises(SerializationError, match="exceeds max_payload_bytes=16384"):
                w.submit(len, bytes(1 << 14))
            with pytest.raises(InvalidArgument, match=r"submit\(f, x\)"):
                w.submit(3)  # type: ignore[call-overload]
            with pytest.raises(InvalidArgument, match="is asynchronous"):
                w.submit(main)
            assert await w.submit(abs, -1) == 1

    run(main)


def test_results_that_cannot_be_had() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
                await w.submit(next, iter(()))
            assert isinstance(caught.value.__cause__, StopIteration)
            with pytest.raises(SerializationError, match="its result cannot be unpickled here"):
                await w.submit(pooljobs.Unloadable)
            with pytest.raises(SerializationError, match="its result cannot be unpickled here: CancelledError"):
                await w.submit(_LoadsAsCancelled, os.getpid())
            with pytest.raises(WorkerCrashed):
                await w.submit(os._exit, 3)
            assert await w.submit(abs, -1) == 1

    run(main)


class _LoadsAsCancelled:
    """Raises what is no Exception where it is unpickled in the process that asked for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return _load, (self.pid,)


def _load(pid: int) -> int:
    if os.getpid() == pid:
        raise asyncio.CancelledError
    return pid


def test_payloads_larger_than_the_ring() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, client_ring_bytes=1 << 12, child_ring_bytes=1 << 12) as w:
            data = bytes(range(256)) * 400
            results = await asyncio.gather(*(w.submit(bytes.__add__, data, bytes([n])) for n in range(20)))
            assert results == [data + bytes([n]) for n in range(20)]

    run(main)


def test_options_of_tasks() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, retries=2) as w:
            assert await w.submit(_third_attempt) == 3
            with pytest.raises(ValueError, match=r"^1$"):
                await w.options(retries=0).submit(_third_attempt)
            with pytest.raises(TaskTimeout):
                await w.options(retries=0, timeout=0.05).submit(signal.pause)
            with pytest.raises(InvalidArgument, match="unknown option"):
                w.options(retry=3)  # type: ignore[call-arg]

    run(main)


def _third_attempt() -> int:
    attempt = mpworker.current().attempt
    return attempt if attempt == 3 else cast(int, pooljobs.fail(attempt))


def test_queues_and_their_limits() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, queues={"mail": 3}, rate=1e6) as w:
            await w.pause("mail")
            view = w.options(queue="mail", priority=3)
            waiting = view.submit(abs, -1)
            assert await w.submit(abs, -2) == 2
            states = await w.queues()
            assert (states["mail"].weight, states["mail"].paused, states["mail"].queued) == (3, True, 1)
            await w.set_queue("mail", weight=5)
            await w.set_rate(None)
            await w.resume("mail")
            assert await waiting == 1
            state = (await w.queues())["mail"]
            assert (state.weight, state.paused, state.queued) == (5, False, 0)
            with pytest.raises(InvalidArgument, match="a queue's name must be a str"):
                await w.pause(3)  # type: ignore[arg-type]
            with pytest.raises(InvalidArgument, match="wait"):
                await w.set_queue("mail", wait=3)
            with pytest.raises(ConfigurationError, match="rate must be at least"):
                await w.set_rate(-1.0)
        assert await w.queues() == {}
        with pytest.raises(WorkerStopped):
            await w.set_rate(1.0)

    run(main)


# ------------------------------------------------------------ wake-ups


@pytest.mark.parametrize("options", [{}, {"client_ring_bytes": 1 << 12}], ids=["roomy", "tight"])
def test_no_wake_up_is_lost(options: dict[str, int]) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2, **options) as w:  # type: ignore[arg-type]
            for number in range(400):
                burst = [w.submit(abs, -each) for each in range(number % 60)]
                sum(range(number % 7 * 2000))  # a slow reader: the answers come while the loop is busy
                if number % 3:
                    await asyncio.sleep(0)
                assert await asyncio.gather(*burst) == list(range(number % 60))
                assert await w.submit(abs, -number) == number

    run(main)


class Bell:
    """The bell of a client, with something that happens just before it is armed."""

    def __init__(self, bell: Any, before: Callable[[], None]) -> None:
        self._bell = bell
        self._before = before

    def arm(self) -> None:
        self._before()
        self._bell.arm()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bell, name)


def test_what_comes_just_before_the_bell_is_armed_is_seen() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            assert await w.submit(abs, -1) == 1
            client = client_of(w)
            supervisor, inbound = client.supervisor.pid, client.supervisor.channel.inbound

            def answered() -> None:
                if client.pending:
                    os.kill(supervisor, signal.SIGCONT)
                    while not inbound.readable():
                        pass

            client._bell = cast(Any, Bell(client._bell, answered))
            for number in range(20):
                with stopped(supervisor):
                    future = w.submit(abs, -number)
                    client.supervisor.channel.bell.wake()  # a turn that finds nothing yet
                    assert await future == number

    run(main)


def test_room_that_comes_just_before_the_bell_is_armed_is_seen() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, client_ring_bytes=1 << 12) as w:
            assert await w.submit(abs, -1) == 1
            client = client_of(w)
            fits = client.supervisor.channel.outbound.fits

            def room() -> None:
                while client._outbox and not fits(len(client._outbox[0][5])):
                    pass

            client._bell = cast(Any, Bell(client._bell, room))
            # It goes in many parts, and none of them but the last is answered.
            assert await w.submit(len, bytes(100_000)) == 100_000

    run(main)


def test_what_waits_for_room_keeps_its_order() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, client_ring_bytes=1 << 12) as w:
            assert await w.submit(abs, -1) == 1
            client = client_of(w)
            with stopped(client.supervisor.pid):
                futures = [w.submit(abs, 1) for _ in range(100)]
                futures.append(w.submit(pooljobs.square, 3))  # the function goes first
            fits = client.supervisor.channel.outbound.fits
            while not fits(1000):
                pass
            futures.append(w.submit(pooljobs.square, 4))
            assert await asyncio.gather(*futures) == [*[1] * 100, 9, 16]

    run(main)


def test_the_loop_sleeps_while_nothing_comes(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            await begun(gate)
            turns = 0
            take_turn = LoopClient._take_turn

            def counted(client: LoopClient, bell: Any) -> bool:
                nonlocal turns
                turns += 1
                return take_turn(client, bell)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(LoopClient, "_take_turn", counted)
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert turns < 10
            gate.release()
            assert await held == "held"

    run(main)


def test_a_turn_that_fails_is_taken_again() -> None:
    said: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncProcessWorker(n=1) as w:
            assert await w.submit(abs, -1) == 1
            loop.set_exception_handler(lambda _, context: said.append(context["exception"]))
            read_batch = LoopClient._read_batch

            def fails_once(client: LoopClient) -> None:
                if not said:
                    raise MemoryError
                read_batch(client)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(LoopClient, "_read_batch", fails_once)
                assert await w.submit(abs, -2) == 2

    run(main)
    assert [type(each) for each in said] == [MemoryError]


def test_the_loop_does_not_unpickle_more_than_a_batch_at_once() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            client = client_of(w)
            futures = [w.submit(abs, number) for number in range(2000)]
            while len(client.due) < 2000:
                client.poll()  # as a large number of submissions does
            done = []
            while sum(done) < 2000:
                await asyncio.sleep(0)
                done.append(sum(future.done() for future in futures) - sum(done))
            assert max(done) <= 512

    run(main)


# ------------------------------------------------------------ bounds


def test_what_exceeds_max_pending_waits_and_the_loop_does_not(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=2) as w:
            futures = [w.submit(pooljobs.hold, gate.folder, number) for number in range(10)]
            client = client_of(w)
            assert len(client._line) == 8
            await begun(gate)
            assert not any(future.done() for future in futures)
            for number, future in enumerate(futures):
                gate.release()
                assert await future == number
                assert len(client.pending) - len(client._line) <= 2
            assert await w.submit(abs, -1) == 1
            assert not client._line

    run(main)


def test_a_task_that_waits_for_room_can_be_cancelled(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            notes = [w.submit(pooljobs.note, str(tmp_path / "notes"), number) for number in range(4)]
            assert notes[0].cancel()
            assert await w.cancel_task(notes[2].task_id)
            gate.release()
            await held
            assert await notes[1] == 1
            with pytest.raises(TaskCancelled):
                await notes[2]
            assert await notes[3] == 3
            assert not await w.cancel_task(notes[2].task_id)
            assert (tmp_path / "notes").read_text() == "1\n3\n"

    run(main)


def test_a_function_that_is_forgotten_is_known_to_the_tasks_that_wait(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpworker.functions._CACHED_MAX", 2)

    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            futures = [w.submit(eval(f"lambda: {number}")) for number in range(20)]
            gate.release()
            assert await asyncio.gather(held, *futures) == [None, *range(20)]

    run(main)


def test_a_ring_that_nobody_reads_does_not_stop_the_loop() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, client_ring_bytes=1 << 12) as w:
            assert await w.submit(abs, -1) == 1
            supervisor = client_of(w).supervisor.pid
            with stopped(supervisor):
                futures = [w.submit(len, bytes(1000)) for _ in range(100)]
                asked = asyncio.create_task(w.processes())
                for _ in range(100):
                    await asyncio.sleep(0)
                assert not any(future.done() for future in futures)
            assert await asyncio.gather(*futures) == [1000] * 100
            assert (await asked)["supervisor"] == supervisor

    run(main)


# ------------------------------------------------------------ cancel


def test_cancelling_the_awaiting_task_interrupts_the_child(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:

            async def waits() -> None:
                await w.submit(pooljobs.hold, gate.folder)

            task = asyncio.create_task(waits())
            await begun(gate)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await w.submit(abs, -1) == 1, "the only child is free"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(w.submit(pooljobs.hold, gate.folder), 0.01)
            assert await w.submit(abs, -1) == 1

    run(main)


def test_a_cancelled_task_that_has_not_begun_never_does(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            await begun(gate)
            waiting = w.submit(pooljobs.note, str(tmp_path / "note"), 1)
            assert waiting.cancel()
            assert waiting.cancelled()
            assert "cancelled" in repr(waiting)
            assert not waiting.cancel()
            await w.processes()  # the cancel was sent before
            gate.release()
            await held
        assert not (tmp_path / "note").exists()

    run(main)


def test_a_shielded_call_goes_on(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(held), 0.01)
            gate.release()
            assert await held == "held"

    run(main)


def test_cancel_by_id(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            await begun(gate)
            assert await w.cancel_task(held.task_id)
            with pytest.raises(TaskCancelled):
                await held
            assert not await w.cancel_task(held.task_id)
            with pytest.raises(TaskNotFound):
                await w.cancel_task("unheard-of")
            with pytest.raises(InvalidArgument):
                await w.cancel_task(3)  # type: ignore[arg-type]

    run(main)


# ------------------------------------------------------------ map


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


# ------------------------------------------------------------ the end


def test_leaving_the_block_drains_and_the_loop_goes_on(gate: Gate) -> None:
    async def main() -> None:
        async def opens() -> None:
            await begun(gate)
            with pytest.raises(WorkerStopped):
                w.submit(abs, 1)
            gate.release(3)

        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            futures = [w.submit(pooljobs.hold, gate.folder, number) for number in range(3)]
            opening = asyncio.create_task(opens())
        assert [future.result() for future in futures] == [0, 1, 2]
        await opening
        assert await w.processes() == {}
        assert await w.stop_graceful()

    run(main)


@pytest.mark.parametrize("kind", [KeyError, asyncio.CancelledError])
def test_leaving_the_block_by_an_exception_stops_at_once(gate: Gate, kind: type[BaseException]) -> None:
    async def main() -> None:
        futures: list[AsyncTaskFuture[Any]] = []

        async def block() -> None:
            async with AsyncProcessWorker(n=1, max_pending=1, grace=1000) as w:
                futures.extend(w.submit(pooljobs.hold, gate.folder) for _ in range(3))
                await begun(gate)
                raise kind

        with pytest.raises(kind):
            await block()
        for future in futures:
            assert isinstance(future.exception(), TaskCancelled)

    run(main)


def test_a_drain_that_is_cancelled_stops_at_once(gate: Gate) -> None:
    async def main() -> None:
        async def block() -> None:
            async with AsyncProcessWorker(n=1, grace=1000) as w:
                w.submit(pooljobs.hold, gate.folder)

        task = asyncio.create_task(block())
        await begun(gate)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_a_stop_with_a_time_limit(gate: Gate) -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        held = w.submit(pooljobs.hold, gate.folder)
        await begun(gate)
        with pytest.raises(ConfigurationError, match="timeout"):
            await w.stop_graceful(0)
        assert not await w.stop_graceful(0.01)
        assert isinstance(held.exception(), TaskCancelled)
        await w.stop_now()
        await w.shutdown()

    run(main)


def test_after_any_stop_every_future_is_done() -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        pending = [w.submit(signal.pause) for _ in range(3000)]
        ending = asyncio.create_task(w.stop_now())
        await until(client_of(w).is_over)
        assert not await w.stop_graceful()
        assert all(each.done() for each in pending)
        await ending

    run(main)


def test_shutdown(gate: Gate) -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1, max_pending=2)
        held = w.submit(pooljobs.hold, gate.folder, "held")
        await begun(gate)
        others = [w.submit(abs, number) for number in range(5)]
        ends = asyncio.create_task(w.shutdown(cancel_futures=True))
        await asyncio.wait(others)
        assert all(isinstance(other.exception(), TaskCancelled) for other in others)
        assert not held.done()
        gate.release()
        await ends
        assert await held == "held"

        w = AsyncProcessWorker(n=1)
        held = w.submit(pooljobs.hold, gate.folder, "held")
        await w.shutdown(wait=False)
        with pytest.raises(WorkerStopped):
            w.submit(abs, 1)
        gate.release()
        assert await held == "held"
        await until(client_of(w).is_over)

    run(main)


def test_a_drain_sends_the_items_of_a_chunk_that_comes_back() -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        items = [1, 2, pooljobs.Unloadable(), 3]
        results = w.map(str, items, chunksize=2, return_exceptions=True)
        assert await anext(results) == "1"
        assert await w.stop_graceful(), "though nobody takes them"
        assert [str(each)[:4] async for each in results] == ["2", "item", "3"]

    run(main)


def test_a_worker_that_is_dropped_finishes_what_was_accepted(gate: Gate) -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        held = w.submit(pooljobs.hold, gate.folder, "held")
        client = client_of(w)
        del w
        gc.collect()
        gate.release()
        assert await held == "held"
        await until(client.is_over)

        w = AsyncProcessWorker(n=1)
        await w.submit(abs, 1)
        client = client_of(w)
        view = [w]
        del w
        thread = threading.Thread(target=view.clear)
        thread.start()
        thread.join()
        gc.collect()
        await until(client.is_over)

    run(main)


def test_a_worker_that_is_made_elsewhere_takes_no_result_away(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            await begun(gate)
            ending = asyncio.create_task(w.stop_graceful())
            await asyncio.sleep(0)
            client = client_of(w)
            gate.release()
            while not client._fill():
                pass
            with mpworker.ProcessWorker(n=1):  # looks for workers that have ended, to reap them
                assert client._fill(), "the loop reads it"
            assert await held == "held"
            assert await ending

    run(main)


# ------------------------------------------------------------ what breaks


def test_a_supervisor_that_is_lost() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            assert await w.submit(abs, -1) == 1
            pending = w.submit(signal.pause)
            asked = asyncio.create_task(w.processes())
            results = w.map(abs, range(10**9))
            assert await anext(results) == 0
            os.kill(client_of(w).supervisor.pid, signal.SIGKILL)
            with pytest.raises(SupervisorLost):
                await pending
            with pytest.raises(SupervisorLost):
                w.submit(abs, -1)
            with pytest.raises(SupervisorLost):
                async for _ in results:
                    pass
            await asked
            assert not await w.stop_graceful()

    run(main)


def test_children_that_cannot_start() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, initializer=pooljobs.fail, initargs=["no database"]) as w:
            with pytest.raises(StartFailed, match="the initializer raised ValueError: no database"):
                await w.submit(abs, -1)

    run(main)


def test_options_are_those_of_the_worker() -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="n must be at least 1"):
            AsyncProcessWorker(n=0)
        with pytest.raises(InvalidArgument, match="did you mean 'n'"):
            AsyncProcessWorker(max_workers=3)  # type: ignore[call-arg]

    run(main)


def test_a_memory_that_makes_no_sense_ends_the_supervisor() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            assert await w.submit(abs, -1) == 1

            def corrupt(*_: object) -> int:
                raise RingCorrupt("nonsense")

            client_of(w)._pop = corrupt
            with pytest.raises(SupervisorLost):
                await w.submit(abs, -1)

    run(main)


# ------------------------------------------------------------ whose it is


def test_another_event_loop_gets_one_clear_error() -> None:
    workers = []

    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        workers.append(w)
        assert await w.submit(abs, -1) == 1
        await refused_elsewhere(w, asyncio.to_thread)
        await w.stop_now()

    async def refused_elsewhere(w: AsyncProcessWorker, elsewhere: Any) -> None:
        async def verbs() -> None:
            for call in (lambda: w.submit(abs, 1), lambda: w.map(abs, [1]), lambda: w.options(retries=1)):
                with pytest.raises(WrongEventLoop, match="another event loop"):
                    call()
            plain = (w.stop_graceful, w.stop_now, w.processes, w.shutdown, w.queues, w.pause, w.resume)
            given = (lambda: w.cancel_task("x"), lambda: w.set_rate(1), lambda: w.set_queue("x"))
            for verb in (*plain, *given):
                with pytest.raises(WrongEventLoop, match="another event loop"):
                    await verb()
            with pytest.raises(WrongEventLoop, match="another event loop"):
                async with w:
                    pass

        await elsewhere(asyncio.run, verbs())

    asyncio.run(main())
    with pytest.raises(WrongEventLoop, match="no event loop runs in this thread"):
        workers[0].submit(abs, 1)


def test_in_a_fork_it_is_stopped() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            assert await w.submit(abs, -1) == 1
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    try:
                        w.submit(abs, 1)
                    except WorkerStopped as error:
                        code = 0 if "before fork" in str(error) else 2
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert await w.submit(abs, -2) == 2

    if os.sys.version_info >= (3, 12):  # type: ignore[attr-defined]
        import warnings

        warnings.filterwarnings("ignore", r".*use of fork\(\) may lead to deadlocks", DeprecationWarning)
    run(main)


_CTRL_C = """
import asyncio, os, signal, sys
from mpworker import AsyncProcessWorker

async def main():
    loop = asyncio.get_running_loop()
    async with AsyncProcessWorker(n=1, grace=1000) as w:
        assert await w.submit(abs, -1) == 1
        loop.call_soon(os.kill, os.getpid(), signal.SIGINT)
        await w.submit(signal.pause)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    import mpworker.client
    assert not mpworker.client._live
    print("interrupted")
"""

_LOOP_ENDS = """
import asyncio
from mpworker import AsyncProcessWorker

def note(path):
    open(path, "w").close()

async def main(path):
    global w, future
    w = AsyncProcessWorker(n=1)
    assert await w.submit(abs, -1) == 1
    future = w.submit(note, path)

asyncio.run(main({!r}))
"""


def test_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    assert programs.run_source(_CTRL_C, tmp_path).stdout.strip() == "interrupted"


def test_a_program_whose_loop_ends_first_drains_at_its_exit(tmp_path: Path) -> None:
    programs.run_source(_LOOP_ENDS.format(str(tmp_path / "note")), tmp_path)
    assert (tmp_path / "note").exists()


def test_it_starts_no_thread(gate: Gate) -> None:
    async def main() -> None:
        before = threading.active_count()
        async with AsyncProcessWorker(n=2, max_pending=50) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            futures = [w.submit(abs, number) for number in range(2000)]
            most = threading.active_count()
            async for _ in w.map(abs, range(2000)):
                most = max(most, threading.active_count())
            await asyncio.wait(futures)
            futures[0].cancel()
            assert most == threading.active_count() == before
            gate.release()
            await held
        assert threading.active_count() == before

    run(main)


@pytest.mark.parametrize("name", ["_read_batch", "_tell", "_leave_line", "_flush", "_take_turn"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_turn_that_an_interrupt_breaks_off_is_taken_again(name: str, after: bool) -> None:
    interrupted = False
    call = getattr(LoopClient, name)

    def interrupts(client: LoopClient, *args: Any) -> Any:
        nonlocal interrupted
        now, interrupted = not interrupted and bool(client.pending), interrupted or bool(client.pending)
        if now and not after:
            raise KeyboardInterrupt
        value = call(client, *args)
        if now:
            raise KeyboardInterrupt
        return value

    async def main(w: AsyncProcessWorker) -> None:
        assert await asyncio.wait_for(w.submit(abs, -2), GUARD) == 2

    with asyncio.Runner() as runner:
        w = AsyncProcessWorker(n=1, max_pending=1)
        runner.run(main(w))
        loop = runner.get_loop()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LoopClient, name, interrupts)
            calls = [loop.create_task(main(w)) for _ in range(3)]
            with pytest.raises(KeyboardInterrupt):
                loop.run_forever()
            loop.run_until_complete(asyncio.gather(*calls))
        assert interrupted
        runner.run(w.stop_now())


@pytest.mark.parametrize("name", ["_supervisor_died", "_fail_all", "_tell"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_end_that_an_interrupt_breaks_off_is_gone_on_with(name: str, after: bool) -> None:
    interrupted = False
    call = getattr(LoopClient, name)

    def interrupts(client: LoopClient, *args: Any) -> Any:
        nonlocal interrupted
        at_the_end = client._exited or name == "_supervisor_died"
        now, interrupted = at_the_end and not interrupted, interrupted or at_the_end
        if now and not after:
            raise KeyboardInterrupt
        value = call(client, *args)
        if now:
            raise KeyboardInterrupt
        return value

    async def main(w: AsyncProcessWorker) -> None:
        pending = [w.submit(signal.pause) for _ in range(1000)]
        await w.stop_now()
        assert all(isinstance(each.exception(), TaskCancelled) for each in pending)

    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        loop = runner.get_loop()
        w = AsyncProcessWorker(n=1)
        patch.setattr(LoopClient, name, interrupts)
        task = loop.create_task(main(w))
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert interrupted
        loop.run_until_complete(asyncio.wait_for(task, GUARD))
