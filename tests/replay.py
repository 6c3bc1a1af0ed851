"""Repeats what `mpworker.supervisor.recording` has recorded on a new scheduler, and sees that it does the same."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from mpworker.supervisor.backoff import Backoff
from mpworker.supervisor.places import Places
from mpworker.supervisor.recording import EFFECTS, UNIFORM, Encoder
from mpworker.supervisor.recycling import Recycling
from mpworker.supervisor.registry import (
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

SCHEDULERS: Final[dict[str, type[Scheduler]]] = {kind.__name__: kind for kind in (Places, Recycling)}
_RECORDS: Final = {kind.__name__: kind for kind in (Backoff, Death)}
_TASKS: Final = {kind.__name__: kind for kind in (Task, DetailedTask)}


class Differs(AssertionError):
    """The scheduler has done something else than it did when it was recorded."""


def read(path: Path) -> Iterator[list[Any]]:
    with open(path) as file:
        for line in file:
            yield json.loads(line)


class _World:
    """The effects of a replay: they do nothing, are compared, and answer as they did."""

    def __init__(self, replay: "Replay") -> None:
        for name in (*EFFECTS, UNIFORM):
            setattr(self, name, lambda *args, _name=name: replay.effect(_name, args))


class Replay:
    """One recording.

    Attributes:
        calls: How often each method was called.
        effects: How often each effect was.
    """

    def __init__(self, lines: Iterable[list[Any]]) -> None:
        self._lines = iter(lines)
        kind, self._slots, figures = next(self._lines)
        world: Any = _World(self)
        self.scheduler = SCHEDULERS[kind](
            world, uniform=world.uniform, **figures | {"times": Times(**figures["times"])}
        )
        self._encoder = Encoder(lambda number, told: self._new_options(number))
        self._seats: dict[int, Seat] = {}
        self._shared: dict[int, object] = {}
        self._expected: list[Any] = []
        self._done = 0  # of these
        self._call = ""
        self.calls: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()

    def run(self) -> None:
        """Make all calls.

        Raises:
            Differs: At the first effect or answer that is not as it was.
        """
        for number, (name, *line) in enumerate(self._lines, 2):
            if name == "define":
                key, told = line
                self._share(key, TaskOptions(**{each: self._value(value) for each, value in told.items()}))
                continue
            args, kwargs, self._expected, answer, changes = line
            for seat, pid in changes.items():
                self._seat(int(seat)).pid = pid
            self._done = 0
            self._call = f"line {number}, {said(name, args)}"
            self.calls[name] += 1
            got = self._answer(name, args, kwargs)
            if self._done < len(self._expected):
                raise Differs(f"{self._call}: it is over without effect {self._done + 1}, {self._told(self._done)}")
            if got != answer:
                raise Differs(f"{self._call}: its answer {where(answer, got)}")

    def _answer(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        values = [self._value(arg) for arg in args]
        named = {key: self._value(value) for key, value in kwargs.items()}
        try:
            return self._encoder.plain(getattr(self.scheduler, name)(*values, **named))
        except Differs:
            raise
        except Exception as error:  # noqa: BLE001  # a ProtocolViolation was raised then, too; all else differs
            return {"raised": type(error).__name__}

    def effect(self, name: str, args: tuple[Any, ...]) -> Any:
        got = [name, self._encoder.plain(args)]
        if self._done == len(self._expected):
            raise Differs(f"{self._call}: effect {self._done + 1} was none and is {said(*got)}")
        *told, answer = self._expected[self._done]
        if got != told:
            raise Differs(f"{self._call}: effect {self._done + 1}, {self._told(self._done)}, {where(told, got)}")
        self._done += 1
        self.effects[name] += 1
        value = self._value(answer)
        return tuple(value) if isinstance(value, list) else value

    def _told(self, number: int) -> str:
        return said(*self._expected[number][:2])

    # ------------------------------------------------------------ from plain data

    def _value(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return [self._value(each) for each in plain]
        if not isinstance(plain, dict):
            return plain
        ((kind, told),) = plain.items()
        if kind == "bytes":
            return bytes(told)
        if kind == "seat":
            return self._seat(told)
        if kind == "TaskOptions":
            return self._shared[told]
        if kind == "Context":
            return self._shared.get(told) or self._share(told, Context(told, None))
        if kind == "Function":
            return self._shared.get(told) or self._share(told, Function(told, b""))
        if kind in _RECORDS:
            return _RECORDS[kind](**told)
        if kind == "Setbacks":
            return _with(Setbacks(), told | {"past": []})
        return self._task(_TASKS[kind], told)

    def _task(self, kind: type[Task], told: dict[str, Any]) -> Task:
        values = {name: self._value(value) for name, value in told.items()}
        names = ("key", "function", "options", "payload", "items")
        return _with(kind(*(values[name] for name in names)), values)

    def _seat(self, number: int) -> Seat:
        if number not in self._seats:
            self._seats[number] = Seat(number, self._slots)
        return self._seats[number]

    def _share(self, number: int, shared: object) -> object:
        self._shared[number] = shared
        self._encoder.know(number, shared)
        return shared

    @staticmethod
    def _new_options(number: int) -> None:
        raise Differs(f"options that were never defined, now number {number}")


def _with(made: Any, values: dict[str, Any]) -> Any:
    for name, value in values.items():
        setattr(made, name, value)
    return made


def said(name: str, args: list[Any]) -> str:
    """A call in short: of tasks and the like their number alone."""
    return f"{name}({', '.join(map(_brief, args))})"


def _brief(plain: Any) -> str:
    if isinstance(plain, dict) and len(plain) == 1:
        ((kind, told),) = plain.items()
        return f"{kind} {told['key'] if isinstance(told, dict) and 'key' in told else told}"
    return str(plain)[:100]


def where(told: Any, got: Any, path: str = "") -> str:
    """Where two values differ first."""
    if isinstance(told, dict) and isinstance(got, dict) and told.keys() == got.keys():
        pairs = [(f"{path}.{name}", told[name], got[name]) for name in told]
    elif isinstance(told, list) and isinstance(got, list) and len(told) == len(got):
        pairs = [(f"{path}[{number}]", *pair) for number, pair in enumerate(zip(told, got, strict=True))]
    else:
        return f"was {str(told)[:300]} and is {str(got)[:300]}{' at ' + path if path else ''}"
    return next((where(old, new, at) for at, old, new in pairs if old != new), "is the same")
