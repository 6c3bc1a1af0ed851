"""How a benchmark is described, and what its rounds come to.

The speed of a shared machine drifts by more than most differences that matter. So the contenders take turns, A B C
B C A, and what is compared is the ratio within one round, not two averages. The median of these ratios says how the
contenders compare, and their quartiles how far to trust it.
"""

import gc
import importlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

Values: TypeAlias = dict[str, float]  # of one contender in one round, by the name of the measure
Round: TypeAlias = dict[str, Values]  # by contender

SECONDS_MAX: Final = 900.0  # of a turn


class NotOffered(Exception):
    """A contender has no way to do what a benchmark asks; the text says what it lacks."""


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

    def fit(self, full: int, per_second: float, seconds: float) -> int:
        """That many tasks, scaled, or what a slow contender does in so many seconds if that is less."""
        return min(self.count(full), max(4 * self.n, int(per_second * seconds)))


@dataclass(frozen=True)
class Target:
    """What a contender is meant to reach: this value, or this ratio to the value of `against`, or better."""

    contender: str
    bound: float
    against: str | None = None

    def reached(self, rounds: Sequence[Round], measure: str) -> list[float]:
        """What it is about, in each round that says something."""
        if self.against is None:
            return values_of(rounds, self.contender, measure)
        return ratios_of(rounds, self.contender, self.against, measure)


@dataclass(frozen=True)
class Measure:
    """One figure of a benchmark.

    Attributes:
        name: Of the figure.
        unit: Of its values.
        higher_is_better: Else lower is.
        targets: What is to be reached.
        fact: It is neither good nor bad, and only told.
        series: Measures with the same one are points of one curve.
        x: Where on that curve this is.
        x_is: What x is, with its unit.
    """

    name: str
    unit: str
    higher_is_better: bool = False
    targets: tuple[Target, ...] = ()
    fact: bool = False
    series: str = ""
    x: float = 0.0
    x_is: str = ""

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        return "" if self.fact else f"{'higher' if self.higher_is_better else 'lower'} is better"

    def meets(self, target: Target, reached: float) -> bool:
        """Is this good enough?"""
        return reached >= target.bound if self.higher_is_better else reached <= target.bound


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        title: What it does, in a line.
        measures: What it finds out. A contender may leave some out.
        run: One contender's turn. What it raises ends that turn and no other; `NotOffered` is no failure.
        contenders: Who takes part; None for this pool and its peers.
        also: Who takes part besides.
        together: All contenders have their turns at the same time.
        base: Each contender's value is compared with this one's; None compares mpworker's with each other's.
        rounds_max: No more rounds than this, where one takes long.
        whole: In place of `run`, the turns of all who take part, where they have to alternate more finely.
        seconds_max: A turn that takes longer is ended, and has failed.
        talks: What it says while it runs is shown.
    """

    title: str
    measures: tuple[Measure, ...]
    run: Callable[[str, Settings], Values] | None = None
    contenders: tuple[str, ...] | None = None
    also: tuple[str, ...] = ()
    together: bool = False
    base: str | None = None
    rounds_max: int | None = None
    whole: Callable[[Settings], Round] | None = None
    seconds_max: float = SECONDS_MAX
    talks: bool = False

    def turn(self, contender: str | None, settings: Settings) -> Round:
        """What one turn measures: of a contender, or, for None, of all."""
        gc.collect()  # what was imported is not collected at the expense of what is measured
        if contender is None:
            assert self.whole is not None
            return self.whole(settings)
        assert self.run is not None
        return {contender: self.run(contender, settings)}


def located(place: str) -> Benchmark:
    """The benchmark at `module:name`."""
    module, _, name = place.partition(":")
    benchmark: Benchmark = getattr(importlib.import_module(module), name)
    return benchmark


def variants(runs: Mapping[str, Callable[[Settings], Values]]) -> Callable[[str, Settings], Values]:
    """The `run` of a benchmark whose contenders are these."""

    def run(contender: str, settings: Settings) -> Values:
        return runs[contender](settings)

    return run


@dataclass(frozen=True)
class Spread:
    """The median of some values and their quartiles."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of one value or more."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


def contenders_of(rounds: Sequence[Round]) -> list[str]:
    """Who has had a turn, in the order of the first ones."""
    return list(dict.fromkeys(contender for taken in rounds for contender in taken))


def values_of(rounds: Sequence[Round], contender: str, measure: str) -> list[float]:
    """What a contender reached, in each round in which it did."""
    return [taken[contender][measure] for taken in rounds if measure in taken.get(contender, ())]


def ratios_of(rounds: Sequence[Round], contender: str, to: str, measure: str) -> list[float]:
    """A contender's value divided by another's in the same round. A round in which the other's is 0 says nothing."""
    return [
        taken[contender][measure] / taken[to][measure]
        for taken in rounds
        if measure in taken.get(contender, ()) and taken.get(to, {}).get(measure)
    ]


def growth(values: Sequence[float]) -> float:
    """By what a cost has grown at the end of a curve: the last value, as a multiple of the median of those before.

    Not the most by the least: a cost that falls, as that of a start does when more tasks share it, is no growth.
    """
    return values[-1] / statistics.median(values[:-1])
