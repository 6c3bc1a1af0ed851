"""A NumPy array of 64 MiB: sent to a worker, and sent there and back."""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Benchmark, Measure, Settings, Values, in_turn
from benchmarks.pools import EXECUTOR, MPWORKER, POOL, new_executor, new_pool
from benchmarks.tasks import echo, measure_array
from mpworker import ProcessWorker

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES = 64 << 20
TRIES = 3


def _array(settings: Settings) -> "NDArray[Any]":
    # OpenBLAS starts threads when NumPy is imported, and the pools that fork this process would fork it with threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import numpy

    return numpy.arange(settings.count(BYTES) // 8, dtype=numpy.int64)


def _measure(settings: Settings, call: Callable[..., Any]) -> Values:
    array = _array(settings)
    call(echo, array[:8])  # NumPy is imported in the worker by now
    found = {"in": float("inf"), "echo": float("inf")}
    for _ in range(TRIES):
        begun = time.perf_counter()
        size = call(measure_array, array)
        sent = time.perf_counter()
        back = call(echo, array)
        done = time.perf_counter()
        if size != array.nbytes or back.nbytes != array.nbytes or back[-1] != array[-1]:
            raise AssertionError("another array came back")
        del back
        found["in"] = min(found["in"], (sent - begun) * 1e3)
        found["echo"] = min(found["echo"], (done - sent) * 1e3)
    return found


def mpworker(settings: Settings) -> Values:
    with ProcessWorker(1) as worker:
        return _measure(settings, lambda function, array: worker.submit(function, array).result())


def executor(settings: Settings) -> Values:
    with new_executor(1) as executor:
        return _measure(settings, lambda function, array: executor.submit(function, array).result())


def pool(settings: Settings) -> Values:
    with new_pool(1) as pool:
        return _measure(settings, lambda function, array: pool.apply_async(function, (array,)).get())


BENCHMARK = Benchmark(
    "payload: a 64 MiB NumPy array, sent in and echoed; one worker, best of three",
    (Measure("in", "ms"), Measure("echo", "ms")),
    in_turn({MPWORKER: mpworker, EXECUTOR: executor, POOL: pool}),
)
