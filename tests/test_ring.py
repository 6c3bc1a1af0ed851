"""The ring against a plain deque, against nonsense in its memory, and between two processes."""

import contextlib
import ctypes
import gc
import mmap
import os
import subprocess
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mpworker.ipc import _native
from mpworker.ipc._native import Bell, Ring, RingCorrupt

sys.path.append(str(Path(__file__).parent / "native"))
import peer

HEADER = _native.RECORD_HEADER_BYTES
HEAD_AT = 64  # in the control block; the tail is at 0

U64 = st.integers(0, 2**64 - 1)
U16 = st.integers(0, 2**16 - 1)


def make(capacity: int) -> tuple[mmap.mmap, Ring, Ring]:
    memory = mmap.mmap(-1, _native.RING_CTL_BYTES + capacity)
    return memory, *(Ring(memory, 0, _native.RING_CTL_BYTES, capacity) for _ in range(2))


def poke(memory: mmap.mmap, at: int, value: int, size: int = 8) -> None:
    memory[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")


class RingMachine(RuleBasedStateMachine):
    """The model knows the layout: a record is padded to 8 bytes, and does not straddle the end of the array."""

    @initialize(capacity=st.sampled_from([2**n for n in range(8, 17)]))
    def start(self, capacity: int) -> None:
        self.capacity = capacity
        self.memory, self.producer, self.consumer = make(capacity)
        self.model: deque[tuple[int, tuple[int, int, int, int, int, bytes]]] = deque()
        self.tail = self.head = 0

    def need(self, size: int) -> int:
        total = HEADER + (size + 7) // 8 * 8
        to_end = self.capacity - self.tail % self.capacity
        return total if total <= to_end else total + to_end

    def push(self, kind: int, flags: int, a: int, b: int, c: int, size: int) -> None:
        payload = Random(size).randbytes(size)
        need = self.need(size)
        fits = self.capacity - (self.tail - self.head) >= need
        assert self.producer.fits(size) is fits
        assert self.producer.push(kind, flags, a, b, c, payload) is fits
        if fits:
            self.tail += need
            self.model.append((self.tail, (kind, flags, a, b, c, payload)))

    @rule(kind=U16, flags=U16, a=U64, b=U64, c=U64, data=st.data())
    def push_any(self, kind: int, flags: int, a: int, b: int, c: int, data: st.DataObject) -> None:
        self.push(kind, flags, a, b, c, data.draw(st.integers(0, self.capacity // 2 - HEADER)))

    @rule(size=st.integers(0, 80))
    def push_small(self, size: int) -> None:
        self.push(1, 2, 3, 4, 5, size)

    @rule(nudge=st.integers(-9, 9))
    def push_to_the_end(self, nudge: int) -> None:
        size = self.capacity - self.tail % self.capacity - HEADER + nudge
        self.push(1, 2, 3, 4, 5, min(max(size, 0), self.producer.max_payload))

    @rule()
    def push_until_full(self) -> None:
        before = None
        while before != self.tail:
            before = self.tail
            self.push(9, 9, 9, 9, 9, self.capacity // 8)

    @rule(over=st.integers(1, 2**40))
    def push_too_large(self, over: int) -> None:
        assert self.producer.fits(self.producer.max_payload + over) is False
        with pytest.raises(ValueError, match="exceeds this ring's bound"):
            self.producer.push(0, 0, 0, 0, 0, bytes(self.producer.max_payload + min(over, 1000)))

    @rule(limit=st.integers(0, 6) | st.just(2**64 - 1))
    def pop(self, limit: int) -> None:
        records: list[tuple[int, int, int, int, int, bytes]] = []
        count = self.consumer.pop(records, limit)
        assert count == len(records) == min(limit, len(self.model))
        for record in records:
            self.head, expected = self.model.popleft()
            assert record == expected

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "memory"):
            assert self.producer.max_payload == self.capacity // 2 - HEADER
            assert self.consumer.readable() is bool(self.model)
            assert self.producer.fill() == self.consumer.fill() == self.tail - self.head


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_payload_is_any_buffer(kind: type) -> None:
    _, producer, consumer = make(256)
    assert producer.push(1, 2, 3, 4, 5, kind(b"payload"))
    records: list[object] = []
    consumer.pop(records, 1)  # type: ignore[arg-type]
    assert records == [(1, 2, 3, 4, 5, b"payload")]


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (TypeError, ()),
        (TypeError, (0, 0, 0, 0, 0)),
        (TypeError, (0, 0, 0, 0, 0, b"", 0)),
        (TypeError, (0, 0, 0, 0, 0, "text")),
        (TypeError, (0, 0, 0, 0.0, 0, b"")),
        (OverflowError, (0, 0, -1, 0, 0, b"")),
        (OverflowError, (0, 0, 0, 2**64, 0, b"")),
        (ValueError, (2**16, 0, 0, 0, 0, b"")),
        (ValueError, (0, 2**16, 0, 0, 0, b"")),
        (BufferError, (0, 0, 0, 0, 0, memoryview(b"123456")[::2])),
    ],
    ids=range(10),
)
def test_a_push_that_is_refused_leaves_nothing(error: type[Exception], arguments: tuple[object, ...]) -> None:
    _, producer, consumer = make(256)
    with pytest.raises(error):
        producer.push(*arguments)  # type: ignore[arg-type]
    assert producer.fill() == 0
    assert not consumer.readable()


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (TypeError, (mmap.mmap(-1, 4096),)),
        (BufferError, (b"read-only" * 1000, 0, 128, 256)),
        (BufferError, (memoryview(b"read-only" * 1000), 0, 128, 256)),
        *((ValueError, (mmap.mmap(-1, 4096), 0, 128, capacity)) for capacity in (0, -256, 128, 255, 300, 4096, 2**31)),
        *((ValueError, (mmap.mmap(-1, 4096), ctl, 128, 256)) for ctl in (-64, 8, 4032, 4096, 2**62)),
        *((ValueError, (mmap.mmap(-1, 4096), 0, data, 256)) for data in (-64, 1, 3904, 4096, 2**63 - 64)),
    ],
    ids=range(20),
)
def test_a_ring_lies_inside_its_buffer(error: type[Exception], arguments: tuple[object, ...]) -> None:
    with pytest.raises(error):
        Ring(*arguments)  # type: ignore[arg-type]


def test_a_ring_takes_no_keywords() -> None:
    with pytest.raises(TypeError):
        Ring(mmap.mmap(-1, 4096), 0, 128, capacity=256)  # type: ignore[call-arg]


def test_a_finalizer_that_pops_during_a_pop_takes_the_next_records() -> None:
    _, producer, consumer = make(4096)
    for i in range(50):
        assert producer.push(0, 0, i, 0, 0, bytes([i]) * 8)
    found: list[tuple[int, int, int, int, int, bytes]] = []
    popped_at: list[int] = []

    class Finalized:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            popped_at.append(len(found))
            consumer.pop(found, 1)

    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    for _ in range(20):
        Finalized()
    gc.set_threshold(1, 1, 1)
    gc.enable()
    try:
        consumer.pop(found, 2**32)
    finally:
        gc.set_threshold(*before)
    assert popped_at
    assert found == [(0, 0, i, 0, 0, bytes([i]) * 8) for i in range(50)]


# ------------------------------------------------------------------ a peer that lies


@pytest.mark.parametrize("tail", [1, 4, 264, 2**63, 2**64 - 8])
def test_an_impossible_tail_is_corrupt_for_good(tail: int) -> None:
    memory, _, consumer = make(256)
    poke(memory, 0, tail)
    assert consumer.readable()
    assert 0 <= consumer.fill() <= 256
    with pytest.raises(RingCorrupt, match="impossible value"):
        consumer.pop([], 1)
    poke(memory, 0, 0)
    for verb in (consumer.readable, consumer.fill, lambda: consumer.fits(0), lambda: consumer.pop([], 1)):
        with pytest.raises(RingCorrupt):
            verb()


@pytest.mark.parametrize("head", [257, 264, 2**63, 2**64 - 8])
def test_an_impossible_head_is_corrupt_for_good(head: int) -> None:
    memory, producer, _ = make(256)
    for _ in range(4):
        assert producer.push(0, 0, 0, 0, 0, b"01234567" * 4)
    poke(memory, HEAD_AT, head)  # the tail is at 256
    with pytest.raises(RingCorrupt):
        producer.fits(0)
    poke(memory, HEAD_AT, 0)
    with pytest.raises(RingCorrupt):
        producer.push(0, 0, 0, 0, 0, b"")


def test_whole_records_before_a_corrupt_one_are_handed_over() -> None:
    memory, producer, consumer = make(256)
    for i in range(3):
        producer.push(0, 0, i, 0, 0, b"")
    poke(memory, 128 + 2 * HEADER, 4096, 4)
    records: list[tuple[int, int, int, int, int, bytes]] = []
    assert consumer.pop(records, 10) == 2
    assert [record[2] for record in records] == [0, 1]
    poke(memory, 128 + 2 * HEADER, 0, 4)
    with pytest.raises(RingCorrupt):  # it was seen; to look right again does not help
        consumer.pop(records, 10)


def test_random_bytes_are_records_or_corrupt(libc: ctypes.CDLL) -> None:
    # The array ends where memory ends: one byte too far is a segmentation fault.
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + 2 * page), page, 0) == 0
    rng = Random()
    endings = {"corrupt": 0, "empty": 0}
    for _ in range(1000):
        capacity = 2 ** rng.randrange(8, 13)
        data = 2 * page - capacity
        poke(memory, 0, 0)
        poke(memory, HEAD_AT, 0)
        reader, writer = (Ring(memory, 0, data, capacity) for _ in range(2))
        for _ in range(rng.randrange(20)):  # honest to begin with, so that lies are told at any position
            writer.push(0, 0, 0, 0, 0, bytes(rng.randrange(writer.max_payload)))
            reader.pop([], 1)
        position = int.from_bytes(memory[0:8], "little")
        memory[data : data + capacity] = rng.randbytes(capacity)
        sizes = (0, 8, 32, capacity // 2, capacity // 2 - HEADER, capacity // 4, 2**32 - 1)
        for at in range(data, data + capacity, 8):
            if rng.random() < 0.7:
                poke(memory, at, rng.choice(sizes), 4)
        poke(memory, 0, rng.choice((position + rng.randrange(0, capacity + 16, 8), rng.getrandbits(64))))
        try:
            while reader.pop([], rng.randrange(1, 4)):
                pass
            endings["empty"] += 1
        except RingCorrupt:
            endings["corrupt"] += 1
        poke(memory, HEAD_AT, rng.choice((0, position, position - rng.randrange(0, capacity, 8), rng.getrandbits(64))))
        with contextlib.suppress(RingCorrupt):
            for _ in range(50):
                writer.push(0, 0, 0, 0, 0, bytes(rng.randrange(writer.max_payload)))
    assert all(endings.values())
    assert libc.mprotect(ctypes.c_void_p(start + 2 * page), page, mmap.PROT_READ | mmap.PROT_WRITE) == 0


# ------------------------------------------------------------------ two processes


@pytest.fixture
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("rings")
    os.ftruncate(fd, peer.SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def bells() -> Iterator[tuple[int, int]]:
    fds = peer.make_pipe(), peer.make_pipe()
    yield fds
    for fd in fds:
        os.close(fd)


def start(role: str, memfd: int, bells: tuple[int, int], *arguments: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, peer.__file__, role, *map(str, (memfd, *bells, *arguments))]
    return subprocess.Popen(command, pass_fds=(memfd, *bells), stdin=subprocess.PIPE)


def test_records_between_two_processes(memfd: int, bells: tuple[int, int]) -> None:
    count = 200_000
    mine = peer.Shared(memfd, bells, 0)
    with start("send", memfd, bells, count) as process:
        expected = 0
        while expected < count:
            for kind, flags, a, b, c, payload in mine.pop(64):
                assert (kind, flags, a, c) == (expected % 7, expected % 65536, expected, count)
                assert b == zlib.crc32(payload)
                expected += 1
    assert process.returncode == 0
    assert not mine.inbound.readable()


def test_nonsense_written_while_we_read(memfd: int, bells: tuple[int, int]) -> None:
    memory = mmap.mmap(memfd, peer.SIZE)
    endings = {"corrupt": 0, "records": 0}
    with start("spoil", memfd, bells) as process:
        while endings["corrupt"] < 20_000:
            ring = Ring(memory, peer.RING_AT[0], peer.DATA_AT[0], peer.CAPACITY)
            records: list[tuple[int, int, int, int, int, bytes]] = []
            try:
                for _ in range(20):
                    ring.pop(records, 8)
                    assert 0 <= ring.fill() <= peer.CAPACITY
            except RingCorrupt:
                endings["corrupt"] += 1
            assert all(len(record[5]) <= ring.max_payload for record in records)
            endings["records"] += len(records)
            poke(memory, peer.RING_AT[0] + HEAD_AT, 0)
        process.communicate()
    assert process.returncode == 0
    assert endings["records"]


def test_a_ring_and_a_bell_share_a_page_with_others(memfd: int, bells: tuple[int, int]) -> None:
    mine, theirs = (peer.Shared(memfd, bells, side) for side in (0, 1))
    mine.push(1, 0, 0, 0, 0, b"there")
    theirs.push(2, 0, 0, 0, 0, b"back")
    assert [record[5] for record in theirs.pop(9) + mine.pop(9)] == [b"there", b"back"]
    assert isinstance(mine.own, Bell)
