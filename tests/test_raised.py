"""What a task raises comes back as what it is, or is named; and it counts as raised in any case."""

import asyncio
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import raised_tasks as tasks

from mpworker import ProcessWorker
from mpworker.errors import RemoteTraceback, SerializationError, TaskExited
from mpworker.ipc import codec

LIMIT = 60.0  # seconds: a guard against a hang


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=1) as w:
        yield w


@pytest.fixture(autouse=True)
def _the_child_lives(request: pytest.FixtureRequest) -> Iterator[None]:
    if "pool" not in request.fixturenames:
        yield
        return
    pool = request.getfixturevalue("pool")
    before = pool.submit(operator.add, 1, 1).result(LIMIT), pool.processes()
    yield
    assert (pool.submit(operator.add, 1, 1).result(LIMIT), pool.processes()) == before


def failed(pool: ProcessWorker, make: Callable[..., BaseException], *args: Any, **kwargs: Any) -> BaseException:
    error = pool.submit(tasks.raise_it, make, *args, **kwargs).exception(LIMIT)
    assert error is not None
    return error


# ------------------------------------------------------------ what cannot be sent


def test_an_exception_that_cannot_be_pickled_is_named_with_its_message(pool: ProcessWorker) -> None:
    future = pool.submit(tasks.raise_it, tasks.Locked, "no such account")
    error = future.exception(LIMIT)
    assert type(error) is SerializationError
    assert str(error) == (
        f'task {future.task_id} ("raise_it") raised raised_tasks.Locked: no such account; '
        "the exception cannot be sent back: TypeError: cannot pickle '_thread.lock' object"
    )
    assert (error.raised_type, error.raised_message) == ("raised_tasks.Locked", "no such account")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in raise_it" in str(error.__cause__)


def test_an_exception_that_cannot_be_made_here_is_named_with_its_message(pool: ProcessWorker) -> None:
    future = pool.submit(tasks.raise_it, tasks.OnlyThere, "no such account")
    error = future.exception(LIMIT)
    assert type(error) is SerializationError
    assert str(error) == (
        f'task {future.task_id} ("raise_it") raised raised_tasks.OnlyThere: no such account; '
        "the exception cannot be unpickled here: RuntimeError: not here"
    )
    assert (error.raised_type, error.raised_message) == ("raised_tasks.OnlyThere", "no such account")
    assert "in raise_it" in str(error.__cause__)
    assert "cannot be unpickled here: Speechless" in str(failed(pool, tasks.NotThereSpeechless, "a"))


def test_an_item_whose_exception_cannot_be_sent_is_named(pool: ProcessWorker) -> None:
    results = list(pool.map(tasks.raise_it, [tasks.Locked, tasks.OnlyThere], "ab", chunksize=2, return_exceptions=True))
    assert str(results[0]).startswith("item 0 of map(raise_it) raised raised_tasks.Locked: a; the exception cannot be ")
    assert str(results[1]).startswith("item 1 of map(raise_it) raised raised_tasks.OnlyThere: b; the exception cannot ")


def test_the_message_is_one_line_and_no_message_is_no_colon(pool: ProcessWorker) -> None:
    assert "Locked: one two; the" in str(failed(pool, tasks.Locked, "one\ntwo"))
    assert "Locked; the exception" in str(failed(pool, tasks.Locked, ""))


def test_a_pickle_that_makes_no_exception_is_said_so(pool: ProcessWorker) -> None:
    assert "cannot be sent back: TypeError: its pickle makes a int, which is no exception" in str(
        failed(pool, tasks.Nothing)
    )


def test_an_exception_that_is_too_large_is_named() -> None:
    bound = 1 << 16
    with ProcessWorker(n=1, max_payload_bytes=bound) as w:
        error = w.submit(lambda: tasks.raise_it(ValueError, "x" * bound)).exception(LIMIT)
        assert type(error) is SerializationError
        assert "raised ValueError: xxx" in str(error)
        assert f"exceeds max_payload_bytes={bound}" in str(error)
        assert len(str(error)) < codec.MESSAGE_TEXT_MAX + 1000
        assert len(error.raised_message) <= codec.MESSAGE_TEXT_MAX + 100
        # What its report takes beside it is not counted.
        error = w.submit(lambda: tasks.raise_it(ValueError, "x" * (bound - 100))).exception(LIMIT)
        assert type(error) is ValueError
        assert error.args == ("x" * (bound - 100),)


@pytest.mark.parametrize("how", [RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError])
def test_an_exception_that_cannot_be_printed_arrives(pool: ProcessWorker, how: type[BaseException]) -> None:
    assert type(failed(pool, tasks.Mute, how)) is tasks.Mute


def test_an_exception_that_can_neither_be_printed_nor_sent_is_named(pool: ProcessWorker) -> None:
    assert "raised raised_tasks.MuteLocked: <its __str__ raised RuntimeError>; the" in str(
        failed(pool, tasks.MuteLocked, "a")
    )


@pytest.mark.parametrize("kind", [tasks.Unreducible, tasks.UnreducibleBase])
def test_an_exception_whose_reduce_raises_is_named(pool: ProcessWorker, kind: type[tasks.Unreducible]) -> None:
    error = failed(pool, kind, "text")
    assert f"raised raised_tasks.{kind.__name__}: text; the exception cannot be sent back: " in str(error)
    assert f"{kind.how.__name__}: stays here" in str(error)


def test_an_exception_with_strange_methods_is_one_tasks_error(pool: ProcessWorker) -> None:
    assert type(failed(pool, tasks.Unwinding, "a")) is tasks.Unwinding
    assert str(failed(pool, tasks.Wordy)) == "my words"
    assert "raised an exception; the exception cannot be sent back: " in str(failed(pool, tasks.nameless))
    error = failed(pool, SystemExit, tasks.MuteCode())
    assert isinstance(error, TaskExited)
    assert error.code == "<its __str__ raised RuntimeError>"


@pytest.mark.parametrize("kind", [GeneratorExit, asyncio.CancelledError])
def test_what_is_no_exception_is_raised_as_itself(pool: ProcessWorker, kind: type[BaseException]) -> None:
    future = pool.submit(tasks.raise_it, kind)
    with pytest.raises(kind):
        future.result(LIMIT)
    assert not future.cancelled()
    results = pool.map(tasks.raise_it, [kind])
    with pytest.raises(kind):
        next(results)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, tasks.Exit])
def test_what_would_end_this_process_is_told_as_task_exited(pool: ProcessWorker, kind: type[BaseException]) -> None:
    assert type(failed(pool, kind, *((1, 2) if kind is tasks.Exit else ()))) is TaskExited


# ------------------------------------------------------------ it counts

STRANGE = [
    (tasks.Two, "a", "b"),
    (tasks.Locked, "a"),
    (tasks.OnlyThere, "a"),
    (tasks.Mute, SystemExit),
    (tasks.Unreducible,),
    (tasks.UnreducibleBase,),
    (tasks.Nothing,),
    (tasks.nameless,),
    (GeneratorExit,),
    (KeyboardInterrupt,),
    (SystemExit, 3),
    (asyncio.CancelledError,),
    (tasks.Base, 1, 2),
]


@pytest.mark.parametrize("call", STRANGE, ids=lambda call: call[0].__name__)
def test_a_task_is_tried_again_whatever_it_raised(pool: ProcessWorker, call: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "calls")
    assert pool.options(retries=2).submit(tasks.raise_until, path, 2, *call).result(LIMIT) == 3
    path = str(tmp_path / "others")
    assert pool.options(retries=1).submit(tasks.raise_until, path, 2, *call).exception(LIMIT) is not None
    assert Path(path).read_bytes() == b".."


def test_an_item_is_tried_again_alone_whatever_it_raised(pool: ProcessWorker, tmp_path: Path) -> None:
    items = [(str(tmp_path / name), name in "bd") for name in "abcde"]
    view = pool.options(retries=1)
    assert list(view.map(tasks.raise_at_first, items, chunksize=5)) == [path for path, _ in items]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "d"]


def test_a_result_that_cannot_be_sent_is_not_made_again(pool: ProcessWorker, tmp_path: Path) -> None:
    path = tmp_path / "calls"

    def locked(_: int) -> Any:
        import threading

        with path.open("a") as calls:
            calls.write(".")
        return threading.Lock()

    view = pool.options(retries=2)
    assert isinstance(view.submit(locked, 0).exception(LIMIT), SerializationError)
    assert path.read_text() == "."
    [error] = view.map(locked, [0], return_exceptions=True)
    assert isinstance(error, SerializationError)
    assert path.read_text() == ".."
    assert (error.raised_type, error.raised_message) == ("", "")
