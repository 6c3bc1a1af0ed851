"""The client's side of the arenas: it writes calls into the one, and maps results of the other.

As everywhere in a client no lock is taken (`mpworker.reader`): what must be one step is one native call. A block of a
call is given back by its number, which may be done twice; and a loan says that it is over by a number in a list, from
wherever it ends.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from weakref import WeakSet

from mpworker.cgroups import usable_memory
from mpworker.ipc import arena, codec, shares
from mpworker.ipc._native import Extents, Loan, detach_all, keep
from mpworker.ipc.arena import NO_BLOCK, Block, Parcel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.ipc.arena import Lent
    from mpworker.ipc.payload import Parts

MEMORY_SHARE: Final = 8  # of the memory that this process may use, by default one part in so many is an arena's bound


class Copy(bytearray):
    """What a block holds, where it cannot be mapped; the block is returned at once. The arguments are those of `Loan`.

    Raises:
        OSError: It cannot be read.
        MemoryError: There is no memory for it.
    """

    def __init__(self, fd: int, offset: int, size: int, returned: list[int], number: int) -> None:
        super().__init__(size)
        at = 0
        with memoryview(self) as view:
            while at < size:  # one call reads 2 GiB at most
                at += os.preadv(fd, [view[at:]], offset + at)
        self._returned = returned
        self._number = number

    def arm(self) -> None:
        """See `Loan`."""
        if self._number not in self._returned:  # it may be told twice, and twice is as good as once
            self._returned.append(self._number)


class Kept:
    """A shared object in the arena, as long as this lives.

    Args:
        pool: Whose arena that is.
        block: Where in it.
        token: Its end gives back the block.
    """

    __slots__ = ("_token", "block", "pool")

    def __init__(self, pool: str, block: Block, token: Loan) -> None:
        self.pool = pool
        self.block = block
        self._token = token


class Arenas:
    """The arenas of one client.

    Args:
        capacity: The bound of each, in bytes.

    Attributes:
        handles: Of shared objects, to be told of the end.
        awaited: By whom room among the calls is waited for: see `give_back`.

    Raises:
        OSError: They cannot be had; nothing is left open.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._calls = arena.make_arena("mpworker-calls", capacity)
        try:
            self._view: memoryview | None = memoryview(self._calls.map_shared(0, capacity))
            self._calls.seal(alone=True)
            self._results = arena.make_arena("mpworker-results", capacity)
        except BaseException:
            self._calls.close()
            raise
        self._results.seal(alone=False)
        self._extents = Extents(capacity)
        self._backed = 0  # bytes of the calls' arena that have memory behind them, from its beginning
        self._keys: dict[int, int] = {}  # of each block of a call that is taken: the task
        self._returned: list[int] = []  # results that are needed no more, and that the supervisor is to be told of
        self._returned_calls: list[int] = []  # so calls that results refer to
        self._results_here: dict[int, Block] = {}  # that are not returned
        self._returned_shares: list[int] = []  # so shared objects
        self._leaving: set[int] = set()  # those of which the supervisor was told, until it gives back their room
        self._returned_views: list[
            int
        ] = []  # mappings of them that are needed here no more, each by a number of its own
        self._viewed: dict[int, Kept] = {}  # what these map
        self._views = itertools.count(1)
        self.handles: WeakSet[Any] = WeakSet()
        self.awaited: set[object] = set()

    @property
    def descriptors(self) -> list[int]:
        """What the processes below need."""
        return [self._calls.fd, self._results.fd]

    @property
    def taken(self) -> int:
        """Bytes that calls take."""
        return self._extents.taken

    # ------------------------------------------------------------ calls

    def place(self, parts: Parts, key: int) -> bytes | None:
        """Write a call into the arena.

        Args:
            parts: The call.
            key: The number of its task.

        Returns:
            The payload of its record; None if there is no room for it now.

        Raises:
            OSError: There is no memory for it.
        """
        pieces, has_pickle = arena.pieces_of(parts)
        sizes = [len(piece) for piece in pieces]
        starts, size = arena.lay_out(sizes)
        taken: list[Block] = []
        written = False
        try:
            if not self._write(pieces, starts, size, taken):
                return None
            ranges = [(False, *each) for each in zip(starts, sizes, strict=True)]
            shares = [share.block for share in parts.shares]
            data = arena.pack(b"" if has_pickle else parts.pickle, taken[0], NO_BLOCK, ranges, has_pickle, shares)
            self._keys[taken[0][0]] = key
            written = True
            return data
        finally:
            if taken and not written:
                self.free(taken[0][0])

    def _write(self, pieces: Sequence[Any], starts: Sequence[int], size: int, taken: list[Block]) -> bool:
        """Write pieces to a block of their own; False if there is no room for it.

        Args:
            pieces: The pieces.
            starts: Where each begins.
            size: How large the block must be.
            taken: It is put here, before anything can fail.
        """
        view = self._view  # another thread may close all of it meanwhile
        if view is None or not self._extents.take(size, taken):
            return False
        _, offset, size = taken[0]
        if offset + size > self._backed:  # all below is
            self._calls.back(self._backed, offset + size - self._backed)
            self._backed = offset + size
        arena.write(view[offset : offset + size], starts, pieces)
        return True

    @staticmethod
    def bytes_of(parts: Parts) -> int:
        """How large a block a call needs."""
        return arena.lay_out([len(piece) for piece in arena.pieces_of(parts)[0]])[1]

    def fits(self, size: int) -> bool:
        """Is there room for a call of so many bytes?"""
        return self._extents.largest >= size

    def under_way(self, pending: dict[int, Any]) -> bool:
        """Is there a call whose end gives back a block?

        Args:
            pending: The tasks that have not ended, by their numbers. What any others take is kept by who has results.
        """
        return any(key in pending for key in tuple(self._keys.values()))

    def free(self, number: int) -> None:
        """A call, or a shared object, needs its block no more. It may be said twice."""
        self._keys.pop(number, None)
        self._leaving.discard(number)
        self._extents.give(number)

    def unsent(self, data: bytes) -> None:
        """A payload that `place` has made will not be sent."""
        self.free(arena.unpack(data).own[0])

    # ------------------------------------------------------------ shared objects

    def share(self, parts: Parts, pool: str, say: Callable[..., None]) -> Kept | None:
        """Write an object into the arena.

        Args:
            parts: The object.
            pool: Whose arena this is.
            say: Sends a record.

        Returns:
            What keeps it there; None if there is no room for it now.

        Raises:
            OSError: There is no memory for it.
        """
        taken: list[Block] = []
        kept = False
        try:
            if not self._write(*shares.lay_out(parts), taken):
                return None
            number, offset, size = taken[0]
            # Nothing is read by way of this one: of what lives as long as anybody needs the block, and then says so.
            token = Loan(self._calls.fd, offset, arena.PAGE, self._returned_shares, number, True)
            say(codec.SHARE, 0, number, offset, size, b"")
            token.arm()
            kept = True
            return Kept(pool, taken[0], token)
        finally:
            if taken and not kept:
                self.free(taken[0][0])

    def open_share(self, kept: Kept) -> memoryview:
        """A view of a shared object, which is kept as long as anything views that.

        Raises:
            OSError: It cannot be mapped.
        """
        _, offset, size = kept.block
        view = next(self._views)
        loan = Loan(self._calls.fd, offset, size, self._returned_views, view, True)
        self._viewed[view] = kept
        loan.arm()
        return memoryview(loan)

    @property
    def room_comes(self) -> bool:
        """Has something been let go of whose room the supervisor will give back?"""
        return bool(self._leaving or self._returned_shares)

    # ------------------------------------------------------------ results

    def parcel(self, data: bytes) -> Parcel:
        """What a RESULT or RESULTS record brings.

        Raises:
            OSError: It cannot be mapped.
        """
        return Parcel(data, arena.unpack(data), self._lend)

    def _lend(self, of_call: bool, block: Block) -> Lent:
        number, offset, size = block
        fd = (self._calls if of_call else self._results).fd
        returned = self._returned_calls if of_call else self._returned
        try:
            loan = Loan(fd, offset, size, returned, number)
        except OSError:  # a process may have so many mappings and no more: vm.max_map_count
            return Copy(fd, offset, size, returned, number)
        if not of_call:
            self._results_here[number] = block
        return loan

    def has_returns(self) -> bool:
        """Is there something that the supervisor is to be told of?"""
        return bool(self._returned or self._returned_calls or self._returned_views or self._returned_shares)

    def give_back(self, push: Callable[..., bool], quietly: bool = False) -> None:
        """Tell the supervisor of what is needed no more, as far as there is room; it may be told twice.

        Args:
            push: Pushes a record.
            quietly: If nobody waits for room here, the bell need not ring for what the supervisor answers: it is read
                with what comes next, or when there is no room. Who waits later has to say so.
        """
        quiet = quietly and not self.awaited
        self._give_back(self._returned, push, quiet=quiet)
        self._give_back(self._returned_calls, push, quiet=quiet)
        while self._returned_views:
            self._viewed.pop(self._returned_views.pop(), None)
        self._give_back(self._returned_shares, push, codec.UNSHARE)

    def _give_back(
        self, returned: list[int], push: Callable[..., bool], kind: int = codec.FREE, quiet: bool = False
    ) -> None:
        while returned:
            number = returned[0]
            if kind == codec.UNSHARE:
                self._leaving.add(number)  # before it can be answered
            if not push(kind, 0, number, quiet, 0, b""):
                return
            self._results_here.pop(number, None)
            if returned and returned[0] == number:
                del returned[0]  # no call since the look: another thread may do the same

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Nothing more is sent or comes. Results live on, and of the arenas nothing but these."""
        if self._view is not None:
            self._view = None
            # Of what came back as it was: a mapping of it keeps all other calls, too. So it goes, if this is the only
            # thread: another one may be writing there, also without the GIL.
            detach_all(self._returned_calls, len(sys._current_frames()) == 1)
            for handle in list(self.handles):
                handle.end()
            detach_all(self._returned_views)
            self._viewed.clear()
            self._drop_all_but_results()
        self._calls.close()
        self._results.close()

    def _drop_all_but_results(self) -> None:
        """Let go of the memory between the results: for any one of them the kernel keeps the whole file."""
        self._give_back(self._returned, _anywhere)
        kept = sorted((offset, offset + size) for _, offset, size in self._results_here.values())
        if not kept:
            return
        try:
            whole = self._results.map_shared(0, self.capacity)
            ends = [0, *(end for _, end in kept)]
            for start, end in zip(ends, [*(start for start, _ in kept), self.capacity], strict=True):
                if start < end:
                    whole.madvise(mmap.MADV_REMOVE, start, end - start)
            whole.close()
        except OSError:
            pass  # no room in the address space: it is kept, and goes with the last of the results

    def forked(self) -> None:
        """This process is a fork: the mapping is not there, and the memory must not be kept by it."""
        keep(self._view)  # whose end would unmap what has come to lie there
        self._view = None
        self._calls.close()
        self._results.close()


def _anywhere(*_: object) -> bool:
    return True


def make(capacity: int | None) -> Arenas | None:
    """The arenas of a client.

    Args:
        capacity: The bound of each in bytes, 0 for no arenas; None for one part in MEMORY_SHARE of the memory that this
            process may use.

    Returns:
        None for none; also where no descriptor is left for them, or no room in the address space.
    """
    try:
        if capacity is None:
            capacity = usable_memory() // MEMORY_SHARE
        capacity = -(-capacity // arena.PAGE) * arena.PAGE
        return Arenas(capacity) if capacity else None
    except OSError:
        return None
