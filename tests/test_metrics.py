"""How long tasks take, and how often a rate holds them up."""

import time

import pytest
from concurrently import GUARD, eventually
from hypothesis import given
from hypothesis import strategies as st

import mpworker
from mpworker import Latency, ProcessWorker, QueueOptions, Task
from mpworker.metrics import metrics_from
from mpworker.supervisor import latency


def told(counted: latency.Latency) -> Latency:
    return metrics_from({"latency": counted.told()}).latency


def test_each_task_is_in_the_bucket_of_its_time() -> None:
    counted = latency.Latency()
    counted.take([1_000, 1_000, 1_500], 2_000)
    counted.take([5_000], 4_000)  # it was for later, and cancelled
    assert told(counted) == Latency(
        count=4, total=2_500e-9, max=1_000e-9, buckets=((1e-9, 1), (512e-9, 1), (1_024e-9, 2))
    )


@pytest.mark.parametrize("times", [1, 2, 4, 5, 50])
def test_a_batch_counts_like_its_tasks_one_by_one(times: int) -> None:
    begun = [10**6 - 997 * (number % times) for number in range(3 * times)]
    at_once, one_by_one = latency.Latency(), latency.Latency()
    at_once.take(begun, 10**6)
    for each in begun:
        one_by_one.take([each], 10**6)
    assert told(at_once) == told(one_by_one)
    assert at_once.count == 3 * times


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_at_most_twice_the_truth(times_ns: list[int], share: float) -> None:
    counted = latency.Latency()
    for took_ns in times_ns:
        counted.take([10**13 - took_ns], 10**13)
    found = told(counted).quantile(share)
    least = sorted(times_ns)[max(0, -(-int(share * len(times_ns) * 10**6) // 10**6) - 1)] / 1e9
    assert least <= found * (1 + 1e-9) + 1e-12
    assert found <= max(2 * sorted(times_ns)[min(len(times_ns) - 1, int(share * len(times_ns)))] / 1e9, 2e-9)
    assert told(counted).count == len(times_ns)
    assert told(counted).max == max(times_ns) / 1e9


def test_of_nothing_there_is_no_time() -> None:
    assert (Latency().mean, Latency().quantile(0.5)) == (0.0, 0.0)


def _exit() -> None:
    import os

    os._exit(3)


def test_every_task_that_has_ended_is_in_it_however_it_ended() -> None:
    began = time.monotonic()
    with ProcessWorker(n=2) as w:
        ends = [
            w.submit(len, "four"),
            w.submit(int, "x"),
            w.submit(_exit),
            w.options(timeout=0.1).submit(time.sleep, 60),
            w.register_task(Task(time.sleep, (60,), deadline=0.1)),
        ]
        later = w.register_task_after(3600.0, Task(len, ("four",)))
        later.cancel()
        for future in ends:
            future.exception(GUARD)
        w.retry_task(ends[1].task_id).exception(GUARD)
        w.register_cron_task("it", "@yearly", print)
        w.run_cron_task("it")
        eventually(lambda: w.cron_history("it")[0].ended_at is not None)
        list(w.map(abs, range(100)))
        counts = w.metrics()
    took = time.monotonic() - began
    found = counts.latency
    ended = counts.completed + counts.failed + counts.cancelled + counts.timed_out
    assert found.count == ended == counts.accepted == sum(count for _, count in found.buckets) == 8
    assert 0.1 <= found.max <= took
    assert found.max <= found.total <= took * ended
    assert found.quantile(0.01) <= found.mean <= found.max == found.quantile(1.0)


def test_the_time_of_a_task_for_later_counts_from_then_on() -> None:
    with ProcessWorker(n=1) as w:
        w.submit(len, "four").result(GUARD)
        before = w.metrics().latency
        w.register_task_after(0.5, Task(len, ("four",))).result(GUARD)
        after = w.metrics().latency
    assert after.count == before.count + 1
    assert after.total - before.total < 0.5


@pytest.mark.parametrize("where", ["worker", "queue"])
def test_starts_that_a_rate_delays_are_counted(where: str) -> None:
    options = {"rate": 20.0, "burst": 2}
    queues = {"default": QueueOptions(**options)} if where == "queue" else None
    limits = options if where == "worker" else {}
    with ProcessWorker(n=2, queues=queues, **limits) as w:
        assert w.metrics().limiter_waits == 0
        for future in [w.submit(len, "four") for _ in range(6)]:
            future.result(GUARD)
        assert w.metrics().limiter_waits == 4


def test_without_a_rate_nothing_waits_for_it() -> None:
    with ProcessWorker(n=1, queues={"a": 2}) as w:
        for future in [w.options(queue="a").submit(len, "four") for _ in range(6)]:
            future.result(GUARD)
        assert w.metrics().limiter_waits == 0


def test_the_example_is_public() -> None:
    assert mpworker.Metrics().latency == Latency()


def test_results_that_no_subscription_had_room_for_are_counted() -> None:
    with ProcessWorker(n=1) as w:
        assert w.metrics().results_dropped == 0
        newest, oldest = w.subscribe_results(buffer=2), w.subscribe_results(buffer=3, policy="drop_oldest")
        for _ in range(10):
            w.submit(len, "four").result(GUARD)
        assert w.metrics().results_dropped == newest.dropped + oldest.dropped == 8 + 7
        newest.close()
        del oldest
        assert w.metrics().results_dropped == 15
    assert w.metrics().results_dropped == 15
