"""The ids that users have given to their tasks."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from typing import Final

_SPARE: Final = 64


class Ids:
    """Which task has which id, as long as it is there or remembered, and somewhat longer.

    Tasks that have ended are forgotten in bulk, with nobody told: so this looks by itself what is left, each time that
    it has doubled, which costs each id little.

    Args:
        known: Tells the numbers of all tasks that there are or that are remembered.
    """

    __slots__ = ("_keys", "_known", "_look_beyond")

    def __init__(self, known: Callable[[], Container[int]]) -> None:
        self._known = known
        self._keys: dict[str, int] = {}
        self._look_beyond = _SPARE

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, task_id: str, key: int) -> None:
        """A task with this id has come; the number is that of whoever sent it."""
        if len(self._keys) >= self._look_beyond:
            known = self._known()
            self._keys = {each: key for each, key in self._keys.items() if key in known}
            self._look_beyond = 2 * len(self._keys) + _SPARE
        self._keys[task_id] = key

    def find(self, task_id: str) -> int | None:
        """The number of the last task that had this id; it may be forgotten since."""
        return self._keys.get(task_id)
