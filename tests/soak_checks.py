"""What must hold of a soak: its ledger against what the tasks themselves have written."""

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import soak_tasks as tasks
from soak_observers import EXECUTE_EVERY, raises
from soak_work import STATUSES

# What a task may come to of itself, and what in any case.
ENDS: Final = {
    "fail": ("ok", "ValueError"),
    "give up": ("KeyError",),
    "again": ("ok", "Retry"),
    "die": ("ok", "WorkerCrashed"),
    "exit hard": ("ok", "WorkerCrashed"),
    "exit": ("TaskExited",),
    "unpicklable": ("SerializationError",),
    "hang": (),
    "long": (),
    "fatter": ("WorkerCrashed",),
    "any": ("ok", "ValueError", "KeyError", "TaskExited"),
}
NOT_KNOWN_NS: Final = 1 << 62  # of a time at which the supervisor heard of something
MEMORY_GROWTH_MAX: Final = 0.05
MEMORY_GROWTH_BYTES: Final = 3 << 20


@dataclass
class Attempt:
    """One begun attempt, as its task has written it down; `end` is 0 if it never got there."""

    claimed_ns: int
    begin_ns: int
    key: int
    ticket: int
    pid: int
    number: int
    end: int = 0


@dataclass
class Told:
    """What the ledger says of a task."""

    ticket: int
    accepted_ns: int
    spec: dict[str, Any]
    ends: list[tuple[int, str, Any]] = field(default_factory=list)  # when, how, and of a crash more
    cancelled_ns: int = 0  # since when it was known that it will end so

    @property
    def is_ahead(self) -> bool:
        """Has its future ended at once, as an event loop's does that is cancelled, and the task later, however?"""
        return self.cancelled_ns == NOT_KNOWN_NS


@dataclass
class Records:
    """Both files, read."""

    attempts: list[Attempt]
    broken: list[str]  # what the tasks have found themselves
    tasks: dict[int, Told]
    others: dict[str, list[list[Any]]]

    def of(self, kind: str) -> list[list[Any]]:
        return self.others.get(kind, [])


def read(folder: Path) -> Records:
    data = (folder / "log").read_bytes()
    assert len(data) % tasks.RECORD.size == 0, "a record is not whole"
    attempts: list[Attempt] = []
    open_: dict[int, Attempt] = {}  # by child
    broken: list[str] = []
    for at_ns, claimed_ns, key, ticket, pid, number, event in tasks.RECORD.iter_unpack(data):
        if event == tasks.BEGIN:
            attempt = open_[pid] = Attempt(claimed_ns, at_ns, key, ticket, pid, number)
            attempts.append(attempt)
        elif event in (tasks.OK, tasks.RAISED):
            ended = open_.pop(pid, None)  # one that was interrupted while it said so has said it twice
            if ended is not None:
                assert (ended.ticket, ended.number) == (ticket, number)
                ended.end = event
        else:
            what = {tasks.LIVED_TWICE: "two attempts of it live", tasks.TOO_MANY: "more of its kind run than may"}
            broken.append(f"ticket {ticket} (task {key}, attempt {number}, pid {pid}): {what[event]}")
    told: dict[int, Told] = {}
    others: dict[str, list[list[Any]]] = defaultdict(list)
    with open(folder / "ledger") as file:
        for line in file:
            kind, *entry = json.loads(line)
            if kind == "accept":
                key, ticket, at_ns, spec = entry
                assert key not in told
                told[key] = Told(ticket, at_ns, spec)
            elif kind == "end":
                told[entry[0]].ends.append((entry[1], entry[2], entry[3]))
            elif kind == "cancel":
                key, at_ns, will = entry
                if will and not told[key].cancelled_ns:
                    told[key].cancelled_ns = at_ns
            else:
                others[kind].append(entry)
    return Records(attempts, broken, told, others)


def check(records: Records) -> list[str]:
    """Every promise that was not kept."""
    problems = list(records.broken)
    for rule in RULES:
        problems += list(itertools.islice(rule(records), 20))
    return problems


# ------------------------------------------------------------ rules


def one_outcome(records: Records) -> Iterable[str]:
    for key, told in records.tasks.items():
        if len(told.ends) != 1:
            yield f"task {key} {told} has {len(told.ends)} outcomes"
        elif told.cancelled_ns and told.ends[0][1] != "TaskCancelled":
            yield f"task {key} was to end cancelled: {told}"


def starts_in_time(records: Records) -> Iterable[str]:
    """Nothing starts after its end, its deadline or its cancel, nor before its time."""
    all_cancelled = records.of("cancel all")
    for attempt in records.attempts:
        told = records.tasks.get(attempt.key)
        if told is None or told.ticket not in (attempt.ticket, 0):
            continue  # an item, or a run of a recurring task
        if told.ends and attempt.begin_ns > told.ends[0][0] and not told.is_ahead:
            yield f"{attempt} began after its end {told}"
        if told.cancelled_ns and attempt.claimed_ns > told.cancelled_ns:
            yield f"{attempt} was claimed after it was cancelled {told}"
        if attempt.claimed_ns >= told.spec.get("deadline", 1 << 62):
            yield f"{attempt} was claimed after its deadline {told}"
        if attempt.claimed_ns < told.spec.get("run_at", 0):
            yield f"{attempt} was claimed before its time {told}"
        for from_ns, to_ns in all_cancelled:
            if told.accepted_ns < from_ns and attempt.claimed_ns > to_ns and (told.ends or [(0,)])[0][0] > from_ns:
                yield f"{attempt} was claimed after all were cancelled {told}"


def attempts_bounded(records: Records) -> Iterable[str]:
    bounds = {
        key: told.spec.get("retries", 0) + told.spec.get("crash_retries", 0) for key, told in records.tasks.items()
    }
    items: dict[int, int] = {}
    for first, count, retries, crash_retries in records.of("map"):
        items |= dict.fromkeys(range(first, first + count), retries + crash_retries)
    numbers: dict[tuple[int, int], list[int]] = defaultdict(list)
    for attempt in records.attempts:
        if attempt.ticket >= tasks.FIRST_TICKET:
            numbers[attempt.ticket, 0 if attempt.ticket in items else attempt.key].append(attempt.number)
    for (ticket, key), found in numbers.items():
        bound = 1 + (items[ticket] if ticket in items else bounds[key])
        if len(found) > bound:
            yield f"ticket {ticket} has begun {len(found)} times, which is more than {bound}"
        if sorted(set(found)) != found or found[-1] > bound:
            yield f"ticket {ticket} has begun attempts {found} of {bound}"


def outcomes_explained(records: Records) -> Iterable[str]:
    killed = {pid for (pid,) in records.of("kill")}
    frozen = {pid for (pid,) in records.of("freeze")}
    all_cancelled = records.of("cancel all")

    def crash(doing: str, pid: int, cause: str, causes: dict[int, str]) -> bool:
        if cause in ("signal", "oom"):
            return pid in killed or doing in ("die", "any") or causes.get(pid) == "die"
        if cause == "exit":
            return doing in ("exit hard", "any")
        if cause == "memory":
            return doing in ("fat", "fatter", "any") or causes.get(pid, "") != ""
        if cause == "lease":
            return pid in frozen
        if cause == "lost":
            return pid in killed or pid in frozen or pid in causes
        return cause == "nursery" and bool(records.of("nursery"))

    # An item that ended and was not answered is lost with a child that another one has killed.
    causes: dict[int, str] = {}
    doings = {ticket: doing for ticket, doing, *_ in records.of("item")}
    doings |= {told.ticket: told.spec["doing"] for told in records.tasks.values()}
    for attempt in records.attempts:
        doing = doings.get(attempt.ticket, "")
        if doing in ("die", "exit hard", "fat", "fatter"):
            causes[attempt.pid] = doing
    nursery = bool(records.of("nursery"))
    for key, told in records.tasks.items():
        for at_ns, word, more in told.ends:
            doing = told.spec["doing"]
            explained = word in ENDS.get(doing, ("ok",))
            if word == "WorkerCrashed":
                explained = crash(doing, more[0], more[1], causes)
            elif word == "TaskTimeout":
                explained = bool(told.spec.get("timeout") or told.spec.get("deadline"))
            elif word == "TaskCancelled":
                explained = bool(told.cancelled_ns) or any(
                    told.accepted_ns < to_ns and at_ns > from_ns for from_ns, to_ns in all_cancelled
                )
            if not explained:
                yield f"task {key} came to {word} {more}: {told}"
    for ticket, doing, amount, word, more in records.of("item"):
        explained = word in ENDS.get(doing, ("ok",)) or word == "TaskTimeout"
        if word == "WorkerCrashed":
            explained = crash(doing, more[0], more[1], causes) or (nursery and more[1] == "lost")
        elif word == "TaskCancelled":
            explained = bool(all_cancelled)
        if not explained:
            yield f"item {ticket} ({doing} {amount}) came to {word} {more}"


def outcomes_true(records: Records) -> Iterable[str]:
    """A task that came to a value has come there, in its last attempt and in no other."""
    last: dict[int, Attempt] = {}
    earlier: Counter[int] = Counter()
    for attempt in records.attempts:
        if attempt.key in last and last[attempt.key].end == tasks.OK:
            earlier[attempt.key] += 1
        last[attempt.key] = attempt
    for key, told in records.tasks.items():
        if [word for _, word, _ in told.ends] == ["ok"]:
            if key not in last or last[key].end != tasks.OK:
                yield f"task {key} has a value and no attempt that ended well: {last.get(key)} {told}"
            elif earlier[key] and not (told.spec.get("timeout") or told.spec.get("crash_retries")):
                yield f"task {key} ran again after it had ended well: {told}"


def pauses_kept(records: Records) -> Iterable[str]:
    for names, from_ns, to_ns in records.of("paused"):
        for attempt in _claims(records):
            if from_ns < attempt.claimed_ns < to_ns and records.tasks[attempt.key].spec["queue"] in names:
                yield f"{attempt} was claimed while {names} were paused from {from_ns} to {to_ns}"


def rates_kept(records: Records) -> Iterable[str]:
    for queue, rate, burst, from_ns, to_ns in records.of("rate"):
        times = sorted(
            attempt.claimed_ns
            for attempt in _claims(records)
            if from_ns <= attempt.claimed_ns <= to_ns
            and (not queue or records.tasks[attempt.key].spec["queue"] == queue)
        )
        # At most burst + rate * T in every window: i - rate * t_i, of the start i, is never so much above where it was
        # lowest that more than burst starts came at once.
        lowest = None
        for number, at_ns in enumerate(times):
            height = number - rate * (at_ns - times[0]) / 1e9
            lowest = height if lowest is None else min(lowest, height)
            if height - lowest + 1 > burst + 1e-6:
                yield f"{queue or 'all queues'}: start {number} at {at_ns} is {height - lowest + 1:.3f} > {burst}"


def hooks_told(records: Records) -> Iterable[str]:
    """The life of each task of a watched time is told, once and whole; and of others nothing is."""
    events: dict[str, list[tuple[str, int, str | None]]] = defaultdict(list)
    for kind, task_id, attempt, _, status in records.of("event"):
        events[task_id].append((kind, attempt, status))
    begun: dict[int, set[int]] = defaultdict(set)
    for attempt in _claims(records):
        begun[attempt.key].add(attempt.number)
    for key, told in records.tasks.items():
        found = events.pop(told.spec["task_id"], [])
        watched = any(from_ns < told.accepted_ns < to_ns for from_ns, to_ns in records.of("watched"))
        if not watched:
            if found:
                yield f"task {key} was not watched, and is told of: {found}"
            continue
        yield from _whole(f"task {key} {told}", found)
        starts = {number for kind, number, _ in found if kind == "start"}
        if not begun[key] <= starts:
            yield f"task {key} has begun {begun[key]}, and was told of as begun {starts}: {told}"
        word = told.ends[0][1] if told.ends and not told.is_ahead else ""
        status = STATUSES.get(word, "failed")
        if word and found and found[-1][2] != status:
            yield f"task {key} was told of as {found[-1]}: {told}"
    for task_id, found in events.items():
        yield from _whole(f"recurring task {task_id}", found)


def _whole(which: str, found: list[tuple[str, int, str | None]]) -> Iterable[str]:
    word = "".join(kind[0] for kind, _, _ in found)
    starts = [number for kind, number, _ in found if kind == "start"]
    ends = [number for kind, number, _ in found if kind == "retry"]
    if not re.fullmatch("q(sr)*s?f", word) or starts != list(range(1, len(starts) + 1)) or ends != starts[: len(ends)]:
        yield f"{which} was told of as {found}"


def middleware_counted(records: Records) -> Iterable[str]:
    """What has raised after a call is counted, if its child lived to tell of it."""

    def raised(key: int) -> bool:
        return raises("execute", records.tasks[key].spec["task_id"], EXECUTE_EVERY)

    ended = sum(raised(attempt.key) for attempt in _claims(records) if attempt.end == tasks.OK)
    answered = sum(told.ends[-1][1] == "ok" and raised(key) for key, told in records.tasks.items() if told.ends)
    for (counted,) in records.of("middleware")[-1:]:
        if not answered <= counted <= ended:
            yield f"{counted} errors of middleware are counted: not {answered} to {ended}"


def _claims(records: Records) -> list[Attempt]:
    """Starts of tasks: not of recurring ones, nor of items."""
    return [attempt for attempt in records.attempts if attempt.key in records.tasks and _is_task(records, attempt)]


def _is_task(records: Records, attempt: Attempt) -> bool:
    return records.tasks[attempt.key].ticket in (attempt.ticket, 0)


RULES: Final[tuple[Callable[[Records], Iterable[str]], ...]] = (
    one_outcome,
    starts_in_time,
    attempts_bounded,
    outcomes_explained,
    outcomes_true,
    pauses_kept,
    rates_kept,
    hooks_told,
    middleware_counted,
)


# ------------------------------------------------------------ what must not grow


def growth(samples: list[dict[str, int]]) -> list[str]:
    """What has more in the last third than in the second: the first is for caches and heaps to get their size.

    Descriptors and threads are compared at each rest, exactly. Memory is not as exact: payloads of megabytes come and
    go, an allocator keeps what was freed in pieces, and the pages that processes share count less the more of them
    there are. All of this adds to what is always there, so it is the least of each third that is compared, and the
    bound is for what is left of it. In ten minutes a third is of some 25,000 tasks: some 200 bytes that are kept of
    each task would be too much for the supervisor, and some 400 for the client.
    """
    third = len(samples) // 3
    found = []
    for name in samples[0]:
        if name.endswith("bytes"):
            before = min(sample[name] for sample in samples[third : 2 * third])
            after = min(sample[name] for sample in samples[2 * third :])
            if after > before * (1 + MEMORY_GROWTH_MAX) + MEMORY_GROWTH_BYTES:
                found.append(f"{name} grew from {before:,} to {after:,}: {[sample[name] for sample in samples]}")
    return found
