"""What the campaigns run in children, and the log that says what really happened there.

Each attempt writes one small record when it begins and one when it ends, by one `write` to a file opened for appending:
a record is whole or absent, and a SIGKILL right after it does not take it back.
"""

import os
import signal
import struct
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import mpworker

RECORD = struct.Struct("<qiiii")  # CLOCK_MONOTONIC ns, pid, task, attempt, BEGIN or END
BEGIN, END = 1, 2
_open: dict[str, int] = {}


def _log(path: str, task: int, event: int) -> None:
    fd = _open.get(path)
    if fd is None:
        fd = _open[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.write(fd, RECORD.pack(time.monotonic_ns(), os.getpid(), task, mpworker.current().attempt, event))


def quick(path: str, task: int) -> int:
    _log(path, task, BEGIN)
    _log(path, task, END)
    return task * 3


def slow(path: str, task: int, busy_ns: int) -> int:
    _log(path, task, BEGIN)
    until = time.monotonic_ns() + busy_ns
    while time.monotonic_ns() < until:
        pass
    _log(path, task, END)
    return task * 3


def work(path: str, task: int, busy_ns: int) -> int:
    """As slow, but another function to the pool."""
    return slow(path, task, busy_ns)


def item(path: str, task: int, busy_ns: int, deadly: int) -> int:
    """An item of a map; the deadly one kills its child on its first attempt."""
    _log(path, task, BEGIN)
    until = time.monotonic_ns() + busy_ns
    while time.monotonic_ns() < until:
        pass
    if task == deadly and mpworker.current().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    _log(path, task, END)
    return task * 3


def hold(begun: str, gate: str) -> str:
    """Run until the gate exists."""
    Path(begun).touch()
    while not os.path.exists(gate):
        time.sleep(0.002)
    return "held"


def wait_for_gate(gate: str) -> str:
    while gate and not os.path.exists(gate):
        time.sleep(0.002)
    return gate


def late_square(value: int) -> int:
    time.sleep(0.003)
    return value * value


def square(value: int) -> int:
    return value * value


def attempt_of(value: int) -> tuple[int, int]:
    return value, mpworker.current().attempt


def grow(value: int, size: int) -> bytes:
    return value.to_bytes(4, "little") * (size // 4)


def size_of(data: bytes) -> tuple[int, int]:
    """Length and sum: a payload that was mixed with another one has neither."""
    return len(data), sum(data)


def pause(seconds: float, value: int) -> tuple[int, int]:
    time.sleep(seconds)
    return value, mpworker.current().attempt


def raises(value: int) -> None:
    raise ValueError(value)


@dataclass(frozen=True)
class Run:
    """One attempt, as the log has it; `end_ns` is 0 if it did not get there."""

    pid: int
    task: int
    attempt: int
    begin_ns: int
    end_ns: int


def read_log(path: Path) -> dict[int, list[Run]]:
    """All attempts of each task, in the order of their beginning."""
    begun: dict[tuple[int, int], tuple[int, int]] = {}  # by child and task
    runs: dict[int, list[Run]] = defaultdict(list)
    data = path.read_bytes() if path.exists() else b""
    assert len(data) % RECORD.size == 0
    for at_ns, pid, task, attempt, event in RECORD.iter_unpack(data):
        if event == BEGIN:
            assert (pid, task) not in begun, f"task {task} began twice in child {pid}"
            begun[pid, task] = (attempt, at_ns)
        else:
            attempt_begun, begin_ns = begun.pop((pid, task))
            assert attempt_begun == attempt
            runs[task].append(Run(pid, task, attempt, begin_ns, at_ns))
    for (pid, task), (attempt, begin_ns) in begun.items():
        runs[task].append(Run(pid, task, attempt, begin_ns, 0))
    for each in runs.values():
        each.sort(key=lambda run: run.begin_ns)
    return runs
