"""The timetable: which recurring task runs when, as a pure state machine.

It is told what happened and when, by both clocks, and `look` answers with the runs that begin now. It knows no clock,
no process and no ring, so that the tests run it under virtual time.

Two clocks. What a calendar says is a time of the wall clock, and is kept as such; nothing is armed for longer than
LOOK_EVERY by the monotonic clock, and each look asks the wall clock anew. So it does no harm if that one is set, is
slewed, or goes on while the machine sleeps. What is due each so many seconds goes by the monotonic clock alone.

- The wall clock leaps ahead, or the machine slept or stood still: what was due meanwhile was missed, and `misfire` says
  what is to become of it.
- It is set back: what was due once is not due again, unless the line follows the clock on the wall (`Calendar.fixed` is
  false) and the step is one that people would call such (STEP_MIN), or unless the step is so large that the
  clock must have been wrong before (STEP_MAX).

One run of a task at a time. What is due while one is unfinished is left out and counted, or, with `overlap="queue"`,
waits behind it: one, not more. Runs that make up for missed ones wait for each other, whatever `overlap` says.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from mpworker.supervisor.schedule import Schedule

ENTRIES_MAX: Final = 1_000
HISTORY_MAX: Final = 100
REPORT_BYTES: Final = 65_536
MADE_UP_MAX: Final = 100
COUNTED_MAX: Final = 1_000
LOOK_EVERY: Final = 30.0
STEP_MIN: Final = 60.0
STEP_MAX: Final = 3 * 3600.0


@dataclass(frozen=True, slots=True)
class Now:
    """The time by both clocks, in seconds: since the epoch, and since whenever."""

    wall: float
    monotonic: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What was asked for.

    Attributes:
        overlap: "skip" or "queue".
        misfire: "skip", "once" or "all".
        grace: Seconds by which a run may be late and is still no missed one.
    """

    overlap: str
    misfire: str
    grace: float


@dataclass(frozen=True, slots=True)
class Start:
    """A run begins: this work, under this key."""

    work: object
    key: int


@dataclass(slots=True)
class Run:
    """One run; times are seconds since the epoch.

    Attributes:
        status: How it ended, None until then; the timetable does not know what it means.
        report: And what was told of it, None if that is not kept.
    """

    key: int
    scheduled_at: float
    started_at: float
    ended_at: float | None = None
    status: int | None = None
    report: bytes | None = None


@dataclass(slots=True)
class Entry:
    """One recurring task.

    Attributes:
        work: What is to be done; the timetable does not look at it.
        due: When next, by the clock of its schedule; None for never.
        running: The run that is unfinished.
        waiting: The times for which runs wait behind it; each with whether it makes up for a missed one.
        history: The latest runs, the unfinished one among them.
        runs: How many have begun.
        skipped: Times that were left out because a run was unfinished.
        missed: Times that were left out because they were missed.
    """

    work: object
    schedule: Schedule
    rules: Rules
    due: float | None = None
    paused: bool = False
    running: Run | None = None
    waiting: deque[tuple[float, bool]] = field(default_factory=deque)
    history: deque[Run] = field(default_factory=lambda: deque(maxlen=HISTORY_MAX))
    runs: int = 0
    skipped: int = 0
    missed: int = 0


class Timetable:
    """All recurring tasks of one pool.

    Args:
        first_key: The keys of the runs count from here.

    Attributes:
        entries: By name.
        look_at: When to call `look` next, by the monotonic clock; None for never.
    """

    def __init__(self, first_key: int) -> None:
        self.entries: dict[str, Entry] = {}
        self.look_at: float | None = None
        self._keys = itertools.count(first_key)
        self._running: dict[int, Entry] = {}
        self._removed: dict[str, Entry] = {}  # those that were while a run was unfinished, until it has ended
        self._started: list[Start] = []  # not told yet
        self._seen: Now | None = None  # when the clocks were compared last
        self._closed = False

    # ------------------------------------------------------------ what is asked of it

    def add(self, name: str, work: object, schedule: Schedule, rules: Rules, now: Now) -> None:
        """A new entry; its name is not in `entries`. A run that an older one of the name has left counts as its own."""
        self._compare_clocks(now)
        entry = self.entries[name] = Entry(work, schedule, rules)
        older = self._removed.pop(name, None)
        if older is not None and older.running is not None:
            entry.running = older.running
            self._running[entry.running.key] = entry
        entry.due = schedule.next_after(_clock(entry, now))
        self._arm(now)

    def remove(self, name: str, now: Now) -> None:
        """No further run begins. One that is unfinished ends by itself, and nobody is told."""
        entry = self.entries.pop(name)
        entry.waiting.clear()
        if entry.running is not None:
            self._removed[name] = entry
        self._arm(now)

    def pause(self, name: str, now: Now) -> None:
        """Nothing is due until `resume`; what waits is left out."""
        entry = self.entries[name]
        entry.paused = True
        entry.skipped += len(entry.waiting)
        entry.waiting.clear()
        self._arm(now)

    def resume(self, name: str, now: Now) -> None:
        """Go on with the first time after now."""
        entry = self.entries[name]
        if entry.paused:
            self._compare_clocks(now)
            entry.paused = False
            entry.due = entry.schedule.next_after(_clock(entry, now))
            self._arm(now)

    def run_now(self, name: str, now: Now) -> bool:
        """As if it were due now, paused or not; False if `overlap` leaves it out."""
        entry = self.entries[name]
        accepted = not self._closed and self._due(entry, now.wall, now)
        self._arm(now)
        return accepted

    def ended(self, key: int, status: int, report: bytes, now: Now) -> None:
        """A run has its outcome."""
        entry = self._running.pop(key, None)
        if entry is None or entry.running is None:
            return
        run, entry.running = entry.running, None
        for name in [name for name, each in self._removed.items() if each is entry]:
            del self._removed[name]
        run.ended_at, run.status, run.report = now.wall, status, report
        _forget_reports(entry.history)
        if entry.waiting:
            self._begin(entry, entry.waiting.popleft()[0], now)
        self._arm(now)

    def close(self, now: Now, waiting: bool) -> None:
        """Nothing is due any more; what waits is run to its end, or (`waiting` is False) left out."""
        self._closed = True
        for entry in self.entries.values():
            if not waiting:
                entry.skipped += len(entry.waiting)
                entry.waiting.clear()
        self._arm(now)

    def runs_under_way(self) -> list[int]:
        """The numbers of the runs that have begun and have not ended."""
        return list(self._running)

    def unfinished(self) -> bool:
        """Has something begun that has not ended, or waits?"""
        return bool(self._running or self._started)

    def next_at(self, entry: Entry, now: Now) -> float | None:
        """When an entry is due next, in seconds since the epoch."""
        if entry.due is None or entry.paused or self._closed:
            return None
        return entry.due + now.wall - _clock(entry, now)

    # ------------------------------------------------------------ time

    def look(self, now: Now) -> list[Start]:
        """What is due: the runs that begin."""
        self._compare_clocks(now)
        for entry in self.entries.values():
            if entry.due is not None and entry.due <= _clock(entry, now) and not (entry.paused or self._closed):
                self._look_at(entry, now)
        started, self._started = self._started, []
        self._arm(now)
        return started

    def _compare_clocks(self, now: Now) -> None:
        """Has the wall clock been set back? Then some are due again."""
        seen, self._seen = self._seen or now, now
        passed = now.monotonic - seen.monotonic
        earliest = now.wall - passed  # that it can have shown since
        step = seen.wall - earliest
        if step > STEP_MIN:
            for entry in self.entries.values():
                if not entry.schedule.elapsed and (step > STEP_MAX or not entry.schedule.fixed):
                    entry.due = entry.schedule.next_after(earliest)

    def _look_at(self, entry: Entry, now: Now) -> None:
        clock = _clock(entry, now)
        to_wall = now.wall - clock
        in_time = clock - entry.rules.grace  # and what was due before this was missed
        self._make_up(entry, [at + to_wall for at in self._times(entry, math.nextafter(in_time, -math.inf))], now)
        for at in self._times(entry, clock):
            self._due(entry, at + to_wall, now)

    @staticmethod
    def _times(entry: Entry, until: float) -> Iterator[float]:
        """The times until then, at most COUNTED_MAX; what is beyond is passed over. `due` moves on to the next one."""
        for _ in range(COUNTED_MAX):
            if entry.due is None or entry.due > until:
                return
            at, entry.due = entry.due, entry.schedule.next_after(entry.due)
            yield at
        if entry.due is not None and entry.due <= until:
            entry.due = entry.schedule.next_after(until)

    def _make_up(self, entry: Entry, missed: list[float], now: Now) -> None:
        room = MADE_UP_MAX - sum(making_up for _, making_up in entry.waiting)
        if entry.rules.misfire == "once":
            room = room == MADE_UP_MAX
        elif entry.rules.misfire == "skip":
            room = 0
        for at in missed[:room]:
            if entry.running is None:
                self._begin(entry, at, now)
            else:
                entry.waiting.append((at, True))
        entry.missed += len(missed[room:])

    def _due(self, entry: Entry, at: float, now: Now) -> bool:
        """A time has come; False if it is left out."""
        if entry.running is None:
            self._begin(entry, at, now)
        elif entry.rules.overlap == "queue" and all(making_up for _, making_up in entry.waiting):
            entry.waiting.append((at, False))
        else:
            entry.skipped += 1
            return False
        return True

    def _begin(self, entry: Entry, scheduled_at: float, now: Now) -> None:
        key = next(self._keys)
        entry.running = Run(key, scheduled_at, now.wall)
        entry.history.append(entry.running)
        entry.runs += 1
        self._running[key] = entry
        self._started.append(Start(entry.work, key))

    def _arm(self, now: Now) -> None:
        """When to look next."""
        if self._started:
            self.look_at = now.monotonic
            return
        pause = math.inf
        for entry in self.entries.values():
            if entry.due is not None and not (entry.paused or self._closed):
                pause = min(pause, entry.due - _clock(entry, now), math.inf if entry.schedule.elapsed else LOOK_EVERY)
        self.look_at = None if pause == math.inf else now.monotonic + max(0.0, pause)


def _clock(entry: Entry, now: Now) -> float:
    """What the clock of its schedule says."""
    return now.monotonic if entry.schedule.elapsed else now.wall


def _forget_reports(history: deque[Run]) -> None:
    """Of old runs, so that those of one entry take no more than REPORT_BYTES."""
    left = REPORT_BYTES
    for run in reversed(history):
        left -= len(run.report or b"")
        if left < 0:
            run.report = None
