"""The order of starts: named queues that share by weight, and in each of them priority, then weight, then age.

The scheduler has one plain FIFO until some task or limit asks for more than that; then it hands the FIFO over to a
`Queues`, which answers one question: which task is offered next, if any may be?

- Of the queues that have work and may start some, `Turns` says whose turn it is.
- Of a queue's tasks the one with the lowest priority number is next, of these the one with the highest weight, of
  these the one that was queued first. Each (priority, weight) is a FIFO of its own, a `Lane`.
- While a queue is drained, what is new to it is held: it gets in line when that is over.
- A task whose concurrency key is at its limit is set aside, and takes its old place again when there is room. So is an
  offer that was never claimed, whose queue is then owed a turn: an offer that comes back has cost nothing.

Whether a queue may start something changes by events alone (a task comes or goes, a queue is paused, an offer ends)
and by time (a rate): each event looks at its own queue, so that a start costs the same with a thousand queues.
"""

from __future__ import annotations

import heapq
import itertools

from mpworker.containers import deque
from mpworker.supervisor.lanes import Key, Lane, Queue, Rank, rank_of
from mpworker.supervisor.lifecycle import QUEUED
from mpworker.supervisor.limiter import Bucket
from mpworker.supervisor.registry import Task, TaskOptions
from mpworker.supervisor.wheel import turns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

    from mpworker.supervisor.lanes import Line
    from mpworker.supervisor.wheel import Turns

DEFAULT_QUEUE: Final = "default"
DEFAULT_RANK: Final[Rank] = (0, -1)
DEAD_MAX: Final = 64
LANES_MAX: Final = 1024
_LOOK_AGAIN: Final = 0.0001  # seconds, in which an idle child has claimed what it is offered, unless it hangs
_LOOK_AGAIN_MAX: Final = 0.01  # where it does: each look is followed by one after twice the time


class Queues:
    """All queues of one pool.

    Args:
        make_line: Makes the line of those of one rank.

    Attributes:
        wake_at: When a limit of starts per second lets another one go; None while none is in the way.
        waits: Starts that a rate has delayed.
        overtaken: The queues of which something is offered, and what is to go before that has come: of which rank.
    """

    def __init__(self, make_line: Callable[[], Line] = deque) -> None:
        self._make_line = make_line
        self._queues: dict[str, Queue] = {}
        self._keys: dict[str, Key] = {}
        self._lanes: dict[TaskOptions, Lane] = {}  # found before
        self._ready: dict[Queue, None] = {}  # may start something
        self._owed: dict[Queue, None] = {}
        self._slowed: dict[Queue, None] = {}  # but for their rate
        self._bucket: Bucket | None = None  # of all queues together
        self._unclaimed: dict[Task, list[Bucket]] = {}  # offers of which the time of the claim must be known
        self._wheel: Turns[Queue] | None = None  # made when it is needed: the weights may change many times till then
        self._ages: dict[Queue, int] = {}  # for the next one
        self._turn: Queue | None = None  # whose turn it is, if nothing has changed since that was asked
        self._paused = False
        self.on_hold = False  # nothing is offered, whatever is paused: the client cannot take in more
        self._drains_all = False
        self._taken = itertools.count(1)
        self._returns = itertools.count()
        self.wake_at: float | None = None
        self.waits = 0
        self._claims_at, self._look_after = 0.0, _LOOK_AGAIN  # for claims that a rate waits for
        self.overtaken: dict[str, Rank] = {}
        self._slow = False  # the rate of all queues together was in the way of the next start
        self._count = 0
        self._queue(DEFAULT_QUEUE)

    def adopt(self, fifo: deque[Task], taken: int) -> None:
        """The first tasks that come are all of this line: of the default queue, priority 0 and weight 1.

        Args:
            fifo: The line.
            taken: A number that is greater than the `order` of any task that was in it.
        """
        self._taken = itertools.count(taken + 1)
        queue = self._queue(DEFAULT_QUEUE)
        lane = queue.lanes[DEFAULT_RANK] = Lane(queue, DEFAULT_RANK, fifo)
        lane.purge()
        while fifo and fifo[0].order:  # they had been taken before
            self._put_early(lane, fifo.popleft())
        queue.count = self._count = len(lane)
        queue.line = [lane] if lane else []
        self._look_at(queue)

    # ------------------------------------------------------------ the queues

    def _queue(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Queue(name, {} if self._drains_all else None, self._make_line)
            self._weights_changed()
        return queue

    def _weights_changed(self) -> None:
        if self._wheel is not None:
            self._ages, self._wheel = self._wheel.ages(), None
        self._turn = None

    def configure(
        self, name: str, weight: int, max_running: int | None, rate: float | None, burst: int, now: float
    ) -> None:
        """Make a queue, or change one. No offer may be out that is not claimed: see `Scheduler.configure_queue`."""
        queue = self._queue(name)
        if queue.weight != weight:
            queue.weight = weight
            self._weights_changed()
        queue.max_running = max_running
        queue.bucket = _changed(queue.bucket, rate, burst, now)
        self._limits_changed(queue)

    def limit_rate(self, rate: float | None, burst: int, now: float) -> None:
        """Starts per second of all queues together, None for no limit. As for `configure`."""
        self._bucket = _changed(self._bucket, rate, burst, now)

    def limit(self) -> tuple[float | None, int | None]:
        """Starts per second of all queues together, and at once; None where nothing limits them."""
        return (None, None) if self._bucket is None else (self._bucket.rate, self._bucket.burst)

    def pause(self, names: Iterable[str] | None, paused: bool) -> None:
        """Nothing more of these queues (None: of all) is offered, or it is again."""
        if names is None:
            self._paused = paused
        else:
            for name in names:
                queue = self._queue(name)
                queue.paused = paused
                self._look_at(queue)

    def states(self) -> dict[str, dict[str, object]]:
        """How each queue is, by name."""
        return {
            queue.name: {
                "weight": queue.weight,
                "max_running": queue.max_running,
                "rate": queue.bucket.rate if queue.bucket is not None else None,
                "burst": queue.bucket.burst if queue.bucket is not None else None,
                "paused": queue.paused or self._paused,
                "draining": queue.held is not None,
                "queued": queue.count + len(queue.held or ()),
                "running": queue.running,
            }
            for queue in self._queues.values()
        }

    # ------------------------------------------------------------ drains

    def drain(self, names: Iterable[str] | None) -> None:
        """What is new to these queues (None: to all) is held from now on, if it comes by way of `put`."""
        if names is None:
            self._drains_all = True
        for queue in self._named(names):
            if queue.held is None:
                queue.held = {}

    def end_drain(self, names: Iterable[str] | None) -> None:
        """The end of `drain`: what was held gets in line."""
        if names is None:
            self._drains_all = False
        for queue in self._named(names):
            held, queue.held = queue.held, None
            for task in held or ():
                self.append(task)

    def is_draining(self) -> bool:
        """Is any queue drained?"""
        return self._drains_all or any(queue.held is not None for queue in self._queues.values())

    def is_drained(self, names: Iterable[str] | None) -> bool:
        """Is nothing left of what was there before?"""
        return not any(queue.count or queue.running for queue in self._named(names))

    def _named(self, names: Iterable[str] | None) -> list[Queue]:
        return list(self._queues.values()) if names is None else [self._queue(name) for name in names]

    # ------------------------------------------------------------ tasks come and go

    def __len__(self) -> int:
        return self._count

    def put(self, task: Task) -> None:
        """A task is queued, or held if its queue is drained and it has not been tried."""
        held = self._queue(task.options.queue).held
        if held is not None and not task.attempts:
            held[task] = None
        else:
            self.append(task)

    def append(self, task: Task) -> None:
        """A task is queued."""
        options = task.options
        lane = self._lanes.get(options)
        if lane is None:
            queue = self._queue(options.queue)
            rank = rank_of(options)
            if len(self._lanes) >= LANES_MAX or (rank not in queue.lanes and len(queue.lanes) >= LANES_MAX):
                self._forget_lanes(queue)
            lane = self._lanes[options] = queue.lane(rank)
        self._enter(lane)
        lane.fifo.append(task)
        lane.queue.count += 1
        self._count += 1
        if lane.queue not in self._ready:
            self._look_at(lane.queue)

    def _forget_lanes(self, queue: Queue) -> None:
        """There are many; those of this queue that are empty are made anew when they are needed."""
        self._lanes.clear()
        queue.lanes = {rank: lane for rank, lane in queue.lanes.items() if lane}

    def put_back(self, task: Task, owed: bool = True) -> None:
        """A task that was offered takes its old place in line; `owed`: its queue gets the turn that this had cost."""
        queue = self._queue(task.options.queue)
        self._put_early(queue.lane(rank_of(task.options)), task)
        queue.count += 1
        self._count += 1
        if owed:
            queue.owed += 1
            self._owed[queue] = None
        self._look_at(queue)

    def _put_early(self, lane: Lane, task: Task) -> None:
        self._enter(lane)
        heapq.heappush(lane.early, (task.order, task.start, next(self._returns), task))
        self._turn = None

    def _enter(self, lane: Lane) -> None:
        """Something comes into a lane."""
        queue = lane.queue
        if not lane:
            heapq.heappush(queue.line, lane)
            self._turn = None
        if queue.last is not None and lane.rank < queue.last:
            self.overtaken[queue.name] = min(lane.rank, self.overtaken.get(queue.name, lane.rank))

    def dropped(self, task: Task) -> None:
        """A task that was queued has ended; most of its kind are met in line, and let go of there."""
        queue = self._queue(task.options.queue)
        if queue.held and task in queue.held:
            del queue.held[task]
            return
        queue.count -= 1
        self._count -= 1
        queue.dead += 1
        if queue.dead > DEAD_MAX + queue.count:
            for lane in queue.lanes.values():
                lane.purge()
            queue.line = [lane for lane in queue.lanes.values() if lane]
            heapq.heapify(queue.line)
            for key in self._keys.values():
                for place in [place for place in key.parked if place[0] is queue]:
                    key.parked[place] = [each for each in key.parked[place] if each[4].state == QUEUED]
                    heapq.heapify(key.parked[place])
            queue.dead = 0
            self._look_at(queue)
        if task.concurrency_key in self._keys:
            self._unpark(task.concurrency_key)  # this may have been the one that was let back in line for all

    def clear(self) -> None:
        """Nothing that is queued will start: all of it has ended."""
        for queue in self._queues.values():
            for lane in queue.lanes.values():
                lane.purge()
            queue.line = []
            queue.count = queue.dead = 0
            if queue.held:
                queue.held = {}
            self._look_at(queue)
        self._count = 0
        for key in self._keys.values():
            key.parked.clear()
        self._keys = {name: key for name, key in self._keys.items() if key.running}

    # ------------------------------------------------------------ what is next

    def first(self, now: float) -> Task | None:
        """What is to be offered next, if anything may be; it stays in line until `take`."""
        if self._paused or self.on_hold:
            return None
        if self._bucket is not None and self._free_at(self._bucket, now) > now:
            self._slow = self._slow or bool(self._ready or self._slowed)
            return None
        if self._slowed:
            self._look_at_slowed(now)
        while self._ready:
            queue = self._turn or self._pick()
            task = self._head(queue)
            if task is None:
                del self._ready[queue]
            elif queue.bucket is not None and (at := self._free_at(queue.bucket, now)) > now:
                queue.free_at = at
                queue.slow = True
                self._slowed[queue] = None
                del self._ready[queue]
            else:
                self._turn = queue
                return task
            self._turn = None
        return None

    def _look_at_slowed(self, now: float) -> None:
        for queue in tuple(self._slowed):
            if queue.free_at is None or queue.free_at <= now:
                del self._slowed[queue]
                self._look_at(queue)
            else:
                self._wake(queue.free_at)

    def take(self) -> None:
        """What `first` has named is offered."""
        queue, self._turn = self._turn, None
        assert queue is not None
        self._take_head(queue)
        if self._slow or queue.slow:
            self.waits += 1
            self._slow = queue.slow = False
        queue.count -= 1
        self._count -= 1
        if queue in self._owed:
            queue.owed -= 1
            if not queue.owed:
                del self._owed[queue]
        else:
            assert self._wheel is not None
            self._wheel.take()
        self._look_at(queue)

    def _free_at(self, bucket: Bucket, now: float) -> float:
        """When to ask this again, if that is later than now."""
        at = bucket.free_at(now)
        if at > now:
            # With all tokens out the answer depends on when the children claim, which no event tells.
            if bucket.unclaimed >= bucket.burst:
                if now >= self._claims_at:
                    self._claims_at = now + self._look_after
                    self._look_after = min(2 * self._look_after, _LOOK_AGAIN_MAX)
                at = max(at, self._claims_at)
            self._wake(at)
        return at

    def _wake(self, at: float) -> None:
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at

    def _pick(self) -> Queue:
        for queue in self._owed:
            if queue in self._ready:
                return queue
        if self._wheel is None:
            self._wheel = turns({queue: queue.weight for queue in self._queues.values()}, self._ages)
        return self._wheel.peek(self._ready)

    def _head(self, queue: Queue) -> Task | None:
        """The first task of a queue that may start; those that may not are set aside."""
        while queue.line:
            task = queue.line[0].first()
            if task.state != QUEUED:
                self._take_head(queue)
                queue.dead -= 1
                continue
            key = self._keys.get(task.concurrency_key)
            if key is None or key.room(task.concurrency) > 0:
                return task
            rank = queue.line[0].rank
            self._take_head(queue)
            parked = key.parked.setdefault((queue, task.concurrency), [])
            heapq.heappush(parked, (rank, task.order, task.start, next(self._returns), task))
        return None

    def _take_head(self, queue: Queue) -> None:
        lane = queue.line[0]
        fresh = not lane.early
        task = lane.take()
        if fresh:
            task.order = next(self._taken)
        if not lane:
            heapq.heappop(queue.line)

    def _look_at(self, queue: Queue) -> None:
        """Something has changed that says whether the queue may start tasks."""
        if queue.may_start() and queue not in self._slowed:
            if queue not in self._ready:
                self._ready[queue] = None
                self._turn = None
        elif queue in self._ready:
            del self._ready[queue]
            self._turn = None

    # ------------------------------------------------------------ offers

    def may_wait(self, task: Task, children: int) -> bool:
        """May it be offered to a child that is busy?

        A limit counts it from the offer on. So only if each of that many children could still begin another one: what
        waits must not stand in the way of what could run.
        """
        queue = self._queue(task.options.queue)
        if self._bucket is not None or queue.bucket is not None:
            return False
        if queue.max_running is not None and queue.running + children >= queue.max_running:
            return False
        name = task.concurrency_key
        if not name:
            return True
        key = self._keys.get(name)
        return children < (task.concurrency if key is None else key.room(task.concurrency))

    def is_rated(self, task: Task) -> bool:
        """Is there a limit of starts per second for it?"""
        return self._bucket is not None or self._queue(task.options.queue).bucket is not None

    def offered(self, task: Task) -> None:
        """An offer is out."""
        queue, rank = self._queue(task.options.queue), rank_of(task.options)
        queue.running += 1
        if queue.last is None or queue.last < rank:
            queue.last = rank
        if self._bucket is not None or queue.bucket is not None:
            buckets = [bucket for bucket in (self._bucket, queue.bucket) if bucket is not None]
            self._unclaimed[task] = buckets
            for bucket in buckets:
                bucket.unclaimed += 1
        name = task.concurrency_key
        if name:
            key = self._keys.get(name)
            if key is None:
                key = self._keys[name] = Key()
            key.offered(task.concurrency)
            if key.parked:
                self._unpark(name)
        self._look_at(queue)

    def offers_left(self, name: str, last: Rank | None) -> None:
        """What was overtaken has come back; this is the last rank of what is still offered."""
        self._queue(name).last = last
        self.overtaken.pop(name, None)

    def unclaimed(self) -> tuple[Task, ...]:
        """Offers of which it must be known when they are claimed."""
        return tuple(self._unclaimed)

    def claimed(self, task: Task, at: float) -> None:
        """An offer was claimed then."""
        self._claims_at, self._look_after = 0.0, _LOOK_AGAIN
        for bucket in self._unclaimed.pop(task, ()):
            bucket.unclaimed -= 1
            bucket.started(at)
        self._rate_changed(self._queue(task.options.queue))

    def over(self, task: Task) -> None:
        """An offer is over; if it was claimed, `claimed` was told."""
        queue = self._queue(task.options.queue)
        queue.running -= 1
        if task in self._unclaimed:
            for bucket in self._unclaimed.pop(task):
                bucket.unclaimed -= 1
            self._rate_changed(queue)
        name = task.concurrency_key
        if name:
            self._keys[name].over(task.concurrency)
            self._unpark(name)
        self._look_at(queue)

    def _rate_changed(self, queue: Queue) -> None:
        queue.free_at = None  # to be asked anew

    def _limits_changed(self, queue: Queue) -> None:
        self._slowed.pop(queue, None)
        self._look_at(queue)

    def _unpark(self, name: str) -> None:
        """One more of this key may start: let the first one of each queue and limit back in line that can."""
        key = self._keys[name]
        for (queue, limit), parked in list(key.parked.items()):
            while parked and key.room(limit) > 0:
                rank, _, _, _, task = heapq.heappop(parked)
                if task.state == QUEUED:
                    self._put_early(queue.lane(rank), task)
                    self._look_at(queue)
                    break
                queue.dead -= 1
            if not parked:
                del key.parked[queue, limit]
        if not key.running and not key.parked:
            del self._keys[name]


def _changed(bucket: Bucket | None, rate: float | None, burst: int, now: float) -> Bucket | None:
    if rate is None:
        return None
    if bucket is None:
        return Bucket(rate, burst, now)
    bucket.change(rate, burst, now)
    return bucket
