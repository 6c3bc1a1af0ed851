"""What `ProcessWorker.metrics` tells."""

from dataclasses import dataclass, field
from typing import Any

from mpworker.checks import check_number
from mpworker.observer import OBSERVERS


@dataclass(frozen=True, slots=True)
class Latency:
    """How long tasks took from their acceptance, or from their `run_at`, to their outcome.

    Attributes:
        count: Tasks that have ended, in whatever way.
        total: Seconds of all together.
        max: Seconds of the one that took longest.
        buckets: Pairs of seconds and how many tasks took less than that and not less than half of it, in ascending
            order; without those of nobody.

    Example:
        >>> from mpworker import Latency
        >>> latency = Latency(count=100, total=3.0, max=1.5, buckets=((0.016, 90), (2.0, 10)))
        >>> latency.mean, latency.quantile(0.5), latency.quantile(0.99)
        (0.03, 0.016, 1.5)
    """

    count: int = 0
    total: float = 0.0
    max: float = 0.0
    buckets: tuple[tuple[float, int], ...] = ()

    @property
    def mean(self) -> float:
        """Seconds of a task on average; 0 if none has ended."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the tasks has ended, at most twice as long as the truth.

        Args:
            share: 0 to 1; 0.99 for the 99th percentile.

        Raises:
            InvalidArgument: It is no number.
            ConfigurationError: It is out of these bounds.
        """
        share = check_number("share", share, 0, 1)
        left = share * self.count
        for seconds, count in self.buckets:
            left -= count
            if left <= 0:
                return min(seconds, self.max)
        return self.max


@dataclass(frozen=True, slots=True)
class Metrics:
    """Counts of tasks since the start; the items of a `map` are not tasks.

    Each task is in exactly one of the seven from `scheduled` to `timed_out`, and `accepted` is their sum.

    Attributes:
        accepted: Tasks that were taken.
        scheduled: That wait for their time, or for the pause before their next attempt.
        queued: That wait for a child, or are with one and have not begun.
        running: That have begun.
        completed: That ended well.
        failed: That ended by an exception, a death of their child, or a result that cannot be sent.
        cancelled: That were cancelled.
        timed_out: That ended by their timeout or deadline.
        retries: Attempts after the first.
        crashes: Attempts that ended with the death of their child, by its cause.
        limiter_waits: Starts that a `rate` has delayed.
        results_dropped: Results that a subscription had no room for, all subscriptions together.
        remembered: Tasks that have ended and that `get_task` still knows.
        queues: What is queued by queue, parts of a `map` included.
        latency: How long tasks took.
        arena_bytes: Memory that large calls and large results take, as "calls" and "results": see the page on these.
        observer_errors: How often what is beside the tasks has raised: "hook", "tracer", "logger" and "middleware". No
            task has suffered by it.
        observer_drops: Events for hooks and tracers, and records for the log, that were dropped because they were too
            many.
    """

    accepted: int = 0
    scheduled: int = 0
    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    retries: int = 0
    crashes: dict[str, int] = field(default_factory=dict)
    limiter_waits: int = 0
    results_dropped: int = 0
    remembered: int = 0
    queues: dict[str, int] = field(default_factory=dict)
    latency: Latency = field(default_factory=Latency)
    arena_bytes: dict[str, int] = field(default_factory=lambda: {"calls": 0, "results": 0})
    observer_errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OBSERVERS, 0))
    observer_drops: int = 0


def metrics_from(report: dict[str, Any]) -> Metrics:
    """The counts that the supervisor has told; {} for none."""
    latency = dict(report.pop("latency", {}))
    buckets = tuple((seconds, count) for seconds, count in latency.pop("buckets", ()))
    return Metrics(**report, latency=Latency(**latency, buckets=buckets))
