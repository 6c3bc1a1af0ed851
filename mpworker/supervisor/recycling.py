"""Children are replaced that have done their part or grown too large: the scheduler of a pool that asks for that.

It looks at each answer. A pool with neither `max_tasks_per_child` nor a limit of memory has one that does not.

A child never holds more offers than it may still run, so that none runs a task too many. A chunk of `map` is one offer
and counts as its items: it is cut at the answer by which the count is full, and goes on elsewhere. Another child is
made as soon as the old one has nothing to do, and does not wait until that has gone.

While children work, and once after they did, their memory is looked at every LOOK_SECONDS. One that has more than the
hard limit is killed. For the soft limit counts what a child keeps between two tasks: one that has more leaves, and is
looked at again when it has ended what it runs; if that has freed enough, it stays.
"""

from __future__ import annotations

from mpworker.supervisor.effects import Answer
from mpworker.supervisor.places import Places
from mpworker.supervisor.registry import LEAVING, READY, Seat, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

LOOK_SECONDS: Final = 0.1


class Recycling(Places):
    """A scheduler that retires children.

    Args:
        max_tasks: Tasks and items of chunks after which a child leaves, None for no such number.
        memory_soft: Bytes of its own with which a child leaves after a task, None for no such limit.
        memory_hard: Bytes of its own with which it is killed, None for no such limit.
        **others: As for `Scheduler`.
    """

    __slots__ = ("_hard", "_max_tasks", "_measures", "_memory_at", "_soft")

    def __init__(
        self,
        *args: Any,
        max_tasks: int | None = None,
        memory_soft: int | None = None,
        memory_hard: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(*args, **others)
        self._max_tasks = max_tasks
        self._soft = memory_soft
        self._hard = memory_hard
        self._measures = memory_soft is not None or memory_hard is not None
        self._memory_at: float | None = None  # when to look at the children's memory

    def child_starting(self, seat: Seat, now: float) -> None:
        super().child_starting(seat, now)
        if self._max_tasks is not None:
            del seat.free[: -self._max_tasks]  # what is offered comes from the end

    def well(self, seat: Seat, answers: list[Answer], at: int) -> int:
        return super().well(seat, answers, at) if self._max_tasks is None else at  # for `done`, which counts each

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
            seat.recallable = seat.suspect = False  # whatever else it was to leave for: now it does not stay
            self.retire(seat, "max_tasks_per_child")
        self._limit(seat)

    def _take_back(self, seat: Seat, task: Task) -> None:
        super()._take_back(seat, task)
        self._limit(seat)

    def _limit(self, seat: Seat) -> None:
        """A child has room for no more than it may still run. A chunk, which is one offer, may have left it less."""
        if self._max_tasks is not None:
            left = max(0, self._max_tasks - seat.ran)
            del seat.free[: max(0, len(seat.free) + len(seat.offers) - left)]

    # ------------------------------------------------------------ memory

    def _offer(self, seat: Seat, task: Task, cost_ns: int, now: float) -> None:
        super()._offer(seat, task, cost_ns, now)
        if self._measures:
            seat.unmeasured = True
            if self._memory_at is None:
                self._memory_at = now + LOOK_SECONDS

    def next_timer(self) -> float | None:
        at = super().next_timer()
        return self._memory_at if at is None or (self._memory_at is not None and self._memory_at < at) else at

    def timer(self, now: float) -> None:
        super().timer(now)
        if self._memory_at is not None and now >= self._memory_at:
            self._look_at_memory(now)

    def _look_at_memory(self, now: float) -> None:
        at_work = False
        for seat in list(self._seats.values()):
            if seat.state not in (READY, LEAVING) or not seat.unmeasured:
                continue
            seat.unmeasured = bool(seat.offers)  # once more when it has done
            at_work = at_work or seat.unmeasured
            used = self._effects.memory(seat)
            if self._hard is not None and used > self._hard:
                self.kill(seat, "memory", now)
            elif self._soft is not None and used > self._soft and seat.state == READY:
                seat.suspect = bool(seat.offers)
                self.retire(seat, "memory_limit")
        self._memory_at = now + LOOK_SECONDS if at_work else None

    def _dismiss(self, seat: Seat) -> None:
        suspect, seat.suspect = seat.suspect, False
        if suspect and not seat.vacated and self._effects.memory(seat) <= (self._soft or 0):
            seat.state = READY
            seat.leaves = ""
            self._idle[seat] = self._roomy[seat] = None
        else:
            super()._dismiss(seat)
