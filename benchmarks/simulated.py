"""What the scheduler's decisions cost, and how tasks fare by them, with many children and tasks: in virtual time.

The supervisor's scheduler has the children and the clock of the capacity planner. The machine's cores do not matter
then, nor who else uses them, and each child has a core of its own. Two things are found out:

- How much CPU time a task takes of whoever decides: that is real, and measured around each turn of the supervisor.
  What these decisions lead to in the simulated world is kept until the turn is over, and is not in it.
- How much longer than unavoidable a task takes from its arrival to its result: its latency, divided by the one that it
  has in a pool which costs nothing, where whatever child is free begins at once what is first in line. Of these ratios
  it is the 99th percentile. It grows when a child idles while tasks wait, when one waits behind another although a
  child is free, and when the order is not kept. It depends on nothing but decisions: each run gives the same.

A call computes 20 ms on average and 60 ms at the 95th percentile of a lognormal distribution, as calls do that are of
one kind and not of one size. That is so long that the supervisor has a turn for almost each answer, even of 64
children: what it does for each child in each turn is in the time of each task. In a backlog all tasks wait before the
first child is ready, and latency counts from there: every child is busy to the end. Arrivals come at random times, at
80 % of what the children can do.
"""

import gc
import heapq
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from benchmarks.decide import NullEffects
from mpworker.bench.backlog import SIZES, curves, grown, p99
from mpworker.bench.measure import Benchmark, Settings, Values
from mpworker.planning.described import service
from mpworker.planning.load import Attempt, Costs, Job, Pool
from mpworker.planning.world import SLOTS, World
from mpworker.supervisor.places import Places
from mpworker.supervisor.registry import Function, Seat, Task, TaskOptions, Times

CHILDREN: Final = (1, 2, 4, 8, 16, 32, 64)
TASKS: Final = 20_000  # for each number of children, and so many at least for each number of tasks that wait
CHILDREN_OF_BACKLOG: Final = 8
SERVICE: Final = "lognormal:0.02,0.06"
LOAD: Final = 0.8  # of arrivals
PRIORITIES: Final = 8
SEED: Final = 1
KINDS: Final = {"time": "us", "p99": "x", "memory": "B"}

FIFO, IN_ORDER, ARRIVALS = "FIFO", "in order", "arrivals"
OPTIONS: Final = {
    FIFO: [TaskOptions()],
    IN_ORDER: [TaskOptions(queue="other", priority=each) for each in range(PRIORITIES)],
    ARRIVALS: [TaskOptions()],
}


class Clocked(World):
    """A world that tells how much CPU time the supervisor's turns take, without what they lead to in it.

    Attributes:
        cpu_ns: Of all turns so far.
        turns: How many these were.
        ends: When each job ended.
    """

    def __init__(self, pool: Pool, jobs: Sequence[Job]) -> None:
        self.cpu_ns = self.turns = 0
        self.ends = [inf] * len(jobs)
        self._offered: list[tuple[Seat, Task]] = []
        self._emitted: list[tuple[Task, int, bytes]] = []
        super().__init__(pool, jobs, self, lambda: 0.5)

    def begun(self, key: int, at: float) -> None:
        pass

    def ended(self, key: int, _status: int, at: float) -> None:
        self.ends[key] = at

    def _turn(self, now: float) -> None:
        begun = time.thread_time_ns()
        super()._turn(now)
        self.cpu_ns += time.thread_time_ns() - begun
        self.turns += 1
        self._carry_out()

    def _carry_out(self) -> None:
        offered, self._offered = self._offered, []
        emitted, self._emitted = self._emitted, []
        for seat, task in offered:
            super().offer(seat, task)
        for outcome in emitted:
            super().emit(*outcome)

    def offer(self, seat: Seat, task: Task) -> None:
        self._offered.append((seat, task))

    def emit(self, task: Task, status: int, payload: bytes) -> None:
        self._emitted.append((task, status, payload))

    def revoke(self, seat: Seat, slot: int, generation: int) -> bool:
        self._carry_out()
        return super().revoke(seat, slot, generation)

    def peek(self, seat: Seat, slot: int) -> tuple[int, int, float, int]:
        self._carry_out()
        return super().peek(seat, slot)


def carry(pool: Pool, jobs: Sequence[Job]) -> Clocked:
    """Have a pool do all jobs, which are in the order of their arrivals."""
    world = Clocked(pool, jobs)
    coming, count = 0, len(jobs)
    while coming < count or world.scheduler.unfinished():
        world.move_to(min(world.next_at(), jobs[coming].at if coming < count else inf))
        while coming < count and jobs[coming].at <= world.now:
            world.submit(coming)
            coming += 1
        world.step()
    return world


def unavoidable(jobs: Sequence[Job], children: int) -> list[float]:
    """When each job ends in a pool that costs nothing: a child that is free begins what is first in line."""
    ends = [inf] * len(jobs)
    free_at = [0.0] * children
    line: list[tuple[int, int]] = []
    coming = 0
    for _ in jobs:
        now = free_at[0]
        if not line and jobs[coming].at > now:
            now = jobs[coming].at
        while coming < len(jobs) and jobs[coming].at <= now:
            heapq.heappush(line, (jobs[coming].options.priority, coming))
            coming += 1
        _, number = heapq.heappop(line)
        ends[number] = now + jobs[number].attempts[0].seconds
        heapq.heapreplace(free_at, ends[number])
    return ends


def jobs_of(kind: str, tasks: int, children: int) -> list[Job]:
    """So many jobs of a contender; the same ones in each run."""
    chance, described, options = random.Random(SEED), service(SERVICE), OPTIONS[kind]
    rate = LOAD * children / described.mean
    at, jobs = 0.0, []
    for number in range(tasks):
        jobs.append(Job(at, (Attempt(described.draw(chance)),), options[number % len(options)]))
        if kind == ARRIVALS:
            at += chance.expovariate(rate)
    return jobs


def memory(kind: str, tasks: int, children: int) -> float:
    """Bytes that the scheduler takes for each of so many tasks that wait, with what its children take of it."""
    effects, options, function = NullEffects(), OPTIONS[kind], Function(1, b"")
    times = Times(lease_ttl=1e9, grace=1.0, start_timeout=1e9, kill_timeout=1e9)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        scheduler = Places(effects, times, lambda: 0.5)  # type: ignore[arg-type]  # no other effect is asked for here
        for number in range(children):
            seat = Seat(number, SLOTS)
            scheduler.child_starting(seat, 0.0)
            scheduler.child_ready(seat)
        for each in options:
            scheduler.options_known(each)
        for number in range(tasks):
            scheduler.submitted(Task(number, function, options[number % len(options)], b"", 0, 0, 10**15 + number))
        scheduler.dispatch(0.0)
        return (tracemalloc.get_traced_memory()[0] - before) / tasks
    finally:
        tracemalloc.stop()


def clock_ns() -> float:
    """What it takes to look at the clock, which is in the time of each turn once."""
    looks = 10_000
    begun = time.thread_time_ns()
    for _ in range(looks):
        time.thread_time_ns()
    return (time.thread_time_ns() - begun) / looks


def point(kind: str, tasks: int, children: int, enough: int = 0) -> Values:
    """What a task costs, of so many at a time, repeated until there have been enough."""
    jobs = jobs_of(kind, tasks, children)
    ends = unavoidable(jobs, children)
    begin = 0.0 if kind == ARRIVALS else 1.0 + 2 * tasks * Costs.decide  # all of them wait by then
    pool = Pool(children, children, start=begin)
    gc.disable()  # as in the supervisor
    try:
        worlds = [carry(pool, jobs) for _ in range(max(1, enough // tasks))]
    finally:
        gc.enable()
    look_ns = clock_ns()
    cpu_ns = sum(world.cpu_ns - world.turns * look_ns for world in worlds)
    slower = [
        (ended - begin - job.at) / (best - job.at) for job, ended, best in zip(jobs, worlds[0].ends, ends, strict=True)
    ]
    return {"time": cpu_ns / 1e3 / (tasks * len(worlds)), "p99": p99(slower), "memory": memory(kind, tasks, children)}


def curve(
    xs: Sequence[int], said: str, at: Callable[[str, Settings, int], Values]
) -> Callable[[str, Settings], Values]:
    """The `run` of a benchmark that has a point at each x."""

    def run(kind: str, settings: Settings) -> Values:
        points = [at(kind, settings, x) for x in xs]
        values = {f"{name}, {x:,} {said}": found[name] for x, found in zip(xs, points, strict=True) for name in KINDS}
        return values | grown(points, len(xs))

    return run


def with_children(kind: str, settings: Settings, children: int) -> Values:
    return point(kind, settings.count(TASKS), children)


def with_backlog(kind: str, settings: Settings, tasks: int) -> Values:
    return point(kind, settings.count(tasks), CHILDREN_OF_BACKLOG, settings.count(TASKS))


CHILDREN_BENCHMARK = Benchmark(
    "the scheduler in virtual time with more children: CPU time of its decisions on a task; p99 of how many times "
    "longer than unavoidable a task takes; memory of a task that waits",
    curves(CHILDREN, KINDS, "children", "children", tuple(OPTIONS)),
    curve(CHILDREN, "children", with_children),
    contenders=tuple(OPTIONS),
    base=FIFO,
    rounds_max=5,
)
BACKLOG_BENCHMARK = Benchmark(
    f"the scheduler in virtual time while more tasks wait for {CHILDREN_OF_BACKLOG} children: the same three",
    curves(SIZES, KINDS, "wait", "tasks that wait", (FIFO, IN_ORDER)),
    curve(SIZES, "wait", with_backlog),
    contenders=(FIFO, IN_ORDER),
    base=FIFO,
    rounds_max=3,
)
