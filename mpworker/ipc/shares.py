"""Shared objects: what lies in the block of one, and how handles to them travel.

A block holds an index, the pickle, and the out-of-band buffers. It is written once, by the client, and whoever opens it
maps it read-only. A pickled handle has the pool and the number of the block alone. Where that lies is in the envelope
of each call that the handle is in (`mpworker.ipc.arena`), outside of the pickle: so the supervisor keeps the block, and
a child opens it only while it runs a call that keeps it.

So who pickles a call must know of the handles in it. A handle says so to the collector of its thread; without one it
refuses, and the call is pickled once more with one. Nothing that has no handle pays for that.
"""

from __future__ import annotations

import struct
from _thread import _local
from collections.abc import Callable

from mpworker.ipc import arena

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Protocol

    from mpworker.ipc.arena import Block
    from mpworker.ipc.payload import Parts

    class Share(Protocol):
        """A shared object, in the process that has placed it; as long as this lives its block is kept.

        Attributes:
            pool: Whose arena it lies in.
            block: Where there.
        """

        pool: str
        block: Block

    class Opener(Protocol):
        """Opens shared objects in a child.

        Attributes:
            pool: Those of this pool.
        """

        pool: str

        def value(self, number: int) -> Any:
            """The object with this number."""


_COUNT: Final = struct.Struct("<Q")  # of the parts
_PART: Final = struct.Struct("<QQ")  # where it begins in the block, and its bytes

opener: Opener | None = None  # of this process, if it is a child


class _Collecting(_local):
    """What this thread pickles. Who sets `found` puts back what it was without a call, at which an interrupt may come.

    Attributes:
        found: The shared objects that are in it, by their numbers; None if nobody wants to know.
    """

    found: dict[int, Share] | None = None


collecting = _Collecting()


def note(share: Share) -> bool:
    """A handle of this is pickled; False if nobody collects: it must not be."""
    found = collecting.found
    if found is not None:
        found[share.block[0]] = share
    return found is not None


def lay_out(parts: Parts) -> tuple[list[Any], list[int], int]:
    """What the block of an object holds, where in it each piece begins, and how large it must be."""
    pieces = [memoryview(parts.pickle), *parts.buffers]
    sizes = [len(piece) for piece in pieces]
    starts, size = arena.lay_out([_COUNT.size + _PART.size * len(pieces), *sizes])
    places = [_PART.pack(*place) for place in zip(starts[1:], sizes, strict=True)]
    return [b"".join((_COUNT.pack(len(pieces)), *places)), *pieces], starts, size


def read(view: memoryview, unpickle: Callable[..., Any]) -> Any:
    """The object that a block holds.

    Args:
        view: Of the block; the object may view it, too.
        unpickle: Takes the pickle, and its buffers by keyword.
    """
    (count,) = _COUNT.unpack_from(view)
    places = [_PART.unpack_from(view, _COUNT.size + _PART.size * place) for place in range(count)]
    pickle, *buffers = [view[start : start + size] for start, size in places]
    return unpickle(bytes(pickle), buffers=buffers)  # a copy, as for a `Parcel`
