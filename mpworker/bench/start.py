"""From the start of a fresh interpreter to the first result, and from there until the pool has stopped."""

import os
import signal
import subprocess
import sys
import time
from typing import Final

from mpworker.bench.measure import Benchmark, Measure, Settings, Target, Values
from mpworker.bench.peers import EXECUTOR, MPWORKER, PEERS

SECONDS_MAX: Final = 120.0

# CLOCK_MONOTONIC is one clock for all processes: the child's readings compare with ours.
SCRIPT: Final = """
from time import monotonic_ns
{pool}
    assert {call} == 1
    first = monotonic_ns()
print(first, monotonic_ns(), flush=True)
"""


def run(contender: str, settings: Settings) -> Values:
    # Where an environment forbids to write them, no module would ever be compiled before it is imported.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    peer = PEERS[contender]
    script = SCRIPT.format(pool=peer.program.format(n=settings.n), call=peer.call)
    _once(script, environment)  # modules are compiled, and files in the cache
    return _once(script, environment)


def _once(script: str, environment: dict[str, str]) -> Values:
    begun = time.monotonic_ns()
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        signal.alarm(int(SECONDS_MAX))  # ends this turn
        said = process.stdout.readline()
        _, status, used = os.wait4(process.pid, 0)
        signal.alarm(0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"the program ended with {process.returncode}")
    first, stopped = map(int, said.split())
    return {
        "first": (first - begun) / 1e6,
        "stop": (stopped - first) / 1e6,
        "cpu": (used.ru_utime + used.ru_stime) * 1e3,
    }


BENCHMARK = Benchmark(
    "a fresh interpreter: import, pool and first result; then the stop; CPU time of it and of all it has reaped",
    (
        Measure("first", "ms", targets=(Target(MPWORKER, 1.5, EXECUTOR),)),
        Measure("stop", "ms", targets=(Target(MPWORKER, 20.0),)),
        Measure("cpu", "ms"),
    ),
    run,
)
