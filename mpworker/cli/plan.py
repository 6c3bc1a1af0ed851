"""``mpworker plan``: how many children a load needs, from a recorded trace or a described load."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from mpworker import ProcessWorker
from mpworker.cgroups import available_cores
from mpworker.checks import check_int, check_number, check_seconds
from mpworker.cli.errors import CommandError, ExitCode
from mpworker.cli.files import check_distinct
from mpworker.errors import ConfigurationError
from mpworker.planning import results
from mpworker.planning.described import Description, service
from mpworker.planning.load import Load, Pool
from mpworker.planning.simulation import Outcome, Simulation, quantile_of
from mpworker.planning.study import N_MAX, Case, Study, Targets, one_by_one, simulated
from mpworker.planning.trace import Trace, read
from mpworker.queues import check_limit

__all__ = ["plan_command"]

TABLE_WIDTH_MIN = 150
SIMULATIONS_MAX = 100
LINE_EVERY = 10.0  # seconds between lines of progress where there is no terminal


@click.command("plan")
@click.argument("trace", required=False)
@click.option("--arrivals", type=float, metavar="RATE", help="Tasks per second, at random times.")
@click.option("--batch", type=int, metavar="COUNT", help="Tasks that come all at once.")
@click.option("--service", "described", metavar="TIME", help="constant:S, exponential:MEAN, lognormal:MEAN,P95, "
              "uniform:LOW,HIGH or file:PATH with a number of seconds on each line.")  # fmt: skip
@click.option("--tasks", type=int, help="How many tasks arrive. [10000]")
@click.option("--failures", type=float, metavar="PART", help="Of the attempts, 0 to 1, that fail. [0]")
@click.option("--retries", type=int, help="Further attempts after one that failed or was late. [0]")
@click.option("--timeout", type=float, metavar="SECONDS", help="An attempt may run so long.")
@click.option("--deadline", type=float, metavar="SECONDS", help="A task is to have ended so long after its arrival.")
@click.option("--size", type=int, metavar="BYTES", help="Of one call. [0]")
@click.option("--p95", type=float, metavar="SECONDS", help="Target: 95 of 100 tasks take no longer, waiting included.")
@click.option("--misses", type=float, metavar="PART", help="Target: no greater part, 0 to 1, misses its deadline.")
@click.option("-n", "--children", metavar="LOW-HIGH", help=f"Look at each of these numbers. [some of 1-{N_MAX}]")
@click.option("--cores", type=float, help="Cores of the machine. [those of this one]")
@click.option("--rate", type=float, help="Starts per second of the pool. [as recorded; none]")
@click.option("--burst", type=int, help="Starts at once. [n]")
@click.option("--memory", type=int, metavar="BYTES", help="Of one child. [as recorded; 6 MiB]")
@click.option("--replications", type=int, default=4, show_default=True, help="More of them say better how sure it is.")
@click.option("--json", "json_path", metavar="FILE", help="All figures; - for standard output, in place of the table.")
@click.option("--html", "html_path", metavar="FILE", help="A report with plots, in one file.")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on standard error but errors.")
def plan_command(
    *,
    trace: str | None,
    arrivals: float | None,
    batch: int | None,
    described: str | None,
    tasks: int | None,
    failures: float | None,
    retries: int | None,
    timeout: float | None,
    deadline: float | None,
    size: int | None,
    p95: float | None,
    misses: float | None,
    children: str | None,
    cores: float | None,
    rate: float | None,
    burst: int | None,
    memory: int | None,
    replications: int,
    json_path: str | None,
    html_path: str | None,
    quiet: bool,
) -> ExitCode:
    """Say how many children a load needs: the pool's own scheduler carries it in virtual time.

    The load is either a TRACE, as ProcessWorker(record="trace.jsonl") writes it, or described: by --arrivals or
    --batch, and --service. Without a target (--p95, --misses) the number is told beyond which more gain little.

    What it can know, and what it cannot, is printed with the answer.
    """
    shape = {"tasks": tasks, "failures": failures, "retries": retries, "timeout": timeout, "deadline": deadline,
             "size": size}  # fmt: skip
    given = {name: value for name, value in shape.items() if value is not None}
    check_distinct({"TRACE": trace, "--json": json_path, "--html": html_path})
    targets = _targets(p95, misses)
    low, high, every = _bounds(children)
    check_int("replications", replications, 0, SIMULATIONS_MAX)
    limit = check_limit(rate, burst) if rate is not None or burst is not None else None
    cores = float(available_cores()) if cores is None else check_number("cores", cores, 0.01, 4096.0)
    if trace is None:
        described_load = _described(arrivals, batch, described, given)
        loads, about = described_load.load, _about(described_load)
        recorded = None
        pool = Pool(1, cores)
    else:
        others = {"--arrivals": arrivals, "--batch": batch, "--service": described}
        wrong = [name for name, value in others.items() if value is not None] + [f"--{name}" for name in given]
        if wrong:
            raise click.UsageError(f"{wrong[0]} describes a load, and a trace was given")
        recorded = read(trace)
        loads, about = recorded.load, f"Recorded: {trace}, {len(recorded.jobs):,} tasks"
        pool = Pool(1, cores, recorded.queues, recorded.rate, recorded.burst, costs=recorded.costs())
    if limit is not None:
        pool = replace(pool, rate=limit[0], burst=limit[1])
    if targets.misses is not None and not any(job.deadline is not None for job in loads(0).jobs):
        raise ConfigurationError("--misses is for tasks with a deadline, and none has one")
    child_bytes = check_int("memory", memory, 0, 1 << 50) if memory is not None else 0
    if recorded is not None and not child_bytes and recorded.memory:
        child_bytes = recorded.memory + results.CHILD_BYTES
    notes, check = ([], []) if recorded is None else (recorded.notes, _check(recorded))
    if not quiet:
        for text in results.checks(check):
            print(text, file=sys.stderr, flush=True)
    with ExitStack() as stack:
        workers = available_cores()
        simulate = one_by_one
        if workers > 1:
            simulate = partial(_side_by_side, stack.enter_context(ProcessWorker(workers)))
        plan = Study(loads, pool, targets, low, high, replications, every, _progress(quiet), simulate).plan()
    if not quiet and sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    findings = results.Findings(plan, about, notes, child_bytes or results.CHILD_BYTES, check)
    _write(findings, json_path, html_path)
    return ExitCode.OK if plan.met or not targets else ExitCode.SOME_FAILED


def _side_by_side(w: ProcessWorker, cases: Sequence[Case]) -> Iterable[Outcome]:
    """Simulate each, on all cores."""
    return one_by_one(cases) if len(cases) == 1 else w.map(simulated, cases, chunksize=1)


def _targets(p95: float | None, misses: float | None) -> Targets:
    check_seconds("p95", p95, optional=True)
    return Targets(p95, None if misses is None else check_number("misses", misses, 0.0, 1.0))


def _bounds(text: str | None) -> tuple[int, int, bool]:
    """The fewest and the most children, and whether each number between them is wanted."""
    if text is None:
        return 1, N_MAX, False
    low, dash, high = text.partition("-")
    try:
        numbers = int(low), int(high if dash else low)
    except ValueError:
        raise ConfigurationError(f"children must be a number or LOW-HIGH, not {text!r}") from None
    first = check_int("children", numbers[0], 1, N_MAX)
    if numbers[1] < first:
        raise ConfigurationError(f"children must be LOW-HIGH, not {text!r}: {first} is more than {numbers[1]}")
    return first, check_int("children", numbers[1], first, N_MAX), True


def _described(arrivals: float | None, batch: int | None, text: str | None, given: Mapping[str, object]) -> Description:
    if text is None or (arrivals is None) == (batch is None):
        raise click.UsageError("a load is a TRACE, or --service and one of --arrivals and --batch")
    if batch is not None and "tasks" in given:
        raise click.UsageError("--tasks is for --arrivals: a batch has its size")
    return Description(service(text), arrivals, batch, **given)  # type: ignore[arg-type]  # by name


def _about(load: Description) -> str:
    comes = f"{load.rate:g} tasks/s at random times" if load.rate is not None else f"{load.batch:,} tasks at once"
    return f"Described: {comes}, each computes {load.service.text} ({load.service.mean:.4g} s on average)"


def _check(trace: Trace) -> list[tuple[str, float, float]]:
    """The model's answer for the pool that was recorded, beside what was recorded."""
    if not trace.n or not trace.took:
        return []
    load = Load(trace.jobs)
    pool = Pool(trace.n, float(trace.cores or trace.n), trace.queues, trace.rate, trace.burst, costs=trace.costs())
    outcome = Simulation(load, pool).run()
    figures = {"p50": 0.5, "p95": 0.95}
    return [(name, outcome.latency(each), quantile_of(trace.took, each)) for name, each in figures.items()]


def _progress(quiet: bool) -> Callable[[], None]:
    count, began = 0, time.monotonic()
    next_line = began + LINE_EVERY

    def told() -> None:
        nonlocal count, next_line
        count += 1
        now = time.monotonic()
        text = f"{count} simulations, {now - began:.0f} s"
        if not quiet and sys.stderr.isatty():
            sys.stderr.write(f"\r{text}")
        elif not quiet and now >= next_line:
            print(text, file=sys.stderr, flush=True)
            next_line = now + LINE_EVERY

    return told


def _write(findings: results.Findings, json_path: str | None, html_path: str | None) -> None:
    try:
        if html_path is not None:
            results.document(findings).write(html_path)
        if json_path is not None:
            text = json.dumps(results.as_json(findings), indent=1) + "\n"
            if json_path == "-":
                print(text, end="")
                return
            Path(json_path).write_text(text)
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}", ExitCode.USAGE) from error
    _show(findings)


def _show(findings: results.Findings) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, TABLE_WIDTH_MIN)
    plan = findings.plan
    console.print(findings.about, markup=False)
    for headings, rows in (
        (results.HEADINGS, [results.row(point, findings) for point in plan.points.values()]),
        (results.RATE_HEADINGS, results.rate_rows(plan)),
    ):
        filled = [place for place in range(len(headings)) if any(row[place] for row in rows)]
        table = Table(box=box.SIMPLE, pad_edge=False)
        for place in filled:
            table.add_column(headings[place], justify="right")
        for row in rows:
            table.add_row(*(row[place] for place in filled))
        console.print(table)
    for text in (*results.answer(findings), "", *results.sureness(findings), "", results.configuration(findings)):
        console.print(text, markup=False, soft_wrap=True)
