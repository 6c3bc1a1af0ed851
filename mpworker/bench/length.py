"""What a task costs as a run gets longer: from a hundred tasks to ten million, a hundred under way at a time.

Short runs are repeated: see `mpworker.bench.backlog`.
"""

import time
from collections import deque
from functools import partial
from typing import Any, Final

from mpworker.bench.backlog import WINDOW, Sample, curves, grown, repeated
from mpworker.bench.measure import Benchmark, NotOffered, Settings, Values
from mpworker.bench.peers import MPWORKER, Running, opened
from mpworker.bench.processes import cpu_used, pss_of_all
from mpworker.bench.tasks import noop

SIZES: Final = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
UNDER_WAY: Final = 100
WARM_UP: Final = 2_000
SECONDS: Final = 60.0  # of a peer for the next size, as foreseen
KINDS: Final = {"time": "us", "cpu": "us", "p99": "us", "memory": "MiB"}


def sample(pool: Running, tasks: int) -> Sample:
    """One run of that length, and what memory all processes have in the end."""
    submit, result, clock = pool.submit, pool.result, time.perf_counter
    under_way: deque[Any] = deque()
    times: list[float] = []
    with cpu_used() as cpu:
        begun = at = clock()
        for number in range(1, tasks + 1):
            under_way.append(submit(noop))
            if len(under_way) > UNDER_WAY:
                result(under_way.popleft())
            if number % WINDOW == 0:
                now = clock()
                if number <= UNDER_WAY:  # nothing has been waited for yet
                    at = now
                    continue
                times.append((now - at) / WINDOW)
                at = now
        for each in under_way:
            result(each)
        seconds = clock() - begun
    return Sample(tasks, seconds, cpu.seconds, times, pss_of_all() / (1 << 20))


def run(contender: str, settings: Settings) -> Values:
    values: Values = {}
    points: list[Values] = []
    with opened(contender, settings.n) as pool:
        if pool.batch is not None:
            raise NotOffered("takes batches, and has no submit")
        pool.gather(noop, settings.count(WARM_UP))
        for size in SIZES:
            tasks = settings.count(size)
            if contender != MPWORKER and points and points[-1]["time"] * tasks / 1e6 > SECONDS:
                break
            found = repeated(partial(sample, pool, tasks), settings, memory_of=-1)
            points.append(found)
            values |= {f"{kind}, {size:,} tasks": found[kind] for kind in KINDS}
    return values | grown(points, len(SIZES))


BENCHMARK = Benchmark(
    "a no-op task of a short and of a very long run: time, CPU time, p99 over windows of 100 tasks, memory",
    curves(SIZES, KINDS, "tasks", "tasks of the run"),
    run,
    rounds_max=1,
)
