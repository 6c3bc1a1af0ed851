"""What a test may not leave behind: processes, files in shared memory, open descriptors.

A product that promises a clean end is checked for one after every test. Three difficulties shape this file:

- A process that lost its parent is no longer a descendant of the test process. Every process started by exec inherits
  an environment variable unique to this test process, and is found by it in /proc.
- Tests run side by side, and so do strangers. A new file in /dev/shm that another live process holds is theirs.
- A fixture of wider scope may own a pool across tests. What is there when a test begins, and what that starts later,
  is not the test's.
"""

import gc
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

MARK = "MPWORKER_TEST_PROCESS"
# Seconds. An end that is asynchronous by design (a supervisor noticing that its client is gone) takes below 1 s.
GRACE = 2.0
EXEC_LOOKS = 50  # a millisecond from one to the next, in which an exec is over
SHM = Path("/dev/shm")
# What other pools leave there for a while, which benchmarks beside the tests may run. Nothing of ours has a
# name at all.
STRANGERS = ("sem.loky-", "joblib_memmapping_folder_")
# Libraries open such a file once and keep it (/dev/urandom, /dev/null, a log). A file object of ours that is not
# closed raises ResourceWarning, which is an error already. For all other kinds, the ones a pool opens, none may stay.
PLAIN_FILES_MAX = 2


@dataclass(frozen=True)
class Snapshot:
    """What exists at one moment."""

    processes: frozenset[psutil.Process]
    shm: frozenset[str]
    fds: Counter[str]


def begin_session() -> None:
    """Mark this process's descendants, and start now what the standard library would start in some test and keep."""
    os.environ[MARK] = uuid.uuid4().hex
    resource_tracker.ensure_running()


def snapshot() -> Snapshot:
    """Look at the world as it is now."""
    shm = frozenset(name for name in os.listdir(SHM) if not name.startswith(STRANGERS))
    return Snapshot(frozenset(_processes()), shm, descriptors(os.getpid()))


def leaks_since(before: Snapshot) -> list[str]:
    """Wait until nothing new is left, at most GRACE seconds; return a line for each thing that stays."""
    found: list[str] = []

    def clean() -> bool:
        found[:] = _compare(before, snapshot())
        return not found

    # A descriptor held by a dead cycle (an exception and its frames) is not leaked, only not yet collected.
    if not clean():
        gc.collect()
        wait_until(clean, GRACE)
    return found


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll `condition` until it holds; return whether it did within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def alive(pid: int) -> bool:
    """Does the process run? A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _compare(before: Snapshot, after: Snapshot) -> list[str]:
    lines = [
        f"process {_describe(process)}" for process in after.processes - before.processes if not _owned(process, before)
    ]
    lines += [f"file {SHM / name}" for name in after.shm - before.shm if not _held_by_another(SHM / name)]
    for kind, count in after.fds.items():
        more = count - before.fds[kind]
        if more > (PLAIN_FILES_MAX if kind == "file" else 0):
            lines.append(f"{more} more open descriptor(s) of kind {kind}")
    return sorted(lines)


def _processes() -> set[psutil.Process]:
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = set(psutil.Process().children(recursive=True))
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and int(entry) != os.getpid() and mark in _environment(entry):
                found.add(psutil.Process(int(entry)))
        except (OSError, psutil.NoSuchProcess):  # it ended meanwhile, or it is another user's
            continue
    return found


def _environment(pid: str) -> bytes:
    """What a process was started with.

    In the middle of an exec there is nothing to be seen of it: a process that is about to be another program would be
    missed. Kernel threads and zombies have none for ever, and no program either.
    """
    for _ in range(EXEC_LOOKS):
        found = _read(f"/proc/{pid}/environ")
        if found:
            return found
        os.readlink(f"/proc/{pid}/exe")
        time.sleep(0.001)
    return b""


def _owned(process: psutil.Process, before: Snapshot) -> bool:
    try:
        return any(parent in before.processes for parent in process.parents())
    except psutil.NoSuchProcess:  # psutil says so of a zombie too
        return not process.is_running()


def _describe(process: psutil.Process) -> str:
    try:
        if (status := process.status()) == psutil.STATUS_ZOMBIE:
            return f"{process.pid} ({status}): {process.name()}, not waited for"
        return f"{process.pid} ({status}): {' '.join(process.cmdline()) or process.name()}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (gone now)"


def _held_by_another(path: Path) -> bool:
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            if f"{path}\n".encode() in _read(f"/proc/{entry}/maps"):
                return True
            with os.scandir(f"/proc/{entry}/fd") as links:  # closed, though the search may end early
                if any(os.readlink(link.path) == str(path) for link in links):
                    return True
        except OSError:  # it ended meanwhile, or it is another user's
            continue
    return not path.exists()


def descriptor_targets(pid: int) -> dict[int, str]:
    """What each open descriptor of a process leads to."""
    targets = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            targets[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return targets


def descriptors(pid: int) -> Counter[str]:
    """How many open descriptors of each kind a process has."""
    kinds: Counter[str] = Counter()
    for target in descriptor_targets(pid).values():
        if target.startswith("/memfd:"):
            kinds["memfd"] += 1
        elif target.startswith("/"):
            kinds["file"] += 1
        else:
            # "socket:[4711]" and "pipe:[4712]" are numbered; "anon_inode:[eventfd]" names its kind.
            prefix, _, rest = target.partition(":")
            kinds[rest.strip("[]") if prefix == "anon_inode" else prefix] += 1
    return kinds


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
