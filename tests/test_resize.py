"""`set_max_workers` with real processes: nothing is lost, nothing runs twice, nobody is in the way."""

import os
import random
from collections import Counter
from pathlib import Path

import pooljobs
import programs
import pytest
from leaks import alive, wait_until
from pooljobs import Gate

from mpworker import ProcessWorker
from mpworker.errors import ConfigurationError, InvalidArgument, TaskTimeout, WorkerStopped

LIMIT = 60.0  # seconds: a guard against a hang, never a measure


def ready(w: ProcessWorker, n: int) -> set[int]:
    """The children's pids, once there are n and all of them are ready."""
    assert wait_until(lambda: [child["ready"] for child in w.processes()["children"]] == [True] * n, LIMIT)
    return {child["pid"] for child in w.processes()["children"]}


def test_more_children_take_what_waits(gate: Gate) -> None:
    with ProcessWorker(n=1) as w:
        assert w.n == 1
        held = [w.submit(pooljobs.hold, gate.folder, number) for number in range(3)]
        gate.wait_begun()
        assert not gate.begun()
        w.set_max_workers(3)
        assert w.n == 3
        gate.wait_begun(2)
        gate.release(3)
        assert [future.result(LIMIT) for future in held] == [0, 1, 2]
        assert len(ready(w, 3)) == 3


def test_what_runs_ends_and_what_waits_goes_elsewhere(gate: Gate) -> None:
    with ProcessWorker(n=4) as w:
        before = ready(w, 4)
        held = [w.submit(pooljobs.hold, gate.folder, number) for number in range(4)]
        gate.wait_begun(4)
        w.set_max_workers(1)
        later = [w.submit(pooljobs.square, number) for number in range(100)]
        assert all(map(alive, before))
        gate.release(4)
        assert [future.result(LIMIT) for future in held] == [0, 1, 2, 3]
        assert [future.result(LIMIT) for future in later] == [number * number for number in range(100)]
        (left,) = ready(w, 1)
        assert left in before
        assert wait_until(lambda: sum(map(alive, before)) == 1, LIMIT)


def test_idle_children_exit_at_once() -> None:
    with ProcessWorker(n=4) as w:
        before = ready(w, 4)
        w.set_max_workers(2)
        assert wait_until(lambda: sum(map(alive, before)) == 2, LIMIT)
        assert ready(w, 2) < before


def wait_for_ones_own_word(folder: str) -> None:
    os.mkfifo(f"{folder}/{os.getpid()}")
    with open(f"{folder}/begun", "wb", buffering=0) as begun:
        begun.write(b"x")
    open(f"{folder}/{os.getpid()}", "rb").close()


def test_children_that_start_go_when_they_are_ready(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "begun")
    begun = os.open(tmp_path / "begun", os.O_RDWR | os.O_CLOEXEC)
    with ProcessWorker(n=5, initializer=wait_for_ones_own_word, initargs=(str(tmp_path),)) as w:
        for _ in range(5):
            os.read(begun, 1)
        first, *others = [child["pid"] for child in w.processes()["children"]]
        w.set_max_workers(1)
        assert all(map(alive, others))
        for pid in others:
            (tmp_path / str(pid)).write_bytes(b"")
        assert wait_until(lambda: not any(map(alive, others)), LIMIT)
        # That four were never used, with none ready, is no reason to give the pool up.
        (tmp_path / str(first)).write_bytes(b"")
        assert w.submit(os.getpid).result(LIMIT) == first
    os.close(begun)


def stay_at_exit() -> None:
    import atexit
    import signal

    atexit.register(signal.pause)


def test_a_child_that_does_not_exit_is_killed() -> None:
    with ProcessWorker(n=2, grace=0.1) as w:
        before = ready(w, 2)
        for future in [w.submit(stay_at_exit) for _ in range(50)]:
            future.result(LIMIT)
        w.set_max_workers(1)
        assert wait_until(lambda: sum(map(alive, before)) == 1, LIMIT)
        assert w.submit(pow, 2, 3).result(LIMIT) == 8


def test_a_pool_that_is_resized_all_the_time_loses_nothing_and_runs_nothing_twice(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown if it fails
    rng = random.Random(seed)
    log = str(tmp_path / "log")
    with ProcessWorker(n=2) as w:
        futures = []
        items = w.map(pooljobs.square, range(60_000), chunksize=500)
        for number in range(600):
            futures.append(w.submit(pooljobs.note, log, number))
            next(items)
            if number % 10 == 0:
                w.set_max_workers(rng.randint(1, 4))
        assert list(items) == [number * number for number in range(600, 60_000)]
        assert [future.result(LIMIT) for future in futures] == list(range(600))
        w.set_max_workers(3)
        ready(w, 3)
    assert Counter(map(int, Path(log).read_text().split())) == Counter(range(600))


def hold_and_say_where(folder: str) -> int:
    pooljobs.hold(folder)
    return os.getpid()


def test_a_chunk_is_cut_after_the_item_that_runs(gate: Gate) -> None:
    with ProcessWorker(n=2) as w:
        shorter = w.map(hold_and_say_where, [gate.folder] * 3, chunksize=3)
        longer = w.map(hold_and_say_where, [gate.folder] * 5, chunksize=5)
        gate.wait_begun(2)
        w.set_max_workers(1)  # who has less to do goes
        gate.release(8)
        cut, whole = list(shorter), list(longer)
        assert len(set(whole)) == 1
        assert cut[1:] == whole[:2]
        assert cut[0] != cut[1]
        gate.wait_begun(6)  # and none of them twice
        assert not gate.begun()


def test_a_timeout_in_a_child_that_is_to_go(gate: Gate) -> None:
    with ProcessWorker(n=2, grace=0.1) as w:
        late = [w.options(timeout=0.3).submit(pooljobs.hold, gate.folder) for _ in range(2)]
        gate.wait_begun(2)
        w.set_max_workers(1)
        assert [type(future.exception(LIMIT)) for future in late] == [TaskTimeout] * 2
        ready(w, 1)


@pytest.mark.parametrize(
    ("n", "error", "words"),
    [
        (0, ConfigurationError, "n must be at least 1, not 0"),
        (257, ConfigurationError, "n must be at most 256, not 257"),
        (2.0, InvalidArgument, "n must be an int from 1 to 256, not 2.0"),
        (True, InvalidArgument, "not True"),
        (None, InvalidArgument, "not None"),
    ],
    ids=repr,
)
def test_the_bounds(n: int, error: type[Exception], words: str) -> None:
    with ProcessWorker(n=1) as w:
        with pytest.raises(error, match=words):
            w.set_max_workers(n)
        assert w.n == 1


def test_a_pool_that_was_stopped_has_no_size_to_change() -> None:
    w = ProcessWorker(n=1)
    w.stop_now()
    with pytest.raises(WorkerStopped):
        w.set_max_workers(2)


LIMITS = """
import errno, os, resource, signal
from mpworker import ProcessWorker

resource.setrlimit(resource.RLIMIT_NOFILE, (24, 64))
with ProcessWorker(n=1) as w:
    try:
        w.set_max_workers(50)
    except OSError as error:
        assert error.errno == errno.EMFILE
        print(error)
    assert w.n == 1
    w.set_max_workers(8)
    while [child["ready"] for child in w.processes()["children"]] != [True] * 8:
        pass
    assert w.submit(resource.getrlimit, resource.RLIMIT_NOFILE).result() == (24, 64)
    w.set_max_workers(9)
    before = w.processes()
    os.kill(before["nursery"], signal.SIGKILL)
    while not (now := [child for child in w.processes()["children"] if child["ready"]]) or now[0] in before["children"]:
        pass
    for child in w.processes()["children"]:
        assert resource.prlimit(child["pid"], resource.RLIMIT_NOFILE) == (24, 64)
"""


def test_descriptors_for_more_children(tmp_path: Path) -> None:
    said = programs.run_source(LIMITS, tmp_path).stdout
    assert "the supervisor of n=50 children needs 267 open descriptors" in said
    assert "RLIMIT_NOFILE allows 64" in said
