"""The end of processes: kill them, reap them, and whatever they leave behind. For supervisor and nursery."""

from __future__ import annotations

import errno
import os
import select
import time

from mpworker.ipc._native import prctl
from mpworker.ipc.signals import signal

_PR_SET_CHILD_SUBREAPER = 36
_STRAY_SECONDS = 2.0  # how long killed strays get to disappear before whoever buries goes on without them
_POLL_MAX = (1 << 31) - 1  # ms


def become_subreaper() -> None:
    """Orphans among this process's descendants become its own children from now on."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def own_children() -> list[int]:
    """The process ids of this (single-threaded) process's children; none if no descriptor is left to look by."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return []
    # A kernel without CONFIG_PROC_CHILDREN.
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    if int(file.read().rpartition(")")[2].split()[1]) == pid:
                        found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def ends(pidfd: int, give_up_at: float) -> bool:
    """Wait until a process is dead, reaped or not; False if it is still there at that time."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(min(max(0.0, give_up_at - time.monotonic()) * 1000, _POLL_MAX)))


def kill_and_reap(pid: int, give_up_at: float) -> None:
    """Kill a child of this process and reap it; one that is still there at that time hangs in the kernel, and stays."""
    try:
        os.kill(pid, signal.SIGKILL)
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:
        pidfd = -1  # no descriptor is left to watch it by
    try:
        while pidfd < 0 and _runs(pid) and time.monotonic() < give_up_at:
            time.sleep(0.001)
        if pidfd >= 0:
            ends(pidfd, give_up_at)
            os.close(pidfd)
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # reaped already: all we want


def _runs(pid: int) -> bool:
    """Is a child of this process neither dead nor reaped?"""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None


def kill_strays(known: set[int]) -> None:
    """Kill and reap every child of this process that is not `known`, and what those leave behind."""
    give_up_at = time.monotonic() + _STRAY_SECONDS
    while strays := [pid for pid in own_children() if pid not in known]:
        for pid in strays:
            kill_and_reap(pid, give_up_at)
        if time.monotonic() > give_up_at:
            return  # an unkillable stray (a hung file system) must not stop the pool; the next death looks again


def bury(pid: int) -> int:
    """Kill the dead child's process group and reap it. Its wait status.

    Raises:
        ChildProcessError: It was reaped before. Its numbers may be somebody else's by now, so nothing was killed.
    """
    _runs(pid)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # no one is left in it
    # `wait4` imports a module for what it tells more, and no descriptor may be left for that.
    return os.waitpid(pid, 0)[1]
