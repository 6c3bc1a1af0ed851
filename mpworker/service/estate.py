"""What is to become of the tasks of a supervisor that has died: whose attempt had begun, and may another one follow?

It is asked in the client, when the supervisor and all its children are dead, of the tasks that have no outcome. What it
says goes with a task to the next supervisor, which has the retry policy carried out: of a task, or of each range of a
chunk's items, how many attempts there were, and how many of them failed or ended with their child. An attempt that had
begun and whose outcome is not known ended with the supervisor, and counts as one whose child has died.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from mpworker.ipc.codec import CANCELLED, CONTEXT_SHIFT, TASK_MASK
from mpworker.ipc.ledger import TRIED_AGAIN
from mpworker.ipc.remains import Entry, Offer


class _Counts(NamedTuple):
    """Of attempts that are over; the ledger's include those that were known before."""

    attempts: int = 0
    failures: int = 0
    crashes: int = 0

    def crashed(self) -> _Counts:
        return _Counts(self.attempts + 1, self.failures, self.crashes + 1)


_NONE: Final = _Counts()


class Estate:
    """What a supervisor has left of one client's tasks.

    Args:
        client: The client's number.
        offers: Those that were claimed last: `mpworker.ipc.remains.claimed`.
        entries: The client's ledger: `mpworker.ipc.remains.noted`.
        known: By task, what was said here of it when another supervisor had died before.
    """

    def __init__(
        self, client: int, offers: Iterable[Offer], entries: Iterable[Entry], known: Mapping[int, list[list[int]]]
    ) -> None:
        self._known = known
        self._offers: dict[int, list[Offer]] = {}
        for offer in offers:
            if offer.task >> CONTEXT_SHIFT == client:
                self._offers.setdefault(offer.task & TASK_MASK, []).append(offer)
        self._entries: dict[int, list[Entry]] = {}
        for entry in entries:
            self._entries.setdefault(entry.task, []).append(entry)

    def was_cancelled(self, task: int) -> bool:
        """Has a task ended so, and could not be told?"""
        entries = self._entries.get(task)
        return bool(entries) and entries[-1].status == CANCELLED  # type: ignore[index]

    def of_task(self, task: int) -> list[list[int]]:
        """What is known of a single task: one part, of no items."""
        return [[0, 0, *self._counts(task, 0)]]

    def of_items(self, task: int, unsettled: Iterable[tuple[int, int]]) -> list[list[int]]:
        """What is known of a chunk's items.

        Args:
            task: The number of the chunk.
            unsettled: The ranges that have no outcome, in order.

        Returns:
            Ranges of these, in order, each of items that are alike.
        """
        edges = {edge for offer in self._offers.get(task, ()) for edge in _edges(offer)}
        edges |= {edge for part in self._known.get(task, ()) for edge in part[:2]}
        edges |= {edge for entry in self._entries.get(task, ()) for edge in (entry.start, entry.stop)}
        parts: list[list[int]] = []
        for start, stop in unsettled:
            cuts = [start, *sorted(edge for edge in edges if start < edge < stop), stop]
            for first, last in pairwise(cuts):
                counts = [*self._counts(task, first)]
                if parts and parts[-1][1] == first and parts[-1][2:] == counts:
                    parts[-1][1] = last
                else:
                    parts.append([first, last, *counts])
        return parts

    def _counts(self, task: int, item: int) -> _Counts:
        known, generation, is_lost = _NONE, 0, False
        for start, stop, *counts in self._known.get(task, ()):
            if stop == 0 or start <= item < stop:
                known = _Counts(*counts)
        for entry in self._entries.get(task, ()):
            if entry.generation >= generation and (entry.stop == 0 or entry.start <= item < entry.stop):
                known = _Counts(entry.attempts, entry.failures, entry.crashes)
                generation, is_lost = entry.generation, entry.status != TRIED_AGAIN
        begun = (offer.generation > generation and _has_begun(offer, item) for offer in self._offers.get(task, ()))
        return known.crashed() if is_lost or any(begun) else known


def _edges(offer: Offer) -> tuple[int, ...]:
    return offer.start, offer.stop, max(offer.start, offer.cursor - 1), max(offer.start, offer.cursor)


def _has_begun(offer: Offer, item: int) -> bool:
    """Had an item of what was claimed begun?"""
    if not offer.stop:
        return True
    if not offer.start <= item < offer.stop:
        return False
    # While the items are unpickled none has begun; but of one alone there is nothing else to begin.
    return item < offer.cursor or (offer.cursor == 0 and offer.stop - offer.start == 1)
