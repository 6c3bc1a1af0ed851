"""``mpworker bench`` as a user runs it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mpworker.bench import rounds
from mpworker.bench.rounds import Turn
from mpworker.bench.run import SCHEMA
from mpworker.cli import app
from mpworker.cli.errors import ExitCode

ROOT = Path(__file__).parent.parent
FEW = ("--scale", "0.001", "--rounds", "2", "--peers", "multiprocessing.Pool,ray")

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run it; its exit code, and what it says."""
    monkeypatch.chdir(ROOT)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = app.run(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_pools_are_compared_and_the_run_is_kept(bench: Bench, tmp_path: Path) -> None:
    old, page = tmp_path / "old.json", tmp_path / "page.html"
    code, out, err = bench("submit", *FEW, "--json", old, "--html", page)
    assert code == ExitCode.OK
    assert "submit: round 2 of 2, multiprocessing.Pool\n" in err
    assert "Not installed: ray." in out
    assert "tasks: at least 7 times multiprocessing.Pool's" in out
    assert "not measured" in out  # of ProcessPoolExecutor
    whole = json.loads(old.read_text())
    assert whole["schema"] == SCHEMA
    assert [set(each) for each in whole["benchmarks"]["submit"]["rounds"]] == [{"mpworker", "multiprocessing.Pool"}] * 2
    assert all(
        each["mpworker"]["tasks"] > 0 < each["mpworker"]["cpu"] for each in whole["benchmarks"]["submit"]["rounds"]
    )
    assert len(whole["goals"]) == 2
    assert "<svg" in page.read_text()

    code, out, err = bench("submit", *FEW, "-q", "--compare", old)
    assert (code, err) == (ExitCode.OK, "")
    assert "0 figures and ratios compared, 0 have moved beyond noise; 6 have too few rounds to tell." in out


def test_what_has_moved_is_shown(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = 100.0

    def launch(_place: str, contenders: list[str], *_: object) -> list[Turn]:
        return [Turn({each: {"tasks": speed if each == "mpworker" else 10.0, "cpu": 1.0}}) for each in contenders]

    monkeypatch.setattr(rounds.take, "__defaults__", (launch,))
    old = tmp_path / "old.json"
    assert bench("submit", "--json", old)[0] == ExitCode.OK
    speed = 300.0
    page = tmp_path / "page.html"
    _, out, _ = bench("submit", "--compare", old, "--html", page)
    assert "+200% better" in out
    assert "+200% better" in page.read_text()
    assert "mpworker / multiprocessing.Pool" in out


def test_a_failure_of_the_pool_is_an_exit_code(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(_place: str, contenders: list[str], *_: object) -> list[Turn]:
        return [
            Turn(failed="exit code 1: no") if each == broken else Turn({each: {"tasks": 1.0}}) for each in contenders
        ]

    monkeypatch.setattr(rounds.take, "__defaults__", (launch,))
    for broken, expected in (("mpworker", ExitCode.SOME_FAILED), ("ProcessPoolExecutor", ExitCode.OK)):
        code, out, _ = bench("submit", "--peers", "ProcessPoolExecutor", "--rounds", 1)
        assert code == expected
        assert f"{broken} FAILED: exit code 1: no" in out


def test_what_was_measured_before_ctrl_c_is_told(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter([Turn({"mpworker": {"tasks": 7.0}})])

    def launch(*_: object) -> list[Turn]:
        for turn in turns:
            return [turn]
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds.take, "__defaults__", (launch,))
    path = tmp_path / "run.json"
    code, out, _ = bench("submit", "map", "--peers", "", "--json", path)
    assert code == ExitCode.INTERRUPTED
    assert "submit: tasks" in out
    assert json.loads(path.read_text())["benchmarks"]["submit"]["rounds"] == [{"mpworker": {"tasks": 7.0}}]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("subnit",), "no benchmark 'subnit': there are submit, roundtrip, "),
        (("--peers", "luky"), "peers must be among ProcessPoolExecutor, multiprocessing.Pool, loky"),
        (("--rounds", "0"), "rounds must be at least 1, not 0"),
        (("-n", "0"), "workers must be at least 1, not 0"),
        (("-n", "1000"), "workers must be at most 256, not 1000"),
        (("--json", "x", "--html", "x"), "--json and --html are the same file: x"),
        (("--scale", "0"), "scale must be at least 1e-06, not 0.0"),
        (("--idle-seconds", "-1"), "idle-seconds must be at least 0.001, not -1.0"),
        (("--compare", "nowhere.json"), "the run nowhere.json cannot be read: No such file or directory"),
        (("--json", "/nowhere/r.json"), "/nowhere/r.json: No such file or directory"),
        (("--html", "/nowhere/r.html"), "/nowhere/r.html: No such file or directory"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_before_anything_is_measured(
    bench: Bench, arguments: tuple[str, ...], says: str
) -> None:
    code, out, err = bench(*arguments)
    assert code == ExitCode.USAGE
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_a_quick_look_is_a_tenth_in_three_rounds(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds.take, "__defaults__", (lambda _place, contenders, *_: [Turn() for _ in contenders],))
    path = tmp_path / "run.json"
    for arguments, count, scale, idle in (
        (("--quick",), 3, 0.1, 5.0),
        (("--quick", "--scale", 2), 3, 2.0, 5.0),
        ((), 9, 1.0, 60.0),
    ):
        bench("submit", *arguments, "--json", path)
        whole = json.loads(path.read_text())
        assert len(whole["benchmarks"]["submit"]["rounds"]) == count
        assert whole["settings"] == {"n": 2, "scale": scale, "idle_seconds": idle}


def test_help_does_not_load_a_peer() -> None:
    script = """
import sys
from mpworker.cli.app import run
run(["bench", "--help"])
print("loaded:", sorted({"joblib", "loky", "multiprocessing.pool", "numpy"}.intersection(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "loaded: []" in done.stdout
    assert "submit, roundtrip, map" in " ".join(done.stdout.split())
