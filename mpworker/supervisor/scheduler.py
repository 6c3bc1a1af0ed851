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
6. The child that became idle last is the first to be offered something: its caches are warm. It is given what it
   will have ended before another could begin, WAKE_NS of expected work. Offers ahead of need are bounded by time:
   BUDGET_NS of expected work per child, two tasks where each is expected to take AHEAD_NS at most, one while the
   duration is unknown. What waits behind a long task is stolen by an idle child after STEAL_AFTER, and goes back to
   the line after RELIEVE_AFTER if none is idle. What is more urgent goes before what no child has begun.
7. The time that this machine was paused is nobody's: neither a lease nor a deadline of a child runs meanwhile.

A chunk of `map` is an envelope. Its items are answered in order; `Task.start` is the first one not answered. An item
that fails, times out or kills its child is treated alone, as a range of its own; the rest of the chunk goes on.
"""

from __future__ import annotations

from itertools import islice

from mpworker.supervisor.deaths import Deaths
from mpworker.supervisor.effects import (
    CANCELLED,
    END_BY,
    ERROR,
    EXITED,
    INTERRUPTED,
    OK,
    SLOT_BITS,
    SLOT_MAX,
    TIMED_OUT,
    WELL,
    Answer,
    Effects,
    ProtocolViolation,
)
from mpworker.supervisor.lifecycle import COMPLETE, FIRST_FINAL, POSTPONE
from mpworker.supervisor.offers import BUDGET_NS
from mpworker.supervisor.registry import CLOSING, Attempt, DetailedTask, Seat, Task, Times
from mpworker.supervisor.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Scheduler(Deaths):
    """The state of one pool.

    Args:
        effects: What carries out the decisions.
        times: How long it waits for children.
        uniform: Called for a random number from 0 to 1.
    """

    __slots__ = ("_deadlines", "accepted")

    def __init__(self, effects: Effects, times: Times, uniform: Callable[[], float]) -> None:
        super().__init__(effects, times, uniform)
        self._deadlines = Timers(lambda task: task.state < FIRST_FINAL)
        self.accepted = 0  # tasks, not parts of a map

    # ------------------------------------------------------------ tasks come in

    def submitted(self, task: Task) -> None:
        """A new task or chunk was accepted."""
        if task.items:
            self._pieces[task.key] = {task: None}
        else:
            self._tasks[task.key] = task
            self.accepted += 1
        self._put(task)

    def submitted_all(self, tasks: list[Task]) -> None:
        """New tasks were accepted, none of which is a chunk: as `submitted` of each, or where somebody watches so."""
        if self._queues is not None or self._watched:
            for task in tasks:
                self.submitted_watched(task) if self._watched else self.submitted(task)
            return
        known = self._tasks
        for task in tasks:
            known[task.key] = task
        self._queue.extend(tasks)
        self.accepted += len(tasks)

    def submitted_watched(self, task: Task) -> None:
        """The same where somebody watches; see `watch`."""
        if self.watcher is not None:
            self.watcher.accepted(task)
        self.submitted(task)

    def submitted_with_details(self, task: DetailedTask) -> None:
        """A new task that has more to say than its options was accepted."""
        if task.concurrency_key:
            self._in_order()
        elif self._queues is None:
            self.options_known(task.options)  # they may have come with it
        if task.keyed:
            self.history.any_results = True
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
            self.scheduled += not task.items
            self._scheduled.push(task.run_at, task)

    # ------------------------------------------------------------ who asks

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

    def keys(self) -> set[int]:
        """The numbers of all these, and of those that have ended and are remembered."""
        return {*self._tasks, *(entry[0].key for entry in self.history.remembered())}

    def seat_of(self, key: int) -> Seat | None:
        """Where a task is offered or running now."""
        task = self._tasks.get(key)
        return task.seat if task is not None else None

    def is_running(self, key: int) -> bool:
        """Has a child claimed the task?"""
        task = self._tasks.get(key)
        return task is not None and task.seat is not None and self.claimed_at(task.seat, task) is not None

    # ------------------------------------------------------------ cancels

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
        seat = self._end_unstarted(task)
        if seat is not None:
            task.decided = CANCELLED  # also over a timeout with retries left: the caller wants it gone
            self._interrupt(seat, task, now)
        return True

    def _end_unstarted(self, task: Task) -> Seat | None:
        """End CANCELLED what no child has begun; who has, if one has."""
        seat = task.seat
        if seat is not None and not self._revoke(seat, task):
            return seat
        self._end(task, CANCELLED)
        return None

    def cancel_unstarted(self) -> None:
        """End CANCELLED whatever no child has begun; what runs goes on, with the retries that it has."""
        pieces = [piece for pieces in self._pieces.values() for piece in pieces]
        for task in [*self._tasks.values(), *pieces]:
            seat = self._end_unstarted(task)
            if seat is not None and task.items:
                self._halt(seat, task, CLOSING)
        if self._queues is not None:
            self._queues.clear()
        self._queue.clear()
        self._dead = 0

    def cancel_all(self, now: float) -> int:
        """Every task is cancelled, and every item of a map that has not begun; how many tasks that were."""
        count = len(self._tasks)
        self.cancel_unstarted()
        for key in list(self._tasks):
            self.cancel(key, now)
        return count

    # ------------------------------------------------------------ claims and answers

    def begun(self, seat: Seat, slot: int, generation: int, started_at: float) -> None:
        """A child has claimed a task that is watched."""
        task = seat.offers.get(slot)
        if self._watched and self.watcher is not None and task is not None and task.generation == generation:
            self.watcher.begun(task, seat.pid, started_at)

    def well(self, seat: Seat, answers: list[Answer], at: int) -> int:
        """A child has answered, and all is well with these tasks: what `done` comes to for each, at half its cost.

        Nearly all answers are such, and come in batches: a call for each, or a look at what is the same for all, would
        cost more than what is done here.

        Args:
            seat: The child.
            answers: What it has answered, in its order; of other kinds, too.
            at: The first of them that is looked at.

        Returns:
            Where the first is that is for `done`, or of another kind.
        """
        if self._queues is not None or self.history.any_results:
            return at
        offers, free, tasks, keep, emit = seat.offers, seat.free, self._tasks, self._keep, self._effects.emit
        pid, held, was_full = seat.pid, len(seat.offers), seat.load_ns >= BUDGET_NS
        function, took_ns = None, list[int]()  # of a run of calls of one function
        try:
            for kind, flags, started_ns, generation, c, payload in islice(answers, at, None):
                slot = c & SLOT_MAX
                task = offers.get(slot)
                if kind != WELL or flags or task is None or task.generation != generation:
                    break
                if task.items or task.decided or task.call_at:
                    break
                at += 1
                del offers[slot]
                free.append(slot)
                seat.load_ns -= task.cost_ns
                task.seat = None
                if task.function is not function:
                    if function is not None:
                        function.observe(*took_ns)
                    function, took_ns = task.function, []
                duration_ns = c >> SLOT_BITS
                took_ns.append(duration_ns)
                task.state = COMPLETE[task.state]
                task.attempts += 1
                del tasks[task.key]
                keep((task, OK, pid, started_ns, duration_ns))
                task.payload = b""
                emit(task, OK, payload)
        finally:
            if function is not None:
                function.observe(*took_ns)
            self._freed(seat, held, was_full)
        return at

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
        function = task.function
        if function is not None:
            function.observe(duration_ns)
        if task.decided:
            self._note_attempt(
                task, Attempt(task.decided, seat.pid, started_ns / 1e9, (started_ns + duration_ns) / 1e9)
            )
            self._decided(task, payload if status == INTERRUPTED else b"")
            return
        if status == OK:
            # What most tasks come to is asked first, and does not ask more than it must.
            task.state = COMPLETE[task.state]
            if self.history.any_results:
                self.history.keep_result(task, payload)
        elif status in (ERROR, EXITED) and not final and task.retries_left():
            ended_at = (started_ns + duration_ns) / 1e9
            self._note_attempt(task, Attempt(status, seat.pid, started_ns / 1e9, ended_at, "", payload))
            task.attempts += 1
            task.set_back().failures += 1
            self._retry(task, self._asked(seat, task))
            return
        elif status == INTERRUPTED and isinstance(task, DetailedTask) and task.deadline_at is not None:
            task.decided = TIMED_OUT  # it came to the child too late, before our own timer saw that
            task.set_back().expired = True
            self._decided(task, payload)
            return
        else:
            task.state = END_BY[status][task.state]
            self.ended[task.state] += 1
            self.history.keep(task, payload)
        task.attempts += 1
        del self._tasks[task.key]
        self._keep((task, status, seat.pid, started_ns, duration_ns))
        if task.call_at:  # as of few
            task.forget_call()
        else:
            task.payload = b""
        self._effects.emit(task, status, payload)

    # ------------------------------------------------------------ time

    def next_timer(self) -> float | None:
        """When `timer` must be called next, None for never."""
        at = self._next_at
        slowed = self._queues.wake_at if self._queues is not None else None
        timers = (self._scheduled.next_at, self._deadlines.next_at, self._clean_at, self.relief_at())
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
        relief_at = self.relief_at()
        if relief_at is not None and now >= relief_at:
            self._relieve(now)
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
        task.set_back().expired = True
        seat = task.seat
        if seat is None or self._revoke(seat, task):
            report: dict[str, object] = {"timeout": None, "deadline": task.deadline_at, "attempts": task.attempts}
            self._end(task, TIMED_OUT, report | {"killed": False, "interrupted": "", "dumped": ""})
        elif not task.decided:
            task.decided = TIMED_OUT
            self._effects.ask_stack(seat)
            self._interrupt(seat, task, now)
