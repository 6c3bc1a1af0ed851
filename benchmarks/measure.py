"""How a benchmark is described, and how its rounds are taken.

The speed of a shared machine drifts by more than most differences that matter. So the contenders take turns, A B C
A B C, and what is compared is the ratio within one round, not two averages. The median of these ratios says how the
contenders compare, and their quartiles how far to trust it.
"""

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Values: TypeAlias = dict[str, float]  # of one contender in one round, by the name of the measure
Round: TypeAlias = dict[str, Values]  # by contender


@dataclass(frozen=True)
class Settings:
    """What holds for every benchmark of a run.

    Attributes:
        n: Workers of each pool.
        scale: Factor on the number of tasks and the size of payloads.
        idle_seconds: How long idle pools are watched.
        soak_tasks: Tasks of a soak.
    """

    n: int = 2
    scale: float = 1.0
    idle_seconds: float = 60.0
    soak_tasks: int = 1_000_000

    def count(self, full: int) -> int:
        """That many tasks, scaled; at least four for each worker."""
        return max(4 * self.n, int(full * self.scale))


@dataclass(frozen=True)
class Target:
    """What a contender is meant to reach: this value, or this ratio to the value of `against`, or better."""

    contender: str
    bound: float
    against: str | None = None

    def reached(self, rounds: list[Round], measure: str) -> float | None:
        """The median of what it is about; None if no round says anything."""
        if self.against is None:
            found = values_of(rounds, self.contender, measure)
        else:
            found = ratios_of(rounds, self.contender, self.against, measure)
        return statistics.median(found) if found else None


@dataclass(frozen=True)
class Measure:
    """One figure of a benchmark."""

    name: str
    unit: str
    higher_is_better: bool = False
    targets: tuple[Target, ...] = ()

    def meets(self, target: Target, reached: float) -> bool:
        """Is this good enough?"""
        return reached >= target.bound if self.higher_is_better else reached <= target.bound


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        title: What it does, in a line.
        measures: What it finds out.
        take_round: Runs every contender once.
        base: Each contender's value is compared with this one's; None compares mpworker's with each other's.
        rounds_max: No more rounds than this, where one takes long.
    """

    title: str
    measures: tuple[Measure, ...]
    take_round: Callable[[Settings], Round]
    base: str | None = None
    rounds_max: int | None = None


def in_turn(contenders: dict[str, Callable[[Settings], Values]]) -> Callable[[Settings], Round]:
    """A round in which one contender runs after the other, each with a pool of its own."""

    def take_round(settings: Settings) -> Round:
        taken: Round = {}
        for name, run in contenders.items():
            gc.collect()  # what the one before left behind is not this one's cost
            taken[name] = run(settings)
        return taken

    return take_round


@dataclass(frozen=True)
class Spread:
    """The median of some values and their quartiles."""

    low: float
    median: float
    high: float


def spread(values: list[float]) -> Spread:
    """The spread of one value or more."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


def values_of(rounds: list[Round], contender: str, measure: str) -> list[float]:
    """What a contender reached, round by round."""
    return [taken[contender][measure] for taken in rounds]


def ratios_of(rounds: list[Round], contender: str, to: str, measure: str) -> list[float]:
    """A contender's value divided by another's in the same round. A round in which the other's is 0 says nothing."""
    return [taken[contender][measure] / taken[to][measure] for taken in rounds if taken[to][measure]]
