"""Containment in a `map`: what an item does costs that item, wherever in its chunk it is."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faults_tasks as tasks
import pytest
from faults import LIMIT

from mpworker import ProcessWorker
from mpworker.child.attempt import Attempt, TaskInterrupted
from mpworker.errors import SerializationError, TaskExited, TaskTimeout, WorkerCrashed


def mapped(w: Any, function: Callable[..., Any], values: list[Any], chunksize: int = 20) -> list[Any]:
    return list(w.map(function, values, chunksize=chunksize, return_exceptions=True))


def only(results: list[Any], at: int) -> Any:
    """Every result but one is right; that one."""
    right = [index * 10 for index in range(len(results))]
    wrong = [index for index, result in enumerate(results) if result != right[index]]
    assert wrong == [at], {index: results[index] for index in wrong}
    return results[at]


def numbers(guilty: Any, at: int = 30, count: int = 60) -> list[Any]:
    return [*range(at), guilty, *range(at + 1, count)]


@pytest.mark.parametrize("how", ["kill", "segv", "exit 3"])
def test_a_crash_in_a_chunk_costs_one_item(how: str) -> None:
    with ProcessWorker(n=2) as w:
        error = only(mapped(w, tasks.slow_item, numbers(how)), 30)
        assert isinstance(error, WorkerCrashed)
        assert error.cause == ("exit" if how == "exit 3" else "signal")
        assert error.attempt == 1
        assert "item 30" in str(error)


def test_results_that_died_with_the_child_are_called_lost_or_made_again(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        results = mapped(w, tasks.item, numbers("kill"))
        assert isinstance(results[30], WorkerCrashed)
        assert results[30].cause == "signal"
        for index, result in enumerate(results):
            if index != 30 and result != index * 10:
                assert 20 <= index < 30, "only what came before it in its chunk can be lost"
                assert isinstance(result, WorkerCrashed)
                assert result.cause == "lost"
        values = [(tmp_path / ("guilty" if index == 30 else "innocent"), index) for index in range(60)]
        again = mapped(w.options(crash_retries=1), tasks.item_once, values)
        assert again == [index * 10 for index in range(60)]


def test_a_crash_in_a_chunk_is_raised_at_its_item() -> None:
    with ProcessWorker(n=1) as w:
        results = w.map(tasks.slow_item, numbers("kill"), chunksize=20)
        assert list(itertools.islice(results, 30)) == [index * 10 for index in range(30)]
        with pytest.raises(WorkerCrashed, match="item 30"):
            next(results)
        assert not list(results)
        assert w.submit(tasks.attempt).result(LIMIT) == 1


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raise", SerializationError),
        ("sys.exit", SerializationError),
        ("exit 3", WorkerCrashed),
        ("segv", WorkerCrashed),
    ],
)
def test_an_item_that_cannot_be_unpickled_is_the_only_one_that_suffers(how: str, expected: type) -> None:
    with ProcessWorker(n=2) as w:
        error = only(mapped(w, tasks.item, numbers(tasks.OnLoad(how))), 30)
        assert type(error) is expected
        with pytest.raises(expected):
            list(w.map(tasks.item, numbers(tasks.OnLoad(how)), chunksize=20))
        assert w.submit(tasks.attempt).result(LIMIT) == 1


@pytest.mark.parametrize("how", ["nap", "swallow", "count"])
def test_a_timeout_is_per_item(how: str) -> None:
    with ProcessWorker(n=2, grace=0.5 if how == "count" else LIMIT) as w:
        view = w.options(timeout=0.5)
        error = only(mapped(view, tasks.slow_item, numbers(how)), 30)
        assert isinstance(error, TaskTimeout)
        if how == "nap":
            assert "nap_here" in error.stack
        with pytest.raises(TaskTimeout, match="item 3 "):
            list(view.map(tasks.slow_item, numbers(how, at=3, count=6), chunksize=6))


def test_an_item_that_ends_before_its_interrupt_arrives_is_late_all_the_same() -> None:
    with ProcessWorker(n=1, grace=LIMIT) as w:
        results = list(w.options(timeout=0.5).map(tasks.deaf_item, range(5), chunksize=5, return_exceptions=True))
        assert isinstance(results[2], TaskTimeout), results
        assert results[:2] + results[3:] == [0, 10, 30, 40]


def test_an_item_whose_unpickling_takes_too_long_is_late_alone() -> None:
    with ProcessWorker(n=1, grace=LIMIT) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        view = w.options(timeout=0.3)
        error = only(mapped(view, tasks.item, numbers(tasks.SlowLoad(), at=2, count=4)), 2)
        assert isinstance(error, TaskTimeout)
        assert isinstance(view.submit(tasks.echo, tasks.SlowLoad()).exception(LIMIT), TaskTimeout)
        assert w.submit(os.getpid).result(LIMIT) == pid


@pytest.mark.parametrize(
    ("how", "expected", "name"),
    [
        ("on dump", SerializationError, "faults_tasks.OnDump"),
        ("needs two", tasks.NeedsTwoError, "a b"),
        ("mute", tasks.MuteError, ""),
        ("raise", ValueError, "on purpose"),
        ("sys.exit", TaskExited, "SystemExit"),
    ],
)
def test_an_item_that_fails_fails_alone(how: str, expected: type, name: str) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        error = only(mapped(w, tasks.item, numbers(how)), 30)
        assert type(error) is expected
        assert not name or name in str(error)
        with pytest.raises(expected):
            list(w.map(tasks.item, numbers(how), chunksize=20))
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_a_result_of_an_item_that_cannot_be_unpickled_here_costs_at_most_its_run() -> None:
    with ProcessWorker(n=1) as w:
        guilty = tasks.OnLoadIn(os.getpid(), "raise")
        results = mapped(w, tasks.echo, numbers(tasks.Wrapped(guilty)), chunksize=10)
        assert isinstance(results[30], SerializationError)
        for index in (*range(30), *range(40, 60)):
            assert results[index] == index
        for index in range(31, 40):  # what was sent back together cannot be told apart
            assert results[index] == index or isinstance(results[index], SerializationError)
        assert w.submit(tasks.attempt).result(LIMIT) == 1


def test_an_item_that_cannot_be_pickled_is_the_callers_error() -> None:
    with ProcessWorker(n=1) as w:
        results = w.map(tasks.item, numbers(tasks.OnDump("raise"), at=3, count=6), chunksize=1)
        assert list(itertools.islice(results, 3)) == [0, 10, 20]
        with pytest.raises(SerializationError):
            next(results)
        assert w.submit(tasks.attempt).result(LIMIT) == 1


def test_an_interrupt_between_two_items_hits_neither() -> None:
    page: Any = SimpleNamespace(inside=False, peek=lambda _slot: (7, 2, 0, 1, 7))
    attempt = Attempt(page, "", {})
    attempt.running, attempt.itemwise = 7, True
    attempt.on_interrupt(0, None)
    assert attempt.stack is None
    page.inside = True
    with pytest.raises(TaskInterrupted):
        attempt.on_interrupt(0, None)
    assert attempt.running == 0
