"""What the scheduler knows: tasks, functions and children, as plain data."""

from __future__ import annotations

from mpworker.supervisor.backoff import Backoff
from mpworker.supervisor.lifecycle import QUEUED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# As on the wire: mpworker.ipc.codec; a test compares the two.
CONTEXT_SHIFT: Final = 40

# States of a child.
STARTING: Final = 0
READY: Final = 1
LEAVING: Final = 2  # gets no more offers, and exits when it has answered what it has claimed
DYING: Final = 3  # killed, or dead and not reaped: gets no more offers
GONE: Final = 4
STATES_OF_SEATS: Final = ("starting", "ready", "leaving", "dying", "gone")

# What becomes of the rest of a chunk whose child is to begin no further item of it.
CUT: Final = 1  # it waits in line again
CLOSING: Final = 2  # it ends cancelled


def size_of(payload: bytes | dict[str, object]) -> int:
    """Bytes of memory that a payload stands for: its own, and those of the arena's blocks that it keeps."""
    blocks: int = getattr(payload, "block_bytes", 0)
    return len(payload) + blocks


class TaskOptions:
    """What a client asked for, once for all tasks that share it.

    Attributes:
        timeout: Seconds an attempt may run, None for no limit.
        retries: Further attempts after an exception or a timeout.
        crash_retries: Further attempts after a death of the child.
        context: What else a child must know of tasks with these, None for nothing.
        backoff: The pauses between attempts, None for none.
        queue: The name of the queue.
        priority: In it, the lowest number first.
        weight: In that, the highest number first.
    """

    __slots__ = ("backoff", "context", "crash_retries", "priority", "queue", "retries", "timeout", "weight")

    def __init__(
        self,
        timeout: float | None = None,
        retries: int = 0,
        crash_retries: int = 0,
        context: Context | None = None,
        backoff: Backoff | None = None,
        queue: str = "default",
        priority: int = 0,
        weight: int = 1,
    ) -> None:
        self.timeout = timeout
        self.retries = retries
        self.crash_retries = crash_retries
        self.context = context
        self.backoff = backoff
        self.queue = queue
        self.priority = priority
        self.weight = weight


class Function:
    """A function that tasks share: its pickle, and how long a call takes.

    Attributes:
        name: For who looks; no pickle is read for it.
        estimate_ns: Expected nanoseconds of a call, 0 while unknown.
    """

    __slots__ = ("blob", "estimate_ns", "key", "name")

    def __init__(self, key: int, blob: bytes, name: str = "") -> None:
        self.key = key
        self.blob = blob
        self.name = name
        self.estimate_ns = 0

    def observe(self, *durations_ns: int) -> None:
        """Move the estimate towards measured calls.

        Up slowly and by a bounded step (a preempted call says nothing about the next), down fast: an estimate that is
        too low is put right by stealing, one that is too high starves the children.
        """
        estimate = self.estimate_ns
        for duration_ns in durations_ns:
            if not estimate:
                estimate = duration_ns or 1
            elif duration_ns > estimate:
                more = duration_ns - estimate
                bound = 7 * estimate
                estimate += ((more if more < bound else bound) >> 4) + 1
            else:
                estimate -= (estimate - duration_ns) >> 2
        self.estimate_ns = estimate


class Context:
    """What a child must know of many tasks, beside their functions.

    Attributes:
        key: Its number; that of no other one at the same time.
        judge: What is asked whether an exception is final; None if none is.
        said: What else is said of it, as JSON; empty for nothing.
        base: What the numbers of these tasks begin from, where they are counted for each client.
    """

    __slots__ = ("base", "judge", "key", "said", "shift")

    def __init__(self, key: int, judge: Function | None, said: bytes = b"", base: int = 0) -> None:
        self.key = key
        self.judge = judge
        self.said = said
        self.base = base
        # What makes of the number of a task its name on the way to a child, when it is added.
        self.shift = (key << CONTEXT_SHIFT) - base


class Times:
    """How long the scheduler waits for a child, in seconds.

    Attributes:
        lease_ttl: For its next beat: see `mpworker.supervisor.leases.Leases`.
        grace: From an interrupt to the kill.
        start_timeout: Until it is ready.
        kill_timeout: After SIGKILL, until it counts as unkillable.
    """

    __slots__ = ("grace", "kill_timeout", "lease_ttl", "start_timeout")

    def __init__(self, lease_ttl: float, grace: float, start_timeout: float, kill_timeout: float) -> None:
        self.lease_ttl = lease_ttl
        self.grace = grace
        self.start_timeout = start_timeout
        self.kill_timeout = kill_timeout


class Attempt:
    """One attempt of a task that did not end it, or whose end was decided here.

    Attributes:
        status: What came of it: `mpworker.ipc.codec`.
        pid: The child.
        started_at: When it was claimed.
        ended_at: When that was answered, or the child dead.
        cause: Of a death: as `mpworker.errors.WorkerCrashed.cause`.
        report: What the child reported of it, of the latest attempts.
    """

    __slots__ = ("cause", "ended_at", "pid", "report", "started_at", "status")

    def __init__(
        self, status: int, pid: int, started_at: float, ended_at: float, cause: str = "", report: bytes = b""
    ) -> None:
        self.status = status
        self.pid = pid
        self.started_at = started_at
        self.ended_at = ended_at
        self.cause = cause
        self.report = report

    def without_report(self) -> Attempt:
        """The same of an attempt that is no longer one of the latest."""
        return Attempt(self.status, self.pid, self.started_at, self.ended_at, self.cause)


class Setbacks:
    """What went wrong with a task so far.

    Attributes:
        failures: Attempts that failed or were late.
        crashes: Attempts whose child died.
        unclaimed_deaths: How often it was the first in line of a child that died with nothing claimed.
        expired: Its deadline is over.
        past: The attempts before the one that is told with its end.
    """

    __slots__ = ("crashes", "expired", "failures", "past", "unclaimed_deaths")

    def __init__(self, failures: int = 0, crashes: int = 0, expired: bool = False) -> None:
        self.failures = failures
        self.crashes = crashes
        self.expired = expired
        self.unclaimed_deaths = 0
        self.past: list[Attempt] = []


NO_SETBACKS: Final = Setbacks()  # of all tasks that had none: see `Task.set_back`


class Task:
    """One task, or one contiguous range of a chunk's items.

    Attributes:
        key: The client's number of the task or chunk.
        items: 0 for a task; for a chunk the number of its items.
        start, stop: The range still to be answered; `start` moves up as results come in.
        accepted_ns: When it came, or was to be queued if that is later.
        state: Where it is on its way: `mpworker.supervisor.lifecycle`.
        attempts: Attempts begun and ended.
        decided: The outcome (a status) that was decided while an attempt runs, 0 for none.
        decided_item: Which item that outcome is for.
        halted: No further item of this range begins there: CUT or CLOSING, 0 for no.
        order: Its place in line, once it was taken out of that by `Queues`, or has come back; 0 before.
        setbacks: What went wrong with it so far, to be read only: `set_back` is to be asked for what may be changed.
        concurrency_key: Of all tasks with the same one, at most `concurrency` run at once; "" for none.
        deadline_at: When it ends, whatever it is at; None for never.
    """

    __slots__ = (
        "accepted_ns",
        "attempts",
        "cost_ns",
        "decided",
        "decided_item",
        "flags",
        "function",
        "generation",
        "halted",
        "items",
        "key",
        "options",
        "order",
        "payload",
        "seat",
        "setbacks",
        "slot",
        "start",
        "state",
        "stop",
    )

    # Of the few tasks that have more to say than their options: see `DetailedTask`.
    concurrency_key = ""
    concurrency = 1
    deadline_at: float | None = None
    call_at = 0
    keyed = False

    # Of its offer, if `seat` says that it has one; the generation is greater than that of any offer before.
    slot: int
    generation: int
    cost_ns: int

    def __init__(
        self,
        key: int,
        function: Function | None,
        options: TaskOptions,
        payload: bytes,
        items: int = 0,
        flags: int = 0,
        accepted_ns: int = 0,
    ) -> None:
        self.key = key
        self.accepted_ns = accepted_ns
        self.function = function
        self.options = options
        self.payload = payload
        self.items = items
        self.flags = flags
        self.start = 0
        self.stop = items
        self.state = QUEUED
        self.attempts = 0
        self.setbacks = NO_SETBACKS
        self.decided = 0
        self.decided_item = -1
        self.halted = 0
        self.seat: Seat | None = None
        self.order = 0

    def place(self) -> tuple[int, int]:
        """Where it was in line, if it was ever taken out of that: before all that never were, and by this.

        As long as one FIFO says who is next, offers are made in that order. So the first one tells its place, which is
        kept in `order` when it comes back.
        """
        return self.order or self.generation, self.start

    def __lt__(self, other: Task) -> bool:
        """Of ranges of one chunk that wait for the same time: see `mpworker.supervisor.timers`."""
        return self.start < other.start

    def set_back(self) -> Setbacks:
        """Its own setbacks, to be changed."""
        if self.setbacks is NO_SETBACKS:
            self.setbacks = Setbacks()
        return self.setbacks

    def retries_left(self) -> bool:
        """May another attempt follow one that failed or was late?"""
        return self.setbacks.failures < self.options.retries and not self.setbacks.expired

    def forget_call(self) -> None:
        """It has ended, and is not called again; what it says beyond its call is kept."""
        self.payload = self.payload[: self.call_at]

    def part(self, start: int, stop: int) -> Task:
        """A new range of the same chunk, with this one's state and history; it is in no line yet."""
        piece = type(self)(self.key, self.function, self.options, self.payload, self.items, self.flags)
        piece.start, piece.stop = start, stop
        piece.attempts, piece.order, piece.state = self.attempts, self.order, self.state
        piece.generation = getattr(self, "generation", 0)  # the last attempt that began of it was of this offer
        if self.setbacks is not NO_SETBACKS:
            piece.setbacks = Setbacks(self.setbacks.failures, self.setbacks.crashes, self.setbacks.expired)
        return piece


class DetailedTask(Task):
    """A task that has more to say than its options; see `Task` for what.

    Most have not, and pay nothing for it: these fields are slots here, and constants of the class there.

    Attributes:
        run_at: When it is to be queued, None for at once.
        keyed: It has an idempotency key: its result is kept as long as it is remembered.
        call_at: Where in its payload what it says ends, and its call begins.
    """

    __slots__ = ("call_at", "concurrency", "concurrency_key", "deadline_at", "keyed", "run_at")

    def __init__(
        self, key: int, function: Function | None, options: TaskOptions, payload: bytes, items: int = 0, flags: int = 0
    ) -> None:
        super().__init__(key, function, options, payload, items, flags)
        self.concurrency_key = ""
        self.concurrency = 1
        self.deadline_at = None
        self.run_at: float | None = None
        self.keyed = False
        self.call_at = 0

    def part(self, start: int, stop: int) -> Task:
        """See `Task`."""
        piece = super().part(start, stop)
        for name in DetailedTask.__slots__:
            setattr(piece, name, getattr(self, name))
        return piece


class Seat:
    """A child's place, as the scheduler sees it.

    Attributes:
        number: Which child; never used again after its death.
        pid: Its process, 0 until it is forked.
        offers: Its outstanding offers by slot, in the order they were made.
        load_ns: What its offers take of its budget of expected work: see `mpworker.supervisor.dispatch`.
        owes: It has been asked for a word that is no answer to an offer.
        timeout_at: When to look whether the running task is late.
        kill_at: When the grace of the task that was interrupted is over.
        kills: The same for each of them, by slot: one may have ended, and its answer not be read, when the next one is.
        deadline_at: When a child that is starting, exits or was killed is given up.
        asked: The slot and generation of an attempt that wants to be tried again, and after how many seconds.
        ran: Tasks and items of chunks that it has answered, if anybody counts.
        unmeasured: Nobody has looked at its memory since it worked.
        suspect: It leaves if it still has too much memory after its task.
        recallable: It leaves because there were fewer places, and stays if there are more before it has ended its work.
        leaves: Why it leaves, in a word; "" if it does not.
        vacated: It holds none of the pool's places any more: it goes, and whoever follows it need not wait for that.
    """

    __slots__ = (
        "asked",
        "deadline_at",
        "free",
        "kill_at",
        "kill_cause",
        "kills",
        "leaves",
        "load_ns",
        "number",
        "offers",
        "owes",
        "pid",
        "ran",
        "recallable",
        "slots",
        "state",
        "suspect",
        "timeout_at",
        "unmeasured",
        "vacated",
    )

    def __init__(self, number: int, slots: int, pid: int = 0, state: int = STARTING) -> None:
        self.number = number
        self.slots = slots
        self.pid = pid
        self.state = state
        self.offers: dict[int, Task] = {}
        self.free = list(range(slots - 1, -1, -1))
        self.load_ns = 0
        self.owes = False
        self.timeout_at: float | None = None
        self.kill_at: float | None = None
        self.kills: dict[int, float] = {}
        self.deadline_at: float | None = None
        self.kill_cause = ""
        self.asked: tuple[int, int, float] | None = None
        self.ran = 0
        self.unmeasured = False
        self.suspect = False
        self.recallable = False
        self.leaves = ""
        self.vacated = False


class Death:
    """How a child died.

    Attributes:
        cause: As `mpworker.errors.WorkerCrashed.cause`.
        at: When it was known.
    """

    __slots__ = ("at", "cause", "exit_code", "pid", "signal")

    def __init__(self, pid: int, signal: int, exit_code: int | None, cause: str, at: float = 0.0) -> None:
        self.pid = pid
        self.signal = signal
        self.exit_code = exit_code
        self.cause = cause
        self.at = at
