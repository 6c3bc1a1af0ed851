"""`python -m benchmarks.profile_tasks`: where the time of a task goes, process by process.

For each process that a task passes through: CPU time per task (user code and kernel together, all threads); the time it
was ready and had no core; and how often it slept. The sum of the CPU times is what a task costs; the largest of them
bounds the throughput once every process has a core of its own.
"""

import argparse
import time
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from mpworker import ProcessWorker
from mpworker.bench.measure import spread
from mpworker.bench.processes import Usage, own_usage, usage_of
from mpworker.bench.tasks import noop

Roles = dict[str, Usage]


def gather(worker: ProcessWorker, tasks: int) -> None:
    for future in [worker.submit(noop) for _ in range(tasks)]:
        future.result()


def roundtrip(worker: ProcessWorker, tasks: int) -> None:
    for _ in range(tasks):
        worker.submit(noop).result()


def mapped(worker: ProcessWorker, tasks: int) -> None:
    for _ in worker.map(noop, range(tasks)):
        pass


WORKLOADS: dict[str, tuple[Callable[[ProcessWorker, int], None], int]] = {
    "submit": (gather, 20_000),
    "roundtrip": (roundtrip, 3_000),
    "map": (mapped, 1_000_000),
}


def usage_by_role(worker: ProcessWorker) -> Roles:
    """What each role has used since its start; of the client, the calling thread."""
    processes = worker.processes()
    children = Usage()
    for child in processes["children"]:
        children += usage_of(child["pid"])
    return {"supervisor": usage_of(processes["supervisor"]), "children": children, "client": own_usage()}


def profile(name: str, n: int, rounds: int, scale: float) -> tuple[dict[str, list[Usage]], list[float], int]:
    """The usage of each role and the seconds taken, round by round, and how many tasks a round had."""
    run, full = WORKLOADS[name]
    tasks = max(4, int(full * scale))
    found: dict[str, list[Usage]] = {}
    seconds = []
    with ProcessWorker(n) as worker:
        run(worker, max(4, tasks // 10))
        for _ in range(rounds):
            before = usage_by_role(worker)
            begun = time.perf_counter()
            run(worker, tasks)
            seconds.append(time.perf_counter() - begun)
            for role, usage in usage_by_role(worker).items():
                found.setdefault(role, []).append(usage - before[role])
    return found, seconds, tasks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_tasks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("-n", type=int, default=2, metavar="N", help="workers (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, metavar="R", help="rounds (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="factor on the number of tasks")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in WORKLOADS:
            parser.error(f"no workload {name!r}: there are {', '.join(WORKLOADS)}")
    table = Table("workload", "process", box=box.SIMPLE, pad_edge=False)
    for heading in ("CPU us/task", "quartiles", "no core us/task", "sleeps/task"):
        table.add_column(heading, justify="right")
    for name in arguments.names or WORKLOADS:
        found, seconds, tasks = profile(name, arguments.n, arguments.rounds, arguments.scale)
        rate = spread([tasks / each for each in seconds]).median
        labels = iter((name, f"  {rate:,.0f} /s"))
        for role, usages in found.items():
            cpu = spread([usage.cpu_ns / 1e3 / tasks for usage in usages])
            queued = spread([usage.queued_ns / 1e3 / tasks for usage in usages])
            sleeps = spread([usage.sleeps / tasks for usage in usages])
            table.add_row(
                next(labels, ""),
                role,
                f"{cpu.median:.3f}",
                f"{cpu.low:.3f} - {cpu.high:.3f}",
                f"{queued.median:.3f}",
                f"{sleeps.median:.4f}",
            )
        table.add_section()
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 110)
    console.print(table)


if __name__ == "__main__":
    main()
