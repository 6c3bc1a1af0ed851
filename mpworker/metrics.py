"""What `ProcessWorker.metrics` tells."""

from dataclasses import dataclass, field


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
        remembered: Tasks that have ended and that `get_task` still knows.
        queues: What is queued by queue, parts of a `map` included.
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
    remembered: int = 0
    queues: dict[str, int] = field(default_factory=dict)
