"""How the pool in an event loop ends: stops, exits, and what breaks."""

import asyncio
import gc
import os
import select
import signal
import threading
from typing import Any, NoReturn

import pooljobs
import pytest
from loops import GUARD, begun, client_of, run, until
from pooljobs import Gate

import mpworker
from mpworker import AsyncProcessWorker, AsyncTaskFuture
from mpworker.errors import (
    ConfigurationError,
    InvalidArgument,
    StartFailed,
    SupervisorLost,
    TaskCancelled,
    WorkerStopped,
)
from mpworker.ipc._native import RingCorrupt
from mpworker.loopclient import LoopClient

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


def test_a_worker_whose_loop_is_closed_is_reaped_when_another_is_made() -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        assert await w.submit(abs, -1) == 1
        kept.append(w)

    kept: list[AsyncProcessWorker] = []
    asyncio.run(main())
    client = client_of(kept[0])
    kept.clear()
    gc.collect()
    assert select.select([client.supervisor.pidfd], [], [], GUARD)[0], "it drains, though nobody reads"
    assert not client.is_over()
    with mpworker.ProcessWorker(n=1):
        assert client.is_over()


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


def test_a_worker_that_cannot_observe_is_stopped_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(LoopClient, "_observe", no_thread)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        AsyncProcessWorker(n=1)
