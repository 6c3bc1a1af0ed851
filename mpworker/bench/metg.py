"""How small a task may be: METG(50 %) and METG(90 %), the minimum effective task granularities.

As defined by Task Bench (Slaughter, Wu, Fu, Brandenburg, Garcia, Kautz, Marx, Morris, Cao, Bosilca, Mirchandaney,
Lee, Treichler, McCormick, Aiken: "Task Bench: A Parameterized Benchmark for Evaluating Parallel Runtime Performance",
SC 2020): a task is a fixed amount of work, and its granularity is wall time times cores divided by tasks, so that it
has the overhead in it. Efficiency is the rate of useful work as a part of the peak. METG(x) is the smallest
granularity at which it is x or more.

The peak is the pool's own, with the same work cut into a few large tasks, run just before each try, so that a busy
neighbour slows both alike; and of TRIES of each size the one in the middle counts, for the curve is flat where it comes
to a half, and one disturbed try would be the end of it. Cores are those that the workers can use at most. With as many
workers as cores, the client's and the supervisor's own work comes out of the same cores, and counts against the pool,
as it does for its user.

Sizes are tried from large to small, each half of the one before, until less than half of the time is useful; between
the last two it is interpolated.
"""

import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from mpworker.bench.measure import Benchmark, Measure, Settings, Target, Values
from mpworker.bench.peers import EXECUTOR, MPWORKER, opened
from mpworker.bench.tasks import noop, turns_per_second, work
from mpworker.cgroups import available_cores

WORK_SECONDS: Final = 0.1  # of each worker, for each try
TRIES: Final = 3  # of each size
TASKS_MAX: Final = 20_000
PIECES: Final = 4  # large tasks for each worker
FIRST: Final = 1e-3  # seconds: the size of the first try
SMALLEST, LARGEST = 1e-6, 0.5
LEVELS: Final = (0.9, 0.5)
WARM_UP: Final = 500


class Try(NamedTuple):
    """What came of one size.

    Attributes:
        granularity: Seconds of a core for each task, overhead included.
        efficiency: Which part of that was useful.
    """

    granularity: float
    efficiency: float


def curve(attempt: Callable[[float], Try], first: float = FIRST) -> list[Try]:
    """Tries of sizes from one that is large enough for the highest level to one that is too small for the lowest.

    Args:
        attempt: Tries a size, in seconds of work.
        first: The size to begin with.
    """
    tries = [attempt(first)]
    size = first
    while tries[0].efficiency < LEVELS[0] and size < LARGEST:
        size *= 2
        tries.insert(0, attempt(size))
    size = first
    while tries[-1].efficiency >= LEVELS[-1] and size > SMALLEST:
        size /= 2
        tries.append(attempt(size))
    return tries


def median(tries: list[Try]) -> Try:
    """The one in the middle, by efficiency."""
    return sorted(tries, key=lambda each: each.efficiency)[len(tries) // 2]


def metg(tries: list[Try], level: float) -> float | None:
    """The smallest granularity, in seconds, down to which the efficiency keeps to that level; None if it never did."""
    kept = 0
    while kept < len(tries) and tries[kept].efficiency >= level:
        kept += 1
    if kept == 0:
        return None
    if kept == len(tries):
        return tries[-1].granularity
    above, below = tries[kept - 1], tries[kept]
    part = (above.efficiency - level) / (above.efficiency - below.efficiency)
    return math.exp(math.log(above.granularity) * (1 - part) + math.log(below.granularity) * part)


def run(contender: str, settings: Settings) -> Values:
    cores = min(settings.n, available_cores())
    with opened(contender, settings.n) as pool:
        pool.gather(noop, settings.count(WARM_UP))
        speed = turns_per_second()

        def seconds(tasks: int, turns: int) -> float:
            begun = time.perf_counter()
            pool.gather(work, tasks, turns)
            return time.perf_counter() - begun

        def attempt(size: float) -> Try:
            tasks = settings.count(min(TASKS_MAX, round(WORK_SECONDS * settings.n / size)))
            turns = max(1, round(size * speed))
            return median([once(tasks, turns) for _ in range(TRIES)])

        def once(tasks: int, turns: int) -> Try:
            pieces = PIECES * settings.n
            best = seconds(pieces, tasks * turns // pieces)
            took = seconds(tasks, turns)
            return Try(took * cores / tasks, best / took)

        tries = curve(attempt)
    found = {f"METG({level:.0%})": metg(tries, level) for level in LEVELS}
    return {name: value * 1e6 for name, value in found.items() if value is not None}


BENCHMARK = Benchmark(
    "minimum effective task granularity (Task Bench, SC 2020): the smallest task at which half, and nine tenths, of "
    "the cores' time is useful",
    (Measure("METG(50%)", "us", targets=(Target(MPWORKER, 0.2, EXECUTOR),)), Measure("METG(90%)", "us")),
    run,
)
