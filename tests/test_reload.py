"""A supervisor that reads its configuration again while it serves: `mpworker reload` and SIGHUP."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pooljobs
import psutil
import pytest
from leaks import alive, wait_until
from pooljobs import Gate
from services import GUARD, Service, serving

from mpworker.cli.app import run
from mpworker.cli.errors import ExitCode
from mpworker.errors import ConfigurationError
from mpworker.service.config import SETTINGS
from mpworker.supervisor import reloading
from mpworker.supervisor.reloading import Reloading, differences

BEFORE = """
n = 1
[clients]
max = 20
[queues.mail]
weight = 2
[queues.old]
weight = 3
max_running = 1
"""
AFTER = """
n = 2
log_level = "debug"
rate = 900.0
stop_timeout = 7.0
[clients]
max = 20
priority_min = -5
[children]
nice = 3
grace = 0.5
[queues.mail]
weight = 7
max_running = 1
[queues.new]
weight = 4
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, BEFORE) as service:
        service.wait_for("child_ready")
        yield service


@pytest.fixture
def reload(service: Service, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, Any, str]]:
    """Writes the configuration and has it read; the exit code, what was said as JSON, and the complaint."""

    def run_it(config: str) -> tuple[int, Any, str]:
        service.config.write_text(config)
        code = run(["reload", "--socket", service.socket, "--json"])
        told = capsys.readouterr()
        return code, json.loads(told.out), told.err

    return run_it


def heed_nothing(folder: str) -> None:
    while True:
        try:
            pooljobs.hold(folder)
        except BaseException:  # noqa: BLE001, S110
            pass


Reload = Callable[[str], tuple[int, Any, str]]


def test_what_the_file_says_now_is_in_force_and_no_task_is_lost(service: Service, reload: Reload, gate: Gate) -> None:
    with service.connect() as w:
        waiting = [w.submit(pooljobs.hold, gate.folder, number) for number in range(3)]
        gate.wait_begun()
        with pytest.raises(ConfigurationError, match="no queue 'new'"):
            w.options(queue="new").submit(abs, 1)
        with pytest.raises(ConfigurationError, match="priority must be at least 0"):
            w.options(priority=-5).submit(abs, 1)
        code, said, _ = reload(AFTER)
        assert code == ExitCode.OK
        assert said == {
            "changed": [
                *("children.grace", "clients.priority_min", "log_level", "n"),
                *("queues.mail", "queues.new", "queues.old", "rate", "stop_timeout"),
            ],
            "at_restart": ["children.nice"],
        }
        gate.wait_begun()  # on the second child
        queues = w.queues()
        assert (queues["mail"].weight, queues["mail"].max_running) == (7, 1)
        assert queues["new"].weight == 4
        assert (queues["old"].weight, queues["old"].max_running) == (1, None), "as if it had never been configured"
        # Who was attached before may ask for what may be asked for now.
        both = w.options(queue="new", priority=-5).submit(pooljobs.hold, gate.folder, 3)
        gate.release(4)
        assert [future.result(GUARD) for future in [*waiting, both]] == [0, 1, 2, 3]
        assert len(w.processes()["children"]) == 2
    (record,) = service.records("reloaded")
    assert record["changed"] == said["changed"]
    assert service.wait_for("child_started"), "which is told at debug"
    assert reload(AFTER)[1] == {"changed": [], "at_restart": ["children.nice"]}


def test_a_grace_that_was_changed_is_that_of_the_next_kill(service: Service, reload: Reload, gate: Gate) -> None:
    assert reload(BEFORE + "[children]\ngrace = 0.05\n")[0] == ExitCode.OK
    with service.connect() as w:
        running = w.submit(heed_nothing, gate.folder)
        gate.wait_begun()
        w.cancel_task(running.task_id)
        service.wait_for("child_killed")
        assert w.submit(abs, -1).result(2.0) == 1, "and not after the 5 s of before"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("n = 0\n", "n must be at least 1, not 0"),
        ("n = 2\nburst = 3\n", "burst=3 is for a rate"),
        ("n = 2\n[queues.mail]\nweight = 0\n", "queues.mail: weight must be"),
        ("n = [", "it is no TOML"),
        ("m = 2\n", "there is no setting 'm'"),
    ],
)
def test_a_wrong_one_is_refused_with_the_reason_and_nothing_changes(
    service: Service, reload: Reload, config: str, complaint: str
) -> None:
    code, said, error = reload(config)
    assert code == ExitCode.CONFIG
    assert str(service.config) in said["refused"]
    assert complaint in said["refused"]
    assert complaint in error
    (record,) = service.records("reload_refused")
    assert complaint in record["reason"]
    with service.connect() as w:
        assert w.queues()["mail"].weight == 2
        assert len(w.processes()["children"]) == 1
    service.config.write_text(BEFORE.replace("n = 1", "n = 2"))
    assert reload(BEFORE.replace("n = 1", "n = 2")) == (0, {"changed": ["n"], "at_restart": []}, "")


def test_a_file_that_is_gone(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.config.unlink()
    assert run(["reload", "--socket", service.socket]) == ExitCode.CONFIG
    assert "No such file" in capsys.readouterr().err


def test_in_words(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reload", "--socket", service.socket]) == ExitCode.OK
    assert capsys.readouterr().out == "changed: nothing\n"
    service.config.write_text(AFTER)
    assert run(["reload", "--socket", service.socket]) == ExitCode.OK
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("changed: children.grace, ")
    assert second == "only after a restart: children.nice"


def test_more_children_than_descriptors_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    import resource

    with serving(tmp_path, BEFORE) as service:
        service.wait_for("child_ready")
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (512, 512))
        service.config.write_text(BEFORE.replace("n = 1", "n = 60\nrate = 5.0"))
        service.process.send_signal(signal.SIGHUP)
        (record,) = service.wait_for("reload_refused")
        assert "60 children need" in record["reason"]
        with service.connect() as w:
            assert len(w.processes()["children"]) == 1


def test_a_flag_and_a_variable_go_before_the_file_again(tmp_path: Path) -> None:
    with serving(tmp_path, 'n = 1\nlog_level = "info"\n', "-n", "1", "--log-level", "warning") as service:
        service.connect().stop_graceful()
        service.config.write_text("n = 2\n[queues.mail]\nweight = 2\n")
        assert run(["reload", "--socket", service.socket]) == ExitCode.OK
        with service.connect() as w:
            assert w.queues()["mail"].weight == 2
            assert len(w.processes()["children"]) == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGTTIN])
def test_a_signal_that_comes_before_it_serves_is_heeded_later(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, BEFORE) as service:
        command = Path(f"/proc/{service.process.pid}/cmdline")
        assert wait_until(lambda: b"mpworker.supervisor.service" in command.read_bytes(), GUARD)
        service.process.send_signal(number)
        if number == signal.SIGTERM:
            assert service.ended() == 0
        else:
            service.wait_for("reloaded" if number == signal.SIGHUP else "pool_resized")
            with service.connect() as w:
                assert w.submit(abs, -1).result(GUARD) == 1


def test_sighup_is_the_same(service: Service) -> None:
    service.config.write_text(AFTER)
    service.process.send_signal(signal.SIGHUP)
    (record,) = service.wait_for("reloaded")
    assert "n" in record["changed"]
    service.wait_for("child_ready", 2)


class Stuck:
    """A configuration that is read when the test lets it be: a FIFO in its place."""

    def __init__(self, service: Service) -> None:
        self._path = service.config
        self._path.unlink()
        os.mkfifo(self._path)

    def _opened(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return -1  # nobody reads it yet

    def wait(self) -> int:
        """Until somebody reads; what to write to."""
        found: list[int] = []
        assert wait_until(lambda: found.append(self._opened()) or found[-1] >= 0, GUARD)
        os.set_blocking(found[-1], True)
        return found[-1]

    def answer(self, config: str) -> None:
        fd = self.wait()
        os.write(fd, config.encode())
        os.close(fd)


def readers(service: Service) -> list[int]:
    """The processes that read its configuration."""
    found = psutil.Process(service.process.pid).children()
    return [each.pid for each in found if "told" in each.cmdline()]


def test_who_asks_while_it_is_read_has_it_read_once_more_and_tasks_run_meanwhile(service: Service) -> None:
    stuck = Stuck(service)
    service.process.send_signal(signal.SIGHUP)
    fd = stuck.wait()
    with service.connect() as w:
        assert w.submit(abs, -5).result(GUARD) == 5
        service.process.send_signal(signal.SIGHUP)
        service.process.send_signal(signal.SIGHUP)
        assert w.submit(abs, -6).result(GUARD) == 6, "the signals have come by now"
    os.write(fd, BEFORE.replace("n = 1", "n = 2").encode())
    os.close(fd)
    service.wait_for("reloaded")  # else who reads the first one would read on
    stuck.answer(BEFORE.replace("n = 1", "n = 3"))
    first, second = service.wait_for("reloaded", 2)
    assert (first["changed"], second["changed"]) == (["n"], ["n"])
    service.wait_for("child_ready", 3)
    assert not readers(service)


def test_what_reads_it_dies(service: Service) -> None:
    stuck = Stuck(service)
    service.process.send_signal(signal.SIGHUP)
    os.close(stuck.wait())
    # It reads an empty file, which is a good configuration; so it is killed at its next try.
    service.wait_for("reloaded")
    service.process.send_signal(signal.SIGHUP)
    fd = stuck.wait()
    (pid,) = readers(service)
    os.kill(pid, signal.SIGKILL)
    (record,) = service.wait_for("reload_refused")
    assert record["reason"] == "what reads the configuration ended by signal 9"
    os.close(fd)
    service.process.send_signal(signal.SIGHUP)
    stuck.answer(BEFORE)
    service.wait_for("reloaded", 2)


def test_the_nursery_dies_while_it_is_read(service: Service) -> None:
    stuck = Stuck(service)
    service.process.send_signal(signal.SIGHUP)
    fd = stuck.wait()
    with service.connect() as w:
        os.kill(w.processes()["nursery"], signal.SIGKILL)
        service.wait_for("nursery_lost")
        assert w.submit(abs, -5).result(GUARD) == 5
        os.close(fd)
        service.process.send_signal(signal.SIGHUP)
        stuck.answer(BEFORE.replace("n = 1", "n = 2"))
        service.wait_for("reloaded")


@pytest.mark.parametrize("again", [1, 2])
def test_a_stop_does_not_wait_for_it(service: Service, again: int) -> None:
    stuck = Stuck(service)
    service.process.send_signal(signal.SIGHUP)
    fd = stuck.wait()
    (pid,) = readers(service)
    for _ in range(again):
        service.process.send_signal(signal.SIGTERM)
    assert service.ended() == 0
    assert not alive(pid)
    os.close(fd)


def test_who_may_not_steer_may_not_reload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, "n = 1\n[clients]\nsteering_uids = [12345]\n") as service:
        service.connect().stop_graceful()
        assert run(["reload", "--socket", service.socket]) == ExitCode.USAGE
        assert "steering_uids" in capsys.readouterr().err
        assert not service.records("reloaded")


# ------------------------------------------------------------ by itself


class Fake:
    """What a `Reloading` asks of its supervisor."""

    def __init__(self, argv: list[str]) -> None:
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.told: list[str] = []
        self.stopping = False
        self.watched: dict[int, Callable[[], None]] = {}
        self.watch = SimpleNamespace(log=lambda _, event, **fields: self.logged.append((event, fields)))
        self.manager = SimpleNamespace(
            is_ready=lambda: self.told.append("ready"), reloads=lambda: self.told.append("reloads")
        )
        service = {"reread": {"argv": argv, "environment": {}}}
        daemon: Any = self
        self.reloading = Reloading(daemon, service, self.watched.__setitem__, self.watched.__delitem__)

    def end(self) -> None:
        """Until what reads has ended, and that is told."""
        (told,) = self.watched.values()
        assert wait_until(lambda: told() or not self.watched, GUARD)  # type: ignore[func-returns-value]


def test_what_takes_too_long_is_ended() -> None:
    fake = Fake(["/bin/sleep", "1000"])
    number = fake.reloading.ask()
    assert fake.told == ["reloads"]
    at = fake.reloading.next_at
    assert at is not None
    assert fake.reloading._reader is not None
    pid = fake.reloading._reader._pid
    fake.reloading.look(at - 0.001)
    assert fake.reloading.outcome(number) is None
    fake.reloading.look(at)
    assert fake.reloading.outcome(number) == {
        "refused": f"the configuration was not read in {reloading.READ_SECONDS:g} s"
    }
    assert fake.told == ["reloads", "ready"]
    assert not fake.watched
    assert fake.reloading.next_at is None
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo '{'", "what reads the configuration has said nothing that can be understood"),
        ("exit 3", "what reads the configuration ended by exit code 3"),
        ("kill -KILL $$", "what reads the configuration ended by signal 9"),
        ("echo 'a traceback' >&2; echo 'mpworker: why' >&2; exit 78", "why"),
    ],
)
def test_what_comes_of_a_process_that_does_not_do_its_part(script: str, why: str) -> None:
    fake = Fake(["/bin/sh", "-c", script])
    number = fake.reloading.ask()
    fake.end()
    assert fake.reloading.outcome(number) == {"refused": why}
    assert fake.logged == [("reload_refused", {"reason": why})]


def test_a_process_that_cannot_be_started() -> None:
    fake = Fake(["/no/such/program"])
    assert fake.reloading.outcome(fake.reloading.ask()) == {
        "refused": "no process can be started that reads the configuration: No such file or directory"
    }
    assert fake.told == ["reloads", "ready"]


def test_one_that_stops_reads_nothing() -> None:
    fake = Fake(["/no/such/program"])
    fake.stopping = True
    assert fake.reloading.outcome(fake.reloading.ask()) == {"refused": "the supervisor is stopping"}


def test_each_who_asks_is_answered_by_a_read_that_began_afterwards() -> None:
    fake = Fake(["/bin/sh", "-c", "exit 1"])
    first, second = fake.reloading.ask(), fake.reloading.ask()
    fake_end = next(iter(fake.watched.values()))
    assert wait_until(lambda: fake_end() or fake.reloading.outcome(first) is not None, GUARD)  # type: ignore[func-returns-value]
    assert fake.reloading.outcome(second) is None
    fake.end()
    assert fake.reloading.outcome(second) is not None


def test_differences() -> None:
    old = {"a": 1, "b": None, "c": [1]}
    assert differences(old, {"a": 1, "b": None, "c": [1]}) == []
    assert differences(old, {"a": 2, "b": None, "d": None}) == ["a", "c", "d"]


def test_what_needs_a_restart_is_said_of_every_setting() -> None:
    assert {setting.name for setting in SETTINGS if not setting.live} == {
        *("socket", "clients.socket_mode", "clients.ring_bytes"),
        *("children.preload", "children.path", "children.lease_ttl", "children.nice", "children.blas_threads"),
        *("children.max_tasks", "children.memory_limit", "children.memory_limit_hard"),
        *("children.max_payload_bytes", "children.ring_bytes", "children.slots"),
    }
