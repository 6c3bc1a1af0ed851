"""A chunk of a `map` on its way: what has come of its items, and who waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mpworker.ipc import codec
from mpworker.waiting import WaitedFor, wake_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mpworker.mapping import Mapping


class Chunk(WaitedFor):
    """One chunk under way.

    Args:
        mapping: Whose it is.
        items: Its items.
    """

    __slots__ = (
        "_ended",
        "_map",
        "at",
        "items",
        "key",
        "left",
        "resent",
        "runs",
        "sending",
        "sent",
        "singles",
        "splits",
        "stop",
        "unsaid",
    )
    _slow = False

    def __init__(self, mapping: Mapping, items: Sequence[Any]) -> None:
        self._map = mapping
        self.items = items  # until all are settled: a chunk that cannot be unpickled is sent again in pieces
        self.stop = len(items)
        self.at = 0  # the next item to be taken
        self.key = 0
        self.sent = False  # for sure; an interrupt can come between the sending and this
        self.runs: dict[int, tuple[int, int, bytes, int]] = {}  # start: (stop, status, payload, duration_ns)
        self.splits: dict[int, int] = {}  # start: stop, of what is to be sent again
        # start: stop and the items, each in a chunk of its own: while they are sent, until that is said, and afterwards
        self.sending: dict[int, tuple[int, list[Chunk]]] = {}
        self.unsaid: dict[int, tuple[int, list[Chunk]]] = {}
        self.resent: dict[int, tuple[int, list[Chunk]]] = {}
        self.singles: deque[Chunk] = deque()  # items that were sent again one by one, to be taken before the rest
        self.left = self.stop
        self._ended: dict[int, int] = {}  # start: stop of all runs and splits that were settled
        self._waiters = []

    @property
    def ready(self) -> bool:
        """Is there something to take?"""
        at = self.at
        return at in self.runs or at in self.splits or at in self.unsaid or at in self.resent

    def settle_items(self, status: int, start: int, stop: int, duration_ns: int, data: bytes) -> bool:
        """A run of items has ended; True when it was the last."""
        run = (stop, status, data, duration_ns)
        if start not in self._ended:  # it may be told again, and at once: see `mpworker.reader`. No call from here on.
            self.runs[start] = run
            self.left -= stop - start
            self._ended[start] = stop
            if status == codec.CANCELLED:
                self._map.client.ending.cancelled_items += stop - start
        return self._settled()

    def split(self, start: int, stop: int) -> None:
        """These items must be sent one by one, by who takes them or stops the worker."""
        if start not in self._ended:
            self.splits[start] = stop
            self._ended[start] = stop
            self._map.client.resending.chunks[self] = self._map
        self._settled()

    def begin_to_send(self, start: int, singles: list[Chunk], taken: list[int]) -> None:
        """Take the items from `start` on to be sent again as `singles`; nothing if another thread has.

        Args:
            start: The first.
            singles: All of them.
            taken: Where they end is put here.
        """
        entry = (start + len(singles), singles)
        if start in self.splits:
            self.sending[start] = entry
            del self.splits[start]
            taken[0] = entry[0]  # no call since the look

    def said(self, start: int) -> bool:
        """The supervisor knows that these were sent; True when all others are settled."""
        if start in self.unsaid:
            entry = self.unsaid[start]
            self.resent[start] = entry
            self.left -= entry[0] - start
            del self.unsaid[start]  # no call since the look
        return self._settled()

    def settle(self, status: int, data: bytes) -> None:
        """Nothing more will come: what is left ends like this."""
        for start, stop in self.unsettled():
            self.settle_items(status, start, stop, 0, data)
        for start, stop in list(self.splits.items()):
            run = (stop, status, data, 0)
            if start in self.splits:  # nobody has begun to send them again; no call from here on
                self.runs[start] = run
                del self.splits[start]
        self.left = 0
        self._settled()

    def _settled(self) -> bool:
        wake_all(self._waiters)
        return self.left <= 0

    def unsettled(self) -> list[tuple[int, int]]:
        """The ranges of items that have no outcome, and are not to be sent again in another way; in order."""
        found, at = [], 0
        for start, stop in (*sorted(self._ended.items()), (self.stop, self.stop)):
            if at < start:
                found.append((at, start))
            at = max(at, stop)
        return found

    def has_ended(self) -> bool:
        """Is all of it settled, taken or not?"""
        return self.left <= 0
