"""What a client keeps of what it has sent, so that it can send it to another supervisor if the one that has it dies."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.ipc.codec import Record

_FORGOTTEN_MAX: Final = 64  # functions that are kept for tasks alone, until it is looked whether there still are any


class Pending(dict[int, "Any"]):
    """What is pending, by key. Whoever takes something out takes out what is kept of it, too.

    Attributes:
        kept: The records of tasks and chunks that the supervisor has, by key.
        recalled: The keys of futures that only this supervisor can settle, as it alone knows what they stand for.
        cancelled: The keys of tasks whose cancellation it was told without waiting for an answer.
        functions: The records of functions by their keys: of all that tasks may name, or that kept ones do.
        known: What is known of tasks that supervisors had which have died: see `mpworker.service.estate`.
        standing: What it was asked once and for all, by what it is about: see `Client.note_standing`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Record] = {}
        self.recalled: set[int] = set()
        self.cancelled: set[int] = set()
        self.functions: dict[int, Record] = {}
        self.known: dict[int, list[list[int]]] = {}
        self.standing: dict[Any, list[dict[str, Any]]] = {}
        self._forgotten: list[int] = []

    def pop(self, key: int, default: Any = None) -> Any:
        """Take it out. Python's interrupts may come in between; it is then done again."""
        self.kept.pop(key, None)
        self.recalled.discard(key)
        self.cancelled.discard(key)
        self.known.pop(key, None)
        return super().pop(key, default)

    def forget_function(self, key: int) -> None:
        """No later task names this function; those that do are kept, and it for them."""
        self._forgotten.append(key)
        if len(self._forgotten) < _FORGOTTEN_MAX:
            return
        forgotten, self._forgotten = self._forgotten, []
        named = {record[3] for record in list(self.kept.values())}
        self._forgotten += [each for each in forgotten if each in named]
        for each in forgotten:
            if each not in named:
                self.functions.pop(each, None)

    def forgotten(self) -> list[int]:
        """The functions that are kept for tasks alone."""
        return list(self._forgotten)
