"""Tasks for the tests: importable, and light for the children that import them."""

import os
import select
import time
from pathlib import Path
from typing import Any

GUARD_SECONDS = 60.0

calls = 0


class Gate:
    """Tasks that wait for the test, and a test that waits for the tasks; by two FIFOs, so nobody polls.

    The test makes it; `hold` and `pass_by` run in children with its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self._fds = []
        for name in ("begun", "release"):
            os.mkfifo(folder / name)
            self._fds.append(os.open(folder / name, os.O_RDWR | os.O_CLOEXEC))

    def wait_begun(self, count: int = 1) -> None:
        """Wait until `count` more tasks are in `hold`."""
        for _ in range(count):
            readable, _, _ = select.select([self._fds[0]], [], [], GUARD_SECONDS)
            assert readable, "no task has begun"
            os.read(self._fds[0], 1)

    def begun(self) -> bool:
        """Has one more begun by now?"""
        return bool(select.select([self._fds[0]], [], [], 0)[0])

    def release(self, count: int = 1) -> None:
        """Let `count` tasks go on."""
        os.write(self._fds[1], b"x" * count)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def hold(folder: str, value: Any = None) -> Any:
    """Tell the gate in `folder`, wait until it lets one go, and return `value`."""
    # Opened before the gate is told: it may be closed from then on, which ends the read and would block an open.
    with open(f"{folder}/release", "rb", buffering=0) as release:
        with open(f"{folder}/begun", "wb", buffering=0) as begun:
            begun.write(b"x")
        release.read(1)
    return value


def hold_and_fail(folder: str, message: str) -> None:
    hold(folder)
    raise ValueError(message)


def wait_for_file(path: str) -> str:
    """Until it is there."""
    while not Path(path).exists():
        time.sleep(0.005)
    return "there"


def fail_once(path: str) -> str:
    """At first, and then no more: a file keeps that in mind."""
    if Path(path).exists():
        return "done"
    Path(path).touch()
    raise ValueError("not yet")


def run_with(folder: str) -> int:
    """How many run at once, of all that are given this folder."""
    mine = Path(folder) / str(time.monotonic_ns())
    mine.touch()
    time.sleep(0.02)
    seen = len(list(Path(folder).iterdir()))
    mine.unlink()
    return seen


def note(path: str, value: object) -> object:
    """Append a line to a file."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{value}\n".encode())
    os.close(fd)
    return value


def notes(path: Path) -> list[str]:
    """The lines of such a file; none while nobody has noted anything."""
    return path.read_text().splitlines() if path.exists() else []


def note_and_rest(path: str, number: int) -> int:
    note(path, number)
    time.sleep(0.002)
    return number


def note_both(path: str, number: int) -> int:
    """Append a line at the begin and one at the end, with time for an interrupt between them."""
    note(path, f"+{number}")
    sum(range(2000))
    note(path, f"-{number}")
    return number


def fail(message: object) -> None:
    raise ValueError(message)


def fail_if_odd(number: int) -> int:
    if number % 2:
        raise ValueError(number)
    return number


def square(number: int) -> int:
    return number * number


def add(left: int, right: int) -> int:
    return left + right


def pid(_: object = None) -> int:
    return os.getpid()


def count_calls() -> int:
    """How often this process has called it."""
    global calls
    calls += 1
    return calls


class Unpicklable:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("an Unpicklable cannot be pickled")


class Unloadable:
    """Can be pickled, and not be made again."""

    def __reduce__(self) -> Any:
        return fail, ("an Unloadable cannot be loaded",)


def hold_and_note(folder: str, value: int) -> None:
    hold(folder)
    note(f"{folder}/noted", value)


def sleep_with(_secret: str) -> None:
    time.sleep(GUARD_SECONDS)


def die_with(_secret: str) -> None:
    os._exit(3)
