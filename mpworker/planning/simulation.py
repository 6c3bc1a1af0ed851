"""One load on one pool in virtual time, and what came of it."""

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, nan
from typing import Final

from mpworker.planning.load import Job, Load, Pool
from mpworker.planning.world import World
from mpworker.supervisor.effects import CANCELLED, CRASHED, ERROR, EXITED, OK, UNSERIALIZABLE

WARM_UP: Final = 0.1  # of the jobs of a steady load: those that came first do not count
DEPTH_BINS: Final = 240
_FAILED: Final = (ERROR, EXITED, UNSERIALIZABLE, CRASHED)


@dataclass
class Outcome:
    """What came of a load.

    Attributes:
        n: Children.
        count: Jobs that count.
        latencies: Seconds from the arrival to the moment when the client knows, of jobs that ended with a result or an
            error of their own, sorted.
        waits: Seconds from the arrival to the first start, of jobs that started, sorted.
        statuses: Jobs by how they ended.
        missed: Jobs with a deadline that missed it.
        with_deadline: Jobs with a deadline.
        seconds: From the first arrival to the last end.
        busy: Seconds in which children had a task, all children together.
        used: Core seconds that were used.
        depth: Of each of DEPTH_BINS equal parts of `seconds` how many tasks waited, the mean and the most.
        begun_at: When attempts began.
    """

    n: int
    cores: float
    count: int = 0
    latencies: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    missed: int = 0
    with_deadline: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    used: float = 0.0
    depth: list[tuple[float, int]] = field(default_factory=list)
    begun_at: list[float] = field(default_factory=list)

    def latency(self, quantile: float) -> float:
        """A quantile of the latencies; not a number where there is none."""
        return quantile_of(self.latencies, quantile)

    def wait(self, quantile: float) -> float:
        """A quantile of the waits."""
        return quantile_of(self.waits, quantile)

    @property
    def throughput(self) -> float:
        """Tasks that ended with a result per second."""
        return self.statuses[OK] / self.seconds if self.seconds else nan

    @property
    def utilisation(self) -> float:
        """The part of their time in which children had a task."""
        return self.busy / (self.n * self.seconds) if self.seconds else nan

    @property
    def cores_used(self) -> float:
        """The part of the cores that was used."""
        return self.used / (self.cores * self.seconds) if self.seconds else nan

    @property
    def misses(self) -> float:
        """The part of the jobs with a deadline that missed it; 0 if none had one."""
        return self.missed / self.with_deadline if self.with_deadline else 0.0

    @property
    def failures(self) -> float:
        """The part of the jobs that ended with an error of their own."""
        return sum(self.statuses[status] for status in _FAILED) / max(1, self.count)

    @property
    def depth_max(self) -> int:
        """The most tasks that waited at once."""
        return max((most for _, most in self.depth), default=0)

    @property
    def depth_mean(self) -> float:
        """How many tasks waited, over time."""
        return sum(mean for mean, _ in self.depth) / max(1, len(self.depth))


def quantile_of(sorted_values: list[float], quantile: float) -> float:
    """A quantile by linear interpolation, as NumPy's default; not a number of nothing."""
    if not sorted_values:
        return nan
    place = quantile * (len(sorted_values) - 1)
    low = int(place)
    high = min(low + 1, len(sorted_values) - 1)
    return sorted_values[low] + (sorted_values[high] - sorted_values[low]) * (place - low)


class _Depth:
    """How many tasks wait, as a curve: kept as steps, and put into bins at the end."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, int]] = []

    def note(self, at: float, count: int) -> None:
        steps = self._steps
        if not steps or steps[-1][1] != count:
            steps.append((at, count))

    def bins(self, begin: float, end: float) -> list[tuple[float, int]]:
        """The mean and the most in each of DEPTH_BINS equal parts."""
        width = (end - begin) / DEPTH_BINS
        if width <= 0.0:
            return []
        sums, most = [0.0] * DEPTH_BINS, [0] * DEPTH_BINS
        steps = [*self._steps, (end, 0)]
        for (at, count), (until, _) in pairwise(steps):
            if not count or until <= begin:
                continue
            low, high = max(at, begin), min(until, end)
            first = min(int((low - begin) / width), DEPTH_BINS - 1)
            last = min(int((high - begin) / width), DEPTH_BINS - 1)
            for place in range(first, last + 1):
                left, right = begin + place * width, begin + (place + 1) * width
                sums[place] += count * max(0.0, min(high, right) - max(low, left))
                most[place] = max(most[place], count)
        return [(each / width, peak) for each, peak in zip(sums, most, strict=True)]


class Simulation:
    """A load on a pool.

    Args:
        load: The load.
        pool: The pool.
        seed: Of the random numbers that the scheduler asks for: the jitter of pauses between attempts.

    Raises:
        ValueError: A job would run for ever.
    """

    def __init__(self, load: Load, pool: Pool, seed: int = 0) -> None:
        for number, job in enumerate(load.jobs):
            endless = any(each.seconds == inf for each in job.attempts)
            if endless and job.options.timeout is None and job.deadline is None and job.cancel is None:
                raise ValueError(f"job {number} never ends")
        self._jobs = load.jobs
        self._pool = pool
        self._counts_from = int(WARM_UP * len(load.jobs)) if load.steady else 0
        self._world = World(pool, load.jobs, self, random.Random(seed).random)
        self._first: list[float] = [nan] * len(load.jobs)  # start of each
        self._ends: list[tuple[int, float] | None] = [None] * len(load.jobs)
        self._running = 0
        self._left = len(load.jobs)
        self._depth = _Depth()
        self._begun_at: list[float] = []

    # ------------------------------------------------------------ books

    def begun(self, key: int, at: float) -> None:
        """See `mpworker.planning.world.Books`."""
        if self._first[key] != self._first[key]:  # not a number yet
            self._first[key] = at
        self._begun_at.append(at)

    def ended(self, key: int, status: int, at: float) -> None:
        """See `mpworker.planning.world.Books`."""
        self._ends[key] = (status, at)
        self._left -= 1

    # ------------------------------------------------------------ the run

    def run(self) -> Outcome:
        """Carry the load to its end."""
        world, jobs = self._world, self._jobs
        scheduler = world.scheduler
        cancels = sorted((job.at + job.cancel, key) for key, job in enumerate(jobs) if job.cancel is not None)
        cancels.reverse()
        coming, count = 0, len(jobs)
        while self._left:
            at = world.next_at()
            arrives_at = jobs[coming].at if coming < count else inf
            cancels_at = cancels[-1][0] if cancels else inf
            at = min(at, arrives_at, cancels_at)
            world.move_to(at)
            while coming < count and jobs[coming].at <= at:
                world.submit(coming)
                coming += 1
            while cancels and cancels[-1][0] <= at:
                world.cancel(cancels.pop()[1])
            world.step()
            waiting = scheduler.unfinished_tasks() - scheduler.scheduled - len(world.cores)
            self._depth.note(at, max(0, waiting))
        return self._sum_up()

    def _sum_up(self) -> Outcome:
        pool, world = self._pool, self._world
        outcome = Outcome(pool.n, pool.cores)
        begin = self._jobs[0].at if self._jobs else 0.0
        last = begin
        for key, (job, end, first) in enumerate(zip(self._jobs, self._ends, self._first, strict=True)):
            assert end is not None
            status, at = end
            last = max(last, at)
            if key >= self._counts_from:
                self._count(outcome, job, status, at, first)
        outcome.latencies.sort()
        outcome.waits.sort()
        outcome.seconds = last - begin
        if self._counts_from:  # what counts is from there on
            outcome.seconds = last - self._jobs[self._counts_from].at
        share = outcome.seconds / (last - begin) if last > begin else 1.0
        outcome.busy = world.busy * share
        outcome.used = world.cores.used * share
        outcome.depth = self._depth.bins(begin, last)
        outcome.begun_at = self._begun_at
        return outcome

    def _count(self, outcome: Outcome, job: Job, status: int, at: float, first: float) -> None:
        outcome.count += 1
        outcome.statuses[status] += 1
        if job.deadline is not None:
            outcome.with_deadline += 1
            outcome.missed += at >= job.at + job.deadline
        if first == first:  # noqa: PLR0124  # a number
            outcome.waits.append(first - job.at)
        if status != CANCELLED:
            outcome.latencies.append(at - job.at + self._pool.costs.wake)  # which it took to come in, too
