"""What a task raises comes back as what it is, or is named; and it counts as raised in any case."""

import asyncio
import operator
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
import raised_tasks as tasks

from mpworker import ProcessWorker
from mpworker.errors import RemoteTraceback, SerializationError, TaskExited
from mpworker.ipc import codec, raised

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


def there_and_back(error: BaseException) -> BaseException:
    return raised.checked(pickle.loads(raised.dumps(error)))


def alike(one: object, other: object) -> bool:
    """Are these equal, exceptions by what they are made of?"""
    if isinstance(one, BaseException):
        return (
            type(one) is type(other)
            and isinstance(other, BaseException)
            and alike(one.args, other.args)
            and alike({**vars(one), "me": 0, "lock": 0}, {**vars(other), "me": 0, "lock": 0})
            and (isinstance(one, BaseExceptionGroup) or str(one) == str(other))
        )
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))  # type: ignore[arg-type]
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)  # type: ignore[attr-defined, index]
    return bool(one == other)


# ------------------------------------------------------------ as themselves

OWN_INIT: list[BaseException] = [
    tasks.Two("a", 7),
    tasks.Default("copy", 3),
    tasks.Keyword(code=3),
    tasks.NoSuper(code=3),
    tasks.OwnNew(1, 2),
    tasks.Slotted(1, 2),
    tasks.Frozen(1),
    tasks.Frozen(code=1, reason="some"),
    tasks.Guarded(1, 2),
    tasks.Itself(1, 2),
    tasks.Missing("file"),
    tasks.Refused(5, "no"),
    tasks.Refused(5, "no", "file"),
    tasks.Named("a", "b"),
    tasks.Encoded(b"\xff"),
    tasks.NotFound("a", "b"),
    tasks.NoKey("a", "b"),
    tasks.Stop(1, 2),
    tasks.BadSyntax(3, "x = "),
    tasks.Both("a", "b"),
    tasks.Mixed("a", "b"),
    tasks.Group([ValueError("a"), tasks.Two("a", 7)], 3),
    tasks.GroupOfTwo(errors=[ValueError("a"), tasks.Default("copy")]),
    tasks.Lazy("note"),
    tasks.Base(1, 2),
]
PYTHONS_OWN: list[BaseException] = [
    Exception(),
    ValueError("a", 2, None),
    KeyError("key"),
    OSError(2, "not here"),
    FileNotFoundError(2, "not here", "file"),
    OSError(18, "two devices", "from", None, "to"),
    OSError("just text"),
    BlockingIOError(11, "full", 512),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    UnicodeEncodeError("ascii", "\u20ac", 0, 1, "bad"),
    UnicodeTranslateError("\u20ac", 0, 1, "bad"),
    ImportError("no", name="a.b", path="/a"),
    ModuleNotFoundError("no", name="a"),
    StopIteration(7),
    StopAsyncIteration(7),
    SyntaxError("bad", ("file.py", 3, 1, "x = ")),
    AttributeError("no", name="x", obj=3),
    NameError("no", name="x"),
    ExceptionGroup("some", [ValueError("a"), ExceptionGroup("inner", [tasks.Two("a", 7), tasks.Missing("file")])]),
    BaseExceptionGroup("some", [KeyboardInterrupt(), tasks.Exit(1, 2), tasks.Base(1, 2)]),
    RuntimeError(tasks.Two("a", 7), {"deep": [tasks.Keyword(code=3)]}),
    asyncio.CancelledError("enough"),
    GeneratorExit("enough"),
]
CASES = [
    pytest.param(error, id=f"{number} {type(error).__name__}") for number, error in enumerate(OWN_INIT + PYTHONS_OWN)
]
FIELDS = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    UnicodeError: ("encoding", "object", "start", "end", "reason"),
    ImportError: ("msg", "name", "path"),
    StopIteration: ("value",),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text"),
    SystemExit: ("code",),
    BaseExceptionGroup: ("message", "code"),
    tasks.Named: ("name",),
    tasks.Slotted: ("code", "hidden"),
    tasks.OwnNew: ("total",),
}


def same(error: BaseException, back: BaseException) -> None:
    assert alike(error, back), (back, vars(back))
    for kind, names in FIELDS.items():
        if isinstance(error, kind) and not isinstance(error, tasks.Lazy):
            assert [getattr(back, name, None) for name in names] == [getattr(error, name, None) for name in names]


@pytest.mark.parametrize("error", CASES)
def test_an_exception_arrives_as_itself(pool: ProcessWorker, error: BaseException) -> None:
    same(error, there_and_back(error))
    # Made by unpickling in the child; raised there, it is sent as any other.
    back = failed(pool, pickle.loads, raised.dumps(error))
    same(error, back)
    assert isinstance(back.__cause__, RemoteTraceback)
    assert "in raise_it" in str(back.__cause__)


def test_what_is_made_in_the_child_arrives_as_itself(pool: ProcessWorker) -> None:
    same(tasks.Two("a", 7), failed(pool, tasks.Two, "a", 7))
    same(tasks.Default("copy", 3), failed(pool, tasks.Default, "copy", 3))
    same(tasks.Frozen(3), failed(pool, tasks.Frozen, 3))
    same(tasks.Missing("file"), failed(pool, tasks.Missing, "file"))
    same(tasks.Group([ValueError(2)], 3), failed(pool, tasks.Group, [ValueError(2)], 3))


def test_notes_and_new_args_arrive(pool: ProcessWorker) -> None:
    error = tasks.Two("a", 7)
    error.add_note("a note")
    error.args = ("changed", [1])
    back = failed(pool, pickle.loads, raised.dumps(error))
    assert (back.args, back.__notes__) == (("changed", [1]), ["a note"])


def test_what_an_exception_holds_of_itself_stays_itself() -> None:
    back = there_and_back(tasks.Itself(1, 2))
    assert isinstance(back, tasks.Itself)
    assert back.me is back


def test_an_exception_in_an_item_arrives_as_itself(pool: ProcessWorker) -> None:
    results = list(pool.map(tasks.raise_it, [tasks.Two] * 3, "abc", "xyz", chunksize=3, return_exceptions=True))
    for result, (first, second) in zip(results, ["ax", "by", "cz"], strict=True):
        same(tasks.Two(first, second), result)


def test_an_exception_tells_by_its_cause_whose_it_is(pool: ProcessWorker) -> None:
    future = pool.submit(int, "three")
    cause = future.exception(LIMIT).__cause__  # type: ignore[union-attr]
    assert isinstance(cause, RemoteTraceback)
    assert cause.text.startswith(f'task {future.task_id} ("int"):\n')
    with pytest.raises(ValueError, match="invalid literal") as caught:
        list(pool.map(int, ["1", "2", "three"]))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert caught.value.__cause__.text.startswith("item 2 of map(int):\n")


def test_a_class_that_says_how_it_is_pickled_is_left_alone(pool: ProcessWorker) -> None:
    for kind in (tasks.Reduced, tasks.ReducedEx, tasks.Registered):
        assert vars(failed(pool, kind, 1, 2)) == {"sum": 103}
    assert vars(failed(pool, tasks.OwnSet, 1, 2)) == {"first": -1}
    assert vars(failed(pool, tasks.NewArgs, 1)) == {"sum": 101}
    assert vars(failed(pool, tasks.NewArgs, 1, 2)) == {"sum": 101}


def test_a_class_of_the_script_itself_is_never_written_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bad(tasks.Two):
        __module__, __qualname__ = "__main__", "Bad"

    monkeypatch.setattr(sys.modules["__main__"], "Bad", Bad, raising=False)  # where plain pickle finds it
    assert b"cloudpickle" in raised.dumps(Bad(1, 2))


SCRIPT = """
import abc
from dataclasses import dataclass
from mpworker import ProcessWorker

class Bad(Exception):
    made = 0

    def __init__(self, a, b):
        super().__init__(f"{a} {b}")
        self.a = a
        Bad.made += 1

class Locked(Bad):
    def __init__(self, message):
        import threading
        super().__init__(message, "!")
        self.lock = threading.Lock()

@dataclass(frozen=True)
class Frozen(Bad):
    code: int

class Missing(OSError):
    def __init__(self, name):
        super().__init__(2, "not here", name)

def fail(make, *args):
    raise make(*args)

def fail_by_local(a, b):
    class Local(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} {b}")
            self.a = a
    raise Local(a, b)

class Counted(Exception):
    where = []

    def __init__(self, number):
        super().__init__("counted", id(Counted.where), id(vars(Counted)["__init__"]))

def fail_all(a, b):
    raise ExceptionGroup("all", [Bad(a, b), Missing(a), ValueError(Bad(b, a))])

with ProcessWorker(n=1) as w:
    error = w.submit(fail, Bad, 1, 2).exception()
    assert (type(error), str(error), error.args, error.a) == (Bad, "1 2", ("1 2",), 1), error
    assert Bad.made == 0, "nothing is called to make it"
    error = w.submit(fail, Frozen, 3).exception()
    assert (type(error), error.args, error.code) == (Frozen, (3,), 3), error
    error = w.submit(fail, Missing, "file").exception()
    assert (type(error), error.errno, error.filename) == (Missing, 2, "file"), error
    error = w.submit(fail_by_local, 1, 2).exception()
    assert (type(error).__name__, str(error), error.a) == ("Local", "1 2", 1), error
    error = w.submit(fail_all, 1, 2).exception()
    one, two, three = error.exceptions
    assert (type(one), str(one), type(two), two.filename) == (Bad, "1 2", Missing, 1), error
    assert (type(three.args[0]), str(three.args[0])) == (Bad, "2 1"), error
    [error] = w.map(fail, [Bad], [1], [2], return_exceptions=True)
    assert (type(error), str(error), error.a) == (Bad, "1 2", 1), error
    errors = w.map(lambda n: fail(Counted, n), range(3), chunksize=1, return_exceptions=True)
    assert len({error.args for error in errors}) == 1, "no class of the child is changed by what is raised"
    future = w.submit(fail, Locked, "no such account")
    error = future.exception()
    right = f'task {future.task_id} ("fail") raised Locked: no such account !; the exception cannot be sent back: '
    assert str(error).startswith(right + "TypeError: "), error
print("all is well")
"""


def test_exceptions_of_the_script_itself_arrive_as_themselves(tmp_path: Path) -> None:
    assert programs.run_source(SCRIPT, tmp_path).stdout == "all is well\n"


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
    error = failed(pool, tasks.Unwinding, "a")
    assert type(error) is tasks.Unwinding
    assert "in raise_it" in str(error.__cause__)
    assert str(failed(pool, tasks.Wordy)) == "my words"
    assert "raised an exception; the exception cannot be sent back: " in str(failed(pool, tasks.nameless))
    error = failed(pool, SystemExit, tasks.MuteCode())
    assert isinstance(error, TaskExited)
    assert error.code == "<its __str__ raised RuntimeError>"


@pytest.mark.parametrize("kind", [GeneratorExit, asyncio.CancelledError, tasks.Base])
def test_what_is_no_exception_is_raised_as_itself(pool: ProcessWorker, kind: type[BaseException]) -> None:
    args = (1, 2) if kind is tasks.Base else ()
    future = pool.submit(tasks.raise_it, kind, *args)
    with pytest.raises(kind):
        future.result(LIMIT)
    assert not future.cancelled()
    results = pool.map(tasks.raise_it, [kind], *[[each] for each in args])
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
