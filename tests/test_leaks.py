"""The leak check itself: a guard that cannot go red guards nothing."""

import os
import subprocess
import sys
from pathlib import Path

import leaks
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


def test_a_process_is_seen_while_it_becomes_another_program(tmp_path: Path) -> None:
    script = tmp_path / "again"
    script.write_text('#!/bin/sh\nexec "$0"\n')
    script.chmod(0o700)
    process = subprocess.Popen([script])
    try:
        mark = os.environ[leaks.MARK].encode()
        unseen = sum(mark not in leaks._environment(str(process.pid)) for _ in range(20_000))
    finally:
        process.kill()
        process.wait()
    assert not unseen


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
