"""Runs of recurring tasks in subscriptions: all of them, once, and only where somebody has subscribed."""

import asyncio
import functools
import gc
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pooljobs
import pytest
from concurrently import GUARD, eventually, together
from loops import begun, client_of, run
from points import sweep
from pooljobs import Gate

from mpworker import AsyncProcessWorker, Hooks, ProcessWorker, Subscription, Task, TaskResult
from mpworker.errors import (
    ConfigurationError,
    QueueFull,
    SupervisorLost,
    TaskCancelled,
    TaskTimeout,
    WorkerCrashed,
)
from mpworker.ipc import codec

NEVER = "0 0 1 1 *"  # while the tests run; run_cron_task does it
POLICIES: Any = ("drop_newest", "drop_oldest", "block")


def hold(gate: Gate) -> Any:
    return functools.partial(pooljobs.hold, gate.folder)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ids(results: Any) -> list[str]:
    return [result.task_id for result in results]


def take(stream: Subscription, count: int) -> list[TaskResult]:
    return [result for _ in range(count) if (result := stream.get(GUARD)) is not None]


def run_it(w: ProcessWorker, name: str = "it") -> str:
    """Have it run; the id of the run."""
    assert w.run_cron_task(name)
    return w.cron_history(name)[-1].task_id


def told_of_runs(client: Any) -> Counter[int]:
    """What has come to this client of runs from now on, by the kind of record."""
    pop, kinds = client._pop, Counter[int]()

    def counted(inbox: list[Any], most: int) -> int:
        before = len(inbox)
        found: int = pop(inbox, most)
        kinds.update(record[0] for record in inbox[before:] if record[2] >= codec.CRON_KEYS)
        return found

    client._pop = counted
    return kinds


@pytest.fixture
def w() -> Iterator[ProcessWorker]:
    worker = ProcessWorker(n=2, grace=0.1)
    yield worker
    worker.stop_now()  # a test that fails may leave a run that waits for it


# ------------------------------------------------------------ what is seen


def test_every_subscription_sees_each_run_as_get_task_shows_it(w: ProcessWorker) -> None:
    streams = [w.subscribe_results() for _ in range(3)]
    w.options(queue="mail").register_cron_task("beat", "@every 20ms", pooljobs.pid)
    found = [take(stream, 3) for stream in streams]
    assert ids(found[0]) == ids(found[1]) == ids(found[2]) == [each.task_id for each in w.cron_history("beat")[:3]]
    for result in found[0]:
        info = w.get_task(result.task_id)
        assert (info.task_id, info.name, info.queue, info.status) == (
            *(result.task_id, result.name, result.queue, result.status),
        )
        assert (result.name, result.queue) == ("beat", "mail")
        assert result.result() is None  # what the task returns is dropped
        assert result.exception() is None


def test_a_run_has_the_name_of_its_task(w: ProcessWorker) -> None:
    stream = w.subscribe_results()
    w.register_cron_task("it", NEVER, Task(abs, (-1,), name="minus one", queue="own"))
    task_id = run_it(w)
    (result,) = take(stream, 1)
    assert (result.task_id, result.name, result.queue) == (task_id, "minus one", "own")


def test_runs_and_other_tasks_go_through_the_same_filters(w: ProcessWorker) -> None:
    failed = w.subscribe_results(statuses=["failed"])
    mail = w.subscribe_results(queues=["mail"])
    both = w.subscribe_results(queues=["mail"], statuses=["failed"])
    expected: dict[str, tuple[str, bool]] = {}
    for queue, bad in itertools.product(("default", "mail"), (False, True)):
        view, task = w.options(queue=queue), functools.partial(pooljobs.fail, "no") if bad else pooljobs.pid
        view.register_cron_task(f"{queue} {bad}", NEVER, task)
        expected[run_it(w, f"{queue} {bad}")] = (queue, bad)
        expected[view.submit(task).task_id] = (queue, bad)
    assert w.stop_graceful(timeout=GUARD)
    assert sorted(ids(failed)) == sorted(each for each, (_, bad) in expected.items() if bad)
    assert sorted(ids(mail)) == sorted(each for each, (queue, _) in expected.items() if queue == "mail")
    assert sorted(ids(both)) == sorted(each for each, what in expected.items() if what == ("mail", True))


@pytest.mark.parametrize(
    ("task", "status", "error"),
    [
        (functools.partial(pooljobs.fail, "as told"), "failed", ValueError),
        (crash, "failed", WorkerCrashed),
        (functools.partial(time.sleep, GUARD), "timed_out", TaskTimeout),
        (threading.Lock, "completed", type(None)),
    ],
    ids=["raises", "crashes", "too long", "returns anything"],
)
def test_however_a_run_ends_it_is_seen_once(w: ProcessWorker, task: Any, status: str, error: type[Exception]) -> None:
    stream = w.subscribe_results()
    w.options(timeout=0.2 if status == "timed_out" else None, retries=1).register_cron_task("it", NEVER, task)
    task_id = run_it(w)
    (result,) = take(stream, 1)
    assert (result.task_id, result.status) == (task_id, status)
    assert isinstance(result.exception(), error)
    assert w.stop_graceful(timeout=GUARD)
    assert list(stream) == []


@pytest.mark.parametrize("begins", [True, False], ids=["runs", "waits"])
def test_a_run_that_is_cancelled_is_seen_once(w: ProcessWorker, gate: Gate, begins: bool) -> None:
    stream = w.subscribe_results()
    w.register_cron_task("it", NEVER, hold(gate))
    if not begins:
        w.pause()
    task_id = run_it(w)
    if begins:
        gate.wait_begun()
    assert w.cancel_task(task_id)
    (result,) = take(stream, 1)
    assert (result.task_id, result.status) == (task_id, "cancelled")
    with pytest.raises(TaskCancelled):
        result.result()
    w.resume()
    assert w.stop_graceful(timeout=GUARD)
    assert list(stream) == []


def stop_now(w: ProcessWorker) -> None:
    w.stop_now()


def stop_soon(w: ProcessWorker) -> None:
    assert not w.stop_graceful(timeout=0.1)


def stop_what_waits(w: ProcessWorker) -> None:
    assert not w.stop_graceful(timeout=0.1, cancel_queued=True)


def kill(w: ProcessWorker) -> None:
    os.kill(w._client.supervisor.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [stop_now, stop_soon, stop_what_waits, kill], ids=lambda end: end.__name__)
def test_runs_that_the_end_cuts_short_are_seen_once(gate: Gate, end: Any) -> None:
    with ProcessWorker(n=1, grace=0.1) as w:
        stream = w.subscribe_results()
        for name in ("runs", "waits"):
            w.register_cron_task(name, NEVER, hold(gate))
        done = run_it(w, "runs")
        gate.release()
        assert ids(take(stream, 1)) == [done]
        gate.wait_begun()
        cut = [run_it(w, "runs")]
        gate.wait_begun()
        cut.append(run_it(w, "waits"))
        end(w)
        found = list(stream)
    assert sorted(ids(found)) == sorted(cut)
    assert {each.status for each in found} == {"failed" if end is kill else "cancelled"}
    for each in found:
        with pytest.raises(SupervisorLost if end is kill else TaskCancelled):
            each.result()
    assert not w._client.fanout._runs  # type: ignore[union-attr]


def test_the_last_run_of_a_drain_is_seen(gate: Gate) -> None:
    with ProcessWorker(n=1) as w:
        stream = w.subscribe_results()
        w.register_cron_task("it", NEVER, hold(gate), overlap="queue")
        assert w.run_cron_task("it")
        gate.wait_begun()
        assert w.run_cron_task("it")
        gate.release(2)
    assert [(each.name, each.status) for each in stream] == [("it", "completed")] * 2


def test_a_run_of_what_is_removed_is_seen(w: ProcessWorker, gate: Gate) -> None:
    w.register_cron_task("it", NEVER, hold(gate))
    task_id = run_it(w)
    gate.wait_begun()
    w.remove_cron_task("it")
    stream = w.subscribe_results()
    gate.release()
    assert [(each.task_id, each.name) for each in take(stream, 1)] == [(task_id, "it")]


# ------------------------------------------------------------ from when on, and until when


def test_a_run_that_is_under_way_is_seen_by_who_comes_then(w: ProcessWorker, gate: Gate) -> None:
    w.register_cron_task("it", NEVER, hold(gate))
    for _ in range(20):
        task_id = run_it(w)
        gate.wait_begun()
        with w.subscribe_results() as stream:
            gate.release()  # at once: the supervisor has heard of the subscription by now
            assert ids(take(stream, 1)) == [task_id]
        eventually(lambda: w.cron_history("it")[-1].ended_at)


def test_who_comes_after_another_sees_what_was_announced_to_that_one(w: ProcessWorker, gate: Gate) -> None:
    w.register_cron_task("it", NEVER, hold(gate))
    w.register_cron_task("other", NEVER, pooljobs.pid)
    first = w.subscribe_results()
    task_id = run_it(w)
    gate.wait_begun()
    first.close()
    run_it(w, "other")
    eventually(lambda: w.cron_history("other")[-1].ended_at)
    streams = [w.subscribe_results(), w.subscribe_results()]
    gate.release()
    assert [ids(take(stream, 1)) for stream in streams] == [[task_id], [task_id]]
    last = run_it(w, "other")
    assert [ids(take(stream, 1)) for stream in streams] == [[last], [last]]
    assert not w._client.fanout._runs  # type: ignore[union-attr]


def test_while_nobody_has_subscribed_no_run_is_told_of(w: ProcessWorker) -> None:
    kinds = told_of_runs(w._client)

    def run_three() -> None:
        for _ in range(3):
            run_it(w)
            eventually(lambda: w.cron_history("it")[-1].ended_at)  # what was told before that has been read

    w.register_cron_task("it", NEVER, pooljobs.pid)
    run_three()
    assert not kinds
    with w.subscribe_results() as first, w.subscribe_results() as second:
        run_three()
        assert kinds == {codec.RUN: 3, codec.RAN: 3}
        first.close()
        run_three()
        assert kinds == {codec.RUN: 6, codec.RAN: 6}
        del second
    run_three()
    assert kinds == {codec.RUN: 6, codec.RAN: 6}
    stream = w.subscribe_results()
    run_three()
    del stream
    gc.collect()
    run_three()
    assert kinds == {codec.RUN: 9, codec.RAN: 9}


# ------------------------------------------------------------ full buffers


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_one_that_nobody_reads_keeps_no_more_than_its_buffer(w: ProcessWorker, policy: Any, before: bool) -> None:
    if before:
        w.register_cron_task("it", "@every 10ms", pooljobs.pid)
    stream = w.subscribe_results(buffer=2, policy=policy)
    if not before:
        w.register_cron_task("it", "@every 10ms", pooljobs.pid)
    eventually(lambda: stream.dropped >= 3)  # though nobody reads but the background thread
    w.remove_cron_task("it")
    assert w.stop_graceful(timeout=GUARD)
    found = ids(stream)
    assert len(found) == 2
    numbers = [int(each.rpartition("-")[2]) for each in found]
    assert numbers[1] - numbers[0] == 1
    if policy == "drop_oldest":
        assert numbers[0] >= codec.CRON_KEYS + 3
    assert w.metrics().results_dropped == stream.dropped


def test_a_full_one_that_blocks_holds_up_runs_and_misses_none(w: ProcessWorker) -> None:
    stream = w.subscribe_results(buffer=3, policy="block")
    w.register_cron_task("it", "@every 10ms", pooljobs.pid)
    eventually(lambda: w._client.fanout.hold.told and w.queues()["default"].queued)  # type: ignore[union-attr]
    eventually(lambda: w.cron_tasks()[0].skipped >= 3)
    came = stream._came
    assert stream._buffer
    numbers = [int(each.rpartition("-")[2]) for each in ids(take(stream, came + 5))]
    assert numbers == list(range(numbers[0], numbers[0] + came + 5))
    assert stream.dropped == 0
    w.remove_cron_task("it")


# ------------------------------------------------------------ what stays as it is


@pytest.mark.parametrize("subscribed", [False, True], ids=["alone", "subscribed"])
def test_a_run_counts_for_nothing_that_waits_for_tasks(gate: Gate, subscribed: bool) -> None:
    worker = ProcessWorker(n=2, max_pending=1, submit_timeout=0.0, grace=0.1)
    streams = [worker.subscribe_results(policy=policy) for policy in POLICIES] if subscribed else []
    worker.register_cron_task("it", NEVER, hold(gate))
    task_id = run_it(worker)
    gate.wait_begun()
    assert worker.wait(timeout=GUARD)
    assert worker.submit(abs, -1).result(GUARD) == 1
    future = worker.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    with pytest.raises(QueueFull):
        worker.submit(abs, 1)
    assert not worker.wait(timeout=0)
    assert future.cancel()
    assert worker.wait(timeout=GUARD)
    report = worker.stop_graceful(timeout=0.2)
    assert not report
    assert (report.tasks, report.items, report.task_ids) == (1, 0, (task_id,))
    assert [len(list(stream)) for stream in streams] == [3] * len(streams)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_block_ends_as_ever(policy: Any) -> None:
    with ProcessWorker(n=1) as w:
        stream = w.subscribe_results(buffer=1, policy=policy)
        w.register_cron_task("it", "@every 10ms", pooljobs.pid)
        future = w.submit(abs, -1)
        eventually(lambda: w.cron_tasks()[0].runs)
    assert future.result(0) == 1
    assert {each.name for each in stream} <= {"it", "abs"}
    assert not stream._buffer


# ------------------------------------------------------------ other ways to take them


def test_the_old_name_gives_them_too(w: ProcessWorker) -> None:
    with pytest.warns(DeprecationWarning, match="subscribe_results"):
        results = w.get_results()
    w.register_cron_task("it", NEVER, pooljobs.pid)
    task_id = run_it(w)
    assert next(results).task_id == task_id


def test_an_event_loop_that_iterates_over_a_plain_worker_sees_them(w: ProcessWorker) -> None:
    async def main() -> list[TaskResult]:
        w.register_cron_task("it", "@every 20ms", pooljobs.pid)
        stream = w.subscribe_results()
        return [await anext(stream) for _ in range(3)]

    assert {each.name for each in asyncio.run(main())} == {"it"}


@pytest.mark.parametrize("policy", POLICIES)
def test_in_an_event_loop_all_is_the_same(policy: Any, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, grace=0.1) as w:
            streams = [w.subscribe_results(policy=policy), w.subscribe_results(statuses=["failed"])]
            await w.options(queue="mail").register_cron_task("bad", NEVER, functools.partial(pooljobs.fail, "no"))
            await w.register_cron_task("held", NEVER, hold(gate))
            assert await w.run_cron_task("bad")
            bad = [await stream.get(GUARD) for stream in streams]
            assert [(each.name, each.queue, each.status) for each in bad if each] == [("bad", "mail", "failed")] * 2
            assert isinstance(bad[0].exception(), ValueError)  # type: ignore[union-attr]
            assert (await w.get_task(bad[0].task_id)).name == "bad"  # type: ignore[union-attr]
            assert await w.run_cron_task("held")
            await begun(gate)
            late = w.subscribe_results()
            assert await w.wait(timeout=GUARD)
            await w.cancel_task((await w.cron_history("held"))[-1].task_id)
            cancelled = await late.get(GUARD)
            assert cancelled is not None
            assert cancelled.status == "cancelled"
            assert await w.run_cron_task("held")
            await begun(gate)
            await w.stop_now()
            left = [each.status async for each in streams[0]]
            assert left == ["cancelled", "cancelled"]
            assert [each async for each in streams[1]] == []

    run(main)


@pytest.mark.parametrize("ends", ["closed", "dropped"])
def test_in_an_event_loop_no_run_is_told_of_when_nobody_listens_any_more(ends: str) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            kinds = told_of_runs(client_of(w))
            await w.register_cron_task("it", NEVER, pooljobs.pid)

            async def run_it_once() -> None:
                assert await w.run_cron_task("it")
                while not (await w.cron_history("it"))[-1].ended_at:
                    await asyncio.sleep(0)

            await run_it_once()
            assert not kinds
            stream = w.subscribe_results()
            await run_it_once()
            assert kinds == {codec.RUN: 1, codec.RAN: 1}
            if ends == "closed":
                stream.close()
            del stream
            gc.collect()
            await asyncio.sleep(0)  # the loop makes the call that says so
            await run_it_once()
            assert kinds == {codec.RUN: 1, codec.RAN: 1}

    run(main)


def test_in_an_event_loop_no_more_is_kept_than_the_buffer_holds() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            stream = w.subscribe_results(buffer=2)
            await w.register_cron_task("it", "@every 10ms", pooljobs.pid)
            while stream.dropped < 3:
                await asyncio.sleep(0)
            await w.remove_cron_task("it")

    run(main)


@pytest.mark.parametrize("policy", POLICIES)
def test_here_nothing_recurs_and_a_subscription_sees_the_rest(policy: Any) -> None:
    with ProcessWorker(debug=True) as w:
        stream = w.subscribe_results(policy=policy)
        with pytest.raises(ConfigurationError, match="nobody keeps the time"):
            w.register_cron_task("it", NEVER, pooljobs.pid)
        with w.subscribe_results() as other:
            future = w.submit(abs, -1)
            assert ids(take(other, 1)) == ids(take(stream, 1)) == [future.task_id]
            assert w._client.background.running == (policy == "block")


# ------------------------------------------------------------ all at once


def test_an_interrupt_at_any_point_loses_no_run_and_shows_none_twice() -> None:
    with ProcessWorker(n=1) as w, w.subscribe_results() as stream:
        w.register_cron_task("it", NEVER, pooljobs.pid)
        expected: list[str] = []
        seen: list[str] = []
        # So that it is the main thread that reads, in which the interrupt comes.
        w._client.fanout._unwatch(stream._number)  # type: ignore[union-attr]

        def scenario() -> None:
            before = len(seen)
            while len(seen) == before:
                with w.subscribe_results():
                    w.run_cron_task("it")
                    result = stream.get(GUARD)
                    assert result is not None
                    seen.append(result.task_id)

        def check() -> None:
            eventually(lambda: all(each.ended_at for each in w.cron_history("it")))
            expected[:] = sorted({*expected, *(each.task_id for each in w.cron_history("it"))})
            w._client.poll()
            while stream._buffer:
                seen.extend(ids(take(stream, 1)))

        swept = sweep(scenario, check)
        assert swept > 15
        assert len(seen) == len(set(seen))
        # What was taken when the interrupt came, and not noted, was seen by nobody.
        assert set(seen) <= set(expected)
        assert stream._came == stream._taken == len(expected)


def test_many_subscriptions_see_each_run_once_while_children_are_killed() -> None:
    finished: list[str] = []
    over = threading.Event()
    worker = ProcessWorker(n=2, grace=0.1, hooks=Hooks(on_finish=lambda event: finished.append(event.task_id)))
    streams = [worker.subscribe_results(buffer=10_000, policy=policy) for policy in POLICIES for _ in range(2)]
    worker.register_cron_task("good", "@every 10ms", pooljobs.pid)
    worker.register_cron_task("bad", "@every 15ms", functools.partial(pooljobs.fail, "no"), overlap="queue")
    worker.options(timeout=0.05).register_cron_task("late", "@every 20ms", functools.partial(time.sleep, GUARD))

    def come_and_go() -> None:
        while not over.is_set():
            with worker.subscribe_results(policy="drop_oldest") as stream:
                take(stream, 2)

    def unrest() -> None:
        for _ in range(20):
            for each in worker.processes()["children"][:1]:
                if each["ready"]:
                    os.kill(each["pid"], signal.SIGKILL)
            over.wait(0.05)
        over.set()

    together(come_and_go, unrest)
    worker.stop_now()
    eventually(lambda: not worker._client.observer.running)
    seen = [ids(stream) for stream in streams]
    assert len(seen[0]) == len(set(seen[0])) > 10
    assert all(each == seen[0] for each in seen)
    assert sorted(seen[0]) == sorted(finished)
