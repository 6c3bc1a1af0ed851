"""What a pool costs while nobody uses it: the CPU time of its processes, and of its threads in the client."""

import time
from contextlib import ExitStack

from benchmarks.measure import Benchmark, Measure, Round, Settings
from benchmarks.pools import EXECUTOR, MPWORKER, POOL, new_executor, new_pool
from benchmarks.processes import Watched
from benchmarks.tasks import noop
from mpworker import ProcessWorker


def mpworker(settings: Settings, stack: ExitStack) -> None:
    worker = stack.enter_context(ProcessWorker(settings.n))
    for future in [worker.submit(noop) for _ in range(4 * settings.n)]:
        future.result()


def executor(settings: Settings, stack: ExitStack) -> None:
    executor = stack.enter_context(new_executor(settings.n))
    for future in [executor.submit(noop) for _ in range(4 * settings.n)]:
        future.result()


def pool(settings: Settings, stack: ExitStack) -> None:
    stack.enter_context(new_pool(settings.n)).map(noop, range(4 * settings.n))


def take_round(settings: Settings) -> Round:
    """All pools are idle at the same time, for the same time."""
    with ExitStack() as stack:
        pools: dict[str, Watched] = {}
        for name, start in {MPWORKER: mpworker, EXECUTOR: executor, POOL: pool}.items():
            pools[name] = Watched()
            start(settings, stack)
            pools[name].settle()
        time.sleep(min(1.0, settings.idle_seconds))  # what follows the first tasks is not idleness
        before = {name: watched.usage() for name, watched in pools.items()}
        begun = time.monotonic()
        time.sleep(settings.idle_seconds)
        after = {name: watched.usage() for name, watched in pools.items()}
        minutes = (time.monotonic() - begun) / 60
    return {name: {"cpu": (after[name] - before[name]).cpu_ns / 1e6 / minutes} for name in pools}


BENCHMARK = Benchmark(
    "idle: CPU time of the whole pool while nobody uses it",
    (Measure("cpu", "ms/min"),),
    take_round,
    rounds_max=1,
)
