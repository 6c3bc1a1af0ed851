"""How many children there are: the scheduler of a pool that grows, and shrinks with no harm to what runs.

A pool has n places, and each child holds one of them. A child that is to go *leaves*: it gets no more offers, what it
has not claimed goes back to the head of the queue, and a chunk is cut after the item that runs. When the last of what
it had claimed is answered it is dismissed: it exits by itself, as at the end of the pool, and is killed if it takes
longer than the grace. Its place is vacated as soon as nothing of the pool's work depends on it, so that another child
can be made while it exits.

               resize(less)          answered              exits
    READY ----------------> LEAVING ----------> dismissed -------> GONE
      ^  resize(more)          |
      +------------------------+
"""

from __future__ import annotations

from mpworker.supervisor.registry import CUT, DYING, LEAVING, READY, STARTING, Seat
from mpworker.supervisor.scheduler import Scheduler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Who goes first: whoever will be gone anyway, has the least to lose, or the least to do.
_RANKS: Final = {DYING: 0, LEAVING: 1, STARTING: 2, READY: 3}


def _dispensable(seat: Seat) -> tuple[int, bool, int, int]:
    return _RANKS[seat.state], bool(seat.offers), seat.load_ns, -seat.number


class Places(Scheduler):
    """A scheduler whose children may leave."""

    __slots__ = ()

    def serving(self) -> int:
        """Children that hold a place: what is missing to n is to be made."""
        return sum(not seat.vacated for seat in self._seats.values())

    def resize(self, n: int) -> None:
        """There are n places from now on. Who is missing then is for the caller to make."""
        surplus = self.serving() - n
        if surplus > 0:
            holders = [seat for seat in self._seats.values() if not seat.vacated]
            for seat in sorted(holders, key=_dispensable)[:surplus]:
                seat.vacated = True
                seat.recallable = seat.state < LEAVING
                self.retire(seat, "resized")
        else:
            working = [seat for seat in self._seats.values() if seat.state == LEAVING and seat.offers]
            for seat in [seat for seat in working if seat.recallable][:-surplus]:  # they may as well stay
                seat.state = READY
                self._roomy[seat] = None
                seat.vacated = seat.recallable = False
                seat.leaves = ""

    def retire(self, seat: Seat, why: str = "retired") -> None:
        """The child leaves."""
        if seat.state >= LEAVING:
            return
        seat.state = LEAVING
        seat.leaves = why
        self._idle.pop(seat, None)
        if not seat.offers:
            self._dismiss(seat)
        offers = list(seat.offers.values())
        self._return_unclaimed(offers)
        for task in offers:
            if task.seat is seat and task.items:
                self._halt(seat, task, CUT)
