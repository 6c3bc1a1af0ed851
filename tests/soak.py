"""The soak: everything that a pool offers at once, with children that are killed and frozen at random.

Several actors do one step after the other, each with a generator of its own, made from the one seed. Now and then all
of them rest: what was begun comes to its end, and then everything that can be counted must be what it should be.

Hooks are told of the tasks. With an odd seed all of it has a tracer too, and middleware around it; with an even one
there is nothing around the tasks, and the hooks are there from every second rest to the next. Two small pools take part
that always have everything, see `soak_elsewhere`.

What was asked for and what was told goes into a ledger, a file: memory that grows with the number of tasks would hide
what the pool does with its own. `soak_checks` compares it with what the tasks themselves have written.
"""

import ctypes
import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import leaks
import psutil
import soak_tasks as tasks
from soak_elsewhere import Elsewhere, InDebug, InLoop
from soak_observers import REFUSE_EVERY, raises
from soak_unrest import Unrest
from soak_work import COUNTED, CRONS, GUARD, LEASE_TTL, NARROW, QUEUES, STEADY, Live, N

from mpworker import ProcessWorker, QueueOptions, Task


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


class Soak(Unrest):
    """One run.

    Args:
        folder: See `Work`, here and below.
        seed: There.
        seconds: How long.
        rests: How often all comes to an end meanwhile.

    Attributes:
        samples: What was measured at each rest.
        elsewhere: The two small pools.
    """

    def __init__(self, folder: Path, seed: int, seconds: float, rests: int) -> None:
        super().__init__(folder, seed)
        self.seconds = seconds
        self.rests = rests
        self.samples: list[dict[str, int]] = []
        self.errors: list[BaseException] = []
        self.elsewhere: list[Elsewhere] = []
        self.watched_from_ns = 0  # 0 while nobody watches
        self.watched = 0  # tasks that the hooks must have been told of at the last rest
        self.before = 0  # tasks that came before it

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)
        self.over.set()

    @property
    def surrounded(self) -> bool:
        """Is all that there is around the tasks?"""
        return bool(self.seed % 2)

    def run(self) -> None:
        with ExitStack() as stack:
            self.in_loop = stack.enter_context(InLoop(self.folder / "loop", self.seed))
            self.elsewhere = [self.in_loop, stack.enter_context(InDebug(self.folder / "debug", self.seed))]
            self._run_pool()
        left = [pid for pid in self.pids | self.in_loop.pids if leaks.alive(pid) and _is_ours(pid)]
        assert not left, f"left behind: {left}"

    def _run_pool(self) -> None:
        self.watched_from_ns = time.monotonic_ns()
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
            **self.observers.options(self.surrounded),
        ) as self.pool:
            self._run()
            assert self.pool.stop_graceful(GUARD), "not all was finished"
        self.ledger.close()

    def _run(self) -> None:
        self.results = self.pool.subscribe_results(buffer=64, policy="block")
        self.ledger.write("rate", "steady", *STEADY, 0, 1 << 62)
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
        for each in self.elsewhere:
            each.step(random.Random(self.seed))  # so that all that it opens is open at the first rest
            actors.append(Actor(self, type(each).__name__, each.step, 0.3))
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
        metrics = pool.metrics()
        self._count(metrics)
        ended = {name: getattr(metrics, name) for name in COUNTED}  # runs of recurring tasks among them
        self.take_results()  # what has ended was told before the counts
        assert self.told == Counter(ended), f"the subscription has seen {self.told} of {ended}"
        self.told_since.clear()
        self._look_at_observers()
        self._until(self._measured_as_before, "descriptors and threads to be as before")
        for name in CRONS:
            pool.resume_cron_task(name)

    def _look_at_observers(self) -> None:
        """The hooks were told of all that came since they were set, and of nothing else; then set them or not."""
        pool, now = self.pool, self.accepted + sum(task.runs for task in self.pool.cron_tasks())
        self.watched += now - self.before if self.watched_from_ns else 0
        self.before = now

        def agrees() -> bool:
            assert self.observers.told["finish"] <= self.watched, (self.observers.told, self.watched)
            return self.observers.agrees(pool.metrics()) and self.observers.told["finish"] == self.watched

        self._until(agrees, "observers")
        if self.surrounded:
            errors = pool.metrics().observer_errors["middleware"] - self.observers.raised["middleware"]
            self.ledger.write("middleware", errors)
        if self.watched_from_ns:
            self.ledger.write("watched", self.watched_from_ns, time.monotonic_ns())
        if not self.surrounded:
            pool.set_hooks(None if self.watched_from_ns else self.observers.hooks)
            self.watched_from_ns = 0 if self.watched_from_ns else time.monotonic_ns()

    def _submit_hanging(self) -> None:
        """While nobody else kills: it ends by the pool's own kill, or never."""
        ticket = next(ticket for ticket in self.tickets if not raises("refuse", ticket, REFUSE_EVERY))
        spec = {"doing": "hang", "amount": 1 << 30, "queue": "default", "timeout": 0.1}
        before_ns = time.monotonic_ns()
        future = self.pool.options(timeout=0.1).submit(tasks.run, str(self.folder), ticket, (), "hang", 1 << 30)
        self.accept(future, spec, before_ns, Live(future, ticket, "hang", 1 << 30))

    def _until(self, condition: Callable[[], Any], what: str) -> None:
        def holds() -> bool:
            self.take_results()  # else nothing starts
            return bool(condition())

        if not leaks.wait_until(holds, GUARD):
            told = f"{self.observers.told} {self.observers.raised} {self.observers.open} {self.watched}"
            raise AssertionError(f"at rest, waiting for {what}: {self.pool.processes()} {self.pool.metrics()} {told}")

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
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what this process has freed is not of interest, but what it keeps
        processes = self.pool.processes()
        sample = {"client threads": threading.active_count()}
        pids = {"supervisor": processes["supervisor"], "nursery": processes["nursery"], "client": os.getpid()}
        pids |= {f"loop's {name}": self.in_loop.processes[name] for name in ("supervisor", "nursery")}
        for name, pid in pids.items():
            sample[f"{name} bytes"] = proportional_bytes(pid)
            sample[f"{name} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
            sample.setdefault(f"{name} threads", len(os.listdir(f"/proc/{pid}/task")))
        return sample


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
