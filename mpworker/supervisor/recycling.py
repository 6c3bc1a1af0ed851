"""Children that have done their part are replaced: the scheduler of a pool with `max_tasks_per_child`.

It looks at each answer. A pool that asks for none of this has the plain scheduler, which does not.

A child never holds more offers than it may still run, so that none runs a task too many. A chunk of `map` is one offer
and counts as its items: it is cut at the answer by which the count is full, and goes on elsewhere. Another child is
made as soon as the old one has nothing to do, and does not wait until that has gone.
"""

from typing import Any

from mpworker.supervisor.places import Places
from mpworker.supervisor.registry import Seat, Task


class Recycling(Places):
    """A scheduler that retires children.

    Args:
        max_tasks: Tasks and items of chunks after which a child leaves, None for no such number.
        **others: As for `Scheduler`.
    """

    def __init__(self, *args: Any, max_tasks: int | None = None, **others: Any) -> None:
        super().__init__(*args, **others)
        self._max_tasks = max_tasks

    def child_starting(self, seat: Seat, now: float) -> None:
        super().child_starting(seat, now)
        if self._max_tasks is not None:
            del seat.free[: -self._max_tasks]  # what is offered comes from the end

    def done(self, seat: Seat, *answer: Any) -> None:
        held = len(seat.offers)
        super().done(seat, *answer)
        if len(seat.offers) < held:
            self._ran(seat, 1)

    def items(self, seat: Seat, slot: int, *answer: Any) -> None:
        piece = seat.offers.get(slot)
        start = piece.start if piece is not None else 0
        super().items(seat, slot, *answer)
        if piece is not None and piece.start > start:
            self._ran(seat, piece.start - start)

    def _ran(self, seat: Seat, count: int) -> None:
        """A child has answered so many."""
        if self._max_tasks is None:
            return
        seat.ran += count
        if seat.ran >= self._max_tasks:
            seat.recallable = False
            self.retire(seat)
        self._limit(seat)

    def _take_back(self, seat: Seat, task: Task) -> None:
        super()._take_back(seat, task)
        self._limit(seat)

    def _limit(self, seat: Seat) -> None:
        """A child has room for no more than it may still run. A chunk, which is one offer, may have left it less."""
        if self._max_tasks is not None:
            left = max(0, self._max_tasks - seat.ran)
            del seat.free[: max(0, len(seat.free) + len(seat.offers) - left)]
