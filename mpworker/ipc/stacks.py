"""The stack of a task that polls no signal: written by the child in a signal handler of C, read by the supervisor.

Python's own handlers run between two byte codes: a task that is in C code (`sum(itertools.repeat(1))`) takes no
interrupt, and nobody could say where it was. `faulthandler` writes the Python stack of the main thread from within the
signal handler, to a descriptor: the end of the child's channel, of which the supervisor has a mapping. So

- the supervisor neither waits nor opens anything; it looks at STACK_BYTES of memory, whatever the child has put there;
- a stack ends where the segment does: that is sealed, so a write beyond its end fails;
- the descriptor is the child's alone, and with it the offset at which the next stack is written: each takes the place
  of the last one (mainthread.h).

What one finds there is text of `faulthandler`, the latest call first, and the frames of `mpworker.child` last.
"""

from __future__ import annotations

import faulthandler

from mpworker.ipc._native import to_main_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

STACK_BYTES: Final = 8192


class StackFile:
    """The child's end.

    Args:
        fd: The segment; owned by this object from now on, and open until the process ends.
        start: Where in it the stack goes.
    """

    def __init__(self, fd: int, start: int) -> None:
        self._fd = fd
        self._start = start

    def dump_at(self, signal: int) -> None:
        """Write the stack of the main thread whenever this signal comes, to whichever thread."""
        faulthandler.register(signal, self._fd, all_threads=False, chain=False)
        to_main_thread(signal, self._fd, self._start)


class StackView:
    """The supervisor's end.

    Args:
        memory: The part of a mapping that the child writes to.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def clear(self) -> None:
        """Forget what is there: a stack is about to be asked for."""
        self._memory[:] = bytes(len(self._memory))

    def read(self) -> bytes:
        """What the child has written since, or what of it had room; never more than STACK_BYTES."""
        return bytes(self._memory).strip(b"\0")
