"""A stop that has a time returns when it is over, though the supervisor answers nothing; and nothing is left."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import leaks
import pooljobs
import pytest
from pooljobs import Gate

import mpworker.ending
import mpworker.loopending
from mpworker import AsyncProcessWorker, ProcessWorker, Task
from mpworker.client import Client
from mpworker.errors import TaskCancelled
from mpworker.ipc import codec

GUARD = 60.0  # seconds; only a bound for what would hang
SOON = 20.0  # seconds; far more than the quarter of a second that is promised, for a busy machine


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `stop_now` may wait for, no stop with a time does."""
    monkeypatch.setattr(mpworker.ending, "_EXIT_SECONDS", 1.5 * SOON)
    monkeypatch.setattr(mpworker.loopending, "_EXIT_SECONDS", 1.5 * SOON)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.close()


def gone(processes: dict[str, Any]) -> bool:
    pids = [processes["supervisor"], processes["nursery"], *(child["pid"] for child in processes["children"])]
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def fill(client: Client) -> None:
    """Leave no room for any record to the supervisor, which is stopped."""
    while client._push(codec.FORGET, 0, 1 << 20, 0, 0, b""):  # a function that it does not know
        pass


def in_a_handler(stop: Callable[[], object]) -> None:
    was = signal.signal(signal.SIGUSR1, lambda *_: stop() and None)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, was)


@pytest.mark.parametrize("full", [False, True], ids=["", "full ring"])
@pytest.mark.parametrize("how", ["plain", "cancel_queued", "handler", "wait=False"])
def test_a_frozen_supervisor_is_killed_when_the_time_is_over(how: str, full: bool, gate: Gate) -> None:
    pool = ProcessWorker(n=1, client_ring_bytes=4096)
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    pool.register_cron_task("never", "@yearly", Task(abs, (1,)))  # a stop asks for what recurs
    processes = pool.processes()
    os.kill(processes["supervisor"], signal.SIGSTOP)
    if full:
        fill(pool._client)
    began_at = time.monotonic()
    if how == "handler":
        in_a_handler(lambda: pool.stop_graceful(timeout=0.1))
    elif how == "wait=False":
        assert not pool.stop_graceful(timeout=0.1, wait=False)
    else:
        report = pool.stop_graceful(timeout=0.1, cancel_queued=how == "cancel_queued")
        assert (bool(report), report.task_ids) == (False, (held.task_id,))
    if how == "wait=False":
        assert leaks.wait_until(held.cancelled, SOON)
    assert time.monotonic() - began_at < SOON
    assert held.cancelled()
    assert leaks.wait_until(lambda: gone(processes), GUARD)


@pytest.mark.parametrize("wait", [True, False])
def test_in_an_event_loop(wait: bool, gate: Gate) -> None:
    async def main() -> dict[str, Any]:
        pool = AsyncProcessWorker(n=1)
        held = pool.submit(pooljobs.hold, gate.folder)
        await asyncio.to_thread(gate.wait_begun)
        await pool.register_cron_task("never", "@yearly", Task(abs, (1,)))
        processes = await pool.processes()
        os.kill(processes["supervisor"], signal.SIGSTOP)
        began_at = time.monotonic()
        report = await pool.stop_graceful(timeout=0.1, wait=wait)
        assert (bool(report), report.task_ids) == (False, (held.task_id,))
        await asyncio.wait([held], timeout=SOON)
        assert time.monotonic() - began_at < SOON
        assert isinstance(held.exception(), TaskCancelled)
        return processes

    processes = asyncio.run(main())
    assert leaks.wait_until(lambda: gone(processes), GUARD)


def test_a_supervisor_that_has_too_much_to_do_is_killed_too() -> None:
    pool = ProcessWorker(n=1)
    os.kill(pool.processes()["supervisor"], signal.SIGSTOP)
    for number in range(3000):
        pool.set_queue("abcdefgh"[number % 8], weight=1 + number * 37 % 100)
    os.kill(pool._client.supervisor.pid, signal.SIGCONT)
    began_at = time.monotonic()
    assert pool.stop_graceful(timeout=0.1), "nothing had been accepted"
    assert time.monotonic() - began_at < SOON


def test_a_callback_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    monkeypatch.setattr(mpworker.ending, "_CALLBACK_SECONDS", 1.5 * SOON)
    pool = ProcessWorker(n=1)
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    go_on = threading.Event()
    held.add_done_callback(lambda _: go_on.wait(GUARD))
    began_at = time.monotonic()
    assert not pool.stop_graceful(timeout=0.1)
    assert time.monotonic() - began_at < SOON
    go_on.set()
    assert leaks.wait_until(lambda: not pool._client.background.running, GUARD)
