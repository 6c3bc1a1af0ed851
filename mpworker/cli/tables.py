"""How figures look on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

__all__ = ["printable", "seconds", "table"]


def printable(text: str) -> str:
    """What somebody else has said, for a terminal: nothing in it moves the cursor, or does worse; lines stay lines."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def table(title: str, headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table; None is shown as a dash."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*("-" if each is None else escape(printable(str(each))) for each in row))
    return made


def seconds(value: float | None) -> str:
    """A time, in a unit that suits it."""
    if value is None:
        return "-"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
