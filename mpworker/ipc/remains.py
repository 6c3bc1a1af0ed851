"""What a supervisor that has died, with all its children, has left of a client's tasks: read in the client.

The claim pages (`mpworker.ipc.roll`) tell of each slot what was offered there last, and whether a child had begun it.
The client's own ledger (`mpworker.ipc.ledger`) tells what had no room in its ring, and which attempts were followed by
others.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from mpworker.ipc import _native, ledger
from mpworker.ipc.channel import claims_bytes
from mpworker.ipc.roll import region_bytes

_NOTE: Final = struct.Struct("<QQQ")  # mpw_entry
_SLOT: Final = struct.Struct("<QQQQ")  # mpw_slot


class Offer(NamedTuple):
    """An offer that a child has claimed.

    Attributes:
        task: The number of the task or chunk.
        generation: Of the offer: later ones have a higher one.
        start: The first item of the range that was offered,
        stop: and the one behind the last; both 0 for a single task.
        cursor: One more than the item that ran; 0 for none so far, or a single task.
    """

    task: int
    generation: int
    start: int
    stop: int
    cursor: int


class Entry(NamedTuple):
    """What has become of a task, or of a range of a chunk's items.

    Attributes:
        task: Its number.
        generation: Of the offer that this is about.
        start: The first item,
        stop: and the one behind the last; both 0 for a single task.
        attempts: That have begun and ended,
        failures: of these, those that have failed or were late,
        crashes: and those whose child has died.
        status: Its outcome; `mpworker.ipc.ledger.TRIED_AGAIN` for none.
    """

    task: int
    generation: int
    start: int
    stop: int
    attempts: int
    failures: int
    crashes: int
    status: int


def claimed(fd: int, slots: int) -> Iterator[Offer]:
    """The offers that had been claimed last, each in its slot; one that was answered until its slot was offered anew.

    Args:
        fd: The roll.
        slots: Of each child.
    """
    region, notes_at = region_bytes(slots), claims_bytes(slots)
    end, at = os.fstat(fd).st_size, 0
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA) // region * region
        except OSError:
            return  # there is nothing but holes
        data = os.pread(fd, region, at)
        notes = _NOTE.iter_unpack(data[notes_at : notes_at + slots * _NOTE.size])
        for index, (generation, task, items) in enumerate(notes):
            word, _, cursor, _ = _SLOT.unpack_from(data, _native.CLAIMS_HEADER_BYTES + index * _SLOT.size)
            if generation and _has_begun(word, generation):
                yield Offer(task, generation, items & 0xFFFFFFFF, items >> 32, cursor)
        at += region


def _has_begun(word: int, generation: int) -> bool:
    """Does a slot's word say so of its last offer? What makes no sense does, too: see claims.h."""
    if word >> 2 < generation:
        return False  # the note was made, and not the offer
    return word not in (generation << 2 | _native.OFFERED, generation << 2 | _native.REVOKED)


def noted(fds: list[int]) -> Iterator[Entry]:
    """The entries of a client's ledger, in the order in which they were noted."""
    return map(Entry._make, ledger.read(fds))
