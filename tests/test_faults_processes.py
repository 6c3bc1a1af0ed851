"""Containment of the deaths of the client, the supervisor and the nursery, and of what cannot start."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import faults_tasks as tasks
import pytest
from faults import HERE, LIMIT, all_pids, child_pids, crashed, gone, known_quick, refuses, told, until, whole
from leaks import alive

from mpworker import ProcessWorker
from mpworker.errors import StartFailed, SupervisorLost, WorkerStopped
from mpworker.supervisor.nursing import _START_FAILURES_MAX, _START_KILLS_MAX

# ------------------------------------------------------------ the death of everybody else

CLIENT_SCRIPT = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import faults_tasks as tasks
from mpworker import ProcessWorker
folder = Path(sys.argv[2])
w = ProcessWorker(n=3)
kinds = ("plain", "session", "daemon")
running = [w.submit(tasks.leave_process_and_block, kind, folder / kind) for kind in kinds]
queued = [w.submit(tasks.touch, folder / "queued") for _ in range(100)]
large = w.submit(tasks.echo, b"x" * (8 << 20))
tasks.say(folder / "pool", json.dumps(w.processes()))
running[0].result()
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, int], list[int]]]:
    """A program with a busy pool: (it, its supervisor and nursery by name, everything it started)."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen([sys.executable, "-c", CLIENT_SCRIPT, HERE, tmp_path], env=environment) as process:
        try:
            pids = []
            for kind in ("plain", "session", "daemon"):
                pids += json.loads(told(tmp_path / kind))
            pool = json.loads(told(tmp_path / "pool"))
            named = {name: pool[name] for name in ("supervisor", "nursery")}
            pids += named.values()
            assert all(alive(pid) for pid in pids)
            yield process, named, pids
            assert not list(folder.iterdir())
            assert not (tmp_path / "queued").exists()
        finally:
            process.kill()


def test_nothing_outlives_a_killed_client(client: Any) -> None:
    process, _, pids = client
    process.kill()
    gone(pids)


def test_nothing_outlives_a_client_that_was_stopped_and_then_killed(client: Any) -> None:
    process, _, pids = client
    process.send_signal(signal.SIGSTOP)
    until(lambda: "T" in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0], "it is stopped")
    assert all(alive(pid) for pid in pids)
    process.kill()
    gone(pids)


def test_nothing_outlives_a_client_and_its_supervisor_killed_together(client: Any) -> None:
    process, named, pids = client
    os.kill(named["supervisor"], signal.SIGKILL)
    process.kill()
    gone(pids)


def test_a_client_that_ends_by_an_error_leaves_nothing(client: Any) -> None:
    process, _, pids = client
    process.send_signal(signal.SIGTERM)  # not handled: no atexit, no finally
    gone(pids)


def _takes(stream: Any) -> bool:
    try:
        return stream.get(0) is not None
    except TimeoutError:
        return False


def _is_lost(future: Any) -> bool:
    try:
        return isinstance(future.exception(0), SupervisorLost)
    except TimeoutError:
        return False


@pytest.mark.parametrize("how", ["done", "exception", "subscription"])
def test_who_only_looks_and_never_waits_hears_of_a_lost_supervisor(how: str) -> None:
    with ProcessWorker(n=1) as w:
        stream = w.subscribe_results() if how == "subscription" else None
        future = w.submit(signal.pause)
        looks: dict[str, Callable[[], bool]] = {
            "done": future.done,
            "exception": lambda: _is_lost(future),
            "subscription": lambda: _takes(stream),
        }
        os.kill(w.processes()["supervisor"], signal.SIGKILL)
        until(looks[how], "it is seen")
        assert _is_lost(future)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen nursery"])
def test_a_lost_supervisor_fails_what_is_pending_and_leaves_nothing(tmp_path: Path, frozen: bool) -> None:
    with ProcessWorker(n=2) as w:
        running = [w.submit(tasks.leave_process_and_block, "daemon", tmp_path / name) for name in ("a", "b")]
        queued = [w.submit(tasks.touch, tmp_path / "queued") for _ in range(10)]
        mapping = w.map(tasks.item, range(100))
        pids = all_pids(w) + [json.loads(told(tmp_path / name))[1] for name in ("a", "b")]
        if frozen:
            stop(pids[1])
        os.kill(pids[0], signal.SIGKILL)
        for future in running + queued:
            error = future.exception(LIMIT)
            assert isinstance(error, SupervisorLost)
            assert future.task_id in str(error)
        with pytest.raises(SupervisorLost):
            next(mapping)
        gone(pids)
        with pytest.raises(SupervisorLost, match=str(pids[0])):
            w.submit(tasks.attempt)
        with pytest.raises(SupervisorLost):
            list(w.map(tasks.item, [1]))
        assert not running[0].cancel()
        assert not w.cancel_task(running[0].task_id)
    assert not (tmp_path / "queued").exists()
    with pytest.raises((SupervisorLost, WorkerStopped)):
        w.submit(tasks.attempt)


def test_a_supervisor_lost_while_somebody_else_reads(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        running = [w.submit(tasks.block, tmp_path / "running") for _ in range(5)]
        told(tmp_path / "running")
        supervisor = w.processes()["supervisor"]
        called = threading.Event()
        running[1].add_done_callback(lambda _: called.set())
        threads = [threading.Thread(target=running[index].exception, args=(LIMIT,)) for index in range(3)]
        for thread in threads:
            thread.start()
        os.kill(supervisor, signal.SIGKILL)
        assert {type(each.exception()) for each in as_completed(running, timeout=LIMIT)} == {SupervisorLost}
        assert called.wait(LIMIT)
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive()


def test_a_supervisor_lost_while_it_drains_is_no_clean_stop(tmp_path: Path) -> None:
    w = ProcessWorker(n=1)
    running = w.submit(tasks.block, tmp_path / "running")
    told(tmp_path / "running")
    supervisor = w.processes()["supervisor"]
    finished: list[bool] = []
    thread = threading.Thread(target=lambda: finished.append(bool(w.stop_graceful())))
    thread.start()
    until(lambda: refuses(w), "the stop has begun")
    os.kill(supervisor, signal.SIGKILL)
    thread.join(LIMIT)
    assert isinstance(running.exception(LIMIT), SupervisorLost)
    assert finished == [False]


def test_a_lost_nursery_costs_what_its_children_ran(tmp_path: Path) -> None:
    with ProcessWorker(n=2) as w:
        known_quick(w, tasks.block, None)
        victim = w.submit(tasks.block, tmp_path / "victim")
        retried = w.options(retries=1).submit(tasks.block_once, tmp_path / "retried")
        neighbours = [w.submit(tasks.block, None) for _ in range(300)]
        pid = int(told(tmp_path / "victim"))
        told(tmp_path / "retried")
        left = w.submit(tasks.leave_process, "daemon")
        nursery = w.processes()["nursery"]
        os.kill(nursery, signal.SIGKILL)
        error = crashed(victim, pid=pid, cause="nursery", attempt=1)
        assert "forks" in str(error)
        assert retried.result(LIMIT) == 2
        assert [neighbour.result(LIMIT) for neighbour in neighbours] == [1] * 300
        assert w.processes()["nursery"] != nursery
        whole(w, 2)
        left.result(LIMIT)


def test_what_a_task_started_dies_with_the_nursery(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        victim = w.submit(tasks.leave_process_and_block, "daemon", tmp_path / "running")
        pids = json.loads(told(tmp_path / "running"))
        os.kill(w.processes()["nursery"], signal.SIGKILL)
        crashed(victim, cause="nursery")
        gone(pids)
        assert w.submit(tasks.attempt).result(LIMIT) == 1


# ------------------------------------------------------------ a nursery that says nothing


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it is stopped."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: "T" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0], f"{pid} is stopped")


def test_a_frozen_nursery_is_replaced_when_a_child_dies(tmp_path: Path) -> None:
    # The old way to find out would be the lease and then kill_timeout: longer than anything here is waited for.
    with ProcessWorker(n=2, lease_ttl=600.0, kill_timeout=600.0) as w:
        known_quick(w, tasks.block, None)
        victim = w.submit(tasks.block, tmp_path / "victim")
        retried = w.options(retries=1).submit(tasks.block_once, tmp_path / "retried")
        pid, other = int(told(tmp_path / "victim")), int(told(tmp_path / "retried"))
        neighbours = [w.submit(tasks.block, None) for _ in range(300)]
        nursery = w.processes()["nursery"]
        stop(nursery)
        os.kill(pid, signal.SIGKILL)
        crashed(victim, pid=pid, signal=signal.SIGKILL, cause="nursery", attempt=1)
        assert retried.result(LIMIT) == 2
        assert [neighbour.result(LIMIT) for neighbour in neighbours] == [1] * 300
        assert w.processes()["nursery"] != nursery
        gone([nursery, pid, other])
        whole(w, 2)


def test_a_nursery_that_freezes_over_an_order_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "freezing_preload.py").write_text(
        "import os, signal\n"
        f"def freeze(path={str(tmp_path / 'frozen')!r}):\n"
        "    if not os.path.exists(path):\n"
        "        with open(path, 'w') as file: file.write(str(os.getpid()))\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "os.register_at_fork(before=freeze)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with ProcessWorker(n=1, preload=["freezing_preload"], start_timeout=600.0) as w:
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        frozen = int((tmp_path / "frozen").read_text())
        assert w.processes()["nursery"] != frozen
        gone([frozen])


def test_a_nursery_that_is_slow_to_report_a_death_changes_nothing(tmp_path: Path) -> None:
    with ProcessWorker(n=2) as w:
        victim = w.submit(tasks.block, tmp_path / "victim")
        pid = int(told(tmp_path / "victim"))
        before = whole(w, 2)
        nursery = w.processes()["nursery"]
        stop(nursery)
        os.kill(pid, signal.SIGSEGV)
        until(lambda: pid not in child_pids(w), "the supervisor sees the death")
        assert not victim.done(), "only the report says how it died"
        behind = [w.submit(tasks.attempt) for _ in range(100)]
        assert [future.result(LIMIT) for future in behind] == [1] * 100
        os.kill(nursery, signal.SIGCONT)
        crashed(victim, pid=pid, signal=signal.SIGSEGV, cause="signal")
        after = whole(w, 2)
        assert w.processes()["nursery"] == nursery
        assert set(before) - set(after) == {pid}


# ------------------------------------------------------------ starts


def fails_to_start(match: str, **options: Any) -> StartFailed:
    with ProcessWorker(n=2, **options) as w:
        future = w.submit(tasks.attempt)
        error = future.exception(LIMIT)
        assert isinstance(error, StartFailed)
        assert match in str(error), str(error)
        with pytest.raises(StartFailed) as refused:
            w.submit(tasks.attempt)
        assert match in str(refused.value)
        with pytest.raises(StartFailed):
            list(w.map(tasks.item, [1]))
    return error


def test_a_preload_that_is_missing() -> None:
    fails_to_start("no_such_module_anywhere", preload=["no_such_module_anywhere"])


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("raise ValueError('this preload is bad')", "this preload is bad"),
        ("import sys; sys.exit('this preload exits')", "this preload exits"),
        ("import os; os._exit(5)", "forks the children"),
        ("import ctypes; ctypes.string_at(0)", "forks the children"),
        ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "bad_preload"),
        ("import time; time.sleep(600)", "start_timeout"),
    ],
    ids=["raises", "exits", "ends", "crashes", "thread", "hangs"],
)
def test_a_preload_that_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, match: str) -> None:
    (tmp_path / "bad_preload.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    fails_to_start(match, preload=["bad_preload"], start_timeout=0.5 if "sleep" in code else LIMIT)


@pytest.mark.parametrize(
    ("initializer", "match"),
    [
        (tasks.init_raise, "this initializer is bad"),
        (tasks.init_exit, "exit code 9"),
        (tasks.segfault, "signal 11"),
        (tasks.init_hang, "start_timeout"),
    ],
    ids=["raises", "ends", "crashes", "hangs"],
)
def test_an_initializer_that_is_bad(initializer: Callable[[], object], match: str) -> None:
    fails_to_start(match, initializer=initializer, start_timeout=0.5 if initializer is tasks.init_hang else LIMIT)


def test_a_child_that_cannot_start_is_not_tried_again_at_once_while_another_serves(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    with ProcessWorker(n=2, initializer=tasks.init_note_and_kill_later_ones, initargs=(tmp_path, path)) as w:
        until(lambda: path.exists() and len(path.read_text().splitlines()) >= 5, "four starts have failed")
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        assert len(child_pids(w)) == 1
    _, *later = [float(line) for line in path.read_text().splitlines()]
    # Each failure doubles the pause; the first two starts are made together.
    for failures, (one, next_) in enumerate(itertools.pairwise(later), start=1):
        assert next_ - one >= 0.025 * 2**failures, f"tried again after {next_ - one} s, {failures} failures in a row"


def test_a_pause_of_the_machine_is_not_taken_from_the_time_to_start(tmp_path: Path) -> None:
    timeout = 2.0
    gate = tmp_path / "gate"
    initargs = (tmp_path, gate)
    with ProcessWorker(
        n=1, lease_ttl=1.0, start_timeout=timeout, initializer=tasks.init_wait_for, initargs=initargs
    ) as w:
        pid = int(told(tmp_path / "started"))
        found = w.processes()
        for each in (found["supervisor"], found["nursery"], pid):
            stop(each)
        end = time.monotonic() + 1.5 * timeout
        until(lambda: time.monotonic() > end, "the pause is over")
        for each in (found["supervisor"], found["nursery"], pid):
            os.kill(each, signal.SIGCONT)
        assert child_pids(w) == []
        tasks.say(gate)
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_children_that_are_killed_before_they_are_ready_end_no_pool(tmp_path: Path) -> None:
    times = _START_FAILURES_MAX + 1
    with ProcessWorker(n=1, initializer=tasks.init_killed, initargs=(tmp_path, times)) as w:
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        assert len(list(tmp_path.iterdir())) == times


def test_children_that_are_killed_for_ever_end_the_pool(tmp_path: Path) -> None:
    with ProcessWorker(n=1, initializer=tasks.end, initargs=("kill",)) as w:
        error = w.submit(tasks.attempt).exception(LIMIT)
        assert isinstance(error, StartFailed)
        assert f"{_START_KILLS_MAX} starts in a row failed, the last one so: child " in str(error)
        assert str(error).endswith("ended by signal 9 before it was ready")


def test_children_that_can_start_no_more_fail_what_is_pending(tmp_path: Path) -> None:
    with ProcessWorker(n=1, initializer=tasks.init_kill_later_ones, initargs=(tmp_path,)) as w:
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        crashed(w.submit(tasks.end, "kill"), cause="signal")
        assert isinstance(w.submit(tasks.attempt).exception(LIMIT), StartFailed)
