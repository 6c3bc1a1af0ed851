"""A million small items through `map`, sent in chunks."""

import time
from collections.abc import Iterable

from benchmarks.measure import Benchmark, Measure, Settings, Values, in_turn
from benchmarks.pools import EXECUTOR, MPWORKER, POOL, new_executor, new_pool
from benchmarks.tasks import noop
from mpworker import ProcessWorker

ITEMS = 1_000_000
# ProcessPoolExecutor does not choose one. Of 500 to 50,000 this is where it was fastest, and the curve is flat there.
EXECUTOR_CHUNKSIZE = 10_000


def _measure(begun: float, results: Iterable[object], items: int) -> Values:
    found = len(list(results))
    seconds = time.perf_counter() - begun
    if found != items:
        raise AssertionError(f"{found} results of {items} items")
    return {"items": items / seconds}


def mpworker(settings: Settings) -> Values:
    items = settings.count(ITEMS)
    with ProcessWorker(settings.n) as worker:
        worker.submit(noop).result()
        begun = time.perf_counter()
        return _measure(begun, worker.map(noop, range(items)), items)


def executor(settings: Settings) -> Values:
    items = settings.count(ITEMS)
    with new_executor(settings.n) as executor:
        executor.submit(noop).result()
        begun = time.perf_counter()
        return _measure(begun, executor.map(noop, range(items), chunksize=EXECUTOR_CHUNKSIZE), items)


def pool(settings: Settings) -> Values:
    items = settings.count(ITEMS)
    with new_pool(settings.n) as pool:
        pool.apply(noop)
        begun = time.perf_counter()
        return _measure(begun, pool.map(noop, range(items)), items)


BENCHMARK = Benchmark(
    "map over 1,000,000 no-op items; mpworker and Pool choose their chunks",
    (Measure("items", "/s", higher_is_better=True),),
    in_turn({MPWORKER: mpworker, EXECUTOR: executor, POOL: pool}),
)
