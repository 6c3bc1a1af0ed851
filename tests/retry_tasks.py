"""What the tests of retries have the children run. Apart from the tests, so that a child imports no test library."""

import os
import signal
import time
from pathlib import Path

import mpworker
from mpworker.errors import Retry


class Transient(ConnectionError):
    """What may go well the next time."""


def note(path: Path) -> int:
    """Write down that an attempt begins, and when; which it is."""
    with path.open("a") as file:
        file.write(f"{time.monotonic()}\n")
    return mpworker.current().attempt


def times(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()]


def fail_until(path: Path, attempt: int) -> int:
    if note(path) < attempt:
        raise Transient
    return attempt


def die_until(path: Path, attempt: int) -> int:
    if note(path) < attempt:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


def sleep_at_first(path: Path) -> int:
    attempt = note(path)
    if attempt == 1:
        time.sleep(600)  # its timeout ends it
    return attempt


def ask_until(path: Path, attempt: int, after: float | None) -> int:
    if note(path) < attempt:
        raise Retry(after)
    return attempt


def fail_third_once(item: tuple[Path, int]) -> int:
    path, number = item
    return number if number != 2 else number * fail_until(path, 2)


def fail_third_always(item: tuple[Path, int]) -> int:
    path, number = item
    return number if number != 2 else fail_until(path, 99)


def ask_at_third(item: tuple[Path, int]) -> int:
    path, number = item
    return number if number != 2 else ask_until(path, 2, 0.1)
