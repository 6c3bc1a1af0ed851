"""A supervisor that records its scheduler, and a new scheduler that does the same when it is told the same."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pooljobs
import programs
import pytest
import replay
from concurrently import GUARD
from soak import Soak

from mpworker import Hooks, ProcessWorker, RetryPolicy
from mpworker.errors import StartFailed, SupervisorLost, TaskTimeout
from mpworker.supervisor import recording
from mpworker.supervisor.effects import ERROR
from mpworker.supervisor.lifecycle import RETRY
from mpworker.supervisor.places import Places
from mpworker.supervisor.recycling import Recycling
from mpworker.supervisor.registry import Seat, Task, TaskOptions, Times
from mpworker.supervisor.scheduler import Scheduler

# What a mixture does in any case; what else there is happens by accident, or when a child goes wrong.
ALWAYS = {
    *("offer", "revoke", "peek", "interrupt", "kill", "emit", "emit_items", "emit_report", "uniform", "looked"),
    *("halt", "memory", "beat", "dismiss", "ask_stack"),
}


def recordings(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process's pools record."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    monkeypatch.setenv("MPWORKER_RECORD", str(folder))
    return folder


def record_small_run(folder: Path) -> Path:
    """A retry after a pause, a timeout, a death and a map, one after the other; the recording."""
    policy = RetryPolicy(base=0.01)
    with ProcessWorker(n=2, grace=0.2) as pool:
        again = pool.options(retries=2, retry_policy=policy)
        assert isinstance(again.submit(pooljobs.fail, "secret").exception(GUARD), ValueError)
        assert isinstance(pool.options(timeout=0.05).submit(time.sleep, GUARD).exception(GUARD), TaskTimeout)
        assert list(pool.map(pooljobs.square, range(100), chunksize=10)) == [number**2 for number in range(100)]
        assert pool.submit(pooljobs.square, 3).result(GUARD) == 9
    (path,) = recordings(folder)
    return path


# ------------------------------------------------------------ the proof


def test_a_mixture_of_everything_has_the_same_effects_again(tmp_path: Path, folder: Path) -> None:
    run = Soak(tmp_path, 5, 6.0, 1)
    run.run()
    agains = [replay.Replay(replay.read(path)) for path in recordings(folder)]
    for each in agains:
        each.run()
        assert type(each.scheduler) is Recycling
    in_loop, again = sorted(agains, key=lambda each: each.scheduler.accepted)
    assert in_loop.scheduler.accepted == run.in_loop.accepted
    assert set(again.effects) >= ALWAYS, again.effects
    assert again.scheduler.accepted >= run.accepted
    assert not again.scheduler.unfinished()


def test_a_pool_whose_children_stay_has_the_same_effects_again(folder: Path) -> None:
    again = replay.Replay(replay.read(record_small_run(folder)))
    again.run()
    assert type(again.scheduler) is Places
    assert again.calls["done"] >= 5
    assert again.effects["uniform"] == 2


def _no_retry(self: Scheduler, task: Any, asked: float | None = None) -> None:
    task.attempts -= 1
    self.retries += 1
    task.state = RETRY[task.state]
    self._put(task)


def _dear(self: Scheduler, seat: Any, task: Any, cost_ns: int, now: float, _offer: Any = Scheduler._offer) -> None:
    _offer(self, seat, task, cost_ns + 1, now)


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("_retry", _no_retry, r"without effect 1, uniform\(\)"),
        ("_offer", _dear, r"effect 1, offer\(.*, was 400000 and is 400001 at .*\.Task\.cost_ns"),
        ("child_ready", lambda self, seat: None, r"without effect 1, offer\("),
        ("_watch", lambda self, now: None, r"without effect 1, looked\(\)"),
    ],
    ids=["no pause", "another cost", "nobody is ready", "no look"],
)
def test_a_rule_that_is_broken_is_seen_at_its_first_effect(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[..., Any], message: str
) -> None:
    path = record_small_run(folder)
    monkeypatch.setattr(Scheduler, name, broken)
    with pytest.raises(replay.Differs, match=message):
        replay.Replay(replay.read(path)).run()


def test_the_ranges_of_a_chunk_are_cancelled_in_the_order_in_which_they_were_made() -> None:
    count = 40
    effects = Mock(**{"revoke.return_value": False})
    rules = Places(effects, Times(1.0, 1.0, 1.0, 1.0), uniform=lambda: 0.5)
    seats = [Seat(number, 1) for number in range(count + 1)]
    for seat in seats:
        rules.child_starting(seat, 0.0)
        rules.child_ready(seat)
    chunk = Task(1, None, TaskOptions(retries=1), b"", count)
    rules.submitted(chunk)
    rules.dispatch(0.0)
    for index in range(count):  # each fails, and is a range of its own from then on
        rules.items(seats[-1], chunk.slot, chunk.generation, index, index + 1, ERROR, False, 0, b"")
    rules.dispatch(0.0)
    assert rules.cancel(chunk.key, 0.0)
    assert [call.args[0] for call in effects.halt.call_args_list] == seats[::-1]


# ------------------------------------------------------------ the recording


def test_nothing_of_the_users_is_recorded_but_names(folder: Path) -> None:
    with ProcessWorker(n=1) as pool:
        view = pool.options(queue="mail", concurrency_key="customer")
        assert isinstance(view.submit(pooljobs.fail, "secret").exception(GUARD), ValueError)
        view.submit(str, "secret").result(GUARD)
    text = recordings(folder)[0].read_text()
    assert "secret" not in text
    assert '"mail"' in text
    assert os.stat(recordings(folder)[0]).st_mode & 0o777 == 0o600


def test_a_killed_supervisor_leaves_what_it_has_recorded(folder: Path, tmp_path: Path) -> None:
    with ProcessWorker(n=1) as pool:
        pool.submit(len, "four").result(GUARD)
        os.kill(pool.processes()["supervisor"], signal.SIGKILL)
        assert isinstance(pool.submit(len, "four").exception(GUARD), SupervisorLost)
    again = replay.Replay(replay.read(recordings(folder)[0]))
    again.run()
    assert again.calls["done"] == 1


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MPWORKER_RECORD", str(tmp_path / "nowhere"))
    with pytest.raises(StartFailed, match="nowhere"), ProcessWorker(n=1) as pool:
        pool.submit(len, "four").result(GUARD)


def test_every_method_is_recorded_or_only_looks() -> None:
    # What is new is recorded. What only looks is asked here whether there still is such a thing.
    calls = recording.calls_of(Recycling)
    assert {"submitted", "dispatch", "timer", "done", "items", "resize", "cancel", "child_died"} <= set(calls)
    assert all(callable(getattr(Recycling, name)) for name in recording.LOOKS)
    assert not set(calls) & recording.LOOKS


def test_what_only_looks_is_not_recorded(folder: Path) -> None:
    with ProcessWorker(n=1) as pool:
        future = pool.submit(len, "four")
        future.running()
        pool.get_tasks()
        pool.metrics()
        future.result(GUARD)
    assert not {line[0] for line in replay.read(recordings(folder)[0])} & recording.LOOKS


def test_who_looks_on_is_told_of_what_is_recorded(folder: Path) -> None:
    ended: list[str] = []
    with ProcessWorker(n=1, hooks=Hooks(on_finish=lambda event: ended.append(event.task_id))) as pool:
        future = pool.submit(len, "four")
        future.result(GUARD)
    assert ended == [future.task_id]
    replay.Replay(replay.read(recordings(folder)[0])).run()


def test_a_pool_that_does_not_record_has_nothing_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPWORKER_RECORD", raising=False)
    code = "import sys, mpworker.supervisor.loop as loop; assert 'mpworker.supervisor.recording' not in sys.modules"
    programs.run("-c", code)
