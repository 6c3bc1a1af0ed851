"""What `concurrent.futures.wait` and `as_completed` see of a task's future: no lock, and yet one consistent look.

The library takes the `_condition` of each future, looks at `_state` (more than once), appends a waiter to `_waiters`,
and lets go. It counts on two things: that the state does not change meanwhile, and that a waiter is told once of every
future that it saw pending, and never of one that it saw ended. The library takes the conditions in a loop, so a
KeyboardInterrupt in the middle of it leaves those that it has taken locked for ever; with a lock that all futures of a
client share, the whole client would be.

So there is none. What the library takes as a lock is a note of what the future's state was, for this thread: while
the note stands the state looks as it says, whatever happens, and a waiter that is appended to a future that ended
since is told of it like any other. A note that an interrupt leaves behind holds nobody up. Notes are a stack: a signal
handler may wait on top of a frame that does.

A waiter has locks as well, which the thread that tells it takes. The one in its event can be left locked by an
interrupt, for `threading.Condition` takes it in Python code; so a waiter gets an event that has none. The other one is
held by `as_completed` for three lines, on top of which a signal handler may run and wait for that very thread; so it
becomes one that the teller can take first, or give up and come back later.
"""

from __future__ import annotations

import threading
from _thread import LockType
from collections import deque
from concurrent.futures._base import PENDING

from mpworker.ipc import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Literal

    from mpworker.future import TaskFuture


_PATIENCE: Final = 0.02  # seconds that the teller waits for a waiter's lock before it goes on to another


class Event:
    """A `threading.Event` for one thread that waits, whose `set` never blocks."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()  # open while the event is set
        self._lock.acquire()

    def set(self) -> None:
        """End the wait, or the next one."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it is set

    def clear(self) -> None:
        """Let the next wait sleep."""
        self._lock.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until it is set, at most `timeout` seconds; whether it is."""
        is_set = self._lock.acquire(timeout=-1 if timeout is None else max(0, timeout))
        if is_set:
            self.set()
        return is_set


class Look:
    """Stands in for a future's condition.

    Args:
        future: The future that is looked at.
    """

    __slots__ = ("_future",)

    def __init__(self, future: TaskFuture[Any]) -> None:
        self._future = future

    def acquire(self) -> Literal[True]:
        """From now on this thread sees the state as it is now."""
        future = self._future
        notes = future.__dict__.get("_notes")
        if notes is None:
            if future.ready:
                return True  # it will look the same without a note
            notes = future.__dict__.setdefault("_notes", {})
        notes.setdefault(threading.get_ident(), []).append(future.state)
        return True

    def release(self) -> None:
        """See what is so."""
        notes = self._future.__dict__.get("_notes", {})
        stack = notes.get(threading.get_ident())
        if stack:
            stack.pop()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


def state_seen(future: TaskFuture[Any]) -> str:
    """The future's state as this thread's library code is to see it."""
    notes = future.__dict__.get("_notes")
    stack = notes.get(threading.get_ident()) if notes else None
    return stack[-1] if stack else future.state


class Waiters:
    """Stands in for a future's list of waiters.

    Args:
        future: The future that they wait for.
    """

    __slots__ = ("_future",)

    def __init__(self, future: TaskFuture[Any]) -> None:
        self._future = future

    def append(self, waiter: Any) -> None:
        """Have the waiter told of the future's end, unless the library has seen it already."""
        if state_seen(self._future) is PENDING:
            # Nobody uses them yet: the library still holds every future of another kind that the waiter is for.
            if type(waiter.event) is threading.Event:
                waiter.event = Event()
            if type(getattr(waiter, "lock", None)) is LockType:
                waiter.lock = threading.RLock()
            self._future.add_audience("_waiting", waiter)

    def remove(self, waiter: Any) -> None:
        """Do not; nothing if it was told, or never appended."""
        waiting: deque[Any] = self._future.__dict__.get("_waiting", deque())
        try:
            waiting.remove(waiter)
        except ValueError:
            pass


def tell(waiter: Any, future: TaskFuture[Any]) -> bool:
    """Tell a waiter that a future has ended; False if somebody holds its lock just now. Never in the main thread."""
    lock = getattr(waiter, "lock", None)
    if lock is None:
        _tell(waiter, future)
        return True
    if not lock.acquire(timeout=_PATIENCE):
        return False
    _tell(waiter, future)
    lock.release()
    return True


def _tell(waiter: Any, future: TaskFuture[Any]) -> None:
    if future.status == codec.CANCELLED:
        waiter.add_cancelled(future)
    elif future.status == codec.OK:
        waiter.add_result(future)
    else:
        waiter.add_exception(future)
