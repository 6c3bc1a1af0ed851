"""Benchmarks that take no time, for the tests of what runs benchmarks."""

import threading
import time

from mpworker.bench.measure import Benchmark, Measure, NotOffered, Settings, Target, Values
from mpworker.bench.peers import opened

EXECUTOR = "ProcessPoolExecutor"


def run(contender: str, settings: Settings) -> Values:
    if contender == "breaks":
        raise ValueError("it is broken")
    if contender == "lacks":
        raise NotOffered("it has no such thing")
    if contender == "hangs":
        time.sleep(3600.0)
    if contender.startswith(("r ", "w ")):  # each opens a FIFO, which waits for the other to do so
        open(contender[2:], contender[0]).close()
    print("a library that prints")
    return {"figure": float(settings.n)}


def size(number: int) -> int:
    return abs(number)


def exercise(contender: str, settings: Settings) -> Values:
    """Ask a pool for everything that a benchmark may ask for."""
    with opened(contender, settings.n) as pool:
        if pool.call(size, -7) != 7:
            raise AssertionError("call")
        pool.gather(size, 5, -1)
        if list(pool.mapped(size, range(-50, 50), None if pool.chooses else 7)) != list(map(abs, range(-50, 50))):
            raise AssertionError("mapped")
        if list(pool.plain(size, range(-50, 50))) != list(map(abs, range(-50, 50))):
            raise AssertionError("plain")
        if pool.batch is not None:
            try:
                pool.submit(size, -1)
            except NotOffered:
                return {"figure": 1.0}
            raise AssertionError("it has a submit")
        ended = threading.Event()
        if pool.result(pool.submit_then(ended.set, size, -3)) not in (3, None):
            raise AssertionError("submit_then")
        if not ended.wait(60.0):
            raise AssertionError("nobody was told")
    return {"figure": 1.0}


MEASURES = (Measure("figure", "/s", higher_is_better=True, targets=(Target("mpworker", 2.0, EXECUTOR),)),)
BENCHMARK = Benchmark("nothing", MEASURES, run, seconds_max=60.0)
SHORT = Benchmark("nothing that lasts", MEASURES, run, seconds_max=0.5)
POOLS = Benchmark("each pool once", MEASURES, exercise, seconds_max=90.0)
LAZY = {"figure": 1.0}
WHOLE = Benchmark("all at once", MEASURES, whole=lambda _: {"one": LAZY, "two": LAZY})
