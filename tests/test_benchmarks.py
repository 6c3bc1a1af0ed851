"""The benchmarks run, and say what they measured. Nothing here depends on how fast anything is."""

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import simulated
from benchmarks.fragmentation import HOURS
from benchmarks.fragmentation import KINDS as KINDS_OF_GAPS
from benchmarks.hops import PARTS, STEPS
from benchmarks.queued import KINDS
from mpworker.bench import backlog


def curves(xs: Iterable[int], said: str) -> dict[str, str]:
    """The measures of the benchmarks in virtual time."""
    points = {f"{kind}, {x:,} {said}": unit for kind, unit in simulated.KINDS.items() for x in xs}
    return points | {f"{kind}, growth": "x" for kind in simulated.KINDS}


ROOT = Path(__file__).parent.parent
MEASURES = {
    "features": {"all": "us", "client": "us", "supervisor": "us", "children": "us"},
    "queued": {"memory": "B"},
    "depth": {"supervisor": "us", "time": "us"},
    "decide": {"cpu": "ns", "tasks": "/s"},
    "fragmentation": {f"{kind}, hour {hour}": unit for kind, unit in KINDS_OF_GAPS.items() for hour in HOURS}
    | {"time": "ns"},
    "hops": dict.fromkeys(("sum", *STEPS, *PARTS), "ns"),
    "items": {"item": "ns"},
    "many": {"submit": "us", "tasks": "/s"},
    "simulated-children": curves(simulated.CHILDREN, "children"),
    "simulated-backlog": curves(backlog.SIZES, "wait"),
    "soak": {"supervisor": "kB", "client": "kB", "children": "kB"},
}
# What mpworker is compared with where it is compared with itself.
BASES = {
    "features": "none",
    "queued": "submit",
    "depth": "1,000 wait",
    "decide": "no-op",
    "fragmentation": "half full",
    "hops": "no-op",
    "items": "list(map())",
    "many": "submit",
    "simulated-children": simulated.FIFO,
    "simulated-backlog": simulated.FIFO,
    "soak": "default",
}
ONCE = ("queued", "depth", "fragmentation", "soak")


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    done = run("benchmarks", *MEASURES, "--scale", 0.001, "--rounds", 2, "--json", file)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_every_benchmark_measures_every_contender(tiny: tuple[str, dict[str, Any]]) -> None:
    found = tiny[1]["benchmarks"]
    assert {
        name: {measure: each["unit"] for measure, each in benchmark["measures"].items()}
        for name, benchmark in found.items()
    } == MEASURES
    for name, benchmark in found.items():
        assert len(benchmark["rounds"]) == (1 if name in ONCE else 2)
        for taken in benchmark["rounds"]:
            assert next(iter(taken)) == BASES[name]
            assert len(taken) > 1
            for values in taken.values():
                assert set(values) == set(MEASURES[name])
                assert all(map(math.isfinite, values.values()))
                # Of so few tasks, the pages that a process has more may be fewer than those it has given back.
                assert name in ("queued", "soak") or min(values.values()) >= 0


def test_ratios_are_taken_within_a_round(tiny: tuple[str, dict[str, Any]]) -> None:
    for title, benchmark in tiny[1]["benchmarks"].items():
        for name, measure in benchmark["measures"].items():
            assert BASES[title] not in measure["ratios"]
            for other, ratio in measure["ratios"].items():
                pair = (other, BASES[title])
                # So few tasks may be over before a clock of the kernel's moves: such a round says nothing.
                rounds = [taken for taken in benchmark["rounds"] if taken[pair[1]][name]]
                ratios = [taken[pair[0]][name] / taken[pair[1]][name] for taken in rounds]
                assert ratio["low"] <= ratio["median"] <= ratio["high"]
                assert ratio["median"] == pytest.approx(sum(ratios) / len(ratios))  # of two values, or one


def test_the_machine_and_the_goals_are_told(tiny: tuple[str, dict[str, Any]]) -> None:
    table, results = tiny
    assert set(results["machine"]) == {
        "architecture", "cores", "cpu", "kernel", "load", "memory", "mpworker", "peers", "python"
    }  # fmt: skip
    assert results["settings"] == {"n": 2, "scale": 0.001, "idle_seconds": 60.0}
    assert {(goal["benchmark"], goal["text"]) for goal in results["goals"]} == {
        ("queued", f"memory with {kind}: at most 500 B") for kind in KINDS
    } | {("fragmentation", "refused, hour 24 with 80 % full: at most 1 %")} | {
        ("depth", f"{figure} with {order}1,000,000 wait: at most 1.5 times {order}1,000 wait's")
        for figure in ("supervisor", "time")
        for order in ("", "in order, ")
    } | {
        (benchmark, f"{kind}, growth with {contender}: at most 1.5 x")
        for benchmark, contenders in (
            ("simulated-children", simulated.OPTIONS),
            ("simulated-backlog", (simulated.FIFO, simulated.IN_ORDER)),
        )
        for kind in simulated.KINDS
        for contender in contenders
    }
    assert table.count("at most 500 B") == len(KINDS)
    assert results["machine"]["kernel"] in table
    for name, measures in MEASURES.items():
        assert all(f"{name}: {measure} " in table for measure in measures)


@pytest.mark.parametrize("module", ["benchmarks", "benchmarks.profile_tasks"])
def test_an_unknown_name_is_an_error_of_usage(module: str) -> None:
    done = run(module, "subnit")
    assert done.returncode == 2
    assert "'subnit': there are submit, roundtrip, map" in done.stderr


def test_the_profile_shows_each_process_of_a_task() -> None:
    done = run("benchmarks.profile_tasks", "--scale", 0.001, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in words if line and line[0] in ("submit", "roundtrip", "map")] == [
        "submit",
        "roundtrip",
        "map",
    ]
    for role in ("supervisor", "children", "client"):
        assert sum(role in line for line in words) == 3


def test_this_checkout_is_compared_with_another() -> None:
    done = run("benchmarks.compare", ROOT, "--scale", 0.001, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    for measure in ("all", "client", "supervisor", "children", "tasks"):
        assert f"compare: {measure} " in done.stdout


def test_what_is_no_checkout_is_an_error_of_usage(tmp_path: Path) -> None:
    done = run("benchmarks.compare", tmp_path)
    assert done.returncode == 2
    assert "is no checkout of mpworker" in done.stderr


def test_how_often_an_order_of_queues_is_found_is_told() -> None:
    done = run("benchmarks.turns", "--sets", 20)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["2 to 8", "2 to 8", "12", "30", "100"]
    assert [row[2] for row in rows] == ["20", "20", "1", "1", "1"]
    assert rows[-1][3:] == ["1", rows[-1][4]]  # a hundred queues of a hundred weights: none is found
    assert rows[-1][4].endswith(" x")
