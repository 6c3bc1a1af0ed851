"""A recording of what the scheduler was told and what it did, so that a run can be repeated without its processes.

With the environment variable MPWORKER_RECORD the supervisor writes a file PID.jsonl into the folder that it names. The
first line says what kind of scheduler it is and with which figures. Each further one is a call:

    [name, arguments, keyword arguments, effects, answer, changes]

where each of the effects is [name, arguments, answer], and `changes` are the process ids that children have got since.
`tests/replay.py` makes the same calls on a new scheduler, gives it the same answers, and compares its effects.

Nothing of the user's is written but names of queues and concurrency keys: of a payload there is its length. Without the
variable nothing is wrapped and this file is not loaded, so no task pays for it.
"""

import json
import os
from collections.abc import Callable
from typing import Any, Final

from mpworker.supervisor.backoff import Backoff
from mpworker.supervisor.effects import Effects
from mpworker.supervisor.registry import (
    GONE,
    Context,
    Death,
    DetailedTask,
    Function,
    Seat,
    Setbacks,
    Task,
    TaskOptions,
    Times,
)
from mpworker.supervisor.scheduler import Scheduler

# What only looks, or has somebody look on: these change nothing, and what they ask the effects is no part of what the
# scheduler does. All other public methods are recorded, also those to come.
LOOKS: Final = frozenset(
    (
        "claimed_at",
        "is_running",
        "keys",
        "limit",
        "limiter_waits",
        "next_timer",
        "offered",
        "queue_states",
        "seat_of",
        "serving",
        "task",
        "tasks",
        "trace",
        "unfinished",
        "unfinished_tasks",
    )
)
# What does the same for many as another one does for each, and is recorded as that.
MANY: Final = frozenset(("submitted_all", "well"))
EFFECTS: Final = tuple(name for name in vars(Effects) if not name.startswith("_"))
UNIFORM: Final = "uniform"  # is no effect, and has an answer all the same
_TEXTS: Final = ("interrupted", "dumped")  # of a report: stacks, which are the user's


def calls_of(scheduler: type[Scheduler]) -> list[str]:
    """The names of what is recorded."""
    public = (name for name in dir(scheduler) if not name.startswith("_"))
    unrecorded = LOOKS | MANY
    return [name for name in public if callable(getattr(scheduler, name)) and name not in unrecorded]


def slots_of(kind: type) -> list[str]:
    """The fields of a class with slots, those of its bases included."""
    return [name for each in kind.__mro__ for name in each.__dict__.get("__slots__", ())]


# What the child is to do: the scheduler has no use for it, and others change it.
_OTHERS: Final = ("flags",)
_SLOTS: Final = {kind: [name for name in slots_of(kind) if name not in _OTHERS] for kind in (Task, DetailedTask)}


class Encoder:
    """Makes plain data of what goes into the scheduler and comes out of it.

    Functions, contexts and options are shared by many tasks, and told by a number; options are told in full once, to
    `define`.
    """

    def __init__(self, define: Callable[[int, dict[str, Any]], None]) -> None:
        self._define = define
        self._numbers: dict[int, tuple[int, object]] = {}  # by identity; the object too, lest another one get its place

    def know(self, number: int, shared: object) -> None:
        """An object has this number."""
        self._numbers[id(shared)] = (number, shared)

    def _number(self, shared: object) -> int:
        known = self._numbers.get(id(shared))
        if known is None:
            known = self._numbers[id(shared)] = (len(self._numbers), shared)
            if isinstance(shared, TaskOptions):
                self._define(known[0], {name: self.plain(getattr(shared, name)) for name in TaskOptions.__slots__})
        return known[0]

    def plain(self, value: Any) -> Any:
        """Plain data for JSON; equal if and only if the values are, as far as the scheduler is concerned."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, bytes):
            return {"bytes": len(value)}
        if isinstance(value, Seat):
            return {"seat": value.number}
        if isinstance(value, Task):
            return {
                type(value).__name__: {name: self.plain(getattr(value, name, None)) for name in _SLOTS[type(value)]}
            }
        if isinstance(value, Setbacks):
            told = {name: getattr(value, name) for name in Setbacks.__slots__}
            return {"Setbacks": told | {"past": len(value.past)}}  # a history for people
        if isinstance(value, Context | Function | TaskOptions):
            return {type(value).__name__: self._number(value)}
        if isinstance(value, Backoff | Death):
            told = {name: self.plain(getattr(value, name)) for name in type(value).__slots__}
            return {type(value).__name__: told}
        if isinstance(value, dict):
            return {name: bool(each) if name in _TEXTS else self.plain(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(each) for each in value]
        raise TypeError(f"a {type(value).__name__} cannot be recorded")


class Recorder:
    """Writes the file.

    Args:
        write: Takes a line of plain data.
    """

    def __init__(self, write: Callable[[list[Any]], None]) -> None:
        self._write = write
        self._encoder = Encoder(lambda number, told: write(["define", number, told]))
        self._effects: list[list[Any]] | None = None  # of the call that is under way
        self._pids: dict[int, tuple[Seat, int]] = {}

    def call(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The same method, recorded."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            changes = self._changes(args)
            plain = self._encoder.plain
            line = [name, plain(args), plain(kwargs), [], None, changes]
            outer, self._effects = self._effects, line[3]
            try:
                answer = method(*args, **kwargs)
                line[4] = plain(answer)
                return answer
            except BaseException as error:
                line[4] = {"raised": type(error).__name__}
                raise
            finally:
                self._effects = outer
                self._write(line)

        return recorded

    def effect(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The same for what the scheduler calls."""

        def recorded(*args: Any) -> Any:
            if self._effects is None:
                return method(*args)  # of somebody who only looks
            line = [name, self._encoder.plain(args), None]
            self._effects.append(line)
            answer = method(*args)
            line[2] = self._encoder.plain(answer)
            return answer

        return recorded

    def _changes(self, args: tuple[Any, ...]) -> dict[str, int]:
        """What has become of the children since: they get their process ids from the loop."""
        for seat in args:
            if isinstance(seat, Seat) and seat.number not in self._pids:
                self._pids[seat.number] = (seat, 0)
        changes = {str(number): seat.pid for number, (seat, pid) in self._pids.items() if seat.pid != pid}
        self._pids = {number: (seat, seat.pid) for number, (seat, _) in self._pids.items() if seat.state != GONE}
        return changes


class _Wrapped:
    """An object some of whose methods are recorded; all else is its own."""

    def __init__(self, inner: object, record: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self.__dict__.update(_inner=inner, _record=record)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def record(self, names: list[str] | tuple[str, ...]) -> None:
        for name in names:
            # Asked for at each call: an effect may be another one's by then.
            self.__dict__[name] = self._record(
                name, lambda *args, _name=name, **kwargs: self._call(_name, args, kwargs)
            )

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(self._inner, name)(*args, **kwargs)


def recorded(
    make: type[Scheduler],
    write: Callable[[list[Any]], None],
    slots: int,
    effects: Effects,
    uniform: Any,
    figures: dict[str, Any],
) -> Any:
    """A scheduler each call of which is recorded, and each effect.

    Args:
        make: Its class.
        write: Takes a line of plain data.
        slots: Offers that a child can hold.
        effects: As for `Scheduler`.
        uniform: As for `Scheduler`.
        figures: All else that it is made with.
    """
    times = {name: getattr(figures["times"], name) for name in Times.__slots__}
    write([make.__name__, slots, figures | {"times": times}])
    recorder = Recorder(write)
    world: Any = _Wrapped(effects, recorder.effect)
    world.record(EFFECTS)
    scheduler = _Wrapped(make(world, uniform=recorder.effect(UNIFORM, uniform), **figures), recorder.call)
    scheduler.record(calls_of(make))

    def submitted_all(tasks: list[Task]) -> None:
        for task in tasks:
            scheduler.submitted_watched(task) if scheduler._watched else scheduler.submitted(task)

    scheduler.__dict__.update(submitted_all=submitted_all, well=lambda _seat, _answers, at: at)
    return scheduler


def recorded_in(folder: str, make: type[Scheduler], slots: int) -> Callable[..., Any]:
    """What makes a scheduler of this class whose recording is a new file in that folder; for the rest see `recorded`.

    Raises:
        OSError: It cannot be written there.
    """
    fd = os.open(
        os.path.join(folder, f"{os.getpid()}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
    )

    def write(line: list[Any]) -> None:
        data = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        while data:
            data = data[os.write(fd, data) :]

    return lambda effects, *, uniform, **figures: recorded(make, write, slots, effects, uniform, figures)
