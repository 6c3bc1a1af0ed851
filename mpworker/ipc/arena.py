"""Arenas: large calls and results, written once and mapped, beside the rings.

There are two, each a `memfd` of `arena_max_bytes` whose pages are backed when they are first used and stay warm from
then on. In the one the client writes calls; whoever else maps it does so privately, which a seal of the kernel sees
to. In the other children write results, each only where the supervisor has lent it a block.

What travels through the rings then is an *envelope*: the details and the pickle as ever, and behind these, where no
unpickler looks, which parts of which blocks belong to it (ranges), which shared objects it speaks of, and a footer. A
call has one block or none, a result one of its own and, for what it gives back of its call unchanged, ranges of the
call's. A block holds a large pickle, then the out-of-band buffers of pickle protocol 5. A shared object
(`mpworker.ipc.shares`) has a block for itself, among those of the calls.

Whose a block is:

- of a call: the client's, until the supervisor has no more use for the call (the task has ended and is not kept to be
  run again), and nobody has a result that refers to it; then the record FREE gives it back;
- of a shared object: the client's, until nobody there has its handle (UNSHARE), no call that speaks of it is without
  its outcome, and each child that has it open has let go of it;
- of a result: the child's, which asks for it (WANT, LENT); then the supervisor's; then the client's, until the last
  array that views it is gone (FREE).

These rules are reference counts of the supervisor's: `mpworker.supervisor.held` and `mpworker.supervisor.shares`. An
arena speeds things up and is never in the way: where there is no room in it, or no memory behind it, payloads go in
parts of a ring; only what is shared needs it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

from mpworker.ipc._native import detach_all
from mpworker.ipc.channel import SEALS, map_segment, open_memory
from mpworker.ipc.codec import PICKLE_MIN, RANGES_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final, Protocol, TypeAlias

    from mpworker.ipc.payload import Parts

PAGE: Final = 4096
SHARES_MAX: Final = (1 << 16) - 1  # shared objects that one call can speak of
_ALIGNMENT: Final = 64  # of each range: a cache line, and all that a vector instruction asks for
_F_SEAL_FUTURE_WRITE: Final = 0x0010  # Linux 5.1; not named by Python 3.11
_RANGE = struct.Struct("<QQ")  # where it begins, and in the high bit whether in the call's block; its bytes
_BLOCK = struct.Struct("<QQQ")  # number, offset, size
# Two blocks; how many ranges; is the first the pickle? How many shared objects, whose blocks are before this.
_FOOTER = struct.Struct("<QQQQQQIHH")
_OF_CALL: Final = 1 << 63


# (number, offset, size): of all that were ever given out its own number; where it begins and how large it is, in bytes,
# which are whole pages.
Block: TypeAlias = tuple[int, int, int]
# A part of a payload: (in the call's block?, where that begins, bytes).
Range: TypeAlias = tuple[bool, int, int]
NO_BLOCK: Final = (0, 0, 0)


# A fork shall see of its arrays what is there now, and not what is written there once they are gone here.
os.register_at_fork(before=detach_all)


if TYPE_CHECKING:

    class Lent(Protocol):
        """A block, as who reads it has it: `Loan`, or what stands in for one."""

        def __buffer__(self, flags: int, /) -> memoryview:
            """Let it be viewed."""

        def arm(self) -> None:
            """From now on its end gives the block back."""


class Envelope:
    """What stands behind a pickle.

    Attributes:
        own: The payload's own block, NO_BLOCK for none.
        call: That of the call, if a result refers to it, else NO_BLOCK.
        ranges: Of the parts.
        has_pickle: The first of them is the pickle.
        end: Where the details and the pickle of the record end.
        shares: The blocks of the shared objects that it speaks of.
    """

    __slots__ = ("call", "end", "has_pickle", "own", "ranges", "shares")

    def __init__(
        self, own: Block, call: Block, ranges: list[Range], has_pickle: bool, end: int, shares: list[Block]
    ) -> None:
        self.shares = shares
        self.own = own
        self.call = call
        self.ranges = ranges
        self.has_pickle = has_pickle
        self.end = end


def pack(
    data: bytes, own: Block, call: Block, ranges: Sequence[Range], has_pickle: bool, shares: Sequence[Block] = ()
) -> bytes:
    """The payload of a record whose rest is in blocks.

    Args:
        data: The pickle, if it does not lie in a block.
        own: As in `Envelope`, and so all that follow.
        call: That of the call.
        ranges: Of the parts.
        has_pickle: Is it the first of them?
        shares: At most SHARES_MAX.
    """
    packed = [_RANGE.pack(start | _OF_CALL * of_call, size) for of_call, start, size in ranges]
    packed += [_BLOCK.pack(*block) for block in shares]
    return b"".join((data, *packed, _FOOTER.pack(*own, *call, len(ranges), has_pickle, len(shares))))


def unpack(data: bytes) -> Envelope:
    """What stands behind the pickle of a record.

    Raises:
        ValueError: It has no such thing, or one that points beyond its blocks.
    """
    at = len(data) - _FOOTER.size
    if at < 0:
        raise ValueError(f"no envelope fits {len(data)} bytes")
    first, offset, size, second, call_offset, call_size, count, has_pickle, shared = _FOOTER.unpack_from(data, at)
    own: Block = (first, offset, size)
    call: Block = (second, call_offset, call_size)
    shares_at = at - shared * _BLOCK.size
    end = shares_at - count * _RANGE.size
    if end < 0 or count > RANGES_MAX + 1 or has_pickle > (count > 0):
        raise ValueError(f"an envelope of {count} ranges in {len(data)} bytes")
    shares = [_BLOCK.unpack_from(data, place) for place in range(shares_at, at, _BLOCK.size)]
    ranges = []
    for place in range(end, shares_at, _RANGE.size):
        start, size = _RANGE.unpack_from(data, place)
        of_call, start = bool(start & _OF_CALL), start & ~_OF_CALL
        room = (call if of_call else own)[2]
        if start + size > room:
            raise ValueError(f"a range of {size} bytes at {start} in a block of {room}")
        ranges.append((of_call, start, size))
    return Envelope(own, call, ranges, bool(has_pickle), end, shares)


def renumber(data: bytes, own: int, call: int) -> bytes:
    """The same payload with its blocks under other numbers."""
    at = len(data) - _FOOTER.size
    first, offset, size, second, call_offset, call_size, *rest = _FOOTER.unpack_from(data, at)
    del first, second
    return b"".join((data[:at], _FOOTER.pack(own, offset, size, call, call_offset, call_size, *rest)))


def lay_out(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where in a block parts of these sizes begin, and how large it must be."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return starts, end


class Arena:
    """An arena's memory, as one process has it.

    Args:
        fd: Its descriptor, which belongs to this object from now on.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def back(self, offset: int, size: int) -> None:
        """See to it that there is memory behind a part: without that an access would be a SIGBUS.

        Raises:
            OSError: There is none.
        """
        os.posix_fallocate(self.fd, offset, size)

    def map_shared(self, offset: int, size: int) -> mmap.mmap:
        """Map a part to write into; see `map_segment`."""
        return map_segment(self.fd, size, offset)

    def seal(self, alone: bool) -> None:
        """Have its size never change.

        Args:
            alone: Whoever maps it from now on can do so only privately; this process must have mapped it before.
        """
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, (_F_SEAL_FUTURE_WRITE if alone else 0) | SEALS)

    def close(self) -> None:
        """Close the descriptor; what is mapped stays so."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def make_arena(name: str, capacity: int) -> Arena:
    """A new arena, with no memory behind it yet.

    Args:
        name: Shown in /proc/PID/maps.
        capacity: Bytes.

    Raises:
        OSError: No descriptor is left, or the size is refused.
    """
    arena = Arena(open_memory(name))
    try:
        os.ftruncate(arena.fd, capacity)
    except OSError:
        arena.close()
        raise
    return arena


def write(view: memoryview, starts: Sequence[int], pieces: Sequence[Any]) -> None:
    """Copy pieces to where they begin in a block."""
    for start, piece in zip(starts, pieces, strict=True):
        view[start : start + len(piece)] = piece


def pieces_of(parts: Parts) -> tuple[list[Any], bool]:
    """What of a payload is to lie in a block, and whether the first of it is the pickle."""
    has_pickle = len(parts.pickle) >= PICKLE_MIN
    return [memoryview(parts.pickle), *parts.buffers] if has_pickle else list(parts.buffers), has_pickle


class Parcel:
    """A payload that has come by way of an arena, in the process that reads it.

    It owns its blocks, or a part in them, by its loans. These are made at once: what is mapped stays so when the
    descriptors are closed.

    Args:
        data: The record's payload.
        envelope: What stands behind it.
        lend: Makes the loan of a block: is it the call's, and which.

    Attributes:
        own: The loan of its own block.
        call: That of the call's.
    """

    __slots__ = ("_data", "_envelope", "call", "own")

    def __init__(self, data: bytes, envelope: Envelope, lend: Callable[[bool, Block], Lent]) -> None:
        self._data = data
        self._envelope = envelope
        self.own = lend(False, envelope.own) if envelope.own[2] else None
        self.call = lend(True, envelope.call) if envelope.call[2] else None

    def arm(self) -> None:
        """From now on it is this object that gives the blocks back."""
        for loan in (self.own, self.call):
            if loan is not None:
                loan.arm()

    def loads(self, unpickle: Callable[..., Any]) -> Any:
        """Unpickle it.

        Args:
            unpickle: Takes the pickle, and its buffers by keyword.
        """
        envelope = self._envelope
        views = {of_call: memoryview(loan) for of_call, loan in ((False, self.own), (True, self.call)) if loan}
        parts = [views[of_call][begin : begin + size] for of_call, begin, size in envelope.ranges]
        # A copy: who looks for words in a pickle needs bytes, and it ends with the unpickling.
        pickle = bytes(parts.pop(0)) if envelope.has_pickle else self._data[: envelope.end]
        return unpickle(pickle, buffers=parts)
