"""The unrest of a soak: all that goes on beside its tasks. Each method is one step of one actor."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import soak_tasks as tasks
from soak_work import COUNTED, CRONS, LEASE_TTL, QUEUES, Work

from mpworker import Retention, TaskStatus
from mpworker.errors import WorkerCrashed


class Unrest(Work):
    """The part of a soak that maps, steers, kills, listens and looks."""

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


def _next(results: Any) -> Any:
    try:
        return results.get(0)
    except TimeoutError:
        return None
