"""The soak: everything that a pool offers at once, with children that are killed and frozen at random.

Several actors do one step after the other, each with a generator of its own, made from the one seed. Now and then all
of them rest: what was begun comes to its end, and then everything that can be counted must be what it should be.

What was asked for and what was told goes into a ledger, a file: memory that grows with the number of tasks would hide
what the pool does with its own. `soak_checks` compares it with what the tasks themselves have written.
"""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import leaks
import psutil
import soak_tasks as tasks

from mpworker import ProcessWorker, QueueOptions, Retention, RetryPolicy, Task, TaskStatus
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
FIRST_TICKET: Final = 1000  # those before it are of recurring tasks
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
    """How a task ended, in one word."""
    error = None if future.cancelled() else future.exception(GUARD)
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


class Actor(threading.Thread):
    """Does one step after the other, and none while somebody holds its `turn`."""

    def __init__(self, soak: "Soak", name: str, step: Callable[[random.Random], None], pause: float) -> None:
        super().__init__(name=f"soak-{name}", daemon=True)
        self.turn = threading.Lock()
        self._soak, self._step, self._pause = soak, step, pause
        self._rng = random.Random(f"{soak.seed} {name}")

    def run(self) -> None:
        try:
            while not self._soak.over.wait(self._rng.uniform(0, 2 * self._pause)):
                with self.turn:
                    self._step(self._rng)
        except BaseException as error:  # noqa: BLE001
            self._soak.fail(error)


@dataclass
class Soak:
    """One run.

    Attributes:
        seed: What all of it is made from.
        seconds: How long.
        rests: How often all comes to an end meanwhile.
    """

    folder: Path
    seed: int
    seconds: float
    rests: int
    samples: list[dict[str, int]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # what happened, for the summary
    errors: list[BaseException] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed} producer")
        self.ledger = Ledger(self.folder / "ledger")
        self.tickets = iter(range(FIRST_TICKET, 1 << 31))
        self.live: dict[int, Live] = {}
        self.ended: Counter[str] = Counter()  # tasks by their final status
        self.accepted = 0
        self.called: Counter[int] = Counter()  # callbacks by task
        self.wanted_calls = 0
        self.failed: list[str] = []  # ids of some that may be run again
        self.pids: set[int] = set()
        self.told: Counter[str] = Counter()  # results that the subscription has seen, by their status
        self.told_since: set[int] = set()  # of which tasks, since the last rest

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)
        self.over.set()

    # ------------------------------------------------------------ the run

    def run(self) -> None:
        with ProcessWorker(
            n=N,
            grace=0.3,
            lease_ttl=LEASE_TTL,
            max_tasks_per_child=300,
            memory_limit=48 << 20,
            memory_limit_hard=160 << 20,
            max_pending=5000,
            client_ring_bytes=1 << 16,
            queues={
                "default": 2,
                "fast": 5,
                "narrow": QueueOptions(max_running=NARROW),
                "steady": QueueOptions(rate=STEADY[0], burst=STEADY[1]),
                "rated": QueueOptions(rate=100.0, burst=2),
            },
        ) as self.pool:
            self._run()
            assert self.pool.stop_graceful(GUARD), "not all was finished"
        self.ledger.close()
        left = [pid for pid in self.pids if leaks.alive(pid) and _is_ours(pid)]
        assert not left, f"left behind: {left}"

    def _run(self) -> None:
        self.results = self.pool.subscribe_results(buffer=64, policy="block")
        for name, (spec, overlap) in CRONS.items():
            ticket = list(CRONS).index(name) + 1
            call = Task(tasks.run, (str(self.folder), ticket, (), "sleep", 0.02), crash_retries=1000)
            self.pool.register_cron_task(name, spec, call, overlap=overlap)
        actors = [
            Actor(self, "map", self.map, 0.05),
            Actor(self, "steer", self.steer, 0.05),
            Actor(self, "kill", self.strike, 0.15),
            Actor(self, "look", self.look, 0.05),
            Actor(self, "listen", self.listen, 0.02),
        ]
        for actor in actors:
            actor.start()
        began = time.monotonic()
        try:
            for rest in range(1, self.rests + 1):
                until = began + self.seconds * rest / self.rests
                while time.monotonic() < until and not self.over.is_set():
                    self.produce()
                if self.over.is_set():
                    break
                with ExitStack() as stack:
                    for actor in actors:
                        stack.enter_context(actor.turn)
                    self.rest()
        finally:
            self.over.set()
            for actor in actors:
                actor.join(GUARD)
        if self.errors:
            raise self.errors[0]
        assert not any(actor.is_alive() for actor in actors), "an actor hangs"

    # ------------------------------------------------------------ tasks

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
            "fatter": lambda: 400 << 20,
            "spawn": lambda: 600,
        }
        return found, amounts.get(found, lambda: rng.choice([1, 1, 2, 100]))()

    def submit(self, rng: random.Random) -> None:
        """One task, in one of the ways in which a pool takes one, with some of the options that there are."""
        doing, amount = self.doing(rng)
        ticket = next(self.tickets)
        queue = rng.choices(QUEUES, [6, 5, 1, 1, 1])[0]
        options: dict[str, Any] = {"queue": queue}
        limits: list[tuple[int, int]] = [(0, NARROW)] if queue == "narrow" else []
        if rng.random() < 0.1:
            options |= {"priority": rng.randrange(-3, 4), "weight": rng.randrange(1, 5)}
        if rng.random() < 0.4 or doing in ("fail", "again", "die"):
            options |= {"retries": rng.choice([0, 1, 3]), "crash_retries": rng.choice([0, 1, 3])}
            if rng.random() < 0.7 or doing == "give up":
                options["retry_policy"] = POLICY
        if doing in ("hang", "swallow") or rng.random() < 0.1:
            options["timeout"] = rng.choice([0.02, 0.1, 0.2])
        if rng.random() < 0.1:
            number = rng.randrange(1, 3)
            doing, amount = ("sleep", 0.02) if doing == "busy" else (doing, amount)
            options |= {"concurrency_key": f"key {number}", "concurrency": 1 + number % 2}
            limits.append((number, 1 + number % 2))
        arguments = (str(self.folder), ticket, tuple(limits), doing, amount)
        spec = {"doing": doing, "amount": amount if doing != "take" else len(amount), **options}
        spec.pop("retry_policy", None)
        before_ns = time.monotonic_ns()
        if doing == "long" or rng.random() < 0.3:
            future = self.register(rng, ticket, arguments, options, spec)
        elif rng.random() < 0.03:
            future = self.pool.options(**options).submit(lambda *arguments: tasks.run(*arguments), *arguments)  # noqa: PLW0108
        elif doing == "busy" and not amount:
            future = self.pool.options(**options).submit(tasks.quick, *arguments)
        else:
            future = self.pool.options(**options).submit(tasks.run, *arguments)
        self.accept(future, spec, before_ns, Live(future, ticket, doing, amount))
        if rng.random() < 0.05:
            key = future._key
            self.wanted_calls += 1
            future.add_done_callback(lambda _: self.called.update([key]))

    def accept(self, future: Any, spec: dict[str, Any], before_ns: int, live: Live) -> None:
        """It was taken between then and now."""
        moments = {"run_at": before_ns, "deadline": time.monotonic_ns()}
        told = spec | {name: at + int(spec[name] * 1e9) for name, at in moments.items() if name in spec}
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
            more["run_at"] = spec["run_at"] = rng.choice([0.0, 0.02, 0.1, 1.0])
        if rng.random() < 0.2:
            more |= {"idempotency_key": f"once {ticket}", "fingerprint": str(ticket)}
        task = Task(tasks.run, arguments, **options, **more)
        future = self.pool.register_task(task)
        if "idempotency_key" in more and not future.done():
            before_ns = time.monotonic_ns()
            second = self.pool.register_task(task)
            self.counts["registered twice"] += 1
            if second is not future:
                assert future.ready, "the key of a task that has not ended is known"
                self.accept(second, spec, before_ns, Live(second, ticket, arguments[3], arguments[4]))
        elif "id" in more and not future.done():
            try:
                self.pool.register_task(task)
            except DuplicateTask:
                self.counts["ids refused"] += 1
            else:
                raise AssertionError(f"two tasks have the id {more['id']}")
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
            error = None if word in ("ok", "TaskCancelled") else future.exception(0)
            if word == "ok" and live.doing != "any":
                assert future.result(0) == tasks.expected(live.ticket, live.doing, live.amount), live
            crash = [error.pid, error.cause, error.attempt] if isinstance(error, WorkerCrashed) else None
            self.ledger.write("end", key, at_ns, word, crash)
            self.ended[
                {"ok": "completed", "TaskCancelled": "cancelled", "TaskTimeout": "timed_out"}.get(word, "failed")
            ] += 1
            self.counts[word] += 1
            del self.live[key]
            if (
                error is not None
                and len(self.failed) < 20
                and live.ticket
                and live.doing in ("fail", "exit", "give up")
            ):
                self.failed.append(future.task_id)

    # ------------------------------------------------------------ the other actors

    def map(self, rng: random.Random) -> None:
        """A map, to its end or not, each result in its place."""
        view = self.pool.options(
            timeout=rng.choice([None, None, 0.2]), retries=rng.choice([0, 1]), crash_retries=rng.choice([0, 1, 3])
        )
        count = rng.choice([1, 10, 100, 300])
        chunksize = rng.choice([None, 1, 7, 100])
        doings = []
        for _ in range(count):
            doing, amount = self.doing(rng)
            plain = doing in ("hang", "long", "fatter", "spawn", "take", "grow", "swallow")
            doings.append(("busy", 100_000) if plain else (doing, amount))
        tickets = [next(self.tickets) for _ in range(count)]
        retries, crash_retries = view._defaults.retries, view._defaults.crash_retries
        self.ledger.write("map", tickets[0], count, retries, crash_retries)
        results = view.map(
            tasks.item,
            [str(self.folder)] * count,
            tickets,
            [doing for doing, _ in doings],
            [amount for _, amount in doings],
            chunksize=chunksize,
            return_exceptions=True,
        )
        stop_at = rng.randrange(count) if rng.random() < 0.2 else count
        taken = 0
        for (doing, amount), ticket, result in zip(doings[:stop_at], tickets, results, strict=False):
            taken += 1
            if not isinstance(result, BaseException):
                assert result == tasks.expected(ticket, doing, amount), (ticket, doing, result)
            word = type(result).__name__ if isinstance(result, BaseException) else "ok"
            crash = [result.pid, result.cause, result.attempt] if isinstance(result, WorkerCrashed) else None
            self.ledger.write("item", ticket, doing, amount, word, crash)
        assert taken == stop_at, f"{taken} of {stop_at} results"
        results.close()  # type: ignore[attr-defined]
        self.counts["items of maps"] += taken

    def steer(self, rng: random.Random) -> None:
        """Change what may be changed at run time."""
        pool = self.pool
        doing = rng.randrange(8)
        if doing == 0:
            pool.set_queue(rng.choice(["default", "fast"]), weight=rng.randrange(1, 9))
        elif doing == 1:
            with self._constant_rate("rated", rng):
                self.over.wait(rng.uniform(0.2, 1.5))
        elif doing == 2:
            with self._constant_rate("", rng):
                self.over.wait(rng.uniform(0.1, 0.6))
            pool.set_rate(None)
        elif doing == 3:
            names = rng.choice([(), ("fast",), ("narrow", "default")])
            pool.pause(*names)
            from_ns = time.monotonic_ns()
            self.over.wait(rng.uniform(0, 0.2))
            self.ledger.write("paused", names or QUEUES, from_ns, time.monotonic_ns())
            pool.resume(*names)
        elif doing == 4:
            names = rng.choice([(), ("fast",), ("default", "rated")])
            self.counts["drained" if pool.drain(*names, timeout=rng.uniform(0, 0.5)) else "not drained"] += 1
            pool.resume(*names)
        elif doing == 5:
            pool.set_max_workers(rng.randrange(1, 5))
        elif doing == 6:
            pool.set_retention(
                Retention(
                    ttl=rng.choice([None, 0.5]),
                    max_entries=rng.choice([0, 100, 1000]),
                    results=rng.random() < 0.5,
                    max_bytes=rng.choice([0, 1 << 20]),
                    cleanup_interval=0.1,
                )
            )
        else:
            name = rng.choice(list(CRONS))
            rng.choice([pool.pause_cron_task, pool.resume_cron_task, pool.run_cron_task])(name)
        self.counts["changes"] += 1

    @contextmanager
    def _constant_rate(self, queue: str, rng: random.Random) -> Iterator[None]:
        rate, burst = rng.choice([20.0, 100.0, 400.0]), rng.randrange(1, 5)
        if queue:
            self.pool.set_queue(queue, rate=rate, burst=burst)
        else:
            self.pool.set_rate(rate, burst)
        self.pool.queues()  # an answer: what came before it is in force
        from_ns = time.monotonic_ns()
        yield
        self.ledger.write("rate", queue, rate, burst, from_ns, time.monotonic_ns())

    def strike(self, rng: random.Random) -> None:
        """Kill a child, or freeze it for a while; now and then the nursery."""
        processes = self.pool.processes()
        nursery = processes.get("nursery", 0)
        pids = [child["pid"] for child in processes.get("children", ()) if child["ready"]]
        self.pids.update(pids, [nursery, processes["supervisor"]])
        if rng.random() < 0.02 and nursery:
            self._signal(nursery, signal.SIGKILL, processes["supervisor"])
            self.ledger.write("nursery", time.monotonic_ns())
            self.counts["nurseries killed"] += 1
        elif pids and rng.random() < 0.7:
            pid = rng.choice(pids)
            self.ledger.write("kill", pid)
            self.counts["kills"] += self._signal(pid, signal.SIGKILL, nursery)
        elif pids:
            pid = rng.choice(pids)
            self.ledger.write("freeze", pid)
            if self._signal(pid, signal.SIGSTOP, nursery):
                self.counts["freezes"] += 1
                self.over.wait(rng.choices([0.01, 0.1, 0.5, LEASE_TTL + 1.0], [4, 4, 2, 1])[0])
                self._signal(pid, signal.SIGCONT, nursery)

    @staticmethod
    def _signal(pid: int, number: int, parent: int) -> bool:
        """Signal a process if it is still a child of that one; True if so."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if psutil.Process(pid).ppid() != parent:
                return False
            signal.pidfd_send_signal(pidfd, number)
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False
        finally:
            os.close(pidfd)
        return True

    def listen(self, rng: random.Random) -> None:
        """Take the results, each once, though nothing starts while too many wait; and now and then some of another."""
        if rng.random() < 0.1:
            policy = rng.choice(["drop_newest", "drop_oldest"])
            with self.pool.subscribe_results(buffer=8, policy=policy, queues=["fast"]) as some:
                self.over.wait(rng.uniform(0, 0.1))
                while (result := _next(some)) is not None:
                    assert result.queue == "fast", result
                self.counts["results dropped"] += some.dropped
        self.take_results()

    def take_results(self) -> None:
        while (result := _next(self.results)) is not None:
            key = result._future._key
            assert key not in self.told_since, f"a result came twice: {result}"
            self.told_since.add(key)
            self.told[result.status] += 1

    def look(self, rng: random.Random) -> None:
        """Ask about everything, and see that the answers make sense."""
        before = getattr(self, "_counts_seen", None)
        metrics = self.pool.metrics()
        parts = [metrics.scheduled, metrics.queued, metrics.running, *(getattr(metrics, name) for name in COUNTED)]
        assert sum(parts) == metrics.accepted, metrics
        assert min(parts) >= 0, metrics
        counts = {name: getattr(metrics, name) for name in ("accepted", "retries", "limiter_waits", *COUNTED)}
        assert before is None or all(counts[name] >= before[name] for name in counts), (before, counts)
        self._counts_seen = counts
        status = rng.choice([None, *TaskStatus])
        queue = rng.choice([None, *QUEUES])
        for info in self.pool.get_tasks(status=status, queue=queue, limit=rng.choice([1, 50, 2000])):
            assert status is None or info.status == status, info
            assert queue is None or info.queue == queue, info
            for earlier, later in zip(info.attempts, info.attempts[1:], strict=False):
                assert earlier.ended_at is not None, info
                assert earlier.started_at <= earlier.ended_at <= later.started_at, info
        assert set(QUEUES) <= set(self.pool.queues())
        for run in self.pool.cron_history(rng.choice(list(CRONS))):
            assert run.ended_at is None or run.ended_at >= run.started_at, run
        self.counts["looks"] += 1

    # ------------------------------------------------------------ rests

    def rest(self) -> None:
        """All that was begun comes to its end, and then everything is counted."""
        pool = self.pool
        pool.set_max_workers(N)
        pool.set_rate(None)
        pool.resume()
        pool.resume(*QUEUES)
        self._submit_hanging()
        for name in CRONS:
            pool.pause_cron_task(name)
        self._until(lambda: not any(task.running or task.waiting for task in pool.cron_tasks()), "recurring tasks")
        self._until(lambda: self.harvest() or not self.live, "tasks")
        self._until(lambda: self._children_at_rest(N), "children")
        self._until(lambda: sum(self.called.values()) >= self.wanted_calls, "callbacks")
        assert set(self.called.values()) <= {1}, "a callback was called twice"
        self.called.clear()
        self.wanted_calls = 0
        self._count(pool.metrics())
        assert self.told == self.ended, f"the subscription has seen {self.told} of {self.ended}"
        self.told_since.clear()
        self._until(self._measured_as_before, "descriptors and threads to be as before")
        for name in CRONS:
            pool.resume_cron_task(name)

    def _submit_hanging(self) -> None:
        """While nobody else kills: it ends by the pool's own kill, or never."""
        ticket, spec = next(self.tickets), {"doing": "hang", "amount": 1 << 30, "queue": "default", "timeout": 0.1}
        before_ns = time.monotonic_ns()
        future = self.pool.options(timeout=0.1).submit(tasks.run, str(self.folder), ticket, (), "hang", 1 << 30)
        self.accept(future, spec, before_ns, Live(future, ticket, "hang", 1 << 30))

    def _until(self, condition: Callable[[], Any], what: str) -> None:
        def holds() -> bool:
            self.take_results()  # else nothing starts
            return bool(condition())

        if not leaks.wait_until(holds, GUARD):
            raise AssertionError(f"at rest, waiting for {what}: {self.pool.processes()} {self.pool.metrics()}")

    def _children_at_rest(self, n: int) -> bool:
        processes = self.pool.processes()
        children = processes["children"]
        self.pids.update(child["pid"] for child in children)
        there = {process.pid for process in psutil.Process(processes["nursery"]).children()}
        at_rest = all(child["ready"] and not child["offers"] for child in children)
        return at_rest and len(children) == n and there == {child["pid"] for child in children}

    def _count(self, metrics: Any) -> None:
        """All has ended, so the pool's own counts must be ours."""
        runs = sum(task.runs for task in self.pool.cron_tasks())
        assert metrics.accepted == self.accepted + runs, (metrics, self.accepted, runs)
        assert (metrics.scheduled, metrics.queued, metrics.running) == (0, 0, 0), metrics
        of_runs = {name: getattr(metrics, name) - self.ended[name] for name in COUNTED}
        # A recurring task of ours ends well, if it is not cancelled with all others.
        assert of_runs["failed"] == of_runs["timed_out"] == 0, (metrics, self.ended)
        assert min(of_runs.values()) >= 0, (metrics, self.ended)
        assert sum(of_runs.values()) == runs, (metrics, self.ended, runs)
        latency = metrics.latency
        assert latency.count == metrics.accepted == sum(count for _, count in latency.buckets), metrics

    def _measured_as_before(self) -> bool:
        """Take a sample; False if something that has a number of its own has more than at the first rest."""
        sample = self.measure()
        if self.samples:
            first = self.samples[0]
            if any(sample[name] > first[name] for name in sample if not name.endswith("bytes")):
                self.last = sample
                return False
        self.samples.append(sample)
        return True

    def measure(self) -> dict[str, int]:
        processes = self.pool.processes()
        sample = {"client threads": threading.active_count()}
        pids = {"supervisor": processes["supervisor"], "nursery": processes["nursery"], "client": os.getpid()}
        for name, pid in pids.items():
            sample[f"{name} bytes"] = proportional_bytes(pid)
            sample[f"{name} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
            sample.setdefault(f"{name} threads", len(os.listdir(f"/proc/{pid}/task")))
        return sample


def _next(results: Any) -> Any:
    try:
        return results.get(0)
    except TimeoutError:
        return None


def proportional_bytes(pid: int) -> int:
    """Memory of a process, what it shares counted by its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("smaps_rollup tells no Pss")


def _is_ours(pid: int) -> bool:
    """Not another process that has got the number since."""
    try:
        return f"{leaks.MARK}={os.environ[leaks.MARK]}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
