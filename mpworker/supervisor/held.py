"""Blocks of the arenas, as the supervisor holds them: each as long as a payload refers to it.

A payload that came with an envelope (`mpworker.ipc.arena`) is a `Held`: bytes as ever for all that passes it on, and
a reference to its blocks. A call's payload lives in its task and, if that may be run again, in the history; a
result's in the call of whoever takes it in, in the history, and in `Blocks` while the client has it. When the last
of these lets go, the block goes back to whom it is of. This process has no cycles, so that is at once.
"""

from __future__ import annotations

from mpworker.containers import OrderedDict
from mpworker.ipc import arena
from mpworker.ipc._native import Extents
from mpworker.supervisor.effects import ProtocolViolation
from mpworker.supervisor.shares import Holding, Shared, Shares

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from mpworker.ipc.arena import Block, Envelope

_FITS_TIMES: Final = 2  # a block that a child has still mapped is used again for at least one part in so many of it


class Held(bytes):
    """The payload of a record with an envelope.

    Attributes:
        own: Its own block.
        call: The call's, which it refers to.
        shares: The shared objects that it speaks of, until it has come to its end.
        block_bytes: How large the first two are together: see `mpworker.supervisor.registry.size_of`.
    """

    own: Holding | None
    call: Holding | None
    shares: tuple[Shared, ...]
    block_bytes: int

    def over(self) -> None:
        """It is not carried out any more: what is shared is not kept for one that is only remembered."""
        self.shares = ()


def held(data: bytes, own: Holding | None, call: Holding | None = None, shares: tuple[Shared, ...] = ()) -> Held:
    """A payload with these blocks."""
    made = Held(data)
    made.own = own
    made.call = call
    made.shares = shares
    made.block_bytes = (own.block[2] if own is not None else 0) + (call.block[2] if call is not None else 0)
    return made


class Lending:
    """Who writes where in the arena for results.

    A child keeps the memory mapped that it has written to, for to map 64 MiB anew costs as much as to write them. So a
    block that is free again stays that child's, until another one needs the room.

    Args:
        capacity: Bytes of the arena.
        taken_away: Called with a child and a number: another one may get that block.
    """

    def __init__(self, capacity: int, taken_away: Callable[[int, int], None]) -> None:
        self._extents = Extents(capacity)
        self._taken_away = taken_away
        self._lent: dict[int, dict[int, Block]] = {}  # by child and number: what it may write to
        self._owners: dict[int, int] = {}  # of a block that is a result: the child
        self._spare: OrderedDict[int, tuple[int, Block]] = OrderedDict()  # that are free and still mapped, and by whom

    @property
    def taken(self) -> int:
        """Bytes that are lent, are results, or are still mapped by a child."""
        return self._extents.taken

    @property
    def in_use(self) -> int:
        """Bytes that are lent or are results."""
        return self._extents.taken - sum(block[2] for _, block in self._spare.values())

    def lend(self, child: int, size: int) -> Block:
        """A block for a result of so many bytes, NO_BLOCK if there is no room."""
        block = self._spare_of(child, size)
        if block is None:
            taken: list[Block] = []
            while not self._extents.take(size, taken):
                if not self._spare:
                    return arena.NO_BLOCK
                number, (owner, _) = self._spare.popitem(last=False)
                self._extents.give(number)
                self._taken_away(owner, number)
            block = taken[0]
        self._lent.setdefault(child, {})[block[0]] = block
        return block

    def _spare_of(self, child: int, size: int) -> Block | None:
        for number in reversed(self._spare):
            owner, block = self._spare[number]
            if owner == child and size <= block[2] <= size * _FITS_TIMES + arena.PAGE:
                del self._spare[number]
                return block
        return None

    def written(self, child: int, block: Block) -> Holding:
        """A child has made a result of a block.

        Raises:
            ProtocolViolation: It was not lent to it.
        """
        if self._lent.get(child, {}).pop(block[0], None) != block:
            raise ProtocolViolation(f"a result in block {block}, which is not lent to it")
        self._owners[block[0]] = child
        return Holding(block, self._free)

    def _free(self, block: Block) -> None:
        owner = self._owners.pop(block[0], None)
        if owner in self._lent:
            self._spare[block[0]] = (owner, block)
        else:
            self._extents.give(block[0])

    def unused(self, child: int, number: int) -> None:
        """A child does not need what was lent to it."""
        block = self._lent.get(child, {}).pop(number, None)
        if block is not None:
            self._extents.give(number)

    def died(self, child: int) -> None:
        """A child is dead: nobody writes to what it had been lent. Its results are results."""
        for number in self._lent.pop(child, {}):
            self._extents.give(number)
        for number in [number for number, (owner, _) in self._spare.items() if owner == child]:
            del self._spare[number]
            self._extents.give(number)


class Blocks:
    """All blocks of a client's arenas.

    Those that the client has got with results are delivered, each under a number of its own: two results may refer to
    one call, and a client that says twice that it has no use for one must not mean another.

    Args:
        lending: Who writes results where.

    Attributes:
        freed: The numbers of calls' and shared objects' blocks that are needed no more, of which the client is to be
            told.
        shares: The shared objects.
    """

    def __init__(self, lending: Lending) -> None:
        self.lending = lending
        self.shares = Shares(self._free)
        self.freed: list[int] = []
        self._quiet = 0
        self._delivered: dict[int, Holding] = {}
        self._last = 0

    def held(self, payload: bytes) -> Held:
        """A call with an envelope, which keeps its blocks as long as it lives.

        Raises:
            ValueError: It has none, or one of a result, or speaks of what is not shared.
        """
        envelope = arena.unpack(payload)
        if envelope.call[2] or not (envelope.own[2] or envelope.shares):
            raise ValueError("a call with the envelope of a result")
        shares = self.shares.named(envelope.shares) if envelope.shares else ()
        if shares is None:
            raise ValueError("a call that speaks of what is not shared")
        return held(payload, Holding(envelope.own, self._free) if envelope.own[2] else None, shares=shares)

    def again(self, payload: bytes, call: Held) -> Held | None:
        """A call that has come to its end, as another one; None if something that it speaks of is not shared any more.

        Args:
            payload: The other one's payload, which ends with the same envelope.
            call: The one that has ended.
        """
        blocks = arena.unpack(payload).shares
        shares = self.shares.named(blocks) if blocks else ()
        return None if shares is None else held(payload, call.own, shares=shares)

    def _free(self, block: Block) -> None:
        self.freed.append(block[0])  # told later: here is nobody who could hear of a ring that is corrupt

    def take_freed(self) -> tuple[list[int], bool]:
        """What the client is to be told now; and is it to be woken for that?"""
        freed, self.freed = self.freed, []
        quiet, self._quiet = self._quiet, 0
        return freed, len(freed) > quiet

    def deliver(self, payload: Held) -> bytes:
        """What the client is to get of a result."""
        return arena.renumber(payload, self._number(payload.own), self._number(payload.call))

    def _number(self, holding: Holding | None) -> int:
        if holding is None:
            return 0
        self._last += 1
        self._delivered[self._last] = holding
        return self._last

    def forget(self, number: int, quietly: bool = False) -> None:
        """The client has no use any more for what was delivered under this number.

        Args:
            number: The number.
            quietly: Nor does it wait for the room.
        """
        freed = len(self.freed)
        self._delivered.pop(number, None)
        if quietly:
            self._quiet += len(self.freed) - freed


def nobody(_child: int, _number: int) -> None:
    """Is told where there are no children."""


def of_result(data: bytes, child: int, lending: Lending, call: bytes | None) -> Held:
    """What a child answers, with its blocks.

    Args:
        data: The payload.
        child: Who answers.
        lending: What was lent to it.
        call: The payload of the task's call; None if there is no such task any more, and so nobody to get the result.

    Raises:
        ProtocolViolation: It speaks of blocks that are not its own.
    """
    try:
        envelope: Envelope = arena.unpack(data)
    except ValueError as error:
        raise ProtocolViolation("a result with an envelope that is none") from error
    own = lending.written(child, envelope.own) if envelope.own[2] else None
    refers = None
    if envelope.call[2] and call is not None:
        refers = call.own if isinstance(call, Held) else None
        if refers is None or refers.block != envelope.call:
            raise ProtocolViolation(f"a result that refers to block {envelope.call}, which is not its call's")
    return held(data, own, refers)
