"""The leak check itself: a guard that cannot go red guards nothing."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import leaks
import psutil
import pytest

HERE = Path(__file__).parent

CONFTEST = """
import os, pathlib, leaks
leaks.GRACE = 0.2
leaks.SHM = pathlib.Path(os.environ["INNER_SHM"])
from conftest_of_the_suite import *
from conftest_of_the_suite import _leave_nothing_behind
"""

# Each leaks one thing that goes away by itself soon after, a process well after `leaks.GRACE`.
LEAKS = {
    "process": """
        import subprocess
        keep = subprocess.Popen(["sleep", "6"])
    """,
    "zombie": """
        import os
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    """,
    "orphan": """
        import subprocess
        subprocess.run(["sh", "-c", "setsid sleep 6 >/dev/null 2>&1 &"], check=True)
    """,
    "shm": """
        import os, pathlib
        pathlib.Path(os.environ["INNER_SHM"], "left").touch()
    """,
    "eventfd": """
        import os
        os.eventfd(0)
    """,
    "memfd": """
        import os
        os.memfd_create("left")
    """,
    "socket": """
        import socket
        socket.socketpair()[0].detach()
    """,
    "files": """
        import os
        for _ in range(3):
            os.open(os.devnull, os.O_RDONLY)
    """,
    "nothing": """
        import os, socket, subprocess
        subprocess.run(["true"], check=True)
        left, right = socket.socketpair()
        left.close(), right.close()
        os.open(os.devnull, os.O_RDONLY)  # within what libraries may keep
    """,
}
EXPECTED = {
    "process": "(sleeping): sleep 6",
    "zombie": "(zombie)",
    "orphan": "(sleeping): sleep 6",
    "shm": "file {shm}/left",
    "eventfd": "1 more open descriptor(s) of kind eventfd",
    "memfd": "1 more open descriptor(s) of kind memfd",
    "socket": "1 more open descriptor(s) of kind socket",
    "files": "3 more open descriptor(s) of kind file",
}


def test_a_process_that_becomes_another_program_is_never_taken_for_a_strangers(tmp_path: Path) -> None:
    script = tmp_path / "again"
    script.write_text('#!/bin/sh\nexec "$0"\n')
    script.chmod(0o700)
    process = subprocess.Popen([script])
    try:
        seen = Counter(leaks.has_our_mark(process.pid) for _ in range(20_000))
    finally:
        process.kill()
        process.wait()
    assert seen[True]
    assert not seen[False]


@pytest.fixture
def orphan(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A process of ours that is no descendant, and is in the middle of an exec at the first two looks."""
    run = subprocess.run(["sh", "-c", "setsid sleep 60 >&- & echo $!"], stdout=subprocess.PIPE, text=True, check=True)
    pid, looks, real = int(run.stdout), 0, leaks.has_our_mark

    def look(each: int) -> bool | None:
        nonlocal looks
        looks += each == pid
        return None if each == pid and looks <= 2 else real(each)

    monkeypatch.setattr(leaks, "has_our_mark", look)
    yield pid
    os.kill(pid, signal.SIGKILL)
    assert leaks.wait_until(lambda: not leaks.alive(pid), 10.0)


def test_a_process_is_found_that_was_in_the_middle_of_an_exec(orphan: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = leaks.snapshot()
    before = replace(before, nameless=before.nameless - {psutil.Process(orphan)})  # as if it had begun after that
    monkeypatch.setattr(leaks, "GRACE", 0.2)
    assert [line.split()[1] for line in leaks.leaks_since(before)] == [str(orphan)]


def test_a_process_that_was_in_the_middle_of_an_exec_before_a_test_is_not_the_tests(orphan: int) -> None:
    before = leaks.snapshot()
    assert psutil.Process(orphan) in before.nameless
    assert leaks.leaks_since(before) == []
    assert psutil.Process(orphan) in leaks.snapshot().processes


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_turns_the_test_red(kind: str, tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    shm.mkdir()
    (tmp_path / "conftest_of_the_suite.py").write_text((HERE / "conftest.py").read_text())
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_inner.py").write_text(f"def test_inner():{LEAKS[kind]}")

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_inner.py"],
        cwd=tmp_path,
        env={**os.environ, "INNER_SHM": str(shm), "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    if kind == "nothing":
        assert run.returncode == 0, run.stdout
    else:
        assert run.returncode == 1, run.stdout
        assert EXPECTED[kind].format(shm=shm) in run.stdout
