"""How much memory a child has of its own.

That is what it has allocated since it was forked: its anonymous pages less those of the nursery, of which it is a copy.
What was preloaded is shared by all and counts for none, also where a child has written to it and so has a copy of the
page. That goes for what is there when it is first looked at; what the nursery imports after its start, for children to
come (`mpworker.supervisor.advance`), is 2 MiB more or less.

Linux knows the exact figure (`Private_Dirty` in `smaps_rollup`), and takes 12 ms for each GiB to find it, in which the
supervisor could do nothing else. This one takes 7 us, whatever the size.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def anonymous_bytes(pid: int) -> int:
    """Memory that a process has and that is no file's and no shared segment's; 0 if nobody can tell."""
    try:
        fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0  # it is gone, or no descriptor is left
    try:
        _, resident, shared, *_ = os.read(fd, 256).split()
        return (int(resident) - int(shared)) * _PAGE
    except (OSError, ValueError):
        return 0  # it is just being reaped
    finally:
        os.close(fd)
