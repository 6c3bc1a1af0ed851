"""What a running task can ask: `mpworker.current()`."""

from __future__ import annotations

from mpworker.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class TaskContext(Value):
    """The task that runs now, as seen from inside it.

    Attributes:
        task_id: The id that the client's `TaskFuture.task_id` shows too; for an item of a `map`, that of its chunk.
        attempt: 1 for the first.
        deadline: When the task must have ended, on the clock of `time.monotonic`; None for no deadline.
        metadata: As it was given to `Task`.
    """

    __slots__ = ("attempt", "deadline", "metadata", "task_id")
    __match_args__ = ("task_id", "attempt", "deadline", "metadata")

    task_id: str
    attempt: int
    deadline: float | None
    metadata: dict[str, Any]

    def __init__(
        self, task_id: str, attempt: int, deadline: float | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        self._fill(task_id, attempt, deadline, {} if metadata is None else metadata)

    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 or more; None for no deadline."""
        if self.deadline is None:
            return None
        import time

        return max(0.0, self.deadline - time.monotonic())


# Set by the child's main loop: makes the context of what runs now, or None between tasks. Made when asked for, not per
# task: most tasks never ask.
_source: Callable[[], TaskContext | None] | None = None
# Is this process importing what a task needs, rather than running one?
_loading: Callable[[], bool] | None = None
# Called when a pool that a task of this process had opened was lost. If its nursery died as well, then what its tasks
# had started has no keeper but this process, a subreaper, and cannot be told from what the task itself started.
_orphaned: Callable[[], None] | None = None


def current() -> TaskContext:
    """The context of the task that calls this.

    Raises:
        MPWorkerError: Called outside a task.

    Example:
        >>> import mpworker
        >>> with mpworker.ProcessWorker(n=1) as w:
        ...     w.submit(lambda: mpworker.current().attempt).result()
        1
    """
    context = _source() if _source is not None else None
    if context is None:
        from mpworker.errors import MPWorkerError  # not before: no child shall wait for `concurrent.futures`

        raise MPWorkerError("current() was called outside a task")
    return context


def refuse_while_loading(module: str) -> None:
    """Raise if a child has come here by importing a module: a pool's children would make pools in turn, without end.

    Args:
        module: Which one, for the message.

    Raises:
        ConfigurationError: It has.
    """
    if _loading is not None and _loading():
        from mpworker.errors import ConfigurationError  # as above

        raise ConfigurationError(
            f"module {module!r} makes a ProcessWorker when it is imported, and a child has just done so to find what a "
            f'task needs: make it in a function, or under `if __name__ == "__main__":`'
        )
