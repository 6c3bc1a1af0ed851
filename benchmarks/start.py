"""From the start of a fresh interpreter to the first result, and from there until the pool has stopped."""

import compileall
import functools
import subprocess
import sys
import time
from pathlib import Path

import mpworker as package
from benchmarks.measure import Benchmark, Measure, Settings, Values, in_turn
from benchmarks.pools import EXECUTOR, MPWORKER, POOL

ROOT = Path(__file__).parent.parent
SECONDS_MAX = 60.0

# CLOCK_MONOTONIC is one clock for all processes: the child's readings compare with ours.
SCRIPT = """
from time import monotonic_ns
{pool}
    assert {call} == 1
    first = monotonic_ns()
print(first, monotonic_ns())
"""
MPWORKER_POOL = "from mpworker import ProcessWorker\nwith ProcessWorker({n}) as pool:"
EXECUTOR_POOL = (
    "from concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import get_context\n"
    "with ProcessPoolExecutor({n}, mp_context=get_context('fork')) as pool:"
)
POOL_POOL = "from multiprocessing import get_context\nwith get_context('fork').Pool({n}) as pool:"


@functools.cache
def _compiled() -> None:
    """Have byte code of the package, as each installation has.

    Where PYTHONDONTWRITEBYTECODE is set a checkout has none, and each start would compile all anew.
    """
    compileall.compile_dir(Path(package.__file__).parent, quiet=1)


def _measure(pool: str, call: str, settings: Settings) -> Values:
    _compiled()
    script = SCRIPT.format(pool=pool.format(n=settings.n), call=call)
    begun = time.monotonic_ns()
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, timeout=SECONDS_MAX, check=True
    )
    first, stopped = map(int, run.stdout.split())
    return {"first": (first - begun) / 1e6, "stop": (stopped - first) / 1e6}


def mpworker(settings: Settings) -> Values:
    return _measure(MPWORKER_POOL, "pool.submit(abs, -1).result()", settings)


def executor(settings: Settings) -> Values:
    return _measure(EXECUTOR_POOL, "pool.submit(abs, -1).result()", settings)


def pool(settings: Settings) -> Values:
    return _measure(POOL_POOL, "pool.apply_async(abs, (-1,)).get()", settings)


BENCHMARK = Benchmark(
    "a fresh interpreter: import, pool and first result; then the stop",
    (Measure("first", "ms"), Measure("stop", "ms")),
    in_turn({MPWORKER: mpworker, EXECUTOR: executor, POOL: pool}),
)
