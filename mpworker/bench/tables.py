"""A run as tables in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mpworker.bench import words
from mpworker.bench.comparing import Move
from mpworker.bench.run import Run


def show(run: Run, console: Console) -> None:
    """Print what was measured, and the goals."""
    for text in words.intro(run):
        console.print(text, markup=False, soft_wrap=True)
    table = _table("measure", *words.MEASURE_HEADINGS)
    for name, taken in run.taken.items():
        for measure in taken.benchmark.measures:
            rows = words.measure_rows(taken.benchmark, measure, taken.rounds)
            labels = iter((f"{name}: {measure.name}", f"  ({measure.direction})" if measure.direction else ""))
            for row in rows:
                table.add_row(next(labels, ""), *row)
            table.add_section()
    console.print(table, markup=False)
    for name, taken in run.taken.items():
        count = len(taken.rounds)
        console.print(
            f"{name}: {taken.benchmark.title} ({count} round{'s' if count != 1 else ''})", markup=False, soft_wrap=True
        )
        for text in words.remarks(taken):
            console.print(f"  {text}", markup=False, soft_wrap=True)
    goals = run.goals()
    if goals:
        console.print("\nGoals", markup=False)
        table = _table(*words.GOAL_HEADINGS, left=("benchmark", "goal", ""))
        for goal in goals:
            table.add_row(*words.goal_row(goal))
        console.print(table, markup=False)


def show_comparison(old: dict[str, Any], run: Run, moves: Sequence[Move], console: Console) -> None:
    """Print what has moved."""
    moved = [each for each in moves if each.moved]
    if moved:
        table = _table(*words.MOVE_HEADINGS, left=("figure", "contender", "unit"))
        for each in moved:
            table.add_row(*words.move_row(each))
        console.print(table, markup=False)
    for text in words.comparison(old, run, moves):
        console.print(text, markup=False, soft_wrap=True)


def _table(*headings: str, left: Sequence[str] = ("measure", "contender", "unit")) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    return table
