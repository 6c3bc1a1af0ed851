"""`drain`: what was there ends, what comes waits."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pooljobs
import pytest
from concurrently import GUARD, eventually
from pooljobs import Gate

from mpworker import ProcessWorker, RetryPolicy, Task
from mpworker.errors import ConfigurationError, InvalidArgument, WorkerCrashed, WorkerStopped


@pytest.fixture
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=2) as w:
        yield w


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_background(drain: Callable[[], bool]) -> tuple[threading.Thread, list[object]]:
    """The thread that calls `drain`, and what that returns."""
    said: list[object] = []
    thread = threading.Thread(target=lambda: said.append(drain()))
    thread.start()
    return thread, said


def test_a_drain_waits_for_what_runs_and_what_is_queued(pool: ProcessWorker, gate: Gate) -> None:
    held = pool.submit(pooljobs.hold, gate.folder)
    queued = [pool.submit(pooljobs.square, number) for number in range(20)]
    gate.wait_begun()
    thread, said = in_background(lambda: pool.drain(timeout=GUARD))
    eventually(lambda: pool.queues()["default"].draining)
    late = pool.submit(pooljobs.square, 3)
    assert [future.result() for future in queued] == [number**2 for number in range(20)]
    assert said == []
    gate.release()
    thread.join()
    assert said == [True]
    assert held.done()
    assert pool.get_task(late.task_id).status == "queued"
    assert pool.queues()["default"].queued == 1
    pool.resume()
    assert late.result() == 9
    assert not pool.queues()["default"].draining


def test_an_idle_pool_is_drained_at_once(pool: ProcessWorker) -> None:
    assert pool.drain()
    assert pool.drain("default")
    pool.resume()
    assert pool.submit(pooljobs.square, 3).result() == 9


def test_a_drain_of_one_queue_leaves_the_others_alone(pool: ProcessWorker, gate: Gate) -> None:
    held = pool.options(queue="other").submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    assert pool.drain("a", timeout=GUARD)
    late = pool.options(queue="a").submit(pooljobs.square, 3)
    assert pool.options(queue="other").submit(pooljobs.square, 4).result() == 16
    assert not late.done()
    pool.resume("a")
    assert late.result() == 9
    gate.release()
    held.result()


def test_a_drain_of_all_holds_queues_that_do_not_exist_yet(pool: ProcessWorker) -> None:
    assert pool.drain(timeout=GUARD)
    late = pool.options(queue="new").submit(pooljobs.square, 3)
    assert pool.queues()["new"].draining
    assert pool.get_task(late.task_id).status == "queued"
    pool.resume()
    assert late.result() == 9


def test_attempts_that_are_to_follow_are_waited_for(pool: ProcessWorker, gate: Gate) -> None:
    policy = RetryPolicy(base=0.2, factor=1.0, jitter="none")
    failing = pool.options(retries=2, retry_policy=policy).submit(pooljobs.fail, "again")
    assert pool.drain(timeout=GUARD)
    assert failing.done()
    assert failing.exception() is not None
    assert pool.metrics().retries == 2


def test_a_crash_retry_of_what_was_there_is_not_held(pool: ProcessWorker) -> None:
    crashing = pool.options(crash_retries=1).submit(kill_myself)
    assert pool.drain(timeout=GUARD)
    assert isinstance(crashing.exception(), WorkerCrashed)


def test_what_is_for_later_is_not_waited_for_and_held_when_its_time_comes(pool: ProcessWorker) -> None:
    later = pool.register_task_after(0.1, Task(pooljobs.square, (3,)))
    much_later = pool.register_task_after(3600.0, Task(pooljobs.square, (3,)))
    assert pool.drain(timeout=GUARD)
    assert much_later.cancel()
    eventually(lambda: pool.get_task(later.task_id).status == "queued")
    assert not later.done()
    pool.resume()
    assert later.result() == 9


def test_what_is_held_can_be_cancelled(pool: ProcessWorker) -> None:
    assert pool.drain(timeout=GUARD)
    late = pool.submit(pooljobs.square, 3)
    other = pool.submit(pooljobs.square, 4)
    assert late.cancel()
    assert pool.queues()["default"].queued == 1
    pool.resume()
    assert other.result() == 16
    assert late.cancelled()


def test_a_drain_that_is_over_in_time_says_so_and_still_holds(pool: ProcessWorker, gate: Gate) -> None:
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    assert not pool.drain(timeout=0.05)
    late = pool.submit(pooljobs.square, 3)
    assert pool.get_task(late.task_id).status == "queued"
    gate.release()
    held.result()
    assert pool.drain(timeout=GUARD)
    assert not late.done()
    pool.resume()
    assert late.result() == 9


@pytest.mark.parametrize("names", [(), ("default",)])
def test_resume_ends_a_drain_that_is_waited_for(pool: ProcessWorker, gate: Gate, names: tuple[str, ...]) -> None:
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    thread, said = in_background(lambda: pool.drain(*names))
    eventually(lambda: pool.queues()["default"].draining)
    pool.resume(*names)
    thread.join()
    assert said == [False]
    gate.release()
    held.result()


def test_a_stop_ends_a_drain_and_what_was_held_is_finished() -> None:
    w = ProcessWorker(n=1)
    assert w.drain(timeout=GUARD)
    assert w.drain("default", timeout=GUARD)
    late = w.submit(pooljobs.square, 3)
    assert w.stop_graceful(timeout=GUARD)
    assert late.result() == 9
    with pytest.raises(WorkerStopped):
        w.drain()


def test_a_stop_now_ends_the_wait_for_a_drain(gate: Gate) -> None:
    w = ProcessWorker(n=1)
    w.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    thread, said = in_background(w.drain)
    eventually(lambda: w.queues()["default"].draining)
    w.stop_now()
    thread.join()
    assert said == [False]


def test_bad_input(pool: ProcessWorker) -> None:
    with pytest.raises(InvalidArgument, match="5"):
        pool.drain(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"timeout must be .* not -1"):
        pool.drain(timeout=-1)
