"""What the supervisor tells beside outcomes: events of tasks for who watches, and records for the log.

Neither holds up a task. What the client does not read waits behind the results that it does not read either, all
together at most WAITING_MAX; beyond that nothing is sent, and the gap in the numbers tells the client how much is
missing. Nothing here has seen a call or a result: no record can tell of one.

A task is told of from its acceptance on or not at all. Its child says when it begins, and the supervisor, which knows
the queue and the attempt, tells the client: nobody has to look at a claim page for it.
"""

from __future__ import annotations

import time

from mpworker.ipc import codec, details, json
from mpworker.ipc.levels import ERROR, INFO, WARNING
from mpworker.supervisor.children import Child
from mpworker.supervisor.describe import final_status
from mpworker.supervisor.fanout import ClientPort
from mpworker.supervisor.history import Ended
from mpworker.supervisor.registry import Attempt, Death, DetailedTask, Task
from mpworker.supervisor.scheduler import Scheduler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

WAITING_MAX: Final = 100_000


class Watch:
    """A `mpworker.supervisor.effects.Watcher`, which see, and the log.

    Args:
        port: The client.
        level: The least level that is sent.

    Attributes:
        tells: Somebody wants to hear of every task.
    """

    def __init__(self, port: ClientPort, level: int) -> None:
        self._port = port
        self._level = level
        self.tells = False
        self._number = 0
        self._begun: dict[int, tuple[int, float]] = {}  # by task: the process and the start of the attempt that runs
        self._noted: dict[int, Attempt] = {}  # by task: the attempt that has just ended
        self.middleware_errors = 0

    def _send(self, kind: int, flags: int, key: int, data: list[Any] | dict[str, Any]) -> None:
        self._number += 1
        if len(self._port.outbox.waiting) < WAITING_MAX:
            self._port.send(kind, flags, key & codec.TASK_MASK, self._number, 0, json.dumps(data).encode())

    # ------------------------------------------------------------ events of tasks

    def tell(self, on: bool, scheduler: Scheduler) -> None:
        """Somebody watches from now on, or nobody."""
        self.tells = on
        self._begun = {key: began for key, began in self._begun.items() if scheduler.task(key) is not None}
        scheduler.watch(on)

    def _event(
        self, what: int, task: Task, attempt: Attempt | None, status: int, pause: float | None, at: float
    ) -> None:
        pid, began, ended, cause = 0, None, None, ""
        if attempt is not None:
            pid, began, cause = attempt.pid, attempt.started_at, attempt.cause
            ended = attempt.ended_at or None
        count = task.attempts + (what == codec.STARTED)
        word = final_status(status) if what in (codec.RETRIED, codec.FINISHED) else None
        told = [at, task.options.queue, count, pid, began, ended, word, cause, pause]
        if isinstance(task, DetailedTask):
            told += [task.run_at, details.read(task.payload).get("name", "")]
        self._send(codec.EVENT, what, task.key, told)

    def accepted(self, task: Task) -> None:
        if not task.items:
            task.flags |= codec.WATCHED
            self._event(codec.QUEUED, task, None, 0, None, time.monotonic())

    def begun(self, task: Task, pid: int, started_at: float) -> None:
        if task.flags & codec.WATCHED and self._begun.get(task.key) != (pid, started_at):
            self._begun[task.key] = (pid, started_at)
            self._event(codec.STARTED, task, Attempt(0, pid, started_at, 0.0), 0, None, started_at)

    def noted(self, task: Task, attempt: Attempt) -> None:
        if self.tells and task.flags & codec.WATCHED:
            self._noted[task.key] = attempt

    def _last(self, task: Task, attempt: Attempt | None) -> Attempt | None:
        """The attempt that has just ended, if one has; its start is told first if its child died before it could."""
        noted = self._noted.pop(task.key, None)
        began = self._begun.pop(task.key, None)
        attempt = attempt or noted
        if attempt is None and began is not None:
            attempt = Attempt(0, *began, time.monotonic())
        if attempt is not None and began is None:
            task.attempts -= 1
            start = Attempt(attempt.status, attempt.pid, attempt.started_at, 0.0)
            self._event(codec.STARTED, task, start, 0, None, attempt.started_at)
            task.attempts += 1
        return attempt

    def retried(self, task: Task, pause: float) -> None:
        if self._level <= INFO:
            self.log(INFO, "task_retried", task.key, attempt=task.attempts, pause=pause, **_items(task))
        self.told_of_retry(task, pause)

    def told_of_retry(self, task: Task, pause: float) -> None:
        """Another attempt follows, for who wants to hear of it."""
        if self.tells and task.flags & codec.WATCHED and not task.items:
            attempt = self._last(task, None)
            status = attempt.status if attempt is not None else codec.CRASHED
            self._event(codec.RETRIED, task, attempt, status, pause, time.monotonic())

    def late(self, task: Task) -> None:
        timeout = None if task.setbacks.expired else task.options.timeout
        why: dict[str, Any] = {"timeout": timeout} if timeout is not None else {"deadline": "passed"}
        self.log(WARNING, "attempt_timed_out", task.key, attempt=task.attempts, **why, **_items(task))

    def ended(self, entry: Ended) -> None:
        task, status, pid, started_ns, duration_ns = entry
        if task.flags & codec.WATCHED:
            attempt = None
            if pid:
                attempt = Attempt(status, pid, started_ns / 1e9, (started_ns + duration_ns) / 1e9)
            self._event(codec.FINISHED, task, self._last(task, attempt), status, None, time.monotonic())

    # ------------------------------------------------------------ the log

    def change_level(self, level: int) -> None:
        """The least level that is sent from now on."""
        self._level = level

    def log(self, level: int, event: str, task: int = 0, **fields: object) -> None:
        """A record for the log, of a task perhaps."""
        if level >= self._level:
            self._send(codec.LOG, 0, task, {"level": level, "event": event, "at": time.monotonic(), "fields": fields})

    def middleware_failed(self, task: Task | None, data: bytes) -> None:
        """A middleware has raised in a child.

        Raises:
            ValueError: No child of ours would say it like that.
        """
        said = json.loads(data)
        self.middleware_errors += 1
        key = task.key if task is not None else 0
        self.log(ERROR, "middleware_failed", key, middleware=said["middleware"], traceback=said["traceback"])

    def child_died(self, child: Child, death: Death, scheduler: Scheduler) -> None:
        """A child is dead, and the scheduler does not know yet."""
        if self._level > WARNING:
            return
        seat = child.seat
        how: dict[str, Any] = {"pid": child.pid}
        if seat.kill_cause:
            self.log(WARNING, "child_killed", reason=seat.kill_cause, **how)
        elif death.exit_code == 0 and (child.stopping or seat.vacated):
            if seat.leaves:  # else it is the end of the pool, which does not wait for the reports of all deaths
                self.log(INFO, "child_recycled", reason=seat.leaves, **how)
        else:
            ran = [task.key for task in seat.offers.values() if scheduler.claimed_at(seat, task) is not None]
            how |= {"cause": death.cause, "signal": death.signal, "exit_code": death.exit_code}
            self.log(WARNING, "child_crashed", ran[0] if ran else 0, **how)


def _items(task: Task) -> dict[str, Any]:
    """Which items of a map these are."""
    return {"first": task.start, "items": task.stop - task.start} if task.items else {}
