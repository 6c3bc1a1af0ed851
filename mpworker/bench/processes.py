"""The CPU time of processes and threads, from /proc, in nanoseconds: the tick counts of `getrusage` are too coarse.

And their memory.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Usage:
    """What a process has used since its start.

    Attributes:
        cpu_ns: On a core.
        queued_ns: Ready to run, and waiting for a core.
        sleeps: Times it gave up its core, to wait for something.
    """

    cpu_ns: int = 0
    queued_ns: int = 0
    sleeps: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.cpu_ns + other.cpu_ns, self.queued_ns + other.queued_ns, self.sleeps + other.sleeps)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.cpu_ns - other.cpu_ns, self.queued_ns - other.queued_ns, self.sleeps - other.sleeps)


def usage_of_thread(pid: int, tid: int) -> Usage:
    """Of one thread; nothing if it has ended."""
    folder = f"/proc/{pid}/task/{tid}"
    try:
        with open(f"{folder}/schedstat") as file:
            cpu_ns, queued_ns, _ = map(int, file.read().split())
        with open(f"{folder}/status") as file:
            sleeps = next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    except (FileNotFoundError, ProcessLookupError):
        return Usage()
    return Usage(cpu_ns, queued_ns, sleeps)


def threads_of(pid: int) -> set[int]:
    """The threads of a process; none if it has ended."""
    try:
        return {int(tid) for tid in os.listdir(f"/proc/{pid}/task")}
    except FileNotFoundError:
        return set()


def usage_of(pid: int) -> Usage:
    """Of all threads of a process."""
    total = Usage()
    for tid in threads_of(pid):
        total += usage_of_thread(pid, tid)
    return total


def pss_of(pid: int) -> int:
    """Bytes of memory of a process: its own, and its share of what it has in common with others."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))


def own_usage() -> Usage:
    """Of the calling thread."""
    return usage_of_thread(os.getpid(), threading.get_native_id())


class Watched:
    """Whatever a pool has started: the processes below this one, and the threads in it. Make it before the pool."""

    def __init__(self) -> None:
        self._pids = _descendants()
        self._tids = threads_of(os.getpid())
        self._mine: tuple[set[int], set[int]] = set(), set()

    def settle(self) -> None:
        """What is new by now is the pool's."""
        self._mine = _descendants() - self._pids, threads_of(os.getpid()) - self._tids

    def usage(self) -> Usage:
        """Of the pool's processes and threads together."""
        pids, tids = self._mine
        total = Usage()
        for pid in pids:
            total += usage_of(pid)
        for tid in tids:
            total += usage_of_thread(os.getpid(), tid)
        return total


@dataclass
class Cpu:
    """CPU time of this process and all that it has started; `seconds` is there once the block is left."""

    seconds: float = 0.0


@contextmanager
def cpu_used() -> Iterator[Cpu]:
    """Within this block: user code and kernel, of this process and of all below it that are there at its end."""
    found = Cpu()
    before, own = {pid: usage_of(pid).cpu_ns for pid in _descendants()}, time.process_time_ns()
    yield found
    own = time.process_time_ns() - own  # and not the sum of its threads, some of which may have ended
    below = sum(usage_of(pid).cpu_ns - before.get(pid, 0) for pid in _descendants())
    found.seconds = (own + max(0, below)) / 1e9


def pss_of_all() -> int:
    """Bytes of memory of this process and all below it."""
    total = 0
    for pid in _descendants() | {os.getpid()}:
        try:
            total += pss_of(pid)
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
    return total


def _descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}
