"""A channel: everything one pair of processes shares, in one anonymous memory segment and two pipes.

The segment holds a bell word for each side, the control blocks of two rings and the two rings::

    0      64     128        256        4096             4096 + capacity[0]
    | bell | bell | ring 0   | ring 1   | ring 0's bytes | ring 1's bytes   | more
      of 0   of 1   control    control    side 0 pushes    side 1 pushes

What there is more of it is what the two agree on: for a child, where its stack goes.

Side 0 is the one that made the channel. Nothing has a name in any file system: the descriptors travel over a unix
socket, and when the last process that maps the segment is gone, so is the memory.

Each pipe is a bell (bell.h), and each side has an open file description of its own for each of the two: the flags of
one that is shared could be changed by the other side, which would then block this one. So the maker opens every pipe
once for itself and once for the other side, and closes what it has sent. The supervisor does not rely on a client to
do so: it opens what it is sent once more.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from mpworker.ipc import _native
from mpworker.ipc._native import Bell, Claims, Ring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = 4096
_MFD_NOEXEC_SEAL = 0x0008  # Linux 6.3; not named by Python 3.11
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def open_memory(name: str) -> int:
    """An anonymous file in memory, empty and with no seal: its descriptor, close-on-exec.

    Args:
        name: Shown in /proc/PID/maps.

    Raises:
        OSError: No descriptor is left.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)


def make_segment(name: str, size: int) -> int:
    """An anonymous memory segment of `size` bytes, backed by memory at once and sealed against resizing.

    Returns:
        Its descriptor, close-on-exec.

    Raises:
        OSError: No memory or no descriptor is left; raised here, not by SIGBUS at a later access.
    """
    fd = open_memory(name)
    try:
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_segment(fd: int, size: int, offset: int = 0) -> mmap.mmap:
    """Map a segment, or a part: shared, absent from forks (they must not touch it) and from core dumps (payloads).

    Args:
        fd: Its descriptor.
        size: Bytes.
        offset: Where the part begins: a whole number of pages.

    Raises:
        OSError: There is no room for it in this process's address space.
    """
    mapping = mmap.mmap(fd, size, offset=offset)
    mapping.madvise(mmap.MADV_DONTFORK)
    mapping.madvise(mmap.MADV_DONTDUMP)
    return mapping


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def channel_bytes(capacities: Sequence[int]) -> int:
    """The size of a channel, without what there is more in its segment."""
    return PAGE + sum(capacities)


def open_anew(pipe: int) -> int:
    """An open file description of a pipe that nobody else has: for reading and writing, and it never blocks.

    Returns:
        Its descriptor, close-on-exec.

    Raises:
        OSError: No descriptor is left, or there is no /proc.
    """
    try:
        return os.open(f"/proc/self/fd/{pipe}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "mpworker needs /proc, which is not mounted here") from error


class Channel:
    """One side of a channel.

    Args:
        fds: The segment, which the caller closes, and this side's own descriptions of the bells of sides 0 and 1.
        capacities: Bytes of the ring of side 0, and of side 1.
        side: Which one this is.
        more: Bytes that are mapped beyond the rings.

    Attributes:
        more: These bytes.
        outbound: The ring this side pushes to.
        inbound: The ring this side pops from.
        bell: This side's own bell: others ring it, this side waits on it.
        peer_bell: The other side's bell.
        fd: The pipe of the own bell, for an event loop to watch.
    """

    def __init__(self, fds: Sequence[int], capacities: Sequence[int], side: int, more: int = 0) -> None:
        segment, *pipes = fds
        mapping = map_segment(segment, channel_bytes(capacities) + more)
        rings = [
            Ring(
                mapping,
                2 * _native.BELL_BYTES + index * _native.RING_CTL_BYTES,
                PAGE + index * capacities[0],
                capacity,
            )
            for index, capacity in enumerate(capacities)
        ]
        bells = [Bell(mapping, index * _native.BELL_BYTES, pipe) for index, pipe in enumerate(pipes)]
        self.outbound = rings[side]
        self.inbound = rings[1 - side]
        self.bell = bells[side]
        self.peer_bell = bells[1 - side]
        self.fd = pipes[side]
        self._pipes = pipes
        self.more = memoryview(mapping)[channel_bytes(capacities) :]

    def close(self) -> None:
        """Close the bells' descriptors and let go of the rings and bells: with the last of these goes the memory."""
        pipes, self._pipes = self._pipes, []
        close_all(pipes)
        for name in ("outbound", "inbound", "bell", "peer_bell", "more"):
            self.__dict__.pop(name, None)


def make_channel(name: str, capacities: tuple[int, int], more: int = 0) -> tuple[list[int], Channel]:
    """A new channel: the descriptors for the other side, and side 0 of it.

    The caller sends the descriptors and closes them; the channel has its own.

    Args:
        name: Shown in /proc/PID/maps.
        capacities: Bytes of the ring that this side pushes to, and of the one that it pops from: powers of two.
        more: Bytes beyond the rings.

    Raises:
        OSError: No memory or no descriptor is left, or there is no /proc. Nothing is left open.
    """
    theirs: list[int] = []
    ours: list[int] = []
    try:
        theirs.append(make_segment(name, channel_bytes(capacities) + more))
        for _ in range(2):
            ends = os.pipe()
            try:
                for side in (ours, theirs):
                    side.append(open_anew(ends[0]))
            finally:
                close_all(ends)
        return theirs, Channel([theirs[0], *ours], capacities, 0, more)
    except BaseException:
        close_all(theirs + ours)
        raise


def claims_bytes(slots: int) -> int:
    """The size of a claim page: whole pages."""
    return -(-(_native.CLAIMS_HEADER_BYTES + slots * _native.CLAIM_SLOT_BYTES) // PAGE) * PAGE


def map_claims(fd: int, at: int, slots: int) -> Claims:
    """The child's view of its claim page, which begins there in a `mpworker.ipc.roll`."""
    return Claims(map_segment(fd, claims_bytes(slots), at), slots)
