"""The other process of a Python test: `peer.py ROLE MEMFD BELL0 BELL1 ...`, over inherited descriptors.

The layout of the shared memory is the same for all roles: ring, ring, bell, bell, claims.
"""

import ctypes
import mmap
import os
import random
import sys
import zlib

from mpworker.ipc._native import Bell, Claims, Ring
from mpworker.ipc.channel import close_all, open_anew

CAPACITY = 4096
SLOTS = 4
RING_AT = (0, 128)
BELL_AT = (256, 320)
CLAIMS_AT = 4096  # a page of its own
DATA_AT = (8192, 8192 + CAPACITY)
SIZE = 8192 + 2 * CAPACITY

STALL = 20.0  # seconds; a wake-up that takes longer is lost


def make_pipe() -> int:
    """A bell's pipe. One description serves both sides, for neither is hostile."""
    ends = os.pipe()
    try:
        return open_anew(ends[0])
    finally:
        close_all(ends)


class Shared:
    """One process's view of the memory; side 0 sends through ring 0 and sleeps on bell 0."""

    def __init__(self, memfd: int, bells: tuple[int, int], side: int) -> None:
        self.memory = mmap.mmap(memfd, SIZE)
        self.out = Ring(self.memory, RING_AT[side], DATA_AT[side], CAPACITY)
        self.inbound = Ring(self.memory, RING_AT[1 - side], DATA_AT[1 - side], CAPACITY)
        self.own = Bell(self.memory, BELL_AT[side], bells[side])
        self.peers = Bell(self.memory, BELL_AT[1 - side], bells[1 - side])
        self.claims = Claims(mmap.mmap(memfd, 4096, offset=CLAIMS_AT), SLOTS)

    def push(self, *record: object, spin_ns: int = 0) -> None:
        while not self.out.push(*record):  # type: ignore[arg-type]
            woken = self.own.wait(None, self.out, len(record[5]), STALL, -1, spin_ns, spin_ns > 1000)  # type: ignore[arg-type]
            assert woken, "asleep while the ring had room: a lost wake-up"
        self.peers.ring()

    def pop(self, limit: int, spin_ns: int = 0) -> list[tuple[int, int, int, int, int, bytes]]:
        records: list[tuple[int, int, int, int, int, bytes]] = []
        while not self.inbound.pop(records, limit):
            woken = self.own.wait(self.inbound, None, 0, STALL, -1, spin_ns, spin_ns > 1000)
            assert woken, "asleep while the ring had a record: a lost wake-up"
        self.peers.ring()
        return records


def send(shared: Shared, count: int) -> None:
    rng = random.Random(count)
    for i in range(count):
        payload = rng.randbytes(rng.choice((0, 7, 8, 40, 500)))
        shared.push(i % 7, i % 65536, i, zlib.crc32(payload), count, payload, spin_ns=rng.choice((0, 2000)))


def echo(shared: Shared, count: int) -> None:
    rng = random.Random(count)
    for _ in range(count):
        (record,) = shared.pop(1, spin_ns=rng.choice((0, 0, 3000)))
        shared.push(*record)


def spoil(shared: Shared) -> None:
    """Write nonsense into ring 0 until our standard input ends, which a thread notices."""
    import threading

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    rng = random.Random(1)
    memory = memoryview(shared.memory)
    words = memory.cast("Q")
    sizes = memory[DATA_AT[0] : DATA_AT[0] + CAPACITY].cast("I")
    while not ended.is_set():
        for _ in range(1000):
            at = rng.randrange(0, CAPACITY // 4, 8)
            sizes[at] = rng.choice((0, 8, 100, 2000, 2016, 2**31, 2**32 - 1))
            words[RING_AT[0] // 8] = words[RING_AT[0] // 8 + 8] + rng.randrange(0, CAPACITY + 8, 8)


def claim(shared: Shared, count: int) -> None:
    """Claim what is offered, in order; answer who won."""
    while count:
        for _, _, generation, slot, _, _ in shared.pop(1):
            won = shared.claims.claim(slot, generation)
            shared.push(0, 0, generation, slot, won, b"")
            count -= 1


def beat(shared: Shared) -> None:
    """Beat, and hold the GIL in C code for as long as our standard input is open."""
    shared.claims.start_heartbeat(0.001)
    shared.push(0, 0, 0, 0, 0, b"")
    ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)


if __name__ == "__main__":
    role = sys.argv[1]
    memfd, own, peers, *arguments = map(int, sys.argv[2:])
    globals()[role](Shared(memfd, (own, peers), 1), *arguments)
