"""`map(..., progress=True)`: a bar on a terminal, and the same results."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from rich.console import Console

import mpworker.progress
from mpworker import AsyncProcessWorker, ProcessWorker
from mpworker.errors import InvalidArgument


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is seen on standard error, which is taken for a terminal."""
    seen = io.StringIO()
    monkeypatch.setattr(
        mpworker.progress, "Console", lambda **_: Console(file=seen, force_terminal=True, width=100, color_system=None)
    )
    monkeypatch.setattr(mpworker.progress, "UPDATE_INTERVAL", 0.0)
    return seen


def test_a_bar_is_shown(terminal: io.StringIO) -> None:
    with ProcessWorker(n=2) as w:
        assert list(w.map(abs, range(-30, 0), progress=True)) == list(range(30, 0, -1))
    last = terminal.getvalue()
    assert "abs" in last
    assert "30/30" in last


def test_without_a_terminal_nothing_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    with ProcessWorker(n=1) as w:
        assert list(w.map(abs, [-1], progress=True)) == [1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("iterables", "total"),
    [
        (lambda: [range(5)], 5),
        (lambda: [range(5), [1, 2]], 2),
        (lambda: [(x for x in range(3))], None),
        (lambda: [(x for x in range(3)), "four"], 4),
    ],
)
def test_how_many_there_will_be(iterables: Callable[[], list[Any]], total: int | None) -> None:
    assert mpworker.progress.total_of(iterables()) == total


def test_the_map_begins_at_once_and_ends_when_it_is_closed(terminal: io.StringIO) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10_000):
            read.append(number)
            yield number

    with ProcessWorker(n=1) as w:
        results: Any = w.map(abs, numbers(), progress=True)
        assert read
        assert next(results) == 0
        results.close()
        assert w.wait(60.0)
        assert len(read) < 10_000
        assert list(results) == []
    assert "1/?" in terminal.getvalue()


def test_a_failure_comes_through(terminal: io.StringIO) -> None:
    with ProcessWorker(n=1) as w, pytest.raises(ZeroDivisionError):
        list(w.map(lambda x: 1 // x, [1, 0], progress=True))
    assert "1/2" in terminal.getvalue()


def test_in_an_event_loop(terminal: io.StringIO) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(-3, 0):
            yield number

    async def main() -> list[int]:
        async with AsyncProcessWorker(n=1) as w:
            found = [result async for result in w.map(abs, range(-3, 0), progress=True)]
            async with aclosing(w.map(abs, numbers(), progress=True)) as results:  # type: ignore[type-var]
                return found + [result async for result in results]

    assert asyncio.run(main()) == [3, 2, 1] * 2
    assert "3/3" in terminal.getvalue()
    assert "3/?" in terminal.getvalue()


def test_in_debug_mode(terminal: io.StringIO) -> None:
    with ProcessWorker(debug=True) as w:
        assert list(w.map(abs, [-1, -2], progress=True)) == [1, 2]
    assert "2/2" in terminal.getvalue()


def test_it_is_a_bool() -> None:
    with ProcessWorker(n=1) as w, pytest.raises(InvalidArgument, match="progress must be True or False, not 1"):
        w.map(abs, [1], progress=1)  # type: ignore[call-overload]
