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
    """

    n: int = 2
    scale: float = 1.0
    idle_seconds: float = 60.0

    def count(self, full: int) -> int:
        """That many tasks, scaled; at least four for each worker."""
        return max(4 * self.n, int(full * self.scale))


@dataclass(frozen=True)
class Target:
    """What mpworker is meant to reach: `ratio` times the value of `against`, or better."""

    against: str
    ratio: float


@dataclass(frozen=True)
class Measure:
    """One figure of a benchmark."""

    name: str
    unit: str
    higher_is_better: bool = False
    target: Target | None = None

    def meets(self, ratio: float) -> bool:
        """Is this ratio to the target's contender good enough?"""
        assert self.target is not None
        return ratio >= self.target.ratio if self.higher_is_better else ratio <= self.target.ratio


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        title: What it does, in a line.
        measures: What it finds out.
        take_round: Runs every contender once.
        rounds_max: No more rounds than this, where one takes long.
    """

    title: str
    measures: tuple[Measure, ...]
    take_round: Callable[[Settings], Round]
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
