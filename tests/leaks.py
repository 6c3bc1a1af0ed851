"""What a test may not leave behind: processes, files in shared memory, open descriptors.

A product that promises a clean end is checked for one after every test. Four difficulties shape this file:

- A process that lost its parent is no longer a descendant of the test process. Every process started by exec inherits
  an environment variable unique to this test process, and is found by it in /proc.
- In the middle of an exec a process has no environment to be seen. It is neither taken for a stranger nor for one of
  the test's: what is known of it at the next look counts, and until then the check is not over.
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
SHM = Path("/dev/shm")
# What other pools leave there for a while, which benchmarks beside the tests may run. Nothing of ours has a
# name at all.
STRANGERS = ("sem.loky-", "joblib_memmapping_folder_")
# Libraries open such a file once and keep it (/dev/urandom, /dev/null, a log). A file object of ours that is not
# closed raises ResourceWarning, which is an error already. For all other kinds, the ones a pool opens, none may stay.
PLAIN_FILES_MAX = 2


@dataclass(frozen=True)
class Snapshot:
    """What exists at one moment.

    Attributes:
        processes: Those of this test process.
        nameless: Those of which nobody can tell: in the middle of an exec, or with no environment at all.
    """

    processes: frozenset[psutil.Process]
    nameless: frozenset[psutil.Process]
    shm: frozenset[str]
    fds: Counter[str]


def begin_session() -> None:
    """Mark this process's descendants, and start now what the standard library would start in some test and keep."""
    os.environ[MARK] = uuid.uuid4().hex
    resource_tracker.ensure_running()


def snapshot() -> Snapshot:
    """Look at the world as it is now."""
    shm = frozenset(name for name in os.listdir(SHM) if not name.startswith(STRANGERS))
    return Snapshot(*_processes(), shm, descriptors(os.getpid()))


def leaks_since(before: Snapshot) -> list[str]:
    """Wait until nothing new is left, at most GRACE seconds; return a line for each thing that stays."""
    found: list[str] = []

    def clean() -> bool:
        after = snapshot()
        found[:] = _compare(before, after)
        return not found and not _new(before, after.nameless)

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
    lines = [f"process {_describe(process)}" for process in _new(before, after.processes)]
    lines += [f"file {SHM / name}" for name in after.shm - before.shm if not _held_by_another(SHM / name)]
    for kind, count in after.fds.items():
        more = count - before.fds[kind]
        if more > (PLAIN_FILES_MAX if kind == "file" else 0):
            lines.append(f"{more} more open descriptor(s) of kind {kind}")
    return sorted(lines)


def _new(before: Snapshot, processes: frozenset[psutil.Process]) -> list[psutil.Process]:
    """Those that were not there, and are of none that was."""
    return [each for each in processes - before.processes - before.nameless if not _owned(each, before)]


def _processes() -> tuple[frozenset[psutil.Process], frozenset[psutil.Process]]:
    """Ours, and the nameless."""
    ours, nameless = set(psutil.Process().children(recursive=True)), set()
    for entry in os.listdir("/proc"):
        try:
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            is_ours = has_our_mark(int(entry))
            if is_ours is None:
                nameless.add(psutil.Process(int(entry)))
            elif is_ours:
                ours.add(psutil.Process(int(entry)))
        except (OSError, psutil.NoSuchProcess):  # it ended meanwhile, or it is another user's
            continue
    return frozenset(ours), frozenset(nameless - ours)


def has_our_mark(pid: int) -> bool | None:
    """Is a process one of this test process's? None if it has no environment now.

    Raises:
        OSError: It is gone, another user's, or no program: kernel threads and zombies are none.
    """
    environment = _read(f"/proc/{pid}/environ")
    if not environment:
        os.readlink(f"/proc/{pid}/exe")
        return None
    return f"{MARK}={os.environ[MARK]}".encode() in environment


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
