"""The planner's virtual pool: against the formulas of queueing theory, a naive model, and what the pool promises."""

import dataclasses
import heapq
import inspect
import math
import random

import pytest

from mpworker.options import WorkerOptions
from mpworker.planning import world as worlds
from mpworker.planning.described import Description, service
from mpworker.planning.load import Attempt, Costs, Job, Load, Pool, QueueLimits
from mpworker.planning.simulation import Outcome, Simulation, quantile_of
from mpworker.supervisor import queues
from mpworker.supervisor.backoff import Backoff
from mpworker.supervisor.effects import CANCELLED, CRASHED, ERROR, OK, TIMED_OUT
from mpworker.supervisor.registry import TaskOptions

FREE = Costs(0.0, 0.0, 0.0, 0.0, "nothing costs anything")
PLAIN = TaskOptions()


def run(jobs: list[Job], n: int = 1, cores: float | None = None, **pool: object) -> Outcome:
    made = Pool(n, n if cores is None else cores, **{"costs": FREE} | pool)  # type: ignore[arg-type]
    return Simulation(Load(jobs), made).run()


def job(at: float, seconds: float, options: TaskOptions = PLAIN, **more: object) -> Job:
    return Job(at, (Attempt(seconds),), options, **more)  # type: ignore[arg-type]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------ against formulas


def erlang_c(servers: int, erlangs: float) -> float:
    """The probability of a wait. A. K. Erlang, 1917; Kleinrock, "Queueing Systems" I (1975), (3.40)."""
    last = erlangs**servers / math.factorial(servers) / (1 - erlangs / servers)
    return last / (sum(erlangs**each / math.factorial(each) for each in range(servers)) + last)


# Mean waits for a mean service of 1 s: Pollaczek and Khinchine, rho (1 + C^2) / (2 (1 - rho)), C^2 being the squared
# coefficient of variation of the service (Kleinrock I, (5.70)); with more servers, Erlang's C / (servers - erlangs).
FORMULAS = {
    "M/M/1": ("exponential:1", 1, 0.7, 0.7 / 0.3),
    "M/D/1": ("constant:1", 1, 0.7, 0.7 / (2 * 0.3)),
    "M/D/1, nearly idle": ("constant:1", 1, 0.2, 0.2 / (2 * 0.8)),
    "M/U/1": ("uniform:0.5,1.5", 1, 0.6, 0.6 * (1 + 1 / 12) / (2 * 0.4)),
    "M/M/2": ("exponential:1", 2, 1.4, erlang_c(2, 1.4) / 0.6),
    "M/M/8": ("exponential:1", 8, 5.6, erlang_c(8, 5.6) / 2.4),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_mean_waits_are_those_of_queueing_theory(name: str) -> None:
    text, servers, rate, wanted = FORMULAS[name]
    waits = []
    for seed in range(4):
        load = Description(service(text), rate=rate, tasks=10_000).load(seed)
        waits.append(mean(Simulation(load, Pool(servers, servers, costs=FREE)).run().waits))
    assert mean(waits) == pytest.approx(wanted, rel=0.08)


@pytest.mark.parametrize("text", ["exponential:1", "constant:1", "lognormal:1,3"])
def test_children_that_share_a_core_are_a_processor_sharing_queue(text: str) -> None:
    """With more children than tasks, E[T] = E[S] / (1 - rho), whatever the distribution (Kleinrock II (1976), 4.4)."""
    latencies = []
    for seed in range(4):
        load = Description(service(text), rate=0.6, tasks=5_000).load(seed)
        outcome = Simulation(load, Pool(64, 1.0, costs=FREE)).run()
        assert max(outcome.waits) == 0.0, "nobody waits for a child"
        latencies.append(mean(outcome.latencies))
    assert mean(latencies) == pytest.approx(1 / 0.4, rel=0.06)


def naive(jobs: list[Job], n: int) -> list[float]:
    """When each job ends where the next in line goes to the first child that is free."""
    free = [0.0] * n
    ends = []
    for each in jobs:
        begin = max(each.at, heapq.heappop(free))
        ends.append(begin + each.attempts[0].seconds)
        heapq.heappush(free, ends[-1])
    return ends


@pytest.mark.parametrize("seed", range(20))
def test_a_naive_model_comes_to_the_same(seed: int) -> None:
    chance = random.Random(seed)
    n = chance.randint(1, 6)
    jobs, at = [], 0.0
    for _ in range(200):
        jobs.append(job(at, chance.choice([0.001, 0.01, 0.1, 1.0]), function=chance.randint(1, 3)))
        at += chance.expovariate(4.0 * n)
    wanted = sorted(end - each.at for end, each in zip(naive(jobs, n), jobs, strict=True))
    assert run(jobs, n).latencies == pytest.approx(wanted, abs=1e-6)


# ------------------------------------------------------------ the scheduler is the pool's own


def urgent_latencies() -> list[float]:
    urgent, rest = TaskOptions(priority=-1), TaskOptions()
    jobs = [job(0.001 * each, 1.0, rest) for each in range(20)] + [job(1.5 + each, 0.1, urgent) for each in range(5)]
    jobs.sort(key=lambda each: each.at)
    return run(jobs).latencies[:5]


def test_breaking_the_queues_changes_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    before = urgent_latencies()
    assert before[-1] < 2.0, "what is urgent goes first"
    monkeypatch.setattr(queues, "rank_of", lambda options: (-options.priority, -options.weight))
    assert urgent_latencies() != before


def test_the_figures_of_the_world_are_the_workers_own() -> None:
    defaults = {name: each.default for name, each in inspect.signature(WorkerOptions).parameters.items()}
    assert defaults["slots"] == worlds.SLOTS
    assert defaults["lease_ttl"] == worlds.LEASE_TTL
    assert defaults["start_timeout"] == worlds.START_TIMEOUT
    assert defaults["kill_timeout"] == worlds.KILL_TIMEOUT
    assert defaults["grace"] == Pool(1, 1).grace


# ------------------------------------------------------------ what tasks may ask for


def test_an_attempt_that_fails_is_followed_by_the_next_one() -> None:
    options = TaskOptions(retries=2, backoff=Backoff(4.0, 1.0, 10.0, "none"))
    outcome = run([Job(0.0, (Attempt(1.0, ERROR), Attempt(2.0, ERROR), Attempt(3.0)), options)])
    assert outcome.statuses == {OK: 1}
    assert outcome.latencies == pytest.approx([1 + 4 + 2 + 4 + 3])
    assert outcome.busy == pytest.approx(6.0)


def test_after_the_last_known_attempt_none_follows() -> None:
    outcome = run([Job(0.0, (Attempt(1.0, ERROR),), TaskOptions(retries=5))])
    assert outcome.statuses == {ERROR: 1}
    assert outcome.failures == 1.0
    assert outcome.latencies == pytest.approx([1.0])


def test_a_timeout_ends_an_attempt() -> None:
    late = TaskOptions(timeout=2.0, retries=1)
    outcome = run([Job(0.0, (Attempt(math.inf, TIMED_OUT),), late), job(0.0, 1.0)])
    assert outcome.statuses == {TIMED_OUT: 1, OK: 1}
    assert outcome.latencies == pytest.approx([3.0, 5.0])


def test_a_child_that_dies_is_replaced() -> None:
    costs = dataclasses.replace(FREE, fork=0.5)
    jobs = [Job(0.0, (Attempt(1.0, CRASHED), Attempt(2.0)), TaskOptions(crash_retries=1)), job(0.0, 1.0)]
    outcome = run(jobs, costs=costs)
    assert outcome.statuses == {OK: 2}
    assert outcome.seconds == pytest.approx(1.0 + 0.5 + 1.0 + 2.0)
    assert run([Job(0.0, (Attempt(1.0, CRASHED),), PLAIN)]).statuses == {CRASHED: 1}


def test_a_deadline_is_missed_in_line_and_while_running() -> None:
    jobs = [job(0.0, 3.0, deadline=2.0), job(0.0, 1.0, deadline=1.5), job(0.0, 1.0, deadline=10.0)]
    outcome = run(jobs)
    assert outcome.statuses == {TIMED_OUT: 2, OK: 1}
    assert outcome.missed == 2
    assert outcome.misses == pytest.approx(2 / 3)
    assert outcome.busy == pytest.approx(3.0), "the second one never began"
    late = run([Job(0.0, (Attempt(math.inf),), TaskOptions(timeout=1.0), deadline=9.0)])
    assert (late.statuses, late.missed) == ({TIMED_OUT: 1}, 0), "it ended before its deadline"


def test_a_cancelled_task_leaves_the_line() -> None:
    outcome = run([job(0.0, 4.0), job(0.0, 4.0, cancel=1.0), job(0.0, 4.0, cancel=100.0), job(0.0, 9.0, cancel=10.0)])
    assert outcome.statuses == {OK: 2, CANCELLED: 2}
    assert outcome.busy == pytest.approx(4 + 4 + 2)


def test_a_rate_and_a_burst_limit_starts() -> None:
    outcome = run([job(0.0, 0.01) for _ in range(25)], n=8, rate=10.0, burst=5)
    # In any second no more than burst + rate, and in the first tenth no more than burst + 1.
    assert sum(at < 0.1 for at in outcome.begun_at) == 5
    assert outcome.begun_at[-1] == pytest.approx(2.0, abs=0.02)
    by_default = run([job(0.0, 0.01) for _ in range(25)], n=8, rate=10.0)
    assert sum(at < 0.1 for at in by_default.begun_at) == 8


def test_a_queue_keeps_to_its_limits() -> None:
    limited = TaskOptions(queue="slow")
    jobs = [job(0.0, 1.0, limited) for _ in range(4)]
    assert run(jobs, n=4).seconds == pytest.approx(1.0)
    assert run(jobs, n=4, queues={"slow": QueueLimits(max_running=2)}).seconds == pytest.approx(2.0)
    rated = run(jobs, n=4, queues={"slow": QueueLimits(rate=1.0, burst=1)})
    assert rated.seconds == pytest.approx(4.0, abs=0.01)


def test_queues_share_by_weight() -> None:
    heavy, light = TaskOptions(queue="a"), TaskOptions(queue="b")
    jobs = [job(0.0, 1.0, options) for _ in range(30) for options in (heavy, light)]
    pool = {"a": QueueLimits(weight=3), "b": QueueLimits(weight=1)}
    simulation = Simulation(Load(jobs), Pool(1, 1, queues=pool, costs=FREE))
    simulation.run()
    first = [jobs[key].options.queue for key, at in enumerate(simulation._first) if at < 20]
    assert (first.count("a"), first.count("b")) == (15, 5)


def test_a_concurrency_key_is_kept_to() -> None:
    jobs = [job(0.0, 1.0, key="x", concurrency=1) for _ in range(3)]
    assert run(jobs, n=4).seconds == pytest.approx(3.0)


def test_what_is_offered_ahead_and_taken_back_runs_once() -> None:
    """So many short calls that children are given many ahead, and then one of the same function that is long."""
    jobs = [job(0.0, 0.00001) for _ in range(400)] + [job(0.0, 1.0)] + [job(0.0, 0.00001) for _ in range(400)]
    outcome = run(jobs, n=2, costs=Costs())
    assert len(outcome.begun_at) == 801
    assert outcome.latency(0.99) < 0.1, "what waited behind the long one ran elsewhere"


def test_the_children_take_time_to_start() -> None:
    assert run([job(0.0, 1.0)], start=2.0).latencies == pytest.approx([3.0])


def test_what_the_pool_itself_takes_is_counted() -> None:
    costs = Costs(wake=0.1, decide=0.01, call=0.001, fork=0.0, source="")
    outcome = run([job(0.0, 1.0)], costs=costs)
    # To the supervisor, its turn, to the child; the call; to the supervisor, its turn, to the client.
    assert outcome.latencies == pytest.approx([(0.1 + 0.01 + 0.1) + 1.001 + (0.1 + 0.01 + 0.1)])
    batch = run([job(0.0, 1e-6) for _ in range(1000)], n=8, costs=costs)
    assert batch.throughput < 1 / 0.02, "the supervisor has two decisions to make for each"


def test_what_would_never_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="job 1 never ends"):
        run([job(0.0, 1.0), job(0.0, math.inf)])
    assert run([job(0.0, math.inf, deadline=2.0)]).statuses == {TIMED_OUT: 1}
    assert run([job(0.0, math.inf, cancel=2.0)]).statuses == {CANCELLED: 1}


# ------------------------------------------------------------ what is counted


def test_the_depth_is_that_of_what_waits() -> None:
    outcome = run([job(0.0, 10.0) for _ in range(5)])
    curve = [peak for _, peak in outcome.depth]
    assert (curve[1], curve[len(curve) // 2], curve[-2]) == (4, 2, 0)
    assert outcome.depth_max <= 5
    assert outcome.depth_mean == pytest.approx(2.0, abs=0.05)
    assert outcome.utilisation == pytest.approx(1.0)


def test_a_steady_load_is_counted_from_its_middle_on() -> None:
    load = Description(service("constant:1"), rate=0.5, tasks=1000).load(1)
    outcome = Simulation(load, Pool(2, 2.0, costs=FREE)).run()
    assert outcome.count == len(outcome.latencies) == 900
    assert outcome.throughput == pytest.approx(900 / outcome.seconds)
    assert outcome.utilisation == pytest.approx(900 / outcome.seconds / 2, rel=0.05)
    assert outcome.cores_used == pytest.approx(900 / outcome.seconds / 2, rel=0.05)


def test_quantiles_are_those_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    chance = random.Random(1)
    values = sorted(chance.random() for _ in range(37))
    for quantile in (0.0, 0.05, 0.5, 0.95, 1.0):
        assert quantile_of(values, quantile) == pytest.approx(numpy.quantile(values, quantile))
    assert math.isnan(quantile_of([], 0.5))


def test_the_same_seed_gives_the_same_answer() -> None:
    load = Description(service("exponential:1"), rate=1.5, tasks=500, failures=0.2, retries=1)
    first, second = (Simulation(load.load(7), Pool(2, 2.0)).run() for _ in range(2))
    assert first == second
    assert first != Simulation(load.load(8), Pool(2, 2.0)).run()
