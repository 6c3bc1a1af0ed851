"""`mpworker doctor`: what it looks at, and what it says where something is missing."""

import json
import resource
from collections.abc import Callable
from typing import Any

import pytest

from mpworker.cli import checkup
from mpworker.cli.app import run
from mpworker.cli.errors import ExitCode

NAMES = ["kernel", "python", "shared memory", "pidfds", "/proc", "cores", "memory", "descriptors", "processes"]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run_it(*arguments: str) -> tuple[int, str]:
        code = run(["doctor", *arguments])
        return code, capsys.readouterr().out

    return run_it


def test_a_machine_that_has_what_it_takes(doctor: Callable[..., tuple[int, str]]) -> None:
    code, out = doctor("-n", "1", "--json")
    found = json.loads(out)
    assert code == ExitCode.OK
    assert [each["name"] for each in found][: len(NAMES)] == NAMES
    assert found[-1]["name"] == "trial"
    assert found[-1]["found"].startswith("n=1: first result ")
    assert not [each for each in found if each["state"] == "bad"]
    assert all(each["advice"] for each in found if each["state"] == "note")


def test_it_is_a_table_for_people(doctor: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "find_spec", lambda name: None)
    code, out = doctor("-n", "1")
    assert code == ExitCode.OK
    assert "what to do" in out
    assert "mpworker[blas]" in out.replace("\n", "")  # and not taken for a style
    assert "trial" in out


def test_what_is_bad_is_the_exit_code(doctor: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("mpworker.worker.ProcessWorker", refuse)
    code, out = doctor("--json")
    assert code == ExitCode.SOME_FAILED
    trial = json.loads(out)[-1]
    assert (trial["name"], trial["state"], trial["found"]) == ("trial", "bad", "OSError: no more processes")


def test_a_wrong_number_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "-n", "0"]) == ExitCode.USAGE
    assert "processes must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("finding", "state", "says"),
    [
        (lambda: checkup._kernel("5.4.0-150-generic"), "bad", "Linux 5.6 or later"),
        (lambda: checkup._kernel("5.6.0"), "ok", ""),
        (lambda: checkup._kernel("6.18.44-fc-v657"), "ok", ""),
        (lambda: checkup._memory(64 << 20), "note", "15 MiB"),
        (lambda: checkup._memory(8 << 30), "ok", ""),
        (lambda: checkup._descriptors(100, 64), "bad", "ulimit -Hn"),
        (lambda: checkup._descriptors(2, 1024), "ok", ""),
        (lambda: checkup._descriptors(100, resource.RLIM_INFINITY), "ok", ""),
        (lambda: checkup._overcommit("2"), "note", "preloaded"),
        (lambda: checkup._overcommit("0"), "ok", ""),
    ],
    ids=range(10),
)
def test_each_need(finding: Callable[[], checkup.Finding], state: str, says: str) -> None:
    found = finding()
    assert found.state == state
    assert says in found.advice


def test_a_call_that_is_refused() -> None:
    def refused() -> None:
        raise PermissionError(1, "Operation not permitted")

    found = checkup._try("pidfds", refused, "pidfd_open", "allow it")
    assert (found.state, found.advice) == ("bad", "allow it")
    assert found.found == "pidfd_open: [Errno 1] Operation not permitted"


def test_a_bound_on_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "process_limit", lambda: 10)
    assert checkup._processes(3).state == "ok"
    found = checkup._processes(4)
    assert found.state == "bad"
    assert "10 (pids.max of the cgroup)" in found.found
    monkeypatch.setattr(checkup, "process_limit", lambda: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5, 5))
    assert "5 (RLIMIT_NPROC)" in checkup._processes(2).found


def test_fewer_cores_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(checkup.os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(checkup, "available_cores", lambda: 16)
    assert "affinity" in checkup._cores().advice
    monkeypatch.setattr(checkup, "available_cores", lambda: 4)
    assert "cpu.max" in checkup._cores().advice


def test_limits_that_children_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 30, 1 << 30))
    assert [(each.name, each.state) for each in checkup._bounds()] == [("address space", "note"), ("file size", "note")]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert not list(checkup._bounds())
