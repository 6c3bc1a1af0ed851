"""What the supervisor spends on a task when it serves very many children, most of them idle.

Two pools are there at the same time, and take turns in slices of the same work: never more than two tasks under way,
so that of sixty-four children sixty-two are idle.

What such a round trip costs depends on which cores the kernel has put the four processes on, by a factor of three, for
some slices in a row and with any number of children. So of each pool its fastest slice counts.
"""

import time
from collections import deque
from contextlib import ExitStack
from typing import Any, Final

from mpworker.bench.measure import Benchmark, Measure, Round, Settings, Target
from mpworker.bench.processes import usage_of
from mpworker.bench.tasks import noop
from mpworker.worker import ProcessWorker

FEW, MANY = 2, 64
UNDER_WAY: Final = 2
SLICE: Final = 2_000  # tasks
SLICES: Final = 21  # the first one is to warm up


def run_slice(worker: ProcessWorker, tasks: int) -> tuple[float, float, float]:
    """Microseconds of a task: CPU time of the supervisor, of all children, and time."""

    def used() -> tuple[int, int]:
        there = worker.processes()
        children = sum(usage_of(child["pid"]).cpu_ns for child in there["children"])
        return usage_of(there["supervisor"]).cpu_ns, children

    before, begun = used(), time.perf_counter()
    under_way: deque[Any] = deque()
    for _ in range(tasks):
        under_way.append(worker.submit(noop))
        if len(under_way) == UNDER_WAY:
            under_way.popleft().result()
    for future in under_way:
        future.result()
    seconds, after = time.perf_counter() - begun, used()
    return (after[0] - before[0]) / 1e3 / tasks, (after[1] - before[1]) / 1e3 / tasks, seconds * 1e6 / tasks


def whole(settings: Settings) -> Round:
    with ExitStack() as stack:
        workers = {f"{n} children": stack.enter_context(ProcessWorker(n)) for n in (FEW, MANY)}
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in workers}
        for _ in range(max(3, int(SLICES * min(1.0, settings.scale)))):
            for name, worker in workers.items():
                found[name].append(run_slice(worker, settings.count(SLICE)))
    fastest = {name: min(slices[1:], key=lambda each: each[2]) for name, slices in found.items()}
    return {name: dict(zip(("supervisor", "children", "time"), best, strict=True)) for name, best in fastest.items()}


BENCHMARK = Benchmark(
    "a no-op task with two under way, for 2 and for 64 children: CPU time of supervisor and of children; time",
    (
        Measure("supervisor", "us", targets=(Target(f"{MANY} children", 1.3, f"{FEW} children"),)),
        Measure("children", "us"),
        Measure("time", "us"),
    ),
    base=f"{FEW} children",
    whole=whole,
)
