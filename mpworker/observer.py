"""Who tells hooks, tracers and loggers: a thread of the client's own, if there is anything to tell.

What they do is the user's code: it may be slow, or raise. So it has a thread for itself, which is not the one that
reads and calls the callbacks, and a queue that is bounded. The thread begins with the first hook or record and ends
with the worker.

The reading side is under the rules of `mpworker.reader`: a record may be taken in twice, and by two threads, and no
lock is taken. So records are kept by their number, which the supervisor gives and which a second look does not change;
one that is missing was dropped, here or there.
"""

from __future__ import annotations

import time
from collections import deque

from mpworker.clientthread import ClientThread
from mpworker.ipc import codec, json
from mpworker.ipc.failures import cut
from mpworker.ipc.levels import ERROR
from mpworker.logs import level_of
from mpworker.waiting import wake_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.client import Client
    from mpworker.hooks import Hooks, TaskEvent, Tracer
    from mpworker.logger import Logger
    from mpworker.task import TaskStatus

EVENTS_MAX: Final = 100_000
POSTS_MAX: Final = 1_000
OBSERVERS: Final = ("hook", "tracer", "logger", "middleware")
_FOREVER: Final = -1.0

# By what an event tells: its name, and the hook for it.
_KINDS: Final = {
    codec.QUEUED: ("queued", "on_queued"),
    codec.STARTED: ("start", "on_start"),
    codec.RETRIED: ("retry", "on_retry"),
    codec.FINISHED: ("finish", "on_finish"),
}
_HOOKS: Final = dict(_KINDS.values())


class _Open:
    """A task that is told of and has not ended: the last event, and the span of the attempt that runs."""

    __slots__ = ("event", "span")

    def __init__(self, event: TaskEvent) -> None:
        self.event = event
        self.span: list[Any] = []  # empty or one


class Observer(ClientThread):
    """The observers of one client.

    Args:
        client: The client.
        logger: Takes the records.
        tracer: Makes spans, if there is one.

    Attributes:
        level: The least level of records.
        errors: How often the code of observers has raised, by what they are.
        dropped: How many events and records were dropped.
        unfinished: What was pending at the end of the supervisor; None before that.
    """

    _name = "mpworker-observer"

    def __init__(self, client: Client, logger: Logger, tracer: Tracer | None) -> None:
        super().__init__()
        self._client = client
        self._logger = logger
        self._tracer = tracer
        self._hooks: Hooks | None = None
        self._changes: deque[tuple[int, Hooks | None]] = deque()  # from which number on which hooks are told
        self._watching = False  # the supervisor tells of tasks, and the background thread reads for that
        self.level = level_of(logger)
        self.errors = dict.fromkeys(OBSERVERS, 0)
        self.dropped = 0
        self.unfinished: frozenset[int] | None = None
        self._next = 1  # the number of the record to be told next
        self._top = 1  # one more than the highest that has come
        self._before = 0  # how many came from supervisors that have died: each counts from 1
        self._records: dict[int, tuple[int, int, int, bytes, str, str]] = {}
        self._posts: deque[tuple[int, str, dict[str, Any]]] = deque()  # records of the client's own
        self._open: dict[int, _Open] = {}
        self._pruned_at = 0  # `dropped` then

    # ------------------------------------------------------------ who observes

    def watch(self, hooks: Hooks | None) -> None:
        """These hooks are told from now on, None for none."""
        client = self._client
        wanted = self._tracer is not None or _has_any(hooks)
        was, self._watching = self._watching, wanted
        if not (wanted or was):
            return
        client.poll()  # what has happened so far is told to those that were there
        self._changes.append((self._top, hooks))
        if wanted != was:
            message = {"verb": "watch", "on": wanted}
            client.note_standing("watch", *[message] if wanted else [])
            client.tell(message)
            self.read_in_time(wanted)
        self.need()

    def read_in_time(self, wanted: bool) -> None:
        """Have the background thread read all the time, or no longer: events come when they happen."""
        background = self._client.background
        background.watched += 1 if wanted else -1
        if wanted:
            background.need()
        else:
            self._client.wake_everybody()

    def begins_anew(self) -> None:
        """What comes from now on is another supervisor's."""
        self._before = self._top - 1

    def counts(self, middleware: int) -> dict[str, Any]:
        """For `Metrics`; so many errors of middleware were in children."""
        errors = self.errors | {"middleware": self.errors["middleware"] + middleware}
        return {"observer_errors": errors, "observer_drops": self.dropped}

    def forked(self) -> None:
        """This process is a fork: the thread is not here."""
        self._forget_thread()
        self._records.clear()
        self._posts.clear()

    # ------------------------------------------------------------ what comes in

    def take(self, kind: int, what: int, key: int, number: int, data: bytes) -> None:
        """A record of the supervisor's has come; it may be taken more than once."""
        number += self._before
        future = self._client.pending.get(key) if key else None
        task_id, name = getattr(future, "task_id", ""), getattr(future, "_name", "")
        entry = (kind, what, key, data, task_id, name)
        room = len(self._records) < EVENTS_MAX
        if number >= self._next and room:
            self._records[number] = entry  # no call since the look
        if number >= self._top:
            self._top = number + 1
        self.need()

    def post(self, level: int, event: str, **fields: object) -> None:
        """A record of the client's own."""
        if level < self.level:
            return
        if len(self._posts) < POSTS_MAX:
            self._posts.append((level, event, {**fields, "at": time.time()}))
            self.need()
        else:
            self.dropped += 1

    def failed(self, what: str, who: str, error: BaseException | None, why: str = "") -> None:
        """The code of an observer has raised, or done what it must not.

        Args:
            what: A key of `errors`.
            who: Its name.
            error: What it has raised: its type and places are logged, and not what it says.
            why: What it has done else.
        """
        count = self.errors[what]
        self.errors[what] = count + 1  # no call since the look
        trace = why
        if error is not None:
            import traceback

            ours = error.__traceback__  # the frame that called it
            frames = traceback.format_tb(ours.tb_next if ours is not None else None)
            trace = cut("".join(frames) + type(error).__qualname__)
        if what != "logger":
            self.post(ERROR, f"{what}_failed", **{what: who, "traceback": trace})

    def need(self) -> None:
        """Something is to be told: see to it that it is."""
        try:
            self.start()
        except RuntimeError:
            pass  # there is no thread to be had now: the next record tries again
        self._rest.wake()

    # ------------------------------------------------------------ who tells

    def _work(self) -> None:
        while True:
            if not self._tell_what_has_come():
                self._rest.wait(_FOREVER)
            elif self._next >= self._top and not self._posts:
                self.running = False  # no call since the look: what comes from now on begins another thread
                wake_all(self._joining)
                return

    def _tell_what_has_come(self) -> bool:
        """Tell it; whether the worker is over."""
        over = self._client.is_over()
        self._tell_all()
        if over:
            self._tell_ends()
        return over

    def _tell_all(self) -> None:
        while True:
            record = self._take_first()
            self._change_hooks(self._next if record is None else self._next - 1)
            if record is not None:
                self._tell(*record)
            elif self._posts:
                level, event, fields = self._posts.popleft()
                self._log(level, event, fields)
            else:
                self._prune()
                return

    def _change_hooks(self, number: int) -> None:
        """The record with this number is the next to be told, whether or not it has come."""
        while self._changes and self._changes[0][0] <= number:
            self._hooks = self._changes.popleft()[1]

    def _take_first(self) -> tuple[int, int, int, bytes, str, str] | None:
        while self._next < self._top:
            number = self._next
            self._next = number + 1
            record = self._records.pop(number, None)
            if record is not None:
                return record
            self.dropped += 1
        return None

    def _tell(self, kind: int, what: int, key: int, data: bytes, task_id: str, name: str) -> None:
        said = json.loads(data)
        if key and not task_id:
            task_id = f"{self._client.prefix}{key}"
        if kind == codec.LOG:
            fields: dict[str, Any] = {"task_id": task_id} if key else {}
            if name:
                fields["name"] = name
            fields |= said["fields"]
            fields["at"] = _epoch(said["at"])
            self._log(said["level"], said["event"], fields)
            return
        at, queue, attempt, pid, began, ended, status, cause, pause, *rest = said
        run_at, own_name = rest or (None, "")
        from mpworker.hooks import TaskEvent  # there are hooks, or a tracer: no start waits for it
        from mpworker.task import TaskStatus

        event = TaskEvent(
            _KINDS[what][0],  # type: ignore[arg-type]
            task_id,
            name or own_name,
            queue,
            _epoch(at),
            attempt,
            pid,
            None if began is None else _epoch(began),
            None if ended is None else _epoch(ended),
            None if status is None else TaskStatus(status),
            cause,
            pause,
            None if run_at is None else _epoch(run_at),
        )
        self._happened(key, event)

    def _happened(self, key: int, event: TaskEvent) -> None:
        known = self._open.get(key)
        if known is None:
            known = self._open[key] = _Open(event)
        known.event = event
        if event.kind == "finish":
            del self._open[key]
        hook = getattr(self._hooks, _HOOKS[event.kind], None)  # None where there are no hooks
        if hook is not None:
            self._call("hook", hook, event)
        if self._tracer is None or event.kind == "queued":
            return
        if known.span:
            self._call("tracer", self._tracer.end, known.span.pop(), event)
        if event.kind == "start":
            known.span += self._call("tracer", self._tracer.start, event)

    def _call(self, what: str, function: Any, *args: Any) -> list[Any]:
        """Call an observer; what it returns, as the one element of a list, or nothing."""
        try:
            return [function(*args)]
        except BaseException as error:  # noqa: BLE001  # a SystemExit would end the thread
            self.failed(what, getattr(function, "__qualname__", type(function).__qualname__), error)
            return []

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        try:
            self._logger.log(level, event, **fields)
        except BaseException as error:  # noqa: BLE001  # there is nobody left to tell
            self.failed("logger", "log", error)

    def _prune(self) -> None:
        """Forget tasks whose end was dropped, or whom nobody watches any more."""
        if not self._watching:
            while self._open:
                self._end_span(self._open.popitem()[1])
        if self._pruned_at != self.dropped:
            self._pruned_at = self.dropped
            pending = self._client.pending
            for key in [key for key in self._open if key not in pending and key < codec.CRON_KEYS]:
                self._end_span(self._open.pop(key))

    def _tell_ends(self) -> None:
        """The worker is over: what the supervisor did not live to tell."""
        if not self._open:
            return
        from mpworker.task import TaskStatus

        status, cause = TaskStatus.CANCELLED, ""
        if self._client.ending.outcome is not None and self._client.ending.outcome[0] != codec.CANCELLED:
            status, cause = TaskStatus.FAILED, "lost"
        unfinished = self.unfinished or frozenset()
        for key, known in list(self._open.items()):
            if key in unfinished or key >= codec.CRON_KEYS:
                last = known.event
                self._happened(key, _ended(last, status, cause))
            else:
                self._end_span(self._open.pop(key))

    def _end_span(self, known: _Open) -> None:
        if known.span and self._tracer is not None:
            self._call("tracer", self._tracer.end, known.span.pop(), known.event)


def _has_any(hooks: Hooks | None) -> bool:
    """Is there one among them?"""
    return any(getattr(hooks, name, None) is not None for name in _HOOKS.values())


def _ended(last: TaskEvent, status: TaskStatus, cause: str) -> TaskEvent:
    from dataclasses import replace

    now = time.time()
    ended_at = now if last.kind == "start" else None
    runs: dict[str, Any] = {} if last.kind == "start" else {"pid": 0, "started_at": None}
    return replace(last, kind="finish", at=now, status=status, cause=cause, ended_at=ended_at, pause=None, **runs)


def _epoch(monotonic: float) -> float:
    return monotonic + time.time() - time.monotonic()
