"""What the pool has: tasks that wait, children, and the offers that tie the one to the other.

The scheduler is built in layers, a class and a file each, and each knows only those below it:

    scheduler    what comes in, answers, time
    deaths       children that start and die
    chunks       the items of a `map`
    ends         retries, outcomes, what is remembered
    interrupts   leases, timeouts and kills
    dispatch     who gets the next task
    order        queues, rates, pauses and drains
    offers       this one

All of them are one object: a call from one layer to another costs what a call of a method does.
"""

from __future__ import annotations

import heapq

from mpworker.containers import deque
from mpworker.supervisor.effects import CLAIM_OFFERED, CLAIM_REVOKED, Effects
from mpworker.supervisor.lifecycle import OFFER, QUEUED, RETURN, SCHEDULED, Event
from mpworker.supervisor.queues import DEAD_MAX, Queues
from mpworker.supervisor.registry import LEAVING, READY, Seat, Task
from mpworker.supervisor.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BUDGET_NS = 400_000  # of expected work that is offered to a child ahead of need


class Offers:
    """Tasks, children, and which child has which task.

    Args:
        effects: What carries out the decisions.
    """

    # Not to save memory: from 30 attributes on CPython looks each of them up in a dict, and every task pays for it.
    __slots__ = (
        "_crowded",
        "_dead",
        "_effects",
        "_generation",
        "_idle",
        "_next_at",
        "_pausing",
        "_pieces",
        "_planned",
        "_put",
        "_queue",
        "_queues",
        "_roomy",
        "_scheduled",
        "_seats",
        "_tasks",
        "scheduled",
    )

    def __init__(self, effects: Effects) -> None:
        self._effects = effects
        self._tasks: dict[int, Task] = {}
        # Of chunks, which may be in several ranges at once; in order, so that the same events have the same effects.
        self._pieces: dict[int, dict[Task, None]] = {}
        self._queue: deque[Task] = deque()  # until something asks for another order than this
        self._dead = 0  # that have ended in it
        self._put: Callable[[Task], None] = self._queue.append
        self._queues: Queues | None = None  # from then on: the planned ones
        self._planned = Queues()
        self._pausing: list[tuple[float, Task]] = []  # for so many seconds from the end of this turn on
        self._scheduled = Timers(lambda task: task.state == SCHEDULED)
        self.scheduled = 0  # tasks, not parts of a map, that wait for their time
        self._seats: dict[int, Seat] = {}
        self._idle: dict[Seat, None] = {}  # an ordered set
        # At least those that are ready and have less than BUDGET_NS to do: a turn that looked at all children for these
        # would cost a task of a pool of 64 half as much again as one of 8.
        self._roomy: dict[Seat, None] = {}
        self._generation = 0  # of the last offer
        self._crowded: dict[Seat, None] = {}  # those that hold an offer behind another: one that looks looks at no more
        self._next_at: float | None = None  # of all seats' own times; may be too early, never too late

    # ------------------------------------------------------------ who looks

    @property
    def busy(self) -> int:
        """Children that are not idle: with an offer, or that start or leave."""
        return len(self._seats) - len(self._idle)

    def offered(self) -> Iterable[Task]:
        """Those that are with a child, begun or not."""
        return (task for seat in self._seats.values() for task in seat.offers.values() if not task.items)

    def claimed_at(self, seat: Seat, task: Task) -> float | None:
        """Since when the child runs it; None if it has not begun."""
        generation, state, started_at, _ = self._effects.peek(seat, task.slot)
        if generation == task.generation and state in (CLAIM_OFFERED, CLAIM_REVOKED):
            return None
        return started_at

    # ------------------------------------------------------------ tasks in line

    def _in_order(self) -> Queues:
        if self._queues is None:
            self._queues = self._planned
            self._queues.adopt(self._queue, self._generation)
            self._put = self._queues.append
            for seat in self._seats.values():
                for task in seat.offers.values():
                    self._queues.offered(task)
        return self._queues

    def _tell_claims(self, queues: Queues) -> None:
        """Since when do those run whose start counts against a rate?"""
        unclaimed = queues.unclaimed()
        if not unclaimed:  # as ever without a rate
            return
        claims = []
        for task in unclaimed:
            assert task.seat is not None
            generation, state, started_at, _ = self._effects.peek(task.seat, task.slot)
            if generation != task.generation or state not in (CLAIM_OFFERED, CLAIM_REVOKED):
                claims.append((started_at, task.key, task))
        for started_at, _, task in sorted(claims, key=lambda claim: claim[:2]):
            queues.claimed(task, started_at)

    def _put_back(self, tasks: Iterable[Task]) -> None:
        """What was offered waits in line again, where it was: before all that never was."""
        back = sorted(tasks, key=Task.place)
        for task in back:
            task.order = task.place()[0]
            task.state = RETURN[task.state]
        if self._queues is not None:
            for task in back:
                self._queues.put_back(task)
        elif back:
            self._queue.extendleft(reversed(list(heapq.merge(self._came_back(), back, key=Task.place))))

    def _came_back(self) -> Iterable[Task]:
        """Take the head of the FIFO that came back before."""
        queue = self._queue
        while queue and queue[0].order:
            task = queue.popleft()
            if task.state == QUEUED:
                yield task
            else:
                self._dead -= 1

    def _leave_line(self, task: Task, event: Event) -> None:
        """A task ends; if it waits, in whatever line, that is one fewer there."""
        state, task.state = task.state, event[task.state]
        if state == SCHEDULED:
            self._scheduled.died()
            self.scheduled -= not task.items
        elif state == QUEUED and self._queues is not None:
            self._queues.dropped(task)
        elif state == QUEUED:
            self._dead += 1
            if self._dead > DEAD_MAX + len(self._queue) // 2:
                kept = [each for each in self._queue if each.state == QUEUED]
                self._queue.clear()
                self._queue.extend(kept)
                self._dead = 0

    def _add_piece(self, piece: Task) -> None:
        self._pieces[piece.key][piece] = None

    # ------------------------------------------------------------ offers

    def _offer(self, seat: Seat, task: Task, cost_ns: int, now: float) -> None:
        offers = seat.offers
        if not offers:
            self._idle.pop(seat, None)
        elif len(offers) == 1:
            self._crowded[seat] = None
        slot = task.slot = seat.free.pop()
        self._generation += 1
        task.generation = self._generation
        task.state = OFFER[task.state]
        task.seat = seat
        task.cost_ns = cost_ns
        seat.load_ns += cost_ns
        offers[slot] = task
        if task.options.timeout is not None:
            self._look_at(seat, now + task.options.timeout)
        self._effects.offer(seat, task)

    def _revoke(self, seat: Seat, task: Task) -> bool:
        """Take an offer back; False if it is claimed."""
        if self._effects.revoke(seat, task.slot, task.generation):
            self._take_back(seat, task)
            return True
        return False

    def _return_unclaimed(self, offers: Iterable[Task]) -> None:
        """Those of these offers that no child has claimed wait in line again.

        The last one is taken back first: a child that goes on meanwhile begins the next one, and none behind that.
        """
        last_first = sorted(offers, key=lambda task: task.generation, reverse=True)
        self._put_back([task for task in last_first if task.seat is not None and self._revoke(task.seat, task)])

    def _take_back(self, seat: Seat, task: Task) -> None:
        """The offer is over: revoked, answered, or its child is dead."""
        if self._queues is not None:
            self._tell_claims(self._queues)
            self._queues.over(task)
        held, was_full = len(seat.offers), seat.load_ns >= BUDGET_NS
        del seat.offers[task.slot]
        seat.free.append(task.slot)
        seat.load_ns -= task.cost_ns
        task.seat = None
        if task.decided:
            self._no_kill_for(seat, task.slot)
        self._freed(seat, held, was_full)

    def _freed(self, seat: Seat, held: int, was_full: bool) -> None:
        """Of a child's offers, which were so many and perhaps all that it may have, some are over."""
        if was_full and seat.load_ns < BUDGET_NS:
            self._roomy[seat] = None
        left = len(seat.offers)
        if left <= 1 < held:
            self._crowded.pop(seat, None)
        if not left and held:
            if seat.state == READY:
                self._idle[seat] = None
            elif seat.state == LEAVING:
                self._dismiss(seat)

    def _halt(self, seat: Seat, task: Task, halted: int) -> None:
        """The child begins no further item of this chunk: CUT or CLOSING says what becomes of the rest."""
        task.halted = max(task.halted, halted)  # what was cancelled stays so, whoever else would have it cut
        self._effects.halt(seat, task.slot, task.generation)

    def _dismiss(self, seat: Seat) -> None:
        """A child that leaves has no offer: its place is another's, and it shall exit. `mpworker.supervisor.places`."""
        seat.vacated = True
        self._effects.dismiss(seat)
        self._wake_at(0.0)  # its deadline begins then: nobody knows the time here

    # ------------------------------------------------------------ when to look at a child

    def _wake_at(self, at: float) -> None:
        if self._next_at is None or at < self._next_at:
            self._next_at = at

    def _look_at(self, seat: Seat, at: float) -> None:
        if seat.timeout_at is None or at < seat.timeout_at:
            seat.timeout_at = at
        self._wake_at(at)

    def _no_kill_for(self, seat: Seat, slot: int) -> None:
        """The interrupted task of this offer needs none; one that was interrupted after its answer may."""
        seat.kills.pop(slot, None)
        seat.kill_at = min(seat.kills.values(), default=None)
        if seat.kill_at is not None:
            self._wake_at(seat.kill_at)
