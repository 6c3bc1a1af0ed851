"""What is beside and around the tasks of a soak: hooks, a tracer, a log, and middleware; most raise now and then.

Whether one raises hangs on the task alone, so it is known how often they did. What the hooks are told goes into the
ledger, and `soak_checks` compares it with what the tasks themselves have written.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import soak_tasks as tasks

from mpworker import Hooks, Task, TaskEvent
from mpworker.context import TaskContext

EXECUTE_EVERY = 20
AFTER_EVERY = 30
REFUSE_EVERY = 100
OBSERVE_EVERY = 50


class Refused(Exception):
    """A middleware has refused a submission."""


def raises(what: str, which: object, every: int) -> bool:
    """Is this one of those that raise?"""
    return not zlib.crc32(f"{what} {which}".encode()) % every


def around(call_next: Callable[[], Any], context: TaskContext) -> None:
    """Around each execution, in a child. It raises after the call, whose result it cannot change."""
    call_next()
    if tasks.was_task() and raises("execute", context.task_id, EXECUTE_EVERY):
        raise LookupError(context.task_id)


class Observers:
    """Those of one pool: hooks, a tracer, the log, and the middleware around each submission.

    Args:
        ledger: Takes what is told.

    Attributes:
        told: How often, by kind.
        raised: How often one raised, by what `Metrics.observer_errors` calls it.
        open: Spans that have no end: the attempt by task.
        logged: How often, by event.
    """

    level = logging.WARNING

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self.told: Counter[str] = Counter()
        self.raised: Counter[str] = Counter()
        self.open: dict[str, int] = {}
        self.logged: Counter[str] = Counter()
        self.hooks = Hooks(on_queued=self._note, on_start=self._note, on_retry=self._note, on_finish=self._note)

    def _note(self, event: TaskEvent) -> None:
        self.told[event.kind] += 1
        status = event.status.value if event.status is not None else None
        self._ledger.write("event", event.kind, event.task_id, event.attempt, event.pid, status)
        self._raise("hook", f"{event.kind} {event.attempt} {event.task_id}")

    def _raise(self, what: str, which: str) -> None:
        if raises(what, which, OBSERVE_EVERY):
            self.raised[what] += 1
            raise LookupError(which)

    def log(self, _level: int, event: str, /, **_: object) -> None:
        self.logged[event] += 1

    # ------------------------------------------------------------ as a tracer

    def start(self, event: TaskEvent) -> TaskEvent:
        self._raise("tracer", f"start {event.attempt} {event.task_id}")
        assert event.task_id not in self.open, "two spans of one task are open"
        self.open[event.task_id] = event.attempt
        return event

    def end(self, span: TaskEvent, event: TaskEvent) -> None:
        assert self.open.pop(span.task_id) == span.attempt == event.attempt, (span, event)
        assert (span.task_id, span.kind) == (event.task_id, "start"), (span, event)
        assert event.kind in ("retry", "finish"), event
        self._raise("tracer", f"end {event.attempt} {event.task_id}")

    # ------------------------------------------------------------ around a submission

    def submission(self, call_next: Callable[[Task[Any]], Any], task: Task[Any]) -> Any:
        """It refuses some, and of others it raises when they are accepted, which loses no future."""
        ticket = task.args[1]
        if raises("refuse", ticket, REFUSE_EVERY):
            raise Refused(ticket)
        future = call_next(task)
        if raises("after", ticket, AFTER_EVERY):
            self.raised["middleware"] += 1
            raise LookupError(ticket)
        return future

    # ------------------------------------------------------------ what the pool has counted

    def options(self, surrounded: bool = True) -> dict[str, Any]:
        """All of them, or just hooks and the log, as the options of a pool."""
        beside: dict[str, Any] = {"hooks": self.hooks, "logger": self}
        around_all = {"tracer": self, "submit_middleware": [self.submission], "execute_middleware": [around]}
        return beside | (around_all if surrounded else {})

    def agrees(self, metrics: Any) -> bool:
        """Has all that has happened been told, and is what has raised counted, and logged?

        Raises:
            AssertionError: Something was dropped.
        """
        errors = metrics.observer_errors
        assert metrics.observer_drops == errors["logger"] == 0, metrics
        # A tracer's own assertions count as errors too.
        same = all(errors[what] == self.raised[what] == self.logged[f"{what}_failed"] for what in ("hook", "tracer"))
        return same and self.told["finish"] == self.told["queued"] and not self.open
