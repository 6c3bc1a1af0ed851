"""`python -m benchmarks.turns`: for how many sets of weights an order of queues is found that keeps its promise.

The promise is that of `mpworker.supervisor.wheel`: at most ceil(W / w) starts of others between two of a queue. Shown
are random sets for which no such order is found, and how long a queue waits there at worst, as a multiple of that.
"""

import argparse
import math
import random

from rich.console import Console
from rich.table import Table

from mpworker.supervisor.wheel import MostBehind, turns

# Queues, from and to; and weights from 1 to that.
KINDS = ((2, 8, 20), (2, 8, 50), (12, 12, 100), (30, 30, 100), (100, 100, 100))
TURNS = 4  # of W starts, in which the waits are looked at


def longest_wait(weights: dict[int, int]) -> float:
    """How many starts of others a queue waits for at worst, divided by how many are promised."""
    order, last, worst = MostBehind(weights, {}), dict[int, int](), 0.0
    whole = sum(weights.values())
    for slot in range(TURNS * whole):
        key = order.peek(weights)
        order.take()
        if key in last:
            worst = max(worst, (slot - last[key] - 1) / math.ceil(whole / weights[key]))
        last[key] = slot
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns", description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", type=int, default=2_000, metavar="S", help="random sets (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of these (default: %(default)s)")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    table = Table("queues", "weights", "sets", "no order found", "longest wait there")
    for fewest, most, weight in KINDS:
        count = arguments.sets if most <= 8 else max(1, arguments.sets // 100)
        waits = []
        for _ in range(count):
            size = rng.randint(fewest, most)
            weights = {number: rng.randint(1, weight) for number in range(size)}
            if isinstance(turns(weights, {}), MostBehind):
                waits.append(longest_wait(weights))
        longest = f"{max(waits):.2f} x" if waits else "-"
        queues = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        table.add_row(queues, f"1 to {weight}", f"{count:,}", f"{len(waits):,}", longest)
    Console().print(table)


if __name__ == "__main__":
    main()
