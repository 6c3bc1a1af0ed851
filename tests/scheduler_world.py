"""A world for the scheduler under virtual time: children, claim pages and rings, and not one process.

Everything is honest about what a supervisor can know. A child moves only in `Child.step`; what it answers waits in its
ring until somebody reads it; a killed child goes on until it dies, and a dead one is unknown as such until it is
reaped. While the scheduler acts, children may move too: each look at a claim page lets those in `World.racing` take a
step first.

The world keeps its own record of what happened and fails at once when the scheduler breaks a promise: a second live
attempt, a start of what was cancelled, a second outcome, an outcome that nothing explains, a kill without cause.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mpworker.supervisor import dispatch
from mpworker.supervisor import effects as rules
from mpworker.supervisor.describe import Describer
from mpworker.supervisor.ids import Ids
from mpworker.supervisor.lifecycle import (
    CANCELLED,
    COMPLETED,
    FAILED,
    FIRST_FINAL,
    OFFERED,
    QUEUED,
    SCHEDULED,
    TIMED_OUT,
)
from mpworker.supervisor.offers import BUDGET_NS
from mpworker.supervisor.recycling import LOOK_SECONDS, Recycling
from mpworker.supervisor.registry import (
    DYING,
    LEAVING,
    READY,
    STARTING,
    Death,
    DetailedTask,
    Function,
    Seat,
    Task,
    TaskOptions,
    Times,
)

FREE, CLAIMED = 0, 2
SPLIT = "handed back"
# Exact in binary, so that "not before" and "not after" need no tolerance.
GRACE = 4.0
LEASE_TTL = 8.0
START_TIMEOUT = 32.0
KILL_TIMEOUT = 16.0

# What a last attempt with this status makes of its task.
_FINAL: dict[object, int] = {status: event[OFFERED] for status, event in rules.END_BY.items()}

QUEUES = ("default", "a", "b")
KEYS = {"x": 1, "y": 3}  # of tasks, and how many of each may run at once

# A task is (key, None), an item of a chunk (key, index).
Name = tuple[int, int | None]


@dataclass
class Slot:
    """One slot of a claim page."""

    generation: int = 0
    state: int = FREE
    started_at: float = 0.0
    cursor: int = 0
    halt: int = 0
    interrupted_at: float | None = None  # not in the real page


@dataclass
class Offer:
    """A TASK or RANGE record, and the scheduler's object for it: to tell whether a kill had a cause."""

    key: int
    slot: int
    generation: int
    start: int
    stop: int
    is_chunk: bool
    attempt: int
    task: Task

    def names(self) -> set[Name]:
        return {(self.key, index) for index in range(self.start, self.stop)} if self.is_chunk else {(self.key, None)}


@dataclass
class Attempt:
    """One begun attempt of a task or an item."""

    child: "Child"
    started_at: float
    ended_at: float | None = None
    status: int | None = None
    late: bool = False  # the scheduler decided so before it was answered
    final: bool = False  # its exception is not to be followed by another attempt
    asked: float | None = None  # after so many seconds it wants another

    def seconds(self, now: float) -> float:
        return (now if self.ended_at is None else self.ended_at) - self.started_at


@dataclass
class Accepted:
    """What the client knows of a task or chunk."""

    task: Task
    items: int
    options: TaskOptions
    cancelled: bool = False
    outcomes: dict[int | None, object] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return (self.cancelled and self.items > 0) or len(self.outcomes) == (self.items or 1)


class Child:
    """A child as `mpworker.child.main` is: claims, runs, answers, one task at a time."""

    def __init__(self, world: "World", seat: Seat) -> None:
        self.world = world
        self.seat = seat
        self.page = [Slot() for _ in range(seat.slots)]
        self.inbox: deque[Offer] = deque()
        self.ring: deque[tuple[object, ...]] = deque()
        self.ready = self.killed = self.dead = self.frozen = self.unkillable = self.signalled = False
        self.noticed = False  # its death is known, and not yet its report
        self.dismissed_at: float | None = None  # told to exit
        self.tasks_begun = self.items_begun = 0
        self.memory = 0
        self.exited = False
        self.stack = ""  # what it has written for the supervisor
        self.run: Offer | None = None
        self.inside = False  # the user's function, the only place where an interrupt is taken
        self.first = self.index = 0  # of a chunk: the first item that is not answered, and the running one
        self.final, self.asked = False, None  # what the next failure says
        self.beat_at = world.now
        self.began_at = self.killed_at = world.awake
        self.pauses = 0  # since it was started or killed

    def can_move(self) -> bool:
        return not self.dead and not self.frozen and not (self.killed and self.unkillable)

    def step(self, ending: int = rules.OK, duration_ns: int = 0, flush: bool = True) -> None:
        """The next thing that this child does; `ending` is how what runs ends."""
        if not self.can_move():
            return
        if not self.ready:
            self.ready = True
            self.ring.append(("ready",))
        elif self.run is None and self.dismissed_at is not None and not self.inbox:
            self.dead = self.exited = True
        elif self.run is None:
            self._claim()
        elif not self.run.is_chunk:
            self._end_task(ending, duration_ns)
        elif self.inside:
            self._end_item(ending, duration_ns, flush)
        elif ending == rules.UNSERIALIZABLE and self._slot().cursor == 0:
            self._cannot_unpickle(self.run)
        else:
            self._next_item(duration_ns)

    def take_signal(self) -> bool:
        """The interrupt arrives. Whether it ends what runs; a late one hits nobody."""
        if not self.can_move() or not self.signalled:
            return False
        self.signalled = False
        hit = self.run is not None and self.inside and self._slot().halt == self.run.generation
        if hit:
            self.step(rules.INTERRUPTED)
        return hit

    def _slot(self) -> Slot:
        assert self.run is not None
        return self.page[self.run.slot]

    def _claim(self) -> None:
        if not self.inbox:
            return
        offer = self.inbox.popleft()
        slot = self.page[offer.slot]
        if (slot.generation, slot.state) != (offer.generation, rules.CLAIM_OFFERED):
            return  # revoked
        self.world.starts(offer)
        slot.state = CLAIMED
        slot.started_at = self.world.now
        self.run = offer
        if offer.task.deadline_at is not None and self.world.now >= offer.task.deadline_at:
            self.ring.append(("done", offer.slot, offer.generation, rules.INTERRUPTED, 0, b"stack", False))
            self.run = None
            return
        for name in offer.names():
            self.world.claimed_at[name] = self.world.now
            self.world.before_claim[name] = len(self.world.attempts.get(name, ()))
        self.first = self.index = offer.start
        if not offer.is_chunk:
            self.inside = True
            self.world.begins((offer.key, None), self)

    def _end_task(self, status: int, duration_ns: int) -> None:
        assert self.run is not None
        offer, self.run, self.inside = self.run, None, False
        final = self._says((offer.key, None), status, offer)
        self.ring.append(("done", offer.slot, offer.generation, status, duration_ns, b"stack", final))

    def _says(self, name: Name, status: int, offer: Offer) -> bool:
        """An attempt ends: what it says of another one. Is it the last?"""
        failed = status in (rules.ERROR, rules.EXITED)
        final, asked = (self.final, self.asked) if failed else (False, None)
        self.world.ends(name, status, final, asked)
        if asked is not None:
            self.ring.append(("after", offer.slot, offer.generation, asked))
        return final

    def _next_item(self, duration_ns: int) -> None:
        assert self.run is not None
        slot = self._slot()
        if self.index == self.run.stop:
            self._flush(True, duration_ns)
            return
        slot.started_at = self.world.now
        slot.cursor = self.index + 1
        if slot.halt == self.run.generation:
            self._flush(True, duration_ns)
            return
        self.inside = True
        self.world.begins((self.run.key, self.index), self)

    def _end_item(self, status: int, duration_ns: int, flush: bool) -> None:
        assert self.run is not None
        self.inside = False
        if status == rules.OK:
            self.world.ends((self.run.key, self.index), status)
            self.index += 1
            if flush:
                self._flush(False, duration_ns)
            return
        if self.first < self.index:
            self._flush(False, duration_ns)
        final = self._says((self.run.key, self.index), status, self.run)
        self.index += 1
        self._answer(self.index, status, False, duration_ns, final)

    def _flush(self, last: bool, duration_ns: int) -> None:
        assert self.run is not None
        if self.index - self.first > 1 and self._slot().halt == self.run.generation:
            self._answer(self.index - 1, rules.OK, False, duration_ns)
        self._answer(self.index, rules.OK, last, duration_ns)
        if last:
            self.run = None

    def _answer(self, stop: int, status: int, last: bool, duration_ns: int, final: bool = False) -> None:
        assert self.run is not None
        self.ring.append(
            ("items", self.run.slot, self.run.generation, self.first, stop, status, last, duration_ns, b"stack", final)
        )
        self.first = stop

    def _cannot_unpickle(self, offer: Offer) -> None:
        for index in range(offer.start, offer.stop):
            now = self.world.now
            attempt = Attempt(self, now, now, rules.UNSERIALIZABLE)
            self.world.attempts.setdefault((offer.key, index), []).append(attempt)
        self._answer(offer.stop, rules.UNSERIALIZABLE, True, 0)
        self.run = None

    # ------------------------------------------------------------ what the world asks

    def in_line(self) -> list[Offer]:
        """What it may still claim, in that order."""
        open_word = rules.CLAIM_OFFERED
        words = ((offer, self.page[offer.slot]) for offer in self.inbox)
        return [offer for offer, word in words if (word.generation, word.state) == (offer.generation, open_word)]

    def holds(self) -> set[Name]:
        """What it may still run, or runs; not what it has answered."""
        names = {name for offer in self.in_line() for name in offer.names()}
        if self.run is not None:
            names |= {name for name in self.run.names() if name[1] is None or name[1] >= self.first}
        return names

    def at_fault(self) -> set[Name]:
        """What may pay for its death: what runs, and what ended and was not answered."""
        run = self.run
        if run is None:
            return set()
        if not run.is_chunk:
            return {(run.key, None)}
        running = self._slot().cursor - 1
        if running < 0:
            return {(run.key, run.start)} if run.stop - run.start == 1 else set()
        return {(run.key, index) for index in range(self.first, max(running + 1, self.index))}


class Watched(Recycling):
    """A scheduler that says whom it gives up, before what that child held is settled."""

    world: "World"

    def child_died(self, seat: Seat, death: Death) -> None:
        if death.cause == "unkillable" and seat.number in self._seats:
            self.world.given_up(seat, death)
        super().child_died(seat, death)


class World:
    """The scheduler, its children and its client; it is the scheduler's `Effects`."""

    def __init__(
        self,
        n: int,
        slots: int = 4,
        *,
        start: bool = True,
        max_tasks: int | None = None,
        soft: int | None = None,
        hard: int | None = None,
    ) -> None:
        self.now = 1024.0
        self.paused = 0.0  # of that
        self.slots = slots
        self.scheduler = Watched(
            self,
            times=Times(LEASE_TTL, GRACE, START_TIMEOUT, KILL_TIMEOUT),
            uniform=lambda: self.random,
            max_tasks=max_tasks,
            memory_soft=soft,
            memory_hard=hard,
        )
        self.soft, self.hard = soft, hard
        self.max_tasks = max_tasks
        self.random = 0.5
        self.scheduler.world = self
        self.children: dict[int, Child] = {}
        self.accepted: dict[int, Accepted] = {}
        self.attempts: dict[Name, list[Attempt]] = {}
        self.claimed_at: dict[Name, float] = {}
        self.before_claim: dict[Name, int] = {}  # attempts before the last claim
        self.dispatching = False
        # Queues, how much had been accepted before, and what of that was for later and had not come due.
        self.drained: dict[str, tuple[int, set[int]]] = {}
        self.barred: set[Name] = set()  # what had not begun when all that had not was cancelled
        self.sweeping = False  # that is under way
        self.paid: Counter[Name] = Counter()  # deaths that a name may have been blamed for
        self.blamed_unclaimed: set[Name] = set()
        self.unclaimed_deaths: Counter[Task] = Counter()  # since it was last claimed at a death
        self.reports: list[tuple[int, int, int, int, dict[str, object]]] = []
        self.log: list[tuple[object, ...]] = []
        self.looks: list[float] = []  # at children of whom none was dying
        self.paused_queues: set[str] = set()
        self.held = False
        self.max_running: dict[str, int | None] = {}
        self.rate: tuple[float, int] | None = None  # starts per second, and at once
        self.rated: list[float] = []  # when tasks have started since that was set
        self.raced = False
        self.racing: deque[tuple[Child, int]] = deque()
        self._next_child = 0
        self.wanted = n
        self.spawn_missing()
        if start:
            for child in self.children.values():
                child.step()
            self.turn()

    # ------------------------------------------------------------ what happens

    def spawn(self) -> Child:
        """One more than there were."""
        self.wanted += 1
        return self._make()

    def _make(self) -> Child:
        seat = Seat(self._next_child, self.slots, pid=4000 + self._next_child)
        self._next_child += 1
        child = self.children[seat.number] = Child(self, seat)
        self.scheduler.child_starting(seat, self.now)
        return child

    def spawn_missing(self) -> None:
        """As the loop does, once in each turn."""
        while self.scheduler.serving() < self.wanted:
            self._make()

    def resize(self, n: int) -> None:
        self.wanted = n
        running = {child.seat.number: child.run for child in self.children.values()}
        self.scheduler.resize(n)
        assert self.scheduler.serving() <= n
        for child in self.children.values():
            assert self.raced or child.run is running[child.seat.number], "a resize ended what ran"
        self.spawn_missing()

    def submit(
        self,
        function: Function | None = None,
        items: int = 0,
        concurrency_key: str = "",
        concurrency: int | None = None,
        deadline: float | None = None,
        delay: float | None = None,
        **options: Any,
    ) -> Task:
        key = len(self.accepted) + 1
        detailed = bool(concurrency_key) or deadline is not None or delay is not None
        task = (DetailedTask if detailed else Task)(key, function, TaskOptions(**options), b"payload", items)
        self.accepted[key] = Accepted(task, items, task.options)
        self.scheduler.options_known(task.options)
        if isinstance(task, DetailedTask):
            task.concurrency_key, task.concurrency = concurrency_key, concurrency or KEYS.get(concurrency_key, 1)
            task.deadline_at = None if deadline is None else self.now + deadline
            task.run_at = None if delay is None else self.now + delay
            self.scheduler.submitted_with_details(task)
        else:
            self.scheduler.submitted(task)
        return task

    def pause_queues(self, names: list[str] | None, paused: bool) -> None:
        """Pause some, or all of them, or go on."""
        if paused:
            self.scheduler.pause(names)
            self.paused_queues |= set(names or ["*"])
        else:
            self.scheduler.resume(names)
            self.paused_queues -= set(names or ["*"])
            for name in names or QUEUES:
                self.drained.pop(name, None)

    def drain_queues(self, names: list[str] | None) -> None:
        """What is accepted of them from here on does not start."""
        later = {task.key for _, task in self.scheduler._scheduled if task.state == SCHEDULED and not task.attempts}
        self.scheduler.drain_queues(names)
        for name in names or QUEUES:
            self.drained.setdefault(name, (len(self.accepted), later))

    def _check_drains(self) -> None:
        """A drain is over when all has ended that was there before it, and is not for later."""
        for name, (before, later) in self.drained.items():
            left = {
                task.key
                for task in [*self.waiting(), *self._offers(), *(each[-1] for each in self.scheduler._pausing)]
                if task.key <= before and task.options.queue == name and task.state < FIRST_FINAL
                if task.attempts or task.key not in later
            }
            left |= {
                task.key
                for _, task in self.scheduler._scheduled
                if task.state == SCHEDULED and task.attempts and task.options.queue == name
            }
            assert self.scheduler.are_drained([name]) == (not left), f"{left} of {name} are left"

    def _offers(self) -> list[Task]:
        return [task for seat in self.scheduler._seats.values() for task in seat.offers.values()]

    def hold(self, held: bool) -> None:
        """Let nothing start, or go on."""
        (self.scheduler.hold if held else self.scheduler.go_on)()
        self.held = held

    def configure_queue(self, name: str, weight: int, max_running: int | None) -> None:
        self.scheduler.configure_queue(name, weight, max_running, None, 1, self.now)
        self.max_running[name] = max_running

    def limit_rate(self, rate: tuple[float, int] | None) -> None:
        """The bucket is full when it is made, and goes on from what it has when it is changed."""
        self.scheduler.limit_rate(rate[0] if rate else None, rate[1] if rate else 1, self.now)
        if rate is None or self.rate is None or rate[1] > self.rate[1] or rate[0] != self.rate[0]:
            self.rated = []
        self.rate = rate

    def starts(self, offer: Offer) -> None:
        """A child claims: is that in accord with every limit?"""
        queue, key = offer.task.options.queue, offer.task.concurrency_key
        assert not self.paused_queues & {queue, "*"}, f"{offer.key} starts, and its queue is paused"
        assert not self.held, f"{offer.key} starts, and everything is held"
        assert not self._is_held(offer.task), f"{offer.key} starts, and its queue is drained"
        others = [child.run.task for child in self.children.values() if child.run is not None and not child.dead]
        limit = self.max_running.get(queue)
        assert limit is None or sum(task.options.queue == queue for task in others) < limit, f"too many of {queue} run"
        alike = [task.concurrency for task in others if key and task.concurrency_key == key]
        assert len(alike) < min([offer.task.concurrency, *alike]), f"too many of {key} run"
        if self.rate is not None:
            rate, burst = self.rate
            assert offer.stop - offer.start <= 1, "items of a chunk start together"
            self.rated.append(self.now)
            for count, since in enumerate(reversed(self.rated), start=1):
                assert count <= burst + rate * (self.now - since), f"{count} starts in {self.now - since} s"

    def waiting(self) -> list[Task]:
        """What is in line, the dead included."""
        queues = self.scheduler._queues
        if queues is None:
            return list(self.scheduler._queue)
        lanes = [lane for queue in queues._queues.values() for lane in queue.lanes.values()]
        held = [task for queue in queues._queues.values() for task in queue.held or ()]
        parked = [each[-1] for key in queues._keys.values() for heap in key.parked.values() for each in heap]
        return [*held, *parked, *(task for lane in lanes for task in (*lane.fifo, *(each[-1] for each in lane.early)))]

    def may_start(self, task: Task, instead_of: Task | None = None) -> bool:
        """Does no limit but a rate stand in its way?"""
        if self._is_held(task):
            return False
        offers = [other for other in self._offers() if other is not instead_of]
        limit = self.max_running.get(task.options.queue)
        alike = [each.concurrency for each in offers if each.concurrency_key == task.concurrency_key]
        return (
            not self.held
            and not self.paused_queues & {task.options.queue, "*"}
            and (limit is None or sum(other.options.queue == task.options.queue for other in offers) < limit)
            and (not task.concurrency_key or len(alike) < min([task.concurrency, *alike]))
        )

    def _is_held(self, task: Task) -> bool:
        before, later = self.drained.get(task.options.queue, (task.key, set()))
        return not task.attempts and (task.key > before or task.key in later)

    def cancel(self, key: int, interrupt: bool = False) -> bool:
        accepted = self.accepted[key]
        known = self.is_known(key)
        if known:
            accepted.cancelled = True  # from here on nothing of it may begin, nor end otherwise
        answer = self.scheduler.cancel(key, self.now, interrupt)
        assert answer == known, f"cancel of {key} said {answer}"
        return answer

    def cancel_all(self) -> None:
        self.cancel_unstarted(lambda: self.scheduler.cancel_all(self.now))
        for accepted in self.accepted.values():
            if not accepted.items and not accepted.ended:
                accepted.cancelled = True  # it had begun, and ends so

    def cancel_unstarted(self, sweep: Callable[[], object] | None = None) -> None:
        scheduler = self.scheduler
        tasks = [*scheduler._tasks.values(), *(piece for pieces in scheduler._pieces.values() for piece in pieces)]
        names = {name: task for task in tasks for name in _names(task)}
        self.sweeping = True
        (sweep or scheduler.cancel_unstarted)()
        self.sweeping = False
        # Whoever raced with that and claimed has begun what began; of a chunk no other item begins.
        self.barred |= {name for name, task in names.items() if not self._has_begun(name, task)}
        for name in names:
            ended = name[1] in self.accepted[name[0]].outcomes
            assert not ended or name in self.barred, f"{name} had begun and is cancelled"
            assert ended or name not in self.barred or name[1] is not None, f"{name} has not begun and goes on"

    def _has_begun(self, name: Name, task: Task) -> bool:
        if task.seat is None:
            return False
        word = self.children[task.seat.number].page[task.slot]
        claimed = (word.generation, word.state) == (task.generation, CLAIMED)
        return claimed and len(self.attempts.get(name, ())) > self.before_claim[name]

    def is_known(self, key: int) -> bool:
        """Has it no outcome yet, or is the child that answered a chunk's last item still to say that it is done?"""
        accepted = self.accepted[key]
        if accepted.ended:
            offered = any(task.key == key for seat in self.scheduler._seats.values() for task in seat.offers.values())
            return accepted.items > 0 and not accepted.cancelled and offered
        return True

    def read(self, child: Child, limit: int | None = None) -> None:
        """The supervisor takes in answers."""
        while child.ring and limit != 0:
            taken = self.read_well(child, limit)
            if taken:
                limit = limit if limit is None else limit - taken
                continue
            kind, *rest = child.ring.popleft()
            if kind == "ready":
                self.scheduler.child_ready(child.seat)
            elif kind == "after":
                self.scheduler.asked_for_pause(child.seat, *rest)  # type: ignore[arg-type]
            elif kind == "done":
                self.scheduler.done(child.seat, *rest)  # type: ignore[arg-type]
            else:
                self.scheduler.items(child.seat, *rest)  # type: ignore[arg-type]
            limit = limit if limit is None else limit - 1

    def read_well(self, child: Child, limit: int | None) -> int:
        """It takes in those that all is well with, together; how many."""
        answers: list[rules.Answer] = []
        for kind, *rest in itertools.islice(child.ring, limit):
            if kind != "done":
                break
            slot, generation, status, duration_ns, payload, final = rest
            answers.append((rules.WELL, status | final << 8, 0, generation, slot | duration_ns << 8, payload))  # type: ignore[operator, arg-type]
        taken = self.scheduler.well(child.seat, answers, 0)
        for _ in range(taken):
            child.ring.popleft()
        return taken

    def turn(self) -> None:
        """One turn of the supervisor's loop."""
        for child in list(self.children.values()):
            self.read(child)
        self.raced = False
        at = self.scheduler.next_timer()
        if at is not None and self.now >= at:
            self.scheduler.timer(self.now)
            for child in list(self.children.values()):
                if child.seat.state > DYING:
                    del self.children[child.seat.number]
                    self.spawn_missing()
                else:
                    over = self._awaited(child, child.killed_at, KILL_TIMEOUT)
                    assert not (child.killed and over) or child.noticed, "an unkillable child is waited for"
                    over = self._awaited(child, child.began_at, START_TIMEOUT)
                    assert not over or child.seat.state != STARTING or child.noticed, "a start is waited for"
            if not self.raced:
                self._check_late()
        self.spawn_missing()
        self.dispatching = True
        self.scheduler.dispatch(self.now)
        self.dispatching = False
        assert self.scheduler.serving() == self.wanted
        self._check_no_work_left()
        self._check_room()
        self._check_overtaken()
        self.racing.clear()

    @property
    def awake(self) -> float:
        """Seconds that this machine was not paused."""
        return self.now - self.paused

    def _awaited(self, child: Child, since: float, timeout: float) -> bool:
        """Is the time over in any case? A pause may be taken for longer than it was, by the time between two looks."""
        return self.awake - since >= timeout + child.pauses * LEASE_TTL / 4

    def given_up(self, seat: Seat, death: Death) -> None:
        child = self.children[seat.number]
        assert child.killed, "given up and never killed"
        assert not child.noticed, "known to be dead and given up"
        assert self.awake >= child.killed_at + KILL_TIMEOUT, "given up too early"
        assert (death.pid, death.signal) == (4000 + seat.number, 9)
        self._blame(child)
        self._guilty(child, by_itself=False)

    def advance(self, seconds: float) -> None:
        """Time goes by, children beat, and the killed are dead."""
        if seconds:
            self.bury()
        self.now += seconds
        for child in self.children.values():
            if child.can_move():
                child.beat_at = self.now

    def next_timer(self) -> float | None:
        """As the scheduler's, of what is there when time goes by: by then the killed are dead, and others start."""
        at = self.scheduler.next_timer()
        if at is None or at > self.now:
            self.bury()
            at = self.scheduler.next_timer()
        return at

    def pause(self, seconds: float) -> None:
        """The machine stands still, and nobody beats."""
        self.now += seconds
        self.paused += seconds
        for child in self.children.values():
            child.pauses += 1

    def bury(self) -> None:
        """SIGKILL has done its work."""
        for child in list(self.children.values()):
            if child.killed and not child.unkillable:
                self.die(child)
                self.reap(child)

    def die(self, child: Child) -> None:
        """The kernel ends the process; nobody knows yet."""
        child.dead = True

    def notice(self, child: Child) -> None:
        """The supervisor sees that a process is dead, and reads its last answers."""
        assert child.dead
        self.read(child)
        self.scheduler.child_ended(child.seat)
        child.noticed = True

    def reap(self, child: Child, signal: int = 9, exit_code: int | None = None, cause: str = "signal") -> None:
        """The supervisor learns that a child is dead, reads its last answers, and replaces it."""
        assert child.dead
        if child.exited:
            signal, exit_code, cause = 0, 0, "exit"
        self.read(child)
        self._blame(child)
        guilty = self._guilty(child, by_itself=cause in ("signal", "exit", "oom") and exit_code not in (0, 70))
        attempts_before = {key: accepted.task.attempts for key, accepted in self.accepted.items() if not accepted.items}
        self.scheduler.child_died(child.seat, Death(4000 + child.seat.number, signal, exit_code, cause))
        for key, before in attempts_before.items():
            blamed = guilty is not None and guilty.key == key and not guilty.is_chunk
            assert self.accepted[key].task.attempts == before + blamed, f"the death changed the fate of task {key}"
        if guilty is not None and guilty is not child.run and guilty.stop - guilty.start > 1:
            ends = {self.accepted[key].outcomes.get(item) for key, item in guilty.names()}
            assert ends == {SPLIT}, f"chunk {guilty.key} kills whoever takes it, and goes on"
        del self.children[child.seat.number]
        self.spawn_missing()

    def _guilty(self, child: Child, by_itself: bool) -> Offer | None:
        """What pays for a death: what was claimed, or what was first in line when the fifth child died without."""
        if child.run is not None:
            self.unclaimed_deaths[child.run.task] = 0
            return child.run
        line = child.in_line()
        if not line or not by_itself or child.seat.kill_cause:
            return None
        first = line[0]
        self.unclaimed_deaths[first.task] += 1
        if self.unclaimed_deaths[first.task] < 5:
            return None
        self.unclaimed_deaths[first.task] = 0
        if first.stop - first.start <= 1:
            self.paid.update(first.names())
            self.blamed_unclaimed |= first.names()
        return first

    def _blame(self, child: Child) -> None:
        for name in child.at_fault():
            self.paid[name] += 1
        for attempts in self.attempts.values():
            if attempts[-1].child is child and attempts[-1].ended_at is None:
                attempts[-1].ended_at = self.now

    # ------------------------------------------------------------ what the children report

    def begins(self, name: Name, child: Child) -> None:
        accepted = self.accepted[name[0]]
        attempts = self.attempts.get(name, [])
        if name[1] is None:
            child.tasks_begun += 1
            at_most = self.max_tasks is None or child.tasks_begun <= self.max_tasks or child.items_begun
            assert at_most, f"child {child.seat.number} runs a task too many"
        else:
            child.items_begun += 1
        assert not accepted.cancelled, f"{name} was cancelled and starts"
        assert name not in self.barred, f"{name} was cancelled with all that had not begun, and starts"
        assert name[1] not in accepted.outcomes, f"{name} has ended and starts"
        assert not attempts or attempts[-1].ended_at is not None, f"{name} has two live attempts"
        options = accepted.options
        task = accepted.task
        if isinstance(task, DetailedTask):
            assert task.run_at is None or self.now >= task.run_at, f"{name} starts before its time"
            assert task.deadline_at is None or self.now < task.deadline_at, f"{name} starts after its deadline"
        failed = sum(
            attempt.status in (rules.ERROR, rules.EXITED)
            or attempt.late
            or (options.timeout is not None and attempt.seconds(self.now) >= options.timeout)
            for attempt in attempts
        )
        assert len(attempts) <= options.retries + options.crash_retries, f"{name} is retried too often"
        if attempts:
            last = attempts[-1]
            # What a death took along was never told, and what was late no longer matters.
            told = last.status in (rules.ERROR, rules.EXITED) and not last.late and not self.paid[name]
            assert not (told and last.final), f"{name} starts again after a final exception"
            pause = last.asked if told else 0.0
            if pause is None or not told:
                pause = options.backoff.pause(len(attempts), self.random) if options.backoff is not None else 0.0
            assert last.ended_at is not None
            assert self.now >= last.ended_at + pause, f"{name} was to pause for {pause} s"
        assert len(attempts) <= failed + self.paid[name], f"{name} starts again for no reason"
        self.attempts[name] = [*attempts, Attempt(child, self.now)]

    def ends(self, name: Name, status: int, final: bool = False, asked: float | None = None) -> None:
        attempt = self.attempts[name][-1]
        attempt.ended_at, attempt.status, attempt.final, attempt.asked = self.now, status, final, asked

    # ------------------------------------------------------------ effects

    def offer(self, seat: Seat, task: Task) -> None:
        child = self.children[seat.number]
        start, stop = (task.start, task.stop) if task.items else (0, 0)
        offer = Offer(task.key, task.slot, task.generation, start, stop, task.items > 0, task.attempts + 1, task)
        assert seat.state == READY
        assert not child.noticed, "the dead are offered work"
        assert child.dismissed_at is None, "who was told to exit is offered work"
        accepted = self.accepted[task.key]
        assert not accepted.cancelled, "what was cancelled is offered"
        assert accepted.outcomes.keys().isdisjoint(item for _, item in offer.names()), "what has ended is offered"
        assert task.generation > child.page[task.slot].generation, "a slot's generation repeats"
        assert child.run is None or child.run.slot != task.slot, "the slot is in use"
        for other in self.children.values():
            assert not other.holds() & offer.names(), f"{other.holds() & offer.names()} is offered twice"
        child.page[task.slot] = Slot(task.generation, rules.CLAIM_OFFERED)
        child.inbox.append(offer)
        if self.dispatching:
            self._check_order(task)
        self.log.append(("offer", seat.number, task.key))

    def _race(self) -> None:
        if self.racing:
            child, ending = self.racing.popleft()
            child.step(ending)
            self.raced = True

    def revoke(self, seat: Seat, slot: int, generation: int) -> bool:
        self._race()
        word = self.children[seat.number].page[slot]
        if (word.generation, word.state) != (generation, rules.CLAIM_OFFERED):
            return False
        word.state = rules.CLAIM_REVOKED
        self._check_none_is_left_behind(self.children[seat.number], seat.offers[slot])
        self.log.append(("revoke", seat.number))
        return True

    def _check_none_is_left_behind(self, child: Child, task: Task) -> None:
        """Whoever goes on meanwhile must not begin what comes after something that was taken back."""
        if self.sweeping or self.accepted[task.key].cancelled or task.setbacks.expired:
            return  # it ends
        for offer in child.in_line():
            alike = offer.task.options.queue == task.options.queue and _rank(offer.task) == _rank(task)
            assert not alike or offer.generation < task.generation, f"{task.key} is taken back from before {offer.key}"

    def peek(self, seat: Seat, slot: int) -> tuple[int, int, float, int]:
        self._race()
        word = self.children[seat.number].page[slot]
        return word.generation, word.state, word.started_at, word.cursor

    def halt(self, seat: Seat, slot: int, generation: int) -> int:
        self._race()
        word = self.children[seat.number].page[slot]
        word.halt = generation
        return word.cursor

    def interrupt(self, seat: Seat) -> None:
        child = self.children[seat.number]
        child.signalled = True
        for word in child.page:
            if word.state == CLAIMED and word.halt == word.generation and word.interrupted_at is None:
                word.interrupted_at = self.now
                running = child.run is not None and word is child.page[child.run.slot]
                if child.run is None or not running:
                    continue
                if not child.run.is_chunk:
                    self.attempts[child.run.key, None][-1].late = True
                elif child.first < word.cursor:
                    self.attempts[child.run.key, word.cursor - 1][-1].late = True
        self.log.append(("interrupt", seat.number))

    def ask_stack(self, seat: Seat) -> None:
        child = self.children[seat.number]
        child.stack = ""
        if child.can_move() and child.run is not None:
            child.stack = f"stack of {child.run.key}"
        self.log.append(("ask_stack", seat.number))

    def stack(self, seat: Seat) -> bytes:
        return self.children[seat.number].stack.encode()

    def kill(self, seat: Seat) -> None:
        child = self.children[seat.number]
        assert not child.killed
        assert not child.noticed, "the dead are killed"
        child.killed, child.killed_at, pauses = True, self.awake, child.pauses
        child.pauses = 0
        cause = seat.kill_cause
        self.log.append(("kill", seat.number, cause))
        if cause == "lease":
            assert child.frozen or child.dead, "a child that beats was taken for frozen"
        elif cause == "start":
            assert not child.ready or ("ready",) in child.ring
            assert self.awake >= child.began_at + START_TIMEOUT, f"killed too early, after {pauses} pauses"
        elif cause == "memory":
            assert self.hard is not None
            assert child.memory > self.hard
        elif cause == "retired":
            assert child.dismissed_at is not None, "killed and never told to exit"
            over = self.awake >= child.dismissed_at + GRACE
            assert over or self.awake >= child.began_at + START_TIMEOUT, "killed while it may still exit"
        elif cause == "grace":
            run = child.run
            assert run is not None or child.ring, "killed after the task that it was for"
            assert run is None or run.task.decided, f"killed for another task while {run.key} ran"
            if run is not None:
                since = child.page[run.slot].interrupted_at
                assert since is not None, f"killed while task {run.key} ran uninterrupted"
                assert self.now >= since + GRACE, "killed before its grace was over"

    def dismiss(self, seat: Seat) -> None:
        child = self.children[seat.number]
        assert child.dismissed_at is None, "told to exit twice"
        assert not child.noticed, "the dead are told to exit"
        assert seat.state == LEAVING
        assert seat.vacated
        assert not child.in_line(), "told to exit with something to do"
        assert child.run is None or child.ring, "told to exit while it runs something"
        child.dismissed_at = self.awake
        self.log.append(("dismiss", seat.number))

    def memory(self, seat: Seat) -> int:
        return self.children[seat.number].memory

    def beat(self, seat: Seat) -> float:
        return self.children[seat.number].beat_at

    def looked(self) -> None:
        assert not any(seat.state == DYING for seat in self.scheduler._seats.values())
        self.looks.append(self.now)

    def emit(self, task: Task, status: int, payload: bytes) -> None:
        self._outcome(task.key, None, status)

    def emit_items(self, task: Task, start: int, stop: int, status: int, payload: bytes, duration_ns: int) -> None:
        for index in range(start, stop):
            self._outcome(task.key, index, status)

    def emit_report(self, task: Task, start: int, stop: int, status: int, report: dict[str, object]) -> None:
        self.reports.append((task.key, start, stop, status, report))
        if report.get("dumped"):
            assert report["dumped"] == f"stack of {task.key}", f"{task.key} ends with the stack of another task"
        for index in range(start, stop) if task.items else (None,):
            self._outcome(task.key, index, status)

    def split(self, task: Task, start: int, stop: int) -> None:
        assert stop - start > 1, "one item alone cannot be split"
        for index in range(start, stop):
            self._outcome(task.key, index, SPLIT)

    def _outcome(self, key: int, item: int | None, status: object) -> None:
        accepted = self.accepted[key]
        name = (key, item)
        assert item not in accepted.outcomes, f"{name} has a second outcome"
        attempts = self.attempts.get(name, [])
        if accepted.cancelled:
            assert not accepted.items, "a cancelled chunk says no more"
            assert status == rules.CANCELLED, f"{name} was cancelled and ends with {status}"
        elif status == rules.TIMED_OUT:
            timeout = accepted.options.timeout
            deadline = accepted.task.deadline_at
            if deadline is not None and self.now >= deadline:
                timeout = 0.0
            assert timeout is not None
            began = bool(attempts) and (attempts[-1].late or attempts[-1].seconds(self.now) >= timeout)
            never = deadline is not None and self.now >= deadline
            assert began or never or self.now >= self.claimed_at[name] + timeout, f"{name} was in time"
        elif status == rules.CRASHED:
            assert self.paid[name], f"{name} crashed without a death"
        elif status == rules.CANCELLED:
            never = attempts and attempts[-1].status == rules.UNSERIALIZABLE  # nor could it, before it was sent alone
            assert name in self.barred or never or self.sweeping, f"{name} had begun and is cancelled"
        elif status != SPLIT:
            assert attempts, f"{name} has an outcome and never began"
            assert attempts[-1].status == status, f"{name} ended with {attempts[-1].status}, not {status}"
        # While it waited for its retry, or that had not begun.
        swept = status == rules.CANCELLED and (self.sweeping or name in self.barred)
        if attempts and attempts[-1].late and not accepted.cancelled and not swept:
            retried = status == rules.CRASHED and name in self.blamed_unclaimed
            assert status == rules.TIMED_OUT or retried, f"{name} was late and ends with {status}"
        if name in self.barred:
            assert status in (rules.CANCELLED, rules.UNSERIALIZABLE), f"{name} never began and ends with {status}"
        accepted.outcomes[item] = status
        self.log.append(("outcome", key, item, status))

    # ------------------------------------------------------------ invariants

    def _check_late(self) -> None:
        """After the timers: what runs for longer than it may has been told to stop, unless a race moved it since."""
        for child in self.children.values():
            run = child.run
            if run is None or child.seat.state != READY or run.task.options.timeout is None:
                continue
            word = child.page[run.slot]
            in_user_code = child.inside or word.cursor == 0
            if in_user_code and self.now >= word.started_at + run.task.options.timeout:
                assert word.halt == run.generation, f"task {run.key} is late and runs on"
                assert child.seat.kill_at is not None, f"task {run.key} is late and nothing will end it"

    def _check_no_work_left(self) -> None:
        """After a dispatch: no child that could work is idle while a task waits."""
        seats = [child.seat for child in self.children.values() if child.seat.state == READY]
        if any(not seat.offers for seat in seats):
            waiting = [task.key for task in self.waiting() if task.state == QUEUED and self.may_start(task)]
            assert not waiting or self.rate is not None, f"tasks {waiting} wait and a child is idle"
            if any(len(seat.offers) > 1 for seat in seats):
                at = self.scheduler.next_timer()
                assert at is not None, "nobody will steal"
                assert at <= self.now + dispatch.STEAL_AFTER, "stealing comes late"

    def _check_overtaken(self) -> None:
        """After a dispatch: what has not begun goes before nothing that is to start first."""
        waiting = [task for task in self.waiting() if task.state == QUEUED]
        for child in self.children.values():
            for slot, task in child.seat.offers.items():
                if (child.page[slot].generation, child.page[slot].state) == (task.generation, rules.CLAIM_OFFERED):
                    for other in waiting:
                        if other.concurrency_key and other.concurrency != task.concurrency:
                            continue  # it came, and could not start then for its limit, which is another one
                        first = other.options.queue == task.options.queue and _rank(other) < _rank(task)
                        assert not first or not self.may_start(other, task), f"{task.key} goes before {other.key}"

    def _check_order(self, task: Task) -> None:
        """Of what waits in its queue and may start, no other comes first."""
        mine = _rank(task)
        for other in self.waiting():
            if other.key == task.key or other.state != QUEUED or other.options.queue != task.options.queue:
                continue
            assert _rank(other) >= mine or not self.may_start(other), f"{task.key} starts before {other.key}"
            if _rank(other) == mine and _has_its_first_place(task) and _has_its_first_place(other):
                assert other.key > task.key, f"{task.key} starts before {other.key}, which came first"

    def _check_room(self) -> None:
        """Who may have room for more is known, and nobody who is gone."""
        seats = self.scheduler._seats.values()
        roomy = {seat for seat in seats if seat.state == READY and seat.load_ns < BUDGET_NS}
        assert roomy <= set(self.scheduler._roomy) <= set(seats)

    def _check_counts(self) -> None:
        """Each task is in one place, and counted there."""
        told = Describer(self.scheduler, Ids(tuple)).metrics()
        places = ("scheduled", "queued", "running", "completed", "failed", "cancelled", "timed_out")
        assert told["accepted"] == sum(told[place] for place in places)
        tasks = {key: accepted for key, accepted in self.accepted.items() if not accepted.items}
        assert told["accepted"] == len(tasks)
        ends = Counter(_FINAL[each.outcomes[None]] for each in tasks.values() if each.outcomes)
        for place, state in zip(places[3:], (COMPLETED, FAILED, CANCELLED, TIMED_OUT), strict=True):
            assert told[place] == ends[state], f"{ends[state]} tasks are {place}, and {told[place]} are counted"
        assert told["scheduled"] == sum(
            accepted.task.state == SCHEDULED and not accepted.outcomes for accepted in tasks.values()
        )

    def check(self) -> None:
        """What holds at every moment."""
        self._check_counts()
        self._check_drains()
        scheduler = self.scheduler
        where: Counter[Name] = Counter()
        for task in self.waiting():
            if task.state == QUEUED:
                assert task.seat is None
                assert not task.decided, "a decision about an attempt that is over"
                where.update(_names(task))
        scheduled = [*(each[-1] for each in scheduler._pausing), *(task for _, task in scheduler._scheduled)]
        for task in scheduled:
            if task.state == SCHEDULED:
                assert task.seat is None
                assert not task.decided
                where.update(_names(task))
        for seat in scheduler._seats.values():
            room = seat.slots if self.max_tasks is None else min(seat.slots, max(0, self.max_tasks - seat.ran))
            if seat.state <= READY:
                assert len(seat.offers) + len(seat.free) == max(room, len(seat.offers))
                assert room, "who has run all that it may stays"
            assert set(seat.offers).isdisjoint(seat.free)
            assert seat.load_ns == sum(task.cost_ns for task in seat.offers.values())
            assert (seat in scheduler._idle) == (seat.state == READY and not seat.offers)
            child = self.children[seat.number]
            if seat.state == LEAVING:
                assert not child.in_line(), "who leaves has still something to begin"
                assert (child.dismissed_at is not None) == (not seat.offers)
            assert not seat.vacated or seat.state >= LEAVING
            for slot, task in seat.offers.items():
                assert (task.slot, task.seat, task.state) == (slot, seat, OFFERED)
                where.update(_names(task))
        for key, accepted in self.accepted.items():
            names: list[Name] = [(key, index) for index in range(accepted.items)] if accepted.items else [(key, None)]
            for name in names:
                ended = name[1] in accepted.outcomes
                if accepted.items and accepted.cancelled:
                    continue
                assert where[name] == (not ended), f"{name}: in {where[name]} places, {ended=}"
        assert scheduler.unfinished() == sum(map(self.is_known, self.accepted))
        assert set(scheduler._crowded) == {seat for seat in scheduler._seats.values() if len(seat.offers) > 1}
        if scheduler._queues is not None:
            offers = [task.options.queue for seat in scheduler._seats.values() for task in seat.offers.values()]
            for name, state in scheduler.queue_states().items():
                assert state["running"] == offers.count(name), f"offers of {name}"
        self._check_next_timer()

    def _check_next_timer(self) -> None:
        due = [(at, "a deadline") for at, task in self.scheduler._deadlines if task.state < FIRST_FINAL]
        due += [(at, "a retry") for at, task in self.scheduler._scheduled if task.state == SCHEDULED]
        for child in self.children.values():
            seat = child.seat
            if child.noticed:
                continue
            if seat.state < READY:
                due.append((seat.deadline_at or 0.0, "a start"))
            elif seat.state == LEAVING and not seat.offers:
                due.append((seat.deadline_at or 0.0, "an exit"))
            elif seat.state == DYING:
                due.append((seat.deadline_at or 0.0, "a kill that does not kill"))
            elif seat.offers:
                due += self._due(child)
                if self.soft or self.hard:
                    due.append((self.now + LOOK_SECONDS, "a look at the memory"))
            elif seat.unmeasured and seat.state == READY and (self.soft or self.hard):
                due.append((self.now + LOOK_SECONDS, "a look at the memory of who has worked"))
        at = self.scheduler.next_timer()
        for when, what in due:
            assert at is not None, f"{what} is due at {when} and nothing will look"
            assert at <= when, f"{what} is due at {when} and the next look is at {at}"

    def _due(self, child: Child) -> list[tuple[float, str]]:
        due = [(self.now + LEASE_TTL / 4, "a look at the leases")]
        run = child.run
        if run is not None and child.seat.offers.get(run.slot) is not None:
            word = child.page[run.slot]
            timeout = run.task.options.timeout
            told = child.seat.offers[run.slot] is run.task and not child.ring
            if told and timeout is not None and word.interrupted_at is None:
                due.append((word.started_at + timeout, f"the timeout of {run.key}"))
            if told and word.interrupted_at is not None and child.inside:
                due.append((word.interrupted_at + GRACE, f"the grace of {run.key}"))
        return due

    def finish(self) -> None:
        """Let everything go well from here; all that was accepted must end."""
        self.hold(False)
        self.pause_queues(None, False)
        self.pause_queues(sorted(self.paused_queues), False)
        for round_ in range(10_000):
            self.bury()
            for child in list(self.children.values()):
                child.frozen = False
                if child.dead:
                    self.reap(child)
                    continue
                child.take_signal()
                child.step()
            self.turn()
            self.check()
            if not self.scheduler.unfinished() and not any(
                child.holds() or child.run or child.ring or child.killed for child in self.children.values()
            ):
                break
            self.advance(1.0 if round_ % 8 == 0 else 0.0)
        else:
            raise AssertionError("it does not come to an end")
        assert all(accepted.ended for accepted in self.accepted.values())
        assert not any(task.state == QUEUED for task in self.waiting())
        assert len(self.scheduler._idle) == sum(child.seat.state == READY for child in self.children.values())


def _rank(task: Task) -> tuple[int, int]:
    return task.options.priority, -task.options.weight


def _has_its_first_place(task: Task) -> bool:
    """Does it stand where it came, of those of its rank?"""
    return not task.attempts and type(task) is Task


def _names(task: Task) -> list[Name]:
    return [(task.key, index) for index in range(task.start, task.stop)] if task.items else [(task.key, None)]
