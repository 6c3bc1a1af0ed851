"""What a caller gets wrong is told where it was done: one line, the value and the bound in it, an error of ours."""

import asyncio
import functools
import inspect
import math
import os
import subprocess
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import programs
import pytest
from refusals import refuse

from mpworker import AsyncProcessWorker, Hooks, Latency, ProcessWorker, QueueOptions, Task
from mpworker.errors import (
    ConfigurationError,
    InvalidArgument,
    MPWorkerError,
    RemoteTraceback,
    SerializationError,
    StartFailed,
    WorkerStopped,
)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=1) as worker:
        yield worker


class Indexable:
    """An int in all but type, as NumPy's are."""

    def __index__(self) -> int:
        return 2

    def __repr__(self) -> str:
        return "Indexable()"


NO_INT = [True, 2.0, "2", None, [2], math.nan, Decimal(2), numpy.float64(2), numpy.True_, numpy.array([2, 3])]
NO_SECONDS = ["1", True, False, [1], Decimal(1), 1j, numpy.True_, numpy.array([1.0, 2.0]), math.nan]
NO_SECONDS.append(numpy.float64("nan"))
TOO_LITTLE_TIME = [0, -1, 0.0, -0.5, -math.inf, numpy.float64(-1)]
TOO_MUCH_TIME = [math.inf, 1e300, 10**400]
OUT_OF_TIME = [*TOO_LITTLE_TIME, *TOO_MUCH_TIME]

SOON, LATER = datetime(2100, 1, 1, tzinfo=UTC), datetime(2100, 1, 2, tzinfo=UTC)

OPTIONAL = ("n", "crash_retries", "max_tasks_per_child", "memory_limit", "memory_limit_hard", "blas_threads")


@pytest.mark.parametrize(
    ("option", "low", "high"),
    [
        ("n", 1, 256),
        ("retries", 0, 1_000_000),
        ("crash_retries", 0, 1_000_000),
        ("max_pending", 1, 1 << 40),
        ("slots", 1, 256),
        ("max_tasks_per_child", 1, 1 << 40),
        ("nice", 0, 19),
        ("blas_threads", 1, 4096),
        ("memory_limit", 16 << 20, 1 << 50),
        ("memory_limit_hard", 16 << 20, 1 << 50),
        ("max_payload_bytes", 1 << 12, 1 << 40),
        ("child_ring_bytes", 1 << 12, 1 << 30),
        ("client_ring_bytes", 1 << 12, 1 << 30),
    ],
)
def test_an_option_that_counts(option: str, low: int, high: int) -> None:
    for value in (low - 1, -5):
        refuse(ProcessWorker, **{option: value}, says=[f"{option} must be at least {low}, not {value}"])
    for value in (high + 1, 10**30):
        refuse(ProcessWorker, **{option: value}, says=[f"{option} must be at most {high}, not {value}"])
    for value in NO_INT:
        if not (value is None and option in OPTIONAL):
            refuse(ProcessWorker, **{option: value}, kind=InvalidArgument, says=[option, str(low), repr(value)])


@pytest.mark.parametrize("option", ["timeout", "grace", "lease_ttl", "start_timeout", "kill_timeout"])
def test_an_option_in_seconds(option: str) -> None:
    for value in TOO_LITTLE_TIME:
        refuse(ProcessWorker, **{option: value}, says=[f"{option} must be greater than 0 s, not {value!r}"])
    for value in TOO_MUCH_TIME:
        refuse(ProcessWorker, **{option: value}, says=[f"{option} must be at most 1000000000 s, not {value!r}"])
    for value in NO_SECONDS:
        says = [f"{option} must be a number of seconds", f"not {value!r}"]
        refuse(ProcessWorker, **{option: value}, kind=InvalidArgument, says=says)


def test_a_lease_that_no_heartbeat_can_keep() -> None:
    refuse(ProcessWorker, lease_ttl=0.009, says=["lease_ttl", "0.01", "0.009"])
    with ProcessWorker(n=1, lease_ttl=0.01, crash_retries=1000) as pool:
        assert pool.submit(abs, -1).result() == 1


def test_a_ring_of_a_size_that_is_no_power_of_two() -> None:
    for option in ("child_ring_bytes", "client_ring_bytes"):
        refuse(ProcessWorker, **{option: 5000}, says=[option, "power of two", "5000"])


@pytest.mark.parametrize("value", [5, "all", b"1", "", 1.0], ids=repr)
def test_cores_that_are_none(value: object) -> None:
    says = [f"cpu_affinity must be a set of cores, 'spread' or None, not {value!r}"]
    refuse(ProcessWorker, cpu_affinity=value, kind=InvalidArgument, says=says)


def test_cores_that_are_not_there() -> None:
    for value in ([], {60_000}, [*os.sched_getaffinity(0), 60_000]):
        says = ["cpu_affinity must be some of the cores that this process may use (", f"not {value!r}"]
        refuse(ProcessWorker, cpu_affinity=value, says=says)
    refuse(ProcessWorker, cpu_affinity=[-1], says=["a core of cpu_affinity must be at least 0, not -1"])
    refuse(
        ProcessWorker, cpu_affinity=["0"], kind=InvalidArgument, says=["a core of cpu_affinity must be an int", "'0'"]
    )


def test_a_hard_limit_of_memory_below_the_soft_one() -> None:
    says = [f"memory_limit_hard must be at least memory_limit={32 << 20}, not {16 << 20}"]
    refuse(ProcessWorker, memory_limit=32 << 20, memory_limit_hard=16 << 20, says=says)


OF_TASKS = (
    "options() takes timeout, retries, crash_retries, retry_policy, queue, priority, weight, "
    "concurrency_key, concurrency"
)


def test_an_unknown_option_names_those_that_this_call_takes(pool: ProcessWorker) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ProcessWorker(unheard_of=3)
    message, _, taken = str(caught.value).partition("; ProcessWorker takes ")
    assert message == "unknown option 'unheard_of'"
    signature = [name for name in inspect.signature(ProcessWorker).parameters if name != "others"]
    rest = ["child_ring_bytes", "client_ring_bytes", "slots", "max_payload_bytes", "arena_max_bytes"]
    assert taken.split(", ") == [*signature, *rest]
    with pytest.raises(InvalidArgument) as caught:
        pool.options(unheard_of=3)
    assert str(caught.value) == f"unknown option 'unheard_of'; {OF_TASKS}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_workers", "did you mean 'n'?"),
        ("processes", "did you mean 'n'?"),
        ("n_jobs", "did you mean 'n'?"),
        ("initialiser", "did you mean 'initializer'?"),
        ("tiemout", "did you mean 'timeout'?"),
        ("slot", "did you mean 'slots'?"),
        ("mp_context", "a fork of a process without threads"),
        ("maxtasksperchild", "did you mean 'max_tasks_per_child'?"),
        ("chunksize", "it is an argument of map()"),
    ],
)
def test_an_option_of_another_pool_or_nearly_one_of_ours_is_known(name: str, hint: str) -> None:
    refuse(ProcessWorker, **{name: 3}, kind=TypeError, says=[f"unknown option {name!r}: ", hint])


def test_an_option_of_the_worker_is_none_of_tasks(pool: ProcessWorker) -> None:
    for name in ("n", "initializer", "initargs", "preload", "slots"):
        concerns = f"option {name!r} concerns the whole worker: give it to ProcessWorker; {OF_TASKS}"
        refuse(pool.options, **{name: 3}, says=[concerns])
    refuse(pool.options, max_workers=3, says=[f"did you mean 'n' of ProcessWorker? {OF_TASKS}"])
    refuse(pool.options, tiemout=3, says=[f"did you mean 'timeout'? {OF_TASKS}"])


@pytest.mark.parametrize("name", ["id", "name", "deadline", "run_at", "idempotency_key", "fingerprint", "metadata"])
def test_an_option_of_a_task_alone_says_so(pool: ProcessWorker, name: str) -> None:
    assert name in {field.name for field in fields(Task)}
    hint = f"unknown option {name!r}: it belongs to a Task: write register_task(Task(f, (x,), {name}=...)); "
    refuse(pool.options, **{name: 3}, says=[hint + OF_TASKS])
    refuse(ProcessWorker, **{name: 3}, says=[hint])


def test_a_verb_of_the_worker_says_that_a_view_has_it_not(pool: ProcessWorker) -> None:
    view = pool.options(retries=1)
    for verb, more in (("register_task", "; say the options in the Task"), ("wait", "")):
        with pytest.raises(AttributeError) as told:
            getattr(view, verb)
        message = f"'TaskView' object has no attribute '{verb}': it belongs to the ProcessWorker itself, and not to"
        assert str(told.value) == f"{message} what its options() gives{more}"
    for each, kind in ((view, "TaskView"), (pool, "ProcessWorker")):
        with pytest.raises(AttributeError) as told:
            getattr(each, "sumbit")  # noqa: B009  # a type checker would refuse it
        assert str(told.value) == f"'{kind}' object has no attribute 'sumbit'"
        assert (told.value.name, told.value.obj) == ("sumbit", each), "so Python says what was meant"
    assert not hasattr(view, "__getstate_manages_dict__")

    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            with pytest.raises(AttributeError, match=r"it belongs to the AsyncProcessWorker itself.*in the Task$"):
                w.options(retries=1).register_task  # type: ignore[attr-defined]  # noqa: B018
            with pytest.raises(AttributeError, match=r"^'AsyncProcessWorker' object has no attribute 'sumbit'$"):
                w.sumbit  # type: ignore[attr-defined]  # noqa: B018

    asyncio.run(main())


def test_a_bound_of_an_option_of_tasks(pool: ProcessWorker) -> None:
    refuse(pool.options, retries=-1, says=["retries must be at least 0, not -1"])
    refuse(pool.options, timeout=0, says=["timeout must be greater than 0 s, not 0; None is no limit"])
    with pytest.raises(TypeError, match="positional"):
        ProcessWorker(2, 3)  # type: ignore[misc]


def test_preload_and_initializer() -> None:
    refuse(ProcessWorker, preload="numpy", kind=InvalidArgument, says=["preload", "sequence", "'numpy'"])
    refuse(ProcessWorker, preload=5, kind=InvalidArgument, says=["preload", "sequence", "5"])
    refuse(ProcessWorker, preload=["json", os], kind=InvalidArgument, says=["preload", "names", "module 'os'"])
    refuse(ProcessWorker, initializer=5, kind=InvalidArgument, says=["initializer", "callable", "5"])
    refuse(ProcessWorker, initializer=print, initargs=5, kind=InvalidArgument, says=["initargs", "5"])
    lock = __import__("threading").Lock()
    refuse(ProcessWorker, initializer=print, initargs=(lock,), kind=MPWorkerError, says=["initializer", "lock"])


def fails_to_start(why: str, first_frame: str, **options: Any) -> None:
    """Task and refusal say why on one line; their cause is the traceback, of the user's frames alone."""
    with ProcessWorker(**options) as pool:
        future = pool.submit(pow, 2, 3)
        error = future.exception()
        assert isinstance(error, StartFailed)
        assert str(error) == f'task {future.task_id} ("pow"): the children cannot start: {why}'
        with pytest.raises(StartFailed) as caught:
            pool.submit(pow, 2, 3)
        assert str(caught.value) == f"the children cannot start: {why}"
    for each in (error, caught.value):
        assert isinstance(each.__cause__, RemoteTraceback)
        text = each.__cause__.text
        if first_frame:
            assert text.splitlines()[0] == "Traceback (most recent call last):"
            assert first_frame in text.splitlines()[1]
        assert "mpworker/" not in text


def test_a_module_that_cannot_be_preloaded_is_told_in_a_line_and_its_traceback_is_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "preload of 'no_such_module' raised ModuleNotFoundError: No module named 'no_such_module'"
    fails_to_start(missing, "", n=1, preload=["json", "no_such_module"])
    (tmp_path / "needy.py").write_text("import json\nimport no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    needy = "preload of 'needy' raised ModuleNotFoundError: No module named 'no_such_module'"
    fails_to_start(needy, 'needy.py", line 2', n=1, preload=["needy"])


def test_an_initializer_that_raises_is_told_in_a_line_and_its_traceback_is_the_cause() -> None:
    def initializer(number: int) -> None:
        raise LookupError(f"no such thing:\n{number}")

    why = "3 starts in a row failed, the last one so: the initializer raised LookupError: no such thing: 7"
    fails_to_start(why, "in initializer", n=1, initializer=initializer, initargs=(7,))


class OnlyHere:
    def __reduce__(self) -> Any:
        return __import__, ("no_such_module",)


def test_an_initializer_that_cannot_be_unpickled_says_so() -> None:
    why = (
        "3 starts in a row failed, the last one so: the initializer or its initargs cannot be unpickled in the child: "
    )
    fails_to_start(
        f"{why}ModuleNotFoundError: No module named 'no_such_module'",
        "",
        n=1,
        initializer=print,
        initargs=(OnlyHere(),),
    )


def test_python_that_is_no_interpreter(tmp_path: Path) -> None:
    missing = str(tmp_path / "python")
    refuse(ProcessWorker, python=missing, says=["python", missing])
    refuse(ProcessWorker, python=str(tmp_path), says=["python", str(tmp_path)])
    for value in (0, 5, True, b"/usr/bin/python3"):
        refuse(ProcessWorker, python=value, kind=InvalidArgument, says=["python", repr(value)])
    plain = tmp_path / "plain.txt"
    plain.touch()
    refuse(ProcessWorker, python=plain, says=["python", "no executable", str(plain)])
    plain.chmod(0o700)
    refuse(ProcessWorker, python=plain, says=["python", "no program", str(plain)])
    plain.write_text("#!/no/such/interpreter\n")
    refuse(ProcessWorker, python=plain, says=["python", "no program", str(plain)])


def test_submit_and_map_of_what_cannot_be_called(pool: ProcessWorker) -> None:
    for value in (5, "len", None, [len]):
        refuse(pool.submit, value, kind=InvalidArgument, says=[f"submit needs a callable, not {value!r}: write"])
        refuse(pool.map, value, [1], kind=InvalidArgument, says=[f"map needs a callable, not {value!r}: write"])


async def fetch(_: int) -> int:
    return 1


async def fetch_each(_: int) -> AsyncIterator[int]:
    yield 1


def count_up(_: int) -> Iterator[int]:
    yield 1


class Fetcher:
    async def fetch(self, _: int) -> int:
        return 1


LOCK = threading.Lock()


def take_lock() -> None:
    LOCK.acquire()


def takes_it_for_us() -> None:
    take_lock()


def by_value(function: Any, **namespace: Any) -> Any:
    """A function as of a script, which takes its globals along."""
    return types.FunctionType(function.__code__, {**namespace, "__name__": "__main__"}, function.__name__)


def captures(what: Any) -> Callable[[], Any]:
    return lambda: what


@pytest.mark.parametrize(
    ("call", "arguments", "culprit"),
    [
        (print, (1, LOCK), "argument 1"),
        (by_value(take_lock, LOCK=LOCK), (), "the global 'LOCK' that 'take_lock' uses"),
        (
            functools.partial(by_value(takes_it_for_us, take_lock=by_value(take_lock, LOCK=LOCK))),
            (),
            "the global 'LOCK' that 'take_lock' uses",
        ),
        (captures(LOCK), (), "the variable 'what' that 'captures.<locals>.<lambda>' uses"),
    ],
)
def test_what_cannot_be_pickled_is_named(call: Any, arguments: tuple[Any, ...], culprit: str) -> None:
    end = f"cannot pickle '_thread.lock' object; it is {culprit}"
    end += "" if arguments else ": make it in the initializer or in the task"
    with ProcessWorker(n=1) as w:
        with pytest.raises(SerializationError) as told:
            w.submit(call, *arguments)
        assert str(told.value).endswith(end)
        if not arguments:
            with pytest.raises(SerializationError) as told:
                w.map(call, [])
            assert str(told.value).endswith(end)
    with pytest.raises(SerializationError) as told:
        ProcessWorker(n=1, initializer=call, initargs=arguments)
    assert str(told.value).endswith(end)


def test_an_asynchronous_function_is_refused_where_it_is_given(pool: ProcessWorker) -> None:
    async def local(_: int) -> int:
        return len(functions)

    functions = [fetch, fetch_each, local]
    for function in functions:
        says = [f"{function.__qualname__!r} is asynchronous", "asyncio.run(f(x))"]
        refuse(pool.submit, function, 1, kind=InvalidArgument, says=says)
        refuse(pool.map, function, [1], kind=InvalidArgument, says=says)
        refuse(ProcessWorker, initializer=function, kind=InvalidArgument, says=says)
    for initializer in (functools.partial(fetch, 1), Fetcher().fetch):
        refuse(ProcessWorker, initializer=initializer, kind=InvalidArgument, says=["fetch' is asynchronous"])
    assert pool.submit(lambda x: asyncio.run(fetch(x)), 1).result() == 1


@pytest.mark.filterwarnings("ignore:coroutine")
def test_what_cannot_be_sent_back_comes_with_a_hint(pool: ProcessWorker) -> None:
    for function in (Fetcher().fetch, functools.partial(fetch)):
        says = ["result of type coroutine", "asyncio.run(f(x))"]
        refuse(pool.submit(function, 1).result, kind=SerializationError, says=says)
        refuse(list, pool.map(function, [1]), kind=SerializationError, says=says)
    says = ["result of type generator", "return a list"]
    refuse(pool.submit(count_up, 1).result, kind=SerializationError, says=says)


def test_map_over_nothing_or_over_what_is_no_iterable(pool: ProcessWorker) -> None:
    refuse(pool.map, len, kind=InvalidArgument, says=["map", "at least one iterable"])
    for value in (5, None, len, int):
        refuse(pool.map, len, value, kind=InvalidArgument, says=["map", "iterables", repr(value)])
        refuse(pool.map, len, [1], value, kind=InvalidArgument, says=["map", "iterables", repr(value)])


def test_the_options_of_map(pool: ProcessWorker) -> None:
    for option, high in (("chunksize", 65535), ("buffersize", 1 << 40)):
        for value in (0, -1):
            refuse(pool.map, len, "ab", **{option: value}, says=[f"{option} must be at least 1, not {value}"])
        refuse(pool.map, len, "ab", **{option: high + 1}, says=[f"{option} must be at most {high}, not {high + 1}"])
        for value in (True, 2.0, "2", numpy.float64(2)):
            refuse(pool.map, len, "ab", **{option: value}, kind=InvalidArgument, says=[option, repr(value)])
    for value in [each for each in OUT_OF_TIME if each != 0]:
        refuse(pool.map, len, "ab", timeout=value, says=["timeout", repr(value)])
    for value in NO_SECONDS:
        refuse(pool.map, len, "ab", timeout=value, kind=InvalidArgument, says=["timeout", repr(value)])
    assert list(pool.map(len, ["a", "bc"])) == [1, 2]


def test_numbers_of_other_types_are_as_good_as_pythons_own() -> None:
    seconds = [Fraction(121, 2), numpy.float32(60.5), numpy.int64(60)]
    for number, count in zip(seconds, [Indexable(), numpy.int64(2), numpy.uint8(2)], strict=True):
        options = dict.fromkeys(("timeout", "grace", "lease_ttl", "start_timeout", "kill_timeout"), number)
        counts = dict.fromkeys(("n", "retries", "crash_retries"), count)
        sizes = {"max_pending": numpy.int64(100), "slots": numpy.uint8(16), "max_payload_bytes": numpy.uint32(1 << 20)}
        rings = dict.fromkeys(("child_ring_bytes", "client_ring_bytes"), numpy.int32(1 << 13))
        with ProcessWorker(**options, **counts, **sizes, **rings) as pool:
            view = pool.options(timeout=number, retries=count, crash_retries=count)
            for each in (pool, view):
                assert each.submit(pow, 2, 3).result() == 8
                squares = each.map(pow, [2, 3], [2, 2], chunksize=count, buffersize=count, timeout=number)
                assert list(squares) == [4, 9]
            with pytest.raises(TimeoutError, match=r"within 0\.0 s"):
                next(pool.map(time.sleep, [0.1], timeout=numpy.float64(0)))
            assert pool.stop_graceful(timeout=numpy.float32(60.5))


def test_the_timeout_of_a_stop(pool: ProcessWorker) -> None:
    for value in OUT_OF_TIME:
        refuse(pool.stop_graceful, value, says=["timeout", repr(value)])
    for value in NO_SECONDS:
        refuse(pool.stop_graceful, value, kind=InvalidArgument, says=["timeout", repr(value)])
    assert pool.submit(pow, 2, 3).result() == 8, "nothing was stopped"


def test_the_id_of_a_task(pool: ProcessWorker) -> None:
    ended = pool.submit(pow, 2, 3)
    ended.result()  # how it is stands in its repr
    for value in (None, 5, ended):
        refuse(pool.cancel_task, value, kind=InvalidArgument, says=["task id", "str", repr(value)])


def test_after_the_stop_nothing_is_accepted() -> None:
    pool = ProcessWorker(n=1)
    view = pool.options(retries=1)
    pool.stop_now()
    for call in (
        lambda: pool.submit(pow, 2, 3),
        lambda: view.submit(pow, 2, 3),
        lambda: pool.map(abs, [1]),
        lambda: view.map(abs, [1]),
        lambda: pool.submit(lambda: None),
        lambda: pool.options(retries=2),
    ):
        refuse(call, kind=WorkerStopped, says=["stopped"])
    with pytest.raises(RuntimeError):  # what code written for the library's executors catches
        pool.submit(pow, 2, 3)
    assert pool.processes() == {}


def test_a_bad_option_leaves_nothing_behind(tmp_path: Path) -> None:
    # The leak check of every test looks for processes and descriptors; what does not start is reaped too.
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o700)
    # Whether it ends before or after it is sent anything is a race.
    with pytest.raises(ConfigurationError, match=r"must be a Python .* it ended"):  # noqa: PT012
        pool = ProcessWorker(n=1, python=str(script))
        pool.submit(pow, 2, 3).result()


@pytest.mark.parametrize("kind", [ConfigurationError, InvalidArgument])
def test_they_are_what_the_language_raises_for_such_mistakes(kind: type[Exception]) -> None:
    assert issubclass(kind, ValueError)
    assert issubclass(InvalidArgument, TypeError)


def test_a_uncaught_mistake_shows_one_line_at_the_end(tmp_path: Path) -> None:
    done: subprocess.CompletedProcess[str] = programs.run_source(
        """
        from mpworker import ProcessWorker
        with ProcessWorker(n=0) as w:
            pass
        """,
        tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "mpworker.errors.ConfigurationError: n must be at least 1, not 0"


async def asynchronous(*_: object) -> None:
    """Returns something to be awaited."""


class HalfATracer:
    """Has no end."""

    def start(self, event: object) -> None:
        """The other half."""


class AsynchronousTracer(HalfATracer):
    """Has one that nobody awaits."""

    async def end(self, span: object, event: object) -> None:
        """The other half."""


@pytest.mark.parametrize("name", ["on_queued", "on_start", "on_retry", "on_finish"])
def test_a_hook_is_a_plain_function(name: str) -> None:
    hook: Any
    for hook in (3, "f", [print]):
        refuse(Hooks, **{name: hook}, says=[name, repr(hook), "callable or None"], kind=InvalidArgument)
    refuse(Hooks, **{name: asynchronous}, says=[name, "asynchronous", "nobody awaits it"], kind=InvalidArgument)


@pytest.mark.parametrize("hooks", [print, {"on_start": print}, Hooks, [Hooks()]], ids=repr)
def test_hooks_are_hooks(pool: ProcessWorker, hooks: Any) -> None:
    refuse(ProcessWorker, n=1, hooks=hooks, says=["hooks", "Hooks or None", repr(hooks)], kind=InvalidArgument)
    refuse(pool.set_hooks, hooks, says=["hooks", "Hooks or None", repr(hooks)], kind=InvalidArgument)


def test_a_tracer_has_a_start_and_an_end() -> None:
    for tracer in (print, HalfATracer()):
        refuse(ProcessWorker, n=1, tracer=tracer, says=["tracer", "start and end", repr(tracer)], kind=InvalidArgument)
    refuse(ProcessWorker, n=1, tracer=AsynchronousTracer(), says=["tracer.end", "asynchronous"], kind=InvalidArgument)


def test_a_logger_has_a_log() -> None:
    for logger in (print, "mpworker", 30):
        says = ["logger", "log(level, event, **fields)", repr(logger)]
        refuse(ProcessWorker, n=1, logger=logger, says=says, kind=InvalidArgument)


@pytest.mark.parametrize("name", ["submit_middleware", "execute_middleware"])
def test_middleware_is_a_sequence_of_functions(name: str) -> None:
    for value in (print, "print", 3, None):
        refuse(ProcessWorker, n=1, **{name: value}, says=[name, "sequence of functions"], kind=InvalidArgument)
    refuse(ProcessWorker, n=1, **{name: [print, 3]}, says=[name, "3 is none"], kind=InvalidArgument)
    refuse(ProcessWorker, n=1, **{name: [asynchronous]}, says=[name, "asynchronous"], kind=InvalidArgument)
    refuse(ProcessWorker, n=1, **{name: [print] * 101}, says=[name, "at most 100", "101"])


OF_A_TASK: list[tuple[dict[str, Any], list[str]]] = [
    ({"priority": "high"}, ["priority must be an int", "'high'"]),
    ({"priority": False}, ["priority must be an int", "False"]),
    ({"weight": True}, ["weight must be an int", "True"]),
    ({"weight": 0}, ["weight must be at least 1, not 0"]),
    ({"queue": None}, ["a queue's name must be a str, not None"]),
    ({"queue": ""}, ["a queue's name must have 1 to 200 characters, not 0"]),
    ({"retries": -1}, ["retries must be at least 0, not -1"]),
    ({"retries": None}, ["retries must be an int", "None"]),
    ({"crash_retries": 0.5}, ["crash_retries must be an int", "0.5"]),
    ({"retry_policy": "often"}, ["retry_policy must be a RetryPolicy or None, not 'often'"]),
    ({"timeout": -1}, ["timeout must be greater than 0 s, not -1"]),
    ({"timeout": numpy.array([1, 2])}, ["timeout must be a number of seconds or None"]),
    ({"concurrency": 0}, ["concurrency must be at least 1, not 0"]),
    ({"concurrency_key": None}, ["concurrency_key must be a str, not None"]),
    ({"name": None}, ["name must be a str, not None"]),
    ({"id": ""}, ["id must have 1 to 200 characters, not 0"]),
    ({"args": "ab"}, ["args must be a tuple of arguments, not 'ab'"]),
    ({"args": {1}}, ["args must be a tuple of arguments, not {1}"]),
    ({"kwargs": [1]}, ["kwargs must be a dict, not [1]"]),
    ({"kwargs": None}, ["kwargs must be a dict, not None"]),
    ({"kwargs": {"a": 1, 1: 2}}, ["each key in kwargs must be a str, the name of an argument, not 1"]),
    ({"metadata": {1: 2}}, ["each key in metadata must be a str, not 1"]),
    ({"metadata": {"a": LOCK}}, ["metadata must be what JSON can write", "lock"]),
    ({"deadline": -1}, ["deadline must be at least 0 s, not -1"]),
    ({"run_at": "noon"}, ["run_at must be a number of seconds or a datetime with a time zone, not 'noon'"]),
    ({"run_at": 5, "deadline": 3.0}, ["run_at must not be later than deadline=3.0, not 5: it would never begin"]),
    ({"run_at": LATER, "deadline": SOON}, [f"run_at must not be later than deadline={SOON!r}, not {LATER!r}"]),
]


@pytest.mark.parametrize(
    ("said", "says"), OF_A_TASK, ids=[f"{n}-{'-'.join(case[0])}" for n, case in enumerate(OF_A_TASK)]
)
def test_a_task_is_checked_where_it_is_made(said: dict[str, Any], says: list[str]) -> None:
    refuse(lambda: Task(**{"fn": len} | said), says=says, kind=MPWorkerError)


def test_a_task_that_is_right_is_made() -> None:
    Task(len, ["four"], run_at=3, deadline=3.0)
    Task(len, ["four"], run_at=SOON, deadline=LATER, queue="mail", priority=-1, weight=2, timeout=None)
    Task(len, ("four",), types.MappingProxyType({"a": 1}), retries=numpy.int64(2), metadata=types.MappingProxyType({}))
    Task(len, run_at=5, deadline=SOON)  # which may be right, or not, when it is registered


def test_a_task_that_would_begin_after_its_deadline(pool: ProcessWorker) -> None:
    past = datetime(2001, 1, 1, tzinfo=UTC)
    for task in (Task(len, ("four",), run_at=5, deadline=past), Task(len, ("four",), run_at=LATER, deadline=60.0)):
        refuse(pool.register_task, task, says=["run_at must not be later than deadline=", "it would never begin"])
    refuse(pool.register_task_after, 5, Task(len, ("four",), deadline=3), says=["deadline=3, not 5.0"])


def test_a_time_is_said_once(pool: ProcessWorker) -> None:
    task = Task(len, ("four",), run_at=5)
    for call, when in ((pool.register_task_after, 0.1), (pool.register_task_at, LATER), (pool.register_task_at, 1e9)):
        refuse(call, when, task, says=["the Task says run_at=5 itself: register it by register_task"])

    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            with pytest.raises(ConfigurationError, match="the Task says run_at=5 itself"):
                await w.register_task_after(0.1, task)
            with pytest.raises(ConfigurationError, match="the Task says run_at=5 itself"):
                await w.register_task_at(LATER, task)

    asyncio.run(main())


def test_what_matters_only_with_another_option_is_refused_without_it(pool: ProcessWorker) -> None:
    refuse(ProcessWorker, n=1, burst=5, says=["burst=5 is for a rate, which is not given"])
    refuse(pool.set_rate, None, 5, says=["burst=5 is for a rate, which is not given"])
    says = ["initargs=(1, 2) is for an initializer, which is not given"]
    refuse(ProcessWorker, n=1, initargs=iter((1, 2)), says=says)
    says = ["concurrency=2 is for tasks with a concurrency_key, which is not given"]
    view = pool.options(concurrency=2)
    refuse(view.submit, abs, -1, says=says)
    refuse(view.map, abs, [-1], says=says)
    refuse(view.register_cron_task, "each", "@every 60s", print, says=says)
    refuse(pool.register_task, Task(abs, (-1,), concurrency=2), says=says)


def test_and_it_may_come_later() -> None:
    with ProcessWorker(n=1, queues={"mail": QueueOptions(burst=5)}, initargs=()) as w:
        w.set_queue("mail", rate=50.0)
        assert w.queues()["mail"].burst == 5
        two = w.options(concurrency=2)
        assert two.options(concurrency_key="k").submit(abs, -1).result() == 1
        assert two.options(concurrency=1).submit(abs, -1).result() == 1
        two.register_cron_task("by the view", "@every 60s", Task(abs, (-1,), concurrency_key="k"))
        keyed = w.options(concurrency_key="k")
        keyed.register_cron_task("by the task", "@every 60s", Task(abs, (-1,), concurrency=2))

    def with_a_key(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        return call_next(replace(task, concurrency_key="k"))

    with ProcessWorker(n=1, submit_middleware=[with_a_key]) as w:
        assert w.options(concurrency=2).submit(abs, -1).result() == 1
        assert w.execute_task(Task(abs, (-1,), concurrency=2)) == 1


def test_an_event_loop_refuses_it_too() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            view = w.options(concurrency=2)
            refuse(view.submit, abs, -1, says=["concurrency=2 is for tasks with a concurrency_key"])
            refuse(view.map, abs, [-1], says=["concurrency=2 is for tasks with a concurrency_key"])
            with pytest.raises(ConfigurationError, match="concurrency=2 is for tasks with a concurrency_key"):
                await w.register_task(Task(abs, (-1,), concurrency=2))

    asyncio.run(main())


def test_a_queue_of_a_wrong_weight_is_named() -> None:
    for value in (0, -1):
        says = [f"the weight of queue 'mail' must be at least 1, not {value}"]
        refuse(ProcessWorker, n=1, queues={"ok": 1, "mail": value}, says=says)
    refuse(ProcessWorker, n=1, queues={"ok": 1, "mail": 101}, says=["the weight of queue 'mail' must be at most 100"])
    for value in NO_INT:
        says = ["the weight of queue 'mail' must be an int from 1 to 100", repr(value)]
        refuse(ProcessWorker, n=1, queues={"ok": 1, "mail": value}, says=says, kind=InvalidArgument)


def test_a_quantile_is_of_a_share() -> None:
    latency = Latency(count=100, total=3.0, max=1.5, buckets=((0.016, 90), (2.0, 10)))
    for value in (-0.01, -1, -math.inf):
        refuse(latency.quantile, value, says=[f"share must be at least 0, not {value!r}"])
    for value in (1.01, 99, math.inf):
        refuse(latency.quantile, value, says=[f"share must be at most 1, not {value!r}"])
    for value in ("0.5", None, True, math.nan, [0.5]):
        refuse(latency.quantile, value, says=["share must be a number from 0 to 1", repr(value)], kind=InvalidArgument)
    assert latency.quantile(0) == latency.quantile(numpy.float32(0.5)) == 0.016
    assert latency.quantile(1) == latency.quantile(Fraction(1)) == 1.5


HUGE = 10**5000  # which no message can write out


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda w, value: w.options(timeout=value), ["timeout must be at most 1000000000 s"]),
        (lambda w, value: w.options(retries=value), ["retries must be at most 1000000"]),
        (lambda w, value: w.options(priority=-value), ["priority must be at least -2147483648"]),
        (lambda w, value: w.set_rate(value), ["rate must be at most 1e+09"]),
        (lambda w, value: w.set_rate(-value), ["rate must be at least 1e-06"]),
        (lambda w, value: w.wait(timeout=value), ["timeout must be at most 1000000000 s"]),
        (lambda w, value: w.submit(abs, 1).result(value), ["timeout must be at most 1000000000 s"]),
    ],
)
def test_a_number_that_cannot_be_written_is_out_of_bounds_all_the_same(
    pool: ProcessWorker, call: Callable[..., Any], says: list[str]
) -> None:
    refuse(call, pool, HUGE, says=[*says, "not int of 16610 bits"])


class Unprintable:
    def __repr__(self) -> str:
        raise LookupError


def test_a_value_without_a_repr_is_named_by_its_type(pool: ProcessWorker) -> None:
    refuse(pool.options, timeout=Unprintable(), kind=InvalidArgument, says=["timeout must be", "not Unprintable"])


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("verb", ["result", "exception"])
def test_what_a_future_is_waited_for(pool: ProcessWorker, verb: str, ended: bool) -> None:
    future = pool.submit(time.sleep, 0.0 if ended else 60.0)
    if ended:
        future.result()
    wait = getattr(future, verb)
    for value in NO_SECONDS:
        refuse(wait, value, kind=InvalidArgument, says=["timeout must be a number of seconds or None", repr(value)])
    refuse(wait, 1e300, says=["timeout must be at most 1000000000 s"])
    for value in (0, -1, -0.5, -HUGE, -math.inf, numpy.float32(0)):
        if ended:
            assert wait(value) is None
        else:
            with pytest.raises(TimeoutError):
                wait(value)
    future.cancel()


def test_a_wait_that_is_none_runs_nothing(pool: ProcessWorker) -> None:
    before = pool.metrics().accepted
    for value in ("x", True, math.nan):
        refuse(
            pool.execute_task,
            Task(abs, (1,)),
            timeout=value,
            kind=InvalidArgument,
            says=["timeout must be a number of seconds or None"],
        )
    refuse(pool.execute_task, Task(abs, (1,)), timeout=-1, says=["timeout must be at least 0 s"])
    assert pool.metrics().accepted == before


@pytest.mark.parametrize("value", ["no", 5, None, 0])
def test_what_is_true_or_false_is_a_bool(pool: ProcessWorker, value: Any) -> None:
    for name, call in (
        ("wait", lambda: pool.stop_graceful(wait=value)),
        ("cancel_queued", lambda: pool.stop_graceful(cancel_queued=value)),
        ("return_exceptions", lambda: pool.map(abs, [1], return_exceptions=value)),
        ("debug", lambda: ProcessWorker(n=1, debug=value)),
    ):
        refuse(call, kind=InvalidArgument, says=[f"{name} must be True or False, not {value!r}"])

    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            for name in ("wait", "cancel_queued"):
                with pytest.raises(InvalidArgument, match=f"{name} must be True or False, not {value!r}"):
                    await w.stop_graceful(**{name: value})
            assert await w.submit(abs, -1) == 1, "it goes on"

    asyncio.run(main())
