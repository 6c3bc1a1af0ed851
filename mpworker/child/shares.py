"""A child's side of shared objects: it opens each once, and keeps it open for the next task.

What it opens it maps read-only, straight from the memory that the client has written, and so nothing of that may
become another's while anything here views it. A task opens what its own call speaks of: that is kept until the call is
answered, and before then the supervisor is told what was opened. From there on this child counts as one who has it,
until it is asked to let go of it (UNSHARE) and has: between two tasks, when what still views it has become a copy.
"""

from __future__ import annotations

import os
from _thread import RLock
from collections.abc import Callable, Iterable

from mpworker.ipc import codec, shares
from mpworker.ipc._native import Loan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mpworker.ipc.arena import Block


class Shares:
    """The shared objects of one child.

    Args:
        calls: The descriptor of the arena that they are in.
        pool: Whose objects these are.
        unpickle: Says what unpickles.
        push: Sends a record.

    Attributes:
        pool: As above.
    """

    def __init__(
        self, calls: int, pool: str, unpickle: Callable[[], Callable[..., Any]], push: Callable[..., None]
    ) -> None:
        self._calls = calls
        self.pool = pool
        self._unpickle = unpickle
        self._push = push
        self._offered: dict[int, Block] = {}  # by number: what the call that runs speaks of
        self._open: dict[int, tuple[Loan, Any]] = {}
        self._unsaid: list[int] = []  # opened, and the supervisor does not know
        self._lock = RLock()  # a task may have threads, which may outlive it
        self._pid = os.getpid()

    def begin(self, blocks: Iterable[Block]) -> None:
        """A call begins that speaks of these."""
        with self._lock:
            self._offered = {block[0]: block for block in blocks}

    def value(self, number: int) -> Any:
        """The object with this number.

        Raises:
            ShareError: No call that runs speaks of it, or it cannot be mapped.
        """
        if os.getpid() != self._pid:  # what was open at the fork is a copy; a thread that had the lock is not here
            known = self._open.get(number)
            if known is None:
                raise _error("a fork of a task has not opened this shared object: open it before the fork")
            return known[1]
        with self._lock:
            known = self._open.get(number)
            return self._opened(number) if known is None else known[1]

    def _opened(self, number: int) -> Any:
        block = self._offered.get(number)
        if block is None:
            raise _error("this shared object is of another task: hand its handle to each task that opens it")
        _, offset, size = block
        try:
            loan = Loan(self._calls, offset, size, [], 0, True)
        except OSError as error:
            raise _error(f"a shared object of {size} bytes cannot be mapped: {error}") from error
        value = shares.read(memoryview(loan), self._unpickle())
        self._unsaid.append(number)  # before it is kept: an interrupt may come in between
        self._open[number] = loan, value
        return value

    def call_is_over(self) -> None:
        """Nothing is opened any more, and the supervisor knows what was: before the call is answered for good."""
        if not self._offered:
            return
        with self._lock:
            self._offered = {}
            while self._unsaid:
                self._push(codec.SHARE, 0, self._unsaid.pop(), 0, 0, b"")

    def let_go(self, number: int) -> None:
        """The client has let go of it; nothing may view it any more."""
        with self._lock:
            loan, value = self._open.pop(number, (None, None))
            del value  # which, if no task has kept it, was all that viewed it
            if loan is not None and loan.views:
                try:
                    loan.detach()
                except OSError:
                    return  # no memory for a copy: the block stays this child's until that ends
        self._push(codec.UNSHARE, 0, number, 0, 0, b"")


def _error(message: str) -> Exception:
    from mpworker.errors import ShareError  # not before: `concurrent.futures` comes along

    return ShareError(message)
