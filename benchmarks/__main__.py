"""`python -m benchmarks`: `mpworker bench`, with the benchmarks for developers besides."""

import sys
from typing import Final

from mpworker.bench.suite import SUITE
from mpworker.cli import bench
from mpworker.cli.app import run

DEVELOPERS: Final = {
    name: f"benchmarks.{name}:BENCHMARK"
    for name in ("features", "queued", "depth", "decide", "fragmentation", "hops", "items", "many", "soak")
} | {
    "simulated-children": "benchmarks.simulated:CHILDREN_BENCHMARK",
    "simulated-backlog": "benchmarks.simulated:BACKLOG_BENCHMARK",
}


def main() -> None:
    sys.exit(run(sys.argv[1:], bench.command(SUITE | DEVELOPERS, SUITE), "python -m benchmarks"))


if __name__ == "__main__":
    main()
