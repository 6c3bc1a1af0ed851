"""Who gets the next task: offers to children that are idle, offers ahead of need, and what is taken for the idle."""

from __future__ import annotations

from itertools import islice

from mpworker.containers import deque
from mpworker.supervisor.effects import Effects
from mpworker.supervisor.lifecycle import COME_DUE, QUEUED, RETURN, SCHEDULED
from mpworker.supervisor.offers import BUDGET_NS
from mpworker.supervisor.order import Order
from mpworker.supervisor.queues import Queues
from mpworker.supervisor.registry import READY, DetailedTask, Seat, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

WAKE_NS: Final = 50_000  # until a child begins that sleeps, on another core: measured, 36 to 41 us
AHEAD_NS: Final = 1_000_000  # a task of so much expected work at the most is offered behind another one
STEAL_AFTER: Final = 0.0005
RELIEVE_AFTER: Final = 0.002
_RELIEVE_AGAIN_MAX: Final = 0.1  # seconds between looks at children that begin nothing: each is twice the one before
_OVERTAKINGS_MAX: Final = 8  # in one turn; what is left is for the next


def _cost_ns(task: Task) -> int:
    """What a task or range takes of its child's budget: the work that is expected of it.

    It is all of the budget while the duration of a call is unknown, and half of it at most where that is short enough
    for another to be stuck behind: so that a child has its next task when it ends one.
    """
    function = task.function
    expected_ns = function.estimate_ns if function is not None else 0
    if not expected_ns:
        return BUDGET_NS * (task.stop - task.start) if task.items else BUDGET_NS
    if task.items:
        expected_ns *= task.stop - task.start
    return expected_ns if expected_ns > AHEAD_NS else min(expected_ns, BUDGET_NS // 2)


class Dispatch(Order):
    """Offers what waits to whoever has room."""

    __slots__ = ("_relieve_again", "_relieve_at", "_relieves", "_steal_at")

    def __init__(self, effects: Effects) -> None:
        super().__init__(effects)
        self._steal_at: float | None = None
        self._relieve_at = 0.0
        self._relieves = False  # there is, or was, more than one child: the only one would be given back what it had
        self._relieve_again = RELIEVE_AFTER

    @property
    def is_overtaken(self) -> bool:
        """Is something offered that a task in line is to go before, as there was too much of it for one turn?"""
        return self._queues is not None and bool(self._queues.overtaken)

    def _dispatch_in_line(self, now: float) -> None:
        queue, idle = self._queue, self._idle
        while queue and idle:
            task = queue.popleft()
            if task.state == QUEUED:
                seat = next(reversed(idle))  # its caches are the warmest; the others sleep on
                self._offer(seat, task, _cost_ns(task), now)
                if queue and seat.load_ns < WAKE_NS:
                    # What this child will have ended before another could begin costs less here, and is done as soon.
                    self._fill(seat, len(seat.free), now, WAKE_NS)
            else:
                self._dead -= 1
        if queue:
            share = len(queue) // (len(self._seats) or 1) + 1
            for seat in self._with_room():
                self._fill(seat, share, now)
                if not queue:
                    break
        elif self._idle and self._steal_at is None and self._crowded:
            self._steal_at = now + STEAL_AFTER

    def _with_room(self) -> Iterable[Seat]:
        """The children that may be offered more than they have; others are forgotten until they have room again."""
        roomy = self._roomy
        for seat in list(roomy):
            if seat.state == READY and seat.load_ns < BUDGET_NS:
                yield seat
            else:
                del roomy[seat]

    def _fill(self, seat: Seat, share: int, now: float, budget_ns: int = BUDGET_NS) -> None:
        queue = self._queue
        offers, free = seat.offers, seat.free
        function: object = self  # none's: a run of calls of one function costs one look at its estimate
        cost_ns = 0
        while queue and share and free:
            task = queue[0]
            if task.state == QUEUED:
                if task.items or task.function is not function:
                    cost_ns = _cost_ns(task)
                    function = task.function if not task.items else self
                if offers and seat.load_ns + cost_ns > budget_ns:
                    return
                self._offer(seat, task, cost_ns, now)
                share -= 1
            else:
                self._dead -= 1
            queue.popleft()

    def _dispatch_in_order(self, queues: Queues, now: float) -> None:
        """The same, one task at a time: `queues` says which."""
        queues.wake_at = None
        self._tell_claims(queues)
        for _ in range(_OVERTAKINGS_MAX):
            if queues.overtaken:
                self._let_overtake(queues)
            self._offer_waiting(queues, now)
            if not queues.overtaken:  # by what was let in line when an offer of its key was made or taken back
                break
        if self._idle and self._steal_at is None and self._crowded:
            self._steal_at = now + STEAL_AFTER

    def _offer_waiting(self, queues: Queues, now: float) -> None:
        while self._idle and (task := queues.first(now)) is not None:
            queues.take()
            self._offer_in_order(queues, next(reversed(self._idle)), task, now)  # the warmest, as above
        children = len(self._seats)
        share = len(queues) // (children or 1) + 1
        for seat in self._with_room():
            left = share
            while left and seat.free and (task := queues.first(now)) is not None:
                if not queues.may_wait(task, children):
                    break
                if seat.offers and seat.load_ns + _cost_ns(task) > BUDGET_NS:
                    break
                queues.take()
                queues.offered(task)
                self._offer(seat, task, _cost_ns(task), now)
                left -= 1

    def _offer_in_order(self, queues: Queues, seat: Seat, task: Task, now: float) -> None:
        if task.stop - task.start > 1 and queues.is_rated(task):
            # Each item is a start of its own.
            first = task.part(task.start, task.start + 1)
            self._add_piece(first)
            task.start += 1
            queues.put_back(task, owed=False)
            task = first
        queues.offered(task)
        self._offer(seat, task, _cost_ns(task), now)

    def relief_at(self) -> float | None:
        """When to look for offers that wait behind long tasks; None while none can."""
        return self._relieve_at if self._crowded and self._relieves else None

    def _relieve(self, now: float) -> None:
        """Offers behind a task that has run for long are for others, who would else go on with what comes after them.

        Its child is given nothing more ahead: what is offered there has the cost of all the budget.
        """
        behind: list[Task] = []
        works = False
        for seat in self._crowded:
            first = next(iter(seat.offers.values()))
            began = self.claimed_at(seat, first)
            works = works or began is not None
            if began is not None and now - began >= RELIEVE_AFTER:
                more_ns = max(0, BUDGET_NS - first.cost_ns)
                first.cost_ns += more_ns
                seat.load_ns += more_ns
                behind += list(seat.offers.values())[1:]
        self._relieve_again = RELIEVE_AFTER if works else min(2 * self._relieve_again, _RELIEVE_AGAIN_MAX)
        self._relieve_at = now + self._relieve_again
        self._return_unclaimed(behind)

    def _steal(self, now: float) -> None:
        """Take offers from behind long tasks: as many as the idle children have room for, and for them alone."""
        self._steal_at = None
        if self._queues is not None:  # which says who of them goes first
            self._return_unclaimed([task for seat in self._crowded for task in list(seat.offers.values())[1:]])
            return
        behind = {seat: list(seat.offers.values())[1:] for seat in self._crowded}
        # The warmest first, and no more of the idle than there are tasks.
        warmest = islice(reversed(self._idle), sum(map(len, behind.values())))
        shares: dict[Seat, list[Task]] = {seat: [] for seat in warmest}
        loads_ns = dict.fromkeys(shares, 0)
        thieves = deque(shares)  # that have room, in the order of their turns
        for seat, waiting in behind.items():
            for task in reversed(waiting[len(waiting) // 2 :]):
                cost_ns = _cost_ns(task)
                while thieves and (share := shares[thieves[0]]):
                    if len(share) < len(thieves[0].free) and loads_ns[thieves[0]] + cost_ns <= BUDGET_NS:
                        break
                    thieves.popleft()
                if not thieves:
                    break
                if self._effects.revoke(seat, task.slot, task.generation):
                    self._take_back(seat, task)
                    task.order = task.place()[0]
                    task.state = RETURN[task.state]
                    shares[thieves[0]].append(task)
                    loads_ns[thieves[0]] += cost_ns
                    thieves.rotate(-1)
        for thief, share in shares.items():
            for task in reversed(share):
                self._offer(thief, task, _cost_ns(task), now)

    def _schedule(self, now: float) -> None:
        for pause, task in self._pausing:
            if task.state == SCHEDULED:
                self._scheduled.push(now + pause, task)
        self._pausing.clear()

    def _queue_scheduled(self, now: float) -> None:
        for task in self._scheduled.due(now):
            task.state = COME_DUE[task.state]
            self.scheduled -= not task.items
            if not task.attempts and isinstance(task, DetailedTask):
                assert task.run_at is not None
                task.accepted_ns = max(task.accepted_ns, int(task.run_at * 1e9))  # how long it took counts from then on
            self._put(task)
