"""What a task costs that waits: memory of the supervisor, beyond its payload."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from mpworker import ProcessWorker, Task
from mpworker.bench.measure import Benchmark, Measure, Settings, Target, Values, variants
from mpworker.bench.processes import pss_of
from mpworker.bench.tasks import noop
from mpworker.ipc import details, payload

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


def scheduled(worker: ProcessWorker, start: int, stop: int) -> None:
    for number in range(start, stop):
        worker.register_task_after(3_600.0, Task(noop, (number,)))


def identified(worker: ProcessWorker, start: int, stop: int) -> None:
    for number in range(start, stop):
        worker.register_task(Task(noop, (number,), id=f"task {number}"))


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
            with _said() as said:
                submit(worker, few, many)
            after = _pss_when_queued(worker)
        finally:
            worker.stop_now()
        calls = sum(_pickled(number) for number in range(few, many))
        return {"memory": (after - before - calls - said()) / (many - few)}

    return measure


@contextmanager
def _said() -> Iterator[Callable[[], int]]:
    """How many bytes of payloads say something of a task besides its call."""
    total, pack = 0, details.pack

    def counted(said: dict[str, Any]) -> bytes:
        nonlocal total
        data = pack(said)
        total += len(data)
        return data

    with patch.object(details, "pack", counted):
        yield lambda: total


def _pickled(*args: Any) -> int:
    """Bytes of a call as they come to the supervisor, without what is said of the task."""
    return len(payload.dumps((args, {})))


KINDS: dict[str, Submit] = {
    "submit": plain,
    "queue, priority": ordered,
    "concurrency_key": keyed,
    "deadline": late,
    "run_at": scheduled,
    "id": identified,
    "metadata": noted,
    "name, metadata, deadline": named,
}

BENCHMARK = Benchmark(
    "memory of the supervisor for each task that waits, beyond its payload",
    (Measure("memory", "B", targets=tuple(Target(name, 500.0) for name in KINDS)),),
    variants({name: _measure(submit) for name, submit in KINDS.items()}),
    contenders=tuple(KINDS),
    base="submit",
    rounds_max=1,
)
