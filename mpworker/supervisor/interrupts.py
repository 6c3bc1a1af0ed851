"""What is done about a late child: its lease, its task's timeout, the interrupt, and the kill after the grace."""

from mpworker.supervisor.dispatch import RELIEVE_AFTER, Dispatch
from mpworker.supervisor.effects import CLAIM_CLAIMED, CLAIM_OFFERED, TIMED_OUT, Effects
from mpworker.supervisor.leases import Leases
from mpworker.supervisor.registry import DYING, LEAVING, READY, Seat, Task, Times


class Interrupts(Dispatch):
    """Children that are looked at, interrupted and killed.

    Args:
        effects: What carries out the decisions.
        times: How long it waits for children.
    """

    __slots__ = ("_leases", "_times")

    def __init__(self, effects: Effects, times: Times) -> None:
        super().__init__(effects)
        self._times = times
        self._leases = Leases(times.lease_ttl)

    def change_times(self, grace: float, start_timeout: float, kill_timeout: float) -> None:
        """Wait so long for a child from now on; who is waited for already is given what it was."""
        times = self._times
        times.grace, times.start_timeout, times.kill_timeout = grace, start_timeout, kill_timeout

    def dispatch(self, now: float) -> None:
        """Offer what waits to whoever has room."""
        if self._pausing:
            self._schedule(now)
        if self._queues is not None:
            self._dispatch_in_order(self._queues, now)
        else:
            self._dispatch_in_line(now)
        if self._crowded and self._relieve_at <= now:  # nothing waited behind another since then
            self._relieve_at = now + RELIEVE_AFTER
        if self._leases.next_at is None and any(seat.offers for seat in self._seats.values()):
            self._watch(now)

    # ------------------------------------------------------------ looks

    def asked(self, seat: Seat, now: float) -> None:
        """A child has been asked for a word: until it is heard, it holds a lease as for an offer."""
        seat.owes = True
        if self._leases.next_at is None:
            self._watch(now)

    def answered(self, seat: Seat) -> None:
        """A child has said all that it was asked for."""
        seat.owes = False

    def _watch(self, now: float) -> None:
        self._leases.watch(now)
        self._say_looked()

    def _say_looked(self) -> None:
        if not any(seat.state == DYING for seat in self._seats.values()):
            self._effects.looked()

    def _look_at_leases(self, now: float) -> None:
        working = (READY, LEAVING)
        busy = [seat for seat in self._seats.values() if (seat.offers or seat.owes) and seat.state in working]
        awaited = [seat for seat in self._seats.values() if seat.deadline_at is not None]
        away = self._leases.begin_look(now, bool(busy or awaited))
        for seat in awaited:
            assert seat.deadline_at is not None
            seat.deadline_at += away
        self._say_looked()
        for seat in busy:
            if self._leases.expired(now, self._effects.beat(seat)):
                self.kill(seat, "lease", now)
            elif seat.kill_at is None and any(self._spoilt(seat, task) for task in seat.offers.values()):
                self.kill(seat, "corrupt", now)

    def _spoilt(self, seat: Seat, task: Task) -> bool:
        """Is an open offer's word neither offered nor claimed? Then the child will never claim it, nor answer."""
        generation, state, _, _ = self._effects.peek(seat, task.slot)
        return generation != task.generation or state not in (CLAIM_OFFERED, CLAIM_CLAIMED)

    def _look_at_task(self, seat: Seat, task: Task, now: float) -> None:
        timeout = task.options.timeout
        if timeout is None or (task.decided and seat.kill_at is not None):
            return  # the item that a cancelled chunk is at has its timeout still
        generation, state, started_at, cursor = self._effects.peek(seat, task.slot)
        if generation == task.generation and state == CLAIM_OFFERED:
            self._look_at(seat, now + timeout)  # it has not begun, so it cannot be late before then
            return
        due_at = min(started_at, now) + timeout
        if now < due_at:
            self._look_at(seat, due_at)
        elif task.decided:
            self._interrupt(seat, task, now)
        elif self._interrupt(seat, task, now, cursor):
            task.decided = TIMED_OUT
            task.decided_item = cursor - 1

    # ------------------------------------------------------------ what follows

    def _interrupt(self, seat: Seat, task: Task, now: float, cursor: int | None = None) -> bool:
        """Interrupt the running task; its child is killed after the grace. False: the chunk is at another item."""
        since = self._effects.halt(seat, task.slot, task.generation)
        if cursor is not None and since != cursor:
            if not task.halted:
                self._effects.halt(seat, task.slot, 0)
            self._look_at(seat, now)
            return False
        if cursor is not None:  # it is late, and will have to say where it was
            self._effects.ask_stack(seat)
        self._effects.interrupt(seat)
        if seat.state < DYING:
            at = seat.kills.setdefault(task.slot, now + self._times.grace)
            if seat.kill_at is None:
                seat.kill_at = at
                self._wake_at(at)
        return True

    def _grace_over(self, seat: Seat, now: float) -> None:
        """The interrupted task has not ended: kill its child, unless it ends just now and the next one runs already.

        What waits behind it is taken back first, so that nothing begins between this look and the kill.
        """
        others = [task for task in seat.offers.values() if not task.decided]
        self._return_unclaimed(others)
        left = [task for task in others if task.seat is seat]
        if any(self._effects.peek(seat, task.slot)[:2] == (task.generation, CLAIM_CLAIMED) for task in left):
            seat.kill_at = None
            seat.kills.clear()
        else:
            self.kill(seat, "grace", now)

    def kill(self, seat: Seat, cause: str, now: float) -> None:
        """Kill a child and blame `cause`."""
        if seat.state >= DYING:
            return
        seat.state = DYING
        seat.kill_cause = cause
        seat.kill_at = seat.timeout_at = None
        self._give_until(seat, now, now + self._times.kill_timeout)
        self._idle.pop(seat, None)
        self._effects.kill(seat)

    def _give_until(self, seat: Seat, now: float, at: float) -> None:
        """A child that starts or dies has this deadline. The looks go on meanwhile, and tell of a pause."""
        seat.deadline_at = at
        self._wake_at(at)
        if self._leases.next_at is None:
            self._watch(now)
