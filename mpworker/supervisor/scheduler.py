"""The scheduler: every decision of the pool, as a pure state machine.

It is told what happened and when, and answers by calling its effects. It knows no clock, no process and no ring, so
that the same code runs in production and under virtual time in the tests.

    QUEUED --offer--> OFFERED --(the child claims, runs, answers)--> ENDED
     ^   ^               |
     |   +---- revoked, not claimed at a death, or retried at once
     +-- SCHEDULED <---- retried after a pause

Rules:

1. A task has at most one offer. A new one is made only after the old one was revoked by compare-and-swap, was answered,
   or its child is dead.
2. An answer counts only if its slot's outstanding offer has the answer's generation.
3. A child's death touches the task it had claimed. Its other offers go back to the head of the queue, at no cost. One
   that is first in line at UNCLAIMED_DEATHS deaths with nothing claimed is taken for what kills them: it is too large
   to be put together, say.
4. Once a timeout or a cancel is decided for a running task, its answer no longer matters. So for an item of a chunk,
   except that a child which answered it in one run with others, just before it could know, has answered in time.
5. A kill after the grace is for the task that was interrupted: what waits behind it is taken back first, and a child
   that has gone on to another task lives.
6. Offers ahead of need are bounded by time: BUDGET_NS of expected work per child, one task while the duration is
   unknown. What waits behind a long task is stolen by an idle child after STEAL_AFTER.
7. The time that this machine was paused is nobody's: neither a lease nor a deadline of a child runs meanwhile.

A chunk of `map` is an envelope. Its items are answered in order; `Task.start` is the first one not answered. An item
that fails, times out or kills its child is treated alone, as a range of its own; the rest of the chunk goes on.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

from mpworker.supervisor.effects import (
    CANCELLED,
    CLAIM_CLAIMED,
    CLAIM_OFFERED,
    CLAIM_REVOKED,
    CRASHED,
    END_BY,
    ERROR,
    EXITED,
    INTERRUPTED,
    OK,
    TIMED_OUT,
    UNSERIALIZABLE,
    Effects,
    ProtocolViolation,
    Watcher,
)
from mpworker.supervisor.history import Ended, History
from mpworker.supervisor.leases import Leases
from mpworker.supervisor.lifecycle import (
    BACK_OFF,
    COME_DUE,
    COMPLETE,
    FIRST_FINAL,
    OFFER,
    POSTPONE,
    QUEUED,
    RETRY,
    RETURN,
    SCHEDULED,
    SETTLE,
    Event,
)
from mpworker.supervisor.queues import DEAD_MAX, DEFAULT_QUEUE, DEFAULT_RANK, Queues
from mpworker.supervisor.registry import (
    DYING,
    GONE,
    LEAVING,
    READY,
    Attempt,
    Death,
    DetailedTask,
    Seat,
    Task,
    TaskOptions,
)
from mpworker.supervisor.timers import Timers

BUDGET_NS: Final = 200_000
STEAL_AFTER: Final = 0.0005
HISTORY_MAX: Final = 1000
HISTORY_BYTES_MAX: Final = 1 << 26
ATTEMPTS_MAX: Final = 100
REPORTS_MAX: Final = 3
REPORT_BYTES_MAX: Final = 1 << 14
UNCLAIMED_DEATHS: Final = 5
_SIGKILL: Final = 9  # the module of its name is the operating system's
# With these a child ends by itself once its task is answered, and what it had not begun has no part in it: the numbers
# are those of mpworker.child.main; a test compares them.
ORDERLY_EXITS: Final = (0, 70)


def _cost_ns(task: Task) -> int:
    """The work that is expected of a task or range; all of the budget while the duration of a call is unknown."""
    function = task.function
    call_ns = (function.estimate_ns if function is not None else 0) or BUDGET_NS
    return call_ns * (task.stop - task.start) if task.items else call_ns


class Scheduler:
    """The state of one pool.

    Args:
        effects: What carries out the decisions.
        slots: Offers that one child can hold.
        lease_ttl: See `Leases`.
        grace: Seconds from an interrupt to the kill.
        start_timeout: Seconds a child may take until it is ready.
        kill_timeout: Seconds after SIGKILL until a child counts as unkillable.
        uniform: Called for a random number from 0 to 1.
    """

    # Not to save memory: from 30 attributes on CPython looks each of them up in a dict, and every task pays for it.
    __slots__ = (
        "_clean_at",
        "_clean_every",
        "_closing",
        "_crowded",
        "_dead",
        "_deadlines",
        "_effects",
        "_grace",
        "_idle",
        "_keep",
        "_kill_timeout",
        "_leases",
        "_next_at",
        "_pausing",
        "_pieces",
        "_put",
        "_queue",
        "_queues",
        "_scheduled",
        "_seats",
        "_slots",
        "_start_timeout",
        "_steal_at",
        "_tasks",
        "_uniform",
        "_watched",
        "accepted",
        "crashes",
        "ended",
        "history",
        "retries",
        "watcher",
    )

    def __init__(
        self,
        effects: Effects,
        *,
        slots: int,
        lease_ttl: float,
        grace: float,
        start_timeout: float,
        kill_timeout: float,
        uniform: Callable[[], float],
    ) -> None:
        self._effects = effects
        self._slots = slots
        self._grace = grace
        self._start_timeout = start_timeout
        self._kill_timeout = kill_timeout
        self._leases = Leases(lease_ttl)
        self._uniform = uniform
        self._queue: deque[Task] = deque()  # until something asks for another order than this
        self._dead = 0  # that have ended in it
        self._put: Callable[[Task], None] = self._queue.append
        self._queues: Queues | None = None  # from then on
        self._pausing: list[tuple[float, Task]] = []  # for so many seconds from the end of this turn on
        self._scheduled = Timers(lambda task: task.state == SCHEDULED)
        self._deadlines = Timers(lambda task: task.state < FIRST_FINAL)
        self.history = History(HISTORY_MAX, HISTORY_BYTES_MAX, None, False)
        self.watcher: Watcher | None = None
        self._watched = False  # it hears of every task
        self._keep: Callable[[Ended], None] = self.history.entries.append
        self._clean_every = 0.0
        self._clean_at: float | None = None
        self.accepted = 0  # tasks, not parts of a map
        self.retries = 0
        self.ended: Counter[int] = Counter()  # tasks by their final state, but for those that were completed
        self.crashes: Counter[str] = Counter()  # attempts by the cause of the death
        # Of chunks, which may be in several ranges at once; in order, so that the same events have the same effects.
        self._pieces: dict[int, dict[Task, None]] = {}
        self._tasks: dict[int, Task] = {}
        self._seats: dict[int, Seat] = {}
        self._idle: dict[Seat, None] = {}  # an ordered set
        self._crowded = 0  # children that hold an offer behind another
        self._closing = False
        self._steal_at: float | None = None
        self._next_at: float | None = None  # of all seats' own times; may be too early, never too late

    # ------------------------------------------------------------ tasks come in

    def submitted(self, task: Task) -> None:
        """A new task or chunk was accepted."""
        if task.items:
            self._pieces[task.key] = {task: None}
        else:
            self._tasks[task.key] = task
            self.accepted += 1
        self._put(task)

    def submitted_watched(self, task: Task) -> None:
        """The same where somebody watches; see `watch`."""
        if self.watcher is not None:
            self.watcher.accepted(task)
        self.submitted(task)

    def submitted_with_details(self, task: DetailedTask) -> None:
        """A new task that has more to say than its options was accepted."""
        if task.concurrency_key:
            self._in_order()
        if task.deadline_at is not None:
            self._deadlines.push(task.deadline_at, task)
        if self._watched and self.watcher is not None:
            self.watcher.accepted(task)
        if task.run_at is None:
            self.submitted(task)
        else:
            self._tasks[task.key] = task
            self.accepted += 1
            task.state = POSTPONE[task.state]
            self._scheduled.push(task.run_at, task)

    def unfinished(self) -> int:
        """Tasks and chunks that have no outcome yet."""
        return len(self._tasks) + len(self._pieces)

    def unfinished_tasks(self) -> int:
        """Those of them that are tasks."""
        return len(self._tasks)

    def task(self, key: int) -> Task | None:
        """A task that has no outcome yet."""
        return self._tasks.get(key)

    def tasks(self) -> Iterable[Task]:
        """All of these, in the order in which they came."""
        return self._tasks.values()

    def scheduled(self) -> Iterable[Task]:
        """Those that wait for their time, and some that did."""
        tasks = [*(task for _, task in self._pausing), *(task for _, task in self._scheduled)]
        return (task for task in tasks if not task.items)

    def offered(self) -> Iterable[Task]:
        """Those that are with a child, begun or not."""
        return (task for seat in self._seats.values() for task in seat.offers.values() if not task.items)

    def claimed_at(self, seat: Seat, task: Task) -> float | None:
        """Since when the child runs it; None if it has not begun."""
        generation, state, started_at, _ = self._effects.peek(seat, task.slot)
        if generation == task.generation and state in (CLAIM_OFFERED, CLAIM_REVOKED):
            return None
        return started_at

    def seat_of(self, key: int) -> Seat | None:
        """Where a task is offered or running now."""
        task = self._tasks.get(key)
        return task.seat if task is not None else None

    def is_running(self, key: int) -> bool:
        """Has a child claimed the task?"""
        task = self._tasks.get(key)
        return task is not None and task.seat is not None and self.claimed_at(task.seat, task) is not None

    def cancel(self, key: int, now: float, interrupt: bool = False) -> bool:
        """A client cancels a task or a chunk. True: it will end CANCELLED (a chunk ends at once, with no outcome).

        Args:
            key: Which one.
            now: The time.
            interrupt: Also interrupt the items of a chunk that run, as a task is in any case.
        """
        pieces = self._pieces.pop(key, None)
        if pieces is not None:
            for piece in pieces:
                self._cancel_piece(piece, now, interrupt)
            return True
        task = self._tasks.get(key)
        if task is None:
            return False
        if task.decided == CANCELLED:
            return True
        seat = task.seat
        if seat is None:
            self._end(task, CANCELLED)
        elif self._effects.revoke(seat, task.slot, task.generation):
            self._take_back(seat, task)
            self._end(task, CANCELLED)
        else:
            task.decided = CANCELLED  # also over a timeout with retries left: the caller wants it gone
            self._interrupt(seat, task, now)
        return True

    def cancel_unstarted(self) -> None:
        """End CANCELLED whatever no child has begun; what runs goes on, with the retries that it has."""
        pieces = [piece for pieces in self._pieces.values() for piece in pieces]
        for task in [*self._tasks.values(), *pieces]:
            seat = task.seat
            if seat is None:
                self._end(task, CANCELLED)
            elif self._effects.revoke(seat, task.slot, task.generation):
                self._take_back(seat, task)
                self._end(task, CANCELLED)
            elif task.items:
                task.closing = True
                self._effects.halt(seat, task.slot, task.generation)
        if self._queues is not None:
            self._queues.clear()
        self._queue.clear()
        self._dead = 0

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

    def cancel_all(self, now: float) -> int:
        """Every task is cancelled, and every item of a map that has not begun; how many tasks that were."""
        count = len(self._tasks)
        self.cancel_unstarted()
        for key in list(self._tasks):
            self.cancel(key, now)
        return count

    def retain(
        self, max_entries: int, max_bytes: int, ttl: float | None, results: bool, interval: float, now: float
    ) -> None:
        """What is remembered of tasks that have ended; what is too old is looked for every `interval` seconds."""
        self.history.change(max_entries, max_bytes, ttl, results)
        self.watch(self._watched)
        self._clean_every = interval
        self._clean_at = now if ttl is not None else None

    def again(self, key: int, new_key: int, call: bytes, now_ns: int) -> bool:
        """Run a task once more that has ended, and not well, as a new one of this call; False if it is forgotten."""
        task = self.history.again(key, new_key, call)
        if task is None:
            return False
        task.accepted_ns = now_ns
        self.submitted_with_details(task)
        return True

    # ------------------------------------------------------------ who looks on

    def watch(self, on: bool) -> None:
        """Tell the watcher of each task that is accepted or ends, or no longer.

        Where nobody watches no task pays for the question: what each task comes by is replaced. For those that are
        accepted the caller does that, by `submitted_watched`.
        """
        watcher = self.watcher
        self._watched = on and watcher is not None
        self._keep = append = self.history.entries.append
        if not on or watcher is None:
            return

        def keep(entry: Ended) -> None:
            append(entry)
            watcher.ended(entry)

        self._keep = keep

    def begun(self, seat: Seat, slot: int, generation: int, started_at: float) -> None:
        """A child has claimed a task that is watched."""
        task = seat.offers.get(slot)
        if self._watched and self.watcher is not None and task is not None and task.generation == generation:
            self.watcher.begun(task, seat.pid, started_at)

    # ------------------------------------------------------------ dispatch

    def dispatch(self, now: float) -> None:
        """Offer what waits to whoever has room."""
        if self._pausing:
            self._schedule(now)
        if self._queues is not None:
            self._dispatch_in_order(self._queues, now)
        else:
            self._dispatch_in_line(now)
        if self._leases.next_at is None and any(seat.offers for seat in self._seats.values()):
            self._watch(now)

    def _dispatch_in_line(self, now: float) -> None:
        queue = self._queue
        while queue and self._idle:
            task = queue.popleft()
            if task.state == QUEUED:
                self._offer(next(iter(self._idle)), task, _cost_ns(task), now)
            else:
                self._dead -= 1
        if queue:
            share = len(queue) // (len(self._seats) or 1) + 1
            for seat in self._seats.values():
                if seat.state == READY and seat.load_ns < BUDGET_NS:
                    self._fill(seat, share, now)
                    if not queue:
                        break
        elif self._idle and self._steal_at is None and self._crowded:
            self._steal_at = now + STEAL_AFTER

    def _fill(self, seat: Seat, share: int, now: float) -> None:
        queue = self._queue
        offers, free = seat.offers, seat.free
        while queue and share and free:
            task = queue[0]
            if task.state == QUEUED:
                cost_ns = _cost_ns(task)
                if offers and seat.load_ns + cost_ns > BUDGET_NS:
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
        while self._idle and (task := queues.first(now)) is not None:
            queues.take()
            self._offer_in_order(queues, next(iter(self._idle)), task, now)
        share = len(queues) // (len(self._seats) or 1) + 1
        for seat in self._seats.values():
            if seat.state == READY and seat.load_ns < BUDGET_NS:
                left = share
                while left and seat.free and (task := queues.first(now)) is not None and queues.may_wait(task):
                    if seat.offers and seat.load_ns + _cost_ns(task) > BUDGET_NS:
                        break
                    queues.take()
                    queues.offered(task)
                    self._offer(seat, task, _cost_ns(task), now)
                    left -= 1
        if self._idle and self._steal_at is None and self._crowded:
            self._steal_at = now + STEAL_AFTER

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

    # ------------------------------------------------------------ the order of starts

    def options_known(self, options: TaskOptions) -> None:
        """Tasks with these options may come: in what order, that may be more than a FIFO can say."""
        if (options.queue, options.priority, -options.weight) != (DEFAULT_QUEUE, *DEFAULT_RANK):
            self._in_order()

    def _in_order(self) -> Queues:
        if self._queues is None:
            self._queues = Queues(self._queue)
            self._put = self._queues.append
            for seat in self._seats.values():
                for task in seat.offers.values():
                    self._queues.offered(task)
        return self._queues

    def configure_queue(
        self, name: str, weight: int, max_running: int | None, rate: float | None, burst: int, now: float
    ) -> None:
        """Make a queue, or change one; see `mpworker.queue.Queue`."""
        self._take_back_unclaimed([name])
        self._in_order().configure(name, weight, max_running, rate, burst, now)

    def limit_rate(self, rate: float | None, burst: int, now: float) -> None:
        """At most so many starts per second, and so many at once; None for no limit."""
        if rate is not None or self._queues is not None:
            self._take_back_unclaimed(None)
            self._in_order().limit_rate(rate, burst, now)

    def pause(self, names: list[str] | None) -> None:
        """Nothing of these queues (None: of all) starts from now on; what runs goes on. Not in a drain."""
        if self._closing:
            return
        queues = self._in_order()
        queues.pause(names, True)
        self._take_back_unclaimed(names)

    def drain_queues(self, names: list[str] | None) -> None:
        """What comes to these queues (None: to all) from now on does not start before `resume`. Not in a stop."""
        if self._closing:
            return
        queues = self._in_order()
        queues.drain(names)
        self._put = queues.put

    def are_drained(self, names: list[str] | None) -> bool:
        """Has all ended that was there before `drain_queues`, but for what is not due yet?"""
        queues = self._in_order()
        if not queues.is_drained(names):
            return False
        waiting = [*(task for _, task in self._pausing), *(task for _, task in self._scheduled)]
        return not any(
            task.state == SCHEDULED and task.attempts and (names is None or task.options.queue in names)
            for task in waiting
        )

    def resume(self, names: list[str] | None) -> None:
        """The end of `pause` and `drain_queues`."""
        queues = self._queues
        if queues is not None:
            queues.pause(names, False)
            queues.end_drain(names)
            if not queues.is_draining():
                self._put = queues.append

    def hold(self) -> None:
        """Nothing starts until `go_on`, whatever is paused or resumed meanwhile; what runs goes on.

        Not in a stop, which must come to its end.
        """
        if not self._closing:
            self._in_order().on_hold = True
            self._take_back_unclaimed(None)

    def go_on(self) -> None:
        """The end of `hold`."""
        if self._queues is not None:
            self._queues.on_hold = False

    def close(self) -> None:
        """What was accepted is finished: the end of every `pause`, `drain_queues` and `hold`."""
        self._closing = True
        self.go_on()
        if self._queues is not None:
            self.resume(None)
            self.resume(list(self._queues.states()))

    def limiter_waits(self) -> int:
        """Starts that a rate has delayed."""
        return self._queues.waits if self._queues is not None else 0

    def queue_states(self) -> dict[str, dict[str, object]]:
        """How each queue is, by name."""
        if self._queues is not None:
            return self._queues.states()
        states = Queues(deque()).states()  # to look at the FIFO must not make it one of many
        offers = sum(len(seat.offers) for seat in self._seats.values())
        states[DEFAULT_QUEUE] |= {"queued": len(self._queue) - self._dead, "running": offers}
        return states

    def _take_back_unclaimed(self, names: list[str] | None) -> None:
        """Offers of these queues (None: of all) that no child has claimed: they wait in line again."""
        queues = self._in_order()
        self._tell_claims(queues)
        for seat in self._seats.values():
            offers = [task for task in seat.offers.values() if names is None or task.options.queue in names]
            self._requeue_first([task for task in offers if self._revoke(seat, task)])
        self._tell_claims(queues)

    def _revoke(self, seat: Seat, task: Task) -> bool:
        """Take an offer back; False if it is claimed."""
        if self._effects.revoke(seat, task.slot, task.generation):
            self._take_back(seat, task)
            return True
        return False

    def _offer(self, seat: Seat, task: Task, cost_ns: int, now: float) -> None:
        offers = seat.offers
        if not offers:
            self._idle.pop(seat, None)
        elif len(offers) == 1:
            self._crowded += 1
        slot = task.slot = seat.free.pop()
        task.generation = seat.generation = seat.generation + 1
        task.state = OFFER[task.state]
        task.seat = seat
        task.cost_ns = cost_ns
        seat.load_ns += cost_ns
        offers[slot] = task
        if task.options.timeout is not None:
            self._look_at(seat, now + task.options.timeout)
        self._effects.offer(seat, task)

    def _take_back(self, seat: Seat, task: Task) -> None:
        """The offer is over: revoked, answered, or its child is dead."""
        if self._queues is not None:
            self._tell_claims(self._queues)
            self._queues.over(task)
        offers, slot = seat.offers, task.slot
        del offers[slot]
        seat.free.append(slot)
        seat.load_ns -= task.cost_ns
        task.seat = None
        if task.decided:
            self._no_kill_for(seat, slot)
        left = len(offers)
        if left == 1:
            self._crowded -= 1
        elif not left:
            if seat.state == READY:
                self._idle[seat] = None
            elif seat.state == LEAVING:
                self._dismiss(seat)

    def _dismiss(self, seat: Seat) -> None:
        """A child that leaves has no offer: its place is another's, and it shall exit. `mpworker.supervisor.places`."""
        seat.vacated = True
        self._effects.dismiss(seat)
        self._wake_at(0.0)  # its deadline begins then: nobody knows the time here

    def _requeue_first(self, tasks: Iterable[Task]) -> None:
        """Back to the head of the queue, in this order."""
        for task in reversed(list(tasks)):
            task.state = RETURN[task.state]
            if self._queues is not None:
                self._queues.put_back(task)
            else:
                self._queue.appendleft(task)

    def _steal(self, now: float) -> None:
        """Take offers from behind long tasks: as many as the idle children have room for, and for them alone."""
        self._steal_at = None
        shares: dict[Seat, list[Task]] = {seat: [] for seat in self._idle}
        loads_ns = dict.fromkeys(shares, 0)
        thieves = deque(shares)  # that have room, in the order of their turns
        for seat in self._seats.values():
            waiting = list(seat.offers.values())[1:]
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
                    task.state = RETURN[task.state]
                    shares[thieves[0]].append(task)
                    loads_ns[thieves[0]] += cost_ns
                    thieves.rotate(-1)
        for thief, share in shares.items():
            for task in reversed(share):
                if self._queues is not None:
                    self._queues.offered(task)
                self._offer(thief, task, _cost_ns(task), now)

    def _schedule(self, now: float) -> None:
        for pause, task in self._pausing:
            if task.state == SCHEDULED:
                self._scheduled.push(now + pause, task)
        self._pausing.clear()

    def _queue_scheduled(self, now: float) -> None:
        for task in self._scheduled.due(now):
            task.state = COME_DUE[task.state]
            self._put(task)

    def _leave_line(self, task: Task, event: Event) -> None:
        """A task ends; if it waits, in whatever line, that is one fewer there."""
        state, task.state = task.state, event[task.state]
        if state == SCHEDULED:
            self._scheduled.died()
        elif state == QUEUED and self._queues is not None:
            self._queues.dropped(task)
        elif state == QUEUED:
            self._dead += 1
            if self._dead > DEAD_MAX + len(self._queue) // 2:
                kept = [each for each in self._queue if each.state == QUEUED]
                self._queue.clear()
                self._queue.extend(kept)
                self._dead = 0

    # ------------------------------------------------------------ answers

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

    def done(
        self,
        seat: Seat,
        slot: int,
        generation: int,
        status: int,
        duration_ns: int,
        payload: bytes,
        final: bool = False,
        started_ns: int = 0,
    ) -> None:
        """A child answered a task that it had begun then; with `final` it is not to be tried again."""
        task = seat.offers.get(slot)
        if task is None or task.generation != generation or task.items:
            return  # stale: rule 2
        if status > INTERRUPTED:
            raise ProtocolViolation(f"status {status}")
        self._take_back(seat, task)
        if task.function is not None:
            task.function.observe(duration_ns)
        if task.decided:
            self._note_attempt(
                task, Attempt(task.decided, seat.pid, started_ns / 1e9, (started_ns + duration_ns) / 1e9)
            )
            self._decided(task, payload if status == INTERRUPTED else b"")
            return
        if status == OK:
            # What most tasks come to is asked first, and does not ask more than it must.
            task.state = COMPLETE[task.state]
            if self.history.results:
                self.history.keep(task, payload)
        elif status in (ERROR, EXITED) and task.failures < task.options.retries and not final and not task.expired:
            ended_at = (started_ns + duration_ns) / 1e9
            self._note_attempt(task, Attempt(status, seat.pid, started_ns / 1e9, ended_at, "", payload))
            task.attempts += 1
            task.failures += 1
            self._retry(task, self._asked(seat, task))
            return
        elif status == INTERRUPTED and isinstance(task, DetailedTask) and task.deadline_at is not None:
            task.decided = TIMED_OUT  # it came to the child too late, before our own timer saw that
            task.expired = True
            self._decided(task, payload)
            return
        else:
            task.state = END_BY[status][task.state]
            self.ended[task.state] += 1
            self.history.keep(task, payload)
        task.attempts += 1
        del self._tasks[task.key]
        self._keep((task, status, seat.pid, started_ns, duration_ns))
        task.payload = b""
        self._effects.emit(task, status, payload)

    def _note_attempt(self, task: Task, attempt: Attempt) -> None:
        if self.watcher is not None and not task.items:
            self.watcher.noted(task, attempt)
        self.note_attempt(task, attempt)

    @staticmethod
    def note_attempt(task: Task, attempt: Attempt) -> None:
        """An attempt that has not ended the task is over."""
        if not task.items:
            if task.past is None:
                task.past = []
            if len(attempt.report) > REPORT_BYTES_MAX:
                attempt = attempt._replace(report=b"")
            task.past.append(attempt)
            if len(task.past) > REPORTS_MAX:
                task.past[-REPORTS_MAX - 1] = task.past[-REPORTS_MAX - 1]._replace(report=b"")
            if len(task.past) > ATTEMPTS_MAX:
                del task.past[1]  # the first one and the last ones tell most

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
            elif piece.decided and piece.decided_item < 0 and not count and not piece.closing:
                self._late_before_any_item(piece)
            elif piece.start < piece.stop:
                self._requeue_first(self._left_over(piece))
            else:
                self._piece_over(piece)

    def _left_over(self, piece: Task) -> list[Task]:
        """What of a range is to begin elsewhere: nothing if it is closing."""
        piece.decided = 0
        if not piece.closing:
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
            if piece.closing:
                self._effects.emit_report(piece, start, stop, CANCELLED, {})
            else:
                self._effects.split(piece, start, stop)
        elif status == INTERRUPTED and piece.decided:
            alone = piece.part(start, stop)
            alone.decided = piece.decided
            self._add_piece(alone)
            self._decided(alone, payload)
        elif status in (ERROR, EXITED) and piece.failures < piece.options.retries and not final:
            alone = piece.part(start, stop)
            alone.attempts += 1
            alone.failures += 1
            self._add_piece(alone)
            self._retry(alone, self._asked(seat, piece))
        else:
            self._effects.emit_items(piece, start, stop, status, payload, duration_ns)

    def _add_piece(self, piece: Task) -> None:
        self._pieces[piece.key][piece] = None

    def _piece_over(self, piece: Task) -> None:
        piece.state = SETTLE[piece.state]
        self._forget_piece(piece)

    def _forget_piece(self, piece: Task) -> None:
        pieces = self._pieces.get(piece.key)
        if pieces is not None:
            pieces.pop(piece, None)
            if not pieces:
                del self._pieces[piece.key]

    def _retry(self, task: Task, asked: float | None = None) -> None:
        """Another attempt, after the pause that the task has asked for, or else its policy."""
        pause = asked
        if pause is None:
            backoff = task.options.backoff
            pause = backoff.pause(task.attempts, self._uniform()) if backoff is not None else 0.0
        task.decided = 0
        self.retries += 1
        if self.watcher is not None:
            self.watcher.retried(task, pause)
        if pause > 0.0:
            task.state = BACK_OFF[task.state]
            self._pausing.append((pause, task))
        else:
            task.state = RETRY[task.state]
            self._put(task)

    def _end(self, task: Task, status: int, report: dict[str, object] | None = None) -> None:
        """An outcome that was decided here: emit it and forget the task."""
        self._leave_line(task, END_BY[status])
        if task.items:
            if task.key in self._pieces:
                self._effects.emit_report(task, task.start, task.stop, status, report or {})
            self._forget_piece(task)
        else:
            del self._tasks[task.key]
            self.ended[task.state] += 1
            self._keep((task, status, 0, 0, 0))
            self.history.keep(task, report or {})
            self._effects.emit_report(task, 0, 0, status, report or {})
        task.payload = b""

    def _decided(self, task: Task, stack: bytes = b"", died_in: Seat | None = None) -> None:
        """The attempt whose outcome was decided is over: interrupted, with this stack, or dead with its child."""
        task.attempts += 1
        if task.decided == TIMED_OUT and self.watcher is not None:
            self.watcher.late(task)
        if task.decided == CANCELLED:
            self._end(task, CANCELLED)
        elif task.failures < task.options.retries and not task.expired:
            task.failures += 1
            self._retry(task)
        else:
            report: dict[str, object] = {
                "timeout": None if task.expired else task.options.timeout,
                "attempt": task.attempts,
                "attempts": task.attempts,
                "killed": died_in is not None,
                "interrupted": stack.decode(errors="replace"),
                # Not of a child that lives: what it wrote may be of its next task.
                "dumped": self._effects.stack(died_in).decode(errors="replace") if died_in is not None else "",
            }
            self._end(task, TIMED_OUT, report)

    # ------------------------------------------------------------ children

    def child_starting(self, seat: Seat, now: float) -> None:
        """A child was ordered."""
        self._seats[seat.number] = seat
        self._give_until(seat, now, now + self._start_timeout)

    def child_ready(self, seat: Seat) -> None:
        """A child takes offers from now on."""
        if seat.state < READY:
            seat.state = READY
            seat.deadline_at = None
            self._idle[seat] = None

    def kill(self, seat: Seat, cause: str, now: float) -> None:
        """Kill a child and blame `cause`."""
        if seat.state >= DYING:
            return
        seat.state = DYING
        seat.kill_cause = cause
        seat.kill_at = seat.timeout_at = None
        self._give_until(seat, now, now + self._kill_timeout)
        self._idle.pop(seat, None)
        self._effects.kill(seat)

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
            task.unclaimed_deaths = 0
            self.crashes[death.cause] += 1
            status = task.decided or CRASHED
            self._note_attempt(task, Attempt(status, death.pid, started_at, death.at, death.cause))
            if task.items:
                unstarted += self._chunk_died(seat, task, cursor, death)
            elif task.decided:
                self._decided(task, died_in=seat)
            else:
                self._crashed(task, death, death.cause)
        of_itself = death.cause in ("signal", "exit", "oom") and not seat.kill_cause
        if unstarted and not claimed and of_itself and death.exit_code not in ORDERLY_EXITS:
            unstarted = self._died_unclaimed(unstarted, death)
        self._requeue_first(unstarted)

    def _died_unclaimed(self, offers: list[Task], death: Death) -> list[Task]:
        """A child died by itself, between two tasks: what of its offers is to begin elsewhere."""
        first = offers[0]
        first.unclaimed_deaths += 1
        if first.unclaimed_deaths < UNCLAIMED_DEATHS:
            return offers
        first.unclaimed_deaths = 0
        if first.stop - first.start > 1:  # one of its items alone may be at fault
            self._effects.split(first, first.start, first.stop)
            self._piece_over(first)
        else:
            self._crashed(first, death, death.cause, unclaimed_deaths=UNCLAIMED_DEATHS)
        return offers[1:]

    def _crashed(self, task: Task, death: Death, cause: str, unclaimed_deaths: int = 0) -> None:
        """A task's child died; `task` is a task, or a range whose every item shares its fate."""
        task.attempts += 1
        task.crashes += 1
        if task.crashes <= task.options.crash_retries and cause != "unkillable" and not task.expired:
            self._retry(task)
            return
        report: dict[str, object] = {
            "pid": death.pid,
            "signal": death.signal,
            "exit_code": death.exit_code,
            "cause": cause,
            "attempt": task.attempts,
            # More than that one only for what is never tried again.
            "attempts": task.attempts + max(0, task.options.crash_retries + 1 - task.crashes),
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
            if piece.closing:
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

    # ------------------------------------------------------------ time

    def next_timer(self) -> float | None:
        """When `timer` must be called next, None for never."""
        at = self._next_at
        slowed = self._queues.wake_at if self._queues is not None else None
        timers = (self._scheduled.next_at, self._deadlines.next_at, self._clean_at)
        for other in (self._steal_at, self._leases.next_at, slowed, *timers):
            if other is not None and (at is None or other < at):
                at = other
        return at

    def timer(self, now: float) -> None:
        """Do what is due. All answers that have come in must have been told before."""
        if self._leases.next_at is not None and now >= self._leases.next_at:
            self._look_at_leases(now)
        if self._next_at is not None and now >= self._next_at:
            self._next_at = None
            for seat in list(self._seats.values()):
                self._look_at_seat(seat, now)
        if self._steal_at is not None and now >= self._steal_at:
            self._steal(now)
        self._queue_scheduled(now)
        for task in self._deadlines.due(now):
            self._expire(task, now)
        if self._clean_at is not None and now >= self._clean_at:
            self.history.evict(now)
            self._clean_at = now + self._clean_every

    def _expire(self, task: Task, now: float) -> None:
        """A task's deadline is here: it never starts again, and what runs is interrupted."""
        assert isinstance(task, DetailedTask)
        if task.decided == CANCELLED:
            return
        task.expired = True
        seat = task.seat
        if seat is None or self._revoke(seat, task):
            self._end(
                task,
                TIMED_OUT,
                {"timeout": None, "attempts": task.attempts, "killed": False, "interrupted": "", "dumped": ""},
            )
        elif not task.decided:
            task.decided = TIMED_OUT
            self._interrupt(seat, task, now)

    def _wake_at(self, at: float) -> None:
        if self._next_at is None or at < self._next_at:
            self._next_at = at

    def _look_at(self, seat: Seat, at: float) -> None:
        if seat.timeout_at is None or at < seat.timeout_at:
            seat.timeout_at = at
        self._wake_at(at)

    def _watch(self, now: float) -> None:
        self._leases.watch(now)
        self._say_looked()

    def _say_looked(self) -> None:
        if not any(seat.state == DYING for seat in self._seats.values()):
            self._effects.looked()

    def _give_until(self, seat: Seat, now: float, at: float) -> None:
        """A child that starts or dies has this deadline. The looks go on meanwhile, and tell of a pause."""
        seat.deadline_at = at
        self._wake_at(at)
        if self._leases.next_at is None:
            self._watch(now)

    def _look_at_leases(self, now: float) -> None:
        busy = [seat for seat in self._seats.values() if seat.offers and seat.state in (READY, LEAVING)]
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

    def _look_at_seat(self, seat: Seat, now: float) -> None:
        if seat.kill_at is not None and now >= seat.kill_at:
            self._grace_over(seat, now)
        if seat.state == LEAVING and not seat.offers and seat.deadline_at is None:
            self._give_until(seat, now, now + self._grace)
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

    def _grace_over(self, seat: Seat, now: float) -> None:
        """The interrupted task has not ended: kill its child, unless it ends just now and the next one runs already.

        What waits behind it is taken back first, so that nothing begins between this look and the kill.
        """
        unstarted: list[Task] = []
        gone_on = False
        for task in [task for task in seat.offers.values() if not task.decided]:
            if self._effects.revoke(seat, task.slot, task.generation):
                self._take_back(seat, task)
                unstarted.append(task)
            elif self._effects.peek(seat, task.slot)[:2] == (task.generation, CLAIM_CLAIMED):
                gone_on = True
        self._requeue_first(unstarted)
        if gone_on:
            seat.kill_at = None
            seat.kills.clear()
        else:
            self.kill(seat, "grace", now)

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

    def _interrupt(self, seat: Seat, task: Task, now: float, cursor: int | None = None) -> bool:
        """Interrupt the running task; its child is killed after the grace. False: the chunk is at another item."""
        since = self._effects.halt(seat, task.slot, task.generation)
        if cursor is not None and since != cursor:
            if not task.closing:
                self._effects.halt(seat, task.slot, 0)
            self._look_at(seat, now)
            return False
        if cursor is not None:  # it is late, and will have to say where it was
            self._effects.ask_stack(seat)
        self._effects.interrupt(seat)
        if seat.state < DYING:
            at = seat.kills.setdefault(task.slot, now + self._grace)
            if seat.kill_at is None:
                seat.kill_at = at
                self._wake_at(at)
        return True

    def _no_kill_for(self, seat: Seat, slot: int) -> None:
        """The interrupted task of this offer needs none; one that was interrupted after its answer may."""
        seat.kills.pop(slot, None)
        seat.kill_at = min(seat.kills.values(), default=None)
        if seat.kill_at is not None:
            self._wake_at(seat.kill_at)
