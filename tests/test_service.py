"""The example of a service: it answers, survives what its jobs do, and stops well."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "service.py"
LONG = 30_000_000  # tenths of a second of work
SECRET = 31_337


class Running:
    """The service, and what it has logged."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.log = ""
        self.port = int(self.until(r"listening on 127\.0\.0\.1:(\d+)$")[1])

    def until(self, pattern: str) -> "re.Match[str]":
        """Read the log up to a line that matches."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if match := re.search(pattern, line, re.MULTILINE):
                return match
        pytest.fail(f"the log has no {pattern}:\n{self.log}")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=60)
        self.log += rest
        return self.process.returncode


@contextmanager
def service(*arguments: object) -> Iterator[Running]:
    words = [sys.executable, "-W", "error", EXAMPLE, "--port", 0, "-n", 2, *arguments]
    with subprocess.Popen([*map(str, words)], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Running(process)
        finally:
            if process.poll() is None:
                process.kill()


def send(connection: socket.socket, *jobs: object) -> None:
    connection.sendall(b"".join(json.dumps(job).encode() + b"\n" for job in jobs))


def answers(connection: socket.socket) -> dict[Any, Any]:
    """All that come until the service closes the connection, by id."""
    with connection.makefile("rb") as lines:
        found = [json.loads(line) for line in lines]
    return {answer.pop("id"): answer for answer in found}


def test_jobs_are_answered_and_a_bad_one_hurts_no_other() -> None:
    with service() as running, running.connect() as connection:
        send(connection, *({"id": n, "below": n} for n in range(300)), {"id": "bad", "below": "many"}, ["no job"])
        connection.shutdown(socket.SHUT_WR)
        found = answers(connection)
        assert found.pop("bad") == found.pop(None) == {"error": "TypeError"}
        assert (len(found), found[100], found[299]) == (300, {"result": 25}, {"result": 62})
        assert running.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_read_is_finished_when_it_is_told_to_stop(number: int) -> None:
    with service() as running, running.connect() as connection:
        send(connection, {"id": 1, "below": SECRET}, *({"id": n, "below": 3_000_000} for n in range(2, 6)))
        running.until(": done after")  # so they were read
        assert running.stop(number) == 0
        assert answers(connection) == {1: {"result": 3378}} | {key: {"result": 216816} for key in range(2, 6)}
        with pytest.raises(ConnectionError):
            running.connect()
    said = [line.split(" ", 3)[3] for line in running.log.splitlines()]
    assert said[-1] == "stopped: everything was finished"
    assert "stopping" in said
    assert sum(bool(re.fullmatch(r"[0-9a-f]{8}-\d+: done after \d+\.\d{3} s", line)) for line in said) == 5
    # As a number of its own, and not a process's: that may be this very one.
    log = re.sub(r"\b(supervisor|pid)=\d+", "", running.log)
    assert not re.search(rf"\b({SECRET}|3378)\b", log), "a payload is in the log"


def test_what_does_not_end_in_time_is_cancelled_and_answered_so() -> None:
    with service("--grace", 0.01) as running, running.connect() as connection:
        send(connection, {"id": 1, "below": LONG}, {"id": 2, "below": 10})
        running.until(": done after")
        assert running.stop() == 1
        assert answers(connection) == {1: {"error": "CancelledError"}, 2: {"result": 4}}
    assert running.log.endswith("stopped: not everything was finished\n")


def test_a_pool_that_is_lost_ends_the_service() -> None:
    with service() as running, running.connect() as connection:
        send(connection, {"id": 1, "below": 10})
        running.until(": done after")
        children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
        send(connection, {"id": 2, "below": LONG})
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        assert answers(connection) == {1: {"result": 4}, 2: {"error": "SupervisorLost"}}
        running.process.wait(60)
        assert running.process.returncode == 1
