"""Containment: whatever a task, a child or a whole process does, it costs what it must and no more.

Every fault here is real: real signals, real crashes, real processes. `faults_tasks` holds what the children run.
"""

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, as_completed, wait
from pathlib import Path
from typing import Any

import faults_tasks as tasks
import pytest
from leaks import alive, wait_until

from mpworker import ProcessWorker
from mpworker.errors import (
    SerializationError,
    StartFailed,
    SupervisorLost,
    TaskCancelled,
    TaskExited,
    TaskNotFound,
    TaskTimeout,
    WorkerCrashed,
    WorkerStopped,
)
from mpworker.supervisor.nursery import bury
from mpworker.supervisor.nursing import _START_FAILURES_MAX, _START_KILLS_MAX

HERE = Path(__file__).parent
LIMIT = 60.0  # seconds: a guard against a hang, never a measure
LINGER = 10.0  # seconds: ten times what is promised, for a machine that is busy
MB = 1 << 20


# ------------------------------------------------------------ helpers


def until(condition: Callable[[], object], what: str) -> None:
    assert wait_until(lambda: bool(condition()), LIMIT), f"not within {LIMIT} s: {what}"


def told(path: Path) -> str:
    """What a task wrote, once it has."""
    until(path.exists, f"{path.name} is written")
    return path.read_text()


def gone(pids: Iterable[int]) -> None:
    pids = list(pids)
    assert wait_until(lambda: not any(map(alive, pids)), LINGER), f"alive: {[pid for pid in pids if alive(pid)]}"


def child_pids(w: ProcessWorker) -> list[int]:
    return [child["pid"] for child in w.processes()["children"] if child["ready"]]


def whole(w: ProcessWorker, n: int) -> list[int]:
    """The children's pids, once all of them are ready."""
    until(lambda: len(child_pids(w)) == n, f"{n} children are ready")
    return child_pids(w)


def all_pids(w: ProcessWorker) -> list[int]:
    report = w.processes()
    return [report["supervisor"], report["nursery"], *(child["pid"] for child in report["children"])]


def offers(w: ProcessWorker) -> list[int]:
    """How many offers each child holds, what was submitted before this call included."""
    return [child["offers"] for child in w.processes()["children"]]


def known_quick(w: ProcessWorker, function: Callable[..., Any], *args: Any) -> None:
    """Let the supervisor measure a function, so that it offers its calls ahead of need."""
    for _ in range(200):
        w.submit(function, *args).result(LIMIT)


def blocked_with(
    w: ProcessWorker, folder: Path, others: Callable[[], list[Any]], quick: Callable[..., Any], *args: Any
) -> tuple[Any, int, list[Any]]:
    """A task that blocks the only child, that child's pid, and other tasks that wait in the child's ring behind it.

    `others` submits them: calls of `quick`, which with `args` is. What was measured as quick may not be seen as such
    on a busy machine: then it is done again.
    """
    for number in range(20):
        known_quick(w, tasks.block, None)
        known_quick(w, quick, *args)
        running = folder / f"running-{number}"
        blocked = w.submit(tasks.block, running)
        behind = others()
        pid = int(told(running))
        if offers(w)[0] > 1:
            return blocked, pid, behind
        for future in (*behind, blocked):  # in this order: none of them begins
            future.cancel()
    pytest.fail("nothing was ever offered ahead of need")


def crashed(future: Any, **expected: Any) -> WorkerCrashed:
    error = future.exception(LIMIT)
    assert isinstance(error, WorkerCrashed), repr(error)
    assert isinstance(error, BrokenExecutor)
    for name, value in expected.items():
        assert getattr(error, name) == value, f"{name} is {getattr(error, name)!r}: {error}"
    return error


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


@pytest.mark.parametrize("task", [tasks.nap_here, tasks.backtrack_here], ids=["sleep", "re"])
def test_a_timeout_interrupts(task: Callable[[], None]) -> None:
    with ProcessWorker(n=1, grace=LIMIT) as w:
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
    with ProcessWorker(n=2, grace=0.2) as w:
        before = whole(w, 2)
        late = [w.options(timeout=0.2).submit(task) for _ in range(3)]
        neighbours = [w.submit(tasks.attempt) for _ in range(40)]
        for future in late:
            error = future.exception(LIMIT)
            assert isinstance(error, TaskTimeout)
            assert "killed" in str(error)
        assert [neighbour.result(LIMIT) for neighbour in neighbours] == [1] * 40
        assert not set(whole(w, 2)) & set(before)


def test_a_value_that_comes_after_the_timeout_changes_nothing() -> None:
    with ProcessWorker(n=1, grace=LIMIT) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        assert isinstance(w.options(timeout=0.2).submit(tasks.swallow_and_return).exception(LIMIT), TaskTimeout)
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_a_timeout_is_retried(tmp_path: Path) -> None:
    with ProcessWorker(n=1, grace=LIMIT) as w:
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
    with ProcessWorker(n=1, initializer=tasks.limit_memory, initargs=(150 * MB,)) as w:
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


# ------------------------------------------------------------ items of a map


def mapped(w: Any, function: Callable[..., Any], values: list[Any], chunksize: int = 20) -> list[Any]:
    return list(w.map(function, values, chunksize=chunksize, return_exceptions=True))


def only(results: list[Any], at: int) -> Any:
    """Every result but one is right; that one."""
    right = [index * 10 for index in range(len(results))]
    wrong = [index for index, result in enumerate(results) if result != right[index]]
    assert wrong == [at], {index: results[index] for index in wrong}
    return results[at]


def numbers(guilty: Any, at: int = 30, count: int = 60) -> list[Any]:
    return [*range(at), guilty, *range(at + 1, count)]


@pytest.mark.parametrize("how", ["kill", "segv", "exit 3"])
def test_a_crash_in_a_chunk_costs_one_item(how: str) -> None:
    with ProcessWorker(n=2) as w:
        error = only(mapped(w, tasks.slow_item, numbers(how)), 30)
        assert isinstance(error, WorkerCrashed)
        assert error.cause == ("exit" if how == "exit 3" else "signal")
        assert error.attempt == 1
        assert "item 30" in str(error)


def test_results_that_died_with_the_child_are_called_lost_or_made_again(tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        results = mapped(w, tasks.item, numbers("kill"))
        assert isinstance(results[30], WorkerCrashed)
        assert results[30].cause == "signal"
        for index, result in enumerate(results):
            if index != 30 and result != index * 10:
                assert 20 <= index < 30, "only what came before it in its chunk can be lost"
                assert isinstance(result, WorkerCrashed)
                assert result.cause == "lost"
        values = [(tmp_path / ("guilty" if index == 30 else "innocent"), index) for index in range(60)]
        again = mapped(w.options(crash_retries=1), tasks.item_once, values)
        assert again == [index * 10 for index in range(60)]


def test_a_crash_in_a_chunk_is_raised_at_its_item() -> None:
    with ProcessWorker(n=1) as w:
        results = w.map(tasks.slow_item, numbers("kill"), chunksize=20)
        assert list(itertools.islice(results, 30)) == [index * 10 for index in range(30)]
        with pytest.raises(WorkerCrashed, match="item 30"):
            next(results)
        assert not list(results)
        assert w.submit(tasks.attempt).result(LIMIT) == 1


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raise", SerializationError),
        ("sys.exit", SerializationError),
        ("exit 3", WorkerCrashed),
        ("segv", WorkerCrashed),
    ],
)
def test_an_item_that_cannot_be_unpickled_is_the_only_one_that_suffers(how: str, expected: type) -> None:
    with ProcessWorker(n=2) as w:
        error = only(mapped(w, tasks.item, numbers(tasks.OnLoad(how))), 30)
        assert type(error) is expected
        with pytest.raises(expected):
            list(w.map(tasks.item, numbers(tasks.OnLoad(how)), chunksize=20))
        assert w.submit(tasks.attempt).result(LIMIT) == 1


@pytest.mark.parametrize("how", ["nap", "swallow", "count"])
def test_a_timeout_is_per_item(how: str) -> None:
    with ProcessWorker(n=2, grace=0.5 if how == "count" else LIMIT) as w:
        view = w.options(timeout=0.5)
        error = only(mapped(view, tasks.slow_item, numbers(how)), 30)
        assert isinstance(error, TaskTimeout)
        if how == "nap":
            assert "nap_here" in error.stack
        with pytest.raises(TaskTimeout, match="item 3 "):
            list(view.map(tasks.slow_item, numbers(how, at=3, count=6), chunksize=6))


def test_an_item_that_ends_before_its_interrupt_arrives_is_late_all_the_same() -> None:
    with ProcessWorker(n=1, grace=LIMIT) as w:
        results = list(w.options(timeout=0.5).map(tasks.deaf_item, range(5), chunksize=5, return_exceptions=True))
        assert isinstance(results[2], TaskTimeout), results
        assert results[:2] + results[3:] == [0, 10, 30, 40]


def test_an_item_whose_unpickling_takes_too_long_is_late_alone() -> None:
    with ProcessWorker(n=1, grace=LIMIT) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        view = w.options(timeout=0.3)
        error = only(mapped(view, tasks.item, numbers(tasks.SlowLoad(), at=2, count=4)), 2)
        assert isinstance(error, TaskTimeout)
        assert isinstance(view.submit(tasks.echo, tasks.SlowLoad()).exception(LIMIT), TaskTimeout)
        assert w.submit(os.getpid).result(LIMIT) == pid


@pytest.mark.parametrize(
    ("how", "expected", "name"),
    [
        ("on dump", SerializationError, "faults_tasks.OnDump"),
        ("needs two", tasks.NeedsTwoError, "a b"),
        ("mute", tasks.MuteError, ""),
        ("raise", ValueError, "on purpose"),
        ("sys.exit", TaskExited, "SystemExit"),
    ],
)
def test_an_item_that_fails_fails_alone(how: str, expected: type, name: str) -> None:
    with ProcessWorker(n=1) as w:
        pid = w.submit(os.getpid).result(LIMIT)
        error = only(mapped(w, tasks.item, numbers(how)), 30)
        assert type(error) is expected
        assert not name or name in str(error)
        with pytest.raises(expected):
            list(w.map(tasks.item, numbers(how), chunksize=20))
        assert w.submit(os.getpid).result(LIMIT) == pid


def test_a_result_of_an_item_that_cannot_be_unpickled_here_costs_at_most_its_run() -> None:
    with ProcessWorker(n=1) as w:
        guilty = tasks.OnLoadIn(os.getpid(), "raise")
        results = mapped(w, tasks.echo, numbers(tasks.Wrapped(guilty)), chunksize=10)
        assert isinstance(results[30], SerializationError)
        for index in (*range(30), *range(40, 60)):
            assert results[index] == index
        for index in range(31, 40):  # what was sent back together cannot be told apart
            assert results[index] == index or isinstance(results[index], SerializationError)
        assert w.submit(tasks.attempt).result(LIMIT) == 1


def test_an_item_that_cannot_be_pickled_is_the_callers_error() -> None:
    with ProcessWorker(n=1) as w:
        results = w.map(tasks.item, numbers(tasks.OnDump("raise"), at=3, count=6), chunksize=1)
        assert list(itertools.islice(results, 3)) == [0, 10, 20]
        with pytest.raises(SerializationError):
            next(results)
        assert w.submit(tasks.attempt).result(LIMIT) == 1


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
    until(lambda: _refuses(w), "the stop has begun")
    os.kill(supervisor, signal.SIGKILL)
    thread.join(LIMIT)
    assert isinstance(running.exception(LIMIT), SupervisorLost)
    assert finished == [False]


def _refuses(w: ProcessWorker) -> bool:
    try:
        w.submit(tasks.attempt)
    except (WorkerStopped, SupervisorLost):
        return True
    return False


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


# ------------------------------------------------------------ deaths while the pool drains


def test_a_child_that_dies_while_the_pool_drains_is_replaced(tmp_path: Path) -> None:
    w = ProcessWorker(n=1)
    victims = [w.submit(tasks.block, tmp_path / f"running-{number}") for number in range(2)]
    retried = w.options(retries=1).submit(tasks.once, tmp_path / "once", "kill")
    behind = [w.submit(tasks.attempt) for _ in range(5)]
    thread = threading.Thread(target=w.stop_graceful)
    thread.start()
    try:
        until(lambda: _refuses(w), "the stop has begun")
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
    until(lambda: _refuses(w), "the stop has begun")
    os.kill(nursery, signal.SIGKILL)
    thread.join(LIMIT)
    assert not thread.is_alive()
    crashed(victim, cause="nursery")
    assert [future.result(0) for future in behind] == [1] * 5


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
    with ProcessWorker(n=2, preload=["short_of_memory"]) as w:
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
    with ProcessWorker(n=1, retries=1) as w:
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
    with ProcessWorker(n=1, grace=LIMIT) as w:
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
