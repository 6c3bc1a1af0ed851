"""What each feature costs a task that does nothing: CPU time of client, supervisor and children together."""

import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from benchmarks.profile_tasks import usage_by_role
from mpworker import ProcessWorker, QueueOptions, Retention, Task, TaskFuture
from mpworker.bench.measure import Benchmark, Measure, Settings, Values, variants
from mpworker.bench.tasks import noop

TASKS = 10_000
WARM_UP = 1_000
FAR = 1_000_000  # a bound that nothing comes near
_NUMBERS = itertools.count()

Submit = Callable[[ProcessWorker, int], list[TaskFuture[Any]]]


def submitted(worker: ProcessWorker, tasks: int, **options: Any) -> list[TaskFuture[Any]]:
    """By `submit`, with these options."""
    submit = (worker.options(**options) if options else worker).submit
    return [submit(noop) for _ in range(tasks)]


def registered(worker: ProcessWorker, tasks: int, **options: Any) -> list[TaskFuture[Any]]:
    """By `register_task`, with these options."""
    task = Task(noop, **options)
    return [worker.register_task(task) for _ in range(tasks)]


def keyed(worker: ProcessWorker, tasks: int) -> list[TaskFuture[Any]]:
    """Each with an idempotency key that was never used."""
    return [worker.register_task(Task(noop, idempotency_key=f"{next(_NUMBERS)}")) for _ in range(tasks)]


def _measure(submit: Submit, **options: Any) -> Callable[[Settings], Values]:
    def measure(settings: Settings) -> Values:
        with ProcessWorker(settings.n, **options) as worker:
            return _usage(worker, submit, settings)

    return measure


def _subscribed(settings: Settings) -> Values:
    with ProcessWorker(settings.n) as worker, worker.subscribe_results(FAR) as results:

        def submit(worker: ProcessWorker, tasks: int) -> list[TaskFuture[Any]]:
            futures = submitted(worker, tasks)
            for _ in itertools.islice(results, tasks):
                pass
            return futures

        return _usage(worker, submit, settings)


def _recorded(settings: Settings) -> Values:
    with tempfile.NamedTemporaryFile() as trace, ProcessWorker(settings.n, record=trace.name) as worker:
        return _usage(worker, submitted, settings)


def _usage(worker: ProcessWorker, submit: Submit, settings: Settings) -> Values:
    def gather(tasks: int) -> None:
        for future in submit(worker, tasks):
            future.result()

    gather(settings.count(WARM_UP))
    tasks = settings.count(TASKS)
    before = usage_by_role(worker)
    gather(tasks)
    after = usage_by_role(worker)
    used = {role: (after[role] - before[role]).cpu_ns / 1e3 / tasks for role in after}
    return {"all": sum(used.values())} | used


CONTENDERS: Final[dict[str, Callable[[Settings], Values]]] = {
    "none": _measure(submitted),
    "timeout": _measure(submitted, timeout=3_600.0),
    "a second queue, unused": _measure(submitted, queues={"other": 1}),
    "queue, priority": _measure(partial(submitted, queue="other", priority=1)),
    "rate": _measure(submitted, rate=float(FAR), burst=FAR),
    "max_running": _measure(submitted, queues={"default": QueueOptions(max_running=FAR)}),
    "concurrency_key": _measure(partial(submitted, concurrency_key="key", concurrency=FAR)),
    "Retention(max_entries)": _measure(submitted, retention=Retention(max_entries=FAR)),
    "Retention(results)": _measure(submitted, retention=Retention(results=True)),
    "Retention(ttl)": _measure(submitted, retention=Retention(ttl=3_600.0)),
    "subscribe_results": _subscribed,
    "record": _recorded,
    "register_task": _measure(registered),
    "deadline": _measure(partial(registered, deadline=3_600.0)),
    "metadata": _measure(partial(registered, metadata={"tenant": "acme"})),
    "idempotency_key": _measure(keyed),
}
BENCHMARK = Benchmark(
    "CPU time of a no-op task while one feature is used, against none",
    tuple(Measure(role, "us") for role in ("all", "client", "supervisor", "children")),
    variants(CONTENDERS),
    contenders=tuple(CONTENDERS),
    base="none",
)
