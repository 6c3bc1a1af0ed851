"""Recurring tasks of a real pool: they run, they are listed, and they end with it."""

import atexit
import functools
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from concurrently import GUARD, eventually
from pooljobs import Gate

import mpworker
from mpworker import CronRun, ProcessWorker, cron
from mpworker.errors import (
    ConfigurationError,
    SerializationError,
    SupervisorLost,
    TaskNotFound,
    TaskTimeout,
    WorkerCrashed,
    WorkerStopped,
)
from mpworker.supervisor.cron import _zone
from mpworker.supervisor.timetable import ENTRIES_MAX, HISTORY_MAX

NEVER = "0 0 1 1 *"  # while the tests run; run_cron_task does it


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=2) as worker:
        yield worker


@pytest.fixture
def name(pool: ProcessWorker, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name that is removed from the pool of all tests."""
    yield request.node.name
    if any(task.name == request.node.name for task in pool.cron_tasks()):
        pool.remove_cron_task(request.node.name)


def hold(gate: Gate) -> Any:
    return functools.partial(pooljobs.hold, gate.folder)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def runs(worker: ProcessWorker, name: str, count: int) -> list[CronRun]:
    """Its history, once so many runs have ended."""
    eventually(lambda: sum(run.ended_at is not None for run in worker.cron_history(name)) >= count)
    return [run for run in worker.cron_history(name) if run.ended_at is not None]


def listed(worker: ProcessWorker, name: str) -> mpworker.CronTask:
    (task,) = (task for task in worker.cron_tasks() if task.name == name)
    return task


# ------------------------------------------------------------ runs


def test_it_runs_again_and_again_beside_other_tasks(pool: ProcessWorker, name: str, tmp_path: Path) -> None:
    began_at = datetime.now(UTC)
    pool.register_cron_task(
        name, "@every 20ms", lambda: pooljobs.note(str(tmp_path / "ids"), mpworker.current().task_id), tz="Asia/Tokyo"
    )
    futures = [pool.submit(pooljobs.square, number) for number in range(500)]
    found = runs(pool, name, 3)
    assert [future.result(GUARD) for future in futures] == [number * number for number in range(500)]
    pool.remove_cron_task(name)
    ids = [run.task_id for run in found]
    eventually(lambda: len(lines(tmp_path / "ids")) >= len(ids))
    assert lines(tmp_path / "ids")[: len(ids)] == ids
    assert not set(ids) & {future.task_id for future in futures}
    for run in found:
        assert (run.outcome, run.error) == ("completed", None)
        assert run.ended_at is not None
        assert began_at < run.scheduled_at <= run.started_at <= run.ended_at
        assert run.scheduled_at.utcoffset() == timedelta(hours=9)
    steps = [(b.scheduled_at - a.scheduled_at).total_seconds() / 0.02 for a, b in itertools.pairwise(found)]
    assert all(step == pytest.approx(round(step), abs=0.01) for step in steps), "it drifts"


def test_it_runs_though_nobody_asks(gate: Gate) -> None:
    worker = ProcessWorker(n=1, lease_ttl=10 * GUARD)  # else a look at the leases wakes the loop, too
    worker.submit(pooljobs.pid).result(GUARD)
    worker.register_cron_task("it", "@every 50ms", hold(gate))
    for _ in range(3):
        gate.wait_begun()
        gate.release()
    worker.stop_now()


def test_a_line_with_seconds_runs_at_whole_seconds(pool: ProcessWorker, name: str) -> None:
    pool.register_cron_task(name, "* * * * * *", pooljobs.pid, tz=zoneinfo.ZoneInfo("Asia/Kathmandu"))
    found = runs(pool, name, 2)
    assert [run.scheduled_at.microsecond for run in found] == [0] * len(found)
    assert found[0].scheduled_at.utcoffset() == timedelta(hours=5, minutes=45)
    assert found[1].scheduled_at - found[0].scheduled_at == timedelta(seconds=1)


@pytest.mark.parametrize(
    ("task", "outcome", "error", "says"),
    [
        (functools.partial(pooljobs.fail, "as told"), "failed", ValueError, "as told"),
        (crash, "crashed", WorkerCrashed, '(cron "'),
        (functools.partial(time.sleep, GUARD), "timed_out", TaskTimeout, "ran for over 0.2 s"),
        (functools.partial(pickle.loads, b"no pickle"), "failed", pickle.UnpicklingError, ""),
        (functools.partial(exit, 3), "failed", mpworker.errors.TaskExited, "SystemExit(3)"),
        (threading.Lock, "completed", type(None), ""),  # whose value could not be sent, and nobody asked for it
    ],
    ids=["raises", "crashes", "too long", "raises C", "exits", "returns anything"],
)
def test_how_a_run_ends(
    pool: ProcessWorker, name: str, task: Any, outcome: str, error: type[Exception], says: str
) -> None:
    timeout = 0.2 if outcome == "timed_out" else None
    pool.options(timeout=timeout).register_cron_task(name, NEVER, task)
    assert pool.run_cron_task(name)
    (run,) = runs(pool, name, 1)
    assert run.outcome == outcome
    assert isinstance(run.error, error)
    assert says in str(run.error)
    if outcome == "crashed":
        assert f'task {run.task_id} (cron "{name}"): child' in str(run.error)


def test_a_run_has_the_options_of_the_view(pool: ProcessWorker, name: str, tmp_path: Path) -> None:
    def fail_twice() -> None:
        attempt = mpworker.current().attempt
        pooljobs.note(str(tmp_path / "attempts"), attempt)
        if attempt < 3:
            raise ValueError

    pool.options(retries=2).register_cron_task(name, NEVER, fail_twice)
    pool.run_cron_task(name)
    (run,) = runs(pool, name, 1)
    assert run.outcome == "completed"
    assert lines(tmp_path / "attempts") == ["1", "2", "3"]


def test_a_run_waits_in_the_queue_of_the_view(pool: ProcessWorker, name: str) -> None:
    pool.options(queue="reports").register_cron_task(name, NEVER, pooljobs.pid)
    pool.pause("reports")
    assert pool.run_cron_task(name)
    eventually(lambda: pool.queues()["reports"].queued == 1)
    assert pool.submit(pooljobs.square, 3).result(GUARD) == 9
    assert listed(pool, name).running
    pool.resume("reports")
    assert runs(pool, name, 1)[0].outcome == "completed"


def tell(path: Path, value: object) -> None:
    context = mpworker.current()
    assert context is not None
    remaining = context.remaining()
    path.write_text(f"{value} {dict(context.metadata)} {remaining is not None and 0 < remaining <= 60}")


def test_a_run_carries_out_a_task(pool: ProcessWorker, name: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    task = mpworker.Task(tell, (told, 7), queue="reports", deadline=60.0, metadata={"case": 1}, name="teller")
    pool.options(queue="others").register_cron_task(name, NEVER, task)
    pool.run_cron_task(name)
    (run,) = runs(pool, name, 1)
    assert (run.outcome, told.read_text()) == ("completed", "7 {'case': 1} True")
    assert run.task_id
    info = pool.get_task(run.task_id)
    assert (info.name, info.queue, info.status, info.metadata) == ("teller", "reports", "completed", {"case": 1})


def test_a_run_is_cancelled_by_its_id(pool: ProcessWorker, name: str, gate: Gate) -> None:
    pool.register_cron_task(name, NEVER, hold(gate))
    pool.run_cron_task(name)
    gate.wait_begun()
    task_id = pool.cron_history(name)[0].task_id
    assert pool.cancel_task(task_id)
    assert runs(pool, name, 1)[0].outcome == "cancelled"
    assert not pool.cancel_task(task_id)


def test_the_deadline_of_a_run_counts_from_its_start(pool: ProcessWorker, name: str) -> None:
    pool.pause("late")
    pool.register_cron_task(name, NEVER, mpworker.Task(pooljobs.pid, queue="late", deadline=0.05))
    pool.run_cron_task(name)
    (run,) = runs(pool, name, 1)
    assert run.outcome == "timed_out"


def test_the_runs_of_one_concurrency_key_are_alone_with_it(pool: ProcessWorker, name: str, gate: Gate) -> None:
    alone = pool.options(concurrency_key="it")
    held = alone.submit(hold(gate))
    gate.wait_begun()
    alone.register_cron_task(name, NEVER, pooljobs.pid)
    pool.run_cron_task(name)
    eventually(lambda: [task.name for task in pool.get_tasks(status="queued")] == [name])
    assert pool.submit(pooljobs.pid).result()  # there is a child for it
    assert [task.name for task in pool.get_tasks(status="queued")] == [name]
    gate.release()
    held.result()
    assert runs(pool, name, 1)[0].outcome == "completed"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"id": "mine"}, "no id='mine'"),
        ({"run_at": 3.0}, "no run_at=3.0"),
        ({"idempotency_key": "k"}, "no idempotency_key='k'"),
        ({"deadline": datetime(2100, 1, 1, tzinfo=UTC)}, "deadline must be seconds from the start of each run"),
    ],
)
def test_what_belongs_to_one_task_cannot_belong_to_each_run(
    pool: ProcessWorker, name: str, said: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        pool.register_cron_task(name, NEVER, mpworker.Task(pooljobs.pid, **said))


def test_a_large_task_goes_in_parts(pool: ProcessWorker, name: str, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    pool.register_cron_task(name, NEVER, lambda: pooljobs.note(str(tmp_path / "sum"), sum(data)))
    pool.run_cron_task(name)
    assert runs(pool, name, 1)[0].outcome == "completed"
    assert lines(tmp_path / "sum") == [str(sum(data))]


def test_what_does_not_pickle_is_told_where_it_is_registered(pool: ProcessWorker, name: str) -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="the variable 'lock'"):
        pool.register_cron_task(name, NEVER, lambda: lock)
    assert name not in [task.name for task in pool.cron_tasks()]


# ------------------------------------------------------------ overlap and misfire


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_overlap(pool: ProcessWorker, name: str, gate: Gate, overlap: Any) -> None:
    pool.register_cron_task(name, "@every 30ms", hold(gate), overlap=overlap)
    gate.wait_begun()
    eventually(lambda: listed(pool, name).skipped >= 2)
    task = listed(pool, name)
    assert (task.running, task.waiting, task.runs) == (True, int(overlap == "queue"), 1)
    assert pool.cron_history(name)[0].outcome == "running"
    pool.pause_cron_task(name)
    assert not gate.begun()
    gate.release()
    assert len(runs(pool, name, 1)) == listed(pool, name).runs == 1
    assert (listed(pool, name).waiting, listed(pool, name).next_at) == (0, None)


def test_a_supervisor_that_stood_still_has_missed_something(pool: ProcessWorker, name: str) -> None:
    pool.register_cron_task(name, "@every 50ms", pooljobs.pid, misfire="skip", misfire_grace=0.2)
    runs(pool, name, 1)
    supervisor = pool.processes()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        until = time.monotonic() + 1.0
        eventually(lambda: time.monotonic() > until)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    eventually(lambda: listed(pool, name).missed >= 10)
    before = listed(pool, name).runs
    eventually(lambda: listed(pool, name).runs > before)


# ------------------------------------------------------------ verbs


def test_pause_resume_run_and_remove(pool: ProcessWorker, name: str) -> None:
    pool.register_cron_task(name, "0 3 * * *", pooljobs.pid, tz="America/New_York", overlap="queue", misfire="all")
    task = listed(pool, name)
    assert task.next_at is not None
    assert (task.next_at.hour, task.next_at.tzinfo) == (3, zoneinfo.ZoneInfo("America/New_York"))
    assert datetime.now(UTC) < task.next_at < datetime.now(UTC) + timedelta(hours=26)
    assert (task.spec, task.tz, task.overlap, task.misfire) == ("0 3 * * *", "America/New_York", "queue", "all")
    assert (task.paused, task.running, task.waiting, task.runs, task.skipped, task.missed) == (False, False, 0, 0, 0, 0)
    pool.pause_cron_task(name)
    assert (listed(pool, name).paused, listed(pool, name).next_at) == (True, None)
    assert pool.run_cron_task(name)
    runs(pool, name, 1)
    pool.resume_cron_task(name)
    pool.resume_cron_task(name)
    assert (listed(pool, name).next_at, listed(pool, name).runs) == (task.next_at, 1)
    pool.remove_cron_task(name)
    with pytest.raises(TaskNotFound):
        pool.cron_history(name)


def test_a_run_that_is_left_out_says_so(pool: ProcessWorker, name: str, gate: Gate) -> None:
    pool.register_cron_task(name, NEVER, hold(gate))
    assert pool.run_cron_task(name)
    gate.wait_begun()
    assert not pool.run_cron_task(name)
    gate.release()
    assert [run.outcome for run in runs(pool, name, 1)] == ["completed"]


def test_what_is_removed_goes_on_and_what_comes_in_its_place_is_its_own(
    pool: ProcessWorker, name: str, gate: Gate
) -> None:
    pool.register_cron_task(name, NEVER, hold(gate))
    pool.run_cron_task(name)
    gate.wait_begun()
    pool.remove_cron_task(name)
    pool.register_cron_task(name, NEVER, pooljobs.pid)
    assert listed(pool, name).running, "one of a name at once, whoever registered it"
    assert not pool.run_cron_task(name)
    gate.release()
    eventually(lambda: not listed(pool, name).running)
    pool.run_cron_task(name)
    assert len(runs(pool, name, 1)) == listed(pool, name).runs == 1


@pytest.mark.parametrize(
    "verb", ["pause_cron_task", "resume_cron_task", "run_cron_task", "remove_cron_task", "cron_history"]
)
def test_a_name_that_nobody_has_given(pool: ProcessWorker, verb: str, name: str) -> None:
    with pytest.raises(TaskNotFound, match=r"^no cron task is called 'nobody'; there is none at all$"):
        getattr(pool, verb)("nobody")
    pool.register_cron_task(name, NEVER, pooljobs.pid)
    with pytest.raises(TaskNotFound) as caught:
        getattr(pool, verb)("nobody")
    assert str(caught.value) == f"no cron task is called 'nobody'; there is {name!r}"


def test_a_name_is_given_once_and_the_names_are_bounded() -> None:
    with ProcessWorker(n=1) as worker:
        for number in range(ENTRIES_MAX):
            worker.register_cron_task(f"task {number}", NEVER, pooljobs.pid)
        with pytest.raises(ConfigurationError, match="'task 7' is registered already"):
            worker.register_cron_task("task 7", NEVER, pooljobs.pid)
        with pytest.raises(ConfigurationError, match=f"at most {ENTRIES_MAX} cron tasks"):
            worker.register_cron_task("one more", NEVER, pooljobs.pid)
        assert [task.name for task in worker.cron_tasks()] == [f"task {number}" for number in range(ENTRIES_MAX)]
        with pytest.raises(TaskNotFound, match=r"'task 9', \.\.\.$"):
            worker.pause_cron_task("task")
        worker.remove_cron_task("task 7")
        worker.register_cron_task("one more", NEVER, pooljobs.pid)


def test_the_history_is_bounded(pool: ProcessWorker, name: str) -> None:
    pool.register_cron_task(name, "@every 10ms", functools.partial(pooljobs.fail, "as told"))
    eventually(lambda: listed(pool, name).runs > HISTORY_MAX + 5)
    history = pool.cron_history(name)
    assert len(history) == HISTORY_MAX
    assert isinstance([run for run in history if run.ended_at][-1].error, ValueError)


# ------------------------------------------------------------ the end


def test_a_drain_finishes_what_has_begun_and_what_waits_and_begins_nothing_else(tmp_path: Path, gate: Gate) -> None:
    def hold_and_note() -> None:
        pooljobs.note(str(tmp_path / "ended"), pooljobs.hold(gate.folder, "it"))

    with ProcessWorker(n=1) as worker:
        worker.register_cron_task("it", "@every 20ms", hold_and_note, overlap="queue")
        gate.wait_begun()
        eventually(lambda: listed(worker, "it").waiting)
        worker.shutdown(wait=False)
        with pytest.raises(WorkerStopped):
            worker.register_cron_task("late", NEVER, pooljobs.pid)
        eventually(lambda: listed(worker, "it").next_at is None)
        assert not worker.run_cron_task("it")
        gate.release()
        gate.wait_begun()
        assert (listed(worker, "it").waiting, listed(worker, "it").runs) == (0, 2)
        gate.release()
    assert lines(tmp_path / "ended") == ["it", "it"]
    assert not gate.begun()


@pytest.mark.parametrize("said", [{}, {"queue": "own", "retries": 0}], ids=["nothing", "its own"])
def test_a_task_that_recurs_has_the_options_of_its_view_where_it_says_none(said: dict[str, Any]) -> None:
    with ProcessWorker(n=1) as worker:
        view = worker.options(queue="view", priority=-3, retries=2)
        view.register_cron_task("it", NEVER, mpworker.Task(pooljobs.pid, **said))
        worker.run_cron_task("it")
        info = worker.get_task(runs(worker, "it", 1)[0].task_id)
    assert (info.queue, info.priority) == (said.get("queue", "view"), -3)


def test_a_stop_that_cuts_a_run_short_says_so(gate: Gate) -> None:
    for held in (True, False):
        worker = ProcessWorker(n=1, grace=0.1)
        worker.register_cron_task("it", NEVER, hold(gate) if held else pooljobs.pid)
        worker.run_cron_task("it")
        if held:
            gate.wait_begun()
        report = worker.stop_graceful(timeout=0.3 if held else GUARD)
        assert bool(report) is not held
        assert report.tasks == len(report.task_ids) == held


def test_a_stop_whose_time_is_over_when_all_runs_have_ended_says_so() -> None:
    worker = ProcessWorker(n=1, grace=GUARD)
    worker.register_cron_task("it", NEVER, functools.partial(atexit.register, time.sleep, GUARD))
    worker.run_cron_task("it")
    assert runs(worker, "it", 1)[0].outcome == "completed"
    assert worker.stop_graceful(timeout=0.5)


def test_what_waits_is_cancelled_with_the_futures(gate: Gate) -> None:
    with ProcessWorker(n=1) as worker:
        worker.register_cron_task("it", NEVER, hold(gate), overlap="queue")
        worker.register_cron_task("other", NEVER, hold(gate))
        assert worker.run_cron_task("it")
        gate.wait_begun()
        assert worker.run_cron_task("it")
        assert worker.run_cron_task("other")
        worker.shutdown(wait=False, cancel_futures=True)
        gate.release()
    assert not gate.begun()


def test_after_the_end_each_verb_says_so() -> None:
    worker = ProcessWorker(n=1)
    worker.register_cron_task("it", NEVER, pooljobs.pid)
    worker.stop_now()
    lost = ProcessWorker(n=1)
    lost.register_cron_task("it", NEVER, pooljobs.pid)
    os.kill(lost.processes()["supervisor"], signal.SIGKILL)
    for stopped, error in ((worker, WorkerStopped), (lost, SupervisorLost)):
        for verb in ("pause_cron_task", "resume_cron_task", "run_cron_task", "remove_cron_task", "cron_history"):
            with pytest.raises(error):
                getattr(stopped, verb)("it")
        with pytest.raises(error):
            stopped.cron_tasks()
        with pytest.raises(error):
            stopped.register_cron_task("other", NEVER, pooljobs.pid)


def test_no_recurring_task_keeps_a_pool_from_its_end() -> None:
    with ProcessWorker(n=1) as worker:
        worker.register_cron_task("it", "@every 10ms", pooljobs.pid)
        worker.register_cron_task("paused", "@every 10ms", pooljobs.pid)
        worker.pause_cron_task("paused")
        runs(worker, "it", 1)
    assert worker.stop_graceful()


# ------------------------------------------------------------ time zones


def test_a_time_zone_travels_with_its_file() -> None:
    told = cron.read_zone("Europe/Berlin")
    moments = [datetime(year, month, 1, tzinfo=UTC) for year in (1950, 2026, 2090) for month in (1, 7)]
    for moment in moments:
        local = moment.astimezone(_zone(told["tz"], told["tzif"]))
        assert local.utcoffset() == moment.astimezone(zoneinfo.ZoneInfo("Europe/Berlin")).utcoffset()
    assert cron.read_zone(UTC) == cron.read_zone("UTC") == {"tz": "UTC", "tzif": ""}
    assert _zone("UTC", "") is UTC


def _hide_tzdata(monkeypatch: pytest.MonkeyPatch) -> None:
    zoneinfo.ZoneInfo.clear_cache()
    for module in ["tzdata", *(module for module in sys.modules if module.startswith("tzdata."))]:
        monkeypatch.setitem(sys.modules, module, None)


def test_those_of_the_system_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(Path(folder, "Europe/Berlin").is_file() for folder in zoneinfo.TZPATH):
        pytest.skip("this system has none")
    _hide_tzdata(monkeypatch)
    assert cron.read_zone("Europe/Berlin")["tzif"]


def test_where_the_system_has_no_time_zones_those_of_the_package_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    told = cron.read_zone("America/Argentina/Ushuaia")
    zoneinfo.ZoneInfo.clear_cache()
    zoneinfo.reset_tzpath(to=[])
    try:
        of_package = cron.read_zone("America/Argentina/Ushuaia")
        assert of_package["tz"] == told["tz"]
        zone = _zone(of_package["tz"], of_package["tzif"])
        assert datetime(2026, 1, 1, tzinfo=zone).utcoffset() == timedelta(hours=-3)
        _hide_tzdata(monkeypatch)
        with pytest.raises(ConfigurationError, match="the package tzdata has one"):
            cron.read_zone("America/Argentina/Ushuaia")
        assert cron.read_zone("UTC")["tz"] == "UTC"
    finally:
        zoneinfo.reset_tzpath()
