"""Which tasks a subscription sees besides those of `submit`, what it refuses, and that full ones hold up no end."""

import gc
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import pytest
from concurrently import GUARD, eventually, together

from mpworker import ProcessWorker, Retention, Task, TaskFuture, TaskStatus
from mpworker.errors import ConfigurationError, InvalidArgument

POLICIES: Any = ("drop_newest", "drop_oldest", "block")


def fail(text: str) -> None:
    raise ValueError(text)


def later(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def full_and_held(w: ProcessWorker) -> bool:
    fanout = w._client.fanout
    assert fanout is not None
    return fanout.hold.told is True and not w.queues()["default"].running


def test_it_sees_tasks_however_they_were_made() -> None:
    with ProcessWorker(n=1) as w:
        everything = w.subscribe_results()
        mail = w.subscribe_results(queues=["mail"], statuses=[TaskStatus.FAILED])
        old = w.register_task(Task(fail, ("no",), queue="mail"))
        assert isinstance(old.exception(GUARD), ValueError)
        new = w.retry_task(old.task_id)
        assert isinstance(new.exception(GUARD), ValueError)
        assert w.execute_task(Task(abs, (-2,)), timeout=GUARD) == 2
        cancelled = w.register_task_after(3600.0, Task(abs, (1,)))
        assert w.cancel_task(cancelled.task_id)
    seen = [(each.task_id, each.name, each.queue, each.status) for each in everything]
    assert seen[:2] == [
        (old.task_id, "fail", "mail", TaskStatus.FAILED),
        (new.task_id, "fail", "mail", TaskStatus.FAILED),
    ]
    assert seen[2][1:] == ("abs", "default", TaskStatus.COMPLETED)
    assert seen[3:] == [(cancelled.task_id, "abs", "default", TaskStatus.CANCELLED)]
    assert [each.task_id for each in mail] == [old.task_id, new.task_id]


def test_a_retry_that_is_refused_is_no_result() -> None:
    with ProcessWorker(n=1) as w:
        stream = w.subscribe_results()
        done = w.submit(abs, 1)
        assert done.result(GUARD) == 1
        with pytest.raises(ConfigurationError):
            w.retry_task(done.task_id)
    assert [each.task_id for each in stream] == [done.task_id]


def test_a_look_at_what_has_ended_is_no_result() -> None:
    with ProcessWorker(n=1, retention=Retention(results=True)) as w:
        stream = w.subscribe_results()
        task_id = w.submit(abs, -1).task_id
        assert next(stream).task_id == task_id
        gc.collect()
        task = w.get_task(task_id)
        assert task.future is not None
        assert task.future.result(GUARD) == 1
        last = w.submit(abs, 2)
        assert last.result(GUARD) == 2
    assert [each.task_id for each in stream] == [last.task_id]


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"buffer": 0}, ConfigurationError, ["buffer", "0", "1"]),
        ({"buffer": (1 << 24) + 1}, ConfigurationError, ["buffer", "16777217", "16777216"]),
        ({"buffer": 2.0}, InvalidArgument, ["buffer", "2.0"]),
        ({"buffer": True}, InvalidArgument, ["buffer", "True"]),
        ({"policy": "drop"}, ConfigurationError, ["policy", "'drop'", "'drop_newest'", "'block'"]),
        ({"policy": None}, ConfigurationError, ["policy", "None"]),
        ({"policy": ["block"]}, ConfigurationError, ["policy", "['block']"]),
        ({"queues": "mail"}, InvalidArgument, ["queues", "'mail'", "list"]),
        ({"queues": 5}, InvalidArgument, ["queues", "5"]),
        ({"queues": [5]}, InvalidArgument, ["5"]),
        ({"queues": [["mail"]]}, InvalidArgument, ["['mail']"]),
        ({"statuses": "failed"}, InvalidArgument, ["statuses", "'failed'"]),
        ({"statuses": ["done"]}, ConfigurationError, ["statuses", "'done'", "'completed'"]),
        ({"statuses": [TaskStatus.RUNNING]}, ConfigurationError, ["statuses", "RUNNING", "'timed_out'"]),
        ({"statuses": [["failed"]]}, ConfigurationError, ["statuses", "['failed']"]),
    ],
)
def test_what_is_wrong_is_told_at_once(given: dict[str, Any], kind: type[Exception], says: list[str]) -> None:
    with ProcessWorker(n=1) as w:
        with pytest.raises(kind) as caught:
            w.subscribe_results(**given)
        message = str(caught.value)
        assert "\n" not in message
        assert [word for word in says if word not in message] == [], message
        assert w._client.take_out == w._client.pending.pop


@pytest.mark.parametrize(
    ("stop", "statuses"),
    [
        (lambda w: w.stop_graceful(), {"completed"}),
        (lambda w: w.stop_graceful(timeout=GUARD), {"completed"}),
        (lambda w: w.shutdown(cancel_futures=True), {"completed", "cancelled"}),
        (lambda w: w.stop_now(), {"completed", "cancelled"}),
    ],
    ids=["graceful", "graceful in time", "cancel_futures", "now"],
)
def test_a_full_one_that_blocks_holds_up_no_stop(stop: Callable[[ProcessWorker], Any], statuses: set[str]) -> None:
    w = ProcessWorker(n=2)
    stream = w.subscribe_results(buffer=2, policy="block")
    futures = [w.submit(later, 0.005) for _ in range(100)]
    eventually(lambda: full_and_held(w))
    together(lambda: stop(w))
    assert all(future.done() for future in futures)
    seen = list(stream)
    assert sorted(each.task_id for each in seen) == sorted(future.task_id for future in futures)
    assert {each.status.value for each in seen} == statuses


def test_a_result_that_has_come_is_there_while_a_full_one_blocks() -> None:
    with ProcessWorker(n=1) as w:
        stream = w.subscribe_results(buffer=1, policy="block")
        futures = [w.submit(later, 0.005) for _ in range(20)]
        eventually(lambda: full_and_held(w))
        ended = [future for future in futures if future.done()]
        assert ended
        assert [future.result(0) for future in ended] == [0.005] * len(ended)
        stream.close()
        assert [future.result(GUARD) for future in futures] == [0.005] * 20


@pytest.mark.parametrize("seed", range(3))
def test_a_random_mixture_shows_each_task_once_to_everybody(seed: int) -> None:
    rng = random.Random(seed)
    futures: list[TaskFuture[Any]] = []
    made: list[Callable[[ProcessWorker], TaskFuture[Any]]] = [
        lambda w: w.submit(later, 0.001),
        lambda w: w.submit(fail, "no"),
        lambda w: w.options(timeout=0.01).submit(later, 3600.0),
        lambda w: w.submit(os._exit, 3),
        lambda w: w.options(crash_retries=1).submit(os._exit, 4),
        lambda w: w.options(queue="mail", retries=1).submit(fail, "again"),
        lambda w: w.register_task_after(0.01, Task(later, (0.001,))),
    ]
    with ProcessWorker(n=2) as w:
        blocks = w.subscribe_results(buffer=3, policy="block")
        untouched = [w.subscribe_results(buffer=5, policy=policy) for policy in POLICIES[:2]]
        failed = w.subscribe_results(buffer=1000, statuses=["failed", "timed_out"])
        seen: list[Any] = []

        def produce() -> None:
            try:
                for _ in range(120):
                    futures.append(rng.choice(made)(w))
                    if rng.random() < 0.3:
                        rng.choice(futures).cancel()
                # Before the stop, which holds nothing up: here the pool goes on because results are taken, or never.
                assert not wait(futures, GUARD / 2).not_done
            finally:
                w.stop_graceful()

        def consume() -> None:
            eventually(lambda: blocks.full)
            seen.extend(blocks)

        together(produce, consume)
    assert all(future.done() for future in futures)
    assert sorted(each.task_id for each in seen) == sorted(future.task_id for future in futures)
    words = {each.task_id: each.status for each in seen}
    assert {future.task_id for future in futures if future.cancelled()} == {
        key for key, word in words.items() if word is TaskStatus.CANCELLED
    }
    bad = [each.task_id for each in seen if each.status in (TaskStatus.FAILED, TaskStatus.TIMED_OUT)]
    assert [each.task_id for each in failed] == bad
    assert [stream.dropped for stream in untouched] == [115, 115]
    assert [[each.task_id for each in stream] for stream in untouched] == [
        [each.task_id for each in seen[:5]],
        [each.task_id for each in seen[-5:]],
    ]
    assert w.metrics().results_dropped == 230
