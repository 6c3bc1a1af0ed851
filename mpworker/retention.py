"""How long tasks that have ended are remembered: what `retention=` takes."""

from dataclasses import dataclass

from mpworker.checks import check_bool, check_int, check_seconds
from mpworker.errors import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long `get_task` knows a task that has ended, and `retry_task` can run it again.

    Only tasks that have ended are forgotten, the oldest first, and with them their `id` and `idempotency_key`. Futures
    keep their results in any case.

    Attributes:
        ttl: Seconds that a task is remembered if there is room, and at most two `cleanup_interval` more; None for as
            long as there is room.
        max_entries: How many are, at most; 0 for none.
        max_bytes: How many bytes of their calls and outcomes are kept; beyond that the oldest lose theirs, and can be
            looked at but not run again.
        results: Keep results, too, and not only what failed: `TaskInfo.future`. Those of tasks with an idempotency key
            are kept in any case.
        cleanup_interval: Seconds between two looks for what is older than `ttl`. When a task has ended is known by the
            looks alone, so one that ends right after a look is found at the next one and its age counts from then.

    Raises:
        InvalidArgument: An attribute has a wrong type.
        ConfigurationError: One is out of its bounds.

    Example:
        >>> from mpworker import ProcessWorker, Retention
        >>> with ProcessWorker(n=1, retention=Retention(ttl=3600.0, results=True)) as w:
        ...     future = w.submit(len, "four")
        ...     future.result(), w.get_task(future.task_id).future.result()
        (4, 4)
    """

    ttl: float | None = None
    max_entries: int = 1000
    max_bytes: int = 1 << 26
    results: bool = False
    cleanup_interval: float = 1.0

    def __post_init__(self) -> None:
        plain = object.__setattr__  # the class is frozen, and what JSON cannot write must not stay in it
        plain(self, "ttl", check_seconds("ttl", self.ttl, optional=True))
        plain(self, "max_entries", check_int("max_entries", self.max_entries, 0, 100_000_000))
        plain(self, "max_bytes", check_int("max_bytes", self.max_bytes, 0, 1 << 40))
        plain(self, "cleanup_interval", check_seconds("cleanup_interval", self.cleanup_interval))
        check_bool("results", self.results)


def check_retention(value: object) -> Retention:
    """A `Retention`; None for the default one."""
    if value is None:
        return Retention()
    if not isinstance(value, Retention):
        raise InvalidArgument(f"retention must be a Retention or None, not {value!r}")
    return value
