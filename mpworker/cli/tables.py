"""How figures look on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["printable", "seconds", "table", "terminal"]

_WHOLE = frozenset(("task", "status", "pid", "client"))  # what is copied into other commands is on one line


def printable(text: str) -> str:
    """What somebody else has said, for a terminal: nothing in it moves the cursor, or does worse; lines stay lines."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def terminal(told: object, as_json: bool) -> Console | None:
    """Where tables go; None where there is no terminal, or JSON is wanted: that is written then."""
    console = Console(highlight=False)
    if console.is_terminal and not as_json:
        return console
    click.echo(json.dumps(told, indent=1))
    return None


def table(title: str, headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table; None is shown as a dash."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for heading in headings:
        made.add_column(heading, overflow="fold", no_wrap=heading in _WHOLE)
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
