"""A recorded trace as a load: see `mpworker.supervisor.tracing` for who writes it, `docs/planning.md` for its lines."""

import bisect
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mpworker.errors import ConfigurationError
from mpworker.ipc.traces import VERSION
from mpworker.planning.load import STATUSES, Attempt, Costs, Job, Load, QueueLimits
from mpworker.supervisor.backoff import Backoff
from mpworker.supervisor.effects import TIMED_OUT
from mpworker.supervisor.registry import TaskOptions

JOBS_MAX: Final = 1_000_000
_CUT: Final = "cancelled"  # an attempt that did not come to its own end
_LATE: Final = 0.9  # of its timeout: an attempt that was ended sooner met its deadline
_WAKE_MIN: Final = 1e-6  # seconds; a trace counts in these
_CLOSE: Final = 0.001  # seconds: so soon after an end, an arrival is taken for its consequence
_CLOSED_PART: Final = 0.8
_BLOCKS: Final = 20  # of which a resampled trace is made

_NUMBER, _TEXT, _COUNT = (int, float), (str,), (int,)
_FIELDS: Final[dict[str, tuple[type, ...]]] = {
    "at": _NUMBER,
    "took": _NUMBER,
    "function": _COUNT,
    "queue": _TEXT,
    "priority": _COUNT,
    "size": _COUNT,
    "attempts": (list,),
}
_OPTIONAL: Final[dict[str, tuple[type, ...]]] = {
    "waited": _NUMBER,
    "result": _COUNT,
    "weight": _COUNT,
    "timeout": _NUMBER,
    "retries": _COUNT,
    "crash_retries": _COUNT,
    "backoff": (list,),
    "deadline": _NUMBER,
    "key": _COUNT,
    "concurrency": _COUNT,
    "cancelled": _NUMBER,
    "items": _COUNT,
}
_SIGNED: Final = ("priority", "deadline")


@dataclass
class Trace:
    """A recorded load, and the pool that carried it.

    Attributes:
        path: The file.
        jobs: What came.
        n: Children that it had; 0 if that was not recorded.
        cores: Cores of that machine.
        rate: Starts per second of all queues together.
        burst: Starts at once.
        queues: What its queues were configured with.
        memory: The most bytes that a child had of its own, 0 if that is unknown.
        wake: Seconds from the end of an attempt until the supervisor has told of it, on average; None if none says.
        took: Seconds from the arrival to the end of each task that ended by itself, as they were then, sorted.
        notes: What is to be known of it.
    """

    path: str
    jobs: list[Job] = field(default_factory=list)
    n: int = 0
    cores: int = 0
    rate: float | None = None
    burst: int | None = None
    queues: dict[str, QueueLimits] = field(default_factory=dict)
    memory: int = 0
    wake: float | None = None
    took: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def costs(self) -> Costs:
        """What the pool itself took: how long one process waits for the other is known from the answers."""
        if self.wake is None:
            return Costs()
        source = "the first as in the trace, from answers of children; the others measured with no-op tasks elsewhere"
        return replace(Costs(), wake=self.wake, source=source)

    def load(self, seed: int) -> Load:
        """The load itself for seed 0, and for each other one a load that is made of blocks of it, chosen by chance.

        Blocks, and not single tasks, keep what bursts there are.
        """
        if not seed or len(self.jobs) < _BLOCKS:
            return Load(self.jobs)
        chance = random.Random(seed)
        jobs, size = self.jobs, len(self.jobs) // _BLOCKS
        drawn: list[Job] = []
        at = 0.0
        while len(drawn) < len(jobs):
            first = chance.randrange(len(jobs) - size)
            begin = jobs[first].at
            drawn += [job._replace(at=at + job.at - begin) for job in jobs[first : first + size]]
            at += jobs[first + size].at - begin
        return Load(drawn[: len(jobs)])


def read(path: str) -> Trace:
    """Read a trace: of the last run in the file, if there are several.

    Args:
        path: The file.

    Raises:
        ConfigurationError: It cannot be read, is no trace, or has a line that is none of a trace; that one is named.
    """
    trace = Trace(path)
    runs = 0
    tasks: list[dict[str, Any]] = []
    for place, said in _lines(path, trace):
        if "trace" in said:
            if said["trace"] != VERSION:
                raise ConfigurationError(f"{place}: this is of trace format {said['trace']!r}, and {VERSION} is known")
            runs += 1
            trace = Trace(path, cores=_checked(place, "cores", said.get("cores", 0), _COUNT), notes=trace.notes)
            tasks = []
        elif not runs:
            raise ConfigurationError(
                f'{place}: this is no trace, which begins with the line {{"trace":{VERSION}, ...}}'
            )
        elif "pool" in said:
            _read_pool(place, trace, said["pool"])
        elif "memory" in said:
            trace.memory = max(trace.memory, _checked(place, "memory", said["memory"], _COUNT))
        else:
            tasks.append(_task(place, said))
            if len(tasks) > JOBS_MAX:
                raise ConfigurationError(f"{place}: a trace may have {JOBS_MAX} tasks: cut it, after its first lines")
    if not runs:
        raise ConfigurationError(f"{path} is empty: no trace begins in it")
    if not tasks:
        raise ConfigurationError(f"{path}: no task has ended in this trace")
    if runs > 1:
        trace.notes.append(f"{path} has {runs} runs: this is the last one")
    tasks.sort(key=lambda task: task["at"])
    _make_jobs(trace, tasks)
    _look_at_arrivals(trace, tasks)
    return trace


def _lines(path: str, trace: Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line that says something, with its place. One that was cut off by the end of its writer is left out."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigurationError(f"the trace {path} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            # What comes after a run that was killed begins with an empty line.
            if number > 1 and (number == len(lines) or not lines[number].strip()):
                trace.notes.append(f"{place} was cut off, as by a kill, and is left out")
                continue
            raise ConfigurationError(f"{place}: this is no line of a trace: {_short(line)}") from None
        if not isinstance(said, dict):
            raise ConfigurationError(f"{place}: this is no line of a trace: {_short(line)}")
        yield place, said


def _short(line: bytes) -> str:
    text = line.decode(errors="replace")
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _checked(place: str, name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    """A value of a line, if it is of such a kind and, where it is a number, not below 0."""
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if good and isinstance(value, int | float):
        good = math.isfinite(value) and (value >= 0 or name in _SIGNED)
    if not good:
        raise ConfigurationError(f"{place}: {name} must not be {json.dumps(value)[:60]}")
    return value


def _read_pool(place: str, trace: Trace, said: Any) -> None:
    try:
        trace.n = max(trace.n, _checked(place, "n", said["n"], _COUNT))
        trace.rate, trace.burst = said["rate"], said["burst"]
        trace.queues = {name: QueueLimits(**limits) for name, limits in said["queues"].items()}
    except (KeyError, TypeError, AttributeError):
        raise ConfigurationError(f"{place}: this is no description of a pool: {json.dumps(said)[:60]}") from None


def _task(place: str, said: dict[str, Any]) -> dict[str, Any]:
    for name, kinds in _FIELDS.items():
        if name not in said:
            raise ConfigurationError(f"{place}: {name!r} is missing")
        _checked(place, name, said[name], kinds)
    for name, kinds in _OPTIONAL.items():
        if name in said:
            _checked(place, name, said[name], kinds)
    for each in said["attempts"]:
        known = isinstance(each, list) and len(each) == 2 and (each[1] in STATUSES or each[1] == _CUT)
        if not known:
            raise ConfigurationError(f"{place}: an attempt must not be {json.dumps(each)[:60]}")
        _checked(place, "an attempt's time", each[0], _NUMBER)
    return said


# ------------------------------------------------------------ jobs


def _make_jobs(trace: Trace, tasks: list[dict[str, Any]]) -> None:
    guess = _Guess(tasks)
    options: dict[tuple[Any, ...], TaskOptions] = {}
    for task in tasks:
        known = _option_key(task)
        if known not in options:
            options[known] = _options(task)
        attempts = tuple(guess.attempt(task, *each) for each in task["attempts"])
        if not attempts:  # it never began
            attempts = (Attempt(guess.at_least(task["function"], 0.0)),)
        trace.jobs.append(
            Job(
                task["at"],
                attempts,
                options[known],
                task["function"],
                task["size"],
                task.get("deadline"),
                task.get("cancelled"),
                str(task.get("key", "")),
                task.get("concurrency", 1),
            )
        )
        if "cancelled" not in task:
            trace.took.append(task["took"])
    trace.took.sort()
    waits = [
        task["took"] - task["waited"] - task["attempts"][0][0]
        for task in tasks
        if "waited" in task and len(task["attempts"]) == 1 and "items" not in task and task["attempts"][0][1] == "ok"
    ]
    if waits:
        trace.wake = max(_WAKE_MIN, sum(waits) / len(waits))
    if guess.guesses:
        trace.notes.append(
            f"{guess.guesses} of {len(tasks)} tasks did not run to an end of their own: how long each would have taken "
            "is drawn from those of the same function that did, and took as long at least"
        )


def _option_key(task: dict[str, Any]) -> tuple[Any, ...]:
    names = ("queue", "priority", "weight", "timeout", "retries", "crash_retries")
    return (*(task.get(name) for name in names), *task.get("backoff", ()))


def _options(task: dict[str, Any]) -> TaskOptions:
    backoff = task.get("backoff")
    return TaskOptions(
        timeout=task.get("timeout"),
        retries=task.get("retries", 0),
        crash_retries=task.get("crash_retries", 0),
        backoff=Backoff(*backoff) if backoff is not None else None,
        queue=task["queue"],
        priority=task["priority"],
        weight=task.get("weight", 1),
    )


class _Guess:
    """How long a call would have taken that did not come to its end."""

    def __init__(self, tasks: list[dict[str, Any]]) -> None:
        found: dict[int, list[float]] = defaultdict(list)
        for task in tasks:
            found[task["function"]] += [seconds for seconds, status in task["attempts"] if status in ("ok", "error")]
        self._known = {function: sorted(each) for function, each in found.items()}
        self._all = sorted(seconds for each in found.values() for seconds in each)
        self._chance = random.Random(0)
        self.guesses = 0

    def attempt(self, task: dict[str, Any], seconds: float, status: str) -> Attempt:
        """An attempt of a task."""
        timeout = task.get("timeout")
        if status == "timed_out" and timeout is not None and seconds >= _LATE * timeout:
            return Attempt(math.inf, TIMED_OUT)  # with any number of children
        if status in ("timed_out", _CUT):
            return Attempt(self.at_least(task["function"], seconds))
        return Attempt(seconds, STATUSES[status])

    def at_least(self, function: int, seconds: float) -> float:
        """One that took so long, or longer."""
        self.guesses += 1
        known = self._known.get(function) or self._all
        first = bisect.bisect_left(known, seconds)
        return known[self._chance.randrange(first, len(known))] if first < len(known) else seconds


def _look_at_arrivals(trace: Trace, tasks: list[dict[str, Any]]) -> None:
    """Does what comes wait for what has ended? Then more children would have had more to do."""
    mapped = sum("items" in task for task in tasks)
    if mapped:
        trace.notes.append(
            f"{mapped} of {len(tasks)} lines are of maps, each for some items that ran together. A map sends as it is "
            "served: with more children its items would have come sooner than this plan has them"
        )
    plain = [task for task in tasks if "items" not in task]
    span = plain[-1]["at"] - plain[0]["at"] if plain else 0.0
    if len(plain) < 100 or not span:
        return
    ends = sorted(task["at"] + task["took"] for task in plain)
    after = 0
    for task in plain:
        place = bisect.bisect_right(ends, task["at"])
        after += place > 0 and task["at"] - ends[place - 1] < _CLOSE
    by_chance = 1 - math.exp(-len(plain) / span * _CLOSE)
    if after / len(plain) > _CLOSED_PART and by_chance < _CLOSED_PART / 2:
        trace.notes.append(
            "this is a closed loop: nearly each task came just after another one had ended. With more children more "
            "would have come, which this plan does not have: describe the load by its rate instead"
        )
