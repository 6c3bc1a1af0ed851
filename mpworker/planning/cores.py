"""Cores that are shared: every child that computes gets the same part of them, and none more than one core.

That is what Linux does with processes of one nice value, seen from further off than a time slice. A child's work is
measured in seconds on a core of its own; `_served` counts what each of those that run now has got of that, and when it
comes to what one of them needs, that one is done. So a change of the number that run changes one speed, and not each of
their times.
"""

import heapq
from math import inf
from typing import Any


class Cores:
    """Some cores, and what is computed on them.

    Args:
        cores: How many; may be a fraction.
    """

    __slots__ = ("_at", "_cores", "_heap", "_numbers", "_running", "_served", "used")

    def __init__(self, cores: float) -> None:
        self._cores = cores
        self._running: dict[int, Any] = {}
        self._heap: list[tuple[float, int]] = []  # what `_served` will be when this one is done
        self._numbers = 0
        self._served = 0.0
        self._at = 0.0
        self.used = 0.0  # core seconds

    def __len__(self) -> int:
        return len(self._running)

    def _speed(self) -> float:
        return min(1.0, self._cores / len(self._running))

    def advance(self, now: float) -> None:
        """The time is `now`, and nothing has been done before that."""
        if self._running:
            got = (now - self._at) * self._speed()
            self._served += got
            self.used += got * len(self._running)
        self._at = now

    def begin(self, work: float, what: Any) -> int:
        """Begin to compute, now; infinite work ends by `stop` alone. Its number."""
        if not self._running:
            self._served = 0.0  # sums of long runs would lose their small parts
        self._numbers += 1
        self._running[self._numbers] = what
        if work != inf:
            heapq.heappush(self._heap, (self._served + work, self._numbers))
        return self._numbers

    def stop(self, number: int) -> None:
        """This one computes no more."""
        del self._running[number]

    def next_at(self) -> float:
        """When the next one is done."""
        heap = self._heap
        while heap and heap[0][1] not in self._running:
            heapq.heappop(heap)
        if not heap:
            return inf
        return self._at + max(0.0, heap[0][0] - self._served) / self._speed()

    def pop(self) -> Any:
        """What is done at `next_at`, which is now."""
        needed, number = heapq.heappop(self._heap)
        self._served = max(self._served, needed)
        return self._running.pop(number)
