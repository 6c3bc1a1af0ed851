"""What large and small payloads cost on their way: arrays, bytes, a DataFrame, an Arrow table.

All in one turn with what they are measured by: a warm copy of the same array, the same call made here, and a task
without a payload. One worker, and one task at a time. Of the large ones the best of some tries counts; of the small
ones each value is a mean over many, and the least of some.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, Final

from mpworker.bench.measure import Benchmark, Measure, NotOffered, Settings, Target, Values
from mpworker.bench.peers import EXECUTOR, MPWORKER, Running
from mpworker.bench.peers import opened as pool_of
from mpworker.bench.processes import cpu_used
from mpworker.bench.tasks import arrived, echo, made, noop, opened, summed

LARGE: Final = 64 << 20  # bytes
MIDDLE: Final = 1 << 20
SMALL: Final = 1 << 10
ROWS: Final = 500_000  # of the DataFrame and the table: two columns of 8 bytes, 8 MB
TRIES: Final = 3
WARM_UP: Final = 2
MANY: Final = 50  # of those of the middle
TASKS: Final = 4_000  # small ones
TRIES_SMALL: Final = 9  # which take 20 ms each, and of which a noisy machine spoils most
SECONDS: Final = 0.5  # for each of the small ones


def run(contender: str, settings: Settings) -> Values:
    if importlib.util.find_spec("numpy") is None:
        raise NotOffered("NumPy is not installed")
    import numpy

    array: Any = numpy.arange(settings.count(LARGE) // 8, dtype=numpy.float64)
    with pool_of(contender, 1) as pool:
        pool.call(made, 8)  # NumPy is imported in the worker by now
        values = _large(pool, array) | _small(pool, settings) | _shared(pool, settings, array)
        middle = array[: max(1, settings.count(MIDDLE) // 8)].copy()
        values["1 MiB"] = _best(lambda: pool.call(echo, middle), settings.count(MANY)) * 1e3
        for name, value in _frames(settings):
            if len(pool.call(echo, value)) != len(value):
                raise AssertionError(f"another {name} came back")
            values[name] = _best(lambda value=value: pool.call(echo, value)) * 1e3  # type: ignore[misc]
    return values


def _best(call: Callable[[], object], tries: int = TRIES) -> float:
    """Seconds of the fastest of some calls. What one returns is gone before the next."""
    best = float("inf")
    for _ in range(WARM_UP + tries):
        begun = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begun)
    return best


def _large(pool: Running, array: Any) -> Values:
    if pool.call(arrived, array) != array.nbytes or pool.call(echo, array)[-1] != array[-1]:
        raise AssertionError("another array came back")
    target = array.copy()

    def copy() -> None:
        target[:] = array

    size = len(array)
    copied, inline, read_here = _best(copy), _best(lambda: made(size)), _best(lambda: summed(array))
    found = {
        "in": _best(lambda: pool.call(arrived, array)),
        "in, read": max(0.0, _best(lambda: pool.call(summed, array)) - read_here),
        "echoed": _best(lambda: pool.call(echo, array)),
        "made": max(0.0, _best(lambda: pool.call(made, size)) - inline),
    }
    with cpu_used() as cpu:
        for _ in range(TRIES):
            pool.call(echo, array)
    values = {"copy": copied * 1e3, "cpu": cpu.seconds * 1e3 / TRIES}
    for name, seconds in found.items():
        values[name] = seconds * 1e3
        values[f"{name}: copies"] = seconds / copied
    return values


def _small(pool: Running, settings: Settings) -> Values:
    """Microseconds of a task with 1 KiB and with nothing, in turns."""
    return _beside_no_ops(pool, settings, "1 KiB", noop, bytes(range(256)) * (SMALL // 256))


def _shared(pool: Running, settings: Settings, array: Any) -> Values:
    """Microseconds of a task that opens the array, which was placed once for all of them, and of one with nothing."""
    if pool.share is None:
        return {}
    with pool.share(array) as shared:
        if pool.call(opened, shared) != array[-1]:
            raise AssertionError("another array is shared")
        return _beside_no_ops(pool, settings, "shared", opened, shared)


def _beside_no_ops(pool: Running, settings: Settings, name: str, function: Callable[..., Any], value: Any) -> Values:
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {name: (function, (value,)), "no-op": (noop, ())}
    first = time.perf_counter()
    for call, args in calls.values():
        pool.gather(call, settings.n, *args)
    tasks = settings.fit(TASKS, 2 * settings.n / (time.perf_counter() - first), SECONDS)
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(WARM_UP + TRIES_SMALL):
        for each, (call, args) in calls.items():
            begun = time.perf_counter()
            pool.gather(call, tasks, *args)
            least[each] = min(least[each], (time.perf_counter() - begun) * 1e6 / tasks)
    return {name: least[name], f"{name}: no-ops": least[name] / least["no-op"]}


def _frames(settings: Settings) -> list[tuple[str, Any]]:
    rows = settings.count(ROWS)
    found: list[tuple[str, Any]] = []
    if importlib.util.find_spec("pandas") is not None:
        import numpy
        import pandas

        columns = {"a": numpy.arange(rows, dtype=numpy.float64), "b": numpy.arange(rows)}
        found.append(("DataFrame", pandas.DataFrame(columns)))
    if importlib.util.find_spec("pyarrow") is not None:
        import pyarrow

        found.append(("Arrow", pyarrow.table({"a": pyarrow.array(range(rows)), "b": pyarrow.array(range(rows))})))
    return found


BENCHMARK = Benchmark(
    "a 64 MiB float64 array in, in and summed (beyond the sum), echoed, and made by the task (beyond the "
    "making), in ms and in warm copies of it; CPU time of an echo; 1 MiB, and a DataFrame and an Arrow table of 8 MB, "
    "echoed; a 1 KiB argument; the large array shared, and opened by each of many tasks",
    (
        Measure("copy", "ms", fact=True),
        *(
            measure
            for name, bound in (("in", 1.5), ("in, read", None), ("echoed", 2.5), ("made", 1.5))
            for measure in (
                Measure(name, "ms"),
                Measure(f"{name}: copies", "x", targets=() if bound is None else (Target(MPWORKER, bound),)),
            )
        ),
        Measure("cpu", "ms"),
        Measure("1 MiB", "ms", targets=(Target(MPWORKER, 0.1, EXECUTOR),)),
        Measure("DataFrame", "ms", targets=(Target(MPWORKER, 0.1, EXECUTOR),)),
        Measure("Arrow", "ms", targets=(Target(MPWORKER, 0.1, EXECUTOR),)),
        Measure("1 KiB", "us"),
        Measure("1 KiB: no-ops", "x", targets=(Target(MPWORKER, 1.15),)),
        Measure("shared", "us"),
        Measure("shared: no-ops", "x"),
    ),
    run,
)
