"""The recurring tasks of one pool: requests in, tasks out. The decisions are `mpworker.supervisor.timetable`'s.

Loaded by the first request that is for it. The loop asks it to `look` when it would sleep, and not once a turn, so that
tasks do not pay for it.
"""

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, Final

from mpworker.ipc import codec, details
from mpworker.supervisor.fanout import ClientPort
from mpworker.supervisor.held import Held, held
from mpworker.supervisor.registry import DetailedTask, Task
from mpworker.supervisor.schedule import Calendar, Every, Schedule
from mpworker.supervisor.telling import Telling
from mpworker.supervisor.timetable import ENTRIES_MAX, Entry, Now, Rules, Run, Timetable

_NAMES_TOLD: Final = 10


@dataclass(frozen=True, slots=True)
class _Work:
    """What a recurring task runs, and what is told of it.

    Attributes:
        call: The pickle of the call, as in a SUBMIT record without a function; `Held` if it speaks of shared objects.
        options: The number of its options.
        said: What it says beyond them: see `mpworker.ipc.details`.
        deadline: Seconds from its start as a task; None for none.
    """

    call: bytes
    options: int
    said: dict[str, Any]
    deadline: float | None
    spec: str
    tz: str


def _now() -> Now:
    return Now(time.time(), time.monotonic())


class CronDesk:
    """Answers the client, hands tasks to the scheduler, and takes in how they ended.

    Args:
        world: The client's port; outcomes of these tasks come here, and go on to a client that listens.
        submit: Takes a task in.
        find: Finds one that has not ended by its number.
    """

    def __init__(
        self, world: ClientPort, submit: Callable[[DetailedTask], None], find: Callable[[int], Task | None]
    ) -> None:
        self._world = world
        self._submit = submit
        self._telling = Telling(world, find)
        self._table = Timetable(codec.CRON_KEYS)
        world.divert(codec.CRON_KEYS, self._ended)

    @property
    def look_at(self) -> float | None:
        """When to call `look` next, by the monotonic clock."""
        return self._table.look_at

    def look(self, now: float) -> None:
        """Hand over what is due."""
        if self._table.look_at is not None and now >= self._table.look_at:
            self._world.now_ns = time.monotonic_ns()
            for start in self._table.look(_now()):
                work = start.work
                assert isinstance(work, _Work)
                said = work.said if work.deadline is None else work.said | {"deadline": now + work.deadline}
                call = details.pack(said) + work.call
                flags = codec.DETAILED
                if isinstance(work.call, Held):
                    call = held(call, None, shares=work.call.shares)
                    flags |= codec.ARENA
                task = self._world.detailed(codec.SUBMIT, flags, start.key, 0, work.options, call)
                self._telling.begins(task)
                self._submit(task)

    def listen(self, on: bool) -> None:
        """The client is to be told of runs, or no longer."""
        self._telling.listen(on, self._table.runs_under_way())

    def _ended(self, task: Task, status: int, report: bytes) -> None:
        key = task.key & codec.TASK_MASK
        self._telling.ended(key, status, report)
        self._table.ended(key, status, b"" if status == codec.OK else report, _now())

    def close(self, waiting: bool) -> None:
        """Nothing is due any more; with `waiting` what waits behind a run is still run."""
        now = _now()
        self.look(now.monotonic)
        self._table.close(now, waiting)

    def unfinished(self) -> bool:
        """Is there a run that has not ended?"""
        return self._table.unfinished()

    # ------------------------------------------------------------ requests

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do what the client asks, and say what came of it; "error" is one of "exists", "full" and "unknown"."""
        op = message["op"]
        if op == "register":
            return self._register(message)
        now = _now()
        entries = self._table.entries
        if op == "list":
            return {"tasks": [self._told(name, entry, now) for name, entry in entries.items()]}
        if op == "unfinished":
            return {"unfinished": self._table.runs_under_way()}
        name = message["name"]
        if name not in entries:
            return {"error": "unknown", "names": list(entries)[:_NAMES_TOLD], "more": len(entries) > _NAMES_TOLD}
        if op == "history":
            return self._history(entries[name])
        if op == "run":
            accepted = self._table.run_now(name, now)
            self.look(now.monotonic)  # whoever asked may look the run up, or cancel it, from the answer on
            return {"accepted": accepted}
        {"remove": self._table.remove, "pause": self._table.pause, "resume": self._table.resume}[op](name, now)
        return {}

    def _register(self, message: dict[str, Any]) -> dict[str, Any]:
        name = message["name"]
        if name in self._table.entries:
            return {"error": "exists"}
        if len(self._table.entries) >= ENTRIES_MAX:
            return {"error": "full"}
        now = _now()
        due, zone = message["due"], _zone(message["tz"], message["tzif"])
        schedule: Schedule = Every(due["every"], now.monotonic) if "every" in due else _calendar(due, zone)
        what = {name: message[name] for name in ("options", "said", "deadline", "spec", "tz")}
        call = base64.b64decode(message["call"])
        if message["shares"]:
            call = self._world.blocks.held(call)
        work = _Work(call, **what)
        self._table.add(name, work, schedule, Rules(**message["rules"]), now)
        return {}

    def _told(self, name: str, entry: Entry, now: Now) -> dict[str, Any]:
        work = entry.work
        assert isinstance(work, _Work)
        return {
            "name": name,
            "spec": work.spec,
            "tz": work.tz,
            "overlap": entry.rules.overlap,
            "misfire": entry.rules.misfire,
            "next_at": self._table.next_at(entry, now),
            "paused": entry.paused,
            "running": entry.running is not None,
            "waiting": len(entry.waiting),
            "runs": entry.runs,
            "skipped": entry.skipped,
            "missed": entry.missed,
        }

    def _history(self, entry: Entry) -> dict[str, Any]:
        assert isinstance(entry.work, _Work)
        return {"tz": entry.work.tz, "runs": [_told_of(run) for run in entry.history]}


def _told_of(run: Run) -> list[Any]:
    report = None if run.report is None else base64.b64encode(run.report).decode()
    return [run.key, [run.scheduled_at, run.started_at], run.ended_at, run.status, report]


def _calendar(due: dict[str, Any], zone: tzinfo) -> Calendar:
    weekdays = [(day, number) for day, number in due["weekdays"]]
    return Calendar(**due | {"weekdays": weekdays}, zone=zone)


def _zone(name: str, tzif: str) -> tzinfo:
    """A time zone of the client's own file: there may be no database here, or another one."""
    if not tzif:
        return UTC
    from zoneinfo import ZoneInfo

    return ZoneInfo.from_file(io.BytesIO(base64.b64decode(tzif)), key=name)
