"""What a task costs as a pool has more workers: from one to eight, and sixty-four, on however many cores there are.

Before a batch is measured all workers have come up, for which each gets a task that waits until the others have one;
and batches go before it for a second. The first task of a forked process makes it copy pages that it shares with
others, which takes a millisecond: with sixty-four that would be most of a short batch, and is none of what a task
costs. What a start costs is another benchmark.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from typing import Final

from mpworker.bench.backlog import curves, grown
from mpworker.bench.measure import Benchmark, NotOffered, Settings, Values
from mpworker.bench.peers import PEERS, Running, opened
from mpworker.bench.processes import cpu_used
from mpworker.bench.roundtrip import trips
from mpworker.bench.tasks import meet, noop

SIZES: Final = (1, 2, 4, 8, 64)
LIGHT: Final = 8  # more workers than this only where they are cheap to make
UP_SECONDS: Final = 10.0  # for all workers to come up, at the most
TASKS: Final = 10_000
FIRST: Final = 200  # tasks of the first batch
TRIPS: Final = 2_000  # of which the 99th percentile leaves out twenty
SECONDS: Final = 1.0  # of the batches before, and of a slow contender's at the most
KINDS: Final = {"time": "us", "cpu": "us", "p99": "us"}


def seconds_of(pool: Running, tasks: int) -> float:
    begun = time.perf_counter()
    pool.gather(noop, tasks)
    return time.perf_counter() - begun


def point(contender: str, settings: Settings) -> Values:
    """One number of workers: what a task of a batch costs, and the 99th percentile of round trips."""
    with opened(contender, settings.n) as pool:
        with tempfile.TemporaryDirectory() as folder:
            pool.gather(meet, settings.n, folder, settings.n, UP_SECONDS)
        tasks, warm_up = settings.count(FIRST), SECONDS * min(1.0, settings.scale)
        while warm_up > 0.0:
            seconds = seconds_of(pool, tasks)
            warm_up -= seconds
            tasks = settings.fit(TASKS, tasks / seconds, SECONDS)
        with cpu_used() as cpu:
            seconds = seconds_of(pool, tasks)
        times = trips(pool, settings.fit(TRIPS, tasks / seconds, SECONDS))
    return {
        "time": seconds * 1e6 / tasks,
        "cpu": cpu.seconds * 1e6 / tasks,
        "p99": statistics.quantiles(times, n=100, method="inclusive")[98] / 1e3,
    }


def run(contender: str, settings: Settings) -> Values:
    values: Values = {}
    points: list[Values] = []
    for n in SIZES:
        if n <= LIGHT or PEERS[contender].light:
            try:
                found = point(contender, replace(settings, n=n))
            except NotOffered:  # with so few
                continue
            points.append(found)
            values |= {f"{kind}, {n} workers": found[kind] for kind in KINDS}
    return values | grown(points, len(SIZES))


BENCHMARK = Benchmark(
    "a no-op task of a batch as a pool has more workers: time, CPU time; p99 of single round trips",
    curves(SIZES, KINDS, "workers", "workers"),
    run,
    rounds_max=5,
)
