"""How an arena fares in a day of blocks that come and go: by the allocator that hands them out, in virtual time.

Blocks are as large as payloads that go by way of an arena are: lognormal, 256 KiB in the middle and 32 MiB at the 95th
percentile, from 16 KiB to a sixteenth of the arena. Most are given back after a second or so, as those of short calls
are; of a hundred one stays for an hour, as a result does that somebody keeps. So there are always some that hold a
place while all around them changes: that is what fragments a memory. Whenever a block comes back new ones are taken, up
to the part of the arena that is meant to be full.

A block that is refused although so many bytes are free in all is what fragmentation costs: its task waits until a gap
is large enough. All is the same in each run but the time.
"""

import heapq
import math
import random
import statistics
import time
from typing import Final

from mpworker.bench.measure import Benchmark, Measure, Settings, Target, Values
from mpworker.ipc._native import Extents

CAPACITY: Final = 4 << 30  # bytes
HOURS: Final = (1, 6, 12, 18, 24)
HOUR: Final = 3600.0  # seconds
SEED: Final = 1
SIZE_MEDIAN, SIZE_P95 = 256 << 10, 32 << 20
SIZE_MIN, SIZE_MAX = 16 << 10, CAPACITY // 16
STAY: Final = 1.0  # seconds that most blocks stay, on average
LONG_STAY: Final = HOUR
LONG_PART: Final = 0.01
P95: Final = 1.645  # standard deviations
FULL: Final = {"half full": 0.5, "80 % full": 0.8, "95 % full": 0.95}
KINDS: Final = {"refused": "%", "one gap": "%"}


def run(contender: str, settings: Settings) -> Values:
    chance, extents, level = random.Random(SEED), Extents(CAPACITY), FULL[contender] * CAPACITY
    sigma = math.log(SIZE_P95 / SIZE_MEDIAN) / P95
    hour = HOUR * settings.scale
    held: list[tuple[float, int]] = []  # when a block is given back, and its number
    wanted, waits = 0, False  # bytes of the block that comes next, and whether it was refused
    now, taken_ns, pairs = 0.0, 0, 0
    values: Values = {}
    for number in range(1, HOURS[-1] + 1):
        asked = refused = 0
        gaps: list[float] = []
        while now < number * hour:
            while True:
                if not wanted:
                    size = chance.lognormvariate(math.log(SIZE_MEDIAN), sigma)
                    wanted = int(min(max(size, SIZE_MIN), SIZE_MAX))
                    asked += 1
                if extents.taken + wanted > level:
                    break
                found: list[tuple[int, int, int]] = []
                begun = time.perf_counter_ns()
                got = extents.take(wanted, found)
                taken_ns += time.perf_counter_ns() - begun
                if not got:
                    refused += not waits
                    waits = True
                    break
                is_long = chance.random() < LONG_PART
                stay = chance.expovariate(1 / (LONG_STAY * settings.scale if is_long else STAY))
                heapq.heappush(held, (now + stay, found[0][0]))
                wanted, waits = 0, False
            gaps.append(extents.largest / (CAPACITY - extents.taken))
            now, block = heapq.heappop(held)
            begun = time.perf_counter_ns()
            extents.give(block)
            taken_ns += time.perf_counter_ns() - begun
            pairs += 1
        if number in HOURS:
            values[f"refused, hour {number}"] = 100 * refused / max(1, asked)
            values[f"one gap, hour {number}"] = 100 * statistics.fmean(gaps)
    return values | {"time": taken_ns / max(1, pairs)}


BENCHMARK = Benchmark(
    f"a day of blocks in an arena of {CAPACITY >> 30} GiB: how many are refused though their bytes are free, how much "
    "of what is free is one gap, and what it takes to take a block and give it back",
    (
        *(
            Measure(
                f"{kind}, hour {hour}",
                unit,
                higher_is_better=kind == "one gap",
                series=kind,
                x=hour,
                x_is="hour",
                targets=(Target("80 % full", 1.0),) if kind == "refused" and hour == HOURS[-1] else (),
            )
            for kind, unit in KINDS.items()
            for hour in HOURS
        ),
        Measure("time", "ns"),
    ),
    run,
    contenders=tuple(FULL),
    base="half full",
    rounds_max=1,
)
