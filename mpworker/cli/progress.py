"""How a run tells the user on a terminal where it is."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["RunProgress"]

UPDATE_INTERVAL = 0.1
"""Seconds between two updates: each takes locks of rich's that cost more than a small item."""


class RunProgress:
    """A progress bar on standard error; a context manager. On anything but a terminal it writes nothing.

    Args:
        total: Where the run ends, as a position in the input; None where nobody knows.
        quiet: Write nothing on a terminal either.
    """

    def __init__(self, total: int | None, *, quiet: bool) -> None:
        self.shown = not quiet and sys.stderr.isatty()
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.fields[items]:,} items, {task.fields[failed]:,} failed, {task.fields[rate]:,.0f}/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self.shown,
            transient=True,
        )
        self._task = self._bar.add_task("map", total=total, items=0, failed=0, rate=0.0)
        self._started_at = self._update_at = time.monotonic()
        self._items_before: int | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, position: int, items: int, failed: int) -> None:
        """Show how far the run is; cheap enough to be called for every item.

        Args:
            position: How far into the input.
            items: Items done, those of an earlier run that this one resumes included.
            failed: How many of them failed.
        """
        now = time.monotonic()
        if not self.shown or now < self._update_at:
            return
        self._update_at = now + UPDATE_INTERVAL
        if self._items_before is None:
            self._items_before = items - 1  # the first update is for this run's first item
        rate = (items - self._items_before) / max(now - self._started_at, UPDATE_INTERVAL)
        self._bar.update(self._task, completed=position, items=items, failed=failed, rate=rate)
