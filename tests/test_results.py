"""The results of all tasks as a stream, with real processes."""

import asyncio
import gc
import itertools
import os
import random
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any, ClassVar

import pytest
from concurrently import GUARD, eventually, together
from points import sweep

from mpworker import ProcessWorker, Subscription, TaskFuture, TaskResult
from mpworker.errors import SupervisorLost, TaskCancelled, WorkerStopped

POLICIES = ("drop_newest", "drop_oldest", "block")


def fail(text: str) -> None:
    raise ValueError(text)


def crash_at_first(path: str) -> str:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "done"
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def make_lock() -> Any:
    return threading.Lock()


def later(seconds: float, value: int) -> int:
    time.sleep(seconds)
    return value


class Odd(Exception):
    pass


def fail_oddly() -> None:
    raise Odd


def some(size: int) -> bytes:
    return bytes(size)


class Told:
    """Says when it is unpickled."""

    told: ClassVar[list[int]] = []

    def __init__(self, number: int) -> None:
        self.number = number

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.number = state["number"]
        Told.told.append(self.number)


def make_told(number: int) -> Told:
    return Told(number)


def ids(results: Any) -> list[str]:
    return [result.task_id for result in results]


def held(w: ProcessWorker) -> bool:
    """Has the supervisor heard that it must start nothing, and does nothing run? Then only who takes changes that."""
    fanout = w._client.fanout
    assert fanout is not None
    told = fanout.hold.told
    state = w.queues()["default"]
    return told is True and bool(state.queued) and not state.running


# ------------------------------------------------------------ what is seen


def test_every_subscription_sees_every_result_and_every_future_has_its_own() -> None:
    with ProcessWorker(n=2) as w:
        early = w.submit(abs, -1)
        assert early.result() == 1
        streams = [w.subscribe_results() for _ in range(3)]
        futures = [w.submit(divmod, 7, number % 3) for number in range(9)]
    seen = [list(stream) for stream in streams]
    assert sorted(ids(seen[0])) == sorted(future.task_id for future in futures)
    assert ids(seen[0]) == ids(seen[1]) == ids(seen[2])
    assert [future.exception() is None for future in futures] == [number % 3 > 0 for number in range(9)]
    assert [stream.dropped for stream in streams] == [0, 0, 0]


def test_a_result_says_whose_it_is_and_how_it_ended(tmp_path: Path) -> None:
    with ProcessWorker(n=2, queues={"mail": 1}) as w:
        stream = w.subscribe_results()
        futures = {
            w.submit(abs, -3): ("abs", "default", "completed"),
            w.options(queue="mail").submit(fail, "no"): ("fail", "mail", "failed"),
            w.options(timeout=0.05).submit(time.sleep, 60): ("sleep", "default", "timed_out"),
            w.submit(os._exit, 3): ("_exit", "default", "failed"),
            w.submit(make_lock): ("make_lock", "default", "failed"),
            w.options(retries=1, queue="late").submit(crash_at_first, str(tmp_path / "x")): (
                "crash_at_first",
                "late",
                "completed",
            ),
        }
        cancelled = w.submit(time.sleep, 60)
        eventually(cancelled.running)
        assert cancelled.cancel()
        futures[cancelled] = ("sleep", "default", "cancelled")
    by_id = {result.task_id: result for result in stream}
    assert {future.task_id: rest for future, rest in futures.items()} == {
        task_id: (result.name, result.queue, result.status) for task_id, result in by_id.items()
    }
    for future in futures:
        result = by_id[future.task_id]
        if future.cancelled():
            with pytest.raises(TaskCancelled):
                result.exception()
            with pytest.raises(TaskCancelled):
                result.result()
        else:
            assert result.exception() is future.exception()
            if future.exception() is None:
                assert result.result() is future.result()
            else:
                with pytest.raises(type(future.exception())):
                    result.result()


def test_a_subscription_has_what_its_filter_says() -> None:
    with ProcessWorker(n=2) as w:
        failed = w.subscribe_results(statuses=["failed", "timed_out"])
        mail = w.subscribe_results(queues=iter(["mail", "unknown"]))
        both = w.subscribe_results(queues={"mail"}, statuses=("completed",))
        for view in (w, w.options(queue="mail")):
            view.submit(abs, 1)
            view.submit(fail, "no")
    assert [(result.queue, result.status) for result in both] == [("mail", "completed")]
    assert sorted((result.queue, result.status) for result in failed) == [("default", "failed"), ("mail", "failed")]
    assert sorted((result.queue, result.status) for result in mail) == [("mail", "completed"), ("mail", "failed")]


def test_items_of_a_map_are_no_tasks() -> None:
    with ProcessWorker(n=2) as w:
        stream = w.subscribe_results()
        assert list(w.map(abs, range(100))) == list(range(100))
        future = w.submit(abs, 1)
    assert ids(stream) == [future.task_id]


def test_an_outcome_that_is_looked_up_is_no_new_result() -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results() as results:
        future = w.submit(fail, "once")
        assert isinstance(future.exception(GUARD), ValueError)
        kept = w.get_task(future.task_id).future
        assert kept is not None
        assert isinstance(kept.exception(GUARD), ValueError)
        assert len(w.get_tasks()) == 1
        w.stop_graceful()
        assert [result.task_id for result in results] == [future.task_id]


def test_a_result_is_frozen_and_small() -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results() as stream:
        future = w.submit(abs, 1)
        result = next(stream)
        assert repr(result) == f'<TaskResult {future.task_id} ("abs") completed>'
        for name in ("status", "queue", "task_id", "more"):
            with pytest.raises(AttributeError):
                setattr(result, name, "x")


def test_a_result_is_unpickled_when_somebody_asks_and_once_for_all() -> None:
    Told.told.clear()
    with ProcessWorker(n=1) as w:
        one, other = w.subscribe_results(), w.subscribe_results()
        future = w.submit(make_told, 5)
    first, second = next(one), next(other)
    assert Told.told == []
    value = first.result()
    assert Told.told == [5]
    assert second.result() is value
    assert future.result() is value
    assert Told.told == [5]


def test_an_error_that_was_raised_is_not_held_in_a_cycle() -> None:
    with ProcessWorker(n=1) as w:
        stream = w.subscribe_results()
        w.submit(fail_oddly)
    result = next(stream)
    gc.collect()
    gc.disable()
    try:
        for ask in (result.result, result.exception):
            try:
                error = ask()
            except Odd as raised:
                error = raised
            gone = weakref.ref(error)
        del result, ask, error
        assert gone() is None
    finally:
        gc.enable()


# ------------------------------------------------------------ waiting


def test_get_waits_for_as_long_as_it_is_told() -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results() as stream:
        with pytest.raises(TimeoutError, match=r"within 0\.0 s"):
            stream.get(0)
        w.pause()
        future = w.submit(abs, 1)
        with pytest.raises(TimeoutError, match=r"within 0\.02 s"):
            stream.get(0.02)
        w.resume()
        result = stream.get(GUARD)
        assert result is not None
        assert result.task_id == future.task_id


def test_who_takes_reads_the_ring_itself() -> None:
    # No thread of ours runs, and nobody waits for a future.
    with ProcessWorker(n=1) as w, w.subscribe_results() as stream:
        w.submit(abs, 1)
        assert next(stream).status == "completed"
        assert not w._client.background.running


def test_who_takes_is_woken_by_whoever_reads() -> None:
    with ProcessWorker(n=2) as w, w.subscribe_results() as stream:
        slow = w.submit(time.sleep, 60)
        waits = threading.Thread(target=w._client.wait_for, args=(slow, None))  # it leads, and will for long
        waits.start()
        eventually(lambda: w._client._leader == waits.ident)
        w.submit(abs, 1)
        assert next(stream).name == "abs"
        assert w._client._leader == waits.ident
        slow.cancel()
        waits.join(GUARD)


@pytest.mark.parametrize("leads", [True, False], ids=["leads", "follows"])
def test_who_waits_comes_to_the_end_when_another_thread_closes(leads: bool) -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results() as stream:
        slow = w.submit(time.sleep, 60)
        found: list[Any] = []
        waits = threading.Thread(target=lambda: found.append(list(stream)))
        if leads:
            waits.start()
            eventually(lambda: w._client._leader == waits.ident)
        else:
            other = threading.Thread(target=w._client.wait_for, args=(slow, None))
            other.start()
            eventually(lambda: w._client._leader == other.ident)
            waits.start()
            eventually(lambda: stream._waiters)
        stream.close()
        waits.join(GUARD)
        assert found == [[]]
        slow.cancel()
        if not leads:
            other.join(GUARD)


# ------------------------------------------------------------ the end


def test_a_stop_now_ends_what_is_pending_cancelled() -> None:
    w = ProcessWorker(n=1)
    stream = w.subscribe_results()
    futures = [w.submit(time.sleep, 60) for _ in range(5)]
    w.stop_now()
    results = list(stream)
    assert sorted(ids(results)) == sorted(future.task_id for future in futures)
    assert {result.status for result in results} == {"cancelled"}
    assert stream.get() is None


def test_the_end_of_the_supervisor_is_the_end_of_the_stream() -> None:
    w = ProcessWorker(n=1)
    stream = w.subscribe_results()
    futures = [w.submit(time.sleep, 60) for _ in range(5)]
    os.kill(w.processes()["supervisor"], signal.SIGKILL)
    results = list(stream)
    assert len(results) == len(futures)
    assert {result.status for result in results} == {"failed"}
    assert isinstance(results[0].exception(), SupervisorLost)
    w.stop_now()


def test_who_waits_comes_to_the_end_when_the_worker_stops() -> None:
    w = ProcessWorker(n=1)
    stream = w.subscribe_results()
    found: list[Any] = []
    waits = threading.Thread(target=lambda: found.extend(stream))
    waits.start()
    future = w.submit(abs, 1)
    assert w.stop_graceful()
    waits.join(GUARD)
    assert ids(found) == [future.task_id]


def test_a_stopped_worker_takes_no_subscription() -> None:
    w = ProcessWorker(n=1)
    w.stop_now()
    with pytest.raises(WorkerStopped):
        w.subscribe_results()


def test_a_fork_has_no_subscription() -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results(policy="block") as stream:
        w.submit(abs, 1).result()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                try:
                    stream.get(0)
                except WorkerStopped:
                    stream.close()
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert next(stream).status == "completed"


def test_who_closes_is_forgotten_and_costs_no_more() -> None:
    with ProcessWorker(n=1) as w:
        plain = w._client.take_out
        stream, other = w.subscribe_results(), w.subscribe_results()
        futures = [w.submit(abs, 1) for _ in range(5)]
        next(stream)
        stream.close()
        stream.close()
        assert list(stream) == []
        assert stream.get() is None
        assert w._client.take_out != plain
        other.close()
        assert w._client.take_out == plain
        assert [future.result() for future in futures] == [1] * 5


def test_who_is_dropped_is_forgotten() -> None:
    with ProcessWorker(n=1) as w:
        plain = w._client.take_out
        stream = w.subscribe_results(buffer=1, policy="block")
        futures = [w.submit(later, 0.002, 1) for _ in range(200)]
        eventually(lambda: held(w))
        gone = weakref.ref(stream)
        del stream
        gc.collect()
        assert gone() is None
        assert [future.result(GUARD) for future in futures] == [1] * 200
        assert w._client.take_out == plain
        assert not w._client.background.watched


def test_the_old_name_is_deprecated_and_works() -> None:
    with ProcessWorker(n=1) as w:
        with pytest.warns(DeprecationWarning, match="subscribe_results") as caught:
            results = w.get_results()
        assert caught[0].filename == __file__
        future = w.submit(abs, 1)
        assert next(results).task_id == future.task_id


# ------------------------------------------------------------ full buffers


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_one_that_nobody_reads_keeps_no_more_than_its_buffer(policy: Any) -> None:
    rounds, count, size = 10, 100, 20
    with ProcessWorker(n=2) as w, w.subscribe_results(buffer=size, policy=policy) as stream:
        kept = []
        for _ in range(rounds):
            futures = [w.submit(some, 1000) for _ in range(count)]
            assert [len(future.result()) for future in futures] == [1000] * count
            del futures
            mine = [each for each in gc.get_objects() if isinstance(each, TaskFuture) and each._client is w._client]
            kept.append(len(mine))
            del mine
        assert max(kept) <= size + 2
        assert stream.dropped == rounds * count - size
        assert not w._client.fanout._log  # type: ignore[union-attr]


def test_a_slow_one_costs_another_one_nothing() -> None:
    with ProcessWorker(n=2) as w:
        slow = [
            w.subscribe_results(buffer=3, policy="drop_newest"),
            w.subscribe_results(buffer=3, policy="drop_oldest"),
        ]
        quick = w.subscribe_results(buffer=1000)
        futures = [w.submit(abs, number) for number in range(300)]
        assert [future.result() for future in futures] == list(range(300))
    seen = ids(quick)
    assert quick.dropped == 0
    assert sorted(seen) == sorted(future.task_id for future in futures)
    assert [stream.dropped for stream in slow] == [297, 297]
    assert ids(slow[0]) == seen[:3]
    assert ids(slow[1]) == seen[-3:]


def test_a_full_one_that_blocks_holds_up_the_pool_until_half_of_it_is_taken() -> None:
    with ProcessWorker(n=2) as w, w.subscribe_results(buffer=10, policy="block") as stream:
        futures = [w.submit(later, 0.005, 1) for _ in range(200)]
        eventually(lambda: held(w))
        before = w.queues()["default"].queued
        for _ in range(50):
            assert w.queues()["default"].queued == before
        w._client.poll()
        came = stream._came - stream._taken
        assert came == 200 - before  # nothing is left out, and nothing else has begun
        for _ in range(came - 6):
            next(stream)
        assert held(w)
        next(stream)
        eventually(lambda: w.queues()["default"].queued < before)
        seen = list(itertools.islice(stream, 200 - came + 5))
        assert stream.dropped == 0
        assert len(seen) == 205 - came
        assert all(future.result(0) for future in futures)


def test_two_that_block_are_waited_for_both() -> None:
    with ProcessWorker(n=1) as w:
        one, other = (w.subscribe_results(buffer=2, policy="block") for _ in range(2))
        for _ in range(100):
            w.submit(later, 0.003, 1)
        eventually(lambda: held(w))
        came = one._came
        for _ in range(came):
            next(one)
        assert held(w)
        other.close()
        assert sum(1 for _ in itertools.islice(one, 100 - came)) == 100 - came


def test_a_hold_and_a_pause_are_two_things() -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results(buffer=1, policy="block") as stream:
        futures = [w.submit(later, 0.005, 1) for _ in range(50)]
        eventually(lambda: held(w))
        assert not w.queues()["default"].paused
        w.pause()
        w.resume()
        assert held(w)
        w.pause()
        while stream._buffer:
            next(stream)
        assert w.queues()["default"].queued
        with pytest.raises(TimeoutError):
            stream.get(0)
        assert not held(w)
        assert w.queues()["default"].queued, "the end of a hold ends a pause"
        w.resume()
        while stream._taken < 50:
            next(stream)
        assert all(future.done() for future in futures)


@pytest.mark.parametrize("again", [False, True], ids=["before", "in it"])
def test_a_drain_waits_for_no_reader(again: bool) -> None:
    with ProcessWorker(n=2) as w:
        stream = w.subscribe_results(buffer=5, policy="block")
        futures = [w.submit(later, 0.002, number) for number in range(200)]
        eventually(lambda: held(w))
        if again:  # what is said once the drain has begun is no use either
            w._client.ending.ask_drain()
            w._client.tell({"verb": "hold"})
            w._client.tell({"verb": "pause", "names": None})
    assert [future.result(0) for future in futures] == list(range(200))
    assert sorted(ids(stream)) == sorted(future.task_id for future in futures)
    assert stream.dropped == 0


# ------------------------------------------------------------ asyncio


def test_an_event_loop_iterates() -> None:
    async def main() -> None:
        with ProcessWorker(n=2) as w:
            stream = w.subscribe_results()
            futures = [w.submit(later, 0.001, number) for number in range(20)]
            seen = [result async for result in _first(stream, 20)]
            assert sorted(ids(seen)) == sorted(future.task_id for future in futures)
            # Nothing is there: it gives way to others, who stop the worker.
            rest = asyncio.create_task(_all(stream))
            last = w.submit(abs, 1)
            while not stream._waiters:
                await asyncio.sleep(0)
            await asyncio.to_thread(w.stop_graceful)
            assert ids(await rest) == [last.task_id]
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    asyncio.run(main())


async def _first(stream: Subscription, count: int) -> Any:
    async for result in stream:
        yield result
        count -= 1
        if not count:
            return


async def _all(stream: Subscription) -> list[TaskResult]:
    return [result async for result in stream]


def test_a_wait_of_an_event_loop_can_be_cancelled_and_loses_nothing() -> None:
    async def main(w: ProcessWorker, stream: Subscription) -> None:
        w.pause()
        future = w.submit(abs, 1)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)
        assert not stream._waiters
        assert not w._client.background.at_end
        w.resume()
        assert (await anext(stream)).task_id == future.task_id
        # And two that wait at once get one each.
        waits = [asyncio.create_task(anext(stream)) for _ in range(2)]  # type: ignore[arg-type]
        futures = [w.submit(abs, 1) for _ in range(2)]
        assert {(await each).task_id for each in waits} == {future.task_id for future in futures}

    with ProcessWorker(n=1) as w, w.subscribe_results() as stream:
        asyncio.run(main(w, stream))


def test_an_event_loop_comes_to_the_end_when_somebody_closes() -> None:
    async def main(stream: Subscription) -> None:
        waits = asyncio.create_task(_all(stream))
        while not stream._waiters:
            await asyncio.sleep(0)
        await asyncio.to_thread(stream.close)
        assert await waits == []

    with ProcessWorker(n=1) as w, w.subscribe_results() as stream:
        asyncio.run(main(stream))
        assert not w._client.background.watched


def test_a_loop_that_was_closed_while_it_waited_hurts_nobody() -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results() as stream:
        loop = asyncio.new_event_loop()
        waits = anext(stream)
        step = waits.__await__()  # type: ignore[attr-defined]
        loop.run_until_complete(_begin(step))
        assert stream._waiters
        loop.close()
        called: list[int] = []
        future = w.submit(abs, 1)
        future.add_done_callback(lambda _: called.append(1))
        eventually(lambda: called)
        step.close()
        assert next(stream).task_id == future.task_id


async def _begin(step: Any) -> None:
    next(step)


# ------------------------------------------------------------ interrupts and handlers


@pytest.mark.parametrize("policy", POLICIES)
def test_an_interrupt_at_any_point_loses_no_result_and_shows_none_twice(policy: Any) -> None:
    with ProcessWorker(n=1) as w:
        seen: list[str] = []
        expected: list[str] = []

        def scenario() -> None:
            with w.subscribe_results(policy=policy):
                expected.append(w.submit(abs, 1).task_id)

        def check() -> None:
            seen.extend(ids(w_results(kept)))

        def w_results(stream: Subscription) -> list[TaskResult]:
            found = []
            last = w.submit(abs, 2).task_id
            while not found or found[-1].task_id != last:
                result = stream.get(GUARD)
                assert result is not None
                found.append(result)
            expected.append(last)
            return found

        def ends() -> None:
            scenario()
            future = w.submit(abs, 1)
            expected.append(future.task_id)
            future.result(GUARD)

        with w.subscribe_results(buffer=4, policy=policy) as kept:
            # Fewer where the background thread reads, and in CPython 3.13, which shows a function's instructions only
            # from its second call on.
            assert sweep(ends, check) > 20
            assert len(seen) == len(set(seen))
            assert set(expected) <= set(seen)
            assert kept.dropped == 0


def test_an_interrupt_at_any_point_of_who_takes_holds_up_nobody() -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results(buffer=2, policy="block") as stream:
        futures: list[TaskFuture[int]] = []

        def scenario() -> None:
            for _ in range(4):
                futures.append(w.submit(abs, 1))  # noqa: PERF401  # one by one: the interrupt comes in between
            for _ in range(2):
                stream.get(GUARD)

        def check() -> None:
            last = w.submit(abs, 2)
            while not last.done():
                try:
                    stream.get(0.001)
                except TimeoutError:
                    continue
            assert all(future.done() for future in futures)
            futures.clear()

        assert sweep(scenario, check) > 20


def test_a_handler_at_any_point_sees_and_takes_all() -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results() as stream:
        expected: list[str] = []
        seen: list[str] = []

        def scenario() -> None:
            future = w.submit(abs, 1)
            expected.append(future.task_id)
            seen.append(next(stream).task_id)

        def handle() -> None:
            with w.subscribe_results() as mine:
                future = w.submit(abs, 2)
                expected.append(future.task_id)
                while next(mine).task_id != future.task_id:
                    pass
                seen.append(next(stream).task_id)

        assert sweep(scenario, lambda: None, handle) > 15
        assert sorted(seen) == sorted(expected)


# ------------------------------------------------------------ all at once


def test_many_subscribers_under_random_kills_of_children() -> None:
    count, subscribers = 600, 20
    rng = random.Random(random.randrange(1 << 32))
    over = threading.Event()
    futures: list[TaskFuture[Any]] = []
    with ProcessWorker(n=2, crash_retries=3) as w:
        streams = [
            w.subscribe_results(
                buffer=rng.choice([1, 7, 50, 1000]), policy=rng.choice(POLICIES[:2] if index else ["block"])
            )  # type: ignore[arg-type]
            for index in range(subscribers)
        ]
        closes = {index: rng.randrange(count) for index in range(subscribers) if index % 3 == 1}
        seen: list[list[TaskResult]] = [[] for _ in streams]

        def consume(index: int) -> None:
            stream, pace = streams[index], random.Random(index)
            for result in stream:
                seen[index].append(result)
                if len(seen[index]) == closes.get(index):
                    stream.close()
                if pace.random() < 0.05:
                    over.wait(pace.random() * 0.02)

        def kill() -> None:
            for _ in range(25):
                children = [each["pid"] for each in w.processes()["children"] if each["ready"]]
                if children:
                    os.kill(rng.choice(children), signal.SIGKILL)
                over.wait(0.02)

        def produce() -> None:
            futures.extend(w.submit(later, 0.001 * (number % 3), 1) for number in range(count))
            w.options(queue="other").submit(abs, 1).result(GUARD)
            for future in futures:
                future.exception(GUARD)
            over.set()
            w.stop_graceful()

        together(produce, kill, *(lambda index=index: consume(index) for index in range(subscribers)))
    everything = {future.task_id for future in futures}
    assert len(everything) == count
    assert all(future.done() for future in futures)
    order: list[str] = []
    for index, stream in enumerate(streams):
        found = ids(seen[index])
        assert len(found) == len(set(found))
        if index not in closes:
            assert len(found) + stream.dropped == count + 1, stream
        else:
            assert len(found) + stream.dropped <= count + 1
        if len(found) == count + 1:
            order = order or found
            assert found == order
    assert streams[0].dropped == 0
    assert everything < set(order)
    statuses = {result.task_id: result.status for result in seen[0]}
    for future in futures:
        assert statuses[future.task_id] == ("failed" if future.exception(0) else "completed")
