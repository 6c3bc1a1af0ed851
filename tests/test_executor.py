"""`ProcessWorker` as a `concurrent.futures.Executor`, and its futures as `concurrent.futures.Future`.

The check-list is CPython's own `test.test_concurrent_futures`; where it differs on purpose, the test says so.
"""

import asyncio
import concurrent.futures as cf
import contextlib
import gc
import logging
import operator
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import leaks
import pooljobs
import pytest
from pooljobs import Gate

import mpworker
from mpworker import ProcessWorker, TaskFuture
from mpworker.errors import MPWorkerError, RemoteTraceback, SerializationError, TaskCancelled, TaskExited, TaskNotFound

GUARD = 60.0  # seconds; only a bound for what would hang


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=2) as worker:
        assert leaks.wait_until(
            lambda: [child["ready"] for child in worker.processes()["children"]] == [True, True], GUARD
        )
        yield worker


class Calls:
    """A done-callback that remembers; `wait` until it was called."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.threads: list[threading.Thread] = []
        self._called = threading.Semaphore(0)

    def __call__(self, future: "cf.Future[object]") -> None:
        self.seen.append(future)
        self.threads.append(threading.current_thread())
        self._called.release()

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._called.acquire(timeout=GUARD)


# ------------------------------------------------------------ the executor


def test_it_is_an_executor_and_its_futures_are_futures(pool: ProcessWorker) -> None:
    assert isinstance(pool, cf.Executor)
    future = pool.submit(pow, 2, 5)
    assert isinstance(future, cf.Future)
    assert isinstance(future, TaskFuture)
    assert future.result() == 32


def test_arguments_and_keywords_reach_the_task(pool: ProcessWorker) -> None:
    def echo(*args: object, **kwargs: object) -> object:
        return args, kwargs

    assert pool.submit(echo, 1, [2], self=3, fn=4, timeout=5).result() == ((1, [2]), {"self": 3, "fn": 4, "timeout": 5})


def test_tasks_run_in_other_processes_and_more_than_one(pool: ProcessWorker, gate: Gate) -> None:
    held = [pool.submit(lambda folder: (pooljobs.hold(folder), pooljobs.pid()), gate.folder) for _ in range(2)]
    gate.wait_begun(2)
    gate.release(2)
    children = {child["pid"] for child in pool.processes()["children"]}
    assert {future.result()[1] for future in held} == children
    assert len(children) == 2


def test_a_task_id_is_unique_and_is_what_the_task_sees(pool: ProcessWorker) -> None:
    futures = [pool.submit(lambda: mpworker.current().task_id) for _ in range(5)]
    assert [future.result() for future in futures] == [future.task_id for future in futures]
    assert len({future.task_id for future in futures}) == 5
    assert all(future.task_id in repr(future) for future in futures)


def test_results_may_be_large(pool: ProcessWorker) -> None:
    # Larger than every ring on the way, so that it goes in parts, both ways.
    data = bytes(range(256)) * (3 << 12)
    futures = [pool.submit(operator.add, data, bytes([number])) for number in range(4)]
    assert [future.result() for future in futures] == [data + bytes([number]) for number in range(4)]


def test_what_exceeds_max_payload_bytes_is_refused_and_the_child_lives() -> None:
    # One bound below the size of the rings, where a pickle would go in one record, and one above.
    for bound in (1 << 14, 1 << 21):
        with ProcessWorker(n=1, max_payload_bytes=bound) as small:
            child = small.submit(pooljobs.pid).result()
            with pytest.raises(SerializationError, match=f"exceeds max_payload_bytes={bound}"):
                small.submit(len, bytes(bound))
            with pytest.raises(SerializationError, match=f"result of type bytes .*exceeds max_payload_bytes={bound}"):
                small.submit(bytes, bound).result()
            with pytest.raises(SerializationError, match=f"raised ValueError: x.*max_payload_bytes={bound}"):
                small.submit(lambda size: pooljobs.fail("x" * size), bound).result()
            values = list(small.map(bytes, [1, bound, 2], chunksize=3, return_exceptions=True))
            assert values[::2] == [bytes(1), bytes(2)]
            assert isinstance(values[1], SerializationError)
            assert small.submit(len, bytes(bound - 100)).result() == bound - 100
            assert small.submit(pooljobs.pid).result() == child


def test_no_argument_or_result_is_kept_alive(pool: ProcessWorker) -> None:
    class Thing:
        pass

    argument = Thing()
    alive = weakref.ref(argument)
    future = pool.submit(lambda thing: type(thing).__name__, argument)
    assert future.result() == "Thing"
    del argument
    gc.collect()
    assert alive() is None
    future_alive = weakref.ref(future)
    del future
    gc.collect()
    assert future_alive() is None


def test_a_view_with_other_options_shares_the_pool(pool: ProcessWorker) -> None:
    view = pool.options(retries=1)
    with view:
        assert view.submit(lambda: mpworker.current().attempt).result() == 1
    view.shutdown()
    assert pool.submit(pooljobs.square, 3).result() == 9  # neither has stopped anything


# ------------------------------------------------------------ the context


def test_current_tells_the_attempt(pool: ProcessWorker) -> None:
    def third_time() -> int:
        attempt = mpworker.current().attempt
        if attempt < 3:
            raise ValueError(attempt)
        return attempt

    assert pool.options(retries=2).submit(third_time).result() == 3
    with pytest.raises(ValueError, match=r"^2$"):
        pool.options(retries=1).submit(third_time).result()
    assert list(pool.options(retries=2).map(lambda _: third_time(), range(3))) == [3, 3, 3]


def test_current_outside_a_task_is_an_error(pool: ProcessWorker) -> None:
    with pytest.raises(MPWorkerError, match="outside a task"):
        mpworker.current()

    def in_a_thread() -> str:
        # A thread that a task starts belongs to the task.
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(mpworker.current().task_id))
        thread.start()
        thread.join()
        return found[0]

    future = pool.submit(in_a_thread)
    assert future.result() == future.task_id


# ------------------------------------------------------------ exceptions


def test_an_exception_comes_with_the_traceback_of_the_child(pool: ProcessWorker) -> None:
    future = pool.submit(pooljobs.fail, "bad input")
    with pytest.raises(ValueError, match=r"^bad input$") as caught:
        future.result()
    assert future.exception() is caught.value
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "pooljobs.py" in str(cause)
    assert "raise ValueError(message)" in str(cause)
    assert "main.py" not in str(cause), "the child's own frames are noise"


def test_what_a_chained_exception_says_is_all_there(pool: ProcessWorker) -> None:
    def chain() -> None:
        try:
            raise KeyError("first")
        except KeyError as first:
            error = ValueError("second")
            error.add_note("a note")
            raise error from first

    error = pool.submit(chain).exception()
    assert isinstance(error, ValueError)
    assert error.__notes__ == ["a note"]
    assert "KeyError: 'first'" in str(error.__cause__)
    assert "direct cause" in str(error.__cause__)


def test_exit_and_interrupt_raised_by_a_task_do_not_end_the_caller(pool: ProcessWorker) -> None:
    children = {child["pid"] for child in pool.processes()["children"]}
    error = pool.submit(exit, 3).exception()
    assert isinstance(error, TaskExited)
    assert error.code == "3"

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert isinstance(pool.submit(interrupt).exception(), TaskExited)
    assert {child["pid"] for child in pool.processes()["children"]} == children


# ------------------------------------------------------------ result and exception


def test_result_and_exception_time_out_and_the_task_goes_on(pool: ProcessWorker, gate: Gate) -> None:
    future = pool.submit(pooljobs.hold, gate.folder, "done")
    for timeout in (0, 0.01, -1):
        with pytest.raises(TimeoutError):
            future.result(timeout)
        with pytest.raises(cf.TimeoutError):
            future.exception(timeout=timeout)
    gate.wait_begun()
    gate.release()
    assert future.result(GUARD) == "done"
    assert future.result(0) == "done"
    assert future.exception(0) is None


def test_results_can_be_asked_for_in_any_order_and_by_many_threads(pool: ProcessWorker) -> None:
    futures = [pool.submit(pooljobs.square, number) for number in range(100)]
    found: list[list[int]] = []

    def ask(reverse: bool) -> None:
        found.append(sorted(future.result(GUARD) for future in sorted(futures, key=id, reverse=reverse)))

    threads = [threading.Thread(target=ask, args=(bool(number % 2),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[number * number for number in range(100)]] * 4


def test_a_result_with_a_timeout_wakes_when_another_thread_reads_the_events(pool: ProcessWorker, gate: Gate) -> None:
    # One thread leads (it reads); the others follow: one gives up, one gets its value.
    slow = pool.submit(pooljobs.hold, gate.folder, "slow")
    gate.wait_begun()
    other = threading.Thread(target=slow.result, args=(GUARD,))
    other.start()
    assert pool.submit(pooljobs.square, 4).result(GUARD) == 16
    with pytest.raises(TimeoutError):
        slow.result(0.01)
    gate.release()
    assert slow.result(GUARD) == "slow"
    other.join(GUARD)
    assert not other.is_alive()


# ------------------------------------------------------------ state


def test_states_from_pending_to_finished(pool: ProcessWorker, gate: Gate) -> None:
    held = [pool.submit(pooljobs.hold, gate.folder) for _ in range(2)]
    gate.wait_begun(2)
    queued = pool.submit(pooljobs.square, 2)
    assert [future.running() for future in (*held, queued)] == [True, True, False]
    assert not any(future.done() or future.cancelled() for future in (*held, queued))
    gate.release(2)
    cf.wait([*held, queued])
    assert all(future.done() for future in (*held, queued))
    assert not any(future.running() or future.cancelled() for future in (*held, queued))


def test_done_turns_true_without_anybody_waiting(pool: ProcessWorker) -> None:
    future = pool.submit(pooljobs.square, 2)
    assert leaks.wait_until(future.done, GUARD)
    failed = pool.submit(pooljobs.fail, "x")
    assert leaks.wait_until(lambda: failed.done() and not failed.cancelled(), GUARD)


# ------------------------------------------------------------ cancel


def test_a_queued_task_that_is_cancelled_never_starts(pool: ProcessWorker, gate: Gate, tmp_path: Path) -> None:
    held = [pool.submit(pooljobs.hold, gate.folder) for _ in range(2)]
    gate.wait_begun(2)
    path = tmp_path / "started"
    queued = [pool.submit(pooljobs.note, str(path), number) for number in range(10)]
    assert all(future.cancel() for future in queued[::2])
    assert all(future.cancelled() and future.done() and not future.running() for future in queued[::2])
    assert all(future.cancel() for future in queued[::2]), "again: still true, as in the library"
    for future in queued[::2]:
        with pytest.raises(cf.CancelledError):
            future.result()
        with pytest.raises(TaskCancelled, match=future.task_id):
            future.exception()
    gate.release(2)
    cf.wait([*held, *queued])
    assert sorted(map(int, path.read_text().split())) == [1, 3, 5, 7, 9]


def test_a_running_task_is_interrupted_by_cancel(pool: ProcessWorker, gate: Gate) -> None:
    # The library cannot: there `cancel` of a running task is False.
    future = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    assert future.cancel()
    with pytest.raises(TaskCancelled):
        future.result(GUARD)
    assert future.cancelled()


def test_cancel_of_an_ended_task_is_false_and_changes_nothing(pool: ProcessWorker) -> None:
    future = pool.submit(pooljobs.square, 3)
    assert future.result() == 9
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result() == 9
    failed = pool.submit(pooljobs.fail, "x")
    assert failed.exception() is not None
    assert not failed.cancel()


def test_cancel_by_id(pool: ProcessWorker, gate: Gate) -> None:
    future = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    assert pool.cancel_task(future.task_id)
    with pytest.raises(TaskCancelled):
        future.result(GUARD)
    assert not pool.cancel_task(pool_done(pool).task_id)
    for unknown in ("nobody-1", "", future.task_id + "0000", f"{future.task_id.rpartition('-')[0]}-\u00b2"):
        with pytest.raises(TaskNotFound, match=repr(unknown)):
            pool.cancel_task(unknown)


def pool_done(pool: ProcessWorker) -> TaskFuture[int]:
    future = pool.submit(pooljobs.square, 3)
    future.result()
    return future


def test_the_chunk_of_a_map_cannot_be_cancelled_by_its_id(pool: ProcessWorker, gate: Gate, tmp_path: Path) -> None:
    # Its items' results would be missing from the map. Closing the map is the way.
    path = tmp_path / "id"

    def item(folder: str) -> str:
        pooljobs.note(str(path), mpworker.current().task_id)
        return str(pooljobs.hold(folder, "done"))

    results = pool.map(item, [gate.folder])
    gate.wait_begun()
    with pytest.raises(TaskNotFound, match="no task has the id"):
        pool.cancel_task(path.read_text().strip())
    gate.release()
    assert list(results) == ["done"]


# ------------------------------------------------------------ callbacks


def test_callbacks_are_called_once_in_order_with_the_future(pool: ProcessWorker, gate: Gate) -> None:
    future = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    order: list[int] = []
    for number in range(5):
        future.add_done_callback(lambda _, number=number: order.append(number))
    last = Calls()
    future.add_done_callback(last)
    gate.release()
    last.wait()
    assert order == [0, 1, 2, 3, 4]
    assert last.seen == [future]
    future.result()
    assert order == [0, 1, 2, 3, 4]


def test_a_callback_on_an_ended_task_is_called_at_once_in_this_thread(pool: ProcessWorker) -> None:
    for future in (pool.submit(pooljobs.square, 1), pool.submit(pooljobs.fail, "x")):
        future.exception()
        called = Calls()
        future.add_done_callback(called)
        assert called.seen == [future]
        assert called.threads == [threading.current_thread()]


def test_a_callback_comes_though_nobody_waits(pool: ProcessWorker) -> None:
    called = Calls()
    futures = [pool.submit(pooljobs.square, number) for number in range(20)]
    for future in futures:
        future.add_done_callback(called)
    called.wait(20)
    assert set(called.seen) == set(futures)


def test_a_callback_comes_when_the_task_fails_or_is_cancelled(pool: ProcessWorker, gate: Gate) -> None:
    called = Calls()
    failed = pool.submit(pooljobs.fail, "x")
    failed.add_done_callback(called)
    called.wait()
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    held.add_done_callback(called)
    held.cancel()
    called.wait()
    assert called.seen == [failed, held]
    assert held.cancelled()


def test_a_callback_that_raises_is_logged_and_stops_nobody(
    pool: ProcessWorker, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    future = pool.submit(pooljobs.hold, gate.folder, 7)
    gate.wait_begun()

    def broken(_: object) -> None:
        raise RuntimeError("the callback is broken")

    called = Calls()
    future.add_done_callback(broken)
    future.add_done_callback(called)
    with caplog.at_level(logging.ERROR, logger="concurrent.futures"):
        gate.release()
        called.wait()
        future.add_done_callback(broken)  # at once, and logged too
    assert caplog.text.count("RuntimeError: the callback is broken") == 2
    assert future.result() == 7


def test_a_callback_may_use_the_pool(pool: ProcessWorker, gate: Gate) -> None:
    future = pool.submit(pooljobs.hold, gate.folder, 5)
    gate.wait_begun()
    found: list[object] = []

    def chain(ended: "cf.Future[int]") -> None:
        next_one = pool.submit(pooljobs.square, ended.result())
        found.append(next_one.result(GUARD))
        found.append(list(pool.map(pooljobs.square, range(3))))

    called = Calls()
    future.add_done_callback(chain)
    future.add_done_callback(called)
    gate.release()
    called.wait()
    assert found == [25, [0, 1, 4]]


def test_a_callback_may_take_a_lock_that_a_submitting_thread_holds(pool: ProcessWorker) -> None:
    # It would be a deadlock if callbacks ran under a lock of the client's.
    lock = threading.Lock()
    called = Calls()

    def locking(future: "cf.Future[int]") -> None:
        with lock:
            called(future)

    def submit_under_the_lock() -> None:
        for number in range(200):
            with lock:
                future = pool.submit(pooljobs.square, number)
                future.done()
            future.add_done_callback(locking)

    threads = [threading.Thread(target=submit_under_the_lock) for _ in range(2)]
    for thread in threads:
        thread.start()
    called.wait(400)
    for thread in threads:
        thread.join(GUARD)
    assert not any(thread.is_alive() for thread in threads)


@contextlib.contextmanager
def leading(pool: ProcessWorker) -> Iterator[None]:
    """Be the thread that reads, without reading."""
    client = pool._client
    assert leaks.wait_until(lambda: client._leader is None, GUARD)
    client._leader = threading.get_ident()
    try:
        yield
    finally:
        client._leader = None
        client._hand_over()


def test_what_a_future_shows_is_how_it_is(pool: ProcessWorker) -> None:
    future = pool.submit(pooljobs.square, 3)
    assert leaks.wait_until(lambda: repr(future) == f'<TaskFuture {future.task_id} ("square") finished>', GUARD)
    sleeping = pool.submit(time.sleep, GUARD)
    assert repr(sleeping) == f'<TaskFuture {sleeping.task_id} ("sleep") unfinished>'
    sleeping.cancel()
    assert leaks.wait_until(lambda: repr(sleeping) == f'<TaskFuture {sleeping.task_id} ("sleep") cancelled>', GUARD)


def test_a_log_handler_that_raises_costs_nobody_a_result() -> None:
    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the disk is full")

    handler = Full()
    logging.getLogger("concurrent.futures").addHandler(handler)
    try:
        with ProcessWorker(n=1) as pool:
            called = Calls()
            future = pool.submit(pooljobs.square, 2)
            future.add_done_callback(lambda _: 1 // 0)
            future.add_done_callback(called)
            assert cf.wait([pool.submit(pooljobs.square, 3)], GUARD).not_done == set()
            called.wait()
    finally:
        logging.getLogger("concurrent.futures").removeHandler(handler)


def test_a_result_for_which_there_is_no_memory_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import resource\n"
        "from mpworker import ProcessWorker\n"
        "from mpworker.errors import SerializationError\n"
        "with ProcessWorker(n=1, arena_max_bytes=0) as w:\n"
        "    w.submit(abs, 1).result()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (400 << 20,) * 2)\n"
        "    future = w.submit(bytes, 300 << 20)\n"
        "    try:\n"
        "        future.result()\n"
        "    except SerializationError as error:\n"
        "        assert 'for which this process has no memory' in str(error), error\n"
        "    print(w.submit(abs, -2).result())\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=GUARD, check=False
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_callback_keeps_no_other_thread_from_the_client(pool: ProcessWorker, gate: Gate) -> None:
    ended = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    seen: list[object] = []

    def look(_: object) -> None:
        def ask() -> None:
            seen.append((ended.done(), pool.submit(pooljobs.square, 3).result(GUARD)))

        asker = threading.Thread(target=ask)
        asker.start()
        asker.join(GUARD)

    called = Calls()
    ended.add_done_callback(look)
    ended.add_done_callback(called)
    gate.release()
    called.wait()
    assert seen == [(True, 9)]


# ------------------------------------------------------------ wait


def test_wait_for_all(pool: ProcessWorker) -> None:
    futures = [pool.submit(pooljobs.square, number) for number in range(50)]
    futures.append(pool.submit(pooljobs.fail, "x"))
    done, not_done = cf.wait(futures)
    assert done == set(futures)
    assert not_done == set()
    assert cf.wait(futures, timeout=0) == (done, set()), "ended ones need no wait"
    assert cf.wait([futures[0], futures[0]]).done == {futures[0]}


def test_wait_for_the_first(pool: ProcessWorker, gate: Gate) -> None:
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    quick = pool.submit(pooljobs.square, 2)
    done, not_done = cf.wait([held, quick], return_when=cf.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {held})
    assert cf.wait([held, quick], return_when=cf.FIRST_COMPLETED) == (done, not_done)
    gate.release()
    assert cf.wait([held], return_when=cf.FIRST_COMPLETED).done == {held}


def test_wait_for_the_first_exception(pool: ProcessWorker, gate: Gate) -> None:
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    quick = pool.submit(pooljobs.square, 2)
    failed = pool.submit(pooljobs.fail, "x")
    done, not_done = cf.wait([held, quick, failed], return_when=cf.FIRST_EXCEPTION)
    assert failed in done
    assert not_done == {held}
    # One that had failed before the wait; and without a failure, all.
    assert cf.wait([held, failed], return_when=cf.FIRST_EXCEPTION).not_done == {held}
    gate.release()
    assert cf.wait([held, quick], return_when=cf.FIRST_EXCEPTION).not_done == set()


def test_a_cancelled_task_counts_as_completed(pool: ProcessWorker, gate: Gate) -> None:
    held = [pool.submit(pooljobs.hold, gate.folder) for _ in range(2)]
    gate.wait_begun(2)
    queued = pool.submit(pooljobs.square, 2)
    waiter = threading.Thread(target=cf.wait, args=([queued],))
    waiter.start()
    queued.cancel()
    waiter.join(GUARD)
    assert not waiter.is_alive()
    assert cf.wait([*held, queued], return_when=cf.FIRST_COMPLETED).done == {queued}
    gate.release(2)


def test_wait_times_out_and_leaves_no_waiter(pool: ProcessWorker, gate: Gate) -> None:
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    quick = pool.submit(pooljobs.square, 2)
    assert quick.result() == 4
    for _ in range(3):
        assert cf.wait([held, quick], timeout=0.01) == ({quick}, {held})
    assert not held.__dict__["_waiting"]
    gate.release()
    assert cf.wait([held]).not_done == set()


def test_wait_reads_though_an_own_waiter_was_there_before(pool: ProcessWorker, gate: Gate) -> None:
    # A `result` that follows another thread's leaves a waiter of the client's own kind, which needs no reader thread;
    # `wait`, which comes later, does.
    first, second = (pool.submit(pooljobs.hold, gate.folder) for _ in range(2))
    gate.wait_begun(2)
    leads = threading.Event()

    def lead() -> None:
        with leading(pool):
            leads.set()
            assert release.wait(GUARD)

    release = threading.Event()
    leader = threading.Thread(target=lead)
    leader.start()
    assert leads.wait(GUARD)
    with pytest.raises(TimeoutError):
        first.result(0.01)  # follows
    release.set()
    leader.join()
    gate.release(2)
    assert cf.wait([first], timeout=GUARD).done == {first}
    assert second.result(GUARD) is None


def test_wait_over_futures_of_two_pools_and_of_the_library(pool: ProcessWorker) -> None:
    with ProcessWorker(n=1) as other, cf.ThreadPoolExecutor(1) as threads:
        futures = [each.submit(pooljobs.square, number) for number in range(20) for each in (pool, other, threads)]
        assert cf.wait(futures, timeout=GUARD).not_done == set()
        more = [each.submit(pooljobs.square, number) for number in range(20) for each in (pool, other, threads)]
        assert set(cf.as_completed(more, timeout=GUARD)) == set(more)


# ------------------------------------------------------------ as_completed


def test_as_completed_yields_each_once_and_the_ended_ones_first(pool: ProcessWorker, gate: Gate) -> None:
    ended = pool.submit(pooljobs.square, 1)
    ended.result()
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    quick = pool.submit(pooljobs.square, 2)
    stream = cf.as_completed([held, held, quick, ended])
    assert next(stream) in (ended, quick)
    assert next(stream) in (ended, quick)
    gate.release()
    assert list(stream) == [held]


def test_as_completed_times_out(pool: ProcessWorker, gate: Gate) -> None:
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    quick = pool.submit(pooljobs.square, 2)
    quick.result()
    seen = []
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        seen.extend(cf.as_completed([held, quick], timeout=0.01))
    stream = cf.as_completed([held, quick], timeout=0)
    assert next(stream) is quick
    with pytest.raises(TimeoutError):
        next(stream)
    assert not held.__dict__["_waiting"]
    gate.release()
    assert list(cf.as_completed([held], timeout=GUARD)) == [held]


def test_as_completed_with_many(pool: ProcessWorker) -> None:
    futures = [pool.submit(pooljobs.square, number) for number in range(2000)]
    assert sorted(future.result() for future in cf.as_completed(futures)) == [number**2 for number in range(2000)]


# ------------------------------------------------------------ asyncio


def test_the_look_that_asyncio_takes_in_later_versions_of_python(pool: ProcessWorker, gate: Gate) -> None:
    # Python 3.14 copies (done, cancelled, result, exception) from here.
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    assert held._get_snapshot() == (False, False, None, None)
    held.cancel()
    assert leaks.wait_until(held.done, GUARD)
    assert held._get_snapshot() == (True, True, None, None)
    good, bad = pool.submit(pooljobs.square, 3), pool.submit(pooljobs.fail, "x")
    assert leaks.wait_until(lambda: good.done() and bad.done(), GUARD)
    assert good._get_snapshot() == (True, False, 9, None)
    done, cancelled, value, error = bad._get_snapshot()
    assert (done, cancelled, value, str(error)) == (True, False, None, "x")


def test_asyncio_awaits_tasks_and_stays_responsive(pool: ProcessWorker, gate: Gate) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        held = asyncio.wrap_future(pool.submit(pooljobs.hold, gate.folder, "held"))
        assert await loop.run_in_executor(pool, pooljobs.square, 7) == 49
        assert await asyncio.gather(*(loop.run_in_executor(pool, pooljobs.square, n) for n in range(50))) == [
            n * n for n in range(50)
        ]
        with pytest.raises(ValueError, match=r"^wrong$"):
            await loop.run_in_executor(pool, pooljobs.fail, "wrong")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(held), 0.01)
        gate.wait_begun()
        gate.release()
        assert await held == "held"

    asyncio.run(main())


def test_cancelling_the_asyncio_future_cancels_the_task(pool: ProcessWorker, gate: Gate) -> None:
    futures = []

    async def main() -> None:
        future = pool.submit(pooljobs.hold, gate.folder)
        futures.append(future)
        wrapped = asyncio.wrap_future(future)
        gate.wait_begun()
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(main())
    with pytest.raises(TaskCancelled):
        futures[0].result(GUARD)


# ------------------------------------------------------------ idle


def test_an_idle_pool_uses_no_cpu(pool: ProcessWorker) -> None:
    pool.submit(pooljobs.square, 1).add_done_callback(lambda _: None)  # the reader thread exists too
    assert pool.submit(pooljobs.square, 2).result() == 4

    def used_ns() -> int:
        processes = pool.processes()
        pids = [processes["supervisor"], processes["nursery"], *(child["pid"] for child in processes["children"])]
        assert len(pids) == 4
        total = 0
        for pid in pids:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0])
        return total

    # The least of a few looks: whoever polled or span would show in each.
    shares = []
    for _ in range(3):
        before, began_at = used_ns(), time.monotonic_ns()
        assert not leaks.wait_until(lambda: False, 0.5)
        shares.append((used_ns() - before) / (time.monotonic_ns() - began_at))
        if shares[-1] < 0.02:
            return
    pytest.fail(f"the idle pool uses {min(shares):.1%} of a core")
