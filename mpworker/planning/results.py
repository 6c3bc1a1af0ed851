"""A plan as plain data, as a configuration, and as a report in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

from mpworker.planning.load import Pool
from mpworker.planning.simulation import Outcome
from mpworker.planning.study import Plan, Point
from mpworker.report import Document, LinePlot, Series
from mpworker.supervisor.registry import TaskOptions

# Measured on Linux 6.18, CPython 3.11: proportional set sizes of a pool that has run no-op tasks.
BASE_BYTES: Final = 15 << 20  # supervisor and nursery
CHILD_BYTES: Final = 6 << 20
TASK_BYTES: Final = 600  # that waits, in client and supervisor together: `docs/defaults.md`, max_pending
FAR_OFF: Final = 0.2  # what the planner promises of its p95: see docs/planning.md
_PENDING_MIN: Final = 1_000

HEADINGS: Final = (
    "children", "p50, s", "p95, s", "p95 in replications", "p99, s", "missed", "tasks/s", "children busy", "cores busy",
    "waiting: mean", "most", "memory", "targets met",
)  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """A plan and what it was made of.

    Attributes:
        plan: The plan.
        about: What the load is, in a line.
        notes: What is to be known of it.
        child_bytes: Memory of one child.
        check: What the same model says of the recorded pool, and what was recorded: (figure, said, recorded).
    """

    plan: Plan
    about: str
    notes: list[str] = field(default_factory=list)
    child_bytes: int = CHILD_BYTES
    check: list[tuple[str, float, float]] = field(default_factory=list)


def memory(outcome: Outcome, child_bytes: int, call_bytes: float) -> int:
    """Bytes that a pool needs: its processes, and what waits at the most."""
    return int(BASE_BYTES + outcome.n * child_bytes + outcome.depth_max * (TASK_BYTES + call_bytes))


def _call_bytes(plan: Plan) -> float:
    return sum(job.size for job in plan.load.jobs) / max(1, len(plan.load.jobs))


def row(point: Point, findings: Findings) -> list[str]:
    """A row of the table with HEADINGS."""
    outcome = point.outcome
    low, high = point.spread(lambda each: each.latency(0.95))
    met = f"{point.met} of {point.runs}" if findings.plan.targets else ""
    return [
        f"{point.n}{' (overloaded)' if point.overloaded else ''}",
        seconds(outcome.latency(0.5)),
        seconds(outcome.latency(0.95)),
        f"{seconds(low)} - {seconds(high)}",
        seconds(outcome.latency(0.99)),
        f"{outcome.misses:.2%}" if outcome.with_deadline else "",
        f"{outcome.throughput:.4g}",
        f"{outcome.utilisation:.0%}",
        f"{outcome.cores_used:.0%}",
        f"{outcome.depth_mean:.3g}",
        f"{outcome.depth_max:,}",
        size(memory(outcome, findings.child_bytes, _call_bytes(findings.plan))),
        met,
    ]


def seconds(value: float) -> str:
    """Seconds, short."""
    return f"{value:.3g}" if isfinite(value) else "-"


def size(count: float) -> str:
    """Bytes, short."""
    return f"{count / (1 << 20):,.0f} MiB"


def answer(findings: Findings) -> list[str]:
    """The answer in sentences."""
    plan = findings.plan
    point = plan.point
    low, high = point.spread(lambda each: each.latency(0.95))
    said = []
    most = f"({seconds(low)} to {seconds(high)} s in {point.runs} simulations)"
    reach = f"p95 {seconds(point.outcome.latency(0.95))} s {most}"
    wanted = _wanted(plan)
    if not plan.targets:
        said.append(f"No target was given. With n={point.n} children: {reach}; more of them gain less than 10 %.")
    elif plan.met:
        said.append(f"n={point.n} children meet {wanted}: {reach}, met in {point.met} of {point.runs} simulations.")
    else:
        said.append(
            f"No number of children up to {max(plan.points)} meets {wanted} in all simulations on "
            f"{plan.pool.cores:g} cores. The best is n={point.n}: {reach}, met in {point.met} of {point.runs}."
        )
        if plan.with_cores is not None:
            said.append(f"With a core for each child, n={plan.with_cores} would.")
    if point.overloaded:
        said.append("That is overloaded: more work comes than is done, and what waits grows as long as that lasts.")
    if plan.node_load:
        machine = f"One machine with n={plan.node_n} on {plan.pool.cores:g} cores"
        within = "within the targets" if plan.targets else "at 80 % of its cores"
        nodes = ", ".join(f"{count} for {factor} times" for factor, count in plan.nodes.items())
        said.append(f"{machine} carries {plan.node_load:.2g} times this load {within}.")
        said.append(f"Machines that share it evenly, on paper: {nodes} the load.")
    return said


def _wanted(plan: Plan) -> str:
    parts = []
    if plan.targets.p95 is not None:
        parts.append(f"p95 <= {plan.targets.p95:g} s")
    if plan.targets.misses is not None:
        parts.append(f"at most {plan.targets.misses:.2%} of deadlines missed")
    return " and ".join(parts)


def checks(check: Sequence[tuple[str, float, float]]) -> list[str]:
    """How well the model tells what was recorded.

    Args:
        check: Names of figures, in seconds each: what the model says, and what was recorded.
    """
    said = [
        f"Replayed with the recorded number of children, the model says a {figure} of {model:.4g} s, and "
        f"{recorded:.4g} s was recorded: {model / recorded - 1:+.1%}."
        for figure, model, recorded in check
        if recorded
    ]
    if any(recorded and abs(model / recorded - 1) > FAR_OFF for _, model, recorded in check):
        said.append(
            f"THAT IS MORE THAN {FAR_OFF:.0%} OFF: this load does something that the model does not know (other "
            "programs on the machine while it was recorded, tasks that wait and do not compute). Do not plan by these "
            "figures before you know what."
        )
    return said


def sureness(findings: Findings) -> list[str]:
    """How far to trust it."""
    plan = findings.plan
    costs = plan.pool.costs
    chance = (
        f"The ranges are of {plan.point.runs} simulations, one of the load itself, the others of arrivals and service "
        "times of the same kind. They tell how much is chance, and not how good the model is."
    )
    own = (
        f"The pool's own time for a task is taken as {costs.wake * 1e6:.3g} us from one process to the next, "
        f"{2 * costs.decide * 1e6:.3g} us of the supervisor and {costs.call * 1e6:.3g} us of a child: {costs.source}."
    )
    limits = (
        "A call is taken to compute all of its time. Children that are more than the cores share them evenly. Caches, "
        "memory bandwidth, clock rates that fall under load and other programs are not in the model."
    )
    return [chance, *checks(findings.check), own, limits, *findings.notes]


def configuration(findings: Findings) -> str:
    """A program's beginning that makes this pool."""
    plan = findings.plan
    lines = [f"n={plan.chosen}"]
    options = _options(plan)
    if options.timeout is not None:
        lines.append(f"timeout={options.timeout!r}")
    if options.retries:
        lines.append(f"retries={options.retries}")
    if options.crash_retries != options.retries:
        lines.append(f"crash_retries={options.crash_retries}")
    pending = _PENDING_MIN
    while pending < 2 * plan.point.outcome.depth_max:
        pending *= 10
    lines.append(f"max_pending={pending:_}")
    if plan.pool.rate is not None:
        lines += [f"rate={plan.pool.rate!r}", f"burst={plan.pool.burst or plan.chosen}"]
    queues = _queues(plan.pool)
    if queues:
        lines.append(f"queues={queues}")
    names = "ProcessWorker, QueueOptions" if "QueueOptions" in queues else "ProcessWorker"
    short = f"# Does not meet {_wanted(plan)}.\n" if plan.targets and not plan.met else ""
    body = "\n".join(f"    {line}," for line in lines)
    return f"{short}from mpworker import {names}\n\nworker = ProcessWorker(\n{body}\n)\n"


def _options(plan: Plan) -> TaskOptions:
    """Those of all tasks, if they have the same ones."""
    found = {(job.options.timeout, job.options.retries, job.options.crash_retries) for job in plan.load.jobs}
    return TaskOptions(*found.pop()) if len(found) == 1 else TaskOptions()


def _queues(pool: Pool) -> str:
    said = []
    for name, limits in pool.queues.items():
        others = {key: getattr(limits, key) for key in ("max_running", "rate", "burst")}
        given = {key: value for key, value in others.items() if value is not None}
        if given:
            inner = ", ".join(f"{key}={value!r}" for key, value in {"weight": limits.weight, **given}.items())
            said.append(f"{name!r}: QueueOptions({inner})")
        elif name != "default" or limits.weight != 1:
            said.append(f"{name!r}: {limits.weight}")
    return "{" + ", ".join(said) + "}" if said else ""


def _plain(value: float) -> float | None:
    return round(value, 9) if isfinite(value) else None


def as_json(findings: Findings) -> dict[str, Any]:
    """All of it, as plain data."""
    plan = findings.plan
    points = []
    for point in plan.points.values():
        outcome = point.outcome
        low, high = point.spread(lambda each: each.latency(0.95))
        points.append(
            {
                "n": point.n,
                "latency": {name: _plain(outcome.latency(each)) for name, each in _QUANTILES.items()},
                "wait": {name: _plain(outcome.wait(each)) for name, each in _QUANTILES.items()},
                "p95_range": [_plain(low), _plain(high)],
                "missed": _plain(outcome.misses),
                "failed": _plain(outcome.failures),
                "throughput": _plain(outcome.throughput),
                "utilisation": _plain(outcome.utilisation),
                "cores_used": _plain(outcome.cores_used),
                "depth_mean": _plain(outcome.depth_mean),
                "depth_max": outcome.depth_max,
                "memory": memory(outcome, findings.child_bytes, _call_bytes(plan)),
                "met": point.met,
                "simulations": point.runs,
                "overloaded": point.overloaded,
            }
        )
    chosen = plan.point.outcome
    return {
        "load": findings.about,
        "targets": {"p95": plan.targets.p95, "misses": plan.targets.misses},
        "cores": plan.pool.cores,
        "n": plan.chosen,
        "met": plan.met,
        "with_a_core_each": plan.with_cores,
        "answer": answer(findings),
        "sureness": sureness(findings),
        "check": [{"figure": name, "model": model, "recorded": was} for name, model, was in findings.check],
        "points": points,
        "depth": {"seconds": _plain(chosen.seconds), "mean": [mean for mean, _ in chosen.depth],
                  "most": [most for _, most in chosen.depth]},
        "rates": [
            {"rate": each.rate, "burst": each.burst, "p95": _plain(each.outcome.latency(0.95)),
             "wait_p95": _plain(each.outcome.wait(0.95)), "depth_max": each.outcome.depth_max,
             "missed": _plain(each.outcome.misses), "starts_in_100_ms": each.busiest}
            for each in plan.rates
        ],
        "node_n": plan.node_n,
        "node_load": plan.node_load,
        "nodes": {str(factor): count for factor, count in plan.nodes.items()},
        "configuration": configuration(findings),
    }  # fmt: skip


_QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
RATE_HEADINGS: Final = ("rate, starts/s", "burst", "p95, s", "waiting: most", "missed", "starts in the busiest 0.1 s")


def rate_rows(plan: Plan) -> list[list[str]]:
    """The table of rates, with RATE_HEADINGS."""
    return [
        [
            "no limit" if each.rate is None else f"{each.rate:.4g}",
            "" if each.rate is None else str(each.burst),
            seconds(each.outcome.latency(0.95)),
            f"{each.outcome.depth_max:,}",
            f"{each.outcome.misses:.2%}" if each.outcome.with_deadline else "",
            f"{each.busiest:,}",
        ]
        for each in plan.rates
    ]


def document(findings: Findings) -> Document:
    """The report."""
    plan = findings.plan
    page = Document("Capacity plan")
    page.paragraph(findings.about)
    page.heading("How many children")
    for sentence in answer(findings):
        page.paragraph(sentence)
    page.table(HEADINGS, [row(point, findings) for point in plan.points.values()])
    points = list(plan.points.values())

    def curve(name: str, of: Any) -> Series:
        return Series(name, [(point.n, of(point)) for point in points])

    lines = [
        curve("p50", lambda point: point.outcome.latency(0.5)),
        curve("p95", lambda point: point.outcome.latency(0.95)),
        curve("p99", lambda point: point.outcome.latency(0.99)),
        curve("p95, least", lambda point: point.spread(lambda each: each.latency(0.95))[0]),
        curve("p95, most", lambda point: point.spread(lambda each: each.latency(0.95))[1]),
    ]
    if plan.targets.p95 is not None:
        lines.append(curve("target of p95", lambda _: plan.targets.p95))
    page.plot(LinePlot("From arrival to outcome, by children", "children", "s", lines, log_x=True, log_y=True))
    used = [
        curve("children busy", lambda point: 100 * point.outcome.utilisation),
        curve("cores busy", lambda point: 100 * point.outcome.cores_used),
    ]
    page.plot(LinePlot("Utilisation, by children", "children", "%", used, log_x=True))
    chosen = plan.point.outcome
    width = chosen.seconds / max(1, len(chosen.depth))
    depth = [
        Series("most", [(place * width, float(most)) for place, (_, most) in enumerate(chosen.depth)], steps=True),
        Series("mean", [(place * width, mean) for place, (mean, _) in enumerate(chosen.depth)], steps=True),
    ]
    page.plot(LinePlot(f"Tasks that wait, over time, with n={plan.chosen}", "s", "tasks", depth))
    page.heading("What a rate and a burst do")
    page.paragraph(f"With n={plan.chosen}; the rates are parts and multiples of the mean rate of arrivals.")
    page.table(RATE_HEADINGS, rate_rows(plan))
    page.heading("How sure this is")
    page.items(sureness(findings))
    page.heading("Configuration")
    page.code(configuration(findings))
    return page
