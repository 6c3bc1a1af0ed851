"""What the tests of faults wait for and look at; `faults_tasks` holds what their children run."""

from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import faults_tasks as tasks
import pytest
from leaks import alive, wait_until

from mpworker import ProcessWorker
from mpworker.errors import SupervisorLost, WorkerCrashed, WorkerStopped

HERE = Path(__file__).parent
LIMIT = 60.0  # seconds: a guard against a hang, never a measure
LINGER = 10.0  # seconds: ten times what is promised, for a machine that is busy
MB = 1 << 20


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


def refuses(w: ProcessWorker) -> bool:
    """Takes it no more tasks?"""
    try:
        w.submit(tasks.attempt)
    except (WorkerStopped, SupervisorLost):
        return True
    return False
