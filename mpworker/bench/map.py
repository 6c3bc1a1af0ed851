"""A million small items through `map`, sent in chunks: of the size that suits a contender best, and of its own choice.

Which size that is differs from machine to machine. So it is looked for in each turn: all of SIZES are tried, the best
one is measured.
"""

import time
from collections.abc import Iterable
from typing import Final

from mpworker.bench.measure import Benchmark, Measure, Settings, Target, Values
from mpworker.bench.peers import MPWORKER, POOL, opened
from mpworker.bench.processes import cpu_used
from mpworker.bench.tasks import noop

ITEMS: Final = 1_000_000
FIRST: Final = 2_000
SIZES: Final = (200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
SECONDS: Final = 2.0
SECONDS_OF_A_TRY: Final = 0.5


def timed(results: Iterable[object], items: int, begun: float) -> float:
    """Items a second since then, once all results are there."""
    found = sum(1 for _ in results)
    seconds = time.perf_counter() - begun
    if found != items:
        raise AssertionError(f"{found} results of {items} items")
    return items / seconds


def run(contender: str, settings: Settings) -> Values:
    with opened(contender, settings.n) as pool:

        def best(items: int, size: int | None) -> float:
            begun = time.perf_counter()
            return timed(pool.mapped(noop, range(items), size), items, begun)

        def plain(items: int) -> float:
            begun = time.perf_counter()
            return timed(pool.plain(noop, range(items)), items, begun)

        plain(settings.n)  # all are there by now
        size = None
        speed = best(settings.count(FIRST), None if pool.chooses else SIZES[0])
        if not pool.chooses:
            items = settings.fit(ITEMS, speed, SECONDS_OF_A_TRY)
            found = {size: best(items, size) for size in SIZES if size <= items} or {SIZES[0]: speed}
            size = max(found, key=lambda each: found[each])
            speed = found[size]
        items = settings.fit(ITEMS, speed, SECONDS)
        if pool.chooses:
            best(settings.fit(ITEMS, speed, SECONDS_OF_A_TRY), None)  # as the others had their tries
        with cpu_used() as cpu:
            values = {"items": best(items, size)}
        values["cpu"] = cpu.seconds * 1e9 / items
        values["plain"] = plain(settings.fit(ITEMS, plain(settings.count(FIRST)), SECONDS))
    return values if size is None else values | {"chunk": float(size)}


BENCHMARK = Benchmark(
    "1,000,000 no-op items: with the best size of chunks, which mpworker finds itself and is searched for "
    "with all others (Pool by imap); CPU time of an item; and plain, with no size given (Pool by map)",
    (
        Measure("items", "/s", higher_is_better=True, targets=(Target(MPWORKER, 1.0, POOL),)),
        Measure("cpu", "ns"),
        Measure("plain", "/s", higher_is_better=True),
        Measure("chunk", "items", fact=True),
    ),
    run,
)
