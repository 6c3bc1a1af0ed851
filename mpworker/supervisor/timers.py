"""Tasks by the time at which something is to be done with them."""

from __future__ import annotations

import heapq

from mpworker.supervisor.registry import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

DEAD_MAX: Final = 64


class Timers:
    """A heap of tasks by time.

    Tasks that no longer wait stay in it until their time comes, or until they are more than half of it.

    Args:
        waits: Does a task still wait for its time?
    """

    def __init__(self, waits: Callable[[Task], bool]) -> None:
        self._waits = waits
        # Of two at the same time the one that came first goes first. Its number is there already: 32 bytes less.
        self._heap: list[tuple[float, int, Task]] = []
        self._dead = 0
        self._purge_at = 2 * DEAD_MAX

    def __iter__(self) -> Iterator[tuple[float, Task]]:
        return ((at, task) for at, _, task in self._heap)

    @property
    def next_at(self) -> float | None:
        """When the next one is due, or would have been; None for never."""
        return self._heap[0][0] if self._heap else None

    def push(self, at: float, task: Task) -> None:
        """A task waits from now on."""
        heapq.heappush(self._heap, (at, task.key, task))
        if len(self._heap) > self._purge_at:
            self._purge()

    def died(self) -> None:
        """One of them no longer waits: not to be told for each, but the memory of many is freed sooner so."""
        self._dead += 1
        if self._dead > DEAD_MAX + len(self._heap) // 2:
            self._purge()

    def _purge(self) -> None:
        self._heap = [each for each in self._heap if self._waits(each[2])]
        heapq.heapify(self._heap)
        self._dead = 0
        self._purge_at = 2 * len(self._heap) + 2 * DEAD_MAX

    def due(self, now: float) -> Iterator[Task]:
        """Take out what is due and still waits, in the order of time."""
        while self._heap and self._heap[0][0] <= now:
            task = heapq.heappop(self._heap)[2]
            if self._waits(task):
                yield task
            else:
                self._dead = max(0, self._dead - 1)
