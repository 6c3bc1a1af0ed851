"""Many calls of one function: a submit for each, and all by one `submit_many`."""

import time
from collections.abc import Callable
from typing import Final

from mpworker import ProcessWorker, TaskFuture
from mpworker.bench.measure import Benchmark, Measure, Settings, Values, variants
from mpworker.bench.processes import own_usage
from mpworker.bench.tasks import noop

TASKS = 20_000
WARM_UP = 2_000

Submit = Callable[[ProcessWorker, int], list[TaskFuture[None]]]


def one_by_one(worker: ProcessWorker, tasks: int) -> list[TaskFuture[None]]:
    return [worker.submit(noop, number) for number in range(tasks)]


def together(worker: ProcessWorker, tasks: int) -> list[TaskFuture[None]]:
    return worker.submit_many(noop, range(tasks))


def _measure(submit: Submit) -> Callable[[Settings], Values]:
    def measure(settings: Settings) -> Values:
        tasks = settings.count(TASKS)
        with ProcessWorker(settings.n) as worker:
            for future in submit(worker, settings.count(WARM_UP)):
                future.result()
            before, begun = own_usage(), time.perf_counter()
            futures = submit(worker, tasks)
            used = own_usage() - before
            for future in futures:
                future.result()
            seconds = time.perf_counter() - begun
        return {"submit": used.cpu_ns / 1e3 / tasks, "tasks": tasks / seconds}

    return measure


CONTENDERS: Final[dict[str, Callable[[Settings], Values]]] = {
    "submit": _measure(one_by_one),
    "submit_many": _measure(together),
}
BENCHMARK = Benchmark(
    "many: the submissions of no-op tasks, CPU time of the client for each, and all with their results",
    (Measure("submit", "us"), Measure("tasks", "/s", higher_is_better=True)),
    variants(CONTENDERS),
    contenders=tuple(CONTENDERS),
    base="submit",
)
