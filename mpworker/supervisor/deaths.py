"""Children that start and die: whose attempt a death was, and what begins elsewhere."""

from __future__ import annotations

from mpworker.containers import Tally
from mpworker.supervisor.chunks import Chunks
from mpworker.supervisor.effects import CANCELLED, CLAIM_OFFERED, CLAIM_REVOKED, CRASHED, Effects
from mpworker.supervisor.lifecycle import SETTLE
from mpworker.supervisor.registry import CLOSING, DYING, GONE, LEAVING, READY, Attempt, Death, Seat, Task, Times

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

UNCLAIMED_DEATHS: Final = 5
_SIGKILL: Final = 9  # the module of its name is the operating system's
# With these a child ends by itself once its task is answered, and what it had not begun has no part in it: the numbers
# are those of mpworker.child.main; a test compares them.
ORDERLY_EXITS: Final = (0, 70)


class Deaths(Chunks):
    """Children that come and go."""

    __slots__ = ("crashes",)

    def __init__(self, effects: Effects, times: Times, uniform: Callable[[], float]) -> None:
        super().__init__(effects, times, uniform)
        self.crashes = Tally()  # attempts by the cause of the death

    def child_starting(self, seat: Seat, now: float) -> None:
        """A child was ordered."""
        self._seats[seat.number] = seat
        self._relieves = self._relieves or len(self._seats) > 1
        self._give_until(seat, now, now + self._times.start_timeout)

    def child_ready(self, seat: Seat) -> None:
        """A child takes offers from now on."""
        if seat.state < READY:
            seat.state = READY
            seat.deadline_at = None
            self._idle[seat] = self._roomy[seat] = None

    def child_ended(self, seat: Seat) -> None:
        """A child is dead and has still to be reaped: it gets no more offers, and no deadline runs for it."""
        seat.state = max(seat.state, DYING)
        seat.kill_at = seat.timeout_at = seat.deadline_at = None
        self._idle.pop(seat, None)

    def child_died(self, seat: Seat, death: Death) -> None:
        """A child is reaped (or unkillable) and all its answers have been read."""
        if self._seats.pop(seat.number, None) is None:
            return
        seat.state = GONE
        self._idle.pop(seat, None)
        unstarted: list[Task] = []
        claimed = False
        for task in list(seat.offers.values()):
            generation, state, started_at, cursor = self._effects.peek(seat, task.slot)
            self._take_back(seat, task)
            if generation == task.generation and state in (CLAIM_OFFERED, CLAIM_REVOKED):
                unstarted.append(task)
                continue
            claimed = True
            task.set_back().unclaimed_deaths = 0
            self.crashes[death.cause] += 1
            status = task.decided or CRASHED
            self._note_attempt(task, Attempt(status, death.pid, started_at, death.at, death.cause))
            if task.items:
                unstarted += self._chunk_died(seat, task, cursor, death)
            elif task.decided:
                self._decided(task, died_in=seat)
            else:
                self._crashed(task, death, death.cause)
        self._roomy.pop(seat, None)  # where what was taken back has put it
        of_itself = death.cause in ("signal", "exit", "oom") and not seat.kill_cause
        if unstarted and not claimed and of_itself and death.exit_code not in ORDERLY_EXITS:
            unstarted = self._died_unclaimed(unstarted, death)
        self._put_back(unstarted)

    def _died_unclaimed(self, offers: list[Task], death: Death) -> list[Task]:
        """A child died by itself, between two tasks: what of its offers is to begin elsewhere."""
        first = offers[0]
        setbacks = first.set_back()
        setbacks.unclaimed_deaths += 1
        if setbacks.unclaimed_deaths < UNCLAIMED_DEATHS:
            return offers
        setbacks.unclaimed_deaths = 0
        if first.stop - first.start > 1:  # one of its items alone may be at fault
            self._effects.split(first, first.start, first.stop)
            self._piece_over(first)
        else:
            self._crashed(first, death, death.cause, unclaimed_deaths=UNCLAIMED_DEATHS)
        return offers[1:]

    def _crashed(self, task: Task, death: Death, cause: str, unclaimed_deaths: int = 0) -> None:
        """A task's child died; `task` is a task, or a range whose every item shares its fate."""
        task.attempts += 1
        setbacks = task.set_back()
        setbacks.crashes += 1
        if setbacks.crashes <= task.options.crash_retries and cause != "unkillable" and not setbacks.expired:
            self._retry(task)
            return
        report: dict[str, object] = {
            "pid": death.pid,
            "signal": death.signal,
            "exit_code": death.exit_code,
            "cause": cause,
            "attempt": task.attempts,
            # More than that one only for what is never tried again.
            "attempts": task.attempts + max(0, task.options.crash_retries + 1 - setbacks.crashes),
            "unclaimed_deaths": unclaimed_deaths,
        }
        self._end(task, CRASHED, report)

    def _chunk_died(self, seat: Seat, piece: Task, cursor: int, death: Death) -> list[Task]:
        """Settle a claimed range whose child died; what had not begun."""
        if piece.decided == CANCELLED:
            piece.state = SETTLE[piece.state]
            return []
        if piece.start == piece.stop:  # only that it was the last was still to be said
            self._piece_over(piece)
            return []
        if cursor == 0:  # while it was unpickled, which is no item's doing alone
            if piece.halted == CLOSING:
                return self._left_over(piece)
            if piece.stop - piece.start > 1:
                self._effects.split(piece, piece.start, piece.stop)
                self._piece_over(piece)
                return []
            cursor = piece.start + 1
        running = cursor - 1
        if not piece.start <= running < piece.stop:
            # Between two items, or a page that makes no sense: nothing unanswered is known to have begun.
            return self._left_over(piece)
        if piece.start < running:  # these ended, and their results died with the child
            lost = piece.part(piece.start, running)
            self._add_piece(lost)
            self._crashed(lost, death, "lost")
        alone = piece.part(running, running + 1)
        alone.decided = piece.decided
        self._add_piece(alone)
        if piece.decided:
            self._decided(alone, died_in=seat)
        else:
            self._crashed(alone, death, death.cause)
        piece.start = running + 1
        if piece.start == piece.stop:
            self._piece_over(piece)
            return []
        return self._left_over(piece)

    def _look_at_seat(self, seat: Seat, now: float) -> None:
        if seat.kill_at is not None and now >= seat.kill_at:
            self._grace_over(seat, now)
        if seat.state == LEAVING and not seat.offers and seat.deadline_at is None:
            self._give_until(seat, now, now + self._times.grace)
        if seat.deadline_at is not None and now >= seat.deadline_at:
            if seat.state >= DYING:
                self.child_died(seat, Death(seat.pid, _SIGKILL, None, "unkillable"))
                return
            self.kill(seat, "start" if seat.state != LEAVING else "retired", now)
        if seat.timeout_at is not None and now >= seat.timeout_at:
            seat.timeout_at = None
            for task in list(seat.offers.values()):
                self._look_at_task(seat, task, now)
        for at in (seat.kill_at, seat.deadline_at, seat.timeout_at):
            if at is not None:
                self._wake_at(at)
