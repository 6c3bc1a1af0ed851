"""A child's side of the arenas: it maps calls, and writes results where the supervisor has lent it room.

Each attempt gets its call as it was submitted: a mapping of its own, writable, in which what it writes is a copy. So
what an attempt does to its arguments spoils no retry. When it is over the mapping goes, or, if something still views
it (a task keeps what it was called with), becomes a copy before the block may be another's.

What comes back of a call unchanged is not copied: the result refers to the call's block. The kernel knows whether a
page of it was written (`Loan.locate`).
"""

from __future__ import annotations

from collections.abc import Callable

from mpworker.child.shares import Shares
from mpworker.ipc import arena, codec, payload
from mpworker.ipc._native import Loan
from mpworker.ipc.arena import NO_BLOCK, Arena, Block, Parcel
from mpworker.ipc.payload import Parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from typing import Any, Final

    from mpworker.ipc.codec import Record

_MAPPED_MAX: Final = 64  # blocks that stay mapped: each costs a descriptor


class Arenas:
    """The arenas of one child.

    Args:
        calls: The descriptor of the one that calls come by.
        results: That of the one for results.
        ask: Sends a WANT for so many bytes, and returns the LENT that answers.
        push: Sends a record.
        shares: Opens the shared objects that calls speak of.
    """

    def __init__(
        self, calls: int, results: int, ask: Callable[[int], Record], push: Callable[..., None], shares: Shares
    ) -> None:
        self.shares = shares
        self._calls = calls
        self._results = Arena(results)
        self._ask = ask
        self._push = push
        self._call: Loan | None = None  # the call of this attempt
        self._block = NO_BLOCK  # and where that lies
        self._mapped: dict[int, mmap.mmap] = {}  # blocks that this child has written to, and has still

    # ------------------------------------------------------------ calls

    def received(self, data: bytes) -> Parcel:
        """A call that has come with an envelope.

        Raises:
            OSError: It cannot be mapped.
        """
        envelope = arena.unpack(data)
        self._block = envelope.own
        if envelope.shares:
            self.shares.begin(envelope.shares)
        return Parcel(data, envelope, self._lend)

    def _lend(self, _of_call: bool, block: Block) -> Loan:
        _, offset, size = block
        self._call = Loan(self._calls, offset, size)
        return self._call

    def call_is_over(self) -> None:
        """Nothing of the attempt's call may be the arena's any more: before it is answered for good."""
        call, self._call = self._call, None
        if call is not None and call.views:
            call.detach()
        self._block = NO_BLOCK
        self.shares.call_is_over()

    # ------------------------------------------------------------ results

    def place(self, parts: Parts) -> tuple[int, bytes]:
        """A result: the flag of its record, and its payload."""
        pieces, has_pickle = arena.pieces_of(parts)
        call = self._call
        # Of each piece where in the call's block it lies; -1: it is to be written.
        found = [-1 if call is None else call.locate(piece) for piece in pieces]
        fresh = [piece for piece, at in zip(pieces, found, strict=True) if at < 0]
        starts, size = arena.lay_out([len(piece) for piece in fresh])
        block = self._write(starts, size, fresh)
        if block is None:
            return 0, payload.dumps(parts.value) if parts.buffers else parts.pickle
        places = iter(starts)
        ranges = [
            (True, at, len(piece)) if at >= 0 else (False, next(places), len(piece))
            for piece, at in zip(pieces, found, strict=True)
        ]
        refers = self._block if len(fresh) < len(pieces) else NO_BLOCK
        return codec.ARENA, arena.pack(b"" if has_pickle else parts.pickle, block, refers, ranges, has_pickle)

    def _write(self, starts: list[int], size: int, pieces: list[Any]) -> Block | None:
        """Write pieces to a block of their own; None if there is no room for it, or no memory."""
        if not size:
            return NO_BLOCK
        _, _, offset, size, number, _ = self._ask(size)
        if not size:
            return None
        try:
            mapping = self._mapped.get(number)
            if mapping is None:
                # At each of them anew: what was backed stays so, and to see that costs little beside the mapping.
                self._results.back(offset, size)
                if len(self._mapped) >= _MAPPED_MAX:
                    del self._mapped[next(iter(self._mapped))]
                mapping = self._mapped[number] = self._results.map_shared(offset, size)
            with memoryview(mapping) as view:
                arena.write(view, starts, pieces)
        except OSError:
            self._push(codec.FREE, 0, number, 0, 0, b"")
            return None
        return number, offset, size

    def taken_away(self, number: int) -> None:
        """A block that was lent to this child is another's by now."""
        self._mapped.pop(number, None)
