"""What tables in a terminal and in a page have in common: numbers, and rows of them."""

from collections.abc import Sequence
from typing import Final

from mpworker.bench import comparing, machine
from mpworker.bench.comparing import Move
from mpworker.bench.measure import Benchmark, Measure, Round, Spread, contenders_of, spread, values_of
from mpworker.bench.rounds import Taken
from mpworker.bench.run import Goal, Run, ratios

GOAL_HEADINGS: Final = ("benchmark", "goal", "measured", "quartiles", "")
MEASURE_HEADINGS: Final = ("contender", "median", "quartiles", "unit", "ratio", "quartiles")
MOVE_HEADINGS: Final = ("figure", "contender", "before", "now", "unit", "change", "p")


def number(value: float) -> str:
    """A value, short."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(value: float) -> str:
    """A ratio, short."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"


def between(value: Spread) -> str:
    """The quartiles of values."""
    return f"{number(value.low)} - {number(value.high)}"


def intro(run: Run) -> list[str]:
    """What was measured on, and how."""
    said = [f"{machine.in_words(run.machine)}; n={run.settings.n}"]
    if run.settings.scale != 1:
        judged = "" if run.settings.scale > 1 else ", and no goal is judged by them"
        said.append(f"Scaled by {run.settings.scale:g}: these are not the figures of a full run{judged}.")
    if run.absent:
        said.append(f"Not installed: {', '.join(run.absent)}. The extra mpworker[bench] brings all but Ray and Dask.")
    return said


def goal_row(goal: Goal) -> tuple[str, ...]:
    """A row with GOAL_HEADINGS."""
    said = {True: "met", False: "NOT MET", None: "not measured" if goal.found is None else "not judged"}[goal.met]
    if goal.found is None:
        return goal.benchmark, goal.text, "-", "", said
    show = number if goal.unit else ratio
    unit = f" {goal.unit}" if goal.unit and goal.unit != "x" else ""
    return (
        goal.benchmark,
        goal.text,
        f"{show(goal.found.median)}{unit}",
        f"{show(goal.found.low)} - {show(goal.found.high)}",
        said,
    )


def measure_rows(benchmark: Benchmark, measure: Measure, rounds: Sequence[Round]) -> list[tuple[str, ...]]:
    """Rows with MEASURE_HEADINGS, one for each contender that has something to show."""
    found: list[tuple[str, ...]] = []
    to = ratios(benchmark, measure, rounds)
    for contender in contenders_of(rounds):
        values = values_of(rounds, contender, measure.name)
        if values:
            value, its = spread(values), to.get(contender)
            ends = (ratio(its.median), f"{ratio(its.low)} - {ratio(its.high)}") if its else ("", "")
            found.append((contender, number(value.median), between(value), measure.unit, *ends))
    return found


def remarks(taken: Taken) -> list[str]:
    """Who has nothing to show, and why."""
    return [
        *(f"{name} left out: {why}" for name, why in taken.not_offered.items()),
        *(f"{name} FAILED: {why}" for name, why in taken.failed.items()),
    ]


def move_row(move: Move) -> tuple[str, ...]:
    """A row with MOVE_HEADINGS."""
    show = number if move.unit else ratio
    change = f"{move.now.median / move.before.median - 1:+.0%}" if move.before.median else ""
    return (
        f"{move.benchmark}: {move.figure}",
        move.contender,
        f"{show(move.before.median)} ({show(move.before.low)} - {show(move.before.high)})",
        f"{show(move.now.median)} ({show(move.now.low)} - {show(move.now.high)})",
        move.unit,
        f"{change} {'better' if move.better else 'WORSE'}",
        f"{move.p:.1g}",
    )


def comparison(old: "dict[str, object]", run: Run, moves: Sequence[Move]) -> list[str]:
    """What is said of a comparison."""
    return [f"Compared with the run of {old.get('began')}.", *comparing.differences(old, run), comparing.RULE,
            comparing.summary(moves)]  # fmt: skip
