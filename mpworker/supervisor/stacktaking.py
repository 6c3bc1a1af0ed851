"""Where the children are now: the stacks of those that run something, when an operator asks for them."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.supervisor.children import Child
    from mpworker.supervisor.daemon import Daemon

TAKE_SECONDS: Final = 1.0  # in which a child writes its stack; one that is stopped writes none
_LOOK_SECONDS: Final = 0.02  # a stack is whole when it is the same at two looks


class StackTaking:
    """Takes them. Who asks while they are taken has them taken once more.

    Args:
        daemon: The supervisor.

    Attributes:
        next_at: When to call `look`; None for never.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.next_at: float | None = None
        self._by = 0.0
        self._asked = 0  # how often
        self._takes = 0  # of these, those that the stacks are for which are, or were, taken
        self._done = 0  # and those for which they are there
        self._of: dict[int, int] = {}  # by child: the generation of what it ran when it was asked
        self._awaited: dict[int, bytes] = {}  # what it had written at the last look
        self._found: dict[int, bytes] = {}

    def ask(self) -> int:
        """Take them; by this number it can be asked what was found."""
        self._asked += 1
        if self.next_at is None:
            self._begin(time.monotonic())
        return self._asked

    def outcome(self, number: int) -> dict[str, Any] | None:
        """{"children"}: each as in `status`, with its "stack", of which one that runs nothing has none; or not yet."""
        if self._done < number:
            return None
        children = [child for child in self._daemon.world.everyone if child.pid]
        return {"children": [self._told(child) for child in children]}

    def _told(self, child: Child) -> dict[str, Any]:
        runs, number = self._daemon.overview.runs(child), child.seat.number
        same = runs is not None and runs[0].generation == self._of.get(number)
        stack = self._found.get(number, b"") if same else b""
        return self._daemon.overview.child(child, time.monotonic()) | {"stack": stack.decode(errors="replace")}

    def _begin(self, now: float) -> None:
        self._takes, self._by, self.next_at = self._asked, now + TAKE_SECONDS, now + _LOOK_SECONDS
        self._found, self._of, self._awaited = {}, {}, {}
        for child in self._daemon.world.everyone:
            # Of the others nothing is known, or that they wait for a task; and one that starts may not be ready for it.
            runs = self._daemon.overview.runs(child)
            if runs is not None:
                self._of[child.seat.number] = runs[0].generation
                self._awaited[child.seat.number] = b""
                self._daemon.world.ask_stack(child.seat)

    def look(self, now: float) -> None:
        """Have the children written them?"""
        if self.next_at is None or now < self.next_at:
            return
        if self._done == self._takes:
            self._begin(now)  # for those who have asked meanwhile; the others have been answered by now
            return
        for number, before in list(self._awaited.items()):
            child = self._daemon.world.by_number.get(number)
            stack = self._awaited[number] = child.stack_view.read() if child is not None else b""
            if child is None or (stack and stack == before):
                self._found[number] = self._awaited.pop(number)
        self.next_at = now + _LOOK_SECONDS
        if not self._awaited or now >= self._by:
            self._found |= self._awaited
            self._done = self._takes
            self.next_at = now if self._asked > self._takes else None
