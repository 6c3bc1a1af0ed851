"""Very many short tasks: the memory of every process while they run, and by how much it grows."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Final

from rich.console import Console

from mpworker import ProcessWorker, Retention
from mpworker.bench.measure import Benchmark, Measure, Settings, Values, variants
from mpworker.bench.processes import pss_of
from mpworker.bench.tasks import noop

SAMPLES: Final = 25
IGNORED: Final = 5  # of them, while what is kept fills up
TASKS: Final = 1_000_000
UNDER_WAY: Final = 2_000  # tasks
REMEMBERED: Final = 100_000
ROLES: Final = ("supervisor", "client", "children")

_progress = Console(stderr=True)


def _memory(worker: ProcessWorker) -> dict[str, int]:
    processes = worker.processes()
    children = sum(pss_of(child["pid"]) for child in processes["children"])
    return {"supervisor": pss_of(processes["supervisor"]), "client": pss_of(os.getpid()), "children": children}


def _run(worker: ProcessWorker, tasks: int) -> None:
    for start in range(0, tasks, UNDER_WAY):
        for future in [worker.submit(noop) for _ in range(min(UNDER_WAY, tasks - start))]:
            future.result()


def _measure(retention: Retention | None) -> Callable[[Settings], Values]:
    def measure(settings: Settings) -> Values:
        step = max(1, settings.count(TASKS) // SAMPLES)
        samples = []
        with ProcessWorker(settings.n, retention=retention) as worker:
            for number in range(1, SAMPLES + 1):
                begun = time.perf_counter()
                _run(worker, step)
                rate = step / (time.perf_counter() - begun)
                samples.append(_memory(worker))
                said = ", ".join(f"{role} {pss / 1e6:.2f} MB" for role, pss in samples[-1].items())
                _progress.print(f"soak: {number * step:,} tasks: {said}; {rate:,.0f} /s", highlight=False)
        millions = [number * step / 1e6 for number in range(IGNORED, SAMPLES)]
        return {
            role: statistics.linear_regression(millions, [each[role] / 1e3 for each in samples[IGNORED:]]).slope
            for role in ROLES
        }

    return measure


CONTENDERS: Final = {
    "default": _measure(None),
    f"Retention(max_entries={REMEMBERED})": _measure(Retention(max_entries=REMEMBERED, results=True)),
}
BENCHMARK = Benchmark(
    "growth of memory over very many no-op tasks, for each million of them",
    tuple(Measure(role, "kB") for role in ROLES),
    variants(CONTENDERS),
    contenders=tuple(CONTENDERS),
    base="default",
    rounds_max=1,
    seconds_max=86_400.0,
    talks=True,
)
