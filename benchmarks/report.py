"""The results: as a table for people, and as JSON."""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Benchmark, Measure, Round, Settings, Spread, Target, ratios_of, spread, values_of
from benchmarks.pools import MPWORKER


def as_json(benchmark: Benchmark, rounds: list[Round]) -> dict[str, Any]:
    """Everything that was measured in one benchmark, and what it comes to."""
    return {
        "title": benchmark.title,
        "measures": {measure.name: _measure_as_json(benchmark, measure, rounds) for measure in benchmark.measures},
        "rounds": rounds,
    }


def _measure_as_json(benchmark: Benchmark, measure: Measure, rounds: list[Round]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "unit": measure.unit,
        "higher_is_better": measure.higher_is_better,
        "values": {name: asdict(spread(values_of(rounds, name, measure.name))) for name in rounds[0]},
        "ratios": {name: asdict(ratio) for name, ratio in _ratios(benchmark, measure, rounds).items()},
        "targets": [],
    }
    for target in measure.targets:
        reached = target.reached(rounds, measure.name)
        met = reached is not None and measure.meets(target, reached)
        found["targets"].append({**asdict(target), "met": met})
    return found


def _ratios(benchmark: Benchmark, measure: Measure, rounds: list[Round]) -> dict[str, Spread]:
    """mpworker's value divided by each other contender's, or each one's by the base's."""
    found = {}
    base = benchmark.base
    for other in rounds[0]:
        if other != (base or MPWORKER):
            pair = (other, base) if base else (MPWORKER, other)
            ratios = ratios_of(rounds, *pair, measure.name)
            if ratios:
                found[other] = spread(ratios)
    return found


def show(
    machine: dict[str, Any], settings: Settings, done: dict[str, tuple[Benchmark, list[Round]]], console: Console
) -> None:
    """Print the table."""
    console.print(
        f"{machine['cores']} cores ({machine['cpu']}, {machine['architecture']}), {machine['kernel']}, "
        f"{machine['python']}, mpworker {machine['mpworker']}; load {machine['load']} at the start; n={settings.n}",
        highlight=False,
    )
    if settings.scale != 1:
        console.print(f"Scaled by {settings.scale:g}: these are not the figures of a full run.", highlight=False)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("measure", "contender"):
        table.add_column(heading, no_wrap=True)
    for heading in ("median", "quartiles", "unit", "ratio", "quartiles"):
        table.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    for name, (benchmark, rounds) in done.items():
        for measure in benchmark.measures:
            _add_rows(table, name, benchmark, measure, rounds)
    console.print(table)
    for name, (benchmark, rounds) in done.items():
        console.print(f"{name}: {benchmark.title} ({len(rounds)} rounds)", highlight=False)
        for measure in benchmark.measures:
            for target in measure.targets:
                console.print(f"  target: {_target(measure, target, rounds)}", highlight=False)


def _add_rows(table: Table, name: str, benchmark: Benchmark, measure: Measure, rounds: list[Round]) -> None:
    ratios = _ratios(benchmark, measure, rounds)
    labels = iter((f"{name}: {measure.name}", f"  ({'higher' if measure.higher_is_better else 'lower'} is better)"))
    for contender in rounds[0]:
        value = spread(values_of(rounds, contender, measure.name))
        ratio = ratios.get(contender)
        table.add_row(
            next(labels, ""),
            contender,
            _number(value.median),
            _range(value),
            measure.unit,
            _ratio(ratio.median) if ratio else "",
            f"{_ratio(ratio.low)} - {_ratio(ratio.high)}" if ratio else "",
            end_section=contender == list(rounds[0])[-1],
        )


def _target(measure: Measure, target: Target, rounds: list[Round]) -> str:
    """What was aimed at and whether it was reached: for information, no run fails by it."""
    reached = target.reached(rounds, measure.name)
    bound = f"{'at least' if measure.higher_is_better else 'at most'} {target.bound:g}"
    unit = f" {measure.unit}" if target.against is None else f" of {target.against}'s"
    if reached is None:
        return f"{target.contender}: {measure.name} {bound}{unit}: not measured"
    verdict = "met" if measure.meets(target, reached) else "not met"
    said = _number(reached) if target.against is None else _ratio(reached)
    return f"{target.contender}: {measure.name} {bound}{unit}: {said}, {verdict}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _range(value: Spread) -> str:
    return f"{_number(value.low)} - {_number(value.high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
