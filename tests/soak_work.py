"""The work of a soak: tasks of every kind, the ledger of what was asked for and told, and the ends of all of them."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import soak_tasks as tasks
from soak_observers import Observers, Refused

from mpworker import ProcessWorker, RetryPolicy, Task
from mpworker.errors import DuplicateTask, TaskNotFound, WorkerCrashed

GUARD: Final = 90.0  # seconds; no wait of a passing run comes near it
N: Final = 3
LIVE_MAX: Final = 200
LEASE_TTL: Final = 4.0  # a busy machine may keep a child from its core for longer than one would think
QUEUES: Final = ("default", "fast", "narrow", "steady", "rated")
NARROW: Final = 2  # tasks of that queue that run at once
STEADY: Final = (60.0, 3)  # starts per second of that queue, and at once
POLICY: Final = RetryPolicy(base=0.005, cap=0.1, give_up_on=(KeyError,))
CRONS: Final = {
    "beat": ("@every 150ms", "skip"),
    "queued": ("@every 250ms", "queue"),
    "second": ("* * * * * *", "skip"),
}
STATUSES: Final = {"ok": "completed", "TaskCancelled": "cancelled", "TaskTimeout": "timed_out"}  # else "failed"
COUNTED: Final = ("completed", "failed", "cancelled", "timed_out")

# How often, of each thousand tasks; what is left is busy for a moment.
DOINGS: Final[dict[str, int]] = {
    "sleep": 80,
    "long": 4,
    "hang": 4,
    "swallow": 5,
    "fail": 60,
    "give up": 10,
    "again": 20,
    "die": 12,
    "exit hard": 4,
    "exit": 10,
    "grow": 20,
    "take": 20,
    "fat": 5,
    "fatter": 2,
    "spawn": 2,
    "unpicklable": 10,
}


def status_of(future: Any) -> str:
    """How a task that has ended did, in one word."""
    error = None if future.cancelled() else future.exception()
    return "TaskCancelled" if future.cancelled() else "ok" if error is None else type(error).__name__


@dataclass
class Live:
    """A task that has no outcome yet, as far as this end has looked."""

    future: Any
    ticket: int
    doing: str
    amount: Any


class Ledger:
    """Lines of JSON, from any thread."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w", buffering=1 << 16)  # noqa: SIM115
        self._lock = threading.Lock()

    def write(self, *entry: object) -> None:
        line = json.dumps(entry) + "\n"
        with self._lock:
            self._file.write(line)

    def close(self) -> None:
        self._file.close()


class Work:
    """The part of a soak that has tasks run, each with some of the options that there are.

    Args:
        folder: Where the log, the locks and the ledger are.
        seed: What all of it is made from.

    Attributes:
        counts: What happened, for the summary.
        over: No further step begins.
    """

    pool: ProcessWorker
    results: Any  # the subscription to all of them

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.over = threading.Event()
        self.rng = random.Random(f"{self.seed} producer")
        self.ledger = Ledger(self.folder / "ledger")
        self.observers = Observers(self.ledger)
        self.tickets = iter(range(tasks.FIRST_TICKET, 1 << 31))
        self.live: dict[int, Live] = {}
        self.ended: Counter[str] = Counter()  # tasks by their final status
        self.accepted = 0
        self.called: Counter[int] = Counter()  # callbacks by task
        self.wanted_calls = 0
        self.failed: list[str] = []  # ids of some that may be run again
        self.pids: set[int] = set()
        self.told: Counter[str] = Counter()  # results that the subscription has seen, by their status
        self.told_since: set[int] = set()  # of which tasks, since the last rest

    def produce(self) -> None:
        rng = self.rng
        while len(self.live) < LIVE_MAX and rng.random() < 0.97:
            self.submit(rng)
        some = [each.future for each in list(self.live.values())[:20]]
        wait(some, 0.05, FIRST_COMPLETED)
        self.harvest()
        if self.live and rng.random() < 0.3:
            self.cancel(rng, rng.choice(list(self.live)))
        if rng.random() < 0.002:
            began = time.monotonic_ns()
            self.counts["cancelled by cancel_all"] += self.pool.cancel_all()
            self.ledger.write("cancel all", began, time.monotonic_ns())
        if self.failed and rng.random() < 0.05:
            self.again(self.failed.pop())

    def doing(self, rng: random.Random) -> tuple[str, Any]:
        found = rng.choices([*DOINGS, "busy"], [*DOINGS.values(), 1000 - sum(DOINGS.values())])[0]
        amounts: dict[str, Callable[[], Any]] = {
            "busy": lambda: rng.choices([0, rng.randrange(1_000_000), rng.randrange(20_000_000)], [6, 3, 1])[0],
            "sleep": lambda: rng.choice([0.0, 0.002, 0.01, 0.05, 0.15]),
            "long": lambda: 30.0,
            "hang": lambda: 1 << 30,
            "swallow": lambda: rng.choice([0.2, 2.0]),
            "die": lambda: (int(rng.choice(tasks.KILLS)), rng.choice([1, 1, 2, 100])),
            "grow": lambda: rng.choice([100, 20_000, 2_000_000]) & ~3,
            "take": lambda: "x" * rng.choice([100, 20_000, 2_000_000]),
            "fat": lambda: 80 << 20,
            "fatter": lambda: 240 << 20,
            "spawn": lambda: 600,
        }
        return found, amounts.get(found, lambda: rng.choice([1, 1, 2, 100]))()

    def options(self, rng: random.Random, doing: str) -> dict[str, Any]:
        """Some of the options that there are."""
        options: dict[str, Any] = {"queue": rng.choices(QUEUES, [6, 5, 1, 1, 1])[0]}
        if rng.random() < 0.1:
            options |= {"priority": rng.randrange(-3, 4), "weight": rng.randrange(1, 5)}
        if rng.random() < 0.4 or doing in ("fail", "again", "die"):
            options |= {"retries": rng.choice([0, 1, 3]), "crash_retries": rng.choice([0, 1, 3])}
            if rng.random() < 0.7 or doing == "give up":
                options["retry_policy"] = POLICY
        if doing in ("hang", "swallow") or rng.random() < 0.1:
            options["timeout"] = rng.choice([0.02, 0.1, 0.2])
        return options

    def submit(self, rng: random.Random) -> None:
        """One task, in one of the ways in which a pool takes one, with some of the options that there are."""
        doing, amount = self.doing(rng)
        ticket = next(self.tickets)
        options = self.options(rng, doing)
        limits: list[tuple[int, int]] = [(0, NARROW)] if options["queue"] == "narrow" else []
        if rng.random() < 0.1:
            number = rng.randrange(1, 3)
            doing, amount = ("sleep", 0.02) if doing == "busy" else (doing, amount)
            options |= {"concurrency_key": f"key {number}", "concurrency": 1 + number % 2}
            limits.append((number, 1 + number % 2))
        arguments = (str(self.folder), ticket, tuple(limits), doing, amount)
        spec = self.spec(doing, amount, options)
        before_ns = time.monotonic_ns()
        try:
            if doing == "long" or rng.random() < 0.3:
                future = self.register(rng, ticket, arguments, options, spec)
            elif rng.random() < 0.03:
                future = self.pool.options(**options).submit(lambda *arguments: tasks.run(*arguments), *arguments)  # noqa: PLW0108
            elif doing == "busy" and not amount:
                future = self.pool.options(**options).submit(tasks.quick, *arguments)
            else:
                future = self.pool.options(**options).submit(tasks.run, *arguments)
        except Refused:
            self.counts["refused"] += 1
            return
        self.accept(future, spec, before_ns, Live(future, ticket, doing, amount))
        if rng.random() < 0.05:
            key = future._key
            self.wanted_calls += 1
            future.add_done_callback(lambda _: self.called.update([key]))

    @staticmethod
    def spec(doing: str, amount: Any, options: dict[str, Any]) -> dict[str, Any]:
        """What the ledger is told of a task."""
        told = {"doing": doing, "amount": amount if doing != "take" else len(amount), **options}
        told.pop("retry_policy", None)
        return told

    def accept(self, future: Any, spec: dict[str, Any], before_ns: int, live: Live) -> None:
        """It was taken between then and now."""
        moments = {"run_at": before_ns, "deadline": time.monotonic_ns()}
        told = spec | {name: at + int(spec[name] * 1e9) for name, at in moments.items() if name in spec}
        told["task_id"] = future.task_id
        self.ledger.write("accept", future._key, live.ticket, before_ns, told)
        self.accepted += 1
        self.live[future._key] = live

    def register(
        self, rng: random.Random, ticket: int, arguments: tuple[Any, ...], options: dict[str, Any], spec: dict[str, Any]
    ) -> Any:
        more: dict[str, Any] = {"metadata": {"ticket": ticket}, "name": f"soak {ticket}"}
        if rng.random() < 0.3:
            more["id"] = f"id {ticket}"
        if arguments[3] == "long" or rng.random() < 0.3:
            more["deadline"] = spec["deadline"] = rng.choice([0.05, 0.2, 1.0, 2.0])
        if rng.random() < 0.3:
            moments = [at for at in (0.0, 0.02, 0.1, 1.0) if at <= more.get("deadline", 1.0)]
            more["run_at"] = spec["run_at"] = rng.choice(moments)
        # Not with megabytes to be kept.
        if "id" not in more and rng.random() < 0.2 and arguments[3] not in ("take", "grow"):
            more |= {"idempotency_key": f"once {ticket}", "fingerprint": str(ticket)}
        task = Task(tasks.run, arguments, **options, **more)
        future = self.pool.register_task(task)
        if ("idempotency_key" in more or "id" in more) and not future.done():
            before_ns = time.monotonic_ns()
            try:
                second = self.pool.register_task(task)
            except DuplicateTask:
                assert "id" in more, f"the call of {more['idempotency_key']} is another one"
                self.counts["ids refused"] += 1
            else:
                self.counts["registered twice"] += 1
                if second is not future:
                    assert future.ready, f"the task that has not ended is known: {more}"
                    self.accept(second, spec, before_ns, Live(second, ticket, arguments[3], arguments[4]))
        return future

    def again(self, task_id: str) -> None:
        """A task that has failed is run once more, as another one with the same ticket."""
        try:
            info = self.pool.get_task(task_id)
            before_ns = time.monotonic_ns()
            future = self.pool.retry_task(task_id)
        except TaskNotFound:
            return
        self.counts["run again"] += 1
        ticket = int(info.name.removeprefix("soak ")) if info.name.startswith("soak ") else 0
        spec = {"doing": "any", "amount": 0, "queue": info.queue, "retries": 3, "crash_retries": 3, "timeout": 1.0}
        self.accept(future, spec, before_ns, Live(future, ticket, "any", 0))

    def cancel(self, rng: random.Random, key: int) -> None:
        future = self.live[key].future
        if rng.random() < 0.5:
            told = future.cancel()
        else:
            try:
                told = self.pool.cancel_task(future.task_id)
            except TaskNotFound:
                return  # it has ended, and so much has since that it is forgotten
        self.ledger.write("cancel", key, time.monotonic_ns(), told)

    def harvest(self) -> None:
        for key, live in list(self.live.items()):
            future = live.future
            if not future.done():
                continue
            at_ns = time.monotonic_ns()
            word = status_of(future)
            error = None if word in ("ok", "TaskCancelled") else future.exception()
            if word == "ok" and live.doing != "any":
                assert future.result() == tasks.expected(live.ticket, live.doing, live.amount), live
            crash = [error.pid, error.cause, error.attempt] if isinstance(error, WorkerCrashed) else None
            self.ledger.write("end", key, at_ns, word, crash)
            self.ended[STATUSES.get(word, "failed")] += 1
            self.counts[word] += 1
            del self.live[key]
            if (
                error is not None
                and len(self.failed) < 20
                and live.ticket
                and live.doing in ("fail", "exit", "give up")
            ):
                self.failed.append(future.task_id)
