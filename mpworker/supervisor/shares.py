"""Shared objects, as the supervisor holds them: each as long as anybody may look at it.

That is the client, as long as it has the handle; each call that speaks of it, until it has come to its end
(`mpworker.supervisor.held`); and each child that has it open. A child keeps open what it has opened, for the next task:
it says so before it answers the call, which is kept until then. When neither the client nor a call speaks of it any
more, the children that have it open are asked to let go of it, and do so between two tasks; what a task has kept of it
becomes a copy there.
"""

from __future__ import annotations

from mpworker.supervisor.effects import ProtocolViolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mpworker.ipc.arena import Block


class Holding:
    """A block that is in use.

    Args:
        block: Which.
        give_back: Called with it when it is not any more.
    """

    __slots__ = ("_give_back", "block")

    def __init__(self, block: Block, give_back: Callable[[Block], None]) -> None:
        self.block = block
        self._give_back = give_back

    def __del__(self) -> None:
        self._give_back(self.block)


class Shared:
    """A shared object that a later task may open: the client has it, or a call that has not come to its end.

    Args:
        holding: Its block, which children may have open for longer.
        unneeded: Where its number goes when neither has it any more.
    """

    __slots__ = ("_unneeded", "holding")

    def __init__(self, holding: Holding, unneeded: list[int]) -> None:
        self.holding = holding
        self._unneeded = unneeded

    def __del__(self) -> None:
        self._unneeded.append(self.holding.block[0])


class Shares:
    """The shared objects of one client.

    Args:
        give_back: Called with the block of each that nobody can look at any more.

    Attributes:
        unneeded: The numbers of those that no later task opens, and that children may still have open.
    """

    def __init__(self, give_back: Callable[[Block], None]) -> None:
        self._give_back = give_back
        self._placed: dict[int, Shared] = {}  # that the client has, by number
        self._open: dict[int, dict[int, Holding]] = {}  # by number: by child, who has it open
        self.unneeded: list[int] = []

    def place(self, block: Block) -> None:
        """The client has placed an object."""
        self._placed[block[0]] = Shared(Holding(block, self._give_back), self.unneeded)

    def named(self, blocks: Iterable[Block]) -> tuple[Shared, ...] | None:
        """Those that a call speaks of; None if the client has one of them no more."""
        found = []
        for block in blocks:
            shared = self._placed.get(block[0])
            if shared is None or shared.holding.block != block:
                return None
            found.append(shared)
        return tuple(found)

    def let_go(self, number: int) -> None:
        """Nobody in the client has its handle, which may be said twice."""
        self._placed.pop(number, None)

    def to_close(self) -> list[tuple[int, int]]:
        """Who is to let go of what, each once: children, and numbers of what they have open and is not needed."""
        pairs = [(child, number) for number in self.unneeded for child in self._open.get(number, ())]
        self.unneeded.clear()
        return pairs

    def opened(self, child: int, number: int, calls: Iterable[bytes]) -> None:
        """A child has opened it.

        Args:
            child: Which.
            number: What.
            calls: What it has been offered.

        Raises:
            ProtocolViolation: It cannot have that, from none of its calls.
        """
        for call in calls:
            for shared in getattr(call, "shares", ()):
                if shared.holding.block[0] == number:
                    self._open.setdefault(number, {})[child] = shared.holding
                    return
        raise ProtocolViolation(f"shared object {number} is open, and is in no call")

    def closed(self, child: int, number: int) -> None:
        """A child has let go of it."""
        children = self._open.get(number)
        if children is not None:
            children.pop(child, None)
            if not children:
                del self._open[number]

    def died(self, child: int) -> None:
        """A child is dead."""
        for number in [number for number, children in self._open.items() if child in children]:
            self.closed(child, number)
