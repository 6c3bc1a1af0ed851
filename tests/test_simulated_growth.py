"""What the benchmarks in virtual time compute. Nothing here depends on how fast anything is."""

import random

import pytest

from benchmarks import simulated
from benchmarks.simulated import ARRIVALS, FIFO, IN_ORDER, OPTIONS
from mpworker.bench.backlog import p99
from mpworker.planning.load import Attempt, Job, Load, Pool
from mpworker.planning.simulation import Simulation
from mpworker.supervisor.registry import TaskOptions

PLAIN = TaskOptions()


def job(at: float, seconds: float, priority: int = 0) -> Job:
    return Job(at, (Attempt(seconds),), TaskOptions(priority=priority) if priority else PLAIN)


def test_the_unavoidable_is_that_a_free_child_begins_what_is_first_in_line() -> None:
    assert simulated.unavoidable([job(0, 3), job(0, 1), job(0, 1), job(7, 1)], 2) == [3, 1, 2, 8]
    assert simulated.unavoidable([job(0, 2), job(1, 1, priority=5), job(1.5, 1)], 1) == [2, 4, 3]
    assert simulated.unavoidable([job(0, 1), job(4, 1, priority=5), job(4, 1)], 1) == [1, 6, 5]  # both came


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("children", [1, 7])
def test_what_is_kept_until_a_turn_is_over_changes_nothing(kind: str, children: int) -> None:
    """The latencies are those of the planner's own simulation, to the last digit."""
    jobs = simulated.jobs_of(kind, 300, children)
    pool = Pool(children, children)
    world = simulated.carry(pool, jobs)
    latencies = sorted(end - each.at + pool.costs.wake for end, each in zip(world.ends, jobs, strict=True))
    assert latencies == Simulation(Load(jobs), pool).run().latencies
    assert world.turns > 0
    assert world.cpu_ns > 0


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_latency_is_the_unavoidable_one_and_little_more_in_each_run(kind: str) -> None:
    found = [simulated.point(kind, 2_000, 8)["p99"] for _ in range(2)]
    assert found[0] == found[1]
    assert 1.0 <= found[0] < 1.2


@pytest.mark.parametrize("kind", [FIFO, IN_ORDER])
def test_a_child_that_idles_and_an_order_that_is_not_kept_are_seen(kind: str) -> None:
    jobs = simulated.jobs_of(kind, 2_000, 8)
    ends = simulated.unavoidable(jobs, 8)

    def slower(other: list[float]) -> float:
        return p99([found / best for found, best in zip(other, ends, strict=True)])

    assert slower(ends) == 1.0
    assert slower(simulated.carry(Pool(6, 6), jobs).ends) > 1.25
    turned = ends.copy()
    random.Random(1).shuffle(turned)
    assert slower(turned) > 5.0


def test_arrivals_are_of_the_load_that_is_told() -> None:
    jobs = simulated.jobs_of(ARRIVALS, 20_000, 8)
    work = sum(each.attempts[0].seconds for each in jobs)
    assert work / (8 * jobs[-1].at) == pytest.approx(simulated.LOAD, rel=0.05)


def test_memory_is_of_what_waits() -> None:
    assert 100 < simulated.memory(FIFO, 5_000, 8) < 1_000
    assert simulated.memory(FIFO, 5_000, 64) > simulated.memory(FIFO, 5_000, 1)  # which is in it
