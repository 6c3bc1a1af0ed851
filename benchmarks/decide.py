"""What the supervisor's decisions cost by themselves: its scheduler, with no rings, no processes and no other clock."""

import time
from collections.abc import Iterable
from itertools import islice

from mpworker.bench.measure import Benchmark, Measure, Round, Settings, Values
from mpworker.supervisor.effects import CLAIM_CLAIMED, OK
from mpworker.supervisor.places import Places
from mpworker.supervisor.registry import Function, Seat, Task, TaskOptions, Times

TASKS = 20_000
BATCH = 256  # come in before the next dispatch, as in the supervisor's loop
CHILDREN = 2
MORE_CHILDREN = (1, 8, 64)
SLOTS = 128
WARM_UP = 1_000
CALL_NS = 100  # so short that a child is given many ahead
PRIORITIES = 8


class NullEffects:
    """A world in which whatever is decided is done, at no cost, and every offer is answered when it is asked for."""

    def __init__(self) -> None:
        self.offers: list[tuple[Seat, int, int]] = []
        self.ended = 0

    def offer(self, seat: Seat, task: Task) -> None:
        self.offers.append((seat, task.slot, task.generation))

    def peek(self, _seat: Seat, _slot: int) -> tuple[int, int, float, int]:
        return 0, CLAIM_CLAIMED, 0.0, 0

    def revoke(self, _seat: Seat, _slot: int, _generation: int) -> bool:
        return False

    def beat(self, _seat: Seat) -> float:
        return 0.0

    def looked(self) -> None:
        pass

    def emit(self, _task: Task, _status: int, _payload: bytes) -> None:
        self.ended += 1


def decide(scheduler: Places, effects: NullEffects, tasks: Iterable[Task]) -> None:
    """Have these tasks come in, start and end."""
    coming = iter(tasks)
    while True:
        for task in islice(coming, BATCH):
            scheduler.submitted(task)
        scheduler.dispatch(0.0)
        if not effects.offers:
            return
        offers, effects.offers = effects.offers, []
        for seat, slot, generation in offers:
            scheduler.done(seat, slot, generation, OK, CALL_NS, b"", False, 0)


def measure(options: list[TaskOptions], limit: int | None, settings: Settings, children: int = CHILDREN) -> Values:
    """Nanoseconds of CPU time for each task."""
    effects = NullEffects()
    times = Times(lease_ttl=1e9, grace=1.0, start_timeout=1e9, kill_timeout=1e9)
    scheduler = Places(effects, times, lambda: 0.5)  # type: ignore[arg-type]  # no other effect is asked for here
    for number in range(children):
        seat = Seat(number, SLOTS)
        scheduler.child_starting(seat, 0.0)
        scheduler.child_ready(seat)
    for each in options:
        scheduler.options_known(each)
    if limit is not None:
        scheduler.configure_queue("default", 1, limit, None, 1, 0.0)
    function = Function(1, b"")

    def tasks(first: int, count: int) -> Iterable[Task]:
        return (Task(first + i, function, options[i % len(options)], b"") for i in range(count))

    decide(scheduler, effects, tasks(0, WARM_UP))
    count = settings.count(TASKS)
    before = time.process_time_ns()
    decide(scheduler, effects, tasks(WARM_UP, count))
    used = time.process_time_ns() - before
    assert effects.ended == WARM_UP + count, "a task has not ended"
    return {"cpu": used / count, "tasks": count / used * 1e9}


def take_round(settings: Settings) -> Round:
    plain = [TaskOptions()]
    return {
        "no-op": measure(plain, None, settings),
        "priorities": measure([TaskOptions(priority=each) for each in range(PRIORITIES)], None, settings),
        "max_running": measure(plain, 1_000_000, settings),
    } | {f"{children} children": measure(plain, None, settings, children) for children in MORE_CHILDREN}


BENCHMARK = Benchmark(
    "a task through the scheduler alone, with nothing around it",
    (Measure("cpu", "ns"), Measure("tasks", "/s", higher_is_better=True)),
    whole=take_round,
    base="no-op",
)
