"""A run as one HTML file, to be mailed."""

import math
from collections.abc import Sequence
from typing import Any, Final

from mpworker.bench import words
from mpworker.bench.comparing import Move
from mpworker.bench.measure import Measure, contenders_of, spread, values_of
from mpworker.bench.rounds import Taken
from mpworker.bench.run import Run
from mpworker.report import BarPlot, Document, LinePlot, Series

_FAR: Final = 30.0  # times: bars that differ by more are drawn on decades
_READING: Final = (
    "Each round gives every contender a turn, in an interpreter of its own, and another one is the first each time. "
    "Shown are medians over the rounds, with their quartiles: wide ones mean that the machine was busy. A ratio is "
    "mpworker's value by the other's, or each value by that of the first line where mpworker is compared with itself, "
    "taken within each round."
)


def document(run: Run, old: "dict[str, Any] | None" = None, moves: Sequence[Move] = ()) -> Document:
    """The page of a run, and of its comparison with an older one."""
    page = Document("Benchmarks of mpworker")
    for text in words.intro(run):
        page.paragraph(text)
    page.paragraph(_READING)
    goals = run.goals()
    if goals:
        page.heading("Goals")
        page.table(words.GOAL_HEADINGS, [words.goal_row(goal) for goal in goals])
    if old is not None:
        page.heading("What has moved")
        for text in words.comparison(old, run, moves):
            page.paragraph(text)
        moved = [words.move_row(each) for each in moves if each.moved]
        if moved:
            page.table(words.MOVE_HEADINGS, moved)
    for name, taken in run.taken.items():
        _add(page, name, taken)
    return page


def _add(page: Document, name: str, taken: Taken) -> None:
    page.heading(name)
    page.paragraph(f"{taken.benchmark.title[0].upper()}{taken.benchmark.title[1:]} ({len(taken.rounds)} rounds)")
    remarks = words.remarks(taken)
    if remarks:
        page.items(remarks)
    curves: dict[str, list[Measure]] = {}
    for measure in taken.benchmark.measures:
        curves.setdefault(measure.series or measure.name, []).append(measure)
    for curve, measures in curves.items():
        plot = _line(name, curve, measures, taken) if measures[0].series else _bars(name, measures[0], taken)
        if plot is None:
            continue
        page.plot(plot)
        for measure in measures:
            rows = words.measure_rows(taken.benchmark, measure, taken.rounds)
            if rows and not measure.series:
                page.table(words.MEASURE_HEADINGS, rows, ", ".join(filter(None, (measure.name, measure.direction))))


def _bars(name: str, measure: Measure, taken: Taken) -> BarPlot | None:
    values = {
        contender: spread(found).median
        for contender in contenders_of(taken.rounds)
        if (found := values_of(taken.rounds, contender, measure.name))
    }
    if not values:
        return None
    above = [value for value in values.values() if value > 0]
    far = bool(above) and max(above) / min(above) > _FAR
    title = f"{name}: {measure.name}"
    # Each is a series and not a category: their names are too long to stand below bars side by side.
    return BarPlot(
        title, "", measure.unit, [measure.name], {name: [value] for name, value in values.items()}, log_y=far
    )


def _line(name: str, curve: str, measures: list[Measure], taken: Taken) -> LinePlot | None:
    series = []
    for contender in contenders_of(taken.rounds):
        points = [
            (measure.x, spread(found).median)
            for measure in measures
            if (found := values_of(taken.rounds, contender, measure.name))
        ]
        if points:
            series.append(Series(contender, points))
    if not series:
        return None
    far = math.log10(measures[-1].x / measures[0].x) >= 1
    return LinePlot(f"{name}: {curve}", measures[0].x_is, measures[0].unit, series, log_x=far, log_y=True)
