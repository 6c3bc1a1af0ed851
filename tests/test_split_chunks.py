"""Chunks of a map that cannot be unpickled as a whole, and a stop while their items are still to be sent one by one."""

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import faults_tasks as tasks
import pytest
from concurrently import together
from leaks import wait_until
from points import AtPoint, interrupt, sweep

from mpworker import ProcessWorker
from mpworker.errors import SerializationError, SupervisorLost, TaskCancelled, WorkerCrashed, WorkerStopped

LIMIT = 60.0  # seconds: a guard against a hang, never a measure
COUNT, GUILTY = 12, 5
FILES = tuple(f"/mpworker/{name}.py" for name in ("chunks", "client", "ending", "mapping", "resending", "sending"))


def items(how: str) -> list[Any]:
    return [*range(GUILTY), tasks.OnLoad(how), *range(GUILTY + 1, COUNT)]


def start(w: ProcessWorker, how: str = "raise") -> Iterator[Any]:
    return w.map(tasks.item, items(how), chunksize=COUNT, return_exceptions=True)


def handed_back(w: ProcessWorker) -> bool:
    w._client.poll()
    return bool(w._client.resending.chunks)


def check(results: list[Any], error: type[Exception]) -> None:
    assert isinstance(results[GUILTY], error)
    assert results[:GUILTY] + results[GUILTY + 1 :] == [10 * index for index in range(COUNT) if index != GUILTY]


@pytest.mark.parametrize("early", [False, True], ids=["after it came back", "before"])
@pytest.mark.parametrize(("how", "error"), [("raise", SerializationError), ("exit 3", WorkerCrashed)])
def test_a_drain_finishes_each_item(how: str, error: type[Exception], early: bool) -> None:
    w = ProcessWorker(n=2)
    results = start(w, how)
    assert early or wait_until(lambda: handed_back(w), LIMIT)
    assert w.stop_graceful(LIMIT)
    check(list(results), error)


def test_a_drain_and_a_consumer_side_by_side() -> None:
    for _ in range(20):
        w = ProcessWorker(n=2)
        maps = [start(w) for _ in range(5)]
        stopped: list[bool] = []
        thread = threading.Thread(target=lambda: stopped.append(w.stop_graceful(LIMIT)))  # noqa: B023
        thread.start()
        for results in maps:
            check(list(results), SerializationError)
        thread.join(LIMIT)
        assert list(map(bool, stopped)) == [True]


def test_a_drain_that_nobody_waits_for_goes_on_when_the_items_are_taken() -> None:
    w = ProcessWorker(n=2)
    results = start(w)
    w.shutdown(wait=False)
    check(list(results), SerializationError)
    assert wait_until(lambda: w._client._over, LIMIT)


def test_a_drain_that_nobody_waits_for_ends_when_the_map_is_dropped() -> None:
    w = ProcessWorker(n=2)
    client, results = w._client, start(w)
    assert wait_until(lambda: handed_back(w), LIMIT)
    w.shutdown(wait=False)
    del results
    gc.collect()
    assert wait_until(lambda: client._over, LIMIT)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda w: w.stop_now(), TaskCancelled),
        (lambda w: w.shutdown(cancel_futures=True), TaskCancelled),
        (lambda w: w._client.supervisor.kill(), SupervisorLost),
    ],
    ids=["stop_now", "cancel", "lost"],
)
def test_any_other_end_is_told_for_each_item(end: Callable[[ProcessWorker], object], error: type[Exception]) -> None:
    w = ProcessWorker(n=2)
    results = start(w)
    assert wait_until(lambda: handed_back(w), LIMIT)
    end(w)
    assert [type(each) for each in results] == [error] * COUNT
    w.stop_now()


class StopsTheSecondTime:
    """Has the worker stopped by a signal's handler while it is pickled again."""

    pickled = 0

    def __reduce__(self) -> Any:
        type(self).pickled += 1
        if self.pickled == 2:
            signal.raise_signal(signal.SIGUSR1)
        return int, (7,)


def test_a_handler_on_top_of_the_frame_that_sends_them_does_not_wait_for_it() -> None:
    w = ProcessWorker(n=2)
    stopped: list[bool] = []

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.append(w.stop_graceful())

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        StopsTheSecondTime.pickled = 0
        mine = [tasks.OnLoad("raise"), 1, StopsTheSecondTime(), 3]
        results = list(w.map(tasks.item, mine, chunksize=4, return_exceptions=True))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert list(map(bool, stopped)) == [False], "some could not be sent"
    assert isinstance(results[0], SerializationError)
    assert results[1] == 10
    assert [type(each) for each in results[2:]] == [TaskCancelled] * 2


def test_a_pool_keeps_nothing_of_what_was_sent_again() -> None:
    with ProcessWorker(n=2) as w:
        check(list(start(w)), SerializationError)
        assert not w._client.resending.chunks
        assert not w._client.pending


def test_an_interrupt_at_any_point_of_sending_again_loses_nothing_but_the_map() -> None:
    with ProcessWorker(n=1) as w:

        def scenario() -> None:
            results = start(w)
            try:
                check(list(results), SerializationError)
            finally:
                results.close()  # type: ignore[attr-defined]

        def look() -> None:
            assert w.submit(tasks.item, 3).result(LIMIT) == 30
            assert wait_until(lambda: w._client.poll() or not (w._client.pending or w._client.resending.chunks), LIMIT)
            assert not w._client.resending._under_way

        scenario()  # imports and the like
        assert sweep(scenario, lambda: together(look), parts=FILES) > 100


def test_an_interrupted_drain_leaves_the_items_to_the_consumer() -> None:
    at, point = 0, AtPoint(0, dict)
    while not at or point.done:
        w = ProcessWorker(n=1)
        results = start(w)
        assert wait_until(lambda w=w: handed_back(w), LIMIT)
        point = AtPoint(at, interrupt, FILES)
        try:
            with point:
                w.stop_graceful(LIMIT)
        except KeyboardInterrupt:
            found: list[Any] = []
            together(lambda results=results, found=found: found.extend(results))
            assert len(found) == COUNT, point.where
            # What the interrupted thread had in hand it cancels; the others find their way.
            assert all(
                result in (10 * at, None) or isinstance(result, TaskCancelled)
                for at, result in enumerate(found)
                if at != GUILTY
            )
            w.stop_graceful(LIMIT)
        at += 5
    assert at > 30


@pytest.mark.parametrize("verb", ["stop_graceful", "stop_now"])
def test_a_handler_may_stop_the_pool_at_any_point_of_a_map_that_sends_again(verb: str) -> None:
    at, point = 0, AtPoint(0, dict)
    while not at or point.done:
        with ProcessWorker(n=1) as w:
            point = AtPoint(at, getattr(w, verb), FILES)
            with point, contextlib.suppress(WorkerStopped, TaskCancelled):
                list(start(w))
            w.stop_graceful(LIMIT)
        at += 3
    assert at > 100
