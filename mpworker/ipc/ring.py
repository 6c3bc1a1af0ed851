"""Rings with payloads of any size: what is too large for one record travels as fragments before it.

The ring itself is native (ring.h says how it works). A payload larger than `Ring.max_payload` is cut; every part
but the last goes ahead as a FRAGMENT record, and the record proper carries the last part and the FRAGMENTED flag. A
client can be interrupted in the middle by a signal handler that sends a large payload too: each of the two is a stream.
"""

from __future__ import annotations

from mpworker.containers import deque
from mpworker.ipc._native import Ring, RingCorrupt
from mpworker.ipc.codec import FIRST, FRAGMENT, FRAGMENTED, STREAM, STREAM_SHIFT, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Assembler", "Outbox", "Ring", "RingCorrupt", "split"]


def split(record: Record, part_bytes: int, stream: int = 0) -> Iterator[Record]:
    """The records that carry this one, each payload at most `part_bytes` long."""
    kind, flags, a, b, c, payload = record
    view = memoryview(payload)
    of_stream = stream << STREAM_SHIFT
    at = 0
    while len(view) - at > part_bytes:
        yield FRAGMENT, of_stream | (0 if at else FIRST), 0, 0, 0, view[at : at + part_bytes]  # type: ignore[misc]  # a view pushes like bytes
        at += part_bytes
    yield kind, flags | FRAGMENTED | of_stream, a, b, c, view[at:]  # type: ignore[misc]


class Assembler:
    """The other end of `split`: keeps the fragments of one producer until their record comes.

    Args:
        max_bytes: The largest payload that is put together; a peer that sends more is as wrong as a corrupt ring.
    """

    __slots__ = ("_bytes", "_max_bytes", "_parts")

    def __init__(self, max_bytes: int) -> None:
        self._parts: dict[int, list[bytes] | None] = {}  # by stream; None for what was given up
        self._bytes: dict[int, int] = {}
        self._max_bytes = max_bytes

    def add(self, flags: int, part: bytes) -> None:
        """Keep one fragment. The FIRST of a payload drops one of its stream that was given up half way."""
        stream = flags & STREAM
        if flags & FIRST:
            self._parts[stream] = []
            self._bytes[stream] = 0
        size = self._bytes.get(stream, 0) + len(part)
        if size > self._max_bytes:
            raise RingCorrupt(f"a payload of over {self._max_bytes} bytes came in fragments")
        self._bytes[stream] = size
        parts = self._parts.setdefault(stream, [])
        if parts is not None:
            parts.append(part)

    def finish(self, flags: int, last: bytes) -> bytes:
        """The whole payload, given the flags of its record and its last part.

        Raises:
            MemoryError: There is not enough for it, or `give_up` was called meanwhile.
        """
        parts = self._parts.pop(flags & STREAM, [])
        size = self._bytes.pop(flags & STREAM, 0) + len(last)
        try:
            if parts is not None:
                return b"".join((*parts, last))
        except MemoryError:
            pass
        raise MemoryError(f"it has {size} bytes as a pickle, for which this process has no memory")

    def give_up(self) -> bool:
        """Memory is short: let go of the fragments that are here; False if there are none."""
        held = [stream for stream, parts in self._parts.items() if parts]
        self._parts.update(dict.fromkeys(held))
        return bool(held)


class Outbox:
    """Records on their way into a ring. None is lost when the ring is full: they wait here, in order.

    For the side that must not block (the supervisor): `send` takes any record at once, `flush` pushes what waits.
    """

    __slots__ = ("_max_payload", "_push", "waiting")

    def __init__(self, ring: Ring) -> None:
        self._push = ring.push
        self._max_payload = ring.max_payload
        self.waiting: deque[Record] = deque()

    def send(self, kind: int, flags: int, a: int, b: int, c: int, payload: bytes) -> None:
        """Push the record, or keep it until `flush` can."""
        if not self.waiting and len(payload) <= self._max_payload and self._push(kind, flags, a, b, c, payload):
            return
        record = (kind, flags, a, b, c, payload)
        if len(payload) > self._max_payload:
            self.waiting.extend(split(record, self._max_payload // 2))
            self.flush()
        else:
            self.waiting.append(record)

    def flush(self) -> bool:
        """Push what waits, as far as the ring has room. True when nothing waits any more."""
        waiting = self.waiting
        while waiting:
            if not self._push(*waiting[0]):
                return False
            waiting.popleft()
        return True
