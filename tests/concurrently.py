"""Threads and programs of a test that run side by side, and waits that end."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import leaks

SCRIPTS = Path(__file__).with_name("campaign_scripts.py")
GUARD = 60.0  # seconds; no wait of a passing test comes near it


def eventually(condition: Callable[[], Any]) -> None:
    assert leaks.wait_until(condition, GUARD)


def together(*calls: Callable[[], object]) -> None:
    """Run each call in a thread of its own; raise what one of them raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        try:
            barrier.wait(GUARD)
            call()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    end = time.monotonic() + GUARD
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def a_function(value: int) -> Callable[[int], int]:
    return lambda x: x * 1000 + value


@contextmanager
def script(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A program of campaign_scripts, which must end with "fine"."""
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(SCRIPTS), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(2 * GUARD - 20, process.send_signal, (signal.SIGABRT,))  # prints every stack
    timer.start()
    try:
        with process:
            yield process
            assert process.stdout is not None
            rest = process.stdout.read()
            assert rest.rpartition("fine")[1], rest
        assert process.returncode == 0
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()


def lines(process: "subprocess.Popen[str]") -> Iterator[list[str]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line.split()
