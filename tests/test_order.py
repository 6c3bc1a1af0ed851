"""Queues, priorities and limits with real processes."""

import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from concurrently import eventually
from pooljobs import Gate, run_with

from mpworker import ProcessWorker, QueueOptions, QueueState
from mpworker.errors import ConfigurationError, InvalidArgument, WorkerStopped


def note(path: str, word: str) -> None:
    """A line of one write, so that two children do not mix."""
    with open(path, "a") as file:
        file.write(word + "\n")


def claimed(_: object = None) -> float:
    return time.monotonic()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


def order_of(log: Path) -> list[str]:
    return log.read_text().split()


def test_the_lowest_priority_number_goes_first_then_the_highest_weight_then_who_came_first(log: Path) -> None:
    with ProcessWorker(n=1) as w:
        w.pause()
        for priority, weight, word in ((0, 1, "e"), (1, 9, "g"), (0, 5, "c"), (0, 1, "f"), (-3, 1, "a"), (0, 5, "d")):
            w.options(priority=priority, weight=weight).submit(note, str(log), word)
        w.options(priority=-3).submit(note, str(log), "b")
        w.resume()
    assert order_of(log) == list("abcdefg")


def test_queues_share_by_weight(log: Path) -> None:
    with ProcessWorker(n=1, queues={"big": 3, "small": 1}) as w:
        w.pause()
        for _ in range(12):
            w.options(queue="big").submit(note, str(log), "big")
            w.options(queue="small").submit(note, str(log), "small")
        w.resume()
    first = order_of(log)[:12]
    assert 8 <= first.count("big") <= 10
    gaps = " ".join(order_of(log)[: 4 * 4]).split("small")
    assert all(gap.split().count("big") <= math.ceil(5 / 1) for gap in gaps)


def test_a_paused_queue_takes_tasks_and_starts_none(log: Path) -> None:
    with ProcessWorker(n=2) as w:
        w.pause("a")
        held = w.options(queue="a").submit(note, str(log), "held")
        w.options(queue="b").submit(note, str(log), "other").result()
        assert w.queues()["a"] == QueueState(1, None, None, None, True, False, 1, 0)
        assert not held.done()
        w.resume("a")
        held.result()
    assert order_of(log) == ["other", "held"]


def test_a_pause_takes_back_what_no_child_has_begun(log: Path) -> None:
    with ProcessWorker(n=1) as w:
        w.submit(time.sleep, 0).result()
        running = w.submit(time.sleep, 0.3)
        eventually(running.running)
        for _ in range(50):
            w.submit(note, str(log), "x")
        w.pause()
        running.result()
        assert order_of(log) == []
        w.resume()
    assert len(order_of(log)) == 50


def hold_or_note(folder: str, path: str, word: str) -> None:
    if word == "long":
        pooljobs.hold(folder)
    note(path, word)


def test_what_is_more_urgent_overtakes_what_waits_in_a_child(log: Path, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with ProcessWorker(n=1) as w:
        for _ in range(200):  # so that the calls are known to be short, and several are given to the child at once
            w.submit(hold_or_note, gate.folder, os.devnull, "short").result()
        w.options(queue="default").submit(hold_or_note, gate.folder, str(log), "long")
        for _ in range(3):
            w.options(priority=1).submit(hold_or_note, gate.folder, str(log), "later")
        gate.wait_begun()
        eventually(lambda: w.queues()["default"].running > 1)
        w.options(priority=0).submit(hold_or_note, gate.folder, str(log), "urgent")
        w.metrics()  # the answer comes after all that was sent before
        gate.release()
    gate.close()
    assert order_of(log) == ["long", "urgent", "later", "later", "later"]


def test_leaving_the_block_ends_a_pause(log: Path) -> None:
    with ProcessWorker(n=1) as w:
        w.pause()
        w.pause("default")
        w.submit(note, str(log), "done")
    assert order_of(log) == ["done"]


def test_no_more_of_a_queue_run_at_once_than_asked(tmp_path: Path) -> None:
    with ProcessWorker(n=3, queues={"narrow": QueueOptions(max_running=1)}) as w:
        futures = [w.options(queue="narrow").submit(run_with, str(tmp_path)) for _ in range(12)]
        assert {future.result() for future in futures} == {1}


@pytest.mark.parametrize("where", ["worker", "queue"])
def test_starts_keep_to_the_rate(where: str) -> None:
    rate, burst, count = 100.0, 2, 40
    options: dict[str, Any] = {"rate": rate, "burst": burst}
    if where == "queue":
        options = {"queues": {"default": QueueOptions(**options)}}
    with ProcessWorker(n=2, **options) as w:
        w.submit(claimed).result()
        begun = time.monotonic()
        starts = sorted(future.result() for future in [w.submit(claimed) for _ in range(count)])
    for index, first in enumerate(starts):
        for number, last in enumerate(starts[index:], start=1):
            # The task's clock is read a little after its claim.
            assert number <= burst + rate * (last - first + 0.02) + 1
    assert starts[-1] - begun >= (count - burst - 1) / rate - 0.02


def test_items_of_a_map_keep_to_the_rate() -> None:
    with ProcessWorker(n=2, rate=100.0, burst=1) as w:
        starts = sorted(w.map(claimed, range(20), chunksize=7))
    assert starts[-1] - starts[0] >= 18 / 100.0 - 0.02


@pytest.mark.parametrize("limit", ["rate", "rate of its queue", "pause"])
def test_a_chunk_that_has_begun_keeps_to_what_is_said_later(limit: str, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with ProcessWorker(n=1) as w:
        items = w.map(partial(pooljobs.hold, gate.folder), range(8), chunksize=8)
        gate.wait_begun()
        if limit == "pause":
            w.pause()
        elif limit == "rate":
            w.set_rate(0.01, burst=1)
        else:
            w.set_queue("default", rate=0.01, burst=1)
        w.metrics()  # the answer comes after all that was sent before
        gate.release(8)
        assert next(items) == 0
        eventually(lambda: w.queues()["default"].queued == 1)  # as one range, in line
        begun = int(gate.begun())
        assert begun <= (limit != "pause"), "the item that ran was a start; the bucket had one more"
        w.set_rate(None)
        w.set_queue("default", rate=None)
        w.resume()
        assert list(items) == list(range(1, 8))
    gate.close()


def test_the_rate_may_change_while_tasks_wait() -> None:
    with ProcessWorker(n=1, rate=0.1, burst=1) as w:
        first, second = w.submit(claimed), w.submit(claimed)
        first.result()
        w.set_rate(1000.0)
        second.result()
        w.set_rate(None)
        list(w.map(claimed, range(1000)))


def test_an_idle_pool_with_a_limit_sleeps() -> None:
    """A rate that is in the way makes the supervisor wake when the next start is due, and not before."""
    with ProcessWorker(n=1, rate=0.5, burst=1) as w:
        w.submit(claimed).result()
        waiting = w.submit(claimed)
        pid = w.processes()["supervisor"]
        before = _cpu(pid)
        waiting.result()
        assert _cpu(pid) - before < 0.2


def _cpu(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def test_what_queues_there_are_can_be_asked() -> None:
    with ProcessWorker(n=1, queues={"mail": QueueOptions(weight=2, rate=5.0)}, max_pending=3) as w:
        w.options(queue="new").submit(len, "four").result()
        w.set_queue("mail", max_running=4)
        eventually(lambda: w.queues()["new"].running == 0)
        assert w.queues() == {
            "default": QueueState(1, None, None, None, False, False, 0, 0),
            "mail": QueueState(2, 4, 5.0, 1, False, False, 0, 0),
            "new": QueueState(1, None, None, None, False, False, 0, 0),
        }
    assert w.queues() == {}
    with pytest.raises(WorkerStopped):
        w.set_queue("mail", weight=3)
    with pytest.raises(WorkerStopped):
        w.set_rate(3.0)


def test_unknown_queues_can_be_refused() -> None:
    with ProcessWorker(n=1, queues={"mail": 2}, unknown_queues="refuse") as w:
        w.options(queue="mail").submit(len, "four").result()
        with pytest.raises(ConfigurationError, match=r"there is no queue 'mial', .*; there are 'default', 'mail'$"):
            w.options(queue="mial")


def test_there_are_not_too_many_queues() -> None:
    with ProcessWorker(n=1) as w:
        for number in range(999):
            w.options(queue=f"q{number}")
        with pytest.raises(ConfigurationError, match="a worker has at most 1000 queues"):
            w.options(queue="one more")
        w.options(queue="q3").submit(len, "four").result()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"queues": {"a": 0}}, ConfigurationError, "^the weight of queue 'a' must be at least 1, not 0"),
    ({"queues": {"a": 101}}, ConfigurationError, "^the weight of queue 'a' must be at most 100, not 101"),
    ({"queues": {"a": "5"}}, InvalidArgument, "^the weight of queue 'a' must be an int from 1 to 100, not '5'"),
    (
        {"queues": ["a"]},
        InvalidArgument,
        r"queues must be a dict of names and weights \(or QueueOptions\), not \['a'\]",
    ),
    ({"queues": {3: 1}}, InvalidArgument, "a queue's name must be a str, not 3"),
    ({"queues": {"": 1}}, ConfigurationError, "a queue's name must have 1 to 200 characters, not 0"),
    ({"unknown_queues": "drop"}, ConfigurationError, "unknown_queues must be 'create' or 'refuse', not 'drop'"),
    ({"rate": 0}, ConfigurationError, "rate must be at least 1e-06, not 0"),
    ({"rate": "fast"}, InvalidArgument, "rate must be a number from 1e-06 to 1e\\+09, not 'fast'"),
    ({"burst": 0}, ConfigurationError, "burst must be at least 1, not 0"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=[str(case[0]) for case in BAD])
def test_bad_options_are_told(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ProcessWorker(n=1, **options)


def test_bad_options_of_a_queue_are_told() -> None:
    with pytest.raises(ConfigurationError, match="max_running must be at least 1, not 0"):
        QueueOptions(max_running=0)
    with ProcessWorker(n=1) as w:
        with pytest.raises(ConfigurationError, match="priority must be at most"):
            w.options(priority=1 << 40)
        with pytest.raises(ConfigurationError, match="weight must be at least 1, not 0"):
            w.options(weight=0)
        with pytest.raises(InvalidArgument, match=r"unknown option 'wieght'.*did you mean 'weight'"):
            w.set_queue("a", wieght=3)
        with pytest.raises(InvalidArgument, match="a queue's name must be a str, not 3"):
            w.pause(3)  # type: ignore[arg-type]
