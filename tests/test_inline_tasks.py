"""Tasks as objects with `ProcessWorker(debug=True)`: what a pool does, done here. Most tests run against both."""

import os
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pooljobs
import pytest
import retry_tasks
from concurrently import GUARD
from kinds import Make

import mpworker
from mpworker import Latency, Metrics, ProcessWorker, Retention, Task, TaskStatus
from mpworker.errors import (
    ConfigurationError,
    DuplicateTask,
    MPWorkerError,
    QueueFull,
    TaskCancelled,
    TaskNotFound,
    TaskTimeout,
    WorkerStopped,
)


def look() -> tuple[Any, ...]:
    context = mpworker.current()
    return context.task_id, context.attempt, context.metadata, context.remaining() is not None


# ------------------------------------------------------------ register


def test_a_task_is_carried_out(w: ProcessWorker) -> None:
    assert w.execute_task(Task(pow, (2, 10))) == 1024
    assert [each.result() for each in w.register_tasks(Task(abs, (-1,)), Task(int, ("ff",), {"base": 16}))] == [1, 255]
    named = w.register_task(Task(look, id="mine", name="named", metadata={"a": [1]}, deadline=GUARD))
    assert named.result() == ("mine", 1, {"a": [1]}, True)
    assert '"named"' in repr(named)
    with pytest.raises(ConfigurationError, match="deadline"):
        w.register_task(Task(abs, (-1,), deadline=datetime(2030, 1, 1)))


def test_an_id_belongs_to_one_task(w: ProcessWorker) -> None:
    assert w.execute_task(Task(abs, (-1,), id="one")) == 1
    with pytest.raises(DuplicateTask, match="there is a task with the id 'one', which is"):
        w.register_task(Task(abs, (-1,), id="one"))
    with pytest.raises(DuplicateTask):
        w.register_task(Task(abs, (-1,), id=w.submit(abs, -1).task_id))


def test_a_key_stands_for_one_task(w: ProcessWorker) -> None:
    task = Task(abs, (-1,), idempotency_key="key")
    first = w.register_task(task)
    assert first.result() == 1
    assert w.register_task(task) is first
    with pytest.raises(DuplicateTask, match="belongs to"):
        w.register_task(Task(abs, (-2,), idempotency_key="key"))
    assert w.metrics().accepted == 1


# ------------------------------------------------------------ look up


def test_a_task_is_looked_up_after_its_end(w: ProcessWorker) -> None:
    view = w.options(queue="mail", priority=3, weight=5)
    done = view.submit(abs, -1)
    assert done.result() == 1
    failed = w.submit(pooljobs.fail, "wrong")
    assert isinstance(failed.exception(), ValueError)
    info = w.get_task(done.task_id)
    assert (info.task_id, info.name, info.status) == (done.task_id, "abs", TaskStatus.COMPLETED)
    assert (info.queue, info.priority, info.weight, info.future) == ("mail", 3, 5, None)
    (attempt,) = info.attempts
    assert attempt.status is TaskStatus.COMPLETED
    assert attempt.ended_at is not None
    assert abs(attempt.started_at - time.time()) < GUARD
    assert 0 <= attempt.ended_at - attempt.started_at < GUARD
    info = w.get_task(failed.task_id)
    assert info.status is TaskStatus.FAILED
    assert info.future is not None
    assert info.future.task_id == failed.task_id
    with pytest.raises(ValueError, match="wrong"):
        info.future.result()
    assert [info.task_id for info in w.get_tasks()] == [failed.task_id, done.task_id]
    assert [info.task_id for info in w.get_tasks(status="failed")] == [failed.task_id]
    assert [info.task_id for info in w.get_tasks(queue="mail", limit=1)] == [done.task_id]
    with pytest.raises(TaskNotFound):
        w.get_task("unknown")


def test_every_attempt_is_remembered(w: ProcessWorker, tmp_path: Path) -> None:
    future = w.options(retries=2).submit(retry_tasks.fail_until, tmp_path / "log", 3)
    assert future.exception() is None
    info = w.get_task(future.task_id)
    assert [attempt.status for attempt in info.attempts] == [TaskStatus.FAILED, TaskStatus.FAILED, TaskStatus.COMPLETED]
    assert w.metrics().retries == 2


worker: ProcessWorker | None = None


def _look_from_inside() -> tuple[Any, ...]:
    assert worker is not None
    info = worker.get_task(mpworker.current().task_id)
    (attempt,) = info.attempts
    return info.status, attempt.status, attempt.pid, attempt.ended_at, worker.metrics().running


def test_what_runs_is_looked_up_from_inside(here: ProcessWorker) -> None:
    global worker
    worker = here
    found = here.submit(_look_from_inside).result()
    assert found == (TaskStatus.RUNNING, TaskStatus.RUNNING, os.getpid(), None, 1)
    worker = None


def test_the_counts(w: ProcessWorker) -> None:
    w.submit(abs, -1).result()
    w.options(queue="mail").submit(pooljobs.fail, "wrong").exception()
    assert list(w.map(abs, range(3))) == [0, 1, 2]
    later = [w.register_task_after(3600, Task(abs, (-1,))) for _ in range(2)]
    assert w.cancel_task(later[0].task_id)
    counts = w.metrics()
    assert (counts.latency.count, sum(count for _, count in counts.latency.buckets)) == (3, 3)
    assert 0 < counts.latency.max <= counts.latency.total < GUARD
    assert replace(counts, latency=Latency()) == Metrics(
        accepted=4,
        scheduled=1,
        completed=1,
        failed=1,
        cancelled=1,
        remembered=3,
        queues={"default": 0, "mail": 0},
    )
    assert w.cancel_task(later[1].task_id)


def test_what_is_remembered(make: Make) -> None:
    with make(retention=Retention(max_entries=2, results=True)) as w:
        futures = [w.submit(abs, -number) for number in range(3)]
        assert [future.result() for future in futures] == [0, 1, 2]
        with pytest.raises(TaskNotFound):
            w.get_task(futures[0].task_id)
        kept = w.get_task(futures[1].task_id).future
        assert kept is not None
        assert kept.result() == 1
        assert w.metrics().remembered == 2
        w.set_retention(Retention(max_entries=0))
        with pytest.raises(TaskNotFound):
            w.get_task(futures[2].task_id)


def test_what_is_old_is_forgotten(make: Make) -> None:
    with make(retention=Retention(ttl=0.001, cleanup_interval=0.001)) as w:
        first = w.submit(abs, -1)
        assert first.result() == 1
        while w.get_tasks():  # each look is an occasion
            pass
        with pytest.raises(TaskNotFound):
            w.get_task(first.task_id)


# ------------------------------------------------------------ run again


def test_a_task_that_failed_is_run_again(w: ProcessWorker, tmp_path: Path) -> None:
    failed = w.register_task(Task(os.listdir, (tmp_path / "there",), name="again", metadata={"a": 1}))
    assert failed.exception() is not None
    (tmp_path / "there").mkdir()
    again = w.retry_task(failed.task_id)
    assert again.result() == []
    info = w.get_task(again.task_id)
    assert (info.retry_of, info.name, info.metadata) == (failed.task_id, "again", {"a": 1})
    with pytest.raises(ConfigurationError, match="is completed: only what failed, timed out or was cancelled can be"):
        w.retry_task(again.task_id)
    with pytest.raises(TaskNotFound):
        w.retry_task("unknown")
    w.set_retention(Retention(max_bytes=0))
    with pytest.raises(TaskNotFound, match="no longer remembered"):
        w.retry_task(failed.task_id)
    assert not w._client.pending


def test_a_function_that_is_gone_is_run_again(w: ProcessWorker) -> None:
    def fails(message: str) -> None:
        raise ValueError(message)

    failed = w.submit(fails, "wrong").task_id
    w.wait()
    del fails
    assert w.submit(abs, -1).result() == 1
    with pytest.raises(ValueError, match="wrong"):
        w.retry_task(failed).result()


# ------------------------------------------------------------ later


def test_a_task_for_later_waits_until_then(w: ProcessWorker) -> None:
    never = w.register_task_after(3600, Task(abs, (-1,)))
    assert w.get_task(never.task_id).status is TaskStatus.SCHEDULED
    assert not never.running()
    assert w.submit(abs, -1).result() == 1, "nobody is held up"
    with pytest.raises(TimeoutError):
        never.result(0.01)
    assert never.cancel()
    begun = time.monotonic()
    later = w.register_task_after(0.1, Task(time.monotonic))
    assert later.result(GUARD) - begun >= 0.1
    assert w.get_task(later.task_id).status is TaskStatus.COMPLETED


@pytest.mark.parametrize("ask", ["done", "wait", "other"])
def test_what_is_due_is_run_whoever_looks(w: ProcessWorker, ask: str) -> None:
    first = w.register_task_after(0.05, Task(abs, (-1,)))
    if ask == "done":
        while not first.done():
            pass
    elif ask == "wait":
        assert w.wait(GUARD)
    else:
        assert w.register_task_after(0.1, Task(abs, (-2,))).result(GUARD) == 2
    assert first.ready
    assert first.result() == 1


def test_the_end_waits_for_what_is_for_later(make: Make) -> None:
    with make() as w:
        later = [w.register_task_after(delay, Task(time.monotonic)) for delay in (0.2, 0.1)]
    assert later[1].result() < later[0].result()


def test_a_stop_or_a_cancel_ends_what_is_for_later(make: Make) -> None:
    w = make()
    first, second, third = (w.register_task_after(3600, Task(abs, (-1,))) for _ in range(3))
    assert first.cancel()
    assert w.cancel_task(second.task_id)
    assert w.get_task(second.task_id).status is TaskStatus.CANCELLED
    report = w.stop_graceful(cancel_queued=True)
    assert report.task_ids == (third.task_id,)
    assert all(future.cancelled() for future in (first, second, third))

    w = make()
    later = w.register_task_after(3600, Task(abs, (-1,)))
    assert w.cancel_all() == 1
    with pytest.raises(TaskCancelled):
        later.result()
    later = w.register_task_after(3600, Task(abs, (-1,)))
    assert not w.stop_graceful(timeout=0.01)
    assert later.cancelled()


def test_what_is_too_late_never_runs(w: ProcessWorker, tmp_path: Path) -> None:
    touch = Task((tmp_path / "ran").touch, deadline=datetime(2001, 1, 1, tzinfo=UTC))
    late = w.register_task(touch)
    with pytest.raises(TaskTimeout, match=r'task .* \("Path.touch"\) had not ended at its deadline (2000|2001)-'):
        late.result(GUARD)
    info = w.get_task(late.task_id)
    assert (info.status, info.attempts) == (TaskStatus.TIMED_OUT, ())
    later = w.register_task(Task((tmp_path / "ran").touch, run_at=0.05, deadline=0.05))
    with pytest.raises(TaskTimeout):
        later.result(GUARD)
    assert w.metrics().timed_out == 2
    assert not (tmp_path / "ran").exists()


def test_no_attempt_begins_after_the_deadline(here: ProcessWorker) -> None:
    def slow() -> None:
        while mpworker.current().remaining():
            pass
        raise ValueError("wrong")

    retried = here.register_task(Task(slow, deadline=0.5, retries=3))
    with pytest.raises(
        TaskTimeout, match=r"had not ended at its deadline [-\d]{10} [:.\d]{12}[-+:\d]{6} on attempt 1 of 1"
    ):
        retried.result()
    assert here.metrics().retries == 0
    last = here.register_task(Task(slow, deadline=0.5))
    with pytest.raises(ValueError, match="wrong"):
        last.result()


def test_ctrl_c_in_a_task_for_later_ends_it(here: ProcessWorker) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    later = here.register_task_after(1.0, Task(interrupted))
    with pytest.raises(KeyboardInterrupt):
        later.result(GUARD)
    assert later.cancelled()
    assert here.get_task(later.task_id).status is TaskStatus.CANCELLED
    with pytest.raises(KeyboardInterrupt):
        here.submit(interrupted)
    assert (here.metrics().accepted, here.metrics().cancelled) == (2, 2)


def test_the_traceback_of_a_task_for_later_is_that_of_where_it_was_raised(here: ProcessWorker) -> None:
    later = here.register_task_after(0.01, Task(pooljobs.fail, ("wrong",)))
    with pytest.raises(ValueError, match="wrong") as caught:
        later.result(GUARD)
    assert caught.traceback[-1].name == "fail"


# ------------------------------------------------------------ what else waits


def test_who_waits_for_all_has_maps_run(w: ProcessWorker) -> None:
    first = w.map(abs, range(-40, 0))
    assert w.wait(GUARD)
    second = w.map(abs, range(-40, 0))
    assert w.drain(timeout=GUARD)
    assert not w._client.pending
    w.resume()
    assert list(first) == list(second) == list(range(40, 0, -1))


def test_what_is_for_later_counts_for_max_pending(make: Make) -> None:
    with make(max_pending=1, submit_timeout=0) as w:
        later = w.register_task_after(3600, Task(abs, (-1,)))
        with pytest.raises(QueueFull):
            w.submit(abs, -1)
        assert later.cancel()
        assert w.submit(abs, -1).result() == 1


def test_the_number_of_children_is_a_wish(here: ProcessWorker) -> None:
    here.set_max_workers(7)
    assert here.n == 7


def test_nothing_recurs(here: ProcessWorker) -> None:
    with pytest.raises(ConfigurationError, match="with debug=True nobody keeps the time"):
        here.register_cron_task("beat", "@every 10s", print)
    assert here.cron_tasks() == []
    with pytest.raises(TaskNotFound, match="no cron task is called 'beat'"):
        here.run_cron_task("beat")
    assert here.stop_graceful(timeout=GUARD)


def test_after_the_stop_no_task_is_known(make: Make) -> None:
    with make() as w:
        future = w.submit(abs, -1)
    assert w.get_tasks() == []
    with pytest.raises(WorkerStopped):
        w.get_task(future.task_id)
    with pytest.raises(MPWorkerError):
        w.register_task(Task(abs, (-1,)))


def test_tasks_for_later_of_several_threads_are_each_run_once(here: ProcessWorker, tmp_path: Path) -> None:
    def wait() -> None:
        for future in futures:
            future.result(GUARD)

    futures = [here.register_task_after(0.02, Task(retry_tasks.note, (tmp_path / "log",))) for _ in range(50)]
    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    assert len((tmp_path / "log").read_text().splitlines()) == 50
    assert here.metrics().completed == 50


@pytest.mark.parametrize("policy", ["drop_newest", "block"])
def test_results_come_as_a_stream(w: ProcessWorker, policy: Any) -> None:
    with w.subscribe_results(buffer=3, policy=policy) as results:
        w.submit(abs, -1)
        w.options(queue="mail").submit(pooljobs.fail, "wrong")
        w.register_task_after(0.1, Task(abs, (-3,), id="later"))
        found = [result for _ in range(3) if (result := results.get(GUARD)) is not None]
    assert {(each.name, each.queue, each.status) for each in found} == {
        ("abs", "default", TaskStatus.COMPLETED),
        ("fail", "mail", TaskStatus.FAILED),
    }
    assert "later" in [each.task_id for each in found]
