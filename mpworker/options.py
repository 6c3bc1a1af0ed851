"""The options of a worker, checked once, at the edge."""

import math
import os
from dataclasses import dataclass, field, fields
from typing import Any, Final

from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.ipc.codec import MAX_SLOTS

N_MAX: Final = 256
_SECONDS_MAX: Final = 1e9


def available_cores() -> int:
    """Cores this process may use: the affinity mask, or the cgroup's CPU quota if that is less."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return max(1, min(cores, math.floor(quota))) if quota is not None else cores


def _cpu_quota() -> float | None:
    """The cgroup's CPU quota in cores (version 2, then 1), None for no limit."""
    try:
        with open("/proc/self/cgroup") as file:
            paths = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
    except OSError:
        return None
    for folder in (f"/sys/fs/cgroup{paths.get('', '')}", "/sys/fs/cgroup"):
        try:
            with open(os.path.join(folder, "cpu.max")) as file:
                quota, period = file.read().split()
                return None if quota == "max" else int(quota) / int(period)
        except (OSError, ValueError):
            continue
    for controllers, path in paths.items():
        if "cpu" in controllers.split(","):
            for folder in (f"/sys/fs/cgroup/{controllers}{path}", f"/sys/fs/cgroup/cpu{path}"):
                try:
                    values = []
                    for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
                        with open(os.path.join(folder, name)) as file:
                            values.append(int(file.read()))
                    return None if values[0] <= 0 else values[0] / values[1]
                except (OSError, ValueError):
                    continue
    return None


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """An int from low to high.

    Raises:
        InvalidArgument: It is no int.
        ConfigurationError: It is out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"{name} must be an int from {low} to {high}, not {value!r}")
    if not low <= value <= high:
        raise ConfigurationError(f"{name} must be from {low} to {high}, not {value!r}")
    return value


def check_seconds(name: str, value: Any, optional: bool = False) -> float | None:
    """A positive number of seconds, or None where that means "no limit".

    Raises:
        InvalidArgument: It is no number.
        ConfigurationError: It is out of bounds.
    """
    if value is None and optional:
        return None
    or_none = " or None" if optional else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(f"{name} must be a number of seconds above 0{or_none}, not {value!r}")
    if not 0 < value <= _SECONDS_MAX:
        raise ConfigurationError(
            f"{name} must be above 0 and at most {_SECONDS_MAX:.0e} seconds{or_none}, not {value!r}"
        )
    return float(value)


@dataclass(frozen=True)
class TaskDefaults:
    """What every task of a worker, or of one `options` view of it, has in common.

    Attributes:
        timeout: Seconds an attempt may run; None for no limit.
        retries: Further attempts after an exception or a timeout.
        crash_retries: Further attempts after the child died; None means as `retries`.
    """

    timeout: float | None = None
    retries: int = 0
    crash_retries: int | None = None

    def __post_init__(self) -> None:
        check_seconds("timeout", self.timeout, optional=True)
        check_int("retries", self.retries, 0, 1_000_000)
        if self.crash_retries is not None:
            check_int("crash_retries", self.crash_retries, 0, 1_000_000)


@dataclass(frozen=True)
class WorkerOptions:
    """The options of a `ProcessWorker` that do not concern single tasks; documented there.

    Attributes:
        child_ring_bytes: Each of the two rings between the supervisor and a child.
        client_ring_bytes: Each of the two rings between the client and the supervisor.
        slots: Offers that one child can hold.
        max_payload_bytes: The largest pickle of one call or result.
    """

    n: int
    grace: float = 5.0
    lease_ttl: float = 10.0
    start_timeout: float = 60.0
    kill_timeout: float = 10.0
    max_pending: int = 1_000_000
    preload: tuple[str, ...] = ()
    child_ring_bytes: int = 1 << 18
    client_ring_bytes: int = 1 << 20
    slots: int = 126
    max_payload_bytes: int = 1 << 32
    python: str = field(default="")

    def __post_init__(self) -> None:
        check_int("n", self.n, 1, N_MAX)
        for name in ("grace", "lease_ttl", "start_timeout", "kill_timeout"):
            check_seconds(name, getattr(self, name))
        check_int("max_pending", self.max_pending, 1, 1 << 40)
        check_int("slots", self.slots, 1, MAX_SLOTS)
        check_int("max_payload_bytes", self.max_payload_bytes, 1 << 12, 1 << 40)
        for name in ("child_ring_bytes", "client_ring_bytes"):
            size = check_int(name, getattr(self, name), 1 << 12, 1 << 30)
            if size & (size - 1):
                raise ConfigurationError(f"{name} must be a power of two from 4096 to {1 << 30}, not {size}")


_FIELDS: Final = {kind: tuple(each.name for each in fields(kind)) for kind in (TaskDefaults, WorkerOptions)}


def split_options(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword options, split into those of tasks and those of the worker.

    Raises:
        ConfigurationError: One is unknown.
    """
    task = {name: given[name] for name in given if name in _FIELDS[TaskDefaults]}
    worker = {name: given[name] for name in given if name in _FIELDS[WorkerOptions]}
    for name in given:
        if name not in task and name not in worker:
            known = ", ".join(sorted((*_FIELDS[TaskDefaults], *_FIELDS[WorkerOptions])))
            raise ConfigurationError(f"unknown option {name!r}; the options are {known}")
    return task, worker
