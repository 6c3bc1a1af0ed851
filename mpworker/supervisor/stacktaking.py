"""Where the children are now: the stacks of those that run something, when an operator asks for them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

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
        self._takes = 0  # of these, those that the stacks are for which are being taken
        self._done = 0  # and those that were answered
        self._awaited: dict[int, bytes] = {}  # by child: what it had written at the last look
        self._found: dict[int, bytes] = {}
        self._outcome: dict[str, Any] = {}

    def ask(self) -> int:
        """Take them; by this number it can be asked what was found."""
        self._asked += 1
        if self.next_at is None:
            self._begin()
        return self._asked

    def outcome(self, number: int) -> dict[str, Any] | None:
        """{"children"}: each as in `status`, with its "stack", of which one that runs nothing has none; or not yet."""
        return self._outcome if self._done >= number else None

    def _begin(self) -> None:
        now = self._daemon.now()
        self._takes, self._by, self.next_at = self._asked, now + TAKE_SECONDS, now + _LOOK_SECONDS
        self._found = {}
        # Of the others nothing is known, or that they wait for a task; and one that starts may not be ready for it.
        working = [child for child in self._daemon.world.everyone if self._daemon.runs(child) is not None]
        self._awaited = {child.seat.number: b"" for child in working}
        for child in working:
            self._daemon.world.ask_stack(child.seat)

    def look(self, now: float) -> None:
        """Have the children written them?"""
        if self.next_at is None or now < self.next_at:
            return
        for number, before in list(self._awaited.items()):
            child = self._daemon.world.by_number.get(number)
            stack = self._awaited[number] = child.stack_view.read() if child is not None else b""
            if child is None or (stack and stack == before):
                self._found[number] = self._awaited.pop(number)
        self.next_at = now + _LOOK_SECONDS
        if not self._awaited or now >= self._by:
            self._over(now)

    def _over(self, now: float) -> None:
        found = self._found | self._awaited
        told = [
            self._daemon.overview.child(child, now)
            | {"stack": found.get(child.seat.number, b"").decode(errors="replace")}
            for child in self._daemon.world.everyone
            if child.pid
        ]
        self._outcome, self._done, self.next_at = {"children": told}, self._takes, None
        if self._asked > self._takes:
            self._begin()
