"""What an operator does with a supervisor that runs as a service, by the command line."""

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from leaks import wait_until
from pooljobs import Gate
from services import GUARD, Service, serving

from mpworker import Task
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
        code = run([name, *arguments[: name == "cron"], "--socket", service.socket, *arguments[name == "cron" :]])
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
    for n, said in (("0", "n must be at least 1, not 0"), ("65", "n must be at most 64, not 65: see n_max")):
        code, _, err = command("scale", n)
        assert (code, said in err) == (ExitCode.USAGE, True)
    service.config.write_text("n = 1\nn_max = 2\n[queues]\nmail = 2\n")
    assert command("reload")[0] == ExitCode.OK
    service.process.send_signal(signal.SIGTTIN)
    assert service.wait_for("pool_resized", 2)[1]["n"] == 3, "one more is never one fewer"


def test_tasks_of_all_programs_are_found(service: Service, command: Command, gate: Gate) -> None:
    with service.connect(name="one") as w, service.connect(name="two", crash_retries=1) as other:
        ended = w.submit(pooljobs.square, 2)
        assert ended.result(GUARD) == 4
        running = other.submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        [child] = told(command, "children")["children"]
        os.kill(child["pid"], signal.SIGKILL)
        gate.wait_begun()
        waiting = w.register_task(
            Task(pooljobs.square, (3,), id="mine", name="report", queue="mail", priority=7, deadline=600.0)
        )
        later = w.register_task(Task(pooljobs.square, (3,), run_at=600.0, metadata={"patient": "secret"}))
        tasks = {each["task"]: each for each in told(command, "tasks")}
        assert list(tasks) == [running.task_id, "mine", later.task_id, ended.task_id]
        seen = tasks[running.task_id]
        assert (seen["name"], seen["status"], seen["queue"]) == ("hold", "running", "default")
        assert [(each["status"], each["cause"]) for each in seen["attempts"]] == [("failed", "signal"), ("running", "")]
        assert seen["attempts"][0]["took"] <= seen["attempts"][0]["began_ago"]
        assert seen["for"] == seen["attempts"][1]["began_ago"] <= seen["since"]
        seen = tasks["mine"]
        assert (seen["name"], seen["status"], seen["queue"], seen["priority"]) == ("report", "queued", "mail", 7)
        assert 0 < seen["deadline_in"] <= 600
        assert tasks[later.task_id]["status"] == "scheduled"
        assert 0 < tasks[later.task_id]["due_in"] <= 600
        assert (tasks[ended.task_id]["name"], tasks[ended.task_id]["status"]) == ("square", "completed")
        assert (
            len(
                {tasks[each.task_id]["client"] for each in (waiting, later, ended)} - {tasks[running.task_id]["client"]}
            )
            == 1
        )
        assert "secret" not in command("tasks")[1]
        assert "secret" not in command("task", later.task_id)[1]
        for filters, expected in (
            (("--status", "running"), [running]),
            (("--status", "completed"), [ended]),
            (("--queue", "mail"), [waiting]),
            (("--name", "square"), [later, ended]),
            (("--name", "report"), [waiting]),
            (("--client", str(tasks[running.task_id]["client"])), [running]),
            (("--limit", "2"), [running, waiting]),
            (("--queue", "mail", "--status", "running"), []),
        ):
            found = json.loads(command("tasks", *filters)[1])
            assert [each["task"] for each in found] == [each.task_id for each in expected], filters
        assert json.loads(command("task", "mine")[1])[0]["name"] == "report"
        assert json.loads(command("task", running.task_id)[1])[0]["status"] == "running"
        for nothing in ("mine-1", "9-9-9", f"{running.task_id}0", f"{running.task_id}{'9' * 5000}", ""):
            code, _, err = command("task", nothing)
            assert (code, "no task has the id" in err) == (ExitCode.SOME_FAILED, True)
        assert command("tasks", "--limit", "10001")[0] == ExitCode.USAGE
        w.cancel_all()
        gate.release()


def test_a_task_on_a_terminal(service: Service, command: Command, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    with service.connect() as w:
        running = w.submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        w.register_task(Task(pooljobs.square, (3,), id="[mine]", run_at=500.0, deadline=600.0))
        w.register_task(Task(pooljobs.square, (3,), id="other", name="a\x1b[2J\u202eb", run_at=500.0))
        listed = command("tasks", "--limit", "2")[1]
        for word in (running.task_id, "hold", "running", "[mine]", "scheduled", "the first 2"):
            assert word in listed
        monkeypatch.setenv("COLUMNS", "80")
        assert all(word in command("tasks")[1] for word in (running.task_id, "scheduled")), "what is copied is whole"
        monkeypatch.setenv("COLUMNS", "180")
        assert "1 running" in " ".join(command("task", running.task_id)[1].split())
        shown = command("task", "[mine]")[1]
        for word in ("[mine], square: scheduled", "to be queued in", "deadline in"):
            assert word in shown
        for shown in (command("tasks")[1], command("task", "other")[1]):
            assert r"a\x1b[2J\u202eb" in shown, "nobody else's text does anything to the terminal"
            assert "\x1b[2J" not in shown
        w.cancel_all()
        gate.release()


def test_tasks_are_cancelled_whosever_they_are(service: Service, command: Command, gate: Gate) -> None:
    with service.connect() as w, service.connect() as other:
        running = w.submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        waiting = [each.register_task(Task(pooljobs.square, (3,), id="mine")) for each in (w, other)]
        assert len(json.loads(command("task", "mine")[1])) == 2
        code, out, _ = command("cancel", "mine", running.task_id)
        assert (code, out) == (ExitCode.OK, f"mine: cancelled\n{running.task_id}: cancelled\n")
        for future in (*waiting, running):
            with pytest.raises(TaskCancelled):
                future.result(GUARD)
        assert len(service.wait_for("cancelled_by_operator", 3)) == 3
        code, out, err = command("cancel", "mine", "nobody")
        assert (code, out) == (ExitCode.SOME_FAILED, "mine: it had ended\n")
        assert "no task has the id 'nobody'" in err
        assert w.submit(pooljobs.square, 4).result(GUARD) == 16


def test_a_task_is_submitted(service: Service, command: Command) -> None:
    code, out, _ = command("submit", "--name", "sums", "-k", "default=7", "builtins:max", "[]")
    assert (code, out) == (ExitCode.OK, "7\n")
    assert command("submit", "math:gcd", "12", "18")[:2] == (ExitCode.OK, "6\n")
    assert command("submit", "--queue", "mail", "--", "builtins:abs", "-3")[:2] == (ExitCode.OK, "3\n")
    assert command("submit", "builtins:str.upper", "abc")[:2] == (ExitCode.OK, '"ABC"\n')
    for arguments, exit_code, said in (
        (("math:gcd", "a"), ExitCode.SOME_FAILED, "TypeError: 'str' object cannot be interpreted as an integer"),
        (("builtins:set",), ExitCode.SOME_FAILED, "SerializationError: JSON cannot express the result, a set"),
        (("os:_exit", "3"), ExitCode.SOME_FAILED, "WorkerCrashed: "),
        (("math:none",), ExitCode.USAGE, "module 'math' has no attribute 'none'"),
        (("--keyword", "x", "math:gcd"), ExitCode.USAGE, "--keyword 'x' must be NAME=VALUE"),
        (("--queue", "nowhere", "math:gcd"), ExitCode.USAGE, "nowhere"),
        (("--retries", "-1", "math:gcd"), ExitCode.USAGE, "retries must be at least 0, not -1"),
    ):
        code, out, err = command("submit", *arguments)
        assert (code, out, err.count("\n")) == (exit_code, "", 1), err
        assert said in err


def test_what_recurs_is_seen_and_steered(
    service: Service, command: Command, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cron(do: str, *arguments: str) -> tuple[int, str, str]:
        return command("cron", do, *arguments)

    def listed() -> dict[str, Any]:
        return {each["name"]: each for each in json.loads(cron("list")[1])}

    with service.connect() as w, service.connect() as other:
        assert listed() == {}
        w.register_cron_task("daily", "30 2 * * *", Task(pooljobs.hold, (gate.folder,)), tz="Europe/Berlin")
        other.register_cron_task("beat", "@every 1h", Task(pooljobs.square, (3,)))
        assert set(listed()) == {"daily", "beat"}
        assert (listed()["daily"]["spec"], listed()["daily"]["tz"]) == ("30 2 * * *", "Europe/Berlin")
        assert cron("pause", "daily")[0] == ExitCode.OK
        assert (listed()["daily"]["paused"], listed()["beat"]["paused"]) == (True, False)
        assert w.cron_tasks()[0].paused
        assert cron("resume", "daily")[0] == ExitCode.OK
        assert not w.cron_tasks()[0].paused
        assert cron("run", "daily")[0] == ExitCode.OK
        gate.wait_begun()
        code, _, err = cron("run", "daily")
        assert (code, "its overlap leaves this one out" in err) == (ExitCode.SOME_FAILED, True)
        gate.release()
        assert service.wait_for("cron_run_by_operator")[0]["name"] == "daily"
        number = str(listed()["beat"]["client"])
        code, _, err = cron("pause", "daily", "--client", number)
        assert (code, "nothing that recurs is called 'daily'" in err) == (ExitCode.SOME_FAILED, True)
        assert list(json.loads(cron("list", "--client", number)[1])[0].items())[1] == ("name", "beat")
        monkeypatch.setenv("COLUMNS", "150")
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
        for word in ("Recurring tasks", "daily", "Europe/Berlin", "@every 1h"):
            assert word in cron("list")[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes(shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["completion", shell]) == ExitCode.OK
    assert "_MPWORKER_COMPLETE" in capsys.readouterr().out
    monkeypatch.setenv("_MPWORKER_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "mpworker sta")
    monkeypatch.setenv("COMP_CWORD", "sta" if shell == "fish" else "1")
    with pytest.raises(SystemExit):
        run([])
    assert "status" in capsys.readouterr().out


def test_where_every_child_is(service: Service, command: Command, gate: Gate) -> None:
    assert command("scale", "2")[0] == ExitCode.OK
    with service.connect() as w:
        running = w.submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        assert wait_until(
            lambda: [each["state"] for each in told(command, "children")["children"]] == ["ready"] * 2, GUARD
        )
        for _ in range(20):  # each takes the place of the last one
            seen = {each["task"]: each for each in told(command, "stacks")}
            assert set(seen) == {None, running.task_id}
            assert seen[None]["stack"] == ""
            stack = seen[running.task_id]["stack"].splitlines()
            assert stack[0].endswith(", in hold")
            assert len(stack) <= 2
        code, out, _ = command("stacks")
        assert code == ExitCode.OK
        assert f"child {seen[running.task_id]['pid']}: task {running.task_id} (hold) of client" in out
        assert ", in hold\n    release.read(1)\n" in out
        assert f"child {seen[None]['pid']}: runs nothing (ready)" in out
        pid = seen[running.task_id]["pid"]
        assert [each["pid"] for each in json.loads(command("stacks", "--json", "--child", str(pid))[1])] == [pid]
        assert [each["pid"] for each in json.loads(command("stacks", "--json", "--task", running.task_id)[1])] == [pid]
        for arguments, said in ((("--child", "1"), "no such child"), (("--task", "1-1"), "no child runs task '1-1'")):
            code, _, err = command("stacks", *arguments)
            assert (code, said in err) == (ExitCode.SOME_FAILED, True)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert "no stack: it has written none" in command("stacks", "--child", str(pid))[1]
        finally:
            os.kill(pid, signal.SIGCONT)
        gate.release()
        assert running.result(GUARD) is None


def test_a_child_in_c_code_says_where_it_is(service: Service, command: Command) -> None:
    with service.connect(timeout=GUARD) as w:
        future = w.submit(count_for_ever)
        assert wait_until(lambda: "in count_for_ever" in command("stacks")[1], GUARD)
        future.cancel()


def count_for_ever() -> None:
    sum(itertools.repeat(1))


def test_what_a_program_that_has_left_ran_is_shown_until_its_child_lets_go_of_it(
    service: Service, command: Command
) -> None:
    with service.connect() as w:
        results = w.map(count_to, [10**12])
        number = told(command, "clients")["clients"][0]["client"]
        assert wait_until(lambda: "in count_to" in command("stacks")[1], GUARD)
        w.stop_now()
        del results
    (child,) = told(command, "children")["children"]
    assert (child["client"], child["task"]) in ((number, "gone-1"), (number, "gone-2"))
    (child,) = told(command, "stacks")
    assert child["name"] == "count_to"
    assert "in count_to" in child["stack"]
    assert command("tasks")[0] == ExitCode.OK


def count_to(number: int) -> None:
    sum(itertools.repeat(1, number))


def test_several_who_ask_for_stacks_at_once_are_answered(service: Service, gate: Gate) -> None:
    with service.connect() as w:
        running = w.submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: w._stacks(), range(40)))
        assert all(each["task"] == running.task_id and "in hold" in each["stack"] for (each,) in found)
        gate.release()


def test_lines_are_mapped_by_a_supervisors_children(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("numbers").write_text("".join(f"{number}\n" for number in range(300)))
    arguments = ["--socket", service.socket, "numbers", "-o", "out.jsonl"]
    assert run(["map", "builtins:len", *arguments]) == ExitCode.OK
    lengths = [json.loads(line)["result"] for line in Path("out.jsonl").read_text().splitlines()]
    assert lengths == [len(str(number)) for number in range(300)]
    assert service.records("client_attached")[-1]["name"] == "mpworker map"
    Path("only_here.py").write_text("def one(line):\n    return 1\n")
    assert run(["map", "only_here:one", *arguments, "--overwrite"]) == ExitCode.USAGE
    assert "there is no module 'only_here'" in capsys.readouterr().err
    assert run(["map", "builtins:len", *arguments, "--overwrite", "-n", "2"]) == ExitCode.USAGE
    monkeypatch.setattr("mpworker.cli.attached._CONNECT_SECONDS", 0.2)
    assert run(["map", "builtins:len", "--socket", "/nowhere", *arguments[2:], "--overwrite"]) == ExitCode.UNREACHABLE


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
