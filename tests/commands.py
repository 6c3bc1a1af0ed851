"""The command line as the tests call it: its tasks, and a folder for its files that `conftest` knows as a fixture."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TASKS = """
import os, signal, threading

def square(line):
    return {"square": int(line) ** 2}

def deadly(line):
    if int(line) % 500 == 499:
        os._exit(3)
    return int(line)

def echo(line):
    return line

def odd(line):
    if int(line) % 2 == 0:
        raise ValueError(f"{line} is even")
    return int(line)

def strange(line):
    if line == "none": return None
    if line == "set": return {1}
    if line == "nan": return float("nan")
    if line == "loop":
        loop = []
        loop.append(loop)
        return loop
    if line == "exit": raise SystemExit(3)
    if line == "separator": return "\\u2028\\ud800"
    if line == "quiet": raise KeyError
    if line == "long": raise ValueError("x" * 10_000)
    if line == "unprintable": raise Unprintable
    if line == "lost":
        from mpworker.errors import SupervisorLost
        raise SupervisorLost("of a pool of my own")
    if line == "leaving": raise Leaving
    if line == "locked": raise Locked("no such account")
    if line == "two": raise Two("a", "b")
    return line

class Leaving(Exception):
    def __str__(self):
        raise SystemExit(3)

class Locked(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()

class Two(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")

class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError

def die(line):
    if line == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return line

def hang(line):
    while line == "hang":
        pass
    return line

class Times:
    @staticmethod
    def two(line):
        return 2 * int(line)

async def later(line):
    return line

def beat(line):
    result = odd(line) if line.isdecimal() else len(line)
    sum(range(20_000))
    with open("beats", "wb", buffering=0) as beats:
        beats.write(b".")
    return result

not_callable = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with the tasks of these tests in ``tasks.py``."""
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if _is_under(module, tmp_path)]:
        del sys.modules[name]


def _is_under(module: object, directory: Path) -> bool:
    return str(getattr(module, "__file__", None)).startswith(str(directory))


def command(*arguments: object) -> list[str | bytes]:
    words = [word if isinstance(word, bytes) else str(word) for word in arguments]
    return [sys.executable, "-m", "mpworker.cli", *words]


def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, in the current directory."""
    done = subprocess.run(command(*arguments), input=stdin, capture_output=True, timeout=100, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def numbers(count: int, name: str = "in.txt") -> str:
    """Write the lines 0, 1, ... to a file."""
    Path(name).write_text("".join(f"{n}\n" for n in range(count)))
    return name


def lines(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def results(name: str = "out.jsonl") -> dict[object, object]:
    """Return the results by index, having checked that they are in order."""
    found = lines(name)
    assert [entry["index"] for entry in found] == sorted({entry["index"] for entry in found}, key=int)  # type: ignore[call-overload]
    return {entry["index"]: entry["result"] for entry in found}
