"""Many small tasks: one `submit` for each, then the result of each."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Benchmark, Measure, Settings, Target, Values, in_turn
from benchmarks.pools import EXECUTOR, MPWORKER, POOL, new_executor, new_pool
from benchmarks.tasks import noop
from mpworker import ProcessWorker

TASKS = 20_000
WARM_UP = 2_000


def _measure(settings: Settings, gather: Callable[[int], Any]) -> Values:
    gather(settings.count(WARM_UP))
    tasks = settings.count(TASKS)
    begun = time.perf_counter()
    gather(tasks)
    return {"tasks": tasks / (time.perf_counter() - begun)}


def mpworker(settings: Settings) -> Values:
    with ProcessWorker(settings.n) as worker:

        def gather(tasks: int) -> None:
            futures = [worker.submit(noop) for _ in range(tasks)]
            for future in futures:
                future.result()

        return _measure(settings, gather)


def executor(settings: Settings) -> Values:
    with new_executor(settings.n) as executor:

        def gather(tasks: int) -> None:
            futures = [executor.submit(noop) for _ in range(tasks)]
            for future in futures:
                future.result()

        return _measure(settings, gather)


def pool(settings: Settings) -> Values:
    with new_pool(settings.n) as pool:

        def gather(tasks: int) -> None:
            results = [pool.apply_async(noop) for _ in range(tasks)]
            for result in results:
                result.get()

        return _measure(settings, gather)


BENCHMARK = Benchmark(
    "submit and gather: one submit per no-op task, then each result",
    (Measure("tasks", "/s", higher_is_better=True, targets=(Target(MPWORKER, 8.0, EXECUTOR),)),),
    in_turn({MPWORKER: mpworker, EXECUTOR: executor, POOL: pool}),
)
