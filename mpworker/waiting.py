"""Things a client's thread can wait for, and how it sleeps while another thread reads the events."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, TypeVar

    T = TypeVar("T")

    class Waitable(Protocol):
        """What a thread can wait for."""

        @property
        def ready(self) -> bool:
            """Is it there?"""

        def add_waiter(self, waiter: Any) -> None:
            """Call the waiter when it is."""

        def remove_waiter(self, waiter: Any) -> None:
            """Do not."""


class Follower:
    """A thread that waits while another one reads."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float) -> bool:
        """Sleep until woken, at most `timeout` seconds (-1 for no limit); whether it was woken."""
        return self._lock.acquire(timeout=timeout)

    def wake(self) -> None:
        """End the sleep; nothing if it has ended or not begun."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # awake already


def wake_all(followers: Iterable[Follower]) -> None:
    """Wake each, also if somebody changes the collection meanwhile."""
    for follower in tuple(followers):
        follower.wake()


def taken(line: deque[T]) -> Iterator[T]:
    """Take out what is in line, one by one; other threads may add to it and take from it meanwhile."""
    while line:
        try:
            first = line.popleft()
        except IndexError:
            return
        yield first


class WaitedFor:
    """Something with a list of those that wait for it."""

    __slots__ = ("_waiters",)

    _waiters: list[Any]

    def add_waiter(self, waiter: Any) -> None:
        """Wake the waiter when something has come of it."""
        self._waiters.append(waiter)

    def remove_waiter(self, waiter: Any) -> None:
        """Do not wake it any more."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)


class Condition(WaitedFor):
    """A thing to wait for that any event may bring about."""

    def __init__(self, any_event: list[Follower], test: Callable[[], bool]) -> None:
        self._waiters = any_event
        self._test = test

    @property
    def ready(self) -> bool:
        """Is it there?"""
        return self._test()


class Reply(WaitedFor):
    """The answer to one request."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = None
        self._waiters = []

    @property
    def ready(self) -> bool:
        """Is it there?"""
        return self.answer is not None

    def settle(self, answer: dict[str, Any]) -> None:
        """The answer is there."""
        self.answer = answer
        wake_all(self._waiters)
