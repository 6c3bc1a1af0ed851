"""What a stop tells of its end."""

from __future__ import annotations

from itertools import islice

from mpworker.future import TaskFuture
from mpworker.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

NAMED_MAX: Final = 1_000


class StopReport(Value):
    """What a stop has finished and what it has not; true if all that was accepted was finished.

    Attributes:
        finished: All has ended by itself, and nothing was cancelled by the stop or lost.
        tasks: How many tasks were left: cancelled because the time was over, or, with `wait=False`, still to end. Runs
            of recurring tasks that were cut short are among them.
        task_ids: The ids of these, the oldest first, at most 1,000.
        items: How many items of `map` were left, of those that the worker had read.
    """

    __slots__ = ("finished", "items", "task_ids", "tasks")
    __match_args__ = ("finished", "tasks", "task_ids", "items")

    finished: bool
    tasks: int
    task_ids: tuple[str, ...]
    items: int

    def __init__(self, finished: bool, tasks: int = 0, task_ids: tuple[str, ...] = (), items: int = 0) -> None:
        self._fill(finished, tasks, task_ids, items)

    def __bool__(self) -> bool:
        return self.finished


def report_on(finished: bool, tasks: list[TaskFuture[Any]], items: int, runs: list[str]) -> StopReport:
    """The report when these tasks, so many items and these runs of recurring tasks did not end by themselves."""
    ids = tuple(islice((*(task.task_id for task in tasks[:NAMED_MAX]), *runs), NAMED_MAX))
    return StopReport(finished and not (tasks or items or runs), len(tasks) + len(runs), ids, items)
