"""What the soak runs in children, and the two files by which they say what really happens there.

- The log: each attempt writes a record when it begins and one when it ends, by one `write` to a file opened for
  appending, so that a record is whole or absent and a SIGKILL does not take it back. With it goes the time of its
  claim, out of the claim page itself.
- The locks: an attempt holds the byte of its task, and one of those that its concurrency key or its queue has. The
  kernel frees a dead process's locks before anybody can know of the death, so who finds one taken has seen two that
  were alive at once, whatever became of them.
"""

import fcntl
import hashlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import mpworker
from mpworker.errors import Retry
from mpworker.inline import runner
from mpworker.ipc.codec import TASK_MASK

# CLOCK_MONOTONIC ns, that of the claim, the pool's number of the task, the soak's, pid (with `debug=True` that
# of the thread), attempt, what.
RECORD: Final = struct.Struct("<qqqiiii")
BEGIN, OK, RAISED, LIVED_TWICE, TOO_MANY = 1, 2, 3, 4, 5
PLACES_AT: Final = 1 << 40
PLACES_MAX: Final = 64
FIRST_TICKET: Final = 1000  # those before it are of recurring tasks

# (the number of what is limited, how many may run)
Limits = tuple[tuple[int, int], ...]

_files: dict[str, tuple[int, int]] = {}
_kept: list[bytes] = []


class _Here(threading.local):
    """What this thread runs: with `debug=True` several may."""

    def __init__(self) -> None:
        self.held: list[int] = []  # bytes of the lock file
        self.now: tuple[str, int] | None = None  # what runs
        self.task_ran = False  # what ran last was neither an item nor a recurring task


_here = _Here()


def _open(folder: str) -> tuple[int, int]:
    found = _files.get(folder)
    if found is None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        found = _files[folder] = (os.open(f"{folder}/log", flags, 0o600), os.open(f"{folder}/locks", flags, 0o600))
    return found


def close(folder: str) -> None:
    """Close the files of this process, where it has run some itself."""
    for fd in _files.pop(folder, ()):
        os.close(fd)


def _write(folder: str, ticket: int, event: int) -> None:
    source: Any = mpworker.context._source
    attempt = (source if hasattr(source, "__self__") else runner.here.runner.context).__self__
    # With `debug=True` nobody claims it.
    claimed_ns = attempt._claims.peek(attempt.slot)[2] or time.monotonic_ns()
    key = attempt.task & TASK_MASK
    record = RECORD.pack(time.monotonic_ns(), claimed_ns, key, ticket, threading.get_native_id(), attempt.number, event)
    os.write(_open(folder)[0], record)


def _hold(folder: str, at: int) -> bool:
    _here.held.append(at)  # before: the interrupt may come right after the lock
    try:
        fcntl.lockf(_open(folder)[1], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
    except BlockingIOError:
        _here.held.remove(at)
        return False
    return True


def _begin(folder: str, ticket: int, limits: Limits) -> None:
    _write(folder, ticket, BEGIN)
    _here.now = (folder, ticket)  # an interrupt before this leaves a begin without an end, and no lock
    if not _hold(folder, ticket):
        _write(folder, ticket, LIVED_TWICE)
    for number, most in limits:
        first = PLACES_AT + number * PLACES_MAX
        if not any(_hold(folder, first + place) for place in range(most)):
            _write(folder, ticket, TOO_MANY)


def _end(event: int) -> None:
    """What has begun is over; it may be interrupted, and called again."""
    if _here.now is None:
        return
    folder, ticket = _here.now
    while _here.held:
        fcntl.lockf(_open(folder)[1], fcntl.LOCK_UN, 1, _here.held[-1])
        _here.held.pop()
    _write(folder, ticket, event)
    _here.now = None


def run(folder: str, ticket: int, limits: Limits, doing: str, amount: Any) -> Any:
    """One attempt."""
    return _run(ticket >= FIRST_TICKET, folder, ticket, limits, doing, amount)


def _run(is_task: bool, folder: str, ticket: int, limits: Limits, doing: str, amount: Any) -> Any:
    _here.task_ran = is_task
    event = RAISED
    try:
        try:
            _begin(folder, ticket, limits)
            value = DOINGS[doing](ticket, amount)
            event = OK
            return value
        finally:
            _end(event)
    finally:
        _end(event)  # the one interrupt of an attempt may have come into the other one


def quick(folder: str, ticket: int, limits: Limits, doing: str, amount: Any) -> Any:
    """The same, and another function to the pool: one that is known to take no time, so that many are sent ahead."""
    return run(folder, ticket, limits, doing, amount)


def item(folder: str, ticket: int, doing: str, amount: Any) -> Any:
    return _run(False, folder, ticket, (), doing, amount)


def was_task() -> bool:
    """Was what ran here last a task, and neither an item of a map nor a recurring task?"""
    return _here.task_ran


def expected(ticket: int, doing: str, amount: Any) -> Any:
    """What it comes to, if it does."""
    if doing == "grow":
        return _grow(ticket, amount)
    if doing == "take":
        return ticket * 3, len(amount)
    return ticket * 3


def _busy(ticket: int, ns: int) -> int:
    until = time.monotonic_ns() + ns
    while time.monotonic_ns() < until:
        pass
    return ticket * 3


def _sleep(ticket: int, seconds: float) -> int:
    time.sleep(seconds)
    return ticket * 3


def _hang(ticket: int, iterations: int) -> int:
    """In C code, which takes no interrupt, for minutes."""
    hashlib.pbkdf2_hmac("sha256", b"soak", b"soak", iterations)
    return ticket * 3


def _swallow(ticket: int, seconds: float) -> int:
    """An interrupt is taken, and ignored."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(seconds)
        except BaseException:  # noqa: BLE001
            time.sleep(0.01)
    return ticket * 3


def _fail(ticket: int, times: int) -> int:
    if mpworker.current().attempt <= times:
        raise ValueError(ticket)
    return ticket * 3


def _give_up(ticket: int, _: int) -> int:
    raise KeyError(ticket)


def _again(ticket: int, times: int) -> int:
    if mpworker.current().attempt <= times:
        raise Retry(0.02)
    return ticket * 3


def _die(ticket: int, how: tuple[int, int]) -> int:
    number, times = how
    if mpworker.current().attempt <= times:
        os.kill(os.getpid(), number)
        time.sleep(60.0)
    return ticket * 3


def _exit_hard(ticket: int, times: int) -> int:
    if mpworker.current().attempt <= times:
        os._exit(3)
    return ticket * 3


def _exit(ticket: int, _: int) -> int:
    sys.exit(3)


def _grow(ticket: int, size: int) -> bytes:
    return ticket.to_bytes(4, "little") * (size // 4)


def _take(ticket: int, data: bytes) -> tuple[int, int]:
    return ticket * 3, len(data)


def _fat(ticket: int, size: int) -> int:
    """The child keeps more than it should."""
    _kept.append(b"x" * size)
    return ticket * 3


def _fatter(ticket: int, size: int) -> int:
    """More than it may ever have."""
    data = b"x" * size
    time.sleep(10.0)
    return ticket * 3 + len(data)


def _spawn(ticket: int, seconds: int) -> int:
    """What a task has started goes with its child."""
    subprocess.Popen(["sleep", str(seconds)]).returncode = 0  # nobody waits for it
    return ticket * 3


def _unpicklable(ticket: int, _: int) -> Any:
    return (each for each in ())


DOINGS: Final[dict[str, Callable[[int, Any], Any]]] = {
    "busy": _busy,
    "sleep": _sleep,
    "long": _sleep,
    "hang": _hang,
    "swallow": _swallow,
    "fail": _fail,
    "give up": _give_up,
    "again": _again,
    "die": _die,
    "exit hard": _exit_hard,
    "exit": _exit,
    "grow": _grow,
    "take": _take,
    "fat": _fat,
    "fatter": _fatter,
    "spawn": _spawn,
    "unpicklable": _unpicklable,
}
KILLS: Final = (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
