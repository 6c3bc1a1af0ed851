"""The start of two programs, of which the second is the child of the first: what they find, and what fails."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import programs
import pytest

from mpworker.ipc import _native

PYTHON = os.fsencode(sys.executable)
# Tells what a process finds. The first one waits for the second, and passes on what it has told.
TELL = b"""
import json, os, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
fds = [fd for fd in range(100) if os.path.exists(f"/proc/self/fd/{fd}")]
said = {
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "given": int(sys.argv[1]), "fds": fds,
    "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16),
    "stdin": os.readlink("/proc/self/fd/0"), "environment": dict(os.environ),
}
lines = [json.dumps(said)]
if said["given"] > 0:
    lines.append(open(4).read())
    os.waitpid(said["given"], 0)
os.write(3, "\\n".join(lines).encode())
"""
Said: TypeAlias = dict[str, Any]


def bits(*numbers: int) -> int:
    return sum(1 << (number - 1) for number in numbers)


def start(path: bytes = PYTHON, *, both: bool = True) -> tuple[int, list[Said]]:
    """The process id of the first, and what it and the second have found."""
    (client, client_end), (supervisor_end, nursery_end) = (socket.socketpair() for _ in range(2))
    with client:
        try:
            arguments = [b"python", b"-I", b"-S", b"-c", TELL]
            pid = _native.start(
                path,
                [*arguments, b"0"],
                5,
                [*arguments, b"-1"] if both else [],
                [b"X=y"],
                client_end.fileno(),
                supervisor_end.fileno(),
                nursery_end.fileno(),
            )
        finally:
            for end in (client_end, supervisor_end, nursery_end):
                end.close()
        said = client.makefile().read()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return pid, [json.loads(line) for line in said.splitlines()]


@pytest.fixture
def _blocked_and_handled() -> Iterator[None]:
    """What shall not be inherited: a blocked signal, handlers, and one that is ignored, which shall."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGCHLD)}
    signal.signal(signal.SIGUSR2, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_blocked_and_handled")
def test_what_both_find() -> None:
    leaked = os.open("/", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        pid, (supervisor, nursery) = start()
    finally:
        os.close(leaked)
    assert supervisor["pid"] == supervisor["group"] == nursery["group"] == nursery["parent"] == pid
    assert supervisor["parent"] == os.getpid()
    assert supervisor["given"] == nursery["pid"]
    assert (supervisor["fds"], nursery["fds"]) == ([0, 1, 2, 3, 4], [0, 1, 2, 3])
    for each in (supervisor, nursery):
        assert each["stdin"] == "/dev/null"
        assert each["environment"]["X"] == "y"
        assert each["blocked"] == 0
        stops = bits(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        assert each["ignored"] & stops == stops
        assert not each["ignored"] & bits(signal.SIGCHLD, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def test_one_alone() -> None:
    _, (supervisor,) = start(both=False)
    assert (supervisor["given"], supervisor["fds"]) == (0, [0, 1, 2, 3])


def test_from_many_threads_at_once() -> None:
    found: list[list[Said]] = []
    threads = [threading.Thread(target=lambda: found.append(start()[1])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(each) for each in found] == [2] * 8


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("path", "number"), [(b"/no/such", errno.ENOENT), (b"/", errno.EACCES)])
def test_no_such_program_leaves_nothing(both: bool, path: bytes, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as told:
        start(path, both=both)
    assert told.value.errno == number


@pytest.mark.parametrize("closed", ["", "os.closerange(0, 3)", "os.closerange(1, 3)"])
def test_neither_has_the_input_and_both_have_three_streams(tmp_path: Path, closed: str) -> None:
    """The number of one that is closed must not go to a socket, nor may a socket that has it be lost."""
    script = programs.write(
        tmp_path / "script.py",
        f"""
        import os, sys
        sys.path.append({str(Path(__file__).parent)!r})
        import test_native_start
        {closed}
        _, (supervisor, nursery) = test_native_start.start()
        with open({str(tmp_path / "out")!r}, "w") as file:
            print(supervisor["fds"], nursery["fds"], supervisor["stdin"], file=file)
        """,
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=60, stdin=subprocess.PIPE)
    assert (tmp_path / "out").read_text() == "[0, 1, 2, 3, 4] [0, 1, 2, 3] /dev/null\n"
