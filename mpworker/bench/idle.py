"""What a pool costs while nobody uses it: the CPU time of its processes, and of its threads in the client."""

import time
from typing import Final

from mpworker.bench.measure import Benchmark, Measure, Settings, Target, Values
from mpworker.bench.peers import MPWORKER, opened
from mpworker.bench.processes import Watched
from mpworker.bench.tasks import noop

SETTLING: Final = 3.0  # seconds: what follows the first tasks is not idleness


def run(contender: str, settings: Settings) -> Values:
    watched = Watched()
    with opened(contender, settings.n) as pool:
        pool.gather(noop, 4 * settings.n)
        time.sleep(min(SETTLING, settings.idle_seconds))
        watched.settle()
        before, begun = watched.usage(), time.monotonic()
        time.sleep(settings.idle_seconds)
        used, seconds = watched.usage() - before, time.monotonic() - begun
    return {"cpu": used.cpu_ns / 1e7 / seconds}


BENCHMARK = Benchmark(
    "part of one core that the whole pool takes while nobody uses it",
    (Measure("cpu", "%", targets=(Target(MPWORKER, 0.2),)),),
    run,
    together=True,  # they do nothing, and so do not disturb each other
    rounds_max=1,
)
