"""What `stop_graceful` says of what was left, what it cancels, and that it may go on by itself."""

import threading
import time

import leaks
import pooljobs
from concurrently import GUARD, eventually
from pooljobs import Gate

from mpworker import ProcessWorker, StopReport, Task
from mpworker.stopping import NAMED_MAX


def test_nothing_is_left_of_what_has_ended() -> None:
    w = ProcessWorker(n=1)
    w.submit(pooljobs.square, 3)
    assert list(w.map(pooljobs.square, range(5))) == [0, 1, 4, 9, 16]
    assert w.stop_graceful() == w.stop_graceful() == StopReport(True)


def test_what_the_time_was_too_short_for_is_named(gate: Gate) -> None:
    w = ProcessWorker(n=1)
    done = w.submit(pooljobs.square, 3)
    held = w.submit(pooljobs.hold, gate.folder)
    queued = w.submit(pooljobs.square, 3)
    mapped = w.map(pooljobs.square, range(7))
    gate.wait_begun()
    report = w.stop_graceful(timeout=0.1)
    assert done.result() == 9
    assert not report
    assert report == StopReport(False, 2, (held.task_id, queued.task_id), 7)
    assert w.stop_graceful(timeout=0.1) == report
    del mapped


def test_of_many_the_oldest_are_named(gate: Gate) -> None:
    w = ProcessWorker(n=1)
    futures = [w.submit(pooljobs.hold, gate.folder) for _ in range(NAMED_MAX + 5)]
    report = w.stop_graceful(timeout=0.05)
    assert report.tasks == len(futures)
    assert report.task_ids == tuple(future.task_id for future in futures[:NAMED_MAX])


def test_what_is_queued_is_cancelled_if_asked_for(gate: Gate) -> None:
    w = ProcessWorker(n=1)
    held = w.submit(pooljobs.hold, gate.folder, "held")
    gate.wait_begun()
    queued = [w.submit(pooljobs.square, number) for number in range(5)]
    later = w.register_task_after(3600.0, Task(pooljobs.square, (3,)))
    mapped = w.map(pooljobs.square, range(7))
    said: list[StopReport] = []
    thread = threading.Thread(target=lambda: said.append(w.stop_graceful(cancel_queued=True)))
    thread.start()
    eventually(lambda: all(future.cancelled() for future in [*queued, later]))
    assert not held.done()
    gate.release()
    thread.join(GUARD)
    assert held.result() == "held"
    assert said == [StopReport(False, 6, tuple(future.task_id for future in [*queued, later]), 7)]
    del mapped


def test_nothing_was_queued_that_could_be_cancelled() -> None:
    w = ProcessWorker(n=1)
    assert w.submit(pooljobs.square, 3).result() == 9
    assert w.stop_graceful(cancel_queued=True) == StopReport(True)


def test_a_stop_that_is_not_waited_for_goes_on(gate: Gate) -> None:
    w = ProcessWorker(n=1)
    held = w.submit(pooljobs.hold, gate.folder, "held")
    queued = w.submit(pooljobs.square, 3)
    gate.wait_begun()
    report = w.stop_graceful(wait=False)
    assert report == StopReport(False, 2, (held.task_id, queued.task_id))
    gate.release()
    assert (held.result(), queued.result()) == ("held", 9)
    assert leaks.wait_until(lambda: w._client._over, GUARD)
    assert w.stop_graceful() == StopReport(True)


def test_a_stop_that_is_not_waited_for_keeps_to_its_time(gate: Gate) -> None:
    w = ProcessWorker(n=1)
    held = w.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    began = time.monotonic()
    assert not w.stop_graceful(timeout=0.2, wait=False)
    assert time.monotonic() - began < GUARD
    assert leaks.wait_until(held.cancelled, GUARD)
    assert w.stop_graceful().task_ids == (held.task_id,)


def test_the_shortest_time_counts(gate: Gate) -> None:
    w = ProcessWorker(n=1)
    held = w.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    w.stop_graceful(timeout=0.2, wait=False)
    assert not w.stop_graceful()  # as the interpreter's exit does
    assert held.cancelled()
