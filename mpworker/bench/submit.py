"""Many small tasks: one `submit` for each, then the result of each."""

import time

from mpworker.bench.measure import Benchmark, Measure, Settings, Target, Values
from mpworker.bench.peers import EXECUTOR, MPWORKER, POOL, opened
from mpworker.bench.processes import cpu_used
from mpworker.bench.tasks import noop

TASKS = 20_000
WARM_UP = 2_000
FIRST = 200  # tasks, which tell how fast a contender is
SECONDS = 2.0


def run(contender: str, settings: Settings) -> Values:
    with opened(contender, settings.n) as pool:
        pool.gather(noop, settings.n)
        begun = time.perf_counter()
        pool.gather(noop, settings.count(FIRST))
        speed = settings.count(FIRST) / (time.perf_counter() - begun)
        pool.gather(noop, settings.fit(WARM_UP, speed, SECONDS / 10))
        tasks = settings.fit(TASKS, speed, SECONDS)
        with cpu_used() as cpu:
            begun = time.perf_counter()
            pool.gather(noop, tasks)
            seconds = time.perf_counter() - begun
    return {"tasks": tasks / seconds, "cpu": cpu.seconds * 1e6 / tasks}


BENCHMARK = Benchmark(
    "one submit per no-op task, then each result; and CPU time of a task in all processes",
    (
        Measure(
            "tasks",
            "/s",
            higher_is_better=True,
            targets=(Target(MPWORKER, 20.0, EXECUTOR), Target(MPWORKER, 7.0, POOL)),
        ),
        Measure("cpu", "us"),
    ),
    run,
)
