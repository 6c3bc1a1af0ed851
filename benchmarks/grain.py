"""How small a task may be: METG(50 %), the smallest at which half of the workers' time is useful work.

As in Task Bench, a task is a fixed amount of work, and a pool is compared with its own best: the same work cut into a
few large tasks, run just before, so that a busy neighbour slows both alike. The size is bisected, and the last two
tries are interpolated. With as many workers as cores, the client's and the supervisor's own work comes out of the same
cores, and counts against the pool, as it does for its user.
"""

import math
import time
from collections.abc import Callable

from benchmarks.measure import Benchmark, Measure, Settings, Values, in_turn
from benchmarks.pools import EXECUTOR, MPWORKER, POOL, new_executor, new_pool
from benchmarks.tasks import turns_per_second, work
from mpworker import ProcessWorker

EFFICIENCY = 0.5
WORK_SECONDS = 0.1  # of each worker, for each size that is tried
TASKS_MAX = 20_000
PIECES = 4  # large tasks for each worker
SMALLEST, LARGEST = 1e-6, 4e-3
TRIES = 8


def _measure(settings: Settings, run: Callable[[int, int], object]) -> Values:
    run(settings.count(2000), 1)  # warm up
    speed = turns_per_second()

    def seconds(tasks: int, turns: int) -> float:
        begun = time.perf_counter()
        run(tasks, turns)
        return time.perf_counter() - begun

    def efficiency(size: float) -> float:
        tasks = settings.count(min(TASKS_MAX, round(WORK_SECONDS * settings.n / size)))
        turns = max(1, round(size * speed))
        pieces = PIECES * settings.n
        return seconds(pieces, tasks * turns // pieces) / seconds(tasks, turns)

    low, high = math.log(SMALLEST), math.log(LARGEST)
    low_is, high_is = 0.0, 1.0
    for _ in range(TRIES if settings.scale >= 1 else 2):
        middle = (low + high) / 2
        found = efficiency(math.exp(middle))
        if found < EFFICIENCY:
            low, low_is = middle, found
        else:
            high, high_is = middle, found
    return {"grain": math.exp(low + (high - low) * (EFFICIENCY - low_is) / (high_is - low_is)) * 1e6}


def mpworker(settings: Settings) -> Values:
    with ProcessWorker(settings.n) as worker:

        def run(tasks: int, turns: int) -> None:
            for future in [worker.submit(work, turns) for _ in range(tasks)]:
                future.result()

        return _measure(settings, run)


def executor(settings: Settings) -> Values:
    with new_executor(settings.n) as executor:

        def run(tasks: int, turns: int) -> None:
            for future in [executor.submit(work, turns) for _ in range(tasks)]:
                future.result()

        return _measure(settings, run)


def pool(settings: Settings) -> Values:
    with new_pool(settings.n) as pool:

        def run(tasks: int, turns: int) -> None:
            for result in [pool.apply_async(work, (turns,)) for _ in range(tasks)]:
                result.get()

        return _measure(settings, run)


BENCHMARK = Benchmark(
    "grain: the smallest task at which half of the workers' time is useful",
    (Measure("grain", "us"),),
    in_turn({MPWORKER: mpworker, EXECUTOR: executor, POOL: pool}),
)
