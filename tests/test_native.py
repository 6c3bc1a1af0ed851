"""The C module as a guest of the interpreter: it leaks nothing, survives a fork, and is one binary for all versions."""

import gc
import itertools
import json
import mmap
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpworker.ipc import _native
from mpworker.ipc._native import AttemptState, Bell, Claims, Extents, Loan, Ring, Submit, Tasks

sys.path.append(str(Path(__file__).parent / "native"))
import peer

ROOT = Path(__file__).parent.parent
ROUNDS = 10_000
# Blocks that a free list or a cache of the interpreter may keep; a leak of one object a call shows as ROUNDS.
SLACK = 200
PR_GET_DUMPABLE = 3

Calls = dict[str, list[tuple[type[Exception] | None, Callable[[], object]]]]


_memory_fds: list[int] = []


def memfd() -> int:
    """A file in memory, which the test that needs it closes."""
    _memory_fds.append(os.memfd_create("test"))
    return _memory_fds[-1]


@pytest.fixture(autouse=True)
def _close_files() -> Iterator[None]:
    yield
    while _memory_fds:
        os.close(_memory_fds.pop())


def detached(fd: int) -> Loan:
    """A loan that is the arena's no more."""
    loan = Loan(fd, 0, 4096, [], 3)
    loan.detach()
    return loan


def calls(fd: int) -> Calls:
    """For each exported function the calls to repeat: those that succeed, and one for each way to fail."""
    memory = mmap.mmap(-1, 8192)
    large, small = 2**64 - 1, b"x" * 40
    producer, consumer = (Ring(memory, 0, 1024, 256) for _ in range(2))
    full = Ring(memory, 1280, 4096, 256)
    while full.push(0, 0, 0, 0, 0, b""):
        pass
    tail_lies, head_lies = (Ring(memory, at, 4096, 256) for at in (1536, 1792))
    memory[1536:1544] = large.to_bytes(8, "little")
    for _ in range(8):
        head_lies.push(0, 0, 0, 0, 0, b"")
    memory[1792 + 64 : 1792 + 72] = large.to_bytes(8, "little")
    condemned = Ring(memory, 1536, 4096, 256)
    with pytest.raises(_native.RingCorrupt):
        condemned.pop([], 1)
    bell = Bell(memory, 512, fd)
    closed = Bell(memory, 640, -1)
    closed_armed = Bell(memory, 640, -1)
    claims = Claims(mmap.mmap(-1, 4096), 4)
    generation = iter(range(1, 10 * ROUNDS))

    def push_and_pop() -> None:
        assert producer.push(1, 2, large, large, large, small)
        assert consumer.pop([], 2) == 1

    def ring() -> None:
        bell.arm()
        bell.ring()

    def ring_closed() -> None:
        closed_armed.arm()
        closed_armed.ring()

    def ring_room() -> None:
        bell.want_room(True)
        bell.arm()
        bell.ring_room()

    def ring_room_closed() -> None:
        closed_armed.want_room(True)
        closed_armed.arm()
        closed_armed.ring_room()

    class Untrue:
        def __bool__(self) -> bool:
            return bool(1 // 0)

    def offer() -> None:
        claims.offer(3, next(generation))

    memory_fd = memfd()
    os.ftruncate(memory_fd, 8192)
    extents, loan, unheard = Extents(1 << 20), Loan(memory_fd, 0, 8192), Loan(memory_fd, 0, 8192, [], 1)

    def take_and_give() -> None:
        taken: list[tuple[int, int, int]] = []
        assert extents.take(5000, taken)
        assert extents.give(taken[0][0])

    def lend_and_return() -> None:
        returned: list[int] = []
        lent = Loan(memory_fd, 0, 4096, returned, 7)
        lent.arm()
        del lent
        assert returned == [7]

    def detach() -> None:
        lent = Loan(memory_fd, 0, 4096, [], 7)
        lent.arm()
        lent.detach()

    def detach_all() -> None:
        lent = Loan(memory_fd, 0, 4096, [], 7)
        _native.detach_all()
        assert lent.locate(memoryview(lent)) == -1

    def send_offer() -> None:
        assert claims.send_offer(3, next(generation), producer, 1, 0, large, 3, b"12")
        assert consumer.pop([], 8) == 1

    plain = (1, -2, 1 << 40, 2.5, "text", "h\xe9" * 200, b"bytes", bytes(300), (None, True, ((), {})))
    plain_data = _native.dumps_plain(plain)
    assert plain_data is not None

    def claim() -> None:
        now = next(generation)
        claims.offer(3, now)
        assert claims.claim(3, now)

    task_memory = mmap.mmap(-1, 1 << 16)
    to_child, from_child = Ring(task_memory, 0, 8192, 8192), Ring(task_memory, 128, 16384, 8192)
    child_in, child_out = Ring(task_memory, 0, 8192, 8192), Ring(task_memory, 128, 16384, 8192)
    attempt = AttemptState()
    functions: dict[int, object] = {1: pow, 2: int, 3: list, 4: b"unread"}
    told = (lambda value: (0, pickle.dumps(value)),) * 3
    page = Claims(mmap.mmap(-1, 4096), 4)
    parts = (page, attempt, child_in, child_out, closed, functions, pickle.loads, *told, child_out.push, 4096, True)
    tasks = Tasks(*parts)  # type: ignore[arg-type]

    def dumps(value: object) -> bytes:
        return _native.dumps_plain(value) or pickle.dumps(value, 5)

    def run(function: int, *args: object, flags: int = 1) -> None:
        """Those that are claimed: a value, an exception, and, as it is in the arguments, what pickle must read."""
        number = next(generation)
        page.send_offer(0, number, to_child, _native.TASK, flags, 77, function << 8, dumps((args, {})))
        unusual = flags != 1 or function == 4
        assert (tasks.run() is None) is not unusual
        assert from_child.pop([], 8) == (not unusual)

    client_in, client_out = Ring(task_memory, 256, 24576, 8192), Ring(task_memory, 384, 32768, 8192)
    taken = Ring(task_memory, 384, 32768, 8192)
    client = type("Client", (), {"_closed": "", "_last_key": 0, "_submit": None})()
    entries = {id(abs): type("Entry", (), {"guard": None, "key": 1 << 20})}
    pending: dict[int, object] = {}
    live = {1 << 20: "abs"}
    kept: dict[int, object] = {}
    sends = (client_out, client_in, closed, entries, live, pending, itertools.count(1 << 20), len, kept, 9, 4096, 4096)
    submit = client._submit = Submit(*sends)

    def make(*made: object) -> object:
        return made

    def push_keeping() -> None:
        assert producer.push_keeping(kept, large, 0, 0, 1 << 30, 0, 0, b"")
        consumer.pop([], 9)
        kept.clear()

    def submitted(function: Callable[..., object], *args: object, details: bytes = b"") -> None:
        future = submit.submit(client, function, args, {}, 1 << 20, details, make)
        assert bool(pending) == bool(taken.pop([], 8)) == (type(future) is tuple)
        pending.clear()
        kept.clear()

    def submitted_all(*functions: Callable[..., object], args: tuple[object, ...] = (1000,)) -> None:
        futures: list[object] = []
        submit.submit_all(client, [(function, args, {}, 1 << 20, b"", make) for function in functions], futures)
        assert len(futures) == len(pending) == taken.pop([], 8)
        pending.clear()
        kept.clear()

    return {
        "AttemptState": [(None, AttemptState)],
        **{
            f"AttemptState.{name}": [
                (None, lambda name=name, value=value: (setattr(attempt, name, value), getattr(attempt, name))),
                (error, lambda name=name: setattr(attempt, name, "7")),
            ]
            for name, value, error in (
                *(("running", large, TypeError), ("task", large, TypeError)),
                *(("slot", 7, TypeError), ("number", 0, TypeError)),
                *((name, False, TypeError) for name in ("early", "itemwise", "orphans", "held_back")),
                *(("details", small, None), ("stack", None, None)),
            )
        },
        "Tasks": [
            (None, lambda: Tasks(*parts)),  # type: ignore[arg-type]
            (TypeError, lambda: Tasks(attempt, *parts[1:])),  # type: ignore[arg-type]
            (TypeError, lambda: Tasks(*parts[:5], [], *parts[6:])),  # type: ignore[arg-type]
            (TypeError, lambda: Tasks(*parts[:-2], "1", True)),  # type: ignore[arg-type]
        ],
        "Tasks.run": [
            (None, tasks.run),
            (None, lambda: run(1, 1000, 7)),
            (None, lambda: run(1, 2**70, 7)),
            (None, lambda: run(2, "no number")),
            (None, lambda: run(3, [1000, 2000])),
            (None, lambda: run(4)),
            (None, lambda: run(1, 1000, 7, flags=1 << 9)),
            (_native.RingCorrupt, Tasks(*parts[:2], condemned, *parts[3:]).run),  # type: ignore[arg-type]
        ],
        "Submit": [
            (None, lambda: Submit(*sends)),
            (TypeError, lambda: Submit(closed, *sends[1:])),  # type: ignore[arg-type]
            (TypeError, lambda: Submit(*sends[:4], [], *sends[5:])),  # type: ignore[arg-type]
            (TypeError, lambda: Submit(*sends[:6], [], *sends[7:])),  # type: ignore[arg-type]
            (TypeError, lambda: Submit(*sends[:8], [], *sends[9:])),  # type: ignore[arg-type]
        ],
        "Submit.submit": [
            (None, lambda: submitted(abs, 1000)),
            (None, lambda: submitted(abs, 1000, details=small)),
            (None, lambda: submitted(abs, [])),
            (None, lambda: submitted(len, 1)),
            (TypeError, lambda: submit.submit(client, abs, (1,), {}, 0, b"", len)),  # type: ignore[arg-type]
            (TypeError, lambda: submit.submit(client, abs, [], {}, 0, b"", make)),  # type: ignore[arg-type]
            (OverflowError, lambda: submit.submit(client, abs, (1,), {}, -1, b"", make)),
            (AttributeError, lambda: submit.submit(7, abs, (1,), {}, 0, b"", make)),
            (TypeError, lambda: submit.submit(client)),  # type: ignore[call-arg]
        ],
        "Submit.submit_all": [
            (None, lambda: submitted_all(abs, abs)),
            (None, lambda: submitted_all(abs, len)),
            (None, lambda: submitted_all(abs, args=([],))),
            (TypeError, lambda: submit.submit_all(client, (), [])),  # type: ignore[arg-type]
            (TypeError, lambda: submit.submit_all(client, [7], [])),  # type: ignore[list-item]
            (TypeError, lambda: submit.submit_all(client, [(abs, (1,), {}, 0, b"", len)], [])),  # type: ignore[list-item]
        ],
        "Ring": [
            (None, lambda: Ring(memory, 0, 1024, 256)),
            (ValueError, lambda: Ring(memory, 0, 1024, 255)),
            (ValueError, lambda: Ring(memory, 1, 1024, 256)),
            (ValueError, lambda: Ring(memory, 0, 8128, 256)),
            (BufferError, lambda: Ring(small, 0, 1024, 256)),
            (TypeError, lambda: Ring(memory)),  # type: ignore[call-arg]
            (TypeError, lambda: Ring(memory, 0, 1024, capacity=256)),  # type: ignore[call-arg]
        ],
        "Ring.push": [
            (None, push_and_pop),
            (None, lambda: full.push(0, 0, 0, 0, 0, small)),
            (ValueError, lambda: producer.push(0, 0, 0, 0, 0, bytes(400))),
            (ValueError, lambda: producer.push(2**16, 0, 0, 0, 0, small)),
            (OverflowError, lambda: producer.push(0, 0, -1, 0, 0, small)),
            (TypeError, lambda: producer.push(0, 0, 0, 0, 0, "text")),  # type: ignore[arg-type]
            (TypeError, lambda: producer.push(0)),  # type: ignore[call-arg]
            (_native.RingCorrupt, lambda: head_lies.push(0, 0, 0, 0, 0, small)),
        ],
        "Ring.push_keeping": [
            (None, lambda: (full.push_keeping(kept, large, 0, 0, 1 << 30, 0, 0, small), kept.clear())),
            (
                None,
                lambda: (
                    producer.push_keeping(kept, large, 0, 0, 1 << 30, 0, 0, b""),
                    consumer.pop([], 9),
                    kept.clear(),
                ),
            ),
            (ValueError, lambda: producer.push_keeping(kept, large, 0, 0, 1 << 30, 0, 0, bytes(400))),
            (TypeError, lambda: producer.push_keeping([], large, 0, 0, 1 << 30, 0, 0, small)),  # type: ignore[arg-type]
            (TypeError, lambda: producer.push_keeping(kept, large, 0, 0, "1", 0, 0, small)),  # type: ignore[arg-type]
            (TypeError, lambda: producer.push_keeping(kept)),  # type: ignore[call-arg]
            (_native.RingCorrupt, lambda: head_lies.push_keeping(kept, large, 0, 0, 1 << 30, 0, 0, small)),
        ],
        "Ring.pop": [
            (None, push_and_pop),
            (None, lambda: consumer.pop([], 2)),
            (TypeError, lambda: consumer.pop((), 2)),  # type: ignore[arg-type]
            (TypeError, lambda: consumer.pop([])),  # type: ignore[call-arg]
            (OverflowError, lambda: consumer.pop([], -1)),
            (_native.RingCorrupt, lambda: tail_lies.pop([], 1)),
        ],
        "Ring.readable": [
            (None, consumer.readable),
            (_native.RingCorrupt, condemned.readable),
        ],
        "Ring.fits": [
            (None, lambda: producer.fits(40)),
            (TypeError, lambda: producer.fits("40")),  # type: ignore[arg-type]
            (_native.RingCorrupt, lambda: head_lies.fits(40)),
        ],
        "Ring.fill": [
            (None, producer.fill),
            (_native.RingCorrupt, condemned.fill),
        ],
        "Ring.max_payload": [(None, lambda: producer.max_payload)],
        "prctl": [
            (None, lambda: _native.prctl(PR_GET_DUMPABLE, 0)),
            (OSError, lambda: _native.prctl(-1, 0)),
            (OSError, lambda: _native.prctl(1 << 40, 0)),
            (OverflowError, lambda: _native.prctl(1 << 70, 0)),
            (TypeError, lambda: _native.prctl(1)),  # type: ignore[call-arg]
        ],
        "Bell": [
            (None, lambda: Bell(memory, 512, fd)),
            (ValueError, lambda: Bell(memory, 8192, fd)),
            (BufferError, lambda: Bell(small, 0, fd)),
            (TypeError, lambda: Bell(memory, 512, fd=fd)),  # type: ignore[call-arg]
        ],
        "Bell.ring": [(None, ring), (None, closed.ring), (OSError, ring_closed)],
        "Bell.ring_room": [(None, ring_room), (None, closed.ring_room), (OSError, ring_room_closed)],
        "Bell.want_room": [(None, lambda: bell.want_room(True)), (ZeroDivisionError, lambda: bell.want_room(Untrue()))],  # type: ignore[arg-type]
        "Bell.wake": [(None, bell.wake), (OSError, closed.wake)],
        "Bell.drain": [(None, bell.drain), (OSError, closed.drain)],
        "Bell.arm": [(None, bell.arm)],
        "Bell.disarm": [(None, bell.disarm)],
        "Bell.wait": [
            (None, lambda: bell.wait(consumer, producer, 8, 0.0, -1, 0, False)),
            (None, lambda: bell.wait(None, full, 8, 0.0, fd, 1, False)),
            (None, lambda: bell.wait(consumer, producer, 8, 0.0, -1, 0, False, 1000)),
            (OverflowError, lambda: bell.wait(consumer, producer, 8, 0.0, -1, 0, False, -1)),
            (TypeError, lambda: bell.wait(memory, None, 0, 0.0, -1, 0, False)),  # type: ignore[arg-type]
            (TypeError, lambda: bell.wait(None, None, 0, "", -1, 0, False)),  # type: ignore[arg-type]
            (TypeError, lambda: bell.wait(None)),  # type: ignore[call-arg]
            (ZeroDivisionError, lambda: bell.wait(None, None, 0, 0.0, -1, 0, Untrue())),  # type: ignore[arg-type]
            (ValueError, lambda: bell.wait(None, producer, 400, 0.0, -1, 0, False)),
            (ValueError, lambda: bell.wait(None, None, 0, 0.0, 2**40, 0, False)),
            (_native.RingCorrupt, lambda: bell.wait(condemned, None, 0, 0.0, -1, 0, False)),
        ],
        "Bell.waiting": [(None, lambda: bell.waiting)],
        "Claims": [
            (None, lambda: Claims(memory, 4)),
            (ValueError, lambda: Claims(memory, 0)),
            (ValueError, lambda: Claims(memory, 256)),
            (BufferError, lambda: Claims(small, 1)),
            (TypeError, lambda: Claims(memory, slots=1)),  # type: ignore[call-arg]
        ],
        "Claims.offer": [(None, offer), (ValueError, lambda: claims.offer(0, 0))],
        "Claims.send_offer": [
            (None, send_offer),
            (None, lambda: claims.send_offer(3, next(generation), full, 1, 0, 0, 3, b"1")),
            (None, lambda: claims.send_offer(3, next(generation), producer, 1, 0, 0, 3, bytes(4096))),
            (ValueError, lambda: claims.send_offer(3, 0, producer, 1, 0, 0, 3, b"1")),
            (ValueError, lambda: claims.send_offer(3, 1, None, 1, 0, 0, 3, b"1")),  # type: ignore[arg-type]
            (ValueError, lambda: claims.send_offer(3, 1, producer, 1 << 16, 0, 0, 3, b"1")),
            (IndexError, lambda: claims.send_offer(4, 1, producer, 1, 0, 0, 3, b"1")),
            (OverflowError, lambda: claims.send_offer(3, 1, producer, 1, 0, -1, 3, b"1")),
            (TypeError, lambda: claims.send_offer(3, 1, producer, 1, 0, 0, 3, "1")),  # type: ignore[arg-type]
            (TypeError, lambda: claims.send_offer(3)),  # type: ignore[call-arg]
            (_native.RingCorrupt, lambda: claims.send_offer(3, next(generation), head_lies, 1, 0, 0, 3, b"1")),
        ],
        "Claims.claim": [(None, claim), (None, lambda: claims.claim(0, 7)), (IndexError, lambda: claims.claim(4, 7))],
        "Claims.revoke": [(None, lambda: claims.revoke(0, 7)), (ValueError, lambda: claims.revoke(0, large))],
        "Claims.run": [
            (None, lambda: claims.run(0, 7, abs, [-1000, 5000.0], [], 0, 2, False, 0)),
            (None, lambda: claims.run(0, 7, pow, [(1000, 2), (3, 70)], [], 0, 2, True, large)),
            (ZeroDivisionError, lambda: claims.run(0, 7, (1000).__floordiv__, [1, 0], [], 0, 2, False, large)),
            (IndexError, lambda: claims.run(0, 7, abs, [], [], 0, 1, False, large)),
            (TypeError, lambda: claims.run(0, 7, abs, (), [], 0, 1, False, large)),  # type: ignore[arg-type]
            (TypeError, lambda: claims.run(0, 7, abs, [], (), 0, 1, False, large)),  # type: ignore[arg-type]
            (TypeError, lambda: claims.run(0, 7, 7, [1], [], 0, 1, False, large)),  # type: ignore[arg-type]
            (OverflowError, lambda: claims.run(0, 7, abs, [], [], 0, -1, False, large)),
        ],
        "Claims.inside": [(None, lambda: claims.inside)],
        "Claims.halt": [(None, lambda: claims.halt(0, 7)), (TypeError, lambda: claims.halt(0, "7"))],  # type: ignore[arg-type]
        "Claims.peek": [(None, lambda: claims.peek(0)), (IndexError, lambda: claims.peek(large))],
        "Claims.beat": [(None, claims.beat)],
        "Extents": [
            (None, lambda: Extents(1 << 20)),
            (ValueError, lambda: Extents(-1)),
            (TypeError, lambda: Extents("1")),  # type: ignore[arg-type]
        ],
        "Extents.take": [
            (None, take_and_give),
            (None, lambda: extents.take(1 << 21, [])),
            (TypeError, lambda: extents.take(1, ())),  # type: ignore[arg-type]
            (TypeError, lambda: extents.take(1)),  # type: ignore[call-arg]
            (OverflowError, lambda: extents.take(-1, [])),
        ],
        "Extents.give": [
            (None, take_and_give),
            (None, lambda: extents.give(0)),
            (OverflowError, lambda: extents.give(-1)),
        ],
        "Extents.taken": [(None, lambda: extents.taken)],
        "Extents.largest": [(None, lambda: extents.largest)],
        "Loan": [
            (None, lend_and_return),
            (ValueError, lambda: Loan(memory_fd, 0, 1)),
            (ValueError, lambda: Loan(memory_fd, 1, 4096)),
            (OSError, lambda: Loan(-1, 0, 4096)),
            (TypeError, lambda: Loan(memory_fd, 0, 4096, ())),  # type: ignore[arg-type]
        ],
        "Loan.arm": [(None, unheard.arm), (None, lend_and_return)],
        "Loan.detach": [(None, detach), (None, detached(memory_fd).detach)],
        "Loan.locate": [
            (None, lambda: loan.locate(memoryview(loan)[10:20])),
            (None, lambda: loan.locate(small)),
            (TypeError, lambda: loan.locate(1)),  # type: ignore[arg-type]
        ],
        "Loan.views": [(None, lambda: loan.views)],
        # That it starts is seen in test_native_start.py: here are the ways not to.
        "start": [
            (FileNotFoundError, lambda: _native.start(b"/no/such/program", [b"x", b"0"], 1, [], [], 0, 0, 0)),
            (ValueError, lambda: _native.start(b"x", [b"x"], 1, [], [], 0, 0, 0)),
            (ValueError, lambda: _native.start(b"x", [b"x", b"0"], 1, [], [b"a\0b"], 0, 0, 0)),
            (TypeError, lambda: _native.start(b"x", [b"x", b"0"], 1, [small, "y"], [], 0, 0, 0)),  # type: ignore[list-item]
        ],
        "to_main_thread": [
            (None, lambda: _native.to_main_thread(signal.SIGINT)),
            (ValueError, lambda: _native.to_main_thread(signal.SIGKILL)),
            (ValueError, lambda: _native.to_main_thread(0)),
            (TypeError, lambda: _native.to_main_thread(signal.SIGINT, "1")),  # type: ignore[arg-type]
            (TypeError, lambda: _native.to_main_thread("1")),  # type: ignore[arg-type]
        ],
        "keep": [(None, lambda: _native.keep(memory))],
        "dumps_plain": [
            (None, lambda: _native.dumps_plain(plain)),
            (None, lambda: _native.dumps_plain((1, "\ud800"))),
            (None, lambda: _native.dumps_plain(([],))),
            (None, lambda: _native.dumps_plain(bytes(5000))),
        ],
        "loads_plain": [
            (None, lambda: _native.loads_plain(plain_data, pickle.loads)),
            (None, lambda: _native.loads_plain(plain_data[:-1], len)),  # ends in the middle, with values in hand
            (None, lambda: _native.loads_plain(pickle.dumps([plain], 5), pickle.loads)),
            (None, lambda: _native.loads_plain(memory, len)),
            (TypeError, lambda: _native.loads_plain(b"", None)),  # type: ignore[arg-type]
            (TypeError, lambda: _native.loads_plain(b"")),  # type: ignore[call-arg]
        ],
        "detach_all": [
            (None, detach_all),
            (None, lambda: _native.detach_all([])),
            (None, lambda: _native.detach_all([], True)),
            (TypeError, lambda: _native.detach_all([], True, 1)),  # type: ignore[call-arg]
        ],
        # That it starts is seen in test_claims.py: it starts once, and then its page is kept on purpose.
        "Claims.start_heartbeat": [
            (ValueError, lambda: claims.start_heartbeat(0)),
            (TypeError, lambda: claims.start_heartbeat("1")),  # type: ignore[arg-type]
        ],
    }


def exported() -> set[str]:
    types = [value for value in vars(_native).values() if isinstance(value, type) and not issubclass(value, Exception)]
    functions = {name for name, value in vars(_native).items() if callable(value) and not isinstance(value, type)}
    methods = {f"{cls.__name__}.{name}" for cls in types for name in vars(cls) if not name.startswith("__")}
    return {cls.__name__ for cls in types} | methods | {name for name in functions if not name.startswith("__")}


def test_every_exported_function_is_tried_for_leaks() -> None:
    assert set(calls(-1)) == exported()


@pytest.fixture
def pipe() -> Iterator[int]:
    fd = peer.make_pipe()
    yield fd
    os.close(fd)


@pytest.mark.parametrize("name", sorted(exported()))
def test_nothing_leaks(name: str, pipe: int) -> None:
    for error, call in calls(pipe)[name]:

        def repeat(rounds: int, error: type[Exception] | None = error, call: Callable[[], object] = call) -> None:
            if error is None:
                for _ in range(rounds):
                    call()
                return
            for _ in range(rounds):
                try:
                    call()
                except error:
                    continue
                raise AssertionError(f"{name} did not raise {error}")

        repeat(100)
        gc.collect()
        held = [sys.getrefcount(value) for value in (None, True, False, _native.Ring, _native.Bell, _native.Claims)]
        before = sys.getallocatedblocks()
        repeat(ROUNDS)
        gc.collect()
        assert sys.getallocatedblocks() - before < SLACK, error
        after = [sys.getrefcount(value) for value in (None, True, False, _native.Ring, _native.Bell, _native.Claims)]
        # An immortal object's count does not move; one that lost a count for each call is lost in the end.
        assert all(abs(now - then) < SLACK for now, then in zip(after, held, strict=True)), error


def test_arguments_keep_their_reference_counts(pipe: int) -> None:
    memory = mmap.mmap(-1, 4096)
    values = [2**60 + i for i in range(3)]
    payload, records = bytearray(b"payload"), list[tuple[int, int, int, int, int, bytes]]()
    ring, consumer, bell = Ring(memory, 0, 128, 256), Ring(memory, 0, 128, 256), Bell(memory, 1024, pipe)
    watched = [memory, *values, payload, ring, consumer, records]
    before = [sys.getrefcount(value) for value in watched]
    for _ in range(1000):
        assert ring.push(0, 0, *values, payload)
        assert consumer.pop(records, 1) == 1
        bell.wait(consumer, ring, 8, 0.0, -1, 0, False)
        with pytest.raises(TypeError):
            ring.push(0, 0, *values, ring)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            consumer.pop(memory, 1)  # type: ignore[arg-type]
        records.clear()
    assert [sys.getrefcount(value) for value in watched] == before
    payload.append(1)  # no export is left
    del ring, consumer, bell, watched
    memory.close()


# ------------------------------------------------------------------ forks

FORK = """
import ctypes, gc, json, mmap, os, sys
from mpworker.ipc._native import Bell, Claims, MadeBeforeFork, Ring

memory = mmap.mmap(-1, 4096)
claims_memory = mmap.mmap(-1, 4096)
memory.madvise(mmap.MADV_DONTFORK)
claims_memory.madvise(mmap.MADV_DONTFORK)
fd = os.pipe()[1]
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
ring, bell, claims = Ring(memory, 0, 128, 256), Bell(memory, 1024, fd), Claims(claims_memory, 4)
calls = {
    "Ring.push": lambda: ring.push(0, 0, 0, 0, 0, b""),
    "Ring.push_keeping": lambda: ring.push_keeping({}, None, 0, 0, 0, 0, 0, b""),
    "Ring.pop": lambda: ring.pop([], 1),
    "Ring.readable": ring.readable,
    "Ring.fits": lambda: ring.fits(8),
    "Ring.fill": ring.fill,
    "Bell.ring": bell.ring,
    "Bell.ring_room": bell.ring_room,
    "Bell.want_room": lambda: bell.want_room(True),
    "Bell.wake": bell.wake,
    "Bell.drain": bell.drain,
    "Bell.arm": bell.arm,
    "Bell.disarm": bell.disarm,
    "Bell.wait": lambda: bell.wait(ring, ring, 8, 0, -1, 0, False),
    "Claims.offer": lambda: claims.offer(0, 1),
    "Claims.send_offer": lambda: claims.send_offer(0, 1, ring, 0, 0, 0, 0, b""),
    "Claims.claim": lambda: claims.claim(0, 1),
    "Claims.revoke": lambda: claims.revoke(0, 1),
    "Claims.run": lambda: claims.run(0, 1, abs, [1], [], 0, 1, False, 0),
    "Claims.halt": lambda: claims.halt(0, 1),
    "Claims.peek": lambda: claims.peek(0),
    "Claims.beat": claims.beat,
    "Claims.start_heartbeat": lambda: claims.start_heartbeat(1),
}

def child():
    refused = []
    for name, call in calls.items():
        try:
            call()
        except MadeBeforeFork as error:
            assert "made before fork" in str(error)
            refused.append(name)
    assert ring.max_payload == 96
    # What the fork makes itself works, and a fork of the fork is refused that.
    own = mmap.mmap(-1, 4096)
    mine = Ring(own, 0, 128, 256)
    assert mine.push(0, 0, 0, 0, 0, b"")
    if (grandchild := os.fork()) == 0:
        try:
            mine.readable()
        except MadeBeforeFork:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0
    print(json.dumps(refused), flush=True)

if (pid := os.fork()) == 0:
    # Something new comes to lie where the shared memory was; it stays when our objects are gone.
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    fixed_noreplace = 0x100000
    got = libc.mmap(ctypes.c_void_p(address), 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_noreplace, -1, 0)
    assert got == address
    child()
    calls.clear()
    del ring, bell, claims, memory, claims_memory
    gc.collect()
    ctypes.memset(address, 1, 4096)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the fork failed"
assert ring.push(0, 0, 0, 0, 0, b"") and claims.beat() == 0  # the parent goes on
"""


def test_a_fork_is_refused_and_unharmed() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    # A type can be called and these be read in a fork: they touch no memory from before it.
    harmless = {"Ring.max_payload", "Bell.waiting", "Claims.inside"}
    shared = {name for name in exported() if name.startswith(("Ring.", "Bell.", "Claims."))}
    assert set(json.loads(done.stdout)) == shared - harmless


# ------------------------------------------------------------------ one binary

SMOKE = """
import importlib.util, mmap, os, sys
spec = importlib.util.spec_from_file_location("mpworker.ipc._native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
memory = mmap.mmap(-1, 4096)
producer, ring = (native.Ring(memory, 0, 128, 256) for _ in range(2))
bell, claims = native.Bell(memory, 1024, os.pipe()[0]), native.Claims(memory, 1)
assert producer.push(1, 2, 3, 4, 5, b"payload")
assert bell.wait(ring, None, 0, 10, -1, 0, False) == 1
records = []
assert ring.pop(records, 9) == 1 and records == [(1, 2, 3, 4, 5, b"payload")]
claims.offer(0, 1)
assert claims.claim(0, 1)
memory[0:8] = b"\\xff" * 8
try:
    ring.pop([], 1)
except native.RingCorrupt:
    print("whole", end="")
"""


def test_the_module_is_built_for_the_stable_abi() -> None:
    assert re.search(r"/_native\.abi3\.so$", str(_native.__file__))


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_module_works_on(version: str) -> None:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"versions/{version}.*/bin/python3"))]
    for python in filter(None, found):
        probe = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        # A version manager's shim may be there for a version that is not switched on.
        if subprocess.run(probe, capture_output=True, text=True, timeout=60, check=False).stdout.strip() == version:
            break
    else:
        pytest.skip(f"no Python {version}")
    command = [python, "-I", "-W", "error", "-X", "dev", "-c", SMOKE, str(_native.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("whole", 0), done.stderr


# ------------------------------------------------------------------ signals

REDIRECTED = """
import faulthandler, os, signal, sys, tempfile, threading
from mpworker.ipc._native import to_main_thread

file = tempfile.TemporaryFile()
faulthandler.register(signal.SIGUSR1, file, all_threads=False)
if sys.argv[1] == "redirected":
    to_main_thread(signal.SIGUSR1)
    to_main_thread(signal.SIGUSR1)

def in_another_thread():
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

def in_main_thread():
    thread = threading.Thread(target=in_another_thread)
    thread.start()
    thread.join()

in_main_thread()
file.seek(0)
print("in_main_thread" in file.read().decode())
"""


STACKS = """
import faulthandler, os, signal, tempfile
from mpworker.ipc._native import to_main_thread

file = tempfile.TemporaryFile()
file.write(b"head")
file.flush()
faulthandler.register(signal.SIGUSR1, file, all_threads=False)
to_main_thread(signal.SIGUSR1, file.fileno(), 4)

def first():
    signal.raise_signal(signal.SIGUSR1)

def second():
    signal.raise_signal(signal.SIGUSR1)

second()
length = os.fstat(file.fileno()).st_size
first()
first()
second()
found = os.pread(file.fileno(), 10000, 0).decode()
print(found.startswith("headStack"), "in second" in found, "in first" in found, len(found) == length)
os.close(file.fileno())
second()
"""


def test_each_stack_takes_the_place_of_the_last_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STACKS], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert (done.stdout.strip(), done.returncode) == ("True True False True", 0), done.stderr


@pytest.mark.parametrize("how", ["redirected", "as it is"])
def test_a_signal_that_comes_to_another_thread_is_handled_by_the_main_one(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REDIRECTED, how], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == str(how == "redirected"), done.stderr
