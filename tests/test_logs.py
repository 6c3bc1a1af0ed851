"""The log: which records there are of a worker's processes, where they go, and what they never hold."""

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from concurrently import eventually
from pooljobs import fail_once, wait_for_file

import mpworker
from mpworker import Hooks, ProcessWorker, StandardLogger, Task, TaskContext, TaskEvent, observer
from mpworker.errors import StartFailed, SupervisorLost, TaskTimeout, WorkerCrashed
from mpworker.logs import as_logger

GUARD = 60.0
MIB = 1 << 20


class Book:
    """A logger that keeps its records."""

    def __init__(self, level: int = logging.DEBUG) -> None:
        self.level = level
        self.records: list[tuple[int, str, dict[str, Any]]] = []

    def log(self, level: int, event: str, /, **fields: Any) -> None:
        self.records.append((level, event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for _, each, fields in self.records if each == event]

    def levels(self) -> dict[str, int]:
        return {event: level for level, event, _ in self.records}


@pytest.fixture
def book() -> Book:
    return Book()


def stay() -> None:
    """Takes no interrupt."""
    while True:
        try:
            time.sleep(60)
        except BaseException:  # noqa: BLE001, S110
            pass


# ------------------------------------------------------------ the records


def test_the_life_of_a_worker_is_told(book: Book) -> None:
    with ProcessWorker(n=2, logger=book) as w:
        pid = w.submit(os.getpid).result(GUARD)
        eventually(lambda: len(book.of("child_ready")) == 2)
        supervisor = w.processes()["supervisor"]
    assert book.levels() == {
        "pool_started": logging.INFO,
        "child_started": logging.DEBUG,
        "child_ready": logging.INFO,
        "pool_stopped": logging.INFO,
    }
    (started,), (stopped,) = book.of("pool_started"), book.of("pool_stopped")
    assert (started["n"], started["supervisor"]) == (2, supervisor)
    assert (stopped["unfinished"], stopped["supervisor"]) == (False, supervisor)
    assert (
        {pid}
        < {fields["pid"] for fields in book.of("child_ready")}
        == {fields["pid"] for fields in book.of("child_started")}
    )
    assert all(abs(fields["at"] - time.time()) < GUARD for _, _, fields in book.records)


def test_a_record_comes_though_nobody_waits_for_a_result(book: Book) -> None:
    with ProcessWorker(n=1, logger=book) as w:
        eventually(lambda: len(book.of("child_ready")) == 1)
        (child,) = w.processes()["children"]
        os.kill(child["pid"], signal.SIGKILL)
        eventually(lambda: len(book.of("child_crashed")) == 1)


def test_a_crash_is_a_warning_with_its_cause(book: Book) -> None:
    with ProcessWorker(n=1, logger=book, crash_retries=1) as w:
        future = w.register_task(Task(os._exit, (3,), id="mine"))
        with pytest.raises(WorkerCrashed):
            future.result(GUARD)
        killed = w.options(crash_retries=0).submit(os.kill, 0, signal.SIGKILL)
        with pytest.raises(WorkerCrashed):
            killed.result(GUARD)
        eventually(lambda: len(book.of("child_crashed")) == 3)
    assert book.levels()["child_crashed"] == logging.WARNING
    exits = book.of("child_crashed")[:2]
    assert [(each["task_id"], each["name"], each["cause"], each["exit_code"]) for each in exits] == [
        ("mine", "_exit", "exit", 3)
    ] * 2
    last = book.of("child_crashed")[2]
    assert (last["task_id"], last["cause"], last["signal"]) == (killed.task_id, "signal", 9)
    assert book.levels()["task_retried"] == logging.INFO
    (retried,) = book.of("task_retried")
    assert (retried["task_id"], retried["attempt"], retried["pause"]) == ("mine", 1, 0.0)


def test_a_child_that_is_replaced_on_purpose_has_not_crashed(book: Book) -> None:
    with ProcessWorker(n=2, logger=book, max_tasks_per_child=2) as w:
        for i in range(6):
            assert w.submit(abs, -i).result(GUARD) == i
        eventually(lambda: len(book.of("child_recycled")) >= 2)
        assert {fields["reason"] for fields in book.of("child_recycled")} == {"max_tasks_per_child"}
        w.set_max_workers(1)
        eventually(lambda: "resized" in {fields["reason"] for fields in book.of("child_recycled")})
        assert [fields["n"] for fields in book.of("pool_resized")] == [1]
    assert book.levels()["child_recycled"] == book.levels()["pool_resized"] == logging.INFO
    assert not book.of("child_crashed")
    assert not book.of("child_killed")


def keep(size: int) -> None:
    mpworker.kept = bytearray(os.urandom(size))  # type: ignore[attr-defined]


def test_a_child_that_has_grown_is_replaced_or_killed(book: Book) -> None:
    with ProcessWorker(n=1, logger=book, memory_limit=32 * MIB) as w:
        w.submit(keep, 64 * MIB).result(GUARD)
        eventually(lambda: [fields["reason"] for fields in book.of("child_recycled")] == ["memory_limit"])
    assert not book.of("child_crashed")
    other = Book()
    with ProcessWorker(n=1, logger=other, memory_limit_hard=32 * MIB) as w:
        with pytest.raises(WorkerCrashed):
            w.submit(lambda: (keep(64 * MIB), time.sleep(60))).result(GUARD)
        eventually(lambda: [fields["reason"] for fields in other.of("child_killed")] == ["memory"])
    assert other.levels()["child_killed"] == logging.WARNING


def test_an_attempt_that_takes_too_long_is_a_warning(book: Book, tmp_path: Path) -> None:
    never = str(tmp_path / "never")
    with ProcessWorker(n=1, logger=book, timeout=0.05, grace=1.0) as w:
        for future in (
            w.options(timeout=None).submit(keep, 0),
            w.options(timeout=None).submit(fail_once, str(tmp_path)),
        ):
            future.result(GUARD)  # then their modules are imported
        late = w.submit(wait_for_file, never)
        with pytest.raises(TaskTimeout):
            late.result(GUARD)
        deadline = w.register_task(Task(wait_for_file, (never,), deadline=0.1, timeout=None))
        with pytest.raises(TaskTimeout):
            deadline.result(GUARD)
        (item,) = w.map(wait_for_file, [never], return_exceptions=True)
        assert isinstance(item, TaskTimeout)
        with pytest.raises(TaskTimeout):
            w.submit(stay).result(GUARD)
        eventually(lambda: len(book.of("attempt_timed_out")) == 4)
    assert book.levels()["attempt_timed_out"] == logging.WARNING
    first, second, third, last = book.of("attempt_timed_out")
    assert (first["task_id"], first["attempt"], first["timeout"]) == (late.task_id, 1, 0.05)
    assert (second["task_id"], second["deadline"]) == (deadline.task_id, "passed")
    assert (third["first"], third["items"]) == (0, 1)
    assert last["name"] == "stay"
    assert [fields["reason"] for fields in book.of("child_killed")] == ["grace"]


def test_queues_that_are_paused_are_told(book: Book) -> None:
    with ProcessWorker(n=1, logger=book) as w:
        w.pause()
        w.resume()
        w.pause("mail", "other")
        w.resume("mail", "other")
        assert w.drain("mail", timeout=GUARD)
        eventually(lambda: len(book.of("queue_resumed")) == 2 and book.of("queue_draining"))
    assert [fields["queues"] for fields in book.of("queue_paused")] == ["all", "mail,other"]
    assert [fields["queues"] for fields in book.of("queue_resumed")] == ["all", "mail,other"]
    assert [fields["queues"] for fields in book.of("queue_draining")] == ["mail"]
    assert book.levels()["queue_draining"] == logging.INFO
    assert book.levels()["queue_paused"] == book.levels()["queue_resumed"] == logging.INFO


def test_a_lost_supervisor_is_an_error(book: Book) -> None:
    w = ProcessWorker(n=1, logger=book)
    pid = w.processes()["supervisor"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: book.of("supervisor_lost"))
    assert book.levels()["supervisor_lost"] == logging.ERROR
    assert book.of("supervisor_lost")[0]["supervisor"] == pid
    with pytest.raises(SupervisorLost):
        w.submit(len, "four")
    w.stop_now()
    assert not book.of("pool_stopped")


def test_a_lost_nursery_is_a_warning(book: Book) -> None:
    with ProcessWorker(n=1, logger=book) as w:
        assert w.submit(len, "four").result(GUARD) == 4
        os.kill(w.processes()["nursery"], signal.SIGKILL)
        eventually(lambda: book.of("nursery_lost"))
        assert w.submit(len, "four").result(GUARD) == 4
        assert [fields["cause"] for fields in book.of("child_crashed")] == ["nursery"]
    assert book.levels()["nursery_lost"] == logging.WARNING


def test_a_worker_that_cannot_start_says_nothing_of_what_its_initializer_said(book: Book) -> None:
    secret = secrets.token_hex(8)

    def refuse() -> None:
        raise ValueError(secret)

    with ProcessWorker(n=1, logger=book, initializer=refuse) as w, pytest.raises(StartFailed, match=secret):
        w.submit(len, "four").result(GUARD)
    eventually(lambda: [fields["starts"] for fields in book.of("start_failed")] == [1, 2, 3])
    assert book.levels()["start_failed"] == logging.WARNING
    eventually(lambda: book.of("pool_broken"))
    assert secret not in repr(book.records)


def test_what_a_supervisor_dies_of_is_told(book: Book, capfd: pytest.CaptureFixture[str]) -> None:
    w = ProcessWorker(n=1, logger=book)
    assert w.submit(len, "four").result(GUARD) == 4
    w._client.tell({"verb": "tasks"})  # there is no such fault; a request that is none does for one
    eventually(lambda: book.of("supervisor_lost"))
    (failed,) = book.of("supervisor_failed")
    assert failed["traceback"].endswith("KeyError")
    assert "requests.py" in failed["traceback"]
    w.stop_now()
    assert "KeyError" in capfd.readouterr().err  # as ever: there might be no client to tell


# ------------------------------------------------------------ where they go


def test_the_default_is_a_logger_of_the_standard_library(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mpworker"):
        with ProcessWorker(n=1) as w:
            with pytest.raises(WorkerCrashed):
                w.submit(os._exit, 3).result(GUARD)
            pid = w.submit(os.getpid).result(GUARD)
        eventually(lambda: any(record.event == "pool_stopped" for record in caplog.records))  # type: ignore[attr-defined]
    (crash,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert crash.name == "mpworker"
    assert crash.event == "child_crashed"  # type: ignore[attr-defined]
    assert crash.fields["exit_code"] == 3  # type: ignore[attr-defined]
    assert f"cause=exit signal=0 exit_code=3 at={crash.fields['at']}" in crash.getMessage()  # type: ignore[attr-defined]
    assert f"child_ready pid={pid} at=" in "".join(record.getMessage() for record in caplog.records)
    assert "child_started" not in caplog.text  # which is for debugging


@pytest.mark.parametrize("kind", ["logger", "standard", "default"])
def test_a_record_of_the_standard_library(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("mpworker" if kind == "default" else "mpworker.other")
    ours = as_logger({"logger": logger, "standard": StandardLogger(logger), "default": None}[kind])
    with caplog.at_level(logging.WARNING, logger.name):
        assert ours.level == logging.WARNING  # type: ignore[attr-defined]
        ours.log(logging.INFO, "no")
        ours.log(logging.ERROR, "hook_failed", hook="f", message="m", traceback="where\nValueError")
    (record,) = caplog.records
    assert record.getMessage() == "hook_failed hook=f message=m\nwhere\nValueError"
    assert record.fields == {"hook": "f", "message": "m", "traceback": "where\nValueError"}  # type: ignore[attr-defined]


def test_a_logger_gets_no_less_than_it_wants() -> None:
    book = Book(logging.WARNING)
    with ProcessWorker(n=1, logger=book, retries=1) as w:
        with pytest.raises(ValueError, match="not"):
            w.submit(int, "not a number").result(GUARD)
        assert w._client.observer._top == 1  # what it does not want is not even sent
        with pytest.raises(WorkerCrashed):
            w.submit(os._exit, 3).result(GUARD)
    assert set(book.levels()) == {"child_crashed"}


def test_a_logger_that_raises_is_counted() -> None:
    class Broken:
        def log(self, level: int, event: str, /, **fields: Any) -> None:
            raise KeyError(event)

    with ProcessWorker(n=1, logger=Broken(), hooks=Hooks(on_finish=lambda event: 1 // 0)) as w:
        assert w.submit(len, "four").result(GUARD) == 4
        # The worker, its child twice, and the hook.
        eventually(lambda: w.metrics().observer_errors == {"hook": 1, "tracer": 0, "logger": 4, "middleware": 0})


def test_records_that_nobody_takes_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "POSTS_MAX", 3)
    go, came = threading.Event(), threading.Event()

    class Slow(Book):
        def log(self, level: int, event: str, /, **fields: Any) -> None:
            came.set()
            go.wait(GUARD)
            super().log(level, event, **fields)

    def fails(call_next: Any, task: Task[Any]) -> Any:
        call_next(task)
        raise LookupError

    slow = Slow(logging.ERROR)
    with ProcessWorker(n=1, logger=slow, submit_middleware=[fails]) as w:
        first = w.submit(len, "four")
        assert came.wait(GUARD)
        assert [w.submit(abs, -i).result(GUARD) for i in range(10)] == list(range(10))
        assert first.result(GUARD) == 4
        assert w.metrics().observer_drops == 7
        go.set()
    assert len(slow.of("middleware_failed")) == 4
    assert w.metrics().observer_errors["middleware"] == 11


_PROGRAM = """
import os
from mpworker import Hooks, ProcessWorker
from mpworker.errors import WorkerCrashed

def fail(event):
    raise ValueError

with ProcessWorker(n=1, hooks=Hooks(on_start=fail)) as w:
    try:
        w.submit(os._exit, 3).result()
    except WorkerCrashed:
        print("crashed")
"""


def test_nothing_is_printed_by_a_program_that_sets_up_no_logging() -> None:
    run = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=GUARD, check=True)
    assert (run.stdout, run.stderr) == ("crashed\n", "")


# ------------------------------------------------------------ what they never hold


def crash_with(path: str, secret: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os._exit(3)
    return secret


def fail_with(secret: str) -> None:
    raise ValueError("of " + str(len(secret)))


def hang_with(path: str, secret: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


def answer_with(secret: str) -> str:
    return secret * 2


class Holder:
    """Something whose method is a task, and whose repr tells."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return f"Holder({self.secret})"

    def __call__(self) -> str:
        return self.secret

    def method(self) -> str:
        return self.secret


def fails_around(call_next: Any, context: TaskContext) -> Any:
    value = call_next()
    raise LookupError(f"{value} {context.metadata}")


def test_no_record_holds_anything_of_a_payload(book: Book, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = secrets.token_hex(16)
    held = Holder(secret)
    heard: list[TaskEvent] = []

    class Both:
        level = logging.DEBUG

        def log(self, level: int, event: str, /, **fields: Any) -> None:
            book.log(level, event, **fields)
            StandardLogger(logging.getLogger("mpworker")).log(level, event, **fields)

    def fails_here(call_next: Any, task: Task[Any]) -> Any:
        call_next(task)
        raise LookupError(repr(task))

    def fail(event: TaskEvent) -> None:
        heard.append(event)
        raise ValueError(secret)

    class Tracer:
        def start(self, event: TaskEvent) -> str:
            heard.append(event)
            return secret

        def end(self, span: str, event: TaskEvent) -> None:
            raise ValueError(span)

    hooks = Hooks(on_queued=fail, on_start=heard.append, on_retry=fail, on_finish=heard.append)
    with (
        caplog.at_level(logging.DEBUG, "mpworker"),
        ProcessWorker(
            n=2,
            logger=Both(),
            hooks=hooks,
            tracer=Tracer(),
            submit_middleware=[fails_here],
            execute_middleware=[fails_around],
            retries=1,
            crash_retries=1,
            grace=0.1,
        ) as w,
    ):
        metadata = {"who": secret}
        tasks = [
            Task(answer_with, (secret,), metadata=metadata),
            Task(answer_with, (), {"secret": secret}),
            Task(fail_with, (secret,), metadata=metadata),
            Task(crash_with, (str(tmp_path / "a"), secret)),
            Task(hang_with, (str(tmp_path / "never"), secret), timeout=0.05),
            Task(held, metadata=metadata),
            Task(held.method),
            Task(lambda: secret),
            Task(answer_with, (secret,), run_at=0.05, deadline=50.0, concurrency_key="one"),
        ]
        futures = w.register_tasks(*tasks)
        futures += [w.submit(fail_with, secret=secret), w.submit(answer_with, [secret])]
        waiting = w.register_task(Task(answer_with, (secret,), run_at=100.0))
        running = w.submit(hang_with, str(tmp_path / "never"), secret)
        for future in futures:
            future.exception(GUARD)
        assert waiting.cancel()
        eventually(running.running)
        assert running.cancel()
        assert list(w.map(answer_with, [secret] * 20)) == [secret * 2] * 20
        list(w.map(fail_with, [secret] * 3, return_exceptions=True))
        list(w.map(crash_with, [str(tmp_path / "b")], [secret], return_exceptions=True))
        list(w.options(timeout=0.05).map(hang_with, [str(tmp_path / "never")], [secret], return_exceptions=True))
        w.register_cron_task("beat", "@every 3600s", Task(answer_with, (secret,), metadata=metadata))
        w.run_cron_task("beat")
        eventually(lambda: w.cron_history("beat") and w.cron_history("beat")[-1].ended_at)
        w.set_max_workers(1)
        eventually(lambda: book.of("child_recycled"))
        w.pause()
        w.resume()
        errors = w.metrics().observer_errors
        assert all(errors[what] for what in ("hook", "tracer", "middleware")), errors
    assert {
        *("pool_started", "child_started", "child_ready", "child_crashed", "child_recycled"),
        *("attempt_timed_out", "task_retried", "hook_failed", "tracer_failed", "middleware_failed", "pool_resized"),
        *("queue_paused", "queue_resumed", "pool_stopped"),
    } <= set(book.levels())
    texts = [repr(book.records), *(repr(vars(record)) + record.getMessage() for record in caplog.records)]
    assert not [text for text in texts if secret in text]
    assert not [event for event in heard if secret in repr(event)]
    assert len(caplog.records) == len(book.records)


FORGED = "x\n2026-01-01 ERROR mpworker pool_broken\x1b[2J\u2028"


def test_a_name_makes_no_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mpworker"), ProcessWorker(n=1) as w:
        w.pause(FORGED)
        w.register_task(Task(os._exit, (1,), id=FORGED, name=FORGED)).exception(GUARD)
        eventually(lambda: w.metrics() and any(each.event == "child_crashed" for each in caplog.records))
    assert any(FORGED in map(str, each.fields.values()) for each in caplog.records), "as it is, for who takes fields"
    told = [each.getMessage() for each in caplog.records]
    assert any(repr(FORGED) in each for each in told)
    assert all(each.isprintable() for each in told)


def test_nor_does_the_repr_of_a_future() -> None:
    with ProcessWorker(n=1) as w:
        future = w.register_task(Task(abs, (1,), id=FORGED, name=FORGED))
        assert repr(future).isprintable()
        assert repr(FORGED) in repr(future)
