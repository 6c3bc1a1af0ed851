"""`python -m benchmarks`: run some or all, print a table."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks import (
    decide,
    depth,
    features,
    grain,
    idle,
    machine,
    map,
    payload,
    queued,
    report,
    roundtrip,
    soak,
    start,
    submit,
)
from benchmarks.measure import Benchmark, Round, Settings

BENCHMARKS: dict[str, Benchmark] = {
    "submit": submit.BENCHMARK,
    "roundtrip": roundtrip.BENCHMARK,
    "map": map.BENCHMARK,
    "start": start.BENCHMARK,
    "grain": grain.BENCHMARK,
    "payload": payload.BENCHMARK,
    "idle": idle.BENCHMARK,
    "features": features.BENCHMARK,
    "queued": queued.BENCHMARK,
    "depth": depth.BENCHMARK,
    "decide": decide.BENCHMARK,
    "soak": soak.BENCHMARK,
}
TABLE_WIDTH_MIN = 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare mpworker with concurrent.futures.ProcessPoolExecutor and multiprocessing.Pool.",
        epilog="\n".join(f"{name:<10} {benchmark.title}" for name, benchmark in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks (default: all)")
    parser.add_argument("-n", type=int, default=2, metavar="N", help="workers of each pool (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, metavar="R", help="interleaved rounds (default: %(default)s)")
    parser.add_argument(
        "--idle-seconds", type=float, default=60.0, metavar="S", help="how long idle pools are watched (default: 60)"
    )
    parser.add_argument(
        "--soak-tasks", type=int, default=1_000_000, metavar="T", help="tasks of a soak (default: %(default)s)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="F", help="factor on tasks and payloads; below 1 to try it out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's values there")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}: there are {', '.join(BENCHMARKS)}")
    if min(arguments.n, arguments.rounds, arguments.scale, arguments.idle_seconds, arguments.soak_tasks) <= 0:
        parser.error("numbers must be above 0")
    return arguments


def main() -> None:
    arguments = _arguments()
    settings = Settings(arguments.n, arguments.scale, arguments.idle_seconds, arguments.soak_tasks)
    described = machine.describe()
    progress = Console(stderr=True)
    done: dict[str, tuple[Benchmark, list[Round]]] = {}
    for name in arguments.names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        rounds = min(arguments.rounds, benchmark.rounds_max or arguments.rounds)
        taken = []
        for number in range(1, rounds + 1):
            progress.print(f"{name}: round {number} of {rounds}", highlight=False)
            taken.append(benchmark.take_round(settings))
        done[name] = (benchmark, taken)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH_MIN)
    report.show(described, settings, done, console)
    if arguments.json:
        results = {name: report.as_json(benchmark, taken) for name, (benchmark, taken) in done.items()}
        whole = {"machine": described, "settings": asdict(settings), "benchmarks": results}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
