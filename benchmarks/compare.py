"""`python -m benchmarks.compare OTHER`: this checkout against another one, in interleaved rounds.

OTHER is a checkout of another commit, in which the C module is built (`python setup.py build_ext --inplace`). Each
round starts a fresh interpreter for either, which submits no-op tasks and gathers their results. Shown are the CPU time
of a task, process by process, and tasks a second; and the ratios, this to the other, taken round by round.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from mpworker.bench import machine, tables
from mpworker.bench.measure import Benchmark, Measure, Settings, Values
from mpworker.bench.rounds import Taken
from mpworker.bench.run import Run

ROOT = Path(__file__).parent.parent
SECONDS_MAX = 600.0
TASKS = 40_000
WARM_UP = 4_000
THIS, OTHER = "this", "the other"

# Of both nothing is used but what they have had from the beginning; a builtin is the same function in both.
SCRIPT = """
import json, os, time
from pathlib import Path
import mpworker

def cpu_ns(pid):
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat"))

def used(worker):
    there = worker.processes()
    children = sum(cpu_ns(child["pid"]) for child in there["children"])
    return {"client": cpu_ns(os.getpid()), "supervisor": cpu_ns(there["supervisor"]), "children": children}

def gather(tasks):
    for future in [worker.submit(bool) for _ in range(tasks)]:
        future.result()

with mpworker.ProcessWorker(%(n)d) as worker:
    gather(%(warm_up)d)
    before, begun = used(worker), time.perf_counter()
    gather(%(tasks)d)
    seconds = time.perf_counter() - begun
    found = {role: (ns - before[role]) / 1e3 / %(tasks)d for role, ns in used(worker).items()}
print(json.dumps({"from": mpworker.__file__, "all": sum(found.values())} | found | {"tasks": %(tasks)d / seconds}))
"""

MEASURES = (
    *(Measure(role, "us") for role in ("all", "client", "supervisor", "children")),
    Measure("tasks", "/s", higher_is_better=True),
)


def measure(checkout: Path, settings: Settings) -> Values:
    """One round of one checkout."""
    script = SCRIPT % {"n": settings.n, "warm_up": settings.count(WARM_UP), "tasks": settings.count(TASKS)}
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=checkout,
        env={"PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        timeout=SECONDS_MAX,
        check=True,
    )
    values: Values = json.loads(run.stdout)
    package = Path(str(values.pop("from")))
    if not package.is_relative_to(checkout):
        raise SystemExit(f"{checkout} was to be measured, and {package} was imported")
    return values


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("other", type=Path, metavar="OTHER", help="another checkout")
    parser.add_argument("-n", type=int, default=2, metavar="N", help="workers (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, metavar="R", help="rounds (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="factor on the number of tasks")
    arguments = parser.parse_args()
    checkouts = {THIS: ROOT, OTHER: arguments.other.resolve()}
    if not (checkouts[OTHER] / "mpworker").is_dir():
        parser.error(f"{arguments.other} is no checkout of mpworker")
    settings = Settings(arguments.n, arguments.scale)
    described = machine.describe()
    benchmark = Benchmark("CPU time of a no-op task, and throughput", MEASURES, base=OTHER)
    rounds = [
        {name: measure(checkout, settings) for name, checkout in checkouts.items()} for _ in range(arguments.rounds)
    ]
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 110)
    tables.show(Run(described, settings, {"compare": Taken(benchmark, rounds)}), console)


if __name__ == "__main__":
    main()
