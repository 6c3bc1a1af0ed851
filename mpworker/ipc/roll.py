"""The claim pages of all children, in one anonymous file, with what was offered to whom.

A child maps its own page (claims.h). Behind each page, where no child looks, the supervisor notes the task of each
offer. While it lives nobody else reads that. When it is dead, and all its children are, the file says of every task
that had been offered whether its attempt had begun: that is what `mpworker.ipc.remains` reads.

A region is a page and its notes. That of a child that is dead and reaped is given to a later one; of one that hangs in
the kernel it is nobody's any more.
"""

from __future__ import annotations

import errno
import fcntl
import os

from mpworker.ipc import _native
from mpworker.ipc._native import Claims
from mpworker.ipc.channel import PAGE, SEALS, claims_bytes, map_segment, open_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

REGIONS_MAX: Final = 1024  # children at once, those that are not reaped yet included; the file is sparse


def notes_bytes(slots: int) -> int:
    """The size of the notes of a page: whole pages."""
    return -(-slots * _native.CLAIM_NOTE_BYTES // PAGE) * PAGE


def region_bytes(slots: int) -> int:
    """The size of a region."""
    return claims_bytes(slots) + notes_bytes(slots)


class Roll:
    """The file, as the supervisor has it.

    Args:
        slots: Of each child.

    Attributes:
        fd: The file.

    Raises:
        OSError: No memory or descriptor is left.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._region = region_bytes(slots)
        self._free: list[int] = []
        self._next = 0
        self.fd = open_memory("mpworker-roll")
        try:
            os.fchmod(self.fd, 0o600)  # who is sent a descriptor to read by cannot make of it one to write by
            os.ftruncate(self.fd, REGIONS_MAX * self._region)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(self.fd)
            raise

    def take(self) -> tuple[int, Claims]:
        """A region for a new child, backed by memory at once: where it begins, and its page.

        Raises:
            OSError: No memory or descriptor is left.
        """
        at = self._free[-1] if self._free else self._next
        if at >= REGIONS_MAX * self._region:
            raise OSError(errno.ENOSPC, "there are more children that cannot be killed than there is room for")
        os.posix_fallocate(self.fd, at, self._region)
        mapping = map_segment(self.fd, self._region, at)
        mapping[:] = bytes(self._region)  # no generation is left of the one before
        if self._free:
            self._free.pop()
        else:
            self._next += self._region
        return at, Claims(mapping, self._slots, claims_bytes(self._slots))

    def give(self, at: int) -> None:
        """The child whose region this was is dead and reaped."""
        self._free.append(at)

    def readable(self) -> int:
        """A descriptor by which it can be read alone; for the caller to close.

        Raises:
            OSError: No descriptor is left.
        """
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
