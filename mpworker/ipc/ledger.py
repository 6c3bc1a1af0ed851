"""What of a client's tasks neither its ring nor the claim pages tell, if the supervisor dies.

The supervisor writes here, before the slots of the answers that it has taken in are offered anew: each outcome that had
no room in the client's ring, and each attempt that is followed by another one. Nobody reads it as long as the
supervisor lives. Then its client does, which has the descriptors: it may spoil what is its own.

There are two files, of which one is in force: that with the higher number at its beginning. What is of no more use is
left out when all is written anew, into the other one.
"""

from __future__ import annotations

import errno
import os
import struct

from mpworker.ipc.channel import open_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final, TypeAlias

# (task, generation, start, stop, attempts, failures, crashes, status): see `mpworker.ipc.remains.Entry`.
Entry: TypeAlias = "tuple[int, int, int, int, int, int, int, int]"

TRIED_AGAIN: Final = 0xFF  # no status of mpworker.ipc.codec
ENTRY: Final = struct.Struct("<QQIIIIII")
NUMBER: Final = struct.Struct("<Q")
_SPARE: Final = 1024  # entries that may be of no more use, beside as many as are of some


class Ledger:
    """The files of one client, as the supervisor has them: it writes, and reads nothing that a client may have written.

    Attributes:
        fds: The files.
        unwritten: Is there an entry that `write` is to write?

    Raises:
        OSError: No descriptor is left.
    """

    __slots__ = ("_current", "_entries", "_limit", "_number", "_written", "fds")

    def __init__(self) -> None:
        self._entries: list[bytes] = []  # all that are in force, those that are not written yet at the end
        self._written = 0  # how many are
        self._current = self._number = 0
        self._limit = _SPARE
        self.fds = [open_memory("mpworker-ledger")]
        try:
            self.fds.append(open_memory("mpworker-ledger"))
            self._rewrite()
        except BaseException:
            self.close()
            raise

    @property
    def unwritten(self) -> bool:
        return self._written < len(self._entries)

    def note(self, entry: Entry) -> None:
        """Here is an entry; `write` writes it."""
        self._entries.append(ENTRY.pack(*entry))

    def write(self, is_needed: Callable[[Entry], bool]) -> None:
        """Write what was noted.

        Args:
            is_needed: May an entry still say something that nothing else does?

        Raises:
            OSError: No memory is left, or the client allows no writing; it can be tried again.
        """
        if not self.fds:
            self._written = len(self._entries)
        elif len(self._entries) > self._limit:
            self._entries = [each for each in self._entries if is_needed(ENTRY.unpack(each))]
            self._rewrite()
        else:
            data = b"".join(self._entries[self._written :])
            _write(self.fds[self._current], data, NUMBER.size + self._written * ENTRY.size)
            self._written = len(self._entries)

    def _rewrite(self) -> None:
        new = 1 - self._current
        _write(self.fds[new], b"".join(self._entries), NUMBER.size)
        _write(self.fds[new], NUMBER.pack(self._number + 1), 0)  # from here on it is this one
        os.ftruncate(self.fds[self._current], 0)
        self._current = new
        self._number += 1
        self._written = len(self._entries)
        self._limit = 2 * self._written + _SPARE

    def close(self) -> None:
        """Let go of it."""
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)


def _write(fd: int, data: bytes, at: int) -> None:
    if os.pwrite(fd, data, at) != len(data):
        raise OSError(errno.ENOSPC, "no memory is left for what is to outlive the supervisor")


def read(fds: list[int]) -> Iterator[Entry]:
    """All entries, in the order in which they were noted."""
    beginnings = [os.pread(fd, NUMBER.size, 0) for fd in fds]
    numbers = [NUMBER.unpack(data)[0] if len(data) == NUMBER.size else 0 for data in beginnings]
    fd = fds[numbers.index(max(numbers))]
    size = os.fstat(fd).st_size - NUMBER.size
    data = os.pread(fd, size - size % ENTRY.size, NUMBER.size) if size > 0 else b""
    return ENTRY.iter_unpack(data)
