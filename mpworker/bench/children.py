"""What a task costs as a pool has more workers: from one to eight, and sixty-four, on however many cores there are."""

import statistics
import time
from dataclasses import replace
from typing import Final

from mpworker.bench.backlog import curves, grown
from mpworker.bench.measure import Benchmark, NotOffered, Settings, Values
from mpworker.bench.peers import PEERS, opened
from mpworker.bench.processes import cpu_used
from mpworker.bench.roundtrip import trips
from mpworker.bench.tasks import noop

SIZES: Final = (1, 2, 4, 8, 64)
LIGHT: Final = 8  # more workers than this only where they are cheap to make
TASKS: Final = 10_000
FIRST: Final = 200
TRIPS: Final = 500
SECONDS: Final = 1.0
KINDS: Final = {"time": "us", "cpu": "us", "p99": "us"}


def point(contender: str, settings: Settings) -> Values:
    """One number of workers: what a task of a batch costs, and the 99th percentile of round trips."""
    with opened(contender, settings.n) as pool:
        pool.gather(noop, settings.count(FIRST))
        begun = time.perf_counter()
        pool.gather(noop, settings.count(FIRST))
        speed = settings.count(FIRST) / (time.perf_counter() - begun)
        tasks = settings.fit(TASKS, speed, SECONDS)
        with cpu_used() as cpu:
            begun = time.perf_counter()
            pool.gather(noop, tasks)
            seconds = time.perf_counter() - begun
        times = trips(pool, settings.fit(TRIPS, speed, SECONDS))
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
