"""A whole run of benchmarks: what was measured, as plain data, and back from a file."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final

from mpworker.bench.measure import (
    Benchmark,
    Measure,
    Round,
    Settings,
    Spread,
    Target,
    contenders_of,
    ratios_of,
    spread,
    values_of,
)
from mpworker.bench.peers import MPWORKER
from mpworker.bench.rounds import Taken
from mpworker.errors import ConfigurationError

SCHEMA: Final = 1
"""Of the files: raised by whatever makes figures of an older one compare with nothing, or another shape."""


@dataclass(frozen=True)
class Goal:
    """What was to be reached, and what was.

    Attributes:
        benchmark: Which.
        text: The goal in words.
        found: Of all rounds that say something; None if there is none.
        unit: Of that; none for a ratio.
        met: None if there is nothing to tell by: no round has measured it, or what was measured is smaller than what
            the goal is for.
    """

    benchmark: str
    text: str
    found: Spread | None
    unit: str
    met: bool | None


@dataclass(frozen=True)
class Run:
    """All that was measured.

    Attributes:
        machine: What on.
        settings: How.
        taken: What, by benchmark.
        absent: Peers that are not installed.
        began: Seconds since 1970.
    """

    machine: dict[str, Any]
    settings: Settings
    taken: dict[str, Taken]
    absent: Sequence[str] = ()
    began: float = field(default_factory=time.time)

    def goals(self) -> list[Goal]:
        """Every goal of every benchmark that was run."""
        return [
            _goal(name, measure, target, taken.rounds, judged=self.settings.scale >= 1)
            for name, taken in self.taken.items()
            for measure in taken.benchmark.measures
            for target in measure.targets
        ]


def _goal(name: str, measure: Measure, target: Target, rounds: Sequence[Round], judged: bool) -> Goal:
    bound = f"{'at least' if measure.higher_is_better else 'at most'} {target.bound:g}"
    against = f" {measure.unit}" if target.against is None else f" times {target.against}'s"
    who = "" if target.contender == MPWORKER else f" with {target.contender}"
    text = f"{measure.name}{who}: {bound}{against}"
    reached = target.reached(rounds, measure.name)
    unit = measure.unit if target.against is None else ""
    if not reached:
        return Goal(name, text, None, unit, None)
    found = spread(reached)
    return Goal(name, text, found, unit, measure.meets(target, found.median) if judged else None)


def ratios(benchmark: Benchmark, measure: Measure, rounds: Sequence[Round]) -> dict[str, Spread]:
    """Mpworker's value divided by each other contender's, or each one's by the base's."""
    found = {}
    base = benchmark.base
    if measure.fact:
        return {}
    for other in contenders_of(rounds):
        if other != (base or MPWORKER):
            pair = (other, base) if base else (MPWORKER, other)
            values = ratios_of(rounds, *pair, measure.name)
            if values:
                found[other] = spread(values)
    return found


def as_json(run: Run) -> dict[str, Any]:
    """The whole run as plain data."""
    return {
        "schema": SCHEMA,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.began)),
        "machine": run.machine,
        "settings": asdict(run.settings),
        "absent": list(run.absent),
        "goals": [asdict(goal) for goal in run.goals()],
        "benchmarks": {name: _benchmark_as_json(taken) for name, taken in run.taken.items()},
    }


def _benchmark_as_json(taken: Taken) -> dict[str, Any]:
    return {
        "title": taken.benchmark.title,
        "base": taken.benchmark.base,
        "measures": {measure.name: _measure_as_json(taken, measure) for measure in taken.benchmark.measures},
        "rounds": taken.rounds,
        "failed": taken.failed,
        "not_offered": taken.not_offered,
    }


def _measure_as_json(taken: Taken, measure: Measure) -> dict[str, Any]:
    values = {name: values_of(taken.rounds, name, measure.name) for name in contenders_of(taken.rounds)}
    return {
        "unit": measure.unit,
        "higher_is_better": measure.higher_is_better,
        "values": {name: asdict(spread(each)) for name, each in values.items() if each},
        "ratios": {name: asdict(each) for name, each in ratios(taken.benchmark, measure, taken.rounds).items()},
    }


def write(run: Run, path: "str | PathLike[str]") -> None:
    """Write all of it to a file.

    Raises:
        OSError: It cannot be written.
    """
    Path(path).write_text(json.dumps(as_json(run), indent=1) + "\n", encoding="utf-8")


def read(path: "str | PathLike[str]") -> dict[str, Any]:
    """An earlier run, from its file.

    Raises:
        ConfigurationError: It cannot be read, is no run, or one of another schema.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"the run {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is no JSON: {error}") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema is None or not isinstance(found.get("benchmarks"), dict):
        raise ConfigurationError(f"{path} is no run of benchmarks, as --json writes it")
    if schema != SCHEMA:
        raise ConfigurationError(f"{path} has schema {schema!r}; this version compares with schema {SCHEMA} alone")
    whole: dict[str, Any] = found
    return whole
