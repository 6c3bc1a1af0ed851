"""``mpworker plan`` as a user runs it."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpworker import ProcessWorker
from mpworker.cli import app
from mpworker.cli.errors import ExitCode

LOAD = ("--arrivals", "10", "--service", "exponential:0.2", "--tasks", "300", "--replications", "1", "--cores", "8")


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run it; its exit code, and what it says."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = app.run(["plan", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_described_load_is_planned(plan: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, err = plan(*LOAD, "--p95", "1.0", "--html", tmp_path / "r.html", "--json", tmp_path / "r.json")
    assert (code, err) == (ExitCode.OK, "")
    whole = json.loads((tmp_path / "r.json").read_text())
    assert whole["met"]
    assert f"n={whole['n']} children meet p95 <= 1 s" in out
    assert "worker = ProcessWorker(" in out
    assert "10 tasks/s at random times, each computes exponential:0.2" in out
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_json_takes_the_place_of_the_table(plan: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = plan("--batch", 20, "--service", "constant:1", "--replications", 0, "--json", "-", "-n", "3-5")
    assert code == ExitCode.OK
    whole = json.loads(out)
    assert [point["n"] for point in whole["points"]] == [3, 4, 5]
    assert whole["load"].startswith("Described: 20 tasks at once")


@pytest.mark.parametrize("target", [("--p95", "0.5"), ("--p95", "0.0001"), ()])
def test_side_by_side_they_find_what_one_by_one_they_find(
    plan: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, target: tuple[str, ...]
) -> None:
    found = []
    for cores in (1, 2):
        monkeypatch.setattr("mpworker.cli.plan.available_cores", lambda cores=cores: cores)
        found.append(plan(*LOAD, *target, "-n", "1-4", "--json", "-"))
    assert found[0] == found[1]


def test_a_target_out_of_reach_is_an_exit_code(plan: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = plan(*LOAD, "--p95", "0.0001", "-n", "1-2")
    assert code == ExitCode.SOME_FAILED
    assert "No number of children up to 2 meets p95 <= 0.0001 s" in out


def test_a_recorded_load_is_planned(plan: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with ProcessWorker(n=2, record=path, rate=400.0, burst=2) as w:
        for future in [w.options(queue="q").submit(time.sleep, 0.002) for _ in range(50)]:
            future.result()
    code, out, err = plan(path, "--json", "-", "--replications", 1, "-n", "1-3", "--memory", 1 << 20)
    assert code == ExitCode.OK
    whole = json.loads(out)
    assert err.splitlines() == [each for each in whole["sureness"] if each.startswith(("Replayed", "THAT IS MORE"))]
    assert whole["load"] == f"Recorded: {path}, 50 tasks"
    assert [each["figure"] for each in whole["check"]] == ["p50", "p95"]
    assert "rate=400.0" in whole["configuration"]
    assert whole["points"][1]["memory"] < (15 << 20) + (3 << 20)
    _, out, _ = plan(path, "--replications", 0, "-n", 2, "--rate", 9, "--burst", 4)
    assert "rate=9.0" in out
    assert "Replayed with the recorded number of children" in out
    assert "the first as in the trace" in out


def test_no_output_takes_the_place_of_the_trace(plan: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("a trace\n")
    link = tmp_path / "link"
    link.symlink_to(path)
    for arguments, says in (
        ((path, "--html", path), "TRACE and --html are the same file"),
        ((path, "--json", link), "TRACE and --json are the same file"),
        ((*LOAD, "--json", "x", "--html", "./x"), "--json and --html are the same file"),
    ):
        code, _, err = plan(*arguments)
        assert code == ExitCode.USAGE
        assert says in err
    assert path.read_text() == "a trace\n"


def test_progress_is_told_also_without_a_terminal(
    plan: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpworker.cli.plan.LINE_EVERY", 0.0)
    _, _, err = plan("--batch", 20, "--service", "constant:1", "--replications", 0, "-n", "3-4")
    assert err.splitlines()[0] == "1 simulations, 0 s"
    _, _, err = plan("--batch", 20, "--service", "constant:1", "--replications", 0, "-n", "3-4", "-q")
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "a load is a TRACE, or --service and one of --arrivals and --batch"),
        (("--arrivals", "1"), "a load is a TRACE, or --service and one of --arrivals and --batch"),
        (("--service", "constant:1"), "a load is a TRACE, or --service and one of --arrivals and --batch"),
        (("--service", "constant:1", "--arrivals", "1", "--batch", "1"), "one of --arrivals and --batch"),
        (("--service", "constant:1", "--batch", "1", "--tasks", "200"), "--tasks is for --arrivals"),
        (("--service", "constant:1", "--arrivals", "-5"), "the arrival rate must be at least 1e-06, not -5.0"),
        (("--service", "soon", "--batch", "1"), "service 'soon' must be constant:SECONDS"),
        (("trace", "--batch", "1"), "--batch describes a load, and a trace was given"),
        (("trace", "--retries", "1"), "--retries describes a load, and a trace was given"),
        (("nowhere.jsonl",), "the trace nowhere.jsonl cannot be read: No such file or directory"),
        ((*LOAD, "--p95", "0"), "p95 must be greater than 0 s, not 0.0"),
        ((*LOAD, "--misses", "2"), "misses must be at most 1, not 2.0"),
        ((*LOAD, "--misses", "0.1"), "--misses is for tasks with a deadline, and none has one"),
        ((*LOAD, "-n", "0"), "children must be at least 1, not 0"),
        ((*LOAD, "-n", "4-2"), "children must be LOW-HIGH, not '4-2': 4 is more than 2"),
        ((*LOAD, "-n", "1-500"), "children must be at most 128, not 500"),
        ((*LOAD, "-n", "many"), "children must be a number or LOW-HIGH, not 'many'"),
        ((*LOAD, "--cores", "0"), "cores must be at least 0.01, not 0.0"),
        ((*LOAD, "--rate", "-1"), "rate must be at least"),
        ((*LOAD, "--burst", "3"), "burst=3 is for a rate, which is not given"),
        ((*LOAD, "--replications", "-1"), "replications must be at least 0, not -1"),
        ((*LOAD, "--memory", "-1"), "memory must be at least 0, not -1"),
        ((*LOAD, "-n", "1", "--html", "/nowhere/r.html"), "/nowhere/r.html: No such file or directory"),
        ((*LOAD, "-n", "1", "--json", "/nowhere/r.json"), "/nowhere/r.json: No such file or directory"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    plan: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = plan(*arguments)
    assert code == ExitCode.USAGE
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
