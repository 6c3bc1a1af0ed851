"""Threads of a test that run side by side, and waits that end."""

import threading
import time
from collections.abc import Callable
from typing import Any

import leaks

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
