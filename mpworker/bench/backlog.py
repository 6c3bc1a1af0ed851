"""What a task costs as more of them wait: from a thousand to a million.

All workers are held at a named pipe while the tasks are submitted, so that all of these wait at the same time. Then
the pipe is opened. A peer goes on to ten times as many as long as that is likely to be over in time.

A percentile is of a thousand windows at each size, and where there are more the median of such: so a small size is
repeated. Otherwise a curve would rise by itself. Of ten windows the 99th percentile is the longest, above which a tenth
of all such windows are. And where a neighbour takes a core for some seconds now and then, what is measured for minutes
has that in it, and what is measured for one second has not.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from mpworker.bench.measure import Benchmark, Measure, NotOffered, Settings, Target, Values, growth
from mpworker.bench.peers import MPWORKER, Running, opened
from mpworker.bench.processes import cpu_used, pss_of_all
from mpworker.bench.tasks import gate, noop

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
WARM_UP: Final = 2_000
WINDOW: Final = 100  # results whose time is taken together
STRETCH: Final = 1_000  # windows of which a percentile is taken
ENOUGH: Final = STRETCH * WINDOW  # tasks: fewer are repeated
ENOUGH_SECONDS: Final = 5.0  # and for how long at the most
SECONDS: Final = 15.0  # of a peer for the next size, as foreseen
FLAT: Final = 1.5
KINDS: Final = {"time": "us", "cpu": "us", "p99": "us", "memory": "B"}


def windows(handles: Iterable[Any], result: Callable[[Any], Any]) -> list[float]:
    """Take all results in order; the seconds for each, of every WINDOW."""
    clock = time.perf_counter
    times, at = [], clock()
    for number, handle in enumerate(handles, 1):
        result(handle)
        if number % WINDOW == 0:
            now = clock()
            times.append((now - at) / WINDOW)
            at = now
    return times


def p99(times: list[float]) -> float:
    """The 99th percentile, by nearest rank."""
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]


def p99_of_stretches(times: list[float]) -> float:
    """The median of the 99th percentiles of stretches of STRETCH windows; what is left of one counts with the last."""
    count = max(1, len(times) // STRETCH)
    ends = [*range(STRETCH, count * STRETCH, STRETCH), len(times)]
    return statistics.median(p99(times[begin:end]) for begin, end in pairwise([0, *ends]))


class Sample(NamedTuple):
    """What some tasks came to.

    Attributes:
        tasks: How many.
        seconds: For all of them.
        cpu: Seconds of all processes.
        times: Seconds for each task, of windows of them; those of all together if they are too few for one.
        memory: As the benchmark counts it.
    """

    tasks: int
    seconds: float
    cpu: float
    times: list[float]
    memory: float


def repeated(once: Callable[[], Sample], settings: Settings, memory_of: int) -> Values:
    """One size: what a task costs, of as many repetitions as a percentile needs.

    Args:
        once: A repetition.
        settings: Say by their scale how many tasks are enough.
        memory_of: Which repetition's memory counts: 0 for the first one, for later ones use again what that has left;
            -1 for the last one.
    """
    samples = [once()]
    enough = settings.count(ENOUGH)
    while sum(each.tasks for each in samples) < enough and sum(each.seconds for each in samples) < ENOUGH_SECONDS:
        samples.append(once())
    tasks = sum(each.tasks for each in samples)
    return {
        "time": sum(each.seconds for each in samples) * 1e6 / tasks,
        "cpu": sum(each.cpu for each in samples) * 1e6 / tasks,
        "p99": p99_of_stretches([time for each in samples for time in each.times or [each.seconds / each.tasks]]) * 1e6,
        "memory": samples[memory_of].memory,
    }


def sample(pool: Running, n: int, tasks: int, fifo: str) -> Sample:
    """So many tasks wait once, and end."""
    gates = [pool.submit(gate, fifo) for _ in range(n)]
    memory = pss_of_all()
    submit, result = pool.submit, pool.result
    with cpu_used() as cpu:
        begun = time.perf_counter()
        handles = [submit(noop) for _ in range(tasks)]
        submitted = time.perf_counter() - begun
        pool_memory = pss_of_all() - memory
        begun = time.perf_counter()
        pipe = os.open(fifo, os.O_WRONLY)
        times = windows(handles, result)
        seconds = submitted + time.perf_counter() - begun
        for each in gates:
            result(each)
        os.close(pipe)
    return Sample(tasks, seconds, cpu.seconds, times, pool_memory / tasks)


def run(contender: str, settings: Settings) -> Values:
    values: Values = {}
    points: list[Values] = []
    with tempfile.TemporaryDirectory() as folder, opened(contender, settings.n) as pool:
        if pool.batch is not None:
            raise NotOffered("takes batches, and has no submit")
        fifo = str(Path(folder, "gate"))
        os.mkfifo(fifo)
        pool.gather(noop, settings.count(WARM_UP))
        for size in SIZES:
            tasks = settings.count(size)
            if contender != MPWORKER and points and points[-1]["time"] * tasks / 1e6 > SECONDS:
                break
            found = repeated(partial(sample, pool, settings.n, tasks, fifo), settings, memory_of=0)
            points.append(found)
            values |= {f"{kind}, {size:,} wait": found[kind] for kind in KINDS}
    return values | grown(points, len(SIZES))


def grown(points: list[Values], wanted: int) -> Values:
    """By what each cost has grown at the end of the curve, if it has all of its points."""
    if len(points) < wanted:
        return {}
    found = {}
    for kind in points[0]:
        # Some pages more or less are all the memory that the fewest tasks take.
        values = [each[kind] for each in (points[1:] if kind == "memory" else points)]
        if min(values) > 0:
            found[f"{kind}, growth"] = growth(values)
    return found


def curves(
    xs: Iterable[int], kinds: dict[str, str], said: str, x_is: str, contenders: Iterable[str] = (MPWORKER,)
) -> tuple[Measure, ...]:
    """The measures of some costs at some sizes, and of their growth, which is to be FLAT at the most."""
    points = [
        Measure(f"{kind}, {x:,} {said}", unit, series=kind, x=float(x), x_is=x_is)
        for kind, unit in kinds.items()
        for x in xs
    ]
    goals = tuple(Target(contender, FLAT) for contender in contenders)
    flat = [Measure(f"{kind}, growth", "x", targets=() if kind == "cpu" else goals) for kind in kinds]
    return (*points, *flat)


BENCHMARK = Benchmark(
    "a no-op task while very many wait: time and CPU time, p99 over windows of 100 results, memory of all processes",
    curves(SIZES, KINDS, "wait", "tasks that wait"),
    run,
    rounds_max=3,
)
