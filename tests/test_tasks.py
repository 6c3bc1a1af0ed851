"""Tasks as objects: registering, looking up, cancelling, running again, and what is remembered of them."""

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from concurrently import eventually
from pooljobs import Gate, run_with, wait_for_file
from scheduler_world import World

import mpworker
from mpworker import Latency, Metrics, ProcessWorker, QueueOptions, Retention, RetryPolicy, Task, TaskStatus
from mpworker.errors import (
    ConfigurationError,
    DuplicateTask,
    InvalidArgument,
    QueueFull,
    SerializationError,
    TaskCancelled,
    TaskNotFound,
    TaskTimeout,
    WorkerCrashed,
    WorkerStopped,
)
from mpworker.supervisor.describe import Describer
from mpworker.supervisor.effects import OK
from mpworker.supervisor.ids import Ids

GUARD = 60.0


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=2) as w:
        yield w


def fail_until(path: str, times: int) -> int:
    """Fails so often, counted in a file, and then says how often."""
    with open(path, "a+") as file:
        file.write("x")
        file.flush()
        file.seek(0)
        count = len(file.read())
    if count <= times:
        raise ValueError(f"number {count}")
    return count


@pytest.mark.parametrize("looks", range(4))
def test_what_begins_while_it_is_told_of_is_told_as_one_or_the_other(looks: int) -> None:
    world = World(2)
    world.submit(None)
    world.turn()
    busy, idle = world.children.values() if world.children[0].inbox else reversed(world.children.values())
    world.racing.extend([(idle, OK)] * looks + [(busy, OK)])  # it begins at the next look but so many
    told = Describer(world.scheduler, Ids(tuple)).tasks("queued", None, 10)
    assert all(report["status"] == "queued" and not report["attempts"] for report in told)
    (report,) = Describer(world.scheduler, Ids(tuple)).tasks(None, None, 10)
    assert (report["status"] == "running") == bool(report["attempts"])
    world.racing.clear()
    world.finish()


# ------------------------------------------------------------ register


def test_a_task_is_carried_out(pool: ProcessWorker) -> None:
    future = pool.register_task(Task(pow, (2, 10)))
    assert future.result(GUARD) == 1024
    assert pool.register_task(Task(int, ("ff",), {"base": 16})).result(GUARD) == 255
    assert pool.execute_task(Task(len, ["four"])) == 4
    assert [each.result(GUARD) for each in pool.register_tasks(Task(abs, (-1,)), Task(abs, (-2,)))] == [1, 2]


def test_one_task_can_be_registered_again(pool: ProcessWorker) -> None:
    task = Task(len, ("four",))
    first, second = pool.register_tasks(task, task)
    assert first is not second
    assert first.task_id != second.task_id
    assert first.result(GUARD) == second.result(GUARD) == 4


def test_what_a_task_leaves_out_is_as_for_the_worker(tmp_path: Path) -> None:
    with ProcessWorker(n=1, retries=2) as w:
        assert w.register_task(Task(fail_until, (str(tmp_path / "a"), 2))).result() == 3
        with pytest.raises(ValueError, match="number 1"):
            w.register_task(Task(fail_until, (str(tmp_path / "b"), 2), retries=0)).result()
        with pytest.raises(TaskTimeout):
            w.register_task(Task(time.sleep, (60,), timeout=0.1, retries=0)).result()


def test_a_task_sees_its_id_deadline_and_metadata(pool: ProcessWorker) -> None:
    def look() -> tuple[Any, ...]:
        context = mpworker.current()
        assert context.deadline is not None
        return context.task_id, context.attempt, context.metadata, context.remaining(), time.monotonic()

    future = pool.register_task(Task(look, id="mine", metadata={"case": [1, 2]}, deadline=50.0))
    task_id, attempt, metadata, remaining, _ = future.result(GUARD)
    assert (task_id, attempt, metadata) == ("mine", 1, {"case": [1, 2]})
    assert 0 < remaining <= 50
    assert future.task_id == "mine"
    plain = pool.submit(
        lambda: (mpworker.current().deadline, mpworker.current().remaining(), mpworker.current().metadata)
    )
    assert plain.result(GUARD) == (None, None, {})


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_details_go_with_calls_of_any_size(pool: ProcessWorker, size: int) -> None:
    future = pool.register_task(Task(len, (b"x" * size,), metadata={"size": size}))
    assert future.result(GUARD) == size


def test_an_id_belongs_to_one_task(pool: ProcessWorker, tmp_path: Path) -> None:
    held = pool.register_task(Task(wait_for_file, (str(tmp_path / "go"),), id="one"))
    with pytest.raises(DuplicateTask, match=r"^there is a task with the id 'one', which is unfinished$"):
        pool.register_task(Task(len, ("four",), id="one"))
    (tmp_path / "go").touch()
    assert held.result(GUARD) == "there"
    del held
    kept = "and is remembered for as long as Retention says"
    with pytest.raises(DuplicateTask, match=f"^there is a task with the id 'one', which is completed, {kept}$"):
        pool.register_task(Task(len, ("four",), id="one"))
    late = Task(time.sleep, (600.0,), id="tardy", timeout=0.1)
    with pytest.raises(TaskTimeout):
        pool.execute_task(late, GUARD)
    with pytest.raises(DuplicateTask, match=f"^there is a task with the id 'tardy', which is timed out, {kept}$"):
        pool.register_task(late)
    with pytest.raises(DuplicateTask):
        pool.register_task(Task(len, ("four",), id=pool.submit(len, "four").task_id))


def test_an_id_is_free_again_when_its_task_could_not_be_sent(pool: ProcessWorker) -> None:
    with pytest.raises(SerializationError):
        pool.register_task(Task(len, (open,), {"x": (i for i in ())}, id="unsent"))
    assert pool.register_task(Task(len, ("four",), id="unsent")).result(GUARD) == 4


# ------------------------------------------------------------ time


def test_a_task_for_later_waits_until_then(pool: ProcessWorker) -> None:
    begun = time.monotonic()
    later = [
        pool.register_task_after(0.3, Task(time.monotonic)),
        pool.register_task_at(datetime.now(UTC) + timedelta(seconds=0.3), Task(time.monotonic)),
        pool.register_task_at(time.time() + 0.3, Task(time.monotonic)),
        pool.register_task(Task(time.monotonic, run_at=0.3)),
    ]
    assert {pool.get_task(future.task_id).status for future in later} == {TaskStatus.SCHEDULED}
    assert pool.submit(len, "four").result(GUARD) == 4  # nobody is held up
    for future in later:
        assert future.result(GUARD) - begun >= 0.29


def test_a_time_that_is_over_is_now(pool: ProcessWorker) -> None:
    assert pool.register_task_at(0, Task(len, ("four",))).result(GUARD) == 4
    past = datetime(2001, 1, 1, tzinfo=UTC)
    assert pool.register_task_at(past, Task(len, ("four",))).result(GUARD) == 4


def test_leaving_the_block_waits_for_what_is_for_later() -> None:
    with ProcessWorker(n=1) as w:
        future = w.register_task_after(0.2, Task(len, ("four",)))
    assert future.result() == 4


def test_what_is_for_later_can_be_cancelled(pool: ProcessWorker) -> None:
    future = pool.register_task_after(500, Task(len, ("four",)))
    assert pool.cancel_task(future.task_id)
    assert future.cancelled()


def test_a_task_past_its_deadline_never_starts(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        held = w.submit(wait_for_file, str(tmp_path / "go"))
        late = w.register_task(Task((tmp_path / "ran").touch, deadline=0.1))
        begun = datetime.now(UTC)
        with pytest.raises(TaskTimeout) as told:
            late.result(GUARD)
        said, _, when = str(told.value).partition(" had not ended at its deadline ")
        assert said == f'task {late.task_id} ("Path.touch")'
        assert begun - timedelta(seconds=GUARD) < datetime.fromisoformat(when) < datetime.now(UTC)
        assert w.get_task(late.task_id).status is TaskStatus.TIMED_OUT
        assert w.get_task(late.task_id).attempts == ()
        past = datetime(2001, 1, 1, tzinfo=UTC)
        with pytest.raises(
            TaskTimeout, match=re.escape(f"deadline {past.astimezone().isoformat(' ', 'milliseconds')}")
        ):
            w.register_task(Task((tmp_path / "ran").touch, deadline=past)).result(GUARD)
        long_ago = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))  # in UTC that is in no year
        with pytest.raises(TaskTimeout, match=r"had not ended at its deadline$"):
            w.register_task(Task((tmp_path / "ran").touch, deadline=long_ago)).result(GUARD)
        (tmp_path / "go").touch()
        held.result(GUARD)
    assert not (tmp_path / "ran").exists()


def test_a_deadline_interrupts_what_runs_and_leaves_no_retry(tmp_path: Path) -> None:
    with ProcessWorker(n=1, retries=5) as w:
        w.submit(wait_for_file, str(tmp_path)).result(GUARD)  # so that the child has imported its file
        future = w.register_task(Task(wait_for_file, (str(tmp_path / "never"),), deadline=0.3))
        with pytest.raises(
            TaskTimeout, match=r"had not ended at its deadline [-\d]{10} [:.\d]{12}[-+:\d]{6} on attempt 1 of 1"
        ) as caught:
            future.result(GUARD)
        assert "wait_for_file" in caught.value.stack
        (attempt,) = w.get_task(future.task_id).attempts
        assert attempt.status is TaskStatus.TIMED_OUT


def test_a_deadline_is_for_all_attempts_together(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with ProcessWorker(n=1, retries=1000, retry_policy=RetryPolicy(base=0.05, factor=1, jitter="none")) as w:
        w.submit(fail_until, str(tmp_path / "other"), 0).result(GUARD)  # so that the child has imported this file
        future = w.register_task(Task(fail_until, (str(path), 1000), deadline=0.4))
        with pytest.raises(TaskTimeout):
            future.result(GUARD)
    assert 1 <= len(path.read_text()) <= 9


# ------------------------------------------------------------ look up


def test_a_task_can_be_looked_up_at_any_moment(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        running = w.submit(wait_for_file, str(tmp_path / "go"))
        queued = w.register_task(Task(len, ("four",), queue="q", priority=3, weight=7, name="count", metadata={"a": 1}))
        eventually(lambda: _is(w, running, TaskStatus.RUNNING))
        info = w.get_task(running.task_id)
        assert (info.task_id, info.name, info.queue) == (running.task_id, "wait_for_file", "default")
        (attempt,) = info.attempts
        assert (attempt.pid, attempt.ended_at) == (w.processes()["children"][0]["pid"], None)
        assert abs(attempt.started_at - time.time()) < 30
        info = w.get_task(queued.task_id)
        assert (info.status, info.name, info.queue) == (TaskStatus.QUEUED, "count", "q")
        assert (info.priority, info.weight, info.metadata, info.attempts) == (3, 7, {"a": 1}, ())
        assert info.future is queued
        (tmp_path / "go").touch()
        queued.result(GUARD)
        info = w.get_task(running.task_id)
        (attempt,) = info.attempts
        assert (info.status, attempt.status) == (TaskStatus.COMPLETED, TaskStatus.COMPLETED)
        assert attempt.ended_at is not None
        assert attempt.started_at < attempt.ended_at <= time.time() + 1
        assert w.get_task(queued.task_id).metadata == {"a": 1}


def _is(w: ProcessWorker, future: mpworker.TaskFuture[Any], status: TaskStatus) -> bool:
    return w.get_task(future.task_id).status is status


def test_every_attempt_is_told(tmp_path: Path) -> None:
    with ProcessWorker(n=1, retries=2, crash_retries=1) as w:
        raised = w.submit(fail_until, str(tmp_path / "a"), 2)
        raised.result(GUARD)
        assert [each.status.value for each in w.get_task(raised.task_id).attempts] == ["failed", "failed", "completed"]
        crashed = w.options(retries=0).submit(_die)
        with pytest.raises(WorkerCrashed) as caught:
            crashed.result(GUARD)
        first, second = w.get_task(crashed.task_id).attempts
        assert (first.cause, second.cause) == ("exit", "exit")
        assert second.pid == caught.value.pid != first.pid
        assert first.ended_at is not None
        assert first.started_at <= first.ended_at <= second.started_at


def _number(path: str) -> None:
    """Raises with the number of its call."""
    with open(path, "a") as file:
        file.write("x")
        number = file.tell()
    raise ValueError(f"call\n{number}")


def _huge() -> None:
    raise ValueError("x" * 100_000)


@pytest.mark.parametrize("debug", [False, True])
def test_the_errors_of_the_last_attempts_are_told(tmp_path: Path, debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug, retries=5) as w:
        failed = w.submit(_number, str(tmp_path / "a"))
        assert str(failed.exception(GUARD)) == "call\n6"
        told = [each.error for each in w.get_task(failed.task_id).attempts]
        assert told == ["", "", "ValueError: call 3", "ValueError: call 4", "ValueError: call 5", "ValueError: call 6"]
        refused = w.options(retries=0).submit(threading.Lock)
        refused.exception(GUARD)
        (attempt,) = w.get_task(refused.task_id).attempts
        assert "cannot be sent back" in attempt.error
        huge = w.options(retries=1).submit(_huge)
        huge.exception(GUARD)
        assert all(len(each.error) <= 1 << 14 for each in w.get_task(huge.task_id).attempts)
        well = w.submit(len, "four")
        assert well.result(GUARD) == 4
        assert [each.error for each in w.get_task(well.task_id).attempts] == [""]


def _die() -> None:
    import os

    os._exit(3)


@pytest.mark.parametrize("task_id", ["", "nonsense", "0-1", "{prefix}99999", "{prefix}0", "{prefix}-1"])
def test_an_id_that_nobody_has(pool: ProcessWorker, task_id: str) -> None:
    prefix = pool.submit(len, "four").task_id.rpartition("-")[0] + "-"
    for verb in (pool.get_task, pool.cancel_task, pool.retry_task):
        with pytest.raises(TaskNotFound, match="no task has the id"):
            verb(task_id.format(prefix=prefix))
        with pytest.raises(InvalidArgument, match="a task id is a str, not 3"):
            verb(3)  # type: ignore[arg-type]


def test_tasks_can_be_listed(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        done = w.submit(len, "four")
        done.result(GUARD)
        failed = w.submit(int, "x")
        failed.exception(GUARD)
        running = w.submit(wait_for_file, str(tmp_path / "go"))
        eventually(lambda: _is(w, running, TaskStatus.RUNNING))
        queued = [w.options(queue="q").submit(len, "four") for _ in range(3)]
        later = w.register_task_after(500, Task(len, ("four",)))
        ids = [each.task_id for each in (running, *queued, later, failed, done)]
        assert [info.task_id for info in w.get_tasks()] == ids
        assert [info.task_id for info in w.get_tasks(limit=2)] == ids[:2]
        assert [info.task_id for info in w.get_tasks(queue="q")] == [each.task_id for each in queued]
        assert [info.task_id for info in w.get_tasks(status="failed")] == [failed.task_id]
        assert [info.task_id for info in w.get_tasks(status=TaskStatus.SCHEDULED)] == [later.task_id]
        assert [info.task_id for info in w.get_tasks(status="running")] == [running.task_id]
        assert [info.task_id for info in w.get_tasks(status="queued")] == [each.task_id for each in queued]
        assert replace(w.metrics(), latency=Latency()) == Metrics(
            accepted=7,
            scheduled=1,
            queued=3,
            running=1,
            completed=1,
            failed=1,
            remembered=2,
            queues={"default": 0, "q": 3},
        )
        later.cancel()
        (tmp_path / "go").touch()
    assert w.get_tasks() == []
    with pytest.raises(ConfigurationError, match=r"status must be one of 'scheduled', .* not 'lost'"):
        w.get_tasks(status="lost")
    with pytest.raises(ConfigurationError, match="limit must be at least 1, not 0"):
        w.get_tasks(limit=0)


def test_each_task_is_counted_once_by_its_outcome() -> None:
    with ProcessWorker(n=2, retries=1) as w:
        ends: list[Any] = [
            *(w.submit(len, "four") for _ in range(5)),
            *(w.submit(int, "x") for _ in range(3)),
            w.submit(_die),
            w.options(timeout=0.1).submit(time.sleep, 60),
        ]
        cancelled = w.register_task_after(500, Task(len, ("four",)))
        cancelled.cancel()
        for future in ends:
            future.exception(GUARD)
        list(w.map(abs, range(100)))
        counts = w.metrics()
    assert (counts.accepted, counts.completed, counts.failed) == (11, 5, 4)
    assert (counts.cancelled, counts.timed_out, counts.retries) == (1, 1, 5)
    assert counts.crashes == {"exit": 2}
    assert (counts.scheduled, counts.queued, counts.running) == (0, 0, 0)


# ------------------------------------------------------------ cancel, run again, wait


def test_everything_can_be_cancelled(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        running = w.submit(wait_for_file, str(tmp_path / "never"))
        eventually(lambda: _is(w, running, TaskStatus.RUNNING))
        others = [*(w.submit(len, "four") for _ in range(20)), w.register_task_after(500, Task(len, ("four",)))]
        items = w.map(abs, range(20), return_exceptions=True)
        assert w.cancel_all() == 22
        for future in (running, *others):
            with pytest.raises(TaskCancelled):
                future.result(GUARD)
        assert all(isinstance(item, TaskCancelled) for item in items)
        assert w.cancel_all() == 0
        assert w.submit(len, "four").result(GUARD) == 4


def test_cancelling_what_has_ended_says_so(pool: ProcessWorker) -> None:
    future = pool.submit(len, "four")
    future.result(GUARD)
    assert pool.cancel_task(future.task_id) is False
    gone = pool.register_task_after(500, Task(len, ("four",), id="gone"))
    assert pool.cancel_task("gone") is True
    assert gone.cancelled()
    assert pool.cancel_task("gone") is False


def test_a_task_that_failed_can_be_run_again_as_a_new_one(pool: ProcessWorker, tmp_path: Path) -> None:
    old = pool.register_task(Task(fail_until, (str(tmp_path / "a"), 1), name="flaky", metadata={"a": 1}, queue="q"))
    with pytest.raises(ValueError, match="number 1"):
        old.result(GUARD)
    new = pool.retry_task(old.task_id)
    assert new.result(GUARD) == 2
    assert new.task_id != old.task_id
    info = pool.get_task(new.task_id)
    assert (info.retry_of, info.name, info.metadata, info.queue) == (old.task_id, "flaky", {"a": 1}, "q")
    assert pool.get_task(old.task_id).status is TaskStatus.FAILED
    with pytest.raises(ConfigurationError, match="is completed: only what failed, timed out or was cancelled can be"):
        pool.retry_task(new.task_id)


@pytest.mark.parametrize("debug", [False, True])
def test_what_was_run_again_is_told_by_the_id_that_it_was_given(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        w.register_task(Task(int, ("x",), id="case-17")).exception(GUARD)
        again = w.retry_task("case-17")
        again.exception(GUARD)
        assert w.get_task(again.task_id).retry_of == "case-17"
        assert w.get_task(w.get_task(again.task_id).retry_of).task_id == "case-17"
        once_more = w.retry_task(again.task_id)
        once_more.exception(GUARD)
        assert w.get_task(once_more.task_id).retry_of == again.task_id


def context_after(seconds: float) -> tuple[str, float | None, dict[str, Any]]:
    time.sleep(seconds)
    context = mpworker.current()
    return context.task_id, context.deadline, context.metadata


def test_a_task_that_is_run_again_has_neither_the_deadline_nor_the_id_of_the_old_one(pool: ProcessWorker) -> None:
    task = Task(context_after, (0.2,), id="late", deadline=0.05, metadata={"a": 1})
    with pytest.raises(TaskTimeout):
        pool.register_task(task).result(GUARD)
    new = pool.retry_task("late")
    assert new.result(GUARD) == (new.task_id, None, {"a": 1})


def test_a_cancelled_task_runs_again_only_if_asked(pool: ProcessWorker) -> None:
    future = pool.register_task_after(500, Task(len, ("four",)))
    future.cancel()
    assert pool.retry_task(future.task_id).result(GUARD) == 4


def test_what_has_not_ended_cannot_be_run_again(pool: ProcessWorker) -> None:
    future = pool.register_task_after(500, Task(len, ("four",)))
    with pytest.raises(ConfigurationError, match="is scheduled: only what failed, timed out or was cancelled can be"):
        pool.retry_task(future.task_id)
    future.cancel()


def test_wait_is_for_what_was_accepted_before(pool: ProcessWorker, tmp_path: Path) -> None:
    futures = [pool.submit(time.sleep, 0.05) for _ in range(4)]
    assert pool.wait(GUARD)
    assert all(future.ready for future in futures)
    held = pool.submit(wait_for_file, str(tmp_path / "go"))
    assert not pool.wait(0.05)
    (tmp_path / "go").touch()
    assert pool.wait()
    assert held.ready


# ------------------------------------------------------------ what is remembered


def test_the_last_ones_are_remembered() -> None:
    with ProcessWorker(n=1, retention=Retention(max_entries=3)) as w:
        futures = [w.submit(abs, number) for number in range(5)]
        w.wait()
        assert [w.get_task(future.task_id).status for future in futures[2:]] == [TaskStatus.COMPLETED] * 3
        for future in futures[:2]:
            with pytest.raises(TaskNotFound):
                w.get_task(future.task_id)
            assert w.cancel_task(future.task_id) is False  # it has ended, as is known by its number
        w.set_retention(Retention(max_entries=0))
        with pytest.raises(TaskNotFound):
            w.get_task(futures[-1].task_id)
        one_more = w.submit(abs, 1)
        one_more.result()
        with pytest.raises(TaskNotFound):
            w.get_task(one_more.task_id)


def test_what_is_too_old_is_forgotten() -> None:
    with ProcessWorker(n=1, retention=Retention(ttl=0.2, cleanup_interval=0.05)) as w:
        future = w.submit(abs, 1)
        future.result()
        assert w.metrics().remembered == 1
        eventually(lambda: _none_is_remembered(w))
        with pytest.raises(TaskNotFound):
            w.get_task(future.task_id)


def _none_is_remembered(w: ProcessWorker) -> bool:
    return w.metrics().remembered == 0


def test_results_are_kept_if_asked() -> None:
    with ProcessWorker(n=1, retention=Retention(results=True)) as w:
        good, bad = w.submit(len, "four"), w.submit(int, "x")
        w.wait()
        kept = w.get_task(good.task_id).future
        assert kept is not None
        assert kept is not good
        assert kept.result(GUARD) == 4
        assert kept.task_id == good.task_id
        error = w.get_task(bad.task_id).future
        assert error is not None
        with pytest.raises(ValueError, match="invalid literal"):
            error.result(GUARD)


def test_without_that_errors_alone_are() -> None:
    with ProcessWorker(n=1) as w:
        good, bad = w.submit(len, "four"), w.options(timeout=0.1).submit(time.sleep, 60)
        w.wait()
        assert w.get_task(good.task_id).future is None
        error = w.get_task(bad.task_id).future
        assert error is not None
        with pytest.raises(TaskTimeout, match=r"ran for over 0\.1 s"):
            error.result(GUARD)


def test_large_payloads_of_what_has_ended_are_bounded() -> None:
    with ProcessWorker(n=1, retention=Retention(max_bytes=60_000)) as w:
        futures = [w.submit(int, "x" * 40_000) for _ in range(4)]
        w.wait()
        assert [w.get_task(each.task_id).future is not None for each in futures] == [False, False, False, True]
        with pytest.raises(TaskNotFound, match="is no longer remembered"):
            w.retry_task(futures[0].task_id)
        assert isinstance(w.retry_task(futures[3].task_id).exception(GUARD), ValueError)


# ------------------------------------------------------------ idempotency


def test_the_same_key_and_call_is_the_same_task(pool: ProcessWorker, tmp_path: Path) -> None:
    task = Task(fail_until, (str(tmp_path / "a"), 0), idempotency_key="k1")
    first = pool.register_task(task)
    assert pool.register_task(Task(fail_until, (str(tmp_path / "a"), 0), idempotency_key="k1")) is first
    assert first.result(GUARD) == 1
    assert pool.register_task(task) is first  # also after its end
    assert (tmp_path / "a").read_text() == "x"


def test_the_same_key_and_another_call_is_an_error(pool: ProcessWorker) -> None:
    pool.register_task(Task(pow, (2, 3), idempotency_key="k2"))
    for other in (Task(pow, (2, 4), idempotency_key="k2"), Task(divmod, (2, 3), idempotency_key="k2")):
        with pytest.raises(DuplicateTask, match=r"idempotency_key 'k2' belongs to .*, which is another call"):
            pool.register_task(other)


def test_a_fingerprint_stands_for_the_arguments(pool: ProcessWorker) -> None:
    first = pool.register_task(Task(len, ([1],), idempotency_key="k3", fingerprint="v1"))
    assert pool.register_task(Task(len, ([1, 2],), idempotency_key="k3", fingerprint="v1")) is first
    with pytest.raises(DuplicateTask):
        pool.register_task(Task(len, ([1],), idempotency_key="k3", fingerprint="v2"))


def test_a_key_lives_as_long_as_its_task_is_remembered() -> None:
    with ProcessWorker(n=1, retention=Retention(max_entries=2)) as w:
        futures = [w.register_task(Task(abs, (n,), idempotency_key=f"k{n}")) for n in range(200)]
        w.wait()
        w.register_task(Task(abs, (1,), idempotency_key="one more")).result()
        assert w.register_task(Task(abs, (0,), idempotency_key="k0")) is not futures[0]


# ------------------------------------------------------------ back-pressure


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_a_full_worker_refuses(tmp_path: Path, timeout: float) -> None:
    with ProcessWorker(n=1, max_pending=2, submit_timeout=timeout) as w:
        held = [w.submit(wait_for_file, str(tmp_path / "go")) for _ in range(2)]
        began = time.monotonic()
        with pytest.raises(
            QueueFull, match=f"max_pending=2 tasks are unfinished, and submit_timeout={timeout:g} s is over"
        ):
            w.submit(len, "four")
        assert time.monotonic() - began >= timeout
        (tmp_path / "go").touch()
        for future in held:
            future.result(GUARD)
        assert w.submit(len, "four").result(GUARD) == 4


def test_what_is_run_again_counts_as_any_other(tmp_path: Path) -> None:
    with ProcessWorker(n=1, max_pending=1, submit_timeout=0) as w:
        failed = w.submit(int, "x")
        assert failed.exception(GUARD) is not None
        held = w.submit(wait_for_file, str(tmp_path / "go"))
        with pytest.raises(QueueFull, match="max_pending=1 tasks are unfinished, and submit_timeout=0 s is over"):
            w.retry_task(failed.task_id)
        assert w.metrics().accepted == 2
        (tmp_path / "go").touch()
        held.result(GUARD)
        assert isinstance(w.retry_task(failed.task_id).exception(GUARD), ValueError)


def test_a_retry_is_taken_back_though_the_worker_is_full(tmp_path: Path) -> None:
    with ProcessWorker(n=1, max_pending=1, submit_timeout=0, retries=3) as w:
        assert w.submit(fail_until, str(tmp_path / "a"), 3).result(GUARD) == 4


# ------------------------------------------------------------ one at a time


def test_tasks_of_one_key_take_turns(tmp_path: Path) -> None:
    with ProcessWorker(n=3) as w:
        folders = [tmp_path / name for name in "ab"]
        for folder in folders:
            folder.mkdir()
        futures = [
            w.register_task(Task(run_with, (str(folder),), concurrency_key=folder.name))
            for _ in range(8)
            for folder in folders
        ]
        assert {future.result(GUARD) for future in futures} == {1}
        seen = w.options(concurrency_key="m").map(run_with, [str(folders[0])] * 6, chunksize=2)
        assert set(seen) == {1}


def test_the_least_limit_of_those_that_run_with_a_key_holds(tmp_path: Path) -> None:
    with ProcessWorker(n=2) as w:
        alone = w.register_task(Task(wait_for_file, (str(tmp_path / "go"),), concurrency_key="k"))
        eventually(alone.running)
        other = w.register_task(Task(abs, (-2,), concurrency_key="k", concurrency=2))
        assert w.execute_task(Task(abs, (-3,)), GUARD) == 3
        assert not other.done()
        (tmp_path / "go").touch()
        assert other.result(GUARD) == 2


def test_more_sets_of_options_than_are_kept_go_with_their_tasks() -> None:
    from mpworker.optiontable import OPTIONS_MAX

    with ProcessWorker(n=1, queues={"narrow": QueueOptions(max_running=1)}) as w:
        views = [w.options(priority=number) for number in range(OPTIONS_MAX + 50)]
        future = views[-1].submit(len, "four")
        assert future.result() == 4
        assert w.get_task(future.task_id).priority == OPTIONS_MAX + 49
        assert list(views[-2].map(abs, range(-3, 0))) == [3, 2, 1]
        assert len(w._client.option_table._keys) == OPTIONS_MAX


def test_order_holds_also_for_options_that_come_with_their_task(tmp_path: Path) -> None:
    """Those of more sets than are kept, in a pool that has had no reason to leave its plain line."""
    from mpworker.optiontable import OPTIONS_MAX

    with ProcessWorker(n=1) as w:
        for number in range(OPTIONS_MAX):
            w.options(timeout=1000.0 + number)
        gate = Gate(tmp_path)
        w.submit(pooljobs.hold, gate.folder)
        later = [w.options(queue="pay", priority=number).submit(time.monotonic_ns) for number in (3, 1, 2)]
        w.pause("pay")
        gate.wait_begun()
        gate.release()
        w.submit(bool).result()
        assert w.queues()["pay"].queued == 3
        w.resume("pay")
        third, first, second = [future.result() for future in later]
        assert first < second < third
        gate.close()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"fn": 3}, InvalidArgument, r"a Task needs a callable, not 3: write Task\(f, \(x,\)\), not Task\(f\(x\)\)"),
    ({"args": "four"}, InvalidArgument, "args must be a tuple of arguments, not 'four'"),
    ({"kwargs": [1]}, InvalidArgument, r"kwargs must be a dict, not \[1\]"),
    ({"id": ""}, ConfigurationError, "id must have 1 to 200 characters, not 0"),
    ({"id": 7}, InvalidArgument, "id must be a str, not 7"),
    ({"deadline": -1}, ConfigurationError, "deadline must be at least 0 s, not -1"),
    ({"deadline": datetime(2030, 1, 1)}, ConfigurationError, "deadline must have a time zone"),
    (
        {"run_at": "noon"},
        InvalidArgument,
        "run_at must be a number of seconds or a datetime with a time zone, not",
    ),
    ({"metadata": 3}, InvalidArgument, "metadata must be a dict, not 3"),
    ({"concurrency": 0}, ConfigurationError, "concurrency must be at least 1, not 0"),
    ({"concurrency_key": 5}, InvalidArgument, "concurrency_key must be a str, not 5"),
    ({"priority": 0.5}, InvalidArgument, "priority must be an int"),
    ({"metadata": {"a": {1}}}, SerializationError, "metadata must be what JSON can write: .*set"),
    (
        {"metadata": {1: 2}},
        SerializationError,
        "^each key in metadata must be a str, not 1, which JSON would make one$",
    ),
    ({"metadata": {"a": [({None: 2},)]}}, SerializationError, "must be a str, not None,"),
    (
        {"metadata": {"a": "x" * 20_000}},
        ConfigurationError,
        "metadata must have at most 16384 bytes as JSON, not 20009",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=[str(case[2])[:40] for case in BAD])
def test_a_bad_task_is_told(pool: ProcessWorker, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        pool.register_task(Task(**{"fn": len} | options))


def test_a_bad_moment_is_told(pool: ProcessWorker) -> None:
    with pytest.raises(InvalidArgument, match=r"when must be .* to 1e\+11 or a datetime with a time zone, not '22:"):
        pool.register_task_at("22:00", Task(len, ("four",)))  # type: ignore[arg-type]


def test_a_bad_retention_is_told(pool: ProcessWorker) -> None:
    with pytest.raises(ConfigurationError, match="max_entries must be at least 0, not -1"):
        Retention(max_entries=-1)
    with pytest.raises(ConfigurationError, match="ttl must be greater than 0 s, not 0; None is no limit"):
        Retention(ttl=0)
    with pytest.raises(InvalidArgument, match="results must be True or False, not 3"):
        Retention(results=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="retention must be a Retention or None, not 3"):
        pool.set_retention(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="register_task needs a Task, not 3"):
        pool.register_task(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"not a list: register_tasks\(\*tasks\) takes many"):
        pool.register_tasks([Task(len, ("four",))])  # type: ignore[arg-type]


def test_after_the_stop() -> None:
    with ProcessWorker(n=1) as w:
        future = w.submit(len, "four")
    with pytest.raises(WorkerStopped):
        w.register_task(Task(len, ("four",)))
    for ask in (lambda: w.get_task(future.task_id), w.cancel_all):
        with pytest.raises(WorkerStopped):
            ask()
    assert w.metrics().completed == 1
    assert w.wait()


def test_many_tasks_are_registered_in_their_order_whatever_they_say() -> None:
    def run(number: int) -> tuple[int, str]:
        return number, mpworker.current().task_id

    said: list[dict[str, Any]] = [{}, {"id": "own"}, {"idempotency_key": "key"}, {"name": "named"}, {"queue": "other"}]
    with ProcessWorker(n=1) as w:
        tasks = [Task(run, (number,), **said[number % 5 if number < 5 else 0]) for number in range(300)]
        futures = w.register_tasks(*tasks)
        assert [future.result(GUARD) for future in futures] == [(n, futures[n].task_id) for n in range(300)]
        assert futures[1].task_id == "own"
        assert w.register_task(tasks[2]).task_id == futures[2].task_id
        assert w.get_task(futures[3].task_id).name == "named"
        assert w.get_task(futures[4].task_id).queue == "other"


@pytest.mark.parametrize("at", [0, 1, 200])
def test_those_before_a_task_that_cannot_be_registered_run(at: int) -> None:
    with ProcessWorker(n=1) as w:
        tasks: list[Any] = [Task(abs, (-number,)) for number in range(300)]
        tasks[at] = 7
        with pytest.raises(InvalidArgument, match="register_task needs a Task, not 7"):
            w.register_tasks(*tasks)
    assert w.metrics().completed == at


@pytest.mark.parametrize("native", [True, False])
def test_an_id_is_known_though_a_task_with_a_lower_number_was_sent_after_it(gate: Gate, native: bool) -> None:
    """As another thread may send one between the number and the push of this one."""
    with ProcessWorker(n=1) as w:
        client = w._client
        held = w.submit(pooljobs.hold, gate.folder)
        w.submit(pooljobs.square, 1)
        if not native:
            client._submit = None
        between: list[mpworker.TaskFuture[Any]] = []

        def make(client: Any, key: int, name: str) -> mpworker.TaskFuture[Any]:
            if not between:
                between.append(w.submit(pooljobs.square, 2))
            return mpworker.TaskFuture(client, key, name)

        outer = client.submit(pooljobs.square, (3,), {}, w._options_key, b"", make)
        assert w.get_task(between[0].task_id) is not None
        w.cancel_task(between[0].task_id)
        gate.release()
        assert held.result(GUARD) is None
        assert outer.result(GUARD) == 9
        assert between[0].cancelled()
