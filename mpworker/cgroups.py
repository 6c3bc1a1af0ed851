"""What this process may use of its machine: cores, memory and processes, as its cgroup allows, of version 2 or 1."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = "/sys/fs/cgroup"


def available_cores() -> int:
    """Cores this process may use: the affinity mask, or the cgroup's CPU quota if that is less."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return max(1, min(cores, int(quota))) if quota is not None else cores


def usable_memory() -> int:
    """Bytes of memory this process may use: the machine's, or the cgroup's limit if that is less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for (limit,) in _settings("memory", ("memory.max",), ("memory.limit_in_bytes",)):
        return memory if limit == "max" else min(memory, int(limit))
    return memory


def process_limit() -> int | None:
    """Processes and threads that the cgroup may have, None for no limit."""
    for (limit,) in _settings("pids", ("pids.max",), ("pids.max",)):
        return None if limit == "max" else int(limit)
    return None


def _cpu_quota() -> float | None:
    """The cgroup's CPU quota in cores, None for no limit."""
    for quota, period in _settings("cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    return None


def _settings(controller: str, second: tuple[str, ...], first: tuple[str, ...]) -> Iterator[list[str]]:
    """The words in files of the cgroup, from wherever there are any; version 2 comes first.

    Args:
        controller: Of version 1.
        second: The files of version 2.
        first: Those of version 1.
    """
    try:
        with open("/proc/self/cgroup") as file:
            paths = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    except OSError:
        return
    # In a container the path may be one that only the host knows: then its own is the root.
    places = [(f"{_ROOT}{paths.get('', '')}", second), (_ROOT, second)]
    for controllers, path in paths.items():
        if controller in controllers.split(","):
            places += [(f"{_ROOT}/{folder}{path}", first) for folder in (controllers, controller)]
    for folder, names in places:
        try:
            words = []
            for name in names:
                with open(os.path.join(folder, name)) as file:
                    words += file.read().split()
        except OSError:
            continue
        yield words
