"""A bar that shows how far a `map` is: what `progress=True` asks for."""

from __future__ import annotations

import operator
import time
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

UPDATE_INTERVAL = 0.1
"""Seconds between two updates: each takes locks of rich's that cost more than a small item."""


def total_of(iterables: Iterable[Any]) -> int | None:
    """How many items there will be, as far as the shortest of these can tell; None if none can."""
    hints = [operator.length_hint(each, -1) for each in iterables]
    return min((hint for hint in hints if hint >= 0), default=None)


class Bar:
    """A bar on standard error, or in a notebook; a context manager. Elsewhere than on a terminal nothing is written.

    Args:
        name: What is mapped.
        total: How many results there will be; None where nobody knows.
    """

    def __init__(self, name: str, total: int | None) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal or console.is_jupyter),
        )
        self._task = self._progress.add_task(name, total=total)
        self._taken = 0
        self._update_at = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.update(self._task, completed=self._taken)
        self._progress.stop()

    def advance(self) -> None:
        """Another result was taken; cheap enough to be called for every one."""
        self._taken += 1
        now = time.monotonic()
        if now >= self._update_at:
            self._progress.update(self._task, completed=self._taken)
            self._update_at = now + UPDATE_INTERVAL


def shown(results: Any, name: str, total: int | None) -> Generator[Any, None, None]:
    """The results of a `map`, with a bar.

    Args:
        results: What the map returns, which is closed when this is.
        name: Of the function.
        total: How many there will be; None where nobody knows.
    """
    with closing(results), Bar(name, total) as bar:
        for result in results:
            bar.advance()
            yield result


async def shown_async(results: Any, name: str, total: int | None) -> AsyncGenerator[Any]:
    """`shown` in an event loop."""
    async with aclosing(results):
        with Bar(name, total) as bar:
            async for result in results:
                bar.advance()
                yield result
