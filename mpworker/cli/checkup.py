"""What a pool needs of a machine: one check for each need, with what was found and how to mend it."""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from mpworker.cgroups import available_cores, process_limit, usable_memory
from mpworker.launch import descriptors_of
from mpworker.planning.results import BASE_BYTES, CHILD_BYTES

__all__ = ["Finding", "checkup"]

State = Literal["ok", "note", "bad"]

KERNEL: Final = (5, 6)
MEMORY_LOW: Final = 256 << 20
TRIAL_TASKS: Final = 200
TRIAL_SECONDS: Final = 30.0
# Of the extras of this package: what each brings, and what for.
EXTRAS: Final = {
    "blas": ("threadpoolctl", "bounds the threads of BLAS and OpenMP in children"),
    "bench": ("loky", "what `mpworker bench` compares with"),
}


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes:
        name: Of what was looked at.
        state: "bad" where a pool will not start, "note" where it does less than it could.
        found: What is there.
        advice: How to mend it, or what it means; empty where all is well.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def checkup(cores: int | None = None) -> Iterator[Finding]:
    """Look at everything; the trial, which starts a pool, comes last.

    Args:
        cores: Children that a pool is to have; None for as many as this process may use cores.
    """
    n = cores or available_cores()
    yield _kernel(platform.release())
    yield _python()
    yield from _calls()
    yield _cores()
    yield _memory(usable_memory())
    yield _descriptors(n, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield _processes(n)
    yield from _bounds()
    yield _overcommit(_setting("vm/overcommit_memory"))
    yield from _extras()
    yield _trial(n)


def _setting(name: str) -> str:
    """A setting of the kernel; empty if it has none of that name."""
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


def _kernel(release: str) -> Finding:
    numbers = [int(part) for part in release.split("-", maxsplit=1)[0].split(".")[:2] if part.isdigit()]
    if tuple(numbers) < KERNEL:
        return Finding("kernel", "bad", release, f"Linux {KERNEL[0]}.{KERNEL[1]} or later is needed, for pidfds")
    return Finding("kernel", "ok", release)


def _python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}"
    if platform.python_implementation() != "CPython":
        return Finding("python", "bad", found, "CPython is needed")
    return Finding("python", "ok", found)


def _calls() -> Iterator[Finding]:
    """What the kernel, or a filter of system calls, may refuse."""

    def memfd() -> None:
        fd = os.memfd_create("mpworker-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, 4096)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        finally:
            os.close(fd)

    def pidfd() -> None:
        os.close(os.pidfd_open(os.getpid()))

    def proc() -> None:
        os.readlink("/proc/self/exe")
        os.listdir("/proc/self/fd")

    yield _try("shared memory", memfd, "memfd_create", "allow memfd_create and sealing in the filter of system calls")
    yield _try("pidfds", pidfd, "pidfd_open", "allow pidfd_open in the filter of system calls")
    yield _try("/proc", proc, "mounted", "mount /proc")


def _try(name: str, call: Callable[[], None], found: str, advice: str) -> Finding:
    try:
        call()
    except (OSError, AttributeError) as error:
        return Finding(name, "bad", f"{found}: {error}", advice)
    return Finding(name, "ok", found)


def _cores() -> Finding:
    mine, machine, may = available_cores(), os.cpu_count() or 1, len(os.sched_getaffinity(0))
    if mine < may:
        return Finding("cores", "note", f"{mine} of {may}", "the cgroup has a quota of CPU time (cpu.max)")
    if may < machine:
        return Finding("cores", "note", f"{may} of {machine}", "an affinity mask (taskset, cpuset) keeps this to some")
    return Finding("cores", "ok", str(mine))


def _memory(usable: int) -> Finding:
    found = f"{usable / (1 << 30):.1f} GiB"
    if usable < MEMORY_LOW:
        own = f"{BASE_BYTES >> 20} MiB, and {CHILD_BYTES >> 20} MiB for each child"
        return Finding("memory", "note", found, f"a pool takes some {own}, before your tasks")
    return Finding("memory", "ok", found)


def _descriptors(n: int, hard: int) -> Finding:
    needed = descriptors_of(n)
    found = "no limit" if hard == resource.RLIM_INFINITY else f"{hard} (RLIMIT_NOFILE), {needed} for n={n}"
    if hard != resource.RLIM_INFINITY and hard < needed:
        return Finding("descriptors", "bad", found, "raise the hard limit: ulimit -Hn, or LimitNOFILE= of the unit")
    return Finding("descriptors", "ok", found)


def _processes(n: int) -> Finding:
    limits = {"RLIMIT_NPROC": resource.getrlimit(resource.RLIMIT_NPROC)[1], "pids.max of the cgroup": process_limit()}
    bounds = {name: limit for name, limit in limits.items() if limit is not None and limit != resource.RLIM_INFINITY}
    found = ", ".join(f"{limit} ({name})" for name, limit in bounds.items()) or "no limit"
    # Each child has a second thread, for its heartbeat.
    if any(limit < 2 * n + 3 for limit in bounds.values()):
        return Finding(
            "processes", "bad", found, f"n={n} children have two threads each, and there are two processes more"
        )
    return Finding("processes", "ok", found)


def _bounds() -> Iterator[Finding]:
    for name, what, means in (
        ("RLIMIT_AS", "address space", "children inherit it: what they map of large calls counts against it"),
        ("RLIMIT_FSIZE", "file size", "it bounds shared memory, too"),
    ):
        soft = resource.getrlimit(getattr(resource, name))[0]
        if soft != resource.RLIM_INFINITY:
            yield Finding(what, "note", f"{soft >> 20} MiB ({name})", means)


def _overcommit(mode: str) -> Finding:
    if mode == "2":
        return Finding(
            "overcommit", "note", "vm.overcommit_memory=2", "each child counts with all that was preloaded, used or not"
        )
    return Finding("overcommit", "ok", f"vm.overcommit_memory={mode}" if mode else "unknown")


def _extras() -> Iterator[Finding]:
    for extra, (module, use) in EXTRAS.items():
        if find_spec(module) is None:
            yield Finding(f"extra: {extra}", "note", "not installed", f"pip install 'mpworker[{extra}]': {use}")
        else:
            yield Finding(f"extra: {extra}", "ok", "installed")


def _trial(n: int) -> Finding:
    from mpworker.worker import ProcessWorker

    began = time.perf_counter()
    try:
        with ProcessWorker(n, start_timeout=TRIAL_SECONDS) as worker:
            worker.submit(abs, -1).result(TRIAL_SECONDS)
            first = time.perf_counter() - began
            trips = []
            for _ in range(TRIAL_TASKS):
                at = time.perf_counter()
                worker.submit(abs, -1).result(TRIAL_SECONDS)
                trips.append(time.perf_counter() - at)
            leaving = time.perf_counter()
        stop = time.perf_counter() - leaving
    except Exception as error:  # noqa: BLE001  # whatever it is: that is what was to be found out
        return Finding("trial", "bad", f"{type(error).__name__}: {error}", "the error says what is missing")
    trip = statistics.median(trips)
    found = f"n={n}: first result {first * 1e3:.0f} ms, round trip {trip * 1e6:.0f} us, stop {stop * 1e3:.0f} ms"
    return Finding("trial", "ok", found)
