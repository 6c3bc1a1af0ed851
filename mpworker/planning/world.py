"""The world of a simulated pool: children, a supervisor that takes time, and the effects that join them.

It is as honest as the real one about who knows what. A child claims an offer by itself, some time after it was made;
the supervisor learns of an answer in its next turn; a turn takes as long as what came in asks for, and what is decided
in it reaches nobody before its end.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final, Protocol

from mpworker.planning.cores import Cores
from mpworker.planning.load import Attempt, Job, Pool
from mpworker.supervisor.effects import CLAIM_CLAIMED, CLAIM_OFFERED, CLAIM_REVOKED, CRASHED, INTERRUPTED
from mpworker.supervisor.places import Places
from mpworker.supervisor.registry import Death, DetailedTask, Function, Seat, Task, Times

# As in `mpworker.options.WorkerOptions`; a test compares these.
SLOTS: Final = 126
LEASE_TTL: Final = 10.0
START_TIMEOUT: Final = 60.0
KILL_TIMEOUT: Final = 10.0
_SIGNAL: Final = 11  # that a child dies of; which one changes nothing


class Books(Protocol):
    """Who is told what has come of it."""

    def begun(self, key: int, at: float) -> None:
        """An attempt begins."""

    def ended(self, key: int, status: int, at: float) -> None:
        """A task has ended, and its client knows it then."""


class Child:
    """A simulated child: claims, computes, answers."""

    __slots__ = ("attempt", "computing", "dead", "halted", "inbox", "page", "running", "seat")

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.page: list[tuple[int, int, float]] = [(0, 0, 0.0)] * seat.slots  # generation, claim, since when
        self.inbox: deque[tuple[int, int, Task]] = deque()
        self.running: tuple[int, int, Task] | None = None
        self.computing = 0  # its number on the cores
        self.attempt = Attempt(0.0)
        self.halted = 0  # the generation of what is to be interrupted
        self.dead = False


class World:
    """What the scheduler can act on: an `Effects` under virtual time, for all but chunks of a map.

    Args:
        pool: The pool.
        jobs: What tasks stand for, by their keys.
        books: Is told what has come of each.
        uniform: Called for a random number from 0 to 1.

    Attributes:
        now: The time.
        scheduler: The scheduler.
        cores: Those on which children compute.
        busy: Seconds of children that had a task.
    """

    def __init__(self, pool: Pool, jobs: Sequence[Job], books: Books, uniform: Callable[[], float]) -> None:
        self.now = 0.0
        self.busy = 0.0
        self.cores = Cores(pool.cores)
        self._costs = pool.costs
        self._jobs = jobs
        self._books = books
        self._functions: dict[int, Function] = {}
        self._children: dict[int, Child] = {}
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._numbers = 0
        # What has come for the supervisor: tasks, answers, and all else.
        self._arrivals: list[int] = []
        self._answers: list[tuple[Seat, int, int, int, int, bool, int]] = []
        self._news: list[tuple[Callable[..., None], Any]] = []
        self._free_at = -inf  # when it has done its last turn
        self._turn_at = self._timer_at = inf
        times = Times(LEASE_TTL, pool.grace, START_TIMEOUT, KILL_TIMEOUT)
        self.scheduler = Places(self, times, uniform)  # type: ignore[arg-type]  # chunks have more effects
        for name, limits in pool.queues.items():
            burst = limits.burst or pool.n
            self.scheduler.configure_queue(name, limits.weight, limits.max_running, limits.rate, burst, 0.0)
        if pool.rate is not None:
            self.scheduler.limit_rate(pool.rate, pool.burst or pool.n, 0.0)
        for _ in range(pool.n):
            self._make_child(pool.start)

    # ------------------------------------------------------------ time

    def next_at(self) -> float:
        """When something happens next, infinite for never."""
        at = min(self._turn_at, self._timer_at, self.cores.next_at())
        return min(at, self._events[0][0]) if self._events else at

    def move_to(self, now: float) -> None:
        """It is so late, which is no later than `next_at`."""
        self.now = now
        self.cores.advance(now)

    def step(self) -> None:
        """What is due does happen."""
        now, events = self.now, self._events
        while events and events[0][0] <= now:
            _, _, act, args = heapq.heappop(events)
            act(*args)
        while self.cores.next_at() <= now:
            self._computed(self.cores.pop())
        if self._turn_at <= now or self._timer_at <= now:
            self._turn(now)

    def _later(self, at: float, act: Callable[..., None], *args: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (at, self._numbers, act, args))

    # ------------------------------------------------------------ the supervisor

    def submit(self, key: int) -> None:
        """A task comes in; that it wakes the supervisor is counted with what its client waits."""
        self._arrivals.append(key)
        self._ask_turn(0.0)

    def cancel(self, key: int) -> None:
        """A client cancels a task, which may have ended."""
        self._tell(self._cancelled, key)

    def _cancelled(self, key: int, now: float) -> None:
        self.scheduler.cancel(key, now)

    def _ask_turn(self, wake: float) -> None:
        if self._turn_at == inf:
            self._turn_at = self._free_at if self._free_at > self.now else self.now + wake

    def _turn(self, now: float) -> None:
        """One turn of the supervisor's loop, in the order of `mpworker.supervisor.loop`."""
        scheduler = self.scheduler
        arrivals, self._arrivals = self._arrivals, []
        answers, self._answers = self._answers, []
        news, self._news = self._news, []
        self._turn_at = inf
        self._free_at = now + self._costs.decide * (len(arrivals) + len(answers))
        for key in arrivals:
            self._accept(key, now)
        for answer in answers:
            scheduler.done(*answer[:5], b"", *answer[5:])
        for act, what in news:
            act(what, now)
        at = scheduler.next_timer()
        if at is not None and now >= at:
            scheduler.timer(now)
        scheduler.dispatch(now)
        at = scheduler.next_timer()
        self._timer_at = inf if at is None else max(at, self._free_at)

    def _accept(self, key: int, now: float) -> None:
        job = self._jobs[key]
        function = self._functions.get(job.function)
        if function is None:
            function = self._functions[job.function] = Function(job.function, b"")
        if job.deadline is None and not job.key:
            self.scheduler.options_known(job.options)
            self.scheduler.submitted(Task(key, function, job.options, b"", 0, 0, int(now * 1e9)))
            return
        task = DetailedTask(key, function, job.options, b"")
        task.accepted_ns = int(now * 1e9)
        task.concurrency_key, task.concurrency = job.key, job.concurrency
        task.deadline_at = None if job.deadline is None else job.at + job.deadline
        self.scheduler.submitted_with_details(task)

    # ------------------------------------------------------------ children

    def _make_child(self, ready_at: float) -> None:
        self._numbers += 1
        child = Child(Seat(self._numbers, SLOTS, pid=self._numbers))
        self._children[child.seat.number] = child
        self.scheduler.child_starting(child.seat, self.now)
        self._later(ready_at, self._tell, self._ready, child)

    def _tell(self, act: Callable[..., None], what: Any) -> None:
        self._news.append((act, what))
        self._ask_turn(self._costs.wake)

    def _ready(self, child: Child, _now: float) -> None:
        self.scheduler.child_ready(child.seat)

    def _buried(self, child: Child, now: float) -> None:
        """The supervisor learns that a child is dead, and has another one made."""
        seat = child.seat
        self.scheduler.child_ended(seat)
        self.scheduler.child_died(seat, Death(seat.pid, _SIGNAL, None, seat.kill_cause or "signal", now))
        del self._children[seat.number]
        self._make_child(now + self._costs.fork)

    def _claim(self, child: Child) -> None:
        """Begin the next offer that still stands."""
        now = self.now
        while child.inbox and child.running is None and not child.dead:
            slot, generation, task = child.inbox.popleft()
            if child.page[slot][:2] != (generation, CLAIM_OFFERED):
                continue  # revoked
            child.page[slot] = (generation, CLAIM_CLAIMED, now)
            child.running = slot, generation, task
            if task.deadline_at is not None and now >= task.deadline_at:
                self._answer(child, INTERRUPTED)
                continue
            attempts = self._jobs[task.key].attempts
            child.attempt = attempts[min(task.attempts, len(attempts) - 1)]
            child.computing = self.cores.begin(child.attempt.seconds + self._costs.call, child)
            self._books.begun(task.key, now)

    def _computed(self, child: Child) -> None:
        """What it runs is over by itself."""
        child.computing = 0
        if child.attempt.status == CRASHED:
            self._die(child)
        else:
            self._answer(child, child.attempt.status)
            self._claim(child)

    def _answer(self, child: Child, status: int) -> None:
        assert child.running is not None
        slot, generation, task = child.running
        child.running = None
        started_at = child.page[slot][2]
        taken = self.now - started_at
        self.busy += taken
        # Of two attempts that are known the second one came for the first one's failure; after the last one none came.
        final = task.attempts + 1 >= len(self._jobs[task.key].attempts)
        duration_ns = max(1, int((taken - self._costs.call) * 1e9))
        self._answers.append((child.seat, slot, generation, status, duration_ns, final, int(started_at * 1e9)))
        self._ask_turn(self._costs.wake)

    def _interrupted(self, child: Child, generation: int) -> None:
        """The signal has come."""
        if child.running is not None and child.running[1] == generation and not child.dead:
            self.cores.stop(child.computing)
            child.computing = 0
            self._answer(child, INTERRUPTED)
            self._claim(child)

    def _die(self, child: Child) -> None:
        """A child is dead: of what it ran, or killed."""
        if child.dead:
            return
        child.dead = True
        if child.running is not None:
            self.busy += self.now - child.page[child.running[0]][2]
            if child.computing:
                self.cores.stop(child.computing)
        self._later(self.now + self._costs.wake, self._tell, self._buried, child)

    # ------------------------------------------------------------ effects: see `mpworker.supervisor.effects`

    def offer(self, seat: Seat, task: Task) -> None:
        """See there."""
        child = self._children[seat.number]
        child.page[task.slot] = (task.generation, CLAIM_OFFERED, 0.0)
        child.inbox.append((task.slot, task.generation, task))
        if child.running is None and len(child.inbox) == 1:
            self._later(self._free_at + self._costs.wake, self._claim, child)

    def revoke(self, seat: Seat, slot: int, generation: int) -> bool:
        """See there."""
        page = self._children[seat.number].page
        if page[slot] != (generation, CLAIM_OFFERED, 0.0):
            return False
        page[slot] = (generation, CLAIM_REVOKED, 0.0)
        return True

    def peek(self, seat: Seat, slot: int) -> tuple[int, int, float, int]:
        """See there."""
        return *self._children[seat.number].page[slot], 0

    def halt(self, seat: Seat, slot: int, generation: int) -> int:
        """See there."""
        del slot
        self._children[seat.number].halted = generation
        return 0

    def interrupt(self, seat: Seat) -> None:
        """See there."""
        child = self._children[seat.number]
        self._later(self._free_at + self._costs.wake, self._interrupted, child, child.halted)

    def ask_stack(self, seat: Seat) -> None:
        """See there."""

    def stack(self, seat: Seat) -> bytes:
        """See there."""
        del seat
        return b""

    def kill(self, seat: Seat) -> None:
        """See there."""
        self._later(self.now, self._die, self._children[seat.number])

    def beat(self, seat: Seat) -> float:
        """See there."""
        del seat
        return self.now

    def looked(self) -> None:
        """See there."""

    def emit(self, task: Task, status: int, payload: bytes) -> None:
        """See there."""
        del payload
        self._books.ended(task.key, status, self._free_at + self._costs.wake)

    def emit_report(self, task: Task, start: int, stop: int, status: int, report: dict[str, object]) -> None:
        """See there."""
        del start, stop
        self.emit(task, status, b"")
        del report
