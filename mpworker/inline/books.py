"""What `debug=True` knows of its tasks: in place of a scheduler, for a `Describer` and others that look at one."""

import os
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from mpworker.ipc import codec
from mpworker.supervisor.effects import END_BY, Watcher
from mpworker.supervisor.ends import HISTORY_BYTES_MAX, HISTORY_MAX
from mpworker.supervisor.history import History, Outcome
from mpworker.supervisor.lifecycle import COMPLETE, OFFER, OFFERED, POSTPONE, QUEUED, RETRY, SCHEDULED
from mpworker.supervisor.registry import Attempt, DetailedTask, Seat, Task
from mpworker.supervisor.scheduler import Scheduler

PLAIN_QUEUE: Final = {"weight": 1, "max_running": None, "rate": None, "burst": None}


class Books:
    """The tasks of one worker, each in the states that it has in a pool.

    Attributes:
        queues: What each queue was configured as.
        history: The tasks that have ended.
        accepted: How many there were.
        retries: Attempts after the first.
        ended: How many ended in each state that is not COMPLETED.
        crashes: None.
        watcher: Who tells hooks, tracers and the log.
    """

    def __init__(self) -> None:
        self.queues: dict[str, dict[str, Any]] = {}
        self.history = History(HISTORY_MAX, HISTORY_BYTES_MAX, None, False)
        self.accepted = 0
        self.retries = 0
        self.ended: Counter[int] = Counter()
        self.crashes: Counter[str] = Counter()
        self.watcher: Watcher | None = None
        self._watched = False
        self._tasks: dict[int, Task] = {}
        self._begun_at: dict[int, float] = {}
        self._clean_every = 0.0
        self._clean_at: float | None = None

    # ------------------------------------------------------------ as of a scheduler

    def task(self, key: int) -> Task | None:
        """A task that has no outcome yet."""
        return self._tasks.get(key)

    def tasks(self) -> Iterable[Task]:
        """All of these, in the order in which they came."""
        return list(self._tasks.values())

    @property
    def scheduled(self) -> int:
        """How many wait for their time."""
        return sum(task.state == SCHEDULED for task in self.tasks())

    def offered(self) -> list[Task]:
        """Those that run."""
        return [task for task in self.tasks() if task.state == OFFERED]

    def claimed_at(self, _: Seat, task: Task) -> float | None:
        """Since when it runs."""
        return self._begun_at.get(task.key)

    def keys(self) -> set[int]:
        """As `Scheduler.keys`."""
        return {*self._tasks, *(entry[0].key for entry in self.history.remembered())}

    def unfinished_tasks(self) -> int:
        """How many have no outcome yet."""
        return len(self._tasks)

    def limiter_waits(self) -> int:
        """Nothing is held up."""
        return 0

    def queue_states(self) -> dict[str, dict[str, Any]]:
        """How each queue is: nothing waits in any."""
        idle = {"paused": False, "draining": False, "queued": 0, "running": 0}
        return {name: {**each, **idle} for name, each in self.queues.items()}

    def retain(
        self, max_entries: int, max_bytes: int, ttl: float | None, results: bool, interval: float, now: float
    ) -> None:
        """As `Scheduler.retain`."""
        self.history.change(max_entries, max_bytes, ttl, results)
        self._clean_every = interval
        self._clean_at = now if ttl is not None else None

    def watch(self, on: bool) -> None:
        """As `Scheduler.watch`."""
        self._watched = on

    # ------------------------------------------------------------ what happens

    def enter(self, task: Task) -> None:
        """A task was accepted."""
        if self._watched and self.watcher is not None:
            self.watcher.accepted(task)
        self._tasks[task.key] = task
        self.accepted += 1
        if isinstance(task, DetailedTask) and task.run_at is not None and task.run_at > time.monotonic():
            task.state = POSTPONE[task.state]

    def begin(self, task: Task) -> None:
        """An attempt begins."""
        task.state = OFFER[QUEUED]
        task.seat = Seat(0, 1, pid=os.getpid())
        self._begun_at[task.key] = time.monotonic()
        self.retries += task.attempts > 0
        if self._watched and self.watcher is not None:
            self.watcher.begun(task, os.getpid(), self._begun_at[task.key])

    def again(self, task: Task, status: int, started_ns: int, duration_ns: int, out: bytes) -> None:
        """It has failed, and another is to follow."""
        attempt = Attempt(status, os.getpid(), started_ns / 1e9, (started_ns + duration_ns) / 1e9, "", out)
        Scheduler.note_attempt(task, attempt)
        task.attempts += 1
        task.state = RETRY[task.state]
        if self.watcher is not None:
            self.watcher.noted(task, attempt)
            self.watcher.retried(task, 0.0)

    def end(self, task: Task, status: int, outcome: Outcome, started_ns: int = 0, duration_ns: int = 0) -> None:
        """It has ended; the times are those of the attempt that ended it, if one did."""
        task.state = (COMPLETE if status == codec.OK else END_BY[status])[task.state]
        task.seat = None
        self._tasks.pop(task.key, None)
        self._begun_at.pop(task.key, None)
        task.attempts += started_ns > 0
        entry = (task, status, os.getpid() if started_ns else 0, started_ns, duration_ns)
        self.history.append(entry)
        if self._watched and self.watcher is not None:
            self.watcher.ended(entry)
        if status != codec.OK:
            self.ended[task.state] += 1
        if status != codec.OK:
            self.history.keep(task, outcome)
        elif isinstance(outcome, bytes):
            self.history.keep_result(task, outcome)
        task.forget_call()

    def clean(self) -> None:
        """Forget what is too old, if it is time to look."""
        now = time.monotonic()
        if self._clean_at is not None and now >= self._clean_at:
            self.history.evict(now)
            self._clean_at = now + self._clean_every
