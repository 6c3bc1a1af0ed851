"""What the order of starts is kept in: a queue, its lanes, and the tasks of a concurrency key."""

from __future__ import annotations

import heapq

from mpworker.containers import deque
from mpworker.supervisor.lifecycle import QUEUED
from mpworker.supervisor.limiter import Bucket
from mpworker.supervisor.registry import Task, TaskOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Literal, Protocol, TypeAlias
else:
    Protocol = object

Rank: TypeAlias = tuple[int, int]  # priority and weight, so that what is less is first


def rank_of(options: TaskOptions) -> Rank:
    """Where tasks with these options stand in their queue."""
    return options.priority, -options.weight


class Line(Protocol):
    """Tasks that wait, in an order of their own: a `deque`, or `mpworker.supervisor.fair.FairLine`."""

    def append(self, task: Task, /) -> None:
        """One more."""

    def extend(self, tasks: Iterable[Task], /) -> None:
        """Some more."""

    def popleft(self) -> Task:
        """The next one, which is in it no longer."""

    def clear(self) -> None:
        """None any more."""

    def __getitem__(self, index: Literal[0], /) -> Task: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Task]: ...


class Lane:
    """The tasks of one queue that have one priority and one weight."""

    __slots__ = ("early", "fifo", "queue", "rank")

    def __init__(self, queue: Queue, rank: Rank, fifo: Line) -> None:
        self.queue = queue
        self.rank = rank
        self.fifo = fifo
        self.early: list[tuple[int, int, int, Task]] = []  # a heap of those that were taken, and go before the FIFO

    def __lt__(self, other: Lane) -> bool:
        return self.rank < other.rank

    def __len__(self) -> int:
        return len(self.early) + len(self.fifo)

    def first(self) -> Task:
        return self.early[0][3] if self.early else self.fifo[0]

    def take(self) -> Task:
        """Whoever is first; that it was not so before, `order` does not say yet."""
        return heapq.heappop(self.early)[3] if self.early else self.fifo.popleft()

    def purge(self) -> None:
        """Let go of the tasks that have ended in line."""
        self.early = [each for each in self.early if each[3].state == QUEUED]
        heapq.heapify(self.early)
        kept = [task for task in self.fifo if task.state == QUEUED]
        self.fifo.clear()
        self.fifo.extend(kept)


class Queue:
    """One named queue.

    Args:
        name: Its name.
        held: What has come so far, if it is drained from the start.
        make_line: Makes the line of each of its lanes.

    Attributes:
        lanes: Its tasks by priority and weight.
        line: A heap of the lanes that are not empty.
        count: Tasks that are queued, those that are set aside included.
        dead: That have ended in line.
        running: Offers that are out.
        owed: How many of these came back.
        free_at: When its rate lets another one go, while that is in the way.
        slow: Its rate was in the way of its next start.
        held: What has come since the queue is drained, in this order; None while it is not.
        last: The last rank of those that are offered, or one after that; None if nothing was.
    """

    __slots__ = (
        "bucket",
        "count",
        "dead",
        "free_at",
        "held",
        "lanes",
        "last",
        "line",
        "make_line",
        "max_running",
        "name",
        "owed",
        "paused",
        "running",
        "slow",
        "weight",
    )

    def __init__(self, name: str, held: dict[Task, None] | None = None, make_line: Callable[[], Line] = deque) -> None:
        self.name = name
        self.make_line = make_line
        self.weight = 1
        self.max_running: int | None = None
        self.bucket: Bucket | None = None
        self.paused = False
        self.lanes: dict[Rank, Lane] = {}
        self.line: list[Lane] = []
        self.count = 0
        self.dead = 0
        self.running = 0
        self.owed = 0
        self.free_at: float | None = None
        self.slow = False
        self.held = held
        self.last: Rank | None = None

    def lane(self, rank: Rank) -> Lane:
        lane = self.lanes.get(rank)
        if lane is None:
            lane = self.lanes[rank] = Lane(self, rank, self.make_line())
        return lane

    def may_start(self) -> bool:
        """Is there something to start, and no limit but a rate in its way?"""
        return bool(self.line) and not self.paused and (self.max_running is None or self.running < self.max_running)


class Key:
    """All tasks of one concurrency key.

    Attributes:
        running: How many are offered.
        limits: How many of these say that so many may run at once: the least holds for all.
        parked: Those that wait for one of these to end, by queue and their own limit: heaps.
    """

    __slots__ = ("limits", "parked", "running")

    def __init__(self) -> None:
        self.running = 0
        self.limits: dict[int, int] = {}
        self.parked: dict[tuple[Queue, int], list[tuple[Rank, int, int, int, Task]]] = {}

    def room(self, limit: int) -> int:
        """How many more may run, one of which has this limit."""
        return min((limit, *self.limits)) - self.running

    def offered(self, limit: int) -> None:
        """One with this limit is offered."""
        self.running += 1
        self.limits[limit] = self.limits.get(limit, 0) + 1

    def over(self, limit: int) -> None:
        """Its offer is over."""
        self.running -= 1
        self.limits[limit] -= 1
        if not self.limits[limit]:
            del self.limits[limit]
