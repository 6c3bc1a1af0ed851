"""Containment: whatever a task or its child does, it costs what it must and no more.

Every fault here is real: real signals, real crashes, real processes. `faults_tasks` holds what the children run.
What is not about one task and its child is in `test_faults_*.py`.
"""

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import faults_tasks as tasks
import pytest
from faults import HERE, LIMIT, MB, blocked_with, child_pids, crashed, gone, known_quick, refuses, told, until, whole
from leaks import alive

from mpworker import ProcessWorker
from mpworker.errors import TaskCancelled, TaskExited, TaskNotFound, TaskTimeout
from mpworker.supervisor.burying import bury

# ------------------------------------------------------------ the death of a child


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda each: each.name)
def test_a_killed_child_costs_the_task_it_ran_and_no_other(tmp_path: Path, number: signal.Signals) -> None:
    with ProcessWorker(n=1) as w:
        victim, pid, neighbours = blocked_with(
            w, tmp_path, lambda: [w.submit(tasks.attempt) for _ in range(40)], tasks.attempt
        )
        os.kill(pid, number)
        error = crashed(victim, pid=pid, signal=number, exit_code=None, cause="signal", attempt=1)
        assert number.name in str(error)
        assert victim.task_id in str(error)
        assert [neighbour.result(LIMIT) for neighbour in neighbours] == [1] * 40
        assert whole(w, 1) != [pid]


@pytest.mark.parametrize(
    ("how", "number", "exit_code"),
    [
        ("segv", signal.SIGSEGV, None),
        ("abort", signal.SIGABRT, None),
        ("kill", signal.SIGKILL, None),
        ("exit 0", 0, 0),
        ("exit 3", 0, 3),
    ],
)
def test_a_task_that_ends_its_process_ends_alone(tmp_path: Path, how: str, number: int, exit_code: int | None) -> None:
    with ProcessWorker(n=2) as w:
        known_quick(w, tasks.quick)
        victim = w.submit(tasks.quick, how)
        neighbours = [w.submit(tasks.quick) for _ in range(40)]
        crashed(victim, signal=number, exit_code=exit_code, cause="signal" if number else "exit", attempt=1)
        assert [neighbour.result(LIMIT) for neighbour in neighbours] == [1] * 40
        assert w.options(retries=1).submit(tasks.once, tmp_path / "once", how).result(LIMIT) == 2
        whole(w, 2)


def test_a_task_that_kills_each_child_it_gets_is_given_up(tmp_path: Path) -> None:
    with ProcessWorker(n=2) as w:
        poison = w.options(retries=5, crash_retries=2).submit(tasks.end, "kill")
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        assert "attempt 3" in str(crashed(poison, attempt=3))


@pytest.mark.parametrize(("how", "code"), [("sys.exit", "3"), ("interrupt", "")])
def test_what_would_end_a_program_ends_the_task_alone(how: str, code: str) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        error = w.submit(tasks.end, how).exception(LIMIT)
        assert isinstance(error, TaskExited)
        assert error.code == code
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_a_base_exception_of_a_task_comes_back(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        assert isinstance(w.submit(tasks.end, "base").exception(LIMIT), tasks.Unexpected)
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_endless_recursion_is_an_error_or_a_crash_of_one_task() -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        with pytest.raises(RecursionError):
            w.submit(tasks.recurse).result(LIMIT)
        assert w.submit(os.getpid).result(LIMIT) == pid
        crashed(w.submit(tasks.overflow_stack), signal=signal.SIGSEGV, pid=pid)
        assert w.submit(tasks.attempt).result(LIMIT) == 1


# ------------------------------------------------------------ memory


def _memory_group(limit: int) -> Path:
    """A new memory cgroup below this process's own, or a skip that says why there is none."""
    reasons = []
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for fields in mounts:
        kind = fields[fields.index("-") + 1]
        options = fields[fields.index("-") + 3].split(",")
        for _, controllers, path in own:
            if kind == "cgroup2" and controllers == "":
                names = {"memory.max": limit, "memory.swap.max": 0}
            elif kind == "cgroup" and "memory" in options and "memory" in controllers.split(","):
                names = {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}
            else:
                continue
            point = Path(fields[4])
            for parent in (point / os.path.relpath(path, fields[3]), point):
                group = parent / f"mpworker-test-{os.getpid()}"
                first, swap = names
                try:
                    group.mkdir()
                except OSError as error:
                    reasons.append(f"{group}: {error.strerror}")
                    continue
                try:
                    (group / first).write_text(str(limit))
                    if (group / swap).exists():
                        (group / swap).write_text(str(names[swap]))
                    return group
                except OSError as error:
                    reasons.append(f"{group / first}: {error.strerror}")
                    group.rmdir()
    pytest.skip("no memory cgroup can be made: " + ("; ".join(reasons) or "none is mounted"))


OOM_SCRIPT = """
import json, os, signal, sys
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
sys.path.insert(0, sys.argv[2])
import faults_tasks as tasks
from mpworker import ProcessWorker
with ProcessWorker(n=2) as w:
    supervisor = w.processes()["supervisor"]
    found = []
    for call in ((tasks.end, "kill"), (tasks.eat_memory, 1 << 30), (tasks.end, "kill")):
        error = w.submit(*call).exception(60)
        found.append([error.cause, error.signal, str(error)])
        assert w.submit(tasks.attempt).result(60) == 1
    assert w.processes()["supervisor"] == supervisor
    print(json.dumps(found))
"""


def test_an_oom_kill_is_told_apart_from_any_other() -> None:
    group = _memory_group(300 * MB)
    try:
        run = subprocess.run(
            [sys.executable, "-c", OOM_SCRIPT, group / "cgroup.procs", HERE],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout)
        assert [(cause, number) for cause, number, _ in found] == [("signal", 9), ("oom", 9), ("signal", 9)]
        assert "memory" in found[1][2]
    finally:

        def removed() -> bool:
            try:
                group.rmdir()
            except OSError:  # its last process is not quite gone
                return False
            return True

        until(removed, "the memory cgroup is empty")


# ------------------------------------------------------------ what a task leaves behind


@pytest.mark.parametrize("kind", ["plain", "session", "daemon"])
def test_what_a_task_started_dies_with_its_child(tmp_path: Path, kind: str) -> None:
    with ProcessWorker(n=2) as w:
        spared = w.submit(tasks.leave_process, kind)
        victim = w.submit(tasks.leave_process_and_block, kind, tmp_path / "running")
        child, process = json.loads(told(tmp_path / "running"))
        assert alive(process)
        os.kill(child, signal.SIGKILL)
        crashed(victim, pid=child)
        gone([process])
        left = spared.result(LIMIT)
        if w.processes() and child not in (pid for pid in child_pids(w)):
            assert w.submit(tasks.attempt).result(LIMIT) == 1
    gone([left])


def test_the_group_of_a_dead_child_is_killed_before_its_number_is_free(tmp_path: Path) -> None:
    # At once, and not process by process: what forks as fast as it is looked up cannot get away.
    script = f"{tasks.SLEEP[0]} {tasks.SLEEP[1]} & echo $! >{tmp_path}/left; exit 3"
    leader = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", script], os.environ, setpgroup=0)
    until(lambda: not alive(leader), "the leader is dead")
    left = int((tmp_path / "left").read_text())  # of its group, and nobody's descendant that a look would find
    assert os.waitstatus_to_exitcode(bury(leader)) == 3
    gone([left])


def test_a_child_takes_only_its_own_processes_with_it(tmp_path: Path) -> None:
    with ProcessWorker(n=2) as w:
        for name in ("a", "b"):
            w.submit(tasks.leave_process_and_block, "daemon", tmp_path / name)
        child, process = json.loads(told(tmp_path / "a"))
        _, other = json.loads(told(tmp_path / "b"))
        os.kill(child, signal.SIGKILL)
        gone([process])
        whole(w, 2)
        assert alive(other)
        w.stop_now()
        gone([other])


# ------------------------------------------------------------ leases


def test_a_frozen_child_loses_its_lease(tmp_path: Path) -> None:
    with ProcessWorker(n=1, lease_ttl=1.0) as w:
        victim = w.submit(tasks.block, tmp_path / "first")
        pid = int(told(tmp_path / "first"))
        os.kill(pid, signal.SIGSTOP)
        error = crashed(victim, pid=pid, signal=signal.SIGKILL, cause="lease", attempt=1)
        assert "lease_ttl" in str(error)
        retried = w.options(retries=1).submit(tasks.block_once, tmp_path / "second")
        os.kill(int(told(tmp_path / "second")), signal.SIGSTOP)
        assert retried.result(LIMIT) == 2


def test_a_child_that_froze_before_it_began_costs_no_attempt() -> None:
    with ProcessWorker(n=1, lease_ttl=1.0) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        os.kill(pid, signal.SIGSTOP)
        until(lambda: "T" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0], "it is stopped")
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        assert not alive(pid)


# ------------------------------------------------------------ timeouts

# The time of a child's first task of a module is also that of the module's import.
LOADED = {"preload": [tasks.__name__]}


@pytest.mark.parametrize("task", [tasks.nap_here, tasks.backtrack_here], ids=["sleep", "re"])
def test_a_timeout_interrupts(task: Callable[[], None]) -> None:
    with ProcessWorker(n=1, grace=LIMIT, **LOADED) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        future = w.options(timeout=0.2).submit(task)
        error = future.exception(LIMIT)
        assert isinstance(error, TaskTimeout)
        assert isinstance(error, TimeoutError)
        assert task.__name__ in error.stack
        assert future.task_id in str(error)
        assert w.submit(os.getpid).result(LIMIT) == pid


@pytest.mark.parametrize("task", [tasks.count_here, tasks.swallow_and_go_on], ids=["C", "swallow"])
def test_a_timeout_kills_what_takes_no_interrupt(task: Callable[[], Any]) -> None:
    with ProcessWorker(n=2, grace=0.2, **LOADED) as w:
        before = whole(w, 2)
        late = [w.options(timeout=0.2).submit(task) for _ in range(3)]
        neighbours = [w.submit(tasks.attempt) for _ in range(40)]
        for future in late:
            error = future.exception(LIMIT)
            assert isinstance(error, TaskTimeout)
            assert "killed" in str(error)
        assert w.metrics().crashes == {"grace": 3}
        assert [neighbour.result(LIMIT) for neighbour in neighbours] == [1] * 40
        assert not set(whole(w, 2)) & set(before)


def test_a_value_that_comes_after_the_timeout_changes_nothing() -> None:
    with ProcessWorker(n=1, grace=LIMIT, **LOADED) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        assert isinstance(w.options(timeout=0.2).submit(tasks.swallow_and_return).exception(LIMIT), TaskTimeout)
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_a_timeout_is_retried(tmp_path: Path) -> None:
    with ProcessWorker(n=1, grace=LIMIT, **LOADED) as w:
        assert w.options(timeout=0.2, retries=1).submit(tasks.nap_once, tmp_path / "once").result(LIMIT) == 2


# ------------------------------------------------------------ cancel


@pytest.mark.parametrize("by_id", [False, True], ids=["future", "id"])
def test_a_cancelled_task_that_has_not_begun_never_does(tmp_path: Path, by_id: bool) -> None:
    with ProcessWorker(n=1) as w:

        def cancel(future: Any) -> bool:
            return w.cancel_task(future.task_id) if by_id else future.cancel()

        traces = itertools.count()

        def leave_trace() -> list[Any]:
            return [w.submit(tasks.touch, tmp_path / f"trace-{next(traces)}")]

        running, _, (offered,) = blocked_with(w, tmp_path, leave_trace, tasks.touch, None)
        many = [w.submit(tasks.attempt) for _ in range(500)]  # more than a child has slots for
        queued = w.submit(tasks.touch, tmp_path / "trace-queued")
        for future in (offered, queued):
            assert cancel(future)
            assert future.cancelled()
            with pytest.raises(TaskCancelled):
                future.result(LIMIT)
            assert cancel(future) is (not by_id)  # a task that ended cancelled: as the standard library says
        assert cancel(running)
        assert [future.result(LIMIT) for future in many] == [1] * 500
        assert not list(tmp_path.glob("trace-*"))


def test_cancel_interrupts_a_running_task(tmp_path: Path) -> None:
    with ProcessWorker(n=1, grace=LIMIT) as w:
        future = w.submit(tasks.say_and, tmp_path / "nap", "nap")
        pid = int(told(tmp_path / "nap"))
        assert future.running()
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result(LIMIT)
        assert future.cancelled()
        swallowing = w.submit(tasks.say_and, tmp_path / "swallow", "swallow")
        told(tmp_path / "swallow")
        assert w.cancel_task(swallowing.task_id)
        with pytest.raises(TaskCancelled):  # whatever it returned
            swallowing.result(LIMIT)
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_cancel_kills_what_takes_no_interrupt(tmp_path: Path) -> None:
    with ProcessWorker(n=1, grace=0.2, retries=3) as w:
        future = w.submit(tasks.say_and, tmp_path / "count", "count")
        pid = int(told(tmp_path / "count"))
        neighbours = [w.submit(tasks.attempt) for _ in range(10)]
        assert w.cancel_task(future.task_id)
        with pytest.raises(TaskCancelled):
            future.result(LIMIT)
        assert [neighbour.result(LIMIT) for neighbour in neighbours] == [1] * 10
        assert whole(w, 1) != [pid]
        assert w.metrics().crashes == {"grace": 1}, "nobody takes it for a fault of the task's"
        assert [attempt.cause for attempt in w.get_task(future.task_id).attempts] == ["grace"]


def test_cancel_of_what_has_ended_or_never_was() -> None:
    with ProcessWorker(n=1) as w, ProcessWorker(n=1) as stranger:
        future = w.submit(tasks.echo, 1)
        assert future.result(LIMIT) == 1
        assert not future.cancel()
        assert not w.cancel_task(future.task_id)
        foreign = stranger.submit(tasks.echo, 1)
        prefix = future.task_id.rpartition("-")[0]
        for unknown in (foreign.task_id, "", "7", f"{prefix}-", f"{prefix}-99", f"{prefix}-0", f"{prefix}-²"):
            with pytest.raises(TaskNotFound):
                w.cancel_task(unknown)
        assert foreign.result(LIMIT) == 1


def test_a_chunk_of_a_map_is_no_task_to_cancel(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        results = w.map(tasks.say_id_and_nap, [tmp_path / "id"], return_exceptions=True)
        with pytest.raises(TaskNotFound):
            w.cancel_task(told(tmp_path / "id"))
        w.stop_now()
        assert isinstance(next(results), TaskCancelled)


# ------------------------------------------------------------ descriptors


def test_a_task_that_closes_every_descriptor_is_heard(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        known_quick(w, tasks.attempt)
        closing = w.submit(tasks.close_all)
        neighbours = [w.submit(tasks.attempt) for _ in range(40)]
        assert closing.result(LIMIT) == "closed"
        assert [neighbour.result(LIMIT) for neighbour in neighbours] == [1] * 40
        until(lambda: child_pids(w) not in ([], [pid]), "the child is replaced")


@pytest.mark.parametrize("count", [1, 100])
def test_a_task_that_closes_and_reopens_descriptors_finds_its_files_as_it_left_them(tmp_path: Path, count: int) -> None:
    with ProcessWorker(n=1) as w:
        w.submit(tasks.attempt).result(LIMIT)
        opened = w.submit(tasks.close_all_and_open, tmp_path, count).result(LIMIT)
        assert len(opened) == count
        assert w.submit(tasks.attempt).result(LIMIT) == 1
        whole(w, 1)
    written = [path.name for path in tmp_path.iterdir() if path.stat().st_size]
    assert not written


# ------------------------------------------------------------ forks


def test_a_task_that_forks_and_returns_twice_ends_once() -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        fork = w.submit(tasks.fork_and_return_twice).result(LIMIT)
        gone([fork])
        assert fork != pid
        assert list(w.map(tasks.fork_item, range(10), chunksize=10)) == [number * 10 for number in range(10)]
        assert w.submit(os.getpid).result(LIMIT) == pid


# ------------------------------------------------------------ callbacks


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_callback_that_raises_stops_no_other(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def bad(_: Any) -> None:
        raise error

    called: list[str] = []
    with ProcessWorker(n=1) as w, caplog.at_level(logging.ERROR, logger="concurrent.futures"):
        future = w.submit(tasks.echo, 1)
        future.add_done_callback(lambda _: called.append("before"))
        future.add_done_callback(bad)
        future.add_done_callback(lambda _: called.append("after"))
        later = threading.Event()
        until(lambda: called == ["before", "after"], "the other callbacks are called")
        w.submit(tasks.echo, 2).add_done_callback(lambda _: later.set())
        assert later.wait(LIMIT)
        done, _ = wait([w.submit(tasks.echo, 3)], timeout=LIMIT)
        assert [each.result() for each in done] == [3]
    assert "exception calling callback" in caplog.text
    caplog.clear()  # its records hold the future, and so what it shares with its supervisor


# ------------------------------------------------------------ deaths while the pool drains


def test_a_child_that_dies_while_the_pool_drains_is_replaced(tmp_path: Path) -> None:
    w = ProcessWorker(n=1)
    victims = [w.submit(tasks.block, tmp_path / f"running-{number}") for number in range(2)]
    retried = w.options(retries=1).submit(tasks.once, tmp_path / "once", "kill")
    behind = [w.submit(tasks.attempt) for _ in range(5)]
    thread = threading.Thread(target=w.stop_graceful)
    thread.start()
    try:
        until(lambda: refuses(w), "the stop has begun")
        for number in range(2):
            os.kill(int(told(tmp_path / f"running-{number}")), signal.SIGKILL)
        thread.join(LIMIT)
        assert not thread.is_alive()
        for victim in victims:
            crashed(victim, cause="signal", attempt=1)
        assert retried.result(0) == 2
        assert [future.result(0) for future in behind] == [1] * 5
    finally:
        w.stop_now()
        thread.join(LIMIT)


def test_a_nursery_that_dies_while_the_pool_drains_is_replaced(tmp_path: Path) -> None:
    w = ProcessWorker(n=1)
    victim = w.submit(tasks.block, tmp_path / "running")
    told(tmp_path / "running")
    behind = [w.submit(tasks.attempt) for _ in range(5)]
    nursery = w.processes()["nursery"]
    thread = threading.Thread(target=w.stop_graceful)
    thread.start()
    until(lambda: refuses(w), "the stop has begun")
    os.kill(nursery, signal.SIGKILL)
    thread.join(LIMIT)
    assert not thread.is_alive()
    crashed(victim, cause="nursery")
    assert [future.result(0) for future in behind] == [1] * 5
