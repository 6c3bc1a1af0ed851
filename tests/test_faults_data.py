"""Containment of what is sent: what pickles badly, what is too large, and memory that somebody has spoiled."""

import os
import signal
from pathlib import Path
from typing import Any

import faults_tasks as tasks
import pytest
from faults import LIMIT, MB, child_pids, crashed, gone, known_quick, offers, told, until, whole

from mpworker import ProcessWorker
from mpworker.errors import SerializationError, WorkerCrashed

# ------------------------------------------------------------ pickles


@pytest.mark.parametrize("how", ["raise", "sys.exit"])
def test_an_argument_that_cannot_be_pickled_is_the_callers_error(how: str) -> None:
    with ProcessWorker(n=1) as w:
        with pytest.raises(SerializationError, match="echo"):
            w.submit(tasks.echo, tasks.OnDump(how))
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        with pytest.raises(SerializationError):
            w.submit(tasks.echo, tasks.return_deep())
        assert w.submit(tasks.attempt).result(LIMIT) == 1


@pytest.mark.parametrize("how", ["raise", "sys.exit", "interrupt"])
def test_an_argument_that_cannot_be_unpickled_is_one_tasks_error(how: str) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        assert isinstance(w.submit(tasks.echo, tasks.OnLoad(how)).exception(LIMIT), SerializationError)
        assert w.submit(os.getpid).result(LIMIT) == pid


@pytest.mark.parametrize("how", ["exit 4", "segv", "base"])
def test_an_argument_whose_unpickling_ends_the_process_is_one_tasks_crash(how: str) -> None:
    with ProcessWorker(n=1) as w:
        known_quick(w, tasks.echo, 1)
        victim = w.submit(tasks.echo, tasks.OnLoad(how))
        neighbours = [w.submit(tasks.echo, number) for number in range(40)]
        error = victim.exception(LIMIT)
        assert isinstance(error, SerializationError if how == "base" else WorkerCrashed)
        assert [neighbour.result(LIMIT) for neighbour in neighbours] == list(range(40))


@pytest.mark.parametrize("how", ["raise", "sys.exit", "interrupt", "base"])
def test_a_result_that_cannot_be_pickled_is_one_tasks_error(how: str) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        error = w.submit(tasks.return_on_dump, how).exception(LIMIT)
        assert isinstance(error, SerializationError)
        assert "faults_tasks.OnDump" in str(error)
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_a_call_for_which_a_child_has_no_memory_is_one_tasks_error() -> None:
    with ProcessWorker(n=1, initializer=tasks.limit_memory, initargs=(150 * MB,), arena_max_bytes=0) as w:
        [pid] = whole(w, 1)
        for size in (100 * MB, 200 * MB):  # too much in one piece, and too much in pieces
            too_large = w.submit(len, bytes(size))
            [item] = w.map(len, [bytes(size)], return_exceptions=True)
            for error in (too_large.exception(LIMIT), item):
                assert isinstance(error, SerializationError)
                assert "MemoryError: it has" in str(error)
        assert w.submit(abs, -3).result(LIMIT) == 3
        assert child_pids(w) == [pid]


def test_a_result_that_is_too_deep_to_be_pickled() -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        error = w.submit(tasks.return_deep).exception(LIMIT)
        assert isinstance(error, SerializationError)
        assert "list" in str(error)
        assert w.submit(os.getpid).result(LIMIT) == pid


@pytest.mark.parametrize("how", ["raise", "sys.exit"])
def test_a_result_that_cannot_be_unpickled_here(how: str) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        error = w.submit(tasks.return_on_load_in, os.getpid(), how).exception(LIMIT)
        assert isinstance(error, SerializationError)
        error = w.submit(tasks.fail_on_load_in, os.getpid(), how).exception(LIMIT)
        assert isinstance(error, SerializationError)
        assert w.submit(os.getpid).result(LIMIT) == pid


@pytest.mark.parametrize(
    ("kind", "expected", "name"),
    [
        ("needs two", tasks.NeedsTwoError, ""),
        ("unpicklable", SerializationError, "UnpicklableError"),
        ("mute", tasks.MuteError, ""),
        ("mute exit", tasks.MuteExitError, ""),
    ],
)
def test_an_exception_of_a_strange_kind_is_one_tasks_error(kind: str, expected: type, name: str) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        error = w.submit(tasks.fail_with, kind).exception(LIMIT)
        assert type(error) is expected
        if name:
            assert name in str(error)
            assert "fail_with" in str(error.__cause__)  # where it was raised
        assert w.submit(os.getpid).result(LIMIT) == pid


# ------------------------------------------------------------ large payloads


def test_a_large_call_survives_the_death_of_its_child(tmp_path: Path) -> None:
    data = os.urandom(20 * MB)
    with ProcessWorker(n=2, retries=1) as w:
        path = tmp_path / "once"
        crashing = w.submit(_crash_once, path, data)
        echoes = [w.submit(tasks.echo, data[: size * MB]) for size in (1, 5, 3)]
        assert crashing.result(LIMIT) == (2, data)
        for size, echo in zip((1, 5, 3), echoes, strict=True):
            assert echo.result(LIMIT) == data[: size * MB]


def _crash_once(path: Path, data: bytes) -> tuple[int, bytes]:
    return tasks.once(path, "kill"), data


def test_a_child_that_dies_while_it_is_sent_a_large_call_costs_nothing() -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        os.kill(pid, signal.SIGSTOP)
        data = os.urandom(20 * MB)
        future = w.submit(tasks.echo, data)
        behind = w.submit(tasks.attempt)
        until(lambda: offers(w) != [0], "it was offered")
        os.kill(pid, signal.SIGKILL)
        assert future.result(LIMIT) == data
        assert behind.result(LIMIT) == 1


def test_a_call_that_kills_whoever_puts_it_together_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the kernel does, where there is not the memory for it. Before the claim: no timeout counts, nobody is at fault.
    (tmp_path / "short_of_memory.py").write_text(
        "import os, signal\n"
        "from mpworker.ipc.ring import Assembler\n"
        "Assembler.finish = lambda self, flags, last: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = os.urandom(5 * MB)
    with ProcessWorker(n=2, preload=["short_of_memory"], arena_max_bytes=0) as w:
        large = w.options(timeout=LIMIT).submit(tasks.echo, data)
        small = [w.submit(tasks.attempt) for _ in range(50)]
        error = crashed(large, cause="signal")
        assert "5 children died before they could begin it, the last of which," in str(error)
        assert str(error).endswith(" died by SIGKILL on attempt 1 of 1")
        assert [each.result(LIMIT) for each in small] == [1] * 50
        items = [data[:MB], *range(10), data[:MB]]
        results = list(w.map(tasks.echo, items, chunksize=4, return_exceptions=True))
        assert [type(each) for each in results] == [WorkerCrashed, *[int] * 10, WorkerCrashed]


def test_a_child_that_dies_while_it_sends_a_large_result(tmp_path: Path) -> None:
    size = 20 * MB
    with ProcessWorker(n=1, retries=1, arena_max_bytes=0) as w:
        supervisor = w.processes()["supervisor"]
        future = w.submit(tasks.return_large, tmp_path, size)
        pid = int(told(tmp_path / "pickling"))
        os.kill(supervisor, signal.SIGSTOP)
        try:
            # It fills its ring with the first parts, and waits for room that a stopped supervisor does not make.
            tasks.touch(tmp_path / "gate")
            told(tmp_path / "sending")
            os.kill(pid, signal.SIGKILL)
            gone([pid])
        finally:
            os.kill(supervisor, signal.SIGCONT)
        assert future.result(LIMIT) == b"2" * size, "nothing of what the first attempt had sent"
        assert w.submit(tasks.attempt).result(LIMIT) == 1


# ------------------------------------------------------------ corrupt memory


@pytest.mark.parametrize(
    ("part", "answer_lost", "offers_lost"),
    [
        ("tail", True, False),
        ("controls", True, False),
        ("rings", True, False),
        ("claims", False, True),
        ("everything", True, True),
    ],
)
def test_what_a_scribble_costs(tmp_path: Path, part: str, answer_lost: bool, offers_lost: bool) -> None:
    # The supervisor looks when all is there: an answer that it has not read, a task that scribbled, offers behind it.
    with ProcessWorker(n=1, grace=LIMIT, lease_ttl=1.0) as w:
        supervisor = w.processes()["supervisor"]
        for number in range(20):
            known_quick(w, tasks.wait_at, None)
            known_quick(w, tasks.scribble_and_wait, "")
            known_quick(w, tasks.echo, 1)
            gate, running, done = (tmp_path / f"{name}-{number}" for name in ("gate", "running", "done"))
            answered = w.submit(tasks.wait_at, gate, running)
            guilty = w.submit(tasks.scribble_and_wait, part, None, done)
            behind = [w.submit(tasks.echo, value) for value in range(10)]
            told(running)
            if offers(w) == [12]:
                break
            for future in (*reversed(behind), guilty, answered):  # a busy machine: not all were seen to be quick
                future.cancel()
        else:
            pytest.fail("they were never offered ahead of need")
        os.kill(supervisor, signal.SIGSTOP)
        try:
            tasks.touch(gate)
            told(done)
        finally:
            os.kill(supervisor, signal.SIGCONT)
        crashed(guilty, cause="corrupt", attempt=1)
        if answer_lost:
            crashed(answered, cause="corrupt")
        else:
            assert answered.result(LIMIT) == 1
        for value, future in enumerate(behind):
            if offers_lost:  # nobody knows which of them had begun: they count as claimed
                crashed(future, cause="corrupt")
            else:
                assert future.result(LIMIT) == value
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        assert w.processes()["supervisor"] == supervisor


def test_a_child_that_misreads_its_ring_ends(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        assert w.submit(tasks.maybe_scribble, "sent").result(LIMIT) == "scribbled"
        gone([pid])
        assert w.submit(tasks.attempt).result(LIMIT) == 1


def test_noise_in_a_bell_is_as_good_as_a_sleeper(tmp_path: Path) -> None:
    with ProcessWorker(n=1, lease_ttl=10 * LIMIT, start_timeout=10 * LIMIT) as w:  # no timer wakes the supervisor
        pid = w.submit(os.getpid).result(LIMIT)
        for number in range(3):
            gate = tmp_path / f"gate-{number}"
            guilty = w.submit(tasks.maybe_scribble, "bells", gate)
            until(guilty.running, "it runs")
            tasks.touch(gate)
            assert guilty.result(LIMIT) == "scribbled"
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_a_bell_that_a_child_has_silenced_is_not_waited_for(tmp_path: Path) -> None:
    with ProcessWorker(n=1, lease_ttl=1.0, start_timeout=10 * LIMIT) as w:  # the look at the leases is its only timer
        pid = w.submit(os.getpid).result(LIMIT)
        guilty = w.submit(tasks.maybe_scribble, "zero bells", tmp_path / "gate")
        until(guilty.running, "it runs")
        tasks.touch(tmp_path / "gate")
        assert guilty.result(LIMIT) == "scribbled"
        assert w.submit(os.getpid).result(LIMIT) == pid


@pytest.mark.parametrize("part", ["tail", "everything"])
def test_a_child_that_scribbles_and_says_nothing_is_condemned(part: str) -> None:
    with ProcessWorker(n=1, grace=LIMIT, lease_ttl=1.0) as w:
        supervisor = w.processes()["supervisor"]
        guilty = w.submit(tasks.scribble_and_wait, part)
        behind = [w.submit(tasks.echo, number) for number in range(10)]
        crashed(guilty, cause="corrupt")
        assert [future.result(LIMIT) for future in behind] == list(range(10))
        assert w.processes()["supervisor"] == supervisor


@pytest.mark.parametrize("full", [False, True], ids=["empty", "full"])
def test_a_child_whose_ring_cannot_be_pushed_to_is_condemned(tmp_path: Path, full: bool) -> None:
    large = b"x" * (2 * MB)  # several times what the ring holds
    with ProcessWorker(n=1, grace=LIMIT, arena_max_bytes=0) as w:
        supervisor = w.processes()["supervisor"]

        def settled(guilty: Any) -> bool:
            held = offers(w)
            return guilty.done() or held == [1]

        for number in range(20):
            known_quick(w, tasks.scribble_and_wait, "")
            known_quick(w, tasks.echo, 1)
            gate, done = tmp_path / f"gate-{number}", tmp_path / f"done-{number}"
            guilty = w.submit(tasks.scribble_and_wait, "head", gate, done)
            until(guilty.running, "it runs")
            if full:  # the supervisor has more to push than there is room for
                behind = w.submit(tasks.echo, large)
                tasks.touch(gate)
            else:
                tasks.touch(gate)
                told(done)
                behind = w.submit(tasks.echo, large)
            until(lambda: settled(guilty), "the guilty child is condemned")  # noqa: B023
            if guilty.done():
                crashed(guilty, cause="corrupt")
                assert behind.result(LIMIT) == large
                break
            guilty.cancel()  # a busy machine: `echo` was not seen to be quick, and was not offered ahead of need
            assert behind.result(LIMIT) == large
        else:
            pytest.fail("nothing was ever offered ahead of need")
        assert w.processes()["supervisor"] == supervisor


def test_offers_that_a_child_can_no_longer_claim_are_not_waited_for(tmp_path: Path) -> None:
    with ProcessWorker(n=1, lease_ttl=1.0) as w:
        supervisor = w.processes()["supervisor"]
        for number in range(20):
            known_quick(w, tasks.maybe_scribble, "")
            known_quick(w, tasks.echo, 1)
            guilty = w.submit(tasks.maybe_scribble, "claims", tmp_path / f"gate-{number}")
            until(guilty.running, "it runs")
            behind = [w.submit(tasks.echo, number) for number in range(40)]
            ahead = offers(w)[0] > 1
            tasks.touch(tmp_path / f"gate-{number}")
            assert guilty.result(LIMIT) == "scribbled"
            errors = [future.exception(LIMIT) for future in behind]
            # Nobody knows which of them had begun: they count as claimed.
            assert {error.cause for error in errors if isinstance(error, WorkerCrashed)} <= {"corrupt"}
            if ahead:
                assert any(errors)
                break
        else:
            pytest.fail("nothing was ever offered ahead of need")
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        assert w.processes()["supervisor"] == supervisor
