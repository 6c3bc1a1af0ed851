"""`ProcessWorker(debug=True)`: what a pool does, done here. Most tests run against both."""

import asyncio
import concurrent.futures as cf
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pooljobs
import programs
import pytest
import retry_tasks
from kinds import Make

import mpworker
from mpworker import AsyncProcessWorker, ProcessWorker, RetryPolicy, TaskFuture
from mpworker.errors import (
    ConfigurationError,
    InvalidArgument,
    MPWorkerError,
    RemoteTraceback,
    Retry,
    SerializationError,
    StartFailed,
    TaskCancelled,
    TaskExited,
    TaskNotFound,
    WorkerStopped,
)


class Thing:
    """Travels by its name."""

    kept = 0

    def __eq__(self, other: object) -> bool:
        return type(other) is Thing

    __hash__ = None  # type: ignore[assignment]


class Account(Exception):
    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"{number}: {why}")
        self.number = number


class Locked(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.lock = threading.Lock()


def refuse(number: int) -> None:
    raise Account(number, "no such account")


def refuse_locked(why: str) -> None:
    raise Locked(why)


def raise_it(error: BaseException) -> None:
    raise error


# ------------------------------------------------------------ calls


def test_a_call_and_its_value(w: ProcessWorker) -> None:
    future = w.submit(pow, 2, 10)
    assert isinstance(future, TaskFuture)
    assert future.result() == 1024
    assert (future.done(), future.running(), future.cancelled(), future.cancel()) == (True, False, False, False)
    assert future.exception() is None
    assert w.submit(lambda *args, **kwargs: (args, kwargs), 1, fn=2, self=3).result() == ((1,), {"fn": 2, "self": 3})
    assert f'{future.task_id} ("pow") finished' in repr(future)


def test_arguments_and_results_are_copies(w: ProcessWorker) -> None:
    values = [1]
    returned = w.submit(lambda given: given.append(2) or given, values).result()
    assert (values, returned) == ([1], [1, 2])
    thing = Thing()
    assert w.submit(lambda given: given, thing).result() is not thing
    results = list(w.map(lambda given: given.append(2) or given, [values]))
    assert (values, results) == ([1], [[1, 2]])


def test_a_function_by_value_leaves_no_trace(w: ProcessWorker) -> None:
    seen: list[int] = []

    def adds(number: int) -> list[int]:
        seen.append(number)
        return seen

    assert [w.submit(adds, number).result() for number in range(2)] == [[0], [1]]
    assert list(w.map(adds, range(2))) == [[0], [0, 1]], "a map sends its function once"
    assert seen == []


def test_what_a_call_raises(w: ProcessWorker) -> None:
    error = w.submit(refuse, 7).exception()
    assert type(error) is Account
    assert (error.number, str(error)) == (7, "7: no such account")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in refuse\n" in str(error.__cause__)
    with pytest.raises(Account):
        w.submit(refuse, 7).result()


def test_what_cannot_be_sent_fails_in_the_same_way(w: ProcessWorker) -> None:
    with pytest.raises(SerializationError, match=r"the call of 'abs' cannot be pickled: .*it is argument 0"):
        w.submit(abs, pooljobs.Unpicklable())
    with pytest.raises(SerializationError, match=r"the function .* cannot be pickled"):
        w.map(pooljobs.Unpicklable().__eq__, [1])
    error = w.submit(len, pooljobs.Unloadable()).exception()
    assert isinstance(error, SerializationError)
    assert "arguments cannot be unpickled in the child: ValueError: an Unloadable cannot be loaded" in str(error)
    error = w.submit(pooljobs.Unpicklable).exception()
    assert isinstance(error, SerializationError)
    assert "the result of type pooljobs.Unpicklable cannot be sent back" in str(error)
    error = w.submit(refuse_locked, "no key").exception()
    assert isinstance(error, SerializationError)
    assert (error.raised_type, error.raised_message) == ("test_inline.Locked", "no key")
    items = [1, pooljobs.Unpicklable(), pooljobs.Unloadable(), 4]
    one, unpicklable, unloadable, four = w.map(str, items, return_exceptions=True)
    assert (one, four) == ("1", "4")
    assert "cannot be sent" in str(unpicklable)
    assert "cannot be unpickled" in str(unloadable)


def test_what_is_too_large(make: Make) -> None:
    with make(max_payload_bytes=1 << 14) as w:
        with pytest.raises(SerializationError, match="exceeds max_payload_bytes=16384"):
            w.submit(len, bytes(1 << 14))
        with pytest.raises(SerializationError, match=r"result of type bytes .*exceeds max_payload_bytes=16384"):
            w.submit(bytes, 1 << 14).result()


def test_what_is_no_task(w: ProcessWorker) -> None:
    async def fetch() -> None: ...

    for call in (lambda: w.submit(3), lambda: w.submit(fetch), lambda: w.map(abs, 3), lambda: w.options(retry=3)):  # type: ignore[call-overload, call-arg]
        with pytest.raises(InvalidArgument):
            call()


def test_an_exit_is_told(w: ProcessWorker) -> None:
    error = w.submit(sys.exit, 3).exception()
    assert isinstance(error, TaskExited)
    assert error.code == "3"


def test_the_context(w: ProcessWorker) -> None:
    future = w.submit(lambda: mpworker.current().task_id)
    assert future.result() == future.task_id
    assert w.submit(lambda: mpworker.current().attempt).result() == 1
    assert len(set(w.map(lambda _: mpworker.current().task_id, range(3), chunksize=1))) == 3
    with pytest.raises(MPWorkerError, match="outside a task"):
        mpworker.current()


def test_queues(make: Make) -> None:
    with make(queues={"mail": 3}, rate=1e6) as w:
        assert w.options(queue="mail", priority=3).submit(abs, -1).result() == 1
        assert w.submit(abs, -1).result() == 1
        w.set_queue("mail", weight=5)
        w.set_rate(None)
        states = w.queues()
        assert (states["mail"].weight, states["mail"].queued, states["mail"].burst) == (5, 0, None)
        assert (states["default"].weight, states["default"].paused) == (1, False)
        w.pause()
        w.resume()
        assert w.submit(abs, -1).result() == 1
    assert w.queues() == {}


# ------------------------------------------------------------ retries


def test_retries_count(w: ProcessWorker, tmp_path: Path) -> None:
    twice = w.options(retries=2)
    assert twice.submit(retry_tasks.fail_until, tmp_path / "one", 3).result() == 3
    assert isinstance(twice.submit(retry_tasks.fail_until, tmp_path / "two", 9).exception(), retry_tasks.Transient)
    assert len(retry_tasks.times(tmp_path / "two")) == 3
    assert list(twice.map(functools.partial(retry_tasks.fail_until, attempt=2), [tmp_path / "map"])) == [2]
    assert isinstance(twice.submit(pooljobs.Unpicklable).exception(), SerializationError)


def test_a_retry_policy_judges(w: ProcessWorker, tmp_path: Path) -> None:
    policy = RetryPolicy(give_up_on=(ConnectionError,))
    view = w.options(retries=5, retry_policy=policy)
    assert isinstance(view.submit(retry_tasks.fail_until, tmp_path / "one", 9).exception(), ConnectionError)
    assert len(retry_tasks.times(tmp_path / "one")) == 1
    assert view.submit(retry_tasks.ask_until, tmp_path / "two", 3, 0.0).result() == 3
    assert isinstance(w.submit(raise_it, Retry(after=9.0)).exception(), Retry)


def test_a_paused_queue_holds_nothing_up(here: ProcessWorker) -> None:
    here.pause()
    assert here.submit(abs, -1).result() == 1


def test_a_pause_is_not_waited_for(here: ProcessWorker, tmp_path: Path) -> None:
    view = here.options(retries=5, retry_policy=RetryPolicy(base=1e6, cap=1e6, jitter="none"))
    assert view.submit(retry_tasks.fail_until, tmp_path / "one", 3).result() == 3
    assert view.submit(retry_tasks.ask_until, tmp_path / "two", 3, 1e6).result() == 3


# ------------------------------------------------------------ map


def test_map(w: ProcessWorker) -> None:
    for chunksize in (None, 1, 7):
        assert list(w.map(pooljobs.square, range(50), chunksize=chunksize)) == [n * n for n in range(50)]
    assert list(w.map(pooljobs.add, [1, 2, 3], [10, 20])) == [11, 22]
    assert list(w.map(pooljobs.square, [])) == []
    results = w.map(pooljobs.fail_if_odd, range(4))
    assert next(results) == 0
    with pytest.raises(ValueError, match=r"^1$"):
        next(results)
    assert list(results) == []
    mixed = list(w.map(pooljobs.fail_if_odd, range(4), return_exceptions=True))
    assert [str(each) for each in mixed] == ["0", "1", "2", "3"]


def test_an_input_that_fails(w: ProcessWorker) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    results = w.map(abs, broken())
    assert next(results) == 1
    with pytest.raises(LookupError, match="no more"):
        next(results)


def test_a_map_that_is_closed_runs_no_more(w: ProcessWorker, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")
    results = w.map(functools.partial(pooljobs.note, path), iter(range(1000)), buffersize=1)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert w.submit(abs, -1).result() == 1
    assert len(Path(path).read_text().split()) < 5


def test_a_map_reads_and_runs_an_item_when_its_result_is_taken(here: ProcessWorker, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    read = []

    def source() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = here.map(functools.partial(pooljobs.note, str(path)), source(), chunksize=10)
    assert (read, path.exists()) == ([0], False)
    for number in range(5):
        assert next(results) == number
        assert read == list(range(number + 1))
        assert path.read_text().split() == [str(each) for each in read]


def test_two_maps_in_turn(w: ProcessWorker) -> None:
    one, other = w.map(pooljobs.square, range(3)), w.map(abs, range(-2, 1))
    assert [next(other), next(one), next(other), next(one)] == [2, 0, 1, 1]
    assert (list(one), list(other)) == ([4], [0])


def test_a_map_that_has_no_time(w: ProcessWorker) -> None:
    results = w.map(lambda _: signal.sigtimedwait([signal.SIGUSR2], 0.1), range(50), timeout=0.05, chunksize=1)
    with pytest.raises(TimeoutError, match="was not done within"):
        list(results)


# ------------------------------------------------------------ the library's face


def test_it_is_an_executor(w: ProcessWorker) -> None:
    assert isinstance(w, cf.Executor)
    futures = [w.submit(pooljobs.square, number) for number in range(5)]
    assert sorted(each.result() for each in cf.as_completed(futures)) == [0, 1, 4, 9, 16]
    assert cf.wait(futures).not_done == set()
    called: list[object] = []
    told = threading.Event()
    futures[0].add_done_callback(lambda future: (called.append(future), told.set()))
    assert told.wait(60)
    assert called == [futures[0]]


def test_in_asyncio(w: ProcessWorker) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(w, pooljobs.square, 3) == 9
        assert await asyncio.wrap_future(w.submit(pooljobs.square, 4)) == 16
        with pytest.raises(ValueError, match=r"^x$"):
            await loop.run_in_executor(w, pooljobs.fail, "x")

    asyncio.run(main())


def test_several_threads(w: ProcessWorker) -> None:
    def use() -> list[int]:
        return [w.submit(pooljobs.square, 3).result(), *w.map(pooljobs.square, range(20))]

    with cf.ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(use) for _ in range(16)]:
            assert each.result(60) == [9, *(n * n for n in range(20))]


def test_cancel(w: ProcessWorker) -> None:
    future = w.submit(abs, -1)
    assert future.result() == 1
    assert not future.cancel()
    assert not w.cancel_task(future.task_id)
    with pytest.raises(TaskNotFound):
        w.cancel_task("unheard-of")


# ------------------------------------------------------------ begin and end


def test_the_end(make: Make) -> None:
    w = make()
    future = w.submit(abs, -1)
    results = w.map(pooljobs.square, [3])
    assert w.stop_graceful()
    assert (future.result(), list(results)) == (1, [9])
    for call in (lambda: w.submit(abs, 1), lambda: w.map(abs, [1]), lambda: w.options(retries=1)):
        with pytest.raises(WorkerStopped):
            call()
    assert w.stop_graceful()
    w.stop_now()
    w.shutdown()
    assert w.processes() == {}


@pytest.mark.parametrize("how", ["stop_now", "cancel_futures", "exception"])
def test_an_end_that_cancels(make: Make, tmp_path: Path, how: str) -> None:
    w = make()
    results = w.map(functools.partial(pooljobs.note, str(tmp_path / "notes")), range(10**6))
    assert next(results) == 0
    if how == "stop_now":
        w.stop_now()
    elif how == "cancel_futures":
        w.shutdown(cancel_futures=True)
    else:
        with pytest.raises(KeyError), w:
            raise KeyError
    with pytest.raises((TaskCancelled, WorkerStopped)):
        list(results)


@pytest.mark.parametrize("how", ["stop_now", "cancel_futures"])
def test_an_item_that_was_not_asked_for_does_not_run_at_the_end(here: ProcessWorker, tmp_path: Path, how: str) -> None:
    path = tmp_path / "notes"
    results = here.map(functools.partial(pooljobs.note, str(path)), range(3))
    if how == "stop_now":
        here.stop_now()
    else:
        here.shutdown(cancel_futures=True)
    with pytest.raises(TaskCancelled):
        next(results)
    assert not path.exists()


def test_shutdown_without_a_wait(make: Make) -> None:
    w = make()
    results = w.map(pooljobs.square, [3])
    w.shutdown(wait=False)
    with pytest.raises(WorkerStopped):
        w.submit(abs, 1)
    assert list(results) == [9]
    w.shutdown()


def test_the_initializer(make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")
    with make(initializer=pooljobs.note, initargs=(path, "begun"), preload=["decimal"]) as w:
        assert [w.submit(abs, number).result() for number in range(3)] == [0, 1, 2]
    assert Path(path).read_text() == "begun\n"
    with pytest.raises(SerializationError, match="initargs cannot be pickled"):
        make(initializer=print, initargs=[pooljobs.Unpicklable()])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"initializer": pooljobs.fail, "initargs": ["no database"]}, "the initializer raised ValueError: no database"),
        ({"preload": ["unheard_of"]}, "preload of 'unheard_of' raised ModuleNotFoundError"),
    ],
    ids=["initializer", "preload"],
)
def test_a_start_that_fails(make: Make, options: dict[str, Any], says: str) -> None:
    with make(**options) as w:
        with pytest.raises(StartFailed, match=says):
            w.submit(abs, 1).result()
        with pytest.raises(StartFailed, match=says):
            w.submit(abs, 1)
        assert not w.stop_graceful()


_GLOBALS = """
import sys
from mpworker import ProcessWorker

limit, hits = None, 0

class Thing:
    made = 0

def begin(value):
    global limit
    limit = value

def count(thing):
    global hits
    hits += 1
    return hits, limit, type(thing)

for debug in (False, True):
    for value in (1, 2):
        with ProcessWorker(n=1, initializer=begin, initargs=[value], debug=debug) as w:
            Thing.made += 1
            method = Thing.__init__
            assert [w.submit(count, Thing()).result() for _ in range(2)] == [(1, value, Thing)] * 2
            assert list(w.map(count, [Thing()] * 2)) == [(1, value, Thing), (2, value, Thing)]
            assert (limit, hits) == (None, 0)
            assert Thing.__init__ is method
assert Thing.made == 4
"""


def test_functions_and_classes_of_a_script(tmp_path: Path) -> None:
    programs.run_source(_GLOBALS, tmp_path)


def test_in_a_fork(w: ProcessWorker) -> None:
    assert w.submit(abs, -1).result() == 1
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            w.submit(abs, 1)
        except WorkerStopped as error:
            code = 0 if "before fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ------------------------------------------------------------ what only a debugger gets


def test_a_call_runs_before_submit_returns_and_here(here: ProcessWorker) -> None:
    threads = threading.active_count()
    future = here.submit(threading.get_ident)
    assert future.status >= 0
    assert future.result() == threading.get_ident()
    assert here.submit(os.getpid).result() == os.getpid()
    assert list(here.map(pooljobs.pid, [1])) == [os.getpid()]
    assert here.processes() == {"supervisor": None, "nursery": None, "children": []}
    assert "debug=True" in repr(here)
    assert threading.active_count() == threads


def test_an_exception_has_the_traceback_of_where_it_was_raised(here: ProcessWorker) -> None:
    for error in (
        here.submit(refuse, 7).exception(),
        here.submit(refuse_locked, "no key").exception(),
        *here.map(refuse, [7], return_exceptions=True),
    ):
        assert isinstance(error, BaseException)
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        assert frames[0].f_code.co_name.startswith("refuse")
        assert "mpworker" not in frames[0].f_globals["__name__"]
    with pytest.raises(Account) as caught:
        here.submit(refuse, 7).result()
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "refuse"
    assert here.submit(abs, 1).exception() is None


def test_no_timeout_is_enforced(here: ProcessWorker) -> None:
    assert here.options(timeout=1e-9).submit(sum, range(100_000)).result() == sum(range(100_000))


def test_what_the_user_stops_is_stopped(here: ProcessWorker) -> None:
    import bdb

    for kind in (KeyboardInterrupt, bdb.BdbQuit):
        with pytest.raises(kind):
            here.submit(raise_it, kind())
        with pytest.raises(kind):
            list(here.map(raise_it, [kind()]))
        with pytest.raises(MPWorkerError, match="outside a task"):
            mpworker.current()
    assert here.submit(abs, -1).result() == 1


def test_a_task_may_use_its_own_worker_and_stop_it() -> None:
    global worker
    worker = ProcessWorker(debug=True)
    future = worker.submit(_submit_inside)
    inner, after = future.result()
    assert inner != after == future.task_id
    stopped = worker.submit(_stop_inside)
    assert stopped.cancelled()
    with pytest.raises(WorkerStopped):
        worker.submit(abs, 1)


worker: ProcessWorker


def _submit_inside() -> tuple[str, str]:
    inner = worker.submit(_task_id).result()
    return inner, mpworker.current().task_id


def _task_id() -> str:
    return mpworker.current().task_id


def _stop_inside() -> None:
    assert not worker.stop_graceful()


def test_a_stop_waits_for_the_task_of_another_thread(here: ProcessWorker, tmp_path: Path) -> None:
    gate = pooljobs.Gate(tmp_path)
    with cf.ThreadPoolExecutor(2) as threads:
        held = threads.submit(here.submit, pooljobs.hold, gate.folder, "held")
        gate.wait_begun()
        stop = threads.submit(here.stop_graceful)
        assert not cf.wait([stop], 0.05).done
        gate.release()
        assert held.result(60).result() == "held"
        assert stop.result(60)
    gate.close()


def test_a_task_of_another_pool_may_debug(tmp_path: Path) -> None:
    def inside() -> tuple[int, str, str]:
        with ProcessWorker(debug=True) as w:
            inner = w.submit(_task_id).result()
            return w.submit(os.getpid).result(), inner, mpworker.current().task_id

    with ProcessWorker(n=1) as w:
        future = w.submit(inside)
        pid, inner, after = future.result()
        assert pid == w.submit(os.getpid).result()
        assert inner != after == future.task_id


def test_a_worker_that_is_dropped_ends() -> None:
    from mpworker import clients

    w = ProcessWorker(debug=True)
    w.submit(abs, 1)
    mine = w._client
    assert mine in clients.living
    del w
    assert mine not in clients.living


def test_bad_input() -> None:
    for value in (1, "yes", None):
        with pytest.raises(InvalidArgument, match=f"debug must be True or False, not {value!r}"):
            ProcessWorker(debug=value)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="n must be at least 1"):
        ProcessWorker(n=0, debug=True)
    with pytest.raises(InvalidArgument, match="debug=True would run tasks in the event loop"):
        AsyncProcessWorker(debug=True)  # type: ignore[call-arg]
