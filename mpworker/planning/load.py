"""What a pool is to carry, and the pool: plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from mpworker.supervisor.effects import CRASHED, ERROR, EXITED, OK, TIMED_OUT, UNSERIALIZABLE
from mpworker.supervisor.registry import TaskOptions

# How an attempt ends, as a trace writes it.
STATUSES: Final = {
    "ok": OK,
    "error": ERROR,
    "unserializable": UNSERIALIZABLE,
    "exited": EXITED,
    "crashed": CRASHED,
    "timed_out": TIMED_OUT,
}


class Attempt(NamedTuple):
    """One attempt of a job.

    Attributes:
        seconds: How long it computes on a core of its own; infinite where all that is known is that it is interrupted.
        status: How it ends then: one of `STATUSES`.
    """

    seconds: float
    status: int = OK


class Job(NamedTuple):
    """One task of a load.

    Attributes:
        at: When it comes, in seconds.
        attempts: Its attempts; one beyond the last is as the last.
        options: What it asks of the scheduler.
        function: Which function it calls, by number: what is expected of a call is known for each.
        size: Bytes of its call.
        deadline: Seconds from its arrival after which it has missed its deadline, None for none.
        cancel: Seconds from its arrival after which it is cancelled, None for never.
        key: A concurrency key, "" for none.
        concurrency: How many with this key may run at once.
    """

    at: float
    attempts: tuple[Attempt, ...]
    options: TaskOptions
    function: int = 1
    size: int = 0
    deadline: float | None = None
    cancel: float | None = None
    key: str = ""
    concurrency: int = 1


@dataclass(frozen=True)
class Load:
    """Jobs in the order in which they come.

    Attributes:
        jobs: The jobs.
        steady: It goes on like this: its beginning, on an idle pool, is not what is asked about.
    """

    jobs: Sequence[Job]
    steady: bool = False

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return self.jobs[-1].at - self.jobs[0].at if self.jobs else 0.0

    @property
    def rate(self) -> float:
        """Arrivals per second, infinite where all come at once."""
        return (len(self.jobs) - 1) / self.seconds if self.seconds > 0 else float("inf")

    @property
    def work(self) -> float:
        """Seconds of computing, as far as they are known."""
        finite = (each.seconds for job in self.jobs for each in job.attempts if each.seconds != float("inf"))
        return sum(finite)

    def times(self, factor: float) -> "Load":
        """So many times this load: the same tasks, come that much faster; of a batch, that many times the tasks."""
        if self.seconds > 0:
            return replace(self, jobs=[job._replace(at=job.at / factor) for job in self.jobs])
        count = max(1, round(len(self.jobs) * factor))
        return replace(self, jobs=[self.jobs[number % len(self.jobs)] for number in range(count)])


@dataclass(frozen=True)
class QueueLimits:
    """What one queue is configured with; see `mpworker.QueueOptions`."""

    weight: int = 1
    max_running: int | None = None
    rate: float | None = None
    burst: int | None = None


@dataclass(frozen=True)
class Costs:
    """Seconds that the pool itself takes. Where they come from is told in the report.

    Attributes:
        wake: From the word of one process until a sleeping one acts on it.
        decide: Of the supervisor, for a task that comes in or is answered: each of the two.
        call: Of a child, for each task beside its function.
        fork: Until a child that replaces a dead one is ready.
        source: Where these figures are from.
    """

    wake: float = 25e-6
    decide: float = 2e-6
    call: float = 4e-6
    fork: float = 0.02
    source: str = (
        "measured with no-op tasks on a virtual machine with 2 cores of an AMD EPYC, where the first is some 5 us in a "
        "pool that is busy and 40 us in one that has slept"
    )


@dataclass(frozen=True)
class Pool:
    """A worker and the machine below it.

    Attributes:
        n: Children.
        cores: Cores that they share; may be a fraction.
        queues: What named queues are configured with.
        rate: Starts per second of all queues together, None for no limit.
        burst: Starts at once; None for n.
        start: Seconds from time 0 until the children are ready.
        grace: Seconds from an interrupt to the kill.
        costs: What the pool itself takes.
    """

    n: int
    cores: float
    queues: dict[str, QueueLimits] = field(default_factory=dict)
    rate: float | None = None
    burst: int | None = None
    start: float = 0.0
    grace: float = 5.0
    costs: Costs = Costs()
