"""One small task at a time: how long until its result is back."""

import statistics
import time

from mpworker.bench.measure import Benchmark, Measure, Settings, Target, Values
from mpworker.bench.peers import EXECUTOR, MPWORKER, Running, opened
from mpworker.bench.processes import cpu_used
from mpworker.bench.tasks import noop

TASKS = 3_000
WARM_UP = 300
FIRST = 20
SECONDS = 2.0


def trips(pool: Running, tasks: int) -> list[int]:
    """Nanoseconds of each of so many round trips."""
    clock, call = time.perf_counter_ns, pool.call
    if pool.batch is None:  # as a user writes it, with no layer between

        def call(function: object) -> None:
            result(submit(function))

        submit, result = pool.submit, pool.result
    times = []
    for _ in range(tasks):
        begun = clock()
        call(noop)
        times.append(clock() - begun)
    return times


def run(contender: str, settings: Settings) -> Values:
    with opened(contender, settings.n) as pool:
        trips(pool, settings.n)
        first = trips(pool, FIRST)
        speed = 1e9 / statistics.median(first)
        trips(pool, settings.fit(WARM_UP, speed, SECONDS / 10))
        with cpu_used() as cpu:
            times = trips(pool, settings.fit(TASKS, speed, SECONDS))
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": percentiles[49] / 1e3, "p99": percentiles[98] / 1e3, "cpu": cpu.seconds * 1e6 / len(times)}


BENCHMARK = Benchmark(
    "one no-op task at a time; and CPU time of one in all processes",
    (
        Measure("p50", "us", targets=(Target(MPWORKER, 0.3, EXECUTOR),)),
        Measure("p99", "us", targets=(Target(MPWORKER, 1.0, EXECUTOR),)),
        Measure("cpu", "us"),
    ),
    run,
)
