"""Many simulations: how many children a load needs, how sure that is, what a rate does, and how many machines."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, isnan
from typing import Final, TypeAlias

from mpworker.planning.load import Load, Pool
from mpworker.planning.simulation import Outcome, Simulation

N_MAX: Final = 128
_GRID: Final = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
_KNEE: Final = 1.1  # times the best p95: more children than for that gain little
_FLAT: Final = 1.02  # times the least, of the p95 of several steps
_CROWD: Final = 4  # children for each core
_RATES: Final = (0.8, 1.0, 1.2, 2.0)  # times the mean rate of arrivals
_NODE_STEPS: Final = 7  # bisections of how much one machine carries
_BUSY_MAX: Final = 0.8  # of its cores, where nothing is said of how late a task may be
_NODE_FACTOR: Final = 64.0  # no more than so many times the load, or so small a part of it, is tried
_LOADS: Final = (1, 2, 5, 10)  # times the load, of which the machines are told


@dataclass(frozen=True)
class Targets:
    """What is asked for.

    Attributes:
        p95: Seconds from arrival to outcome that 95 of 100 tasks may take at most, None for no such target.
        misses: The part of tasks with a deadline that may miss it, None for no such target.
    """

    p95: float | None = None
    misses: float | None = None

    def __bool__(self) -> bool:
        return self.p95 is not None or self.misses is not None

    def met(self, outcome: Outcome) -> bool:
        """Is this good enough?"""
        if self.p95 is not None and not outcome.latency(0.95) <= self.p95:
            return False
        return self.misses is None or outcome.misses <= self.misses


@dataclass(frozen=True)
class Point:
    """What so many children come to.

    Attributes:
        outcome: Of the load itself.
        again: Of replications: other arrivals and times of the same kind.
        met: In how many of all these the targets are met.
        overloaded: More work comes than can be done: what waits grows for as long as that lasts.
    """

    outcome: Outcome
    again: tuple[Outcome, ...]
    met: int
    overloaded: bool

    @property
    def n(self) -> int:
        """How many children."""
        return self.outcome.n

    @property
    def runs(self) -> int:
        """How many simulations this is."""
        return 1 + len(self.again)

    def spread(self, of: Callable[[Outcome], float]) -> tuple[float, float]:
        """The least and the most of a figure in all of them."""
        values = [value for value in map(of, (self.outcome, *self.again)) if not isnan(value)]
        return (min(values), max(values)) if values else (inf, inf)


@dataclass(frozen=True)
class RateRow:
    """What a limit of starts does.

    Attributes:
        rate: Starts per second, None for no limit.
        burst: Starts at once.
        busiest: The most starts in any tenth of a second.
    """

    rate: float | None
    burst: int
    outcome: Outcome
    busiest: int


@dataclass
class Plan:
    """All that was found.

    Attributes:
        points: By the number of children.
        chosen: How many children: the least that meet the targets; without targets, or where none does, those beyond
            which more gain little.
        met: Are the targets met with them?
        with_cores: How many would meet them if each had a core of its own; None if none does, or that was not asked.
        rates: With the chosen number.
        node_n: Children of one machine: the chosen number, or one for each of its cores.
        node_load: How many times the load one machine carries within the targets, or at 80 % of its cores.
        nodes: By the factor on the load, how many machines.
    """

    load: Load
    pool: Pool
    targets: Targets
    points: dict[int, Point] = field(default_factory=dict)
    chosen: int = 0
    met: bool = False
    with_cores: int | None = None
    rates: list[RateRow] = field(default_factory=list)
    node_n: int = 0
    node_load: float = 0.0
    nodes: dict[int, int] = field(default_factory=dict)

    @property
    def point(self) -> Point:
        """That of the chosen number."""
        return self.points[self.chosen]


Case: TypeAlias = tuple[Load, Pool]


def simulated(case: Case) -> Outcome:
    """What comes of a load in a pool."""
    return Simulation(*case).run()


def one_by_one(cases: Sequence[Case]) -> Iterable[Outcome]:
    """Simulate each, in this process."""
    return map(simulated, cases)


class Study:
    """The search for a plan.

    Args:
        loads: Makes the load (0) and replications of it (1 and up).
        pool: The pool, but for its n.
        targets: What is asked for.
        low: The fewest children.
        high: The most.
        replications: How many.
        every: Look at each number of children between these, and not only at some.
        told: Is called with each simulation that has been made.
        simulate: Makes several, which do not depend on each other, and gives their outcomes in order.
    """

    def __init__(
        self,
        loads: Callable[[int], Load],
        pool: Pool,
        targets: Targets,
        low: int = 1,
        high: int = N_MAX,
        replications: int = 4,
        every: bool = False,
        told: Callable[[], None] = lambda: None,
        simulate: Callable[[Sequence[Case]], Iterable[Outcome]] = one_by_one,
    ) -> None:
        self._loads = [loads(seed) for seed in range(replications + 1)]
        self._pool = pool
        self._targets = targets
        self._low, self._high = low, high
        self._every = every
        self._told = told
        self._simulate = simulate

    def plan(self) -> Plan:
        """Make the plan."""
        plan = Plan(self._loads[0], self._pool, self._targets)
        numbers = range(self._low, self._high + 1) if self._every else sorted({*_GRID, self._low, self._high})
        for n in numbers:
            if self._low <= n <= self._high:
                plan.points[n] = self._point(n)
                if not self._every and self._enough(plan):
                    break
        plan.met = self._search(plan)
        if self._targets and not plan.met:
            plan.with_cores = self._with_a_core_each()
        plan.rates = self._rates(plan)
        self._count_nodes(plan)
        return plan

    # ------------------------------------------------------------ children

    def _run(self, load: Load, pool: Pool) -> Outcome:
        (outcome,) = self._run_all([(load, pool)])
        return outcome

    def _run_all(self, cases: Sequence[Case]) -> list[Outcome]:
        outcomes = []
        for outcome in self._simulate(cases):
            outcomes.append(outcome)
            self._told()
        return outcomes

    def _point(self, n: int) -> Point:
        pool = replace(self._pool, n=n)
        load = self._loads[0]
        overloaded = load.seconds > 0 and load.work / load.seconds > min(n, self._pool.cores)
        cases = [(each, pool) for each in self._loads]
        outcomes = self._run_all(cases[:1] if overloaded else cases)
        if overloaded and self._targets and self._targets.met(outcomes[0]):
            outcomes += self._run_all(cases[1:])  # else how bad it is need not be known so well
        met = sum(map(self._targets.met, outcomes))
        return Point(outcomes[0], tuple(outcomes[1:]), met, overloaded)

    def _enough(self, plan: Plan) -> bool:
        """Do more children gain nothing any more? Some steps beyond that are shown."""
        last = list(plan.points.values())[-4:]
        if len(last) < 4:
            return False
        p95s = [point.outcome.latency(0.95) for point in last]
        flat = max(p95s) <= _FLAT * min(p95s)
        crowded = last[0].n >= _CROWD * self._pool.cores  # they only share what there is
        if self._targets and not all(map(self._is_sure, last[1:])):
            return crowded
        return flat or crowded or len(plan.points) >= len(_GRID) // 2

    def _search(self, plan: Plan) -> bool:
        if self._targets:
            good = [n for n in sorted(plan.points) if self._is_sure(plan.points[n])]
            if good:
                plan.chosen = self._between(plan, good[0])
                return True
        p95s = {n: point.outcome.latency(0.95) for n, point in plan.points.items()}
        best = min(p95s.values())
        plan.chosen = next((n for n in sorted(p95s) if p95s[n] <= _KNEE * best), max(p95s))
        return False

    @staticmethod
    def _is_sure(point: Point) -> bool:
        return point.met == point.runs

    def _between(self, plan: Plan, good: int) -> int:
        """The least number that is good, of those since the last one that is not."""
        bad = max((n for n in plan.points if n < good), default=good - 1)
        while good - bad > 1:
            middle = (good + bad) // 2
            plan.points[middle] = self._point(middle)
            if self._is_sure(plan.points[middle]):
                good = middle
            else:
                bad = middle
        plan.points = dict(sorted(plan.points.items()))
        return good

    def _with_a_core_each(self) -> int | None:
        """How many would do if cores were no matter."""
        low, high = self._low - 1, self._high

        def good(n: int) -> bool:
            return self._targets.met(self._run(self._loads[0], replace(self._pool, n=n, cores=float(n))))

        if not good(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if good(middle) else (middle, high)
        return high

    # ------------------------------------------------------------ rates

    def _rates(self, plan: Plan) -> list[RateRow]:
        n = plan.chosen
        pool = replace(self._pool, n=n, rate=None, burst=None)
        mean = plan.load.rate if plan.load.seconds > 0 else plan.point.outcome.throughput
        limits: list[tuple[float | None, int]] = [(None, n)]
        if self._pool.rate is not None:
            limits.append((self._pool.rate, self._pool.burst or n))
        if mean > 0:  # some task has begun at all
            limits += [(mean * factor, burst) for factor in _RATES for burst in sorted({1, n, 10 * n})]
        pools = [replace(pool, rate=rate, burst=burst if rate is not None else None) for rate, burst in limits]
        outcomes = self._run_all([(plan.load, each) for each in pools])
        return [
            RateRow(rate, burst, outcome, _busiest(outcome.begun_at))
            for (rate, burst), outcome in zip(limits, outcomes, strict=True)
        ]

    # ------------------------------------------------------------ machines

    def _count_nodes(self, plan: Plan) -> None:
        """How much one machine carries, by bisection; and so how many carry more, if each gets an equal part."""
        plan.node_n = max(plan.chosen, min(self._high, int(self._pool.cores)))
        pool = replace(self._pool, n=plan.node_n)

        def carries(factor: float) -> bool:
            load = plan.load.times(factor)
            # What it does in the end, but never as fast as it comes, only a short load can be late enough to allow.
            part = load.work / load.seconds / min(pool.n, pool.cores) if load.seconds > 0 else None
            if self._targets:
                return (part is None or part <= 1.0) and self._targets.met(self._run(load, pool))
            return part is not None and part <= _BUSY_MAX

        low, high = 1.0 / _NODE_FACTOR, _NODE_FACTOR
        if not carries(low):
            return
        for _ in range(_NODE_STEPS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if carries(middle) else (low, middle)
        plan.node_load = low
        plan.nodes = {factor: ceil(factor / low - 1e-9) for factor in _LOADS}


def _busiest(times: list[float], span: float = 0.1) -> int:
    """The most of these times in any such span."""
    most = first = 0
    times = sorted(times)
    for last, at in enumerate(times):
        while times[first] <= at - span:
            first += 1
        most = max(most, last - first + 1)
    return most
