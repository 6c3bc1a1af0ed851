"""One small task at a time: how long until its result is back."""

import statistics
import time
from collections.abc import Callable

from benchmarks.measure import Benchmark, Measure, Settings, Target, Values, in_turn
from benchmarks.pools import EXECUTOR, MPWORKER, POOL, new_executor, new_pool
from benchmarks.tasks import noop
from mpworker import ProcessWorker

TASKS = 3_000
WARM_UP = 300


def _measure(settings: Settings, call: Callable[[], object]) -> Values:
    for _ in range(settings.count(WARM_UP)):
        call()
    clock = time.perf_counter_ns
    times = []
    for _ in range(settings.count(TASKS)):
        begun = clock()
        call()
        times.append(clock() - begun)
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": percentiles[49] / 1e3, "p99": percentiles[98] / 1e3}


def mpworker(settings: Settings) -> Values:
    with ProcessWorker(settings.n) as worker:
        return _measure(settings, lambda: worker.submit(noop).result())


def executor(settings: Settings) -> Values:
    with new_executor(settings.n) as executor:
        return _measure(settings, lambda: executor.submit(noop).result())


def pool(settings: Settings) -> Values:
    with new_pool(settings.n) as pool:
        return _measure(settings, lambda: pool.apply_async(noop).get())


BENCHMARK = Benchmark(
    "round trip: one no-op task at a time",
    (Measure("p50", "us", targets=(Target(MPWORKER, 0.5, EXECUTOR),)), Measure("p99", "us")),
    in_turn({MPWORKER: mpworker, EXECUTOR: executor, POOL: pool}),
)
