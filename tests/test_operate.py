"""What an operator does with a supervisor that runs as a service, by the command line."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from leaks import wait_until
from pooljobs import Gate
from services import GUARD, Service, serving

from mpworker.cli.app import run
from mpworker.cli.errors import ExitCode
from mpworker.errors import TaskCancelled
from mpworker.service import units

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, "n = 1\n[queues]\nmail = 2\n") as service:
        service.connect().stop_graceful()
        yield service


@pytest.fixture
def command(service: Service, capsys: pytest.CaptureFixture[str]) -> Command:
    def run_it(name: str, *arguments: str) -> tuple[int, str, str]:
        code = run([name, "--socket", service.socket, *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run_it


def told(command: Command, name: str) -> Any:
    code, out, _ = command(name, "--json")
    assert code == ExitCode.OK
    return json.loads(out)


def test_one_screen(service: Service, command: Command, gate: Gate) -> None:
    with service.connect(name="the report") as w:
        future = w.submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        w.options(queue="mail").submit(pooljobs.square, 2)
        seen = told(command, "status")
        assert (seen["pid"], seen["n"], seen["stopping"]) == (service.process.pid, 1, False)
        (client,) = seen["clients"]
        assert (client["name"], client["pid"], client["uid"]) == ("the report", os.getpid(), os.getuid())
        assert (client["accepted"], client["unfinished"]) == (2, 2)
        (child,) = seen["children"]
        assert (child["task"], child["client"], child["state"]) == (future.task_id, client["client"], "ready")
        assert seen["queues"]["mail"]["queued"] == 1
        assert told(command, "children")["children"][0]["pid"] == child["pid"]
        assert set(told(command, "queues")["queues"]) == {"default", "mail"}
        assert [each["name"] for each in told(command, "clients")["clients"]] == ["the report"]
        gate.release()
    assert told(command, "clients")["clients"] == []


def test_as_tables_on_a_terminal(service: Service, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    with service.connect(name="[bold]") as w:
        w.submit(pooljobs.square, 2).result(GUARD)
        code, out, _ = command("status")
    assert code == ExitCode.OK
    for word in ("serving for", "Clients", "[bold]", "Queues", "mail", "Children", "p95"):
        assert word in out


def test_a_queue_is_paused_drained_and_resumed(service: Service, command: Command) -> None:
    with service.connect() as w:
        assert command("pause", "mail")[0] == ExitCode.OK
        future = w.options(queue="mail").submit(pooljobs.square, 2)
        assert w.submit(pooljobs.square, 3).result(GUARD) == 9
        assert not future.done()
        assert told(command, "queues")["queues"]["mail"]["paused"]
        assert command("resume", "mail")[0] == ExitCode.OK
        assert future.result(GUARD) == 4
        assert command("drain")[0] == ExitCode.OK
        assert told(command, "queues")["queues"]["mail"]["draining"]
        assert command("resume")[0] == ExitCode.OK
        assert w.submit(pooljobs.square, 4).result(GUARD) == 16


def test_children_come_and_go(service: Service, command: Command) -> None:
    assert command("scale", "3")[0] == ExitCode.OK
    wait_until(lambda: len(told(command, "children")["children"]) == 3, GUARD)
    code, _, err = command("scale", "0")
    assert (code, "n must be at least 1, not 0" in err) == (ExitCode.USAGE, True)


def test_it_is_stopped(service: Service, command: Command, gate: Gate) -> None:
    w = service.connect()
    future = w.submit(pooljobs.hold, gate.folder, "held")
    gate.wait_begun()
    assert command("stop")[0] == ExitCode.OK
    gate.release()
    assert future.result(GUARD) == "held"
    assert service.ended() == 0
    code, _, err = command("status")
    assert (code, "no supervisor listens at" in err) == (ExitCode.UNREACHABLE, True)


def test_it_is_stopped_now(service: Service, command: Command, gate: Gate) -> None:
    w = service.connect()
    future = w.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    assert command("stop", "--now")[0] == ExitCode.OK
    assert service.ended() == 0
    with pytest.raises(TaskCancelled):
        future.result(GUARD)


def test_who_may_not_steer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, "n = 1\n[clients]\nsteering_uids = []\n") as service:
        service.connect().stop_graceful()
        assert run(["status", "--socket", service.socket]) == ExitCode.USAGE
        assert "clients.steering_uids" in capsys.readouterr().err


def test_units_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["systemd", "install", "--folder", str(tmp_path)]) == ExitCode.OK
    assert capsys.readouterr().out.count("wrote ") == 3
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == units.units()
    assert run(["systemd", "install", "--folder", str(tmp_path)]) == ExitCode.OK
    assert "wrote" not in capsys.readouterr().out
    assert run(["systemd", "install", "--folder", str(tmp_path / "missing")]) == ExitCode.SYSTEM
    assert run(["systemd", "show", "mpworker.socket"]) == ExitCode.OK
    assert "ListenStream=/run/mpworker/mpworker.sock" in capsys.readouterr().out
    assert run(["systemd", "show", "other"]) == ExitCode.USAGE
