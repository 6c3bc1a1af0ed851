"""Hooks and tracers: what they are told of tasks, when, and what they cannot do to them."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from concurrently import eventually
from pooljobs import fail_once, wait_for_file

from mpworker import Hooks, ProcessWorker, RetryPolicy, Task, TaskEvent, TaskStatus, observer
from mpworker.errors import SupervisorLost, TaskCancelled, TaskTimeout, WorkerCrashed, WorkerStopped
from mpworker.ipc import codec
from mpworker.supervisor import registry, watching
from mpworker.supervisor.lifecycle import OFFERED

GUARD = 60.0


class Diary:
    """Writes down everything that it is told."""

    def __init__(self) -> None:
        self.events: list[TaskEvent] = []
        self.hooks = Hooks(**dict.fromkeys(("on_queued", "on_start", "on_retry", "on_finish"), self.events.append))

    def kinds(self, task_id: str) -> list[str]:
        return [event.kind for event in self.events if event.task_id == task_id]

    def of(self, task_id: str, kind: str) -> TaskEvent:
        (event,) = [event for event in self.events if (event.task_id, event.kind) == (task_id, kind)]
        return event


class Spans:
    """A tracer that keeps its spans."""

    def __init__(self) -> None:
        self.open: dict[int, TaskEvent] = {}
        self.ended: list[tuple[TaskEvent, TaskEvent]] = []

    def start(self, event: TaskEvent) -> int:
        number = len(self.open) + len(self.ended)
        self.open[number] = event
        return number

    def end(self, span: int, event: TaskEvent) -> None:
        self.ended.append((self.open.pop(span), event))


@pytest.fixture
def diary() -> Diary:
    return Diary()


def crash_once(path: str) -> str:
    if Path(path).exists():
        return "done"
    Path(path).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


# ------------------------------------------------------------ what is told


def test_the_life_of_a_task_is_told(diary: Diary) -> None:
    begun = time.time()
    with ProcessWorker(n=1, hooks=diary.hooks, queues={"mail": 2}) as w:
        future = w.options(queue="mail").submit(os.getpid)
        pid = future.result(GUARD)
    assert diary.kinds(future.task_id) == ["queued", "start", "finish"]
    queued, start, finish = diary.events
    assert {(event.name, event.queue) for event in diary.events} == {("getpid", "mail")}
    assert (queued.attempt, queued.pid, queued.status, queued.started_at, queued.run_at) == (0, 0, None, None, None)
    assert (start.attempt, start.pid, start.status, start.ended_at) == (1, pid, None, None)
    assert (finish.attempt, finish.pid, finish.status, finish.cause) == (1, pid, TaskStatus.COMPLETED, "")
    assert start.started_at is not None
    assert finish.started_at == pytest.approx(start.started_at, abs=0.001)
    assert finish.ended_at is not None
    assert begun - 0.001 <= queued.at <= start.at <= finish.ended_at <= finish.at <= time.time() + 0.001


def test_an_event_cannot_be_changed_and_holds_nothing_of_the_call() -> None:
    event = TaskEvent("queued", "1", "f", "default", 0.0)
    with pytest.raises(FrozenInstanceError):
        event.name = "g"  # type: ignore[misc]
    assert {field.name for field in fields(TaskEvent)} == {
        *("kind", "task_id", "name", "queue", "at", "attempt", "pid", "started_at", "ended_at", "status", "cause"),
        *("pause", "run_at"),
    }


def test_a_start_is_told_while_the_task_runs(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with ProcessWorker(n=1, hooks=Hooks(on_start=lambda _: go.touch())) as w:
        # Nobody waits for a result here, and the task ends only if somebody has heard that it began.
        w.submit(wait_for_file, str(go))
        eventually(go.exists)


def test_each_attempt_is_told(diary: Diary, tmp_path: Path) -> None:
    policy = RetryPolicy(base=0.05, jitter="none")
    with ProcessWorker(n=1, hooks=diary.hooks, retries=1, retry_policy=policy) as w:
        future = w.submit(fail_once, str(tmp_path / "x"))
        assert future.result(GUARD) == "done"
    assert diary.kinds(future.task_id) == ["queued", "start", "retry", "start", "finish"]
    retry, finish = diary.of(future.task_id, "retry"), diary.of(future.task_id, "finish")
    assert (retry.attempt, retry.status, retry.pause, retry.cause) == (1, TaskStatus.FAILED, 0.05, "")
    assert [event.attempt for event in diary.events if event.kind == "start"] == [1, 2]
    assert (finish.attempt, finish.status, finish.pause) == (2, TaskStatus.COMPLETED, None)


def test_the_death_of_a_child_is_told(diary: Diary, tmp_path: Path) -> None:
    with ProcessWorker(n=1, hooks=diary.hooks, crash_retries=1) as w:
        again = w.submit(crash_once, str(tmp_path / "x"))
        assert again.result(GUARD) == "done"
        last = w.options(crash_retries=0).submit(os._exit, 3)
        with pytest.raises(WorkerCrashed) as caught:
            last.result(GUARD)
    retry = diary.of(again.task_id, "retry")
    assert (retry.status, retry.cause) == (TaskStatus.FAILED, "signal")
    starts = [event for event in diary.events if event.kind == "start" and event.task_id == again.task_id]
    assert starts[0].pid == retry.pid != starts[1].pid
    finish = diary.of(last.task_id, "finish")
    assert (finish.status, finish.cause, finish.pid) == (TaskStatus.FAILED, "exit", caught.value.pid)
    assert finish.started_at is not None


def test_timeouts_and_cancels_are_told(diary: Diary, tmp_path: Path) -> None:
    with ProcessWorker(n=1, hooks=diary.hooks) as w:
        late = w.options(timeout=0.05).submit(wait_for_file, str(tmp_path / "never"))
        with pytest.raises(TaskTimeout):
            late.result(GUARD)
        running = w.submit(wait_for_file, str(tmp_path / "never"))
        waiting = w.submit(len, "four")
        eventually(lambda: "start" in diary.kinds(running.task_id))
        assert waiting.cancel()
        assert running.cancel()
        for future in (waiting, running):
            with pytest.raises(TaskCancelled):
                future.result(GUARD)
    assert diary.kinds(late.task_id) == ["queued", "start", "finish"]
    assert diary.of(late.task_id, "finish").status is TaskStatus.TIMED_OUT
    assert diary.kinds(waiting.task_id) == ["queued", "finish"]
    never = diary.of(waiting.task_id, "finish")
    assert (never.status, never.attempt, never.pid, never.started_at) == (TaskStatus.CANCELLED, 0, 0, None)
    stopped = diary.of(running.task_id, "finish")
    assert (stopped.status, stopped.attempt) == (TaskStatus.CANCELLED, 1)
    assert stopped.pid


def test_a_task_for_later_is_told_of_once(diary: Diary) -> None:
    with ProcessWorker(n=1, hooks=diary.hooks) as w:
        begun = time.time()
        future = w.register_task(Task(len, ("four",), id="mine", name="measure", run_at=0.1, metadata={"a": 1}))
        registered = time.time()
        assert future.result(GUARD) == 4
        expired = w.register_task(Task(len, ("four",), run_at=0.02, deadline=0.02))
        with pytest.raises(TaskTimeout):
            expired.result(GUARD)
    assert diary.kinds("mine") == ["queued", "start", "finish"]
    queued, start = diary.of("mine", "queued"), diary.of("mine", "start")
    assert queued.name == start.name == "measure"
    assert queued.run_at is not None
    assert begun + 0.099 <= queued.run_at <= registered + 0.101
    assert start.at >= queued.run_at
    assert diary.of(expired.task_id, "finish").status is TaskStatus.TIMED_OUT


def test_what_the_supervisor_submits_is_told(diary: Diary, tmp_path: Path) -> None:
    with ProcessWorker(n=1, hooks=diary.hooks) as w:
        w.register_cron_task("beat", "@every 3600s", Task(os.getpid))
        w.run_cron_task("beat")
        eventually(lambda: [event.kind for event in diary.events] == ["queued", "start", "finish"])
        assert {event.name for event in diary.events} == {"beat"}
        assert {event.task_id for event in diary.events} == {run.task_id for run in w.cron_history("beat")}
        failed = w.submit(fail_once, str(tmp_path / "x"))
        with pytest.raises(ValueError, match="not yet"):
            failed.result(GUARD)
        again = w.retry_task(failed.task_id)
        assert again.result(GUARD) == "done"
    assert diary.kinds(again.task_id) == ["queued", "start", "finish"]


def test_a_map_is_not_told(diary: Diary, tmp_path: Path) -> None:
    with ProcessWorker(n=2, hooks=diary.hooks, retries=1) as w:
        assert list(w.map(abs, range(100))) == list(range(100))
        assert list(w.map(fail_once, [str(tmp_path / "x")])) == ["done"]
        w.submit(len, "four").result(GUARD)
    assert {event.name for event in diary.events} == {"len"}


# ------------------------------------------------------------ from when on


def test_hooks_are_set_while_tasks_run(diary: Diary, tmp_path: Path) -> None:
    with ProcessWorker(n=2) as w:
        before = w.submit(wait_for_file, str(tmp_path / "go"))
        w.set_hooks(diary.hooks)
        during = w.submit(len, "four")
        assert during.result(GUARD) == 4
        (tmp_path / "go").touch()
        assert before.result(GUARD) == "there"
        eventually(lambda: diary.kinds(during.task_id) == ["queued", "start", "finish"])
        w.set_hooks(None)
        after = w.submit(len, "four")
        assert after.result(GUARD) == 4
        w.set_hooks(diary.hooks)
        last = w.submit(len, "four")
        last.result(GUARD)
    assert {event.task_id for event in diary.events} == {during.task_id, last.task_id}
    assert w._client.observer._open == {}


def test_nothing_is_kept_of_a_task_that_nobody_watches_any_more(diary: Diary, tmp_path: Path) -> None:
    with ProcessWorker(n=1, hooks=diary.hooks) as w:
        running = w.submit(wait_for_file, str(tmp_path / "go"))
        eventually(lambda: "start" in diary.kinds(running.task_id))
        assert len(w._client.observer._open) == 1
        w.set_hooks(None)
        eventually(lambda: not w._client.observer._open)
        (tmp_path / "go").touch()
        assert running.result(GUARD) == "there"
    assert diary.kinds(running.task_id) == ["queued", "start"]


def test_new_hooks_take_the_place_of_the_old_ones(diary: Diary) -> None:
    other = Diary()
    with ProcessWorker(n=1, hooks=diary.hooks) as w:
        first = w.submit(len, "four")
        eventually(lambda: "finish" in diary.kinds(first.task_id))
        w.set_hooks(other.hooks)
        second = w.submit(len, "four")
        second.result(GUARD)
    assert {event.task_id for event in diary.events} == {first.task_id}
    assert other.kinds(second.task_id) == ["queued", "start", "finish"]
    with pytest.raises(WorkerStopped):
        w.set_hooks(None)


def test_nobody_pays_for_what_nobody_watches() -> None:
    with ProcessWorker(n=1, retries=1) as w:
        assert w.submit(len, "four").result(GUARD) == 4
        assert w.submit(max, 1, 2).result(GUARD) == 2
        assert w._client.observer._top == 1  # no record has come
        assert not w._client.observer.running
        assert w._client.background.watched == 0
        assert not w._client.background.running
    assert not w._client.observer.running


def test_the_child_is_asked_only_while_somebody_watches(diary: Diary) -> None:
    world = SimpleNamespace(outbox=SimpleNamespace(waiting=[]), send=lambda *record: None)
    watch = watching.Watch(world, logging.WARNING)  # type: ignore[arg-type]
    task = registry.Task(1, None, registry.TaskOptions(), b"")
    assert not task.flags
    watch.accepted(task)
    assert task.flags == codec.WATCHED


# ------------------------------------------------------------ what they cannot do


def test_a_hook_that_raises_is_counted_and_changes_nothing(diary: Diary, caplog: pytest.LogCaptureFixture) -> None:
    def bad(event: TaskEvent) -> None:
        secret = f"of {event.kind}"
        raise ValueError(secret)

    def worse(event: TaskEvent) -> None:
        raise SystemExit(3)

    hooks = Hooks(on_queued=bad, on_start=worse, on_finish=diary.events.append)
    with caplog.at_level(logging.ERROR, "mpworker"), ProcessWorker(n=1, hooks=hooks) as w:
        assert [w.submit(abs, -i).result(GUARD) for i in range(3)] == [0, 1, 2]
        eventually(lambda: w.metrics().observer_errors["hook"] == 6)
        assert w.metrics().completed == 3
    assert len(diary.events) == 3
    assert w.metrics().observer_errors == {"hook": 6, "tracer": 0, "logger": 0, "middleware": 0}
    told = [record for record in caplog.records if record.getMessage().startswith("hook_failed hook=")]
    assert len(told) == 6
    assert {record.levelno for record in told} == {logging.ERROR}
    first = told[0].getMessage()
    assert ", in bad\n" in first
    assert first.endswith("ValueError")
    assert "of queued" not in first  # what it says may be anything


def test_a_slow_hook_delays_other_hooks_alone(tmp_path: Path) -> None:
    go = threading.Event()
    told: list[str] = []

    def slow(event: TaskEvent) -> None:
        go.wait(GUARD)
        told.append(event.kind)

    with ProcessWorker(n=1, hooks=Hooks(on_queued=slow, on_finish=slow)) as w:
        called = threading.Event()
        future = w.submit(len, "four")
        future.add_done_callback(lambda _: called.set())
        assert called.wait(GUARD)
        assert [w.submit(abs, -i).result(GUARD) for i in range(100)] == list(range(100))
        assert told == []
        go.set()
    assert told.count("queued") == told.count("finish") == 101  # a stop waits for them


def test_hooks_that_stay_too_far_behind_lose_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "EVENTS_MAX", 10)
    go = threading.Event()
    told: list[TaskEvent] = []
    spans = Spans()

    def slow(event: TaskEvent) -> None:
        go.wait(GUARD)
        told.append(event)

    with ProcessWorker(n=1, hooks=Hooks(on_queued=slow), tracer=spans) as w:
        for i in range(100):
            assert w.submit(abs, -i).result(GUARD) == i
        go.set()
        eventually(lambda: w.metrics().observer_drops > 200)
        eventually(lambda: not w._client.observer._open)  # whose end was dropped is forgotten
        dropped = w.metrics().observer_drops
        last = w.submit(len, "four")
        assert last.result(GUARD) == 4
    assert told[-1].task_id == last.task_id
    assert spans.open == {}
    assert w.metrics().observer_drops == dropped
    assert dropped + len(told) <= 303


def test_a_client_that_does_not_read_costs_the_supervisor_a_bounded_line(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []
    waiting: list[int] = []
    port = SimpleNamespace(outbox=SimpleNamespace(waiting=waiting), send=lambda *record: sent.append(record))
    monkeypatch.setattr(watching, "WAITING_MAX", 2)
    watch = watching.Watch(port, logging.DEBUG)  # type: ignore[arg-type]
    for waits in ([], [0], [0, 0], [0, 0, 0], []):
        waiting[:] = waits
        watch.log(logging.INFO, "something")
    assert [record[3] for record in sent] == [1, 2, 5]  # the client sees by the numbers that two are missing


def test_a_record_that_is_taken_in_twice_is_told_once(diary: Diary) -> None:
    with ProcessWorker(n=1, hooks=diary.hooks) as w:
        seen = w._client.observer
        take = seen.take
        records: list[tuple[Any, ...]] = []

        def twice(*record: Any) -> None:
            take(*record)
            take(*record)
            records.append(record)

        seen.take = twice  # type: ignore[method-assign]
        futures = [w.submit(len, "four") for _ in range(50)]
        for future in futures:
            future.result(GUARD)
        eventually(lambda: len(diary.events) >= 150)
        for record in records:  # by somebody who was interrupted long ago
            take(*record)
        assert seen._records == {}
    assert [diary.kinds(future.task_id) for future in futures] == [["queued", "start", "finish"]] * 50
    assert w.metrics().observer_drops == 0


def test_the_supervisor_keeps_nothing_of_a_task_that_nobody_watched_to_its_end() -> None:
    port = SimpleNamespace(outbox=SimpleNamespace(waiting=[]), send=lambda *record: None)
    watch = watching.Watch(port, logging.WARNING)  # type: ignore[arg-type]
    tasks = {number: registry.Task(number, None, registry.TaskOptions(), b"") for number in (1, 2)}
    scheduler: Any = SimpleNamespace(task=tasks.get, watch=lambda on: None)
    watch.tell(True, scheduler)
    for number, task in tasks.items():
        watch.accepted(task)
        watch.begun(task, 70 + number, 1.0)
    watch.tell(False, scheduler)
    del tasks[1]  # it ended meanwhile
    watch.tell(True, scheduler)
    assert list(watch._begun) == [2]


def test_a_hook_may_use_the_worker() -> None:
    results: list[int] = []

    def submit(event: TaskEvent) -> None:
        if event.name == "len":
            results.append(w.submit(abs, -7).result(GUARD))

    with ProcessWorker(n=1) as w:
        w.set_hooks(Hooks(on_finish=submit))
        assert w.submit(len, "four").result(GUARD) == 4
        eventually(lambda: results == [7])


@pytest.mark.parametrize("stop", [ProcessWorker.stop_graceful, ProcessWorker.stop_now])
def test_a_hook_may_stop_the_worker(stop: Callable[[ProcessWorker], object]) -> None:
    w = ProcessWorker(n=1)
    try:
        stopped = threading.Event()

        def end(_: TaskEvent) -> None:
            stop(w)
            stopped.set()

        w.set_hooks(Hooks(on_finish=end))
        assert w.submit(len, "four").result(GUARD) == 4
        assert stopped.wait(GUARD)
    finally:
        w.stop_now()


# ------------------------------------------------------------ the end


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_end_of_every_task_is_told_also_at_the_end_of_the_worker(diary: Diary, end: str, tmp_path: Path) -> None:
    spans = Spans()
    with ProcessWorker(n=1, hooks=diary.hooks, tracer=spans) as w:
        ended = w.submit(len, "four")
        running = w.submit(wait_for_file, str(tmp_path / "never"))
        waiting = w.submit(len, "four")
        eventually(lambda: "start" in diary.kinds(running.task_id) and "queued" in diary.kinds(waiting.task_id))
        if end == "stop":
            w.stop_now()
        else:
            os.kill(w.processes()["supervisor"], signal.SIGKILL)
            with pytest.raises(SupervisorLost):
                running.result(GUARD)
        eventually(lambda: not w._client.observer.running)
    assert diary.kinds(ended.task_id) == ["queued", "start", "finish"]
    assert diary.kinds(running.task_id) == ["queued", "start", "finish"]
    assert diary.kinds(waiting.task_id) == ["queued", "finish"]
    status, cause = (TaskStatus.CANCELLED, "") if end == "stop" else (TaskStatus.FAILED, "lost")
    last = diary.of(running.task_id, "finish")
    assert (last.status, last.cause, last.attempt) == (status, cause, 1)
    assert last.ended_at is not None
    assert last.pid == diary.of(running.task_id, "start").pid
    never = diary.of(waiting.task_id, "finish")
    assert (never.status, never.attempt, never.pid) == (status, 0, 0)
    assert spans.open == {}
    assert [event.kind for _, event in spans.ended] == ["finish", "finish"]


def test_a_stop_waits_for_the_hooks_also_if_the_supervisor_is_lost() -> None:
    told: list[str] = []
    hold, called = threading.Event(), threading.Event()

    def on_finish(event: TaskEvent) -> None:
        called.set()
        hold.wait(GUARD)
        told.append(event.cause)

    w = ProcessWorker(n=1, hooks=Hooks(on_finish=on_finish))
    running = w.submit(time.sleep, GUARD)
    eventually(running.running)
    os.kill(w.processes()["supervisor"], signal.SIGKILL)
    assert isinstance(running.exception(GUARD), SupervisorLost)
    assert called.wait(GUARD)
    threading.Timer(0.2, hold.set).start()  # the hook is under way, and the worker over
    assert not w.stop_graceful()
    assert told == ["lost"]


def test_a_stop_waits_for_the_hooks() -> None:
    told: list[str] = []

    def slow(event: TaskEvent) -> None:
        time.sleep(0.05)
        told.append(event.kind)

    with ProcessWorker(n=1, hooks=Hooks(on_queued=slow, on_start=slow, on_finish=slow)) as w:
        w.submit(len, "four")
    assert told == ["queued", "start", "finish"]
    assert not w._client.observer.running


def test_a_fork_has_no_hooks(diary: Diary) -> None:
    with ProcessWorker(n=1, hooks=diary.hooks) as w:
        future = w.submit(len, "four")
        assert future.result(GUARD) == 4
        pid = os.fork()
        if pid == 0:
            os._exit(int(w._client.observer.running or bool(w._client.observer._records)))
        assert os.waitpid(pid, 0)[1] == 0
    assert diary.kinds(future.task_id) == ["queued", "start", "finish"]


# ------------------------------------------------------------ tracers


def test_each_attempt_has_a_span(tmp_path: Path) -> None:
    spans = Spans()
    with ProcessWorker(n=2, tracer=spans, retries=1) as w:
        futures = [w.submit(fail_once, str(tmp_path / "x")), w.submit(crash_once, str(tmp_path / "y"))]
        futures += [w.submit(len, "four") for _ in range(10)]
        for future in futures:
            future.result(GUARD)
        eventually(lambda: len(spans.ended) == 14)
    assert spans.open == {}
    for start, end in spans.ended:
        assert (start.kind, start.task_id, start.attempt, start.pid) == ("start", end.task_id, end.attempt, end.pid)
    assert sorted(end.kind for _, end in spans.ended) == ["finish"] * 12 + ["retry"] * 2


def test_a_tracer_that_raises_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Spans):
        def start(self, event: TaskEvent) -> int:
            if event.name == "len":
                raise KeyError(event.name)
            return super().start(event)

        def end(self, span: int, event: TaskEvent) -> None:
            super().end(span, event)
            raise KeyError(event.name)

    spans = Broken()
    with caplog.at_level(logging.ERROR, "mpworker"), ProcessWorker(n=1, tracer=spans) as w:
        assert w.submit(len, "four").result(GUARD) == 4
        assert w.submit(abs, -1).result(GUARD) == 1
        eventually(lambda: w.metrics().observer_errors["tracer"] == 2)  # what has no span is not ended
    names = [record.getMessage().split("\n")[0] for record in caplog.records]
    assert [name.split(" at=")[0] for name in names] == [
        f"tracer_failed tracer={Broken.__qualname__}.{name}" for name in ("start", "end")
    ]


def test_the_start_of_an_attempt_whose_child_died_first_is_told_with_its_end() -> None:
    sent: list[tuple[Any, ...]] = []
    port = SimpleNamespace(outbox=SimpleNamespace(waiting=[]), send=lambda *record: sent.append(record))
    watch = watching.Watch(port, logging.WARNING)  # type: ignore[arg-type]
    watch.tells = True
    task = registry.Task(1, None, registry.TaskOptions(), b"")
    watch.accepted(task)
    task.state = OFFERED
    watch.noted(task, registry.Attempt(codec.CRASHED, 77, 1.0, 2.0, "signal"))
    task.attempts += 1
    watch.retried(task, 0.0)
    watch.begun(task, 78, 3.0)
    task.attempts += 1
    watch.ended((task, codec.OK, 78, 3_000_000_000, 1))
    assert [record[1] for record in sent] == [
        *(codec.QUEUED, codec.STARTED, codec.RETRIED, codec.STARTED, codec.FINISHED)
    ]
    assert [record[5].startswith(b"[1.0,") for record in sent] == [False, True, False, False, False]
    assert watch._begun == watch._noted == {}


def test_the_process_is_told_of_an_attempt_that_was_too_late_to_begin_its_call() -> None:
    sent: list[tuple[Any, ...]] = []
    port = SimpleNamespace(outbox=SimpleNamespace(waiting=[]), send=lambda *record: sent.append(record))
    watch = watching.Watch(port, logging.WARNING)  # type: ignore[arg-type]
    task = registry.Task(1, None, registry.TaskOptions(), b"")
    watch.accepted(task)
    watch.begun(task, 77, 1.0)
    task.attempts += 1
    watch.ended((task, codec.TIMED_OUT, 0, 0, 0))  # it was claimed after its deadline: no attempt is noted
    assert [record[1] for record in sent] == [codec.QUEUED, codec.STARTED, codec.FINISHED]
    assert json.loads(sent[-1][5])[2:5] == [1, 77, 1.0]


def test_new_hooks_are_not_told_of_what_has_happened_before() -> None:
    go, came = threading.Event(), threading.Event()
    old: list[TaskEvent] = []
    new = Diary()

    def slow(event: TaskEvent) -> None:
        came.set()
        go.wait(GUARD)
        old.append(event)

    with ProcessWorker(n=1, hooks=Hooks(on_queued=slow, on_finish=slow)) as w:
        first = w.submit(len, "four")
        assert came.wait(GUARD)
        assert first.result(GUARD) == 4  # its end is there, and has not been told
        w.set_hooks(new.hooks)
        second = w.submit(abs, -2)
        assert second.result(GUARD) == 2
        go.set()
    assert [event.kind for event in old] == ["queued", "finish"]
    assert {event.task_id for event in new.events} == {second.task_id}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "mpworker-observer"])


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_what_is_too_late_has_no_start(debug: bool, later: bool) -> None:
    diary = Diary()
    with ProcessWorker(n=1, debug=debug, hooks=diary.hooks) as w:
        late = w.register_task(Task(abs, (1,), deadline=0.01 if later else 0, run_at=0.01 if later else None))
        with pytest.raises(TaskTimeout):
            late.result(GUARD)
    assert diary.kinds(late.task_id) == ["queued", "finish"]
