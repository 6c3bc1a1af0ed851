"""Hooks, tracers, middleware and the log where there is no pool of threads and children: asyncio and `debug=True`."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from concurrently import GUARD, eventually
from loops import run, until

from mpworker import AsyncProcessWorker, Hooks, ProcessWorker, Task, TaskEvent, TaskStatus
from mpworker.context import TaskContext
from mpworker.errors import WorkerCrashed

_begun = threading.Event()


def _fail() -> None:
    raise ValueError("no")


def _wait_until_begun() -> bool:
    return _begun.wait(GUARD)


class Recorder:
    """Notes what it is told; hooks and a tracer."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []
        self.spans: list[tuple[Any, str]] = []
        self.statuses: list[TaskStatus | None] = []

    def note(self, event: TaskEvent) -> None:
        self.told.append((event.kind, event.name, event.attempt))
        self.statuses.append(event.status)

    def hooks(self) -> Hooks:
        return Hooks(on_queued=self.note, on_start=self.note, on_retry=self.note, on_finish=self.note)

    def start(self, event: TaskEvent) -> tuple[str, int]:
        return event.task_id, event.attempt

    def end(self, span: Any, event: TaskEvent) -> None:
        assert span == (event.task_id, event.attempt)
        self.spans.append((span, event.kind))


EXPECTED = [
    ("queued", "_fail", 0),
    ("start", "_fail", 1),
    ("retry", "_fail", 1),
    ("start", "_fail", 2),
    ("finish", "_fail", 2),
]


def add_one(call_next: Callable[[], Any], context: TaskContext) -> None:
    call_next()
    raise RuntimeError(f"after {context.attempt}")


def as_named(call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
    return call_next(Task(task.fn, task.args, name="renamed"))


def test_with_debug_hooks_and_a_tracer_are_told(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    with (
        caplog.at_level(logging.INFO, "mpworker"),
        ProcessWorker(debug=True, retries=1, hooks=recorder.hooks(), tracer=recorder) as w,
    ):
        failed = w.submit(_fail)
        assert isinstance(failed.exception(), ValueError)
        eventually(lambda: len(recorder.told) == 5)
        later = w.register_task(Task(len, ("four",), run_at=0.01, name="later"))
        assert later.result(GUARD) == 4
    assert recorder.told == [*EXPECTED, ("queued", "later", 0), ("start", "later", 1), ("finish", "later", 1)]
    failed_twice = [None, None, TaskStatus.FAILED, None, TaskStatus.FAILED]
    assert recorder.statuses == [*failed_twice, None, None, TaskStatus.COMPLETED]
    assert [kind for _, kind in recorder.spans] == ["retry", "finish", "finish"]
    assert any("task_retried" in record.getMessage() for record in caplog.records)


def test_with_debug_a_start_is_told_while_the_task_runs() -> None:
    _begun.clear()
    with ProcessWorker(debug=True, hooks=Hooks(on_start=lambda _: _begun.set())) as w:
        assert w.submit(_wait_until_begun).result(GUARD)


def test_with_debug_middleware_is_around_calls_and_submissions() -> None:
    recorder = Recorder()
    with ProcessWorker(
        debug=True, hooks=recorder.hooks(), submit_middleware=[as_named], execute_middleware=[add_one]
    ) as w:
        assert w.submit(len, "four").result() == 4
        assert w.submit(len, "three").result() == 5
        assert list(w.map(abs, [-1, -2])) == [1, 2]
        eventually(lambda: w.metrics().observer_errors["middleware"] == 4)
    assert {name for _, name, _ in recorder.told} == {"renamed"}


def test_in_an_event_loop_hooks_and_a_tracer_are_told() -> None:
    recorder = Recorder()

    async def main() -> None:
        threads = set(threading.enumerate())
        async with AsyncProcessWorker(n=1, retries=1, hooks=recorder.hooks(), tracer=recorder) as w:
            with pytest.raises(ValueError, match="no"):
                await w.submit(_fail)
            await until(lambda: len(recorder.told) >= len(EXPECTED))
            await w.set_hooks(None)
            await w.submit(len, "four")
            assert set(threading.enumerate()) == threads

    run(main)
    eventually(lambda: len(recorder.spans) == 3)
    assert recorder.told[: len(EXPECTED)] == EXPECTED
    assert {name for _, name, _ in recorder.told} == {"_fail"}


def test_in_an_event_loop_middleware_is_around_calls_and_submissions() -> None:
    recorder = Recorder()

    async def main() -> None:
        async with AsyncProcessWorker(
            n=1, hooks=recorder.hooks(), submit_middleware=[as_named], execute_middleware=[add_one]
        ) as w:
            assert await w.submit(len, "four") == 4
            assert await (await w.register_task(Task(len, ("three",)))) == 5
            while (await w.metrics()).observer_errors["middleware"] < 2:
                pass

    run(main)
    eventually(lambda: sum(kind == "finish" for kind, _, _ in recorder.told) == 2)
    assert {name for _, name, _ in recorder.told} == {"renamed"}


def test_in_an_event_loop_what_is_left_is_told_at_the_end() -> None:
    recorder = Recorder()

    async def main() -> None:
        async with AsyncProcessWorker(n=1, hooks=recorder.hooks()) as w:
            for _ in range(50):
                w.submit(len, "four")

    run(main)
    assert sum(kind == "finish" for kind, _, _ in recorder.told) == 50


def test_in_an_event_loop_what_a_stop_cuts_off_is_told() -> None:
    recorder = Recorder()

    async def main() -> None:
        async with AsyncProcessWorker(n=1, hooks=recorder.hooks(), tracer=recorder) as w:
            for _ in range(3):
                w.submit(signal.pause)
            await until(lambda: ("start", "pause", 1) in recorder.told)
            await w.stop_now()

    run(main)
    ends = [status for status in recorder.statuses if status is not None]
    assert ends == [TaskStatus.CANCELLED] * 3
    assert [kind for _, kind in recorder.spans] == ["finish"]


def test_in_an_event_loop_a_crash_is_logged_without_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        threads = set(threading.enumerate())
        async with AsyncProcessWorker(n=1) as w:
            with pytest.raises(WorkerCrashed):
                await w.submit(os._exit, 3)
            assert set(threading.enumerate()) == threads

    with caplog.at_level(logging.WARNING, "mpworker"):
        run(main)
    assert any("child_crashed" in record.getMessage() for record in caplog.records)


def test_a_question_is_answered_though_the_thread_that_reads_for_hooks_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpworker.inline.supervisor._LOOK_SECONDS", 1e6)
    answered = threading.Event()
    with ProcessWorker(debug=True, hooks=Hooks(on_finish=lambda _: None)) as w:
        w.submit(abs, -1).result()

        def ask() -> None:
            for _ in range(50):
                w.metrics()
            answered.set()

        threading.Thread(target=ask, daemon=True).start()
        assert answered.wait(GUARD)
