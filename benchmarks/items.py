"""What an item of a `map` costs a child beside the call: the loop over a chunk, without processes."""

import mmap
import time
from collections.abc import Callable
from typing import Any, Final

from mpworker.bench.measure import Benchmark, Measure, Settings, Values, variants
from mpworker.bench.tasks import noop
from mpworker.ipc._native import Claims

ITEMS: Final = 20_000
TRIES: Final = 20
_NEVER: Final = 2**63  # no value waits for so long

Run = Callable[[list[Any]], object]


def mapped(items: list[Any]) -> object:
    """What Python's own loop takes."""
    return list(map(noop, items))


def _as_a_child_does() -> Run:
    claims = Claims(mmap.mmap(-1, mmap.PAGESIZE), 1)
    claims.offer(0, 1)
    claims.claim(0, 1)

    def run(items: list[Any]) -> object:
        values: list[Any] = []
        claims.run(0, 1, noop, items, values, 0, len(items), False, _NEVER)
        return values

    return run


def _measure(make: Callable[[], Run]) -> Callable[[Settings], Values]:
    def measure(settings: Settings) -> Values:
        run, items = make(), list(range(settings.count(ITEMS)))
        seconds = []
        for _ in range(TRIES):
            begun = time.perf_counter()
            run(items)
            seconds.append(time.perf_counter() - begun)
        return {"item": min(seconds) * 1e9 / len(items)}

    return measure


CONTENDERS: Final[dict[str, Callable[[Settings], Values]]] = {
    "list(map())": _measure(lambda: mapped),
    "a child": _measure(_as_a_child_does),
}
BENCHMARK = Benchmark(
    "items: a no-op item of a chunk, the call included, as a child runs it and by Python's own loop; of several tries "
    "the fastest",
    (Measure("item", "ns"),),
    variants(CONTENDERS),
    contenders=tuple(CONTENDERS),
    base="list(map())",
)
