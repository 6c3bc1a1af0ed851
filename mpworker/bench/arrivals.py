"""How long tasks take that arrive by themselves, whether or not the ones before are done: an open loop.

Arrivals are random (a Poisson process), service times exponential, the same for every contender in a round. Latency
counts from when a task was *meant* to be submitted until its result is in the client: a pool that holds up whoever
submits would otherwise hide what those wait who come meanwhile ("coordinated omission": Tene, "How NOT to Measure
Latency", 2013). Utilisation is work offered by what the cores that the workers can use do at the most. What cannot be
avoided at that load, with a pool that costs nothing and hands each task to a free core at once, is a contender of its
own.
"""

import heapq
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from mpworker.bench.measure import Benchmark, Measure, Settings, Values
from mpworker.bench.peers import Running, opened
from mpworker.bench.processes import cpu_used
from mpworker.bench.tasks import noop, turns_per_second, work
from mpworker.cgroups import available_cores

UTILISATIONS: Final = (0.5, 0.8, 0.95)
SERVICE: Final = 0.002  # seconds, on average
SECONDS: Final = 4.0  # for each utilisation
SEED: Final = 7
PIECES: Final = 4  # for each worker, by which it is found out what the cores can do
PIECE: Final = 0.02  # seconds of each
TRIES: Final = 3
WARM_UP: Final = 100
WAIT_SECONDS_MAX: Final = 60.0  # for the last results
_LOOK: Final = 0.005  # seconds between looks for these: when each came is known, so that nothing measured waits for it
NO_OVERHEAD: Final = "no overhead"


class Arrival(NamedTuple):
    """A task to come: when, in seconds from the beginning, and how long it computes."""

    at: float
    service: float


def load(utilisation: float, cores: int, seconds: float) -> list[Arrival]:
    """The arrivals of so many seconds."""
    rng = random.Random(SEED)
    rate = utilisation * cores / SERVICE
    arrivals, at = [], rng.expovariate(rate)
    while at < seconds:
        arrivals.append(Arrival(at, rng.expovariate(1 / SERVICE)))
        at += rng.expovariate(rate)
    return arrivals


def without_overhead(arrivals: Sequence[Arrival], cores: int) -> list[float]:
    """The latency of each, on so many cores, first come first served, if all that a pool does took no time."""
    free = [0.0] * cores
    found = []
    for at, service in arrivals:
        ended = max(at, heapq.heappop(free)) + service
        heapq.heappush(free, ended)
        found.append(ended - at)
    return found


def drive(
    submit_then: Callable[..., Any],
    arrivals: Sequence[Arrival],
    turns: Callable[[float], int],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[float]:
    """Submit each when it is due, and return their latencies, from then on.

    Args:
        submit_then: As of `peers.Running`.
        arrivals: What is to come.
        turns: Of `work`, for so many seconds.
        clock: Tells the time, in seconds.
        sleep: Waits for so many seconds.

    Raises:
        TimeoutError: Some have not ended a minute after the last was submitted.
    """
    ended: list[tuple[int, float]] = []

    def done(number: int) -> None:
        ended.append((number, clock()))  # in one step, whichever thread it is

    begun = clock()
    for number, (at, service) in enumerate(arrivals):
        ahead = begun + at - clock()
        if ahead > 0:
            sleep(ahead)
        submit_then(partial(done, number), work, turns(service))
    end = clock() + WAIT_SECONDS_MAX
    while len(ended) < len(arrivals):
        if clock() > end:
            raise TimeoutError(f"{len(arrivals) - len(ended)} of {len(arrivals)} tasks have not ended")
        sleep(_LOOK)
    return [when - begun - arrivals[number].at for number, when in ended]


def run(contender: str, settings: Settings) -> Values:
    cores = min(settings.n, available_cores())
    loads = {each: load(each, cores, max(0.05, SECONDS * min(1.0, settings.scale))) for each in UTILISATIONS}
    values: Values = {}
    if contender == NO_OVERHEAD:
        for utilisation, arrivals in loads.items():
            values |= _percentiles(utilisation, without_overhead(arrivals, cores))
        return values
    with opened(contender, settings.n) as pool:
        pool.gather(noop, settings.count(WARM_UP))
        speed = _speed(pool, settings, cores)
        for utilisation, arrivals in loads.items():
            with cpu_used() as cpu:
                latencies = drive(pool.submit_then, arrivals, lambda seconds: max(1, round(seconds * speed)))
            values |= _percentiles(utilisation, latencies)
            values[f"cpu, {utilisation:.0%}"] = cpu.seconds * 1e3 / len(arrivals)
    return values


def _speed(pool: Running, settings: Settings, cores: int) -> float:
    """Turns of `work` that one core does in a second while all of them work, which may be fewer than alone."""
    pieces, turns = PIECES * settings.n, round(PIECE * turns_per_second())
    best = 0.0
    for _ in range(TRIES):
        begun = time.perf_counter()
        pool.gather(work, pieces, turns)
        best = max(best, pieces * turns / (time.perf_counter() - begun) / cores)
    return best


def _percentiles(utilisation: float, latencies: list[float]) -> Values:
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return {f"{name}, {utilisation:.0%}": cuts[at] * 1e3 for name, at in (("p50", 49), ("p99", 98))}


BENCHMARK = Benchmark(
    "an open loop of tasks that compute 2 ms on average, at 50, 80 and 95 % of what the cores can do: "
    "latency from the intended start, and CPU time of a task, its own work included",
    tuple(
        Measure(f"{kind}, {each:.0%}", "ms", series=kind, x=100 * each, x_is="utilisation, %")
        for kind in ("p50", "p99", "cpu")
        for each in UTILISATIONS
    ),
    run,
    also=(NO_OVERHEAD,),
    rounds_max=5,
)
