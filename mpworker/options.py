"""The options of a worker, checked once, at the edge."""

from __future__ import annotations

import os
from _collections_abc import Iterable  # as `os` has them: `collections` comes later

from mpworker.checks import check_int, check_seconds, check_text
from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.ipc.codec import CHILDREN_MAX, MAX_SLOTS
from mpworker.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, Final

    from mpworker.retry import RetryPolicy

RETRIES_MAX: Final = 1_000_000
N_MAX: Final = CHILDREN_MAX
QUEUES_MAX: Final = 1000
PRIORITY_MAX: Final = 1 << 31
TASK_WEIGHT_MAX: Final = 1_000_000
CONCURRENCY_MAX: Final = 1_000_000
LEASE_TTL_MIN: Final = 0.01
MEMORY_LIMIT_MIN: Final = 16 << 20


TASK_OPTIONS: Final = (
    "timeout",
    "retries",
    "crash_retries",
    "retry_policy",
    "queue",
    "priority",
    "weight",
    "concurrency_key",
    "concurrency",
)


class TaskDefaults(Value):
    """What every task of a worker, or of one `options` view of it, has in common: a value, which never changes.

    No dataclass, as each of the client's own values is none: every start would wait for that import, and for what makes
    the classes.

    Attributes:
        timeout: Seconds an attempt may run; None for no limit.
        retries: Further attempts after an exception or a timeout.
        crash_retries: Further attempts after the child died; None means as `retries`.
        retry_policy: After what pause these begin, and after which exceptions none does; None: at once, after any.
        queue: The name of the queue.
        priority: In it, the lowest number first.
        weight: Of those with the same priority, the highest number first.
        concurrency_key: Of all tasks with the same one, at most `concurrency` run at once; "" for no such limit.
        concurrency: See there; the least of those that run with a key holds for all.

    Raises:
        InvalidArgument: One has a wrong type.
        ConfigurationError: One is out of its bounds.
    """

    __slots__ = __match_args__ = TASK_OPTIONS

    timeout: float | None
    retries: int
    crash_retries: int | None
    retry_policy: RetryPolicy | None
    queue: str
    priority: int
    weight: int
    concurrency_key: str
    concurrency: int

    def __init__(
        self,
        timeout: float | None = None,
        retries: int = 0,
        crash_retries: int | None = None,
        retry_policy: RetryPolicy | None = None,
        queue: str = "default",
        priority: int = 0,
        weight: int = 1,
        concurrency_key: str = "",
        concurrency: int = 1,
    ) -> None:
        self._fill(
            check_seconds("timeout", timeout, optional=True),
            check_int("retries", retries, 0, RETRIES_MAX),
            _check_optional("crash_retries", crash_retries, 0, RETRIES_MAX),
            retry_policy,
            queue,
            check_int("priority", priority, -PRIORITY_MAX, PRIORITY_MAX),
            check_int("weight", weight, 1, TASK_WEIGHT_MAX),
            check_text("concurrency_key", concurrency_key, 0),
            check_int("concurrency", concurrency, 1, CONCURRENCY_MAX),
        )
        if queue != "default":
            from mpworker.queues import check_queue_name  # not before: no start shall wait for it

            check_queue_name(queue)
        if retry_policy is not None:
            from mpworker.retry import RetryPolicy  # not before: no start shall wait for it

            if not isinstance(retry_policy, RetryPolicy):
                raise InvalidArgument(f"retry_policy must be a RetryPolicy or None, not {retry_policy!r}")

    def but(self, **changes: Any) -> TaskDefaults:
        """The same with other values for these.

        Raises:
            InvalidArgument: One has a wrong type.
            ConfigurationError: One is out of its bounds.
        """
        return TaskDefaults(**{name: getattr(self, name) for name in TASK_OPTIONS} | changes)

    @property
    def limits_nothing(self) -> bool:
        """Is there a `concurrency`, and no key of those that it is for?"""
        return self.concurrency != 1 and not self.concurrency_key

    def refuse_limit_of_nothing(self) -> None:
        """Not where they are made: another view, or a `Task`, may add the key.

        Raises:
            ConfigurationError: There is none.
        """
        if self.limits_nothing:
            raise ConfigurationError(
                f"concurrency={self.concurrency} is for tasks with a concurrency_key, which is not given"
            )


WORKER_OPTIONS: Final = (
    "n",
    "grace",
    "lease_ttl",
    "start_timeout",
    "kill_timeout",
    "max_pending",
    "submit_timeout",
    "preload",
    "child_ring_bytes",
    "client_ring_bytes",
    "slots",
    "max_payload_bytes",
    "arena_max_bytes",
    "python",
    "max_tasks_per_child",
    "memory_limit",
    "memory_limit_hard",
    "cpu_affinity",
    "nice",
    "blas_threads",
)


class WorkerOptions:
    """The options of a `ProcessWorker` that do not concern single tasks; documented there. They never change.

    Attributes:
        child_ring_bytes: Each of the two rings between the supervisor and a child.
        client_ring_bytes: Each of the two rings between the client and the supervisor.
        slots: Offers that one child can hold.
        max_payload_bytes: The largest pickle of one call or result.
        arena_max_bytes: How much memory large calls may take that are under way, and how much large results; 0 has them
            go through the rings, None chooses by what this process may use.

    Raises:
        InvalidArgument: One has a wrong type.
        ConfigurationError: One is out of its bounds.
    """

    __slots__ = WORKER_OPTIONS

    def __init__(
        self,
        n: int,
        grace: float = 5.0,
        lease_ttl: float = 10.0,
        start_timeout: float = 60.0,
        kill_timeout: float = 10.0,
        max_pending: int = 1_000_000,
        submit_timeout: float | None = None,
        preload: tuple[str, ...] = (),
        child_ring_bytes: int = 1 << 18,
        client_ring_bytes: int = 1 << 20,
        slots: int = 126,
        max_payload_bytes: int = 1 << 32,
        arena_max_bytes: int | None = None,
        python: str = "",
        max_tasks_per_child: int | None = None,
        memory_limit: int | None = None,
        memory_limit_hard: int | None = None,
        cpu_affinity: Collection[int] | str | None = None,
        nice: int = 0,
        blas_threads: int | None = None,
    ) -> None:
        self.n = check_int("n", n, 1, N_MAX)
        self.max_pending = check_int("max_pending", max_pending, 1, 1 << 40)
        self.slots = check_int("slots", slots, 1, MAX_SLOTS)
        self.nice = check_int("nice", nice, 0, 19)
        self.max_payload_bytes = check_int("max_payload_bytes", max_payload_bytes, 1 << 12, 1 << 40)
        self.child_ring_bytes = check_int("child_ring_bytes", child_ring_bytes, 1 << 12, 1 << 30)
        self.client_ring_bytes = check_int("client_ring_bytes", client_ring_bytes, 1 << 12, 1 << 30)
        self.arena_max_bytes = _check_optional("arena_max_bytes", arena_max_bytes, 0, 1 << 46)
        self.max_tasks_per_child = _check_optional("max_tasks_per_child", max_tasks_per_child, 1, 1 << 40)
        self.blas_threads = _check_optional("blas_threads", blas_threads, 1, 4096)
        self.memory_limit = _check_optional("memory_limit", memory_limit, MEMORY_LIMIT_MIN, 1 << 50)
        self.memory_limit_hard = _check_optional("memory_limit_hard", memory_limit_hard, MEMORY_LIMIT_MIN, 1 << 50)
        self.cpu_affinity = _check_cores(cpu_affinity)
        soft, hard = self.memory_limit, self.memory_limit_hard
        if soft is not None and hard is not None and hard < soft:
            raise ConfigurationError(f"memory_limit_hard must be at least memory_limit={soft}, not {hard}")
        self.grace = check_seconds("grace", grace)
        self.lease_ttl = check_seconds("lease_ttl", lease_ttl)
        self.start_timeout = check_seconds("start_timeout", start_timeout)
        self.kill_timeout = check_seconds("kill_timeout", kill_timeout)
        self.submit_timeout = check_seconds("submit_timeout", submit_timeout, optional=True, zero=True)
        if self.lease_ttl < LEASE_TTL_MIN:
            raise ConfigurationError(f"lease_ttl must be at least {LEASE_TTL_MIN} s, not {self.lease_ttl!r}")
        for name in ("child_ring_bytes", "client_ring_bytes"):
            size = getattr(self, name)
            if size & (size - 1):
                raise ConfigurationError(f"{name} must be a power of two, not {size}")
        self.preload = preload
        self.python = python


def _check_optional(name: str, value: Any, low: int, high: int) -> int | None:
    return None if value is None else check_int(name, value, low, high)


def _check_cores(value: Any) -> tuple[int, ...] | str | None:
    if value is None or (isinstance(value, str) and value == "spread"):
        return value
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidArgument(f"cpu_affinity must be a set of cores, 'spread' or None, not {value!r}")
    cores = sorted({check_int("a core of cpu_affinity", core, 0, 1 << 16) for core in value})
    allowed = os.sched_getaffinity(0)
    if not cores or not allowed.issuperset(cores):
        named = ", ".join(map(str, sorted(allowed)))
        raise ConfigurationError(
            f"cpu_affinity must be some of the cores that this process may use ({named}), not {value!r}"
        )
    return tuple(cores)
