"""Two small pools that take part in a soak: one in an event loop, and one with `debug=True`.

Each has a folder of its own, with a ledger and a log that the same checks read, and all that can be around a task.
"""

import asyncio
import random
import signal
import time
from pathlib import Path
from typing import Any, Final, Self

import leaks
import soak_tasks as tasks
from soak_observers import Refused
from soak_unrest import Unrest
from soak_work import GUARD, LEASE_TTL, Live, N, Work

from mpworker import AsyncProcessWorker, ProcessWorker, Task
from mpworker.errors import TaskNotFound

FOR_EVER: Final = (0, 1 << 62)
# What would end this process, or hold up whoever runs it here; and what would take too much of the machine.
NOT_HERE: Final = ("long", "hang", "swallow", "die", "exit hard", "fat", "fatter", "spawn")
NOT_IN_A_LOOP: Final = ("long", "fat", "fatter", "spawn")


class Elsewhere(Work):
    """What both have.

    Args:
        folder: As for `Work`; it is made.
        seed: The same.
    """

    without: tuple[str, ...]

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir()
        super().__init__(folder, seed)
        self.ledger.write("watched", *FOR_EVER)

    def doing(self, rng: random.Random) -> tuple[str, Any]:
        while True:
            found = super().doing(rng)
            if found[0] not in self.without:
                return found

    def count(self, metrics: Any) -> None:
        """All has ended."""
        assert (metrics.scheduled, metrics.queued, metrics.running) == (0, 0, 0), metrics
        ended = metrics.completed + metrics.failed + metrics.cancelled + metrics.timed_out
        assert metrics.accepted == ended == self.accepted, (metrics, self.accepted)
        self.ledger.write("middleware", metrics.observer_errors["middleware"] - self.observers.raised["middleware"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.stop()
            self.ledger.close()

    def step(self, rng: random.Random) -> None:
        """Have some tasks run."""
        raise NotImplementedError

    def finish(self) -> None:
        """Wait for the end of all, and count."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop now."""
        raise NotImplementedError


class InDebug(Elsewhere):
    """With `debug=True`: the tasks run in this process, one after the other."""

    without = NOT_HERE

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self.pool = ProcessWorker(debug=True, **self.observers.options())

    def step(self, rng: random.Random) -> None:
        for _ in range(rng.randrange(1, 6)):
            self.submit(rng)
        self.harvest()
        if self.live:  # those for later
            self.cancel(rng, rng.choice(list(self.live)))
        if self.failed:
            self.again(self.failed.pop())

    def finish(self) -> None:
        assert leaks.wait_until(lambda: self.harvest() or not self.live, GUARD), self.live
        agreed = leaks.wait_until(lambda: self.observers.agrees(self.pool.metrics()), GUARD)
        assert agreed, (self.pool.metrics(), self.observers.told, self.observers.raised)
        self.count(self.pool.metrics())

    def stop(self) -> None:
        self.pool.stop_now()
        tasks.close(str(self.folder))


class InLoop(Elsewhere):
    """In an event loop: each step awaits all that it has submitted.

    Attributes:
        processes: As `AsyncProcessWorker.processes` told last.
    """

    without = NOT_IN_A_LOOP

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self.processes: dict[str, Any] = {}
        self._runner = asyncio.Runner()
        options: dict[str, Any] = {"max_tasks_per_child": 100, "max_pending": N, **self.observers.options()}
        self._worker = AsyncProcessWorker(n=1, grace=0.3, lease_ttl=LEASE_TTL, **options)

    def step(self, rng: random.Random) -> None:
        self._runner.run(self._step(rng))

    async def _step(self, rng: random.Random) -> None:
        futures = []
        for _ in range(rng.randrange(1, 3 * N)):
            try:
                futures.append(await self._submit(rng))
            except Refused:
                self.counts["refused"] += 1
        self.processes = await self._worker.processes()
        pids = [child["pid"] for child in self.processes["children"] if child["ready"]]
        self.pids.update(pids, [self.processes["nursery"], self.processes["supervisor"]])
        if pids and rng.random() < 0.1:
            self.ledger.write("kill", pids[0])
            self.counts["kills"] += Unrest._signal(pids[0], signal.SIGKILL, self.processes["nursery"])
        if futures and rng.random() < 0.3:
            await self._cancel(rng, rng.choice(futures))
        if futures:
            _, late = await asyncio.wait(futures, timeout=GUARD)
            assert not late, late
        self.harvest()

    async def _submit(self, rng: random.Random) -> Any:
        doing, amount = self.doing(rng)
        ticket = next(self.tickets)
        options = self.options(rng, doing)
        options["queue"] = "default"
        spec, arguments = self.spec(doing, amount, options), (str(self.folder), ticket, (), doing, amount)
        before_ns = time.monotonic_ns()
        if rng.random() < 0.3:
            if rng.random() < 0.5:
                options["run_at"] = spec["run_at"] = rng.choice([0.0, 0.02, 0.1])
            future = await self._worker.register_task(Task(tasks.run, arguments, **options))
        else:
            future = self._worker.options(**options).submit(tasks.run, *arguments)
        self.accept(future, spec, before_ns, Live(future, ticket, doing, amount))
        return future

    async def _cancel(self, rng: random.Random, future: Any) -> None:
        if rng.random() < 0.5:
            # The future ends at once, and its task when the supervisor hears of it, which may be too late.
            told, at_ns = future.cancel(), FOR_EVER[1]
        else:
            try:
                told, at_ns = await self._worker.cancel_task(future.task_id), time.monotonic_ns()
            except TaskNotFound:
                return
        self.ledger.write("cancel", future._key, at_ns, told)

    def finish(self) -> None:
        self._runner.run(self._finish())

    async def _finish(self) -> None:
        async with asyncio.timeout(GUARD):
            while not self.observers.agrees(metrics := await self._worker.metrics()):
                pass
        self.count(metrics)
        assert await self._worker.stop_graceful(GUARD), "not all was finished"

    def stop(self) -> None:
        self._runner.run(self._worker.stop_now())
        self._runner.close()
