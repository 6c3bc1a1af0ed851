"""Campaigns: many tasks, many deaths, and a log kept by the tasks themselves that says what happened."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import campaign_tasks as tasks
import leaks
import psutil
import pytest

from mpworker import ProcessWorker, TaskFuture
from mpworker.errors import WorkerCrashed

GUARD = 60.0  # seconds; no wait of a passing test comes near it
BACKLOG = 300


def eventually(condition: Callable[[], Any]) -> None:
    assert leaks.wait_until(condition, GUARD)


def children(pool: ProcessWorker) -> list[dict[str, Any]]:
    return [child for child in pool.processes()["children"] if child["ready"]]


def offers(pool: ProcessWorker, pid: int) -> int:
    return next((child["offers"] for child in children(pool) if child["pid"] == pid), -1)


def ready(pool: ProcessWorker, count: int) -> list[int]:
    """The process ids of the children, once `count` of them are ready."""
    eventually(lambda: len(children(pool)) == count)
    return [child["pid"] for child in children(pool)]


def known_quick(pool: ProcessWorker, call: Callable[..., Any], *args: Any) -> None:
    """Have the pool learn that a call takes microseconds, so that it sends many ahead."""
    for _ in range(20):
        for future in [pool.submit(call, *args) for _ in range(50)]:
            future.result(GUARD)


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it has taken effect on every thread."""
    os.kill(pid, signal.SIGSTOP)

    def stopped() -> bool:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] not in "TZX":
                    return False
        return True

    eventually(stopped)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    stop(pid)
    try:
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


# ------------------------------------------------------------ random kills


@dataclass
class Kill:
    pid: int
    before_ns: int
    after_ns: int
    neighbours: int  # offers it had beside the first, seen while it was stopped; -1 if nobody looked


@dataclass
class Campaign:
    """Kill children at random while tasks run, then compare what the futures say with what the log says.

    Some kills come at any moment. For the others the child is watched, or frozen for a look, until it is
    in the middle of a task, holds more offers beside that, or has just ended one.
    """

    pool: ProcessWorker
    log: Path
    rng: random.Random
    futures: list[TaskFuture[int]] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)

    def run(self, tasks_count: int, kills: int, quotas: dict[str, int]) -> None:
        left = {
            kind: quota + quota // 5 for kind, quota in quotas.items()
        }  # a little over: what looks like one may not be
        per_kill = (tasks_count - BACKLOG) // kills
        while len(self.kills) < kills or (any(left.values()) and len(self.kills) < 2 * kills):
            self.feed()
            due = len(self.kills) * per_kill
            if len(self.calls) >= due or due >= len(self.futures):
                for kind in self.kill(max(left, key=lambda kind: left[kind])):
                    left[kind] = max(0, left[kind] - 1)
            else:
                self.futures[due].exception(GUARD)
        while len(self.futures) < tasks_count:
            self.submit()
        for future in self.futures:
            future.exception(GUARD)

    def feed(self) -> None:
        """Keep the children busy."""
        while len(self.futures) < len(self.calls) + BACKLOG:
            self.submit()

    def submit(self) -> None:
        number = len(self.futures)
        if number % 50 < 40:
            # Of one function that is quick nearly always, so that children hold several, also behind a long one.
            busy_ns = self.rng.randrange(1_000_000, 5_000_000) if self.rng.random() < 0.1 else 0
            future = self.pool.submit(tasks.work, str(self.log), number, busy_ns)
        else:
            future = self.pool.submit(tasks.slow, str(self.log), number, self.rng.randrange(200_000, 3_000_000))
        future.add_done_callback(lambda _: self.calls.append(number))
        self.futures.append(future)

    def kill(self, wanted: str) -> list[str]:
        """SIGKILL a child in a moment of the wanted kind, or in any if that does not come soon; which kinds it was.

        Every fourth kill comes at any moment.
        """
        found: list[str] = []
        pid, neighbours = self.rng.choice(self._targets()), -1
        for _ in range(20 if len(self.kills) % 4 else 0):
            self.feed()
            pid = self.rng.choice(self._targets())
            if wanted == "at an end":
                if self._just_ended(pid):
                    found = [wanted]
                    break
                continue
            stop(pid)
            neighbours = offers(self.pool, pid) - 1
            if self._last(pid)[1] == tasks.BEGIN and (wanted == "claimed" or neighbours > 0):
                found = ["claimed", "neighbours"] if neighbours > 0 else ["claimed"]
                break
            os.kill(pid, signal.SIGCONT)
            neighbours = -1
        before_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(pid, before_ns, time.monotonic_ns(), neighbours))
        return found

    def _just_ended(self, pid: int) -> bool:
        """Has the child, in the next 20 ms, ended a task this very moment?"""
        give_up_at = time.monotonic() + 0.02
        while time.monotonic() < give_up_at:
            at_ns, event = self._last(pid)
            if event == tasks.END and time.monotonic_ns() - at_ns < 500_000:
                return True
        return False

    def _targets(self) -> list[int]:
        killed = {kill.pid for kill in self.kills}
        found: list[int] = []

        def some() -> bool:
            alive = [child for child in children(self.pool) if child["pid"] not in killed]
            found[:] = [child["pid"] for child in alive if child["offers"]] or [child["pid"] for child in alive]
            return bool(found)

        eventually(some)
        return found

    def _last(self, pid: int) -> tuple[int, int]:
        """When the child last wrote to the log, and what."""
        size = tasks.RECORD.size
        with open(self.log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end // size - 100) * size)
            data = file.read()
        for at_ns, writer, _, _, event in reversed(list(tasks.RECORD.iter_unpack(data[: len(data) // size * size]))):
            if writer == pid:
                return at_ns, event
        return 0, 0

    def check(self, crash_retries: int) -> dict[str, int]:
        """Every rule that must hold; then how many kills were of which kind."""
        runs = tasks.read_log(self.log)
        killed = {kill.pid: kill for kill in self.kills}
        assert len(killed) == len(self.kills)
        eventually(lambda: len(self.calls) == len(self.futures))
        assert sorted(self.calls) == list(range(len(self.futures))), "a callback for each, once"
        blamed: list[int] = []
        for number, future in enumerate(self.futures):
            assert future.done()
            mine = runs.get(number, [])
            for earlier, later in itertools.pairwise(mine):
                over_ns = killed[earlier.pid].before_ns  # only a kill makes a second attempt possible
                assert later.begin_ns > over_ns, f"task {number}: {earlier} and {later} lived at the same time"
                assert later.attempt > earlier.attempt
            for run in mine:
                assert run.end_ns or run.pid in killed, f"an attempt vanished: {run}"
            error = future.exception()
            if error is None:
                assert future.result() == number * 3
                assert mine[-1].end_ns
            else:
                assert isinstance(error, WorkerCrashed)
                assert error.signal == signal.SIGKILL
                assert error.pid in killed, f"task {number} failed with a child that nobody killed"
                blamed.append(error.pid)
                assert error.attempt == crash_retries + 1
                # What it had claimed: the last thing that this child began, or what it had not yet logged.
                if mine and mine[-1].pid == error.pid:
                    last = max(run.begin_ns for each in runs.values() for run in each if run.pid == error.pid)
                    assert mine[-1].begin_ns == last
                else:
                    assert len(mine) <= crash_retries
            assert len(mine) <= crash_retries + 1
        assert len(blamed) == len(set(blamed)), "a death cost more than one task"
        ends: dict[int, list[int]] = {}
        open_runs: set[int] = set()
        for run in itertools.chain.from_iterable(runs.values()):
            if run.end_ns:
                ends.setdefault(run.pid, []).append(run.end_ns)
            else:
                open_runs.add(run.pid)
        return {
            "claimed": len(open_runs | set(blamed)),
            "neighbours": sum(kill.neighbours > 0 for kill in self.kills),
            "at an end": sum(
                any(kill.before_ns - 1_000_000 <= end <= kill.after_ns + 1_000_000 for end in ends.get(kill.pid, ()))
                for kill in self.kills
            ),
        }


def campaign(tmp_path: Path, crash_retries: int, tasks_count: int, kills: int, quotas: dict[str, int]) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown if it fails
    with ProcessWorker(n=3, crash_retries=crash_retries) as pool:
        run = Campaign(pool, tmp_path / "log", random.Random(seed))
        run.log.touch()
        run.run(tasks_count, kills, quotas)
        kinds = run.check(crash_retries)
        print(kinds)
        for kind, quota in quotas.items():
            assert kinds[kind] >= quota, kinds


@pytest.mark.parametrize("crash_retries", [0, 10])
def test_two_hundred_kills_among_ten_thousand_tasks(tmp_path: Path, crash_retries: int) -> None:
    # Neighbours are seldom met: after 2 ms they are taken back from behind what is claimed.
    campaign(tmp_path, crash_retries, 10_000, 200, {"claimed": 100, "neighbours": 30, "at an end": 20})


# ------------------------------------------------------------ offers ahead


def many_offers(pool: ProcessWorker, pid: int, submit: Callable[[], TaskFuture[Any]], least: int) -> list[Any]:
    """Freeze a child and submit until it holds `least` offers; the futures."""
    for _ in range(50):
        stop(pid)
        futures = [submit() for _ in range(600)]
        if leaks.wait_until(lambda: offers(pool, pid) >= least, 0.2):
            return futures
        os.kill(pid, signal.SIGCONT)  # the machine was busy, and the calls seemed to take long
        for future in futures:
            future.result(GUARD)
    raise AssertionError(f"the child never held {least} offers")


def test_a_killed_child_gives_back_thirty_two_offers() -> None:
    numbers = itertools.count()
    with ProcessWorker(n=1, crash_retries=1) as pool:
        known_quick(pool, tasks.attempt_of, 0)
        (pid,) = ready(pool, 1)
        futures = many_offers(pool, pid, lambda: pool.submit(tasks.attempt_of, next(numbers)), 32)
        os.kill(pid, signal.SIGKILL)
        attempts = [future.result(GUARD)[1] for future in futures]
        assert len(attempts) == 600
        assert sum(attempt == 2 for attempt in attempts) <= 1, "at most what it had claimed"
        assert set(attempts) <= {1, 2}


def test_a_stale_record_claims_nothing(tmp_path: Path) -> None:
    # A frozen child has records in its ring whose offers were stolen or cancelled, and whose slots were used again.
    log = tmp_path / "log"
    numbers = itertools.count()
    with ProcessWorker(n=2) as pool:
        known_quick(pool, tasks.quick, str(tmp_path / "warm"), -1)
        frozen, other = ready(pool, 2)
        gate = tmp_path / "gate"
        busy = pool.submit(tasks.hold, str(tmp_path / "begun"), str(gate))
        eventually((tmp_path / "begun").exists)
        if offers(pool, frozen):
            frozen, other = other, frozen  # the one that is not busy
        wanted: list[TaskFuture[int]] = []
        cancelled: list[TaskFuture[int]] = []
        with stopped(frozen):
            for _ in range(8):
                made = [pool.submit(tasks.quick, str(log), next(numbers)) for _ in range(200)]
                pool.processes()  # they have been offered
                for future in made[::2]:
                    (cancelled if future.cancel() else wanted).append(future)
                wanted += made[1::2]
            gate.touch()
            assert busy.result(GUARD) == "held"
            # The other child steals what waits behind the frozen one's first offers.
            eventually(lambda: sum(future.done() for future in wanted) > len(wanted) - 10)
            # It must hold new offers in the old slots when it wakes.
            while offers(pool, frozen) < 1:
                wanted += [pool.submit(tasks.quick, str(log), next(numbers)) for _ in range(200)]
        for future in wanted:
            future.result(GUARD)
        runs = tasks.read_log(log)
        assert all(len(each) == 1 for each in runs.values()), "a task ran twice"
        assert len(runs) == len(wanted), "a cancelled task ran, or one that was wanted did not"
        assert all(future.cancelled() for future in cancelled)
        assert len(cancelled) > 400


def test_what_waits_behind_a_long_task_is_stolen(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ProcessWorker(n=2) as pool:
        ready(pool, 2)
        for turn in range(10):
            known_quick(pool, tasks.wait_for_gate, "")
            # Quick so far, so that many are offered behind it.
            gate.unlink(missing_ok=True)
            futures = [pool.submit(tasks.wait_for_gate, str(gate) if number == 20 else "") for number in range(400)]
            for number, future in enumerate(futures):
                if number != 20:
                    assert future.result(GUARD) == ""
            assert not futures[20].done(), f"turn {turn}: the long one must outlast them all"
            gate.touch()
            assert futures[20].result(GUARD) == str(gate)


# ------------------------------------------------------------ maps


@pytest.mark.parametrize("crash_retries", [0, 1])
@pytest.mark.parametrize("busy_ns", [2_000_000, 0], ids=["each flushed", "many unflushed"])
def test_a_crash_in_a_chunk_costs_one_item(tmp_path: Path, busy_ns: int, crash_retries: int) -> None:
    log = tmp_path / "log"
    count, deadly = 100, 61
    with ProcessWorker(n=2, crash_retries=crash_retries) as pool:
        arguments = [[str(log)] * count, range(count), [busy_ns] * count, [deadly] * count]
        results = list(pool.map(tasks.item, *arguments, chunksize=count, return_exceptions=True))
        rest = list(pool.map(tasks.item, *arguments[:3], [-1] * count, chunksize=7))
    assert rest == [3 * number for number in range(count)]
    assert len(results) == count
    crashed = {number: error for number, error in enumerate(results) if isinstance(error, WorkerCrashed)}
    assert all(results[number] == 3 * number for number in range(count) if number not in crashed)
    if crash_retries:
        assert not crashed
    else:
        assert crashed[deadly].cause == "signal"
        assert crashed[deadly].signal == signal.SIGKILL
        assert all(number <= deadly for number in crashed), "what had not begun goes on"
        assert all(error.cause == "lost" for number, error in crashed.items() if number != deadly)
        if busy_ns:
            assert list(crashed) == [deadly], "an item whose result was flushed stands"
    runs = {number: [run for run in runs if run.attempt] for number, runs in tasks.read_log(log).items()}
    # Each once in the second map; in the first one once, again only what had to be done again.
    for number in range(count):
        assert len(runs[number]) - 1 == 1 or (crash_retries and number <= deadly and len(runs[number]) - 1 == 2)


# ------------------------------------------------------------ a machine that pauses


def tree(pool: ProcessWorker) -> list[int]:
    supervisor = pool.processes()["supervisor"]
    return [supervisor, *(child.pid for child in psutil.Process(supervisor).children(recursive=True))]


def test_a_pause_of_the_whole_tree_loses_and_retries_nothing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ProcessWorker(n=2, lease_ttl=0.5, crash_retries=5, retries=5) as pool:
        pids = ready(pool, 2)
        running = [pool.submit(tasks.hold, str(tmp_path / f"begun-{number}"), str(gate)) for number in range(2)]
        eventually(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
        waiting = [pool.submit(tasks.attempt_of, number) for number in range(300)]
        everyone = tree(pool)
        assert len(everyone) == 4
        for order in (everyone, everyone[::-1]):
            for pid in order:
                stop(pid)
            began = time.monotonic()
            eventually(lambda began=began: time.monotonic() - began > 2.5)  # five leases
            for pid in order:
                os.kill(pid, signal.SIGCONT)
            began = time.monotonic()
            eventually(lambda began=began: time.monotonic() - began > 0.6)  # more than a lease, awake
        gate.touch()
        assert [future.result(GUARD) for future in running] == ["held", "held"]
        assert [future.result(GUARD) for future in waiting] == [(number, 1) for number in range(300)]
        assert ready(pool, 2) == pids, "no child was replaced"
