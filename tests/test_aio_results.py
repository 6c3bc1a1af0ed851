"""The results of all tasks as a stream in an event loop, which fills it, with no thread, and which nothing blocks."""

import asyncio
import gc
import os
import signal
import threading
import weakref
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from loops import begun, client_of, run, until
from pooljobs import Gate
from test_results import crash_at_first, fail, later

from mpworker import AsyncProcessWorker, AsyncSubscription, TaskResult
from mpworker.errors import (
    ConfigurationError,
    InvalidArgument,
    QueueFull,
    SupervisorLost,
    TaskCancelled,
    WorkerStopped,
    WrongEventLoop,
)
from mpworker.loopclient import LoopClient

POLICIES = ("drop_newest", "drop_oldest", "block")


def ids(results: Any) -> list[str]:
    return [result.task_id for result in results]


async def everything(stream: AsyncSubscription) -> list[TaskResult]:
    return [result async for result in stream]


async def first(stream: AsyncSubscription, count: int) -> list[TaskResult]:
    return [await anext(stream) for _ in range(count)]


async def held(w: AsyncProcessWorker) -> int:
    """Wait until the supervisor has heard that it must start nothing, and nothing runs; how many tasks wait."""
    fanout = client_of(w).fanout
    assert fanout is not None
    while True:
        state = (await w.queues())["default"]
        if fanout.hold.told is True and state.queued and not state.running:
            return state.queued


# ------------------------------------------------------------ what is seen


def test_every_subscription_sees_every_result_and_every_future_has_its_own() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            assert await w.submit(abs, -1) == 1
            streams = [w.subscribe_results() for _ in range(3)]
            futures = [w.submit(divmod, 7, number % 3) for number in range(9)]
            while_it_runs = await first(streams[0], 4)
        seen = [await everything(stream) for stream in streams]
        assert sorted(ids(seen[1])) == sorted(future.task_id for future in futures)
        assert ids(while_it_runs + seen[0]) == ids(seen[1]) == ids(seen[2])
        assert [future.exception() is None for future in futures] == [number % 3 > 0 for number in range(9)]
        by_id = {result.task_id: result for result in seen[1]}
        for future in futures:
            assert by_id[future.task_id].exception() is future.exception()
            if future.exception() is None:
                assert by_id[future.task_id].result() is future.result()
        assert [stream.dropped for stream in streams] == [0, 0, 0]

    run(main)


def test_a_result_says_whose_it_is_and_how_it_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2, queues={"mail": 1}) as w, w.subscribe_results() as stream:
            futures = {
                w.submit(abs, -3): ("abs", "default", "completed"),
                w.options(queue="mail").submit(fail, "no"): ("fail", "mail", "failed"),
                w.options(timeout=0.05).submit(signal.pause): ("pause", "default", "timed_out"),
                w.submit(os._exit, 3): ("_exit", "default", "failed"),
                w.options(retries=1, queue="late").submit(crash_at_first, str(tmp_path / "x")): (
                    "crash_at_first",
                    "late",
                    "completed",
                ),
            }
            seen = {each.task_id: (each.name, each.queue, each.status) for each in await first(stream, len(futures))}
            assert seen == {future.task_id: rest for future, rest in futures.items()}
            await asyncio.wait(futures)
            assert [future.exception() is None for future in futures] == [True, False, False, False, True]

    run(main)


def test_a_subscription_has_what_its_filter_says() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            failed = w.subscribe_results(statuses=["failed", "timed_out"])
            both = w.subscribe_results(10, "drop_oldest", {"mail"}, ("completed",))
            futures = []
            for view in (w, w.options(queue="mail")):
                futures += [view.submit(abs, 1), view.submit(fail, "no")]
            assert [result async for result in w.map(abs, range(100))] == list(range(100))  # whose items are no tasks
            await asyncio.wait(futures)
            assert sum(future.exception() is None for future in futures) == 2
        assert [(each.queue, each.status) async for each in both] == [("mail", "completed")]
        assert sorted([(each.queue, each.status) async for each in failed]) == [
            ("default", "failed"),
            ("mail", "failed"),
        ]

    run(main)


@pytest.mark.parametrize("how", ["by its future", "by its id", "with all"])
def test_a_task_that_is_cancelled_while_it_waits_at_max_pending_is_seen(how: str, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w, w.subscribe_results() as stream:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            await begun(gate)
            waiting = w.options(queue="mail").submit(abs, -1)
            assert client_of(w).tasks_in_line()
            if how == "by its future":
                waiting.cancel()
            elif how == "by its id":
                assert await w.cancel_task(waiting.task_id)
            else:
                assert await w.cancel_all() == 2
            result = await anext(stream)
            assert (result.task_id, result.queue, result.status) == (waiting.task_id, "mail", "cancelled")
            with pytest.raises(TaskCancelled):
                result.result()
            assert not client_of(w).tasks_in_line()
            gate.release()
            assert (await anext(stream)).task_id == held.task_id

    run(main)


def test_a_task_that_has_waited_too_long_at_max_pending_is_seen(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1, submit_timeout=0.01) as w, w.subscribe_results() as stream:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            late = w.submit(abs, -1)
            result = await anext(stream)
            assert (result.task_id, result.status) == (late.task_id, "failed")
            with pytest.raises(QueueFull):
                result.result()
            with pytest.raises(QueueFull):
                await late
            gate.release()
            assert (await anext(stream)).task_id == held.task_id

    run(main)


# ------------------------------------------------------------ waiting


def test_get_waits_for_as_long_as_it_is_told() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w, w.subscribe_results() as stream:
            with pytest.raises(TimeoutError, match=r"within 0\.0 s"):
                await stream.get(0)
            await w.pause()
            future = w.submit(abs, -1)
            with pytest.raises(TimeoutError, match=r"within 0\.02 s"):
                await stream.get(0.02)
            await w.resume()
            result = await stream.get(60)
            assert result is not None
            assert result.task_id == future.task_id
            with pytest.raises(InvalidArgument):
                await stream.get("1")  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError):
                await stream.get(-1)

    run(main)


def test_a_wait_can_be_cancelled_and_loses_nothing() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w, w.subscribe_results() as stream:
            await w.pause()
            future = w.submit(abs, 1)
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(stream), 0.01)
            assert not stream._waiters
            assert not client_of(w).over_waiters
            await w.resume()
            assert (await anext(stream)).task_id == future.task_id
            # And two that wait at once get one each.
            waits = [asyncio.create_task(first(stream, 1)) for _ in range(2)]
            await until(lambda: len(stream._waiters) == 2)
            futures = [w.submit(abs, 1) for _ in range(2)]
            assert {(await each)[0].task_id for each in waits} == {future.task_id for future in futures}

    run(main)


def test_one_that_takes_at_once_misses_nothing_though_its_buffer_is_small() -> None:
    # A turn of the loop takes in a batch, which is no more than the default buffer holds; then others have theirs.
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w, w.subscribe_results() as stream:
            futures = [w.submit(abs, number) for number in range(5000)]
            assert sorted(ids(await first(stream, 5000))) == sorted(future.task_id for future in futures)
            assert stream.dropped == 0

    run(main)


# ------------------------------------------------------------ the end


@pytest.mark.parametrize("how", ["stop_now", "kill", "stop_graceful"])
def test_who_waits_comes_to_the_end_when_the_worker_does(how: str) -> None:
    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        stream = w.subscribe_results()
        found = asyncio.create_task(everything(stream))
        futures = [w.submit(later, 0.01, 1) if how == "stop_graceful" else w.submit(signal.pause) for _ in range(5)]
        await until(lambda: stream._waiters)
        if how == "kill":
            os.kill((await w.processes())["supervisor"], signal.SIGKILL)
        else:
            await getattr(w, how)()
        results = await found
        assert sorted(ids(results)) == sorted(future.task_id for future in futures)
        status = {"stop_now": "cancelled", "kill": "failed", "stop_graceful": "completed"}[how]
        assert {result.status for result in results} == {status}
        await asyncio.wait(futures)
        if how == "kill":
            assert {type(future.exception()) for future in futures} == {SupervisorLost}
        assert await stream.get() is None
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        with pytest.raises((WorkerStopped, SupervisorLost)):
            w.subscribe_results()
        await w.stop_now()

    run(main)


def test_who_closes_comes_to_the_end_and_is_forgotten() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            plain = client_of(w).take_out
            stream, other = w.subscribe_results(), w.subscribe_results()
            waits = asyncio.create_task(everything(stream))
            await until(lambda: stream._waiters)
            stream.close()
            stream.close()
            assert await waits == []
            assert await stream.get() is None
            assert client_of(w).take_out != plain
            future = w.submit(abs, 1)
            async with other:
                assert ids(await first(other, 1)) == [future.task_id]
            assert client_of(w).take_out == plain
            assert await everything(other) == []
            assert "closed" in repr(other)

    run(main)


@pytest.mark.parametrize("ends", ["closed", "dropped", "dropped in a thread"])
def test_one_that_blocks_and_ends_holds_up_nobody(ends: str) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            stream: Any = w.subscribe_results(buffer=1, policy="block")
            futures = [w.submit(later, 0.002, 1) for _ in range(100)]
            await held(w)
            if ends == "closed":
                stream.close()
            elif ends == "dropped":
                gone = weakref.ref(stream)
                stream = None
                gc.collect()
                assert gone() is None
            else:
                kept, stream, pushed_by = [stream], None, set()
                push = client_of(w)._push

                def watched(*record: Any) -> bool:
                    pushed_by.add(threading.current_thread())
                    return push(*record)

                client_of(w)._push = watched
                await asyncio.get_running_loop().run_in_executor(None, kept.clear)
                await asyncio.gather(*futures)
                await asyncio.get_running_loop().shutdown_default_executor()
                assert pushed_by == {threading.current_thread()}
            assert await asyncio.gather(*futures) == [1] * 100
            assert client_of(w).take_out == client_of(w).pending.pop

    run(main)


# ------------------------------------------------------------ full buffers


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_one_that_nobody_reads_keeps_no_more_than_its_buffer(policy: Any) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            slow, quick = w.subscribe_results(3, policy), w.subscribe_results(1000)
            await asyncio.gather(*(w.submit(abs, number) for number in range(300)))
            assert slow.dropped == 297
            assert (await w.metrics()).results_dropped == 297
        seen = ids(await everything(quick))
        assert len(seen) == 300
        assert ids(await everything(slow)) == (seen[:3] if policy == "drop_newest" else seen[-3:])

    run(main)


def test_a_full_one_that_blocks_holds_up_the_pool_and_not_the_loop() -> None:
    async def main() -> None:
        threads = threading.active_count()
        async with AsyncProcessWorker(n=2) as w, w.subscribe_results(buffer=10, policy="block") as stream:
            futures = [w.submit(later, 0.005, 1) for _ in range(200)]
            before = await held(w)
            for _ in range(50):
                assert (await w.queues())["default"].queued == before
            came = stream._came - stream._taken
            assert came == 200 - before  # nothing is left out, and nothing else has begun
            await first(stream, came - 6)
            assert await held(w) == before
            await first(stream, 1)
            assert not stream.full
            assert len(await first(stream, 205 - came)) == 205 - came
            assert stream.dropped == 0
            assert await asyncio.gather(*futures) == [1] * 200
            assert threading.active_count() == threads
            assert not client_of(w).background.running

    run(main)


@pytest.mark.parametrize("max_pending", [1000, 20], ids=["none in line", "some in line"])
def test_a_drain_waits_for_no_reader(max_pending: int) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2, max_pending=max_pending) as w:
            stream = w.subscribe_results(buffer=5, policy="block")
            futures = [w.submit(later, 0.002, number) for number in range(200)]
            await held(w)
            assert bool(client_of(w).tasks_in_line()) == (max_pending == 20)
        assert [future.result() for future in futures] == list(range(200))
        assert sorted(ids(await everything(stream))) == sorted(future.task_id for future in futures)
        assert stream.dropped == 0

    run(main)


def test_a_drain_ends_a_pause_though_calls_wait_in_line() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=2) as w:
            await w.pause()
            await w.pause("default")
            futures = [w.submit(abs, -number) for number in range(5)]
            assert client_of(w).tasks_in_line()
        assert [future.result() for future in futures] == list(range(5))

    run(main)


# ------------------------------------------------------------ who may use it, and when


def test_what_is_wrong_is_told_at_once() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            for wrong in ({"buffer": "1"}, {"queues": "mail"}, {"statuses": 3}):
                with pytest.raises(InvalidArgument):
                    w.subscribe_results(**wrong)  # type: ignore[arg-type]
            for bad in ({"buffer": 0}, {"policy": "drop"}, {"statuses": ["running"]}):
                with pytest.raises(ConfigurationError):
                    w.subscribe_results(**bad)  # type: ignore[arg-type]
            assert client_of(w).fanout is None

    run(main)


def test_it_belongs_to_one_loop() -> None:
    w = AsyncProcessWorker(n=1)
    with pytest.raises(WrongEventLoop):
        w.subscribe_results()
    streams: list[AsyncSubscription] = []

    async def use() -> None:
        streams.append(w.subscribe_results())
        assert await w.submit(abs, -1) == 1

    async def others() -> None:
        with pytest.raises(WrongEventLoop):
            w.subscribe_results()
        with pytest.raises(WrongEventLoop):
            await streams[0].get(0)

    async def end() -> None:
        assert len(await first(streams[0], 1)) == 1
        await w.stop_now()

    with asyncio.Runner() as runner, asyncio.Runner() as other:
        runner.run(use())
        other.run(others())
        runner.run(end())
    streams[0].close()  # anywhere, at any time


def test_a_fork_has_no_subscription() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w, w.subscribe_results(policy="block") as stream:
            assert await w.submit(abs, -1) == 1
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    try:
                        stream.get(0).send(None)
                    except WorkerStopped:
                        stream.close()
                        code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert (await anext(stream)).status == "completed"

    run(main)


def test_a_loop_that_was_closed_while_it_waited_hurts_nobody() -> None:
    async def main() -> None:
        stream = w.subscribe_results()
        waits.append(asyncio.get_running_loop().create_task(everything(stream)))
        await until(lambda: stream._waiters)
        streams.append(stream)
        w.submit(abs, -1)

    waits: list[asyncio.Task[Any]] = []
    streams: list[AsyncSubscription] = []
    w = AsyncProcessWorker(n=1)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    client = client_of(w)
    client.ending.stop_graceful(None)  # as the exit handler does
    assert client.is_over()
    assert len(streams[0]._buffer) == 1
    waits[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    waits[0].get_coro().close()  # type: ignore[union-attr]


# ------------------------------------------------------------ interrupts


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["_read_batch", "_settle_inbox", "take_out", "_tell", "_ring_room", "_offer"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_loses_no_result_and_shows_none_twice(name: str, after: bool, policy: Any) -> None:
    interrupted = False
    expected: list[str] = []
    seen: list[str] = []

    async def main(w: AsyncProcessWorker) -> None:
        futures = [w.submit(abs, number) for number in range(5)]
        expected.extend(future.task_id for future in futures)
        assert sorted(await asyncio.gather(*futures)) == list(range(5))

    async def subscribed(w: AsyncProcessWorker) -> AsyncSubscription:
        await w.submit(abs, 1)
        return w.subscribe_results(100, policy)

    async def take(stream: AsyncSubscription) -> None:
        seen.extend(ids(await first(stream, len(expected))))
        with pytest.raises(TimeoutError):
            await stream.get(0)

    with asyncio.Runner() as runner:
        w = AsyncProcessWorker(n=1)
        client: Any = client_of(w)
        stream = runner.run(subscribed(w))
        loop = runner.get_loop()
        kept = {"take_out": client, "_ring_room": client, "_offer": client.fanout}  # others are methods
        whose = kept.get(name, LoopClient)
        call = getattr(whose, name)

        def interrupts(*args: Any) -> Any:
            nonlocal interrupted
            some = bool(client.pending or client.due)
            now, interrupted = some and not interrupted, interrupted or some
            if now and not after:
                raise KeyboardInterrupt
            value = call(*args)
            if now:
                raise KeyboardInterrupt
            return value

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(whose, name, interrupts)
            task = loop.create_task(main(w))
            while not task.done():
                try:
                    loop.run_until_complete(asyncio.wait([task], timeout=None))
                except KeyboardInterrupt:
                    continue
            task.result()
        assert interrupted
        runner.run(take(stream))
        runner.run(w.stop_now())
    assert sorted(seen) == sorted(expected)
    assert stream.dropped == 0
