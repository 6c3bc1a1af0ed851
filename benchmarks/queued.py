"""What a task costs that waits: memory of the supervisor, beyond the pickled call."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Benchmark, Measure, Settings, Target, Values, in_turn
from benchmarks.processes import pss_of
from benchmarks.tasks import noop
from mpworker import ProcessWorker, Task
from mpworker.ipc import payload

FEW, MANY = 1_000, 1_000_000
ORDERS = 8  # priorities, and queues

Submit = Callable[[ProcessWorker, int, int], object]  # tasks from this number up to that one


def plain(worker: ProcessWorker, start: int, stop: int) -> None:
    for number in range(start, stop):
        worker.submit(noop, number)


def ordered(worker: ProcessWorker, start: int, stop: int) -> None:
    views = [worker.options(queue=f"queue {number}", priority=number) for number in range(ORDERS)]
    for number in range(start, stop):
        views[number % ORDERS].submit(noop, number)


def keyed(worker: ProcessWorker, start: int, stop: int) -> None:
    views = [worker.options(concurrency_key=f"key {number}") for number in range(ORDERS)]
    for number in range(start, stop):
        views[number % ORDERS].submit(noop, number)


def late(worker: ProcessWorker, start: int, stop: int) -> None:
    for number in range(start, stop):
        worker.register_task(Task(noop, (number,), deadline=3_600.0))


def noted(worker: ProcessWorker, start: int, stop: int) -> None:
    for number in range(start, stop):
        worker.register_task(Task(noop, (number,), metadata={"tenant": "acme", "number": number}))


def named(worker: ProcessWorker, start: int, stop: int) -> None:
    for number in range(start, stop):
        worker.register_task(Task(noop, (number,), name=f"task {number}", metadata={"number": number}, deadline=3600.0))


def _pss_when_queued(worker: ProcessWorker) -> int:
    """The answer comes after all that was sent before."""
    worker.metrics()
    return pss_of(worker.processes()["supervisor"])


def _measure(submit: Submit) -> Callable[[Settings], Values]:
    def measure(settings: Settings) -> Values:
        few, many = settings.count(FEW), settings.count(MANY)
        worker = ProcessWorker(1, max_pending=many + 1)
        try:
            worker.submit(time.sleep, 3_600.0)  # the only child is busy
            submit(worker, 0, few)
            before = _pss_when_queued(worker)
            submit(worker, few, many)
            after = _pss_when_queued(worker)
        finally:
            worker.stop_now()
        calls = sum(_pickled(number) for number in range(few, many))
        return {"memory": (after - before - calls) / (many - few)}

    return measure


def _pickled(*args: Any) -> int:
    """Bytes of a call as they come to the supervisor, without what is said of the task."""
    return len(payload.dumps((args, {})))


BENCHMARK = Benchmark(
    "queued: memory of the supervisor for each task that waits, beyond its pickled call",
    (Measure("memory", "B", targets=(Target("submit", 500.0), Target("queue, priority", 500.0))),),
    in_turn(
        {
            "submit": _measure(plain),
            "queue, priority": _measure(ordered),
            "concurrency_key": _measure(keyed),
            "deadline": _measure(late),
            "metadata": _measure(noted),
            "name, metadata, deadline": _measure(named),
        }
    ),
    base="submit",
    rounds_max=1,
)
