"""The items of a `map`: a chunk is one envelope, answered in order, whose items are treated alone where they must be.

`Task.start` of a chunk is the first item that is not answered. An item that fails, times out or kills its child becomes
a range of its own; the rest of the chunk goes on.
"""

from mpworker.supervisor.effects import (
    CANCELLED,
    ERROR,
    EXITED,
    INTERRUPTED,
    OK,
    TIMED_OUT,
    UNSERIALIZABLE,
    ProtocolViolation,
)
from mpworker.supervisor.ends import Ends
from mpworker.supervisor.lifecycle import SETTLE
from mpworker.supervisor.registry import CLOSING, Seat, Task


class Chunks(Ends):
    """Chunks, and the ranges of items that they fall into."""

    __slots__ = ()

    def items(
        self,
        seat: Seat,
        slot: int,
        generation: int,
        start: int,
        stop: int,
        status: int,
        last: bool,
        duration_ns: int,
        payload: bytes,
        final: bool = False,
    ) -> None:
        """A child answered a run of a chunk's items; with `last` it is done with its offer, for `final` see `done`."""
        piece = seat.offers.get(slot)
        if piece is None or piece.generation != generation or not piece.items:
            return
        if start != piece.start or not start <= stop <= piece.stop:
            raise ProtocolViolation(f"items {start} to {stop} of a range {piece.start} to {piece.stop}")
        if status > INTERRUPTED:
            raise ProtocolViolation(f"status {status}")
        count = stop - start
        if last:
            self._take_back(seat, piece)
        if count:
            piece.start = stop
            if piece.function is not None and status == OK:
                piece.function.observe(duration_ns // count)
            self._items_ended(seat, piece, start, stop, status, payload, duration_ns, final)
            if piece.decided == TIMED_OUT and piece.decided_item < stop and not last:
                piece.decided = 0  # it was for an item that is settled now, and no other begins before `last`
                self._no_kill_for(seat, slot)
        if last:
            if piece.decided == CANCELLED:
                piece.state = SETTLE[piece.state]
            elif piece.decided and piece.decided_item < 0 and not count and piece.halted != CLOSING:
                self._late_before_any_item(piece)
            elif piece.start < piece.stop:
                self._put_back(self._left_over(piece))
            else:
                self._piece_over(piece)

    def _items_ended(
        self,
        seat: Seat,
        piece: Task,
        start: int,
        stop: int,
        status: int,
        payload: bytes,
        duration_ns: int,
        final: bool,
    ) -> None:
        """`piece.start` has passed these items; settle each."""
        if piece.decided == CANCELLED:
            return
        if piece.decided == TIMED_OUT and (start, stop) == (piece.decided_item, piece.decided_item + 1):
            status, payload = INTERRUPTED, payload if status == INTERRUPTED else b""  # rule 4
        if status == UNSERIALIZABLE and stop - start > 1:
            if piece.halted == CLOSING:
                self._effects.emit_report(piece, start, stop, CANCELLED, {})
            else:
                self._effects.split(piece, start, stop)
        elif status == INTERRUPTED and piece.decided:
            alone = piece.part(start, stop)
            alone.decided = piece.decided
            self._add_piece(alone)
            self._decided(alone, payload)
        elif status in (ERROR, EXITED) and not final and piece.retries_left():
            alone = piece.part(start, stop)
            alone.attempts += 1
            alone.set_back().failures += 1
            self._add_piece(alone)
            self._retry(alone, self._asked(seat, piece))
        else:
            self._effects.emit_items(piece, start, stop, status, payload, duration_ns)

    def _left_over(self, piece: Task) -> list[Task]:
        """What of a range is to begin elsewhere: nothing if it is CLOSING."""
        piece.decided = 0
        if piece.halted != CLOSING:
            piece.halted = 0
            return [piece]
        self._end(piece, CANCELLED)
        return []

    def _late_before_any_item(self, piece: Task) -> None:
        """The unpickling of its items took too long. Alone, the one that is at fault will too."""
        if piece.stop - piece.start > 1:
            self._effects.split(piece, piece.start, piece.stop)
            self._piece_over(piece)
        else:
            self._decided(piece)

    def _cancel_piece(self, piece: Task, now: float, interrupt: bool) -> None:
        """No further item of it begins. The one that runs is left to end, unless it is to be interrupted."""
        seat = piece.seat
        if seat is None:
            self._leave_line(piece, SETTLE)
            piece.payload = b""
        elif self._effects.revoke(seat, piece.slot, piece.generation):
            self._take_back(seat, piece)
            piece.state = SETTLE[piece.state]
        else:
            piece.decided = CANCELLED
            if interrupt:
                self._interrupt(seat, piece, now)
            else:
                self._effects.halt(seat, piece.slot, piece.generation)

    def asked_for_pause(self, seat: Seat, slot: int, generation: int, seconds: float) -> None:
        """The attempt whose answer comes next wants to be tried again after so many seconds."""
        seat.asked = (slot, generation, seconds)

    @staticmethod
    def _asked(seat: Seat, task: Task) -> float | None:
        """The pause that a task wants whose answer is taken in."""
        if seat.asked is None:
            return None
        slot, generation, seconds = seat.asked
        seat.asked = None
        return seconds if (slot, generation) == (task.slot, task.generation) else None
