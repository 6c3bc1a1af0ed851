"""Is a plan true? `python -m benchmarks.plan` records a mixed load, plans for 1 and 2 children, and runs it with both.

The load has three kinds of tasks, two queues and two priorities, some that fail at first, and more work than one child
can do: so one child's throughput is what it can do, and its latencies are those of a line that grows. It computes and
does not sleep.

For each number of children two predictions are compared with what a client measured: the plan's, from a trace of
another run, and that of a replay of the run's own trace. What the first one is off by more than the second is the
machine's: service times that were others when the trace was recorded, and cores that others had. How many were to be
had is measured around the runs, and is what the plan is told.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from mpworker import ProcessWorker, QueueOptions
from mpworker.bench import machine
from mpworker.bench.tasks import turns_per_second, work
from mpworker.planning.load import Load, Pool
from mpworker.planning.simulation import Simulation, quantile_of
from mpworker.planning.trace import read

# Of each kind: how many of 100 tasks, seconds, queue, priority.
KINDS: Final = ((60, 0.002, "default", -1), (30, 0.008, "default", 0), (10, 0.025, "bulk", 0))
FAILING: Final = 0.03  # of the tasks, at the first attempt
ERLANGS: Final = 1.4  # children that would be busy all the time
QUEUES: Final = {"default": QueueOptions(weight=3), "bulk": QueueOptions(weight=1)}
CHILDREN: Final = (1, 2)
SPIN: Final = 0.5  # seconds
READY_SECONDS_MAX: Final = 30.0  # in which the children of a new pool are ready, or it is broken


class Call(NamedTuple):
    """One task of the load: when it comes, in seconds, and what it does."""

    at: float
    turns: int
    queue: str
    priority: int
    mark: str  # a file that the first of two attempts leaves


class FirstAttempt(Exception):
    """Why a first attempt fails."""


def task(turns: int, mark: str) -> None:
    work(turns)
    if mark and not os.path.exists(mark):
        Path(mark).touch()
        raise FirstAttempt


@dataclass(frozen=True)
class Figures:
    """What came of it: tasks a second, and the 95th percentile of the seconds from submit to outcome."""

    throughput: float
    p95: float

    def errors(self, measured: "Figures") -> tuple[float, float]:
        """How far off this is, as parts of what was measured."""
        return self.throughput / measured.throughput - 1, self.p95 / measured.p95 - 1


@dataclass(frozen=True)
class Comparison:
    """A round with so many children.

    Attributes:
        cores: How many there were to be had.
        slower: How many times as long calls took as when the trace of the plan was recorded.
    """

    n: int
    cores: float
    slower: float
    measured: Figures
    planned: Figures
    replayed: Figures


def mixed_load(tasks: int, seed: int) -> list[Call]:
    """The same calls at the same times for the same seed and machine."""
    chance = random.Random(seed)
    speed = turns_per_second()
    mean = sum(share * seconds for share, seconds, *_ in KINDS) / 100
    calls, at = [], 0.0
    for number in range(tasks):
        (_, seconds, queue, priority) = chance.choices(KINDS, [kind[0] for kind in KINDS])[0]
        seconds *= chance.uniform(0.5, 1.5)
        mark = f"mark-{number}" if chance.random() < FAILING else ""
        calls.append(Call(at, int(seconds * speed), queue, priority, mark))
        at += chance.expovariate(ERLANGS / mean)
    return calls


def run(calls: list[Call], n: int, trace: str, folder: str) -> Figures:
    """Run the load for real, and record it."""
    took: list[float] = []
    ends: list[float] = []
    marks = Path(tempfile.mkdtemp(dir=folder))
    with ProcessWorker(n=n, record=trace, retries=1, queues=QUEUES) as w:
        views = {(kind[2], kind[3]): w.options(queue=kind[2], priority=kind[3]) for kind in KINDS}
        for future in [w.submit(work, 1000) for _ in range(4 * n)]:
            future.result()
        wait_until_ready(w, n)
        begun = time.monotonic()
        for call in calls:
            time.sleep(max(0.0, begun + call.at - time.monotonic()))
            submitted = time.monotonic()

            def ended(_: object, submitted: float = submitted) -> None:
                ends.append(time.monotonic())
                took.append(ends[-1] - submitted)

            mark = str(marks / call.mark) if call.mark else ""
            views[call.queue, call.priority].submit(task, call.turns, mark).add_done_callback(ended)
    assert len(took) == len(calls)
    return Figures(len(calls) / (max(ends) - begun), quantile_of(sorted(took), 0.95))


def wait_until_ready(w: ProcessWorker, n: int) -> None:
    """Wait for all children: one may have run all that was to warm up, while the others were still to come."""
    last_at = time.monotonic() + READY_SECONDS_MAX
    while sum(child["ready"] for child in w.processes()["children"]) < n:
        if time.monotonic() > last_at:
            raise TimeoutError(f"not all of {n} children were ready within {READY_SECONDS_MAX:g} s")
        time.sleep(0.005)


def spin(seconds: float) -> float:
    """Seconds of CPU time that a process gets in so many."""
    until = time.perf_counter() + seconds
    before = time.process_time()
    while time.perf_counter() < until:
        pass
    return time.process_time() - before


def cores_to_be_had() -> float:
    """How many times as much as one process two of them get: 2 on a machine with two cores and nothing else to do.

    Not less than 1: that is what the recorded times of one child are of.
    """
    with ProcessWorker(n=2) as w:
        alone = w.submit(spin, SPIN).result()
        together = [w.submit(spin, SPIN) for _ in range(2)]
        return max(1.0, sum(each.result() for each in together) / alone)


def work_of(trace: str, tasks: int) -> float:
    """Seconds of all calls together."""
    return Load(read(trace).jobs[-tasks:]).work


def predict(trace: str, n: int, tasks: int, cores: float) -> Figures:
    """What the planner says of so many children, from a trace."""
    recorded = read(trace)
    first = recorded.jobs[-tasks].at  # what came before was to warm up
    load = Load([job._replace(at=job.at - first) for job in recorded.jobs[-tasks:]])
    pool = Pool(n, cores, recorded.queues, recorded.rate, recorded.burst, costs=recorded.costs())
    outcome = Simulation(load, pool).run()
    return Figures(outcome.throughput, outcome.latency(0.95))


def take_round(tasks: int, seed: int, folder: str) -> list[Comparison]:
    """Record with one child, plan for each number, and run with each."""
    calls = mixed_load(tasks, seed)
    recorded = os.path.join(folder, f"recorded-{seed}.jsonl")
    run(calls, 1, recorded, folder)
    found = []
    cores = cores_to_be_had()
    for n in CHILDREN:
        own = os.path.join(folder, f"run-{seed}-{n}.jsonl")
        measured = run(calls, n, own, folder)
        if n == CHILDREN[-1]:
            cores = (cores + cores_to_be_had()) / 2
        replayed = predict(own, n, tasks, float(n))  # its times have in them what there was of cores
        slower = work_of(own, tasks) / work_of(recorded, tasks)
        found.append(Comparison(n, cores, slower, measured, predict(recorded, n, tasks, cores), replayed))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description="Is a plan true?")
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="of three runs each (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=600, metavar="T", help="of a run (default: %(default)s)")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.tasks) < 1:
        parser.error("numbers must be above 0")
    about = machine.describe()
    print(f"{about['cores']} cores ({about['cpu']}), {about['kernel']}, {about['python']}, load {about['load']}")
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.rounds):
            rounds.append(take_round(arguments.tasks, seed, folder))
            for each in rounds[-1]:
                show(f"round {seed + 1}, n={each.n}", each)
    for place, n in enumerate(CHILDREN):
        for kind in ("planned", "replayed"):
            off = [getattr(taken[place], kind).errors(taken[place].measured) for taken in rounds]
            throughput, p95 = (statistics.median(abs(each[which]) for each in off) for which in (0, 1))
            print(f"n={n}, {kind}: median error of throughput {throughput:.1%}, of p95 {p95:.1%}")


def show(what: str, each: Comparison) -> None:
    """A line for one comparison."""
    measured = f"measured {each.measured.throughput:.1f} tasks/s, p95 {each.measured.p95:.3f} s"
    said = [f"{what}, {each.cores:.2f} cores to be had, calls took {each.slower:.2f} times as long: {measured}"]
    for kind, figures in (("planned", each.planned), ("replayed", each.replayed)):
        throughput, p95 = figures.errors(each.measured)
        said.append(f"{kind} {figures.throughput:.1f} ({throughput:+.1%}), {figures.p95:.3f} ({p95:+.1%})")
    print("; ".join(said), flush=True)


if __name__ == "__main__":
    main()
