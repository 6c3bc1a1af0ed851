"""Two runs of benchmarks: what has moved, beyond noise.

A figure has moved if both hold:

- the middle halves of its rounds in the two runs (from the lower to the upper quartile) do not overlap, and
- a two-sided Mann-Whitney U test (Mann, Whitney: "On a Test of Whether One of Two Random Variables is Stochastically
  Larger than the Other", 1947), exact, finds that the rounds of one run are larger, at the level LEVEL.

The test asks nothing of how the values are distributed, which for times is skewed and has outliers; the quartiles
keep out what is sure and small next to what the rounds differ by. Fewer than five rounds on either side can never say
it at that level, and are told as too few. Of figures that have not moved the test lets one in a hundred through; the
other condition fewer.

Between two runs the machine itself may have become faster or slower. So the ratios within each round are compared as
well: where a figure has moved and its ratio to other pools has not, it was the machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from mpworker.bench.measure import Measure, Round, Spread, contenders_of, ratios_of, spread, values_of
from mpworker.bench.peers import MPWORKER
from mpworker.bench.run import Run

LEVEL: Final = 0.01
SAME_MACHINE: Final = ("cpu", "cores", "architecture", "kernel", "python")


@dataclass(frozen=True)
class Move:
    """A figure in two runs.

    Attributes:
        benchmark: Which.
        figure: Of it.
        contender: Whose; for a ratio "mpworker / that one".
        unit: Of the values; none for a ratio.
        before: In the earlier run.
        now: In this one.
        p: Of the test: how likely a difference as large is if nothing has moved.
        moved: See above; None for too few rounds.
        better: Has it moved to the better?
    """

    benchmark: str
    figure: str
    contender: str
    unit: str
    before: Spread
    now: Spread
    p: float
    moved: bool | None
    better: bool


def compared(old: dict[str, Any], run: Run) -> list[Move]:
    """Every figure that both runs have."""
    found: list[Move] = []
    for name, taken in run.taken.items():
        before: Sequence[Round] = old["benchmarks"].get(name, {}).get("rounds", [])
        base = taken.benchmark.base
        there = [each for each in contenders_of(taken.rounds) if each in contenders_of(before)]
        for measure in [each for each in taken.benchmark.measures if not each.fact]:
            for contender in there:
                sides = [values_of(rounds, contender, measure.name) for rounds in (before, taken.rounds)]
                found += _moves(name, measure, contender, measure.unit, sides)
            for other in there:
                if other != (base or MPWORKER):
                    pair = (other, base) if base else (MPWORKER, other)
                    sides = [ratios_of(rounds, *pair, measure.name) for rounds in (before, taken.rounds)]
                    found += _moves(name, measure, " / ".join(pair), "", sides)
    return found


def _moves(name: str, measure: Measure, contender: str, unit: str, sides: list[list[float]]) -> list[Move]:
    if not all(sides):
        return []
    before, now = map(spread, sides)
    p = mann_whitney(*sides)
    apart = before.high < now.low or now.high < before.low
    enough = 2 / math.comb(len(sides[0]) + len(sides[1]), len(sides[0])) < LEVEL
    better = (now.median > before.median) == measure.higher_is_better
    return [Move(name, measure.name, contender, unit, before, now, p, apart and p < LEVEL if enough else None, better)]


def mann_whitney(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p of the exact Mann-Whitney U test; a tie counts half, which makes p no smaller than it is.

    Args:
        one: At least one value.
        other: As well.
    """
    wins = sum((a > b) + 0.5 * (a == b) for a in one for b in other)
    pairs = len(one) * len(other)
    least = math.ceil(min(wins, pairs - wins))
    below = sum(_ways(len(one), len(other), u) for u in range(least + 1))
    return min(1.0, 2 * below / math.comb(len(one) + len(other), len(one)))


@lru_cache(maxsize=100_000)
def _ways(m: int, n: int, u: int) -> int:
    """In how many orders of m and n different values the first win u of the m * n pairs."""
    if u < 0 or u > m * n:
        return 0
    if m == 0 or n == 0:
        return 1  # u is 0 then
    return _ways(m - 1, n, u - n) + _ways(m, n - 1, u)  # the largest of all is of the first, or of the others


def differences(old: dict[str, Any], run: Run) -> list[str]:
    """What makes the two runs hard to compare, in sentences."""
    said = [
        f"The runs are of different machines or interpreters: {fact} was {old['machine'].get(fact)!r} and is "
        f"{run.machine.get(fact)!r}."
        for fact in SAME_MACHINE
        if old.get("machine", {}).get(fact) != run.machine.get(fact)
    ]
    for name in ("n", "scale"):
        was, now = old.get("settings", {}).get(name), getattr(run.settings, name)
        if was != now:
            said.append(f"The runs are of different size: {name} was {was!r} and is {now!r}.")
    return said


def summary(moves: Sequence[Move]) -> str:
    """How many figures were compared, in a sentence."""
    moved = sum(each.moved is True for each in moves)
    few = sum(each.moved is None for each in moves)
    text = f"{len(moves) - few:,} figures and ratios compared, {moved:,} have moved beyond noise"
    return f"{text}; {few:,} have too few rounds to tell." if few else f"{text}."


RULE: Final = (
    "Moved: the quartile ranges of the two runs do not overlap, and an exact two-sided Mann-Whitney U test over the "
    f"rounds rejects at {LEVEL:.0%}. Where a figure has moved and its ratio to other pools has not, it was the machine."
)
