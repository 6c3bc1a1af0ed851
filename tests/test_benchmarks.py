"""The benchmarks run, and say what they measured. Nothing here depends on how fast anything is."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CONTENDERS = ["mpworker", "ProcessPoolExecutor", "multiprocessing.Pool"]
MEASURES = {
    "submit": {"tasks": "/s"},
    "roundtrip": {"p50": "us", "p99": "us"},
    "map": {"items": "/s"},
    "start": {"first": "ms", "stop": "ms"},
    "grain": {"grain": "us"},
    "payload": {"in": "ms", "echo": "ms"},
    "idle": {"cpu": "ms/min"},
}


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    done = run("benchmarks", "--scale", 0.001, "--rounds", 2, "--idle-seconds", 0.05, "--json", file)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_every_benchmark_measures_every_contender(tiny: tuple[str, dict[str, Any]]) -> None:
    found = tiny[1]["benchmarks"]
    assert {
        name: {measure: each["unit"] for measure, each in benchmark["measures"].items()}
        for name, benchmark in found.items()
    } == MEASURES
    for name, benchmark in found.items():
        assert len(benchmark["rounds"]) == (1 if name == "idle" else 2)
        for taken in benchmark["rounds"]:
            assert list(taken) == CONTENDERS
            for values in taken.values():
                assert set(values) == set(MEASURES[name])
                assert all(math.isfinite(value) and value >= 0 for value in values.values())


def test_ratios_are_taken_within_a_round(tiny: tuple[str, dict[str, Any]]) -> None:
    for benchmark in tiny[1]["benchmarks"].values():
        for name, measure in benchmark["measures"].items():
            for other, ratio in measure["ratios"].items():
                ratios = [taken["mpworker"][name] / taken[other][name] for taken in benchmark["rounds"]]
                assert ratio["low"] <= ratio["median"] <= ratio["high"]
                assert ratio["median"] == pytest.approx(sum(ratios) / len(ratios))  # of two values


def test_the_machine_and_the_targets_are_told(tiny: tuple[str, dict[str, Any]]) -> None:
    table, results = tiny
    assert set(results["machine"]) == {"architecture", "cores", "cpu", "kernel", "load", "mpworker", "python"}
    assert results["settings"] == {"n": 2, "scale": 0.001, "idle_seconds": 0.05}
    targets = {
        (name, measure): (each["target"]["against"], each["target"]["ratio"])
        for name, benchmark in results["benchmarks"].items()
        for measure, each in benchmark["measures"].items()
        if "target" in each
    }
    assert targets == {
        ("submit", "tasks"): ("ProcessPoolExecutor", 8.0),
        ("roundtrip", "p50"): ("ProcessPoolExecutor", 0.5),
    }
    assert table.count("target: ") == 2
    assert results["machine"]["kernel"] in table
    for name, measures in MEASURES.items():
        assert all(f"{name}: {measure} " in table for measure in measures)


@pytest.mark.parametrize("module", ["benchmarks", "benchmarks.profile_tasks"])
def test_an_unknown_name_is_an_error_of_usage(module: str) -> None:
    done = run(module, "subnit")
    assert done.returncode == 2
    assert "'subnit': there are submit, " in done.stderr


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
