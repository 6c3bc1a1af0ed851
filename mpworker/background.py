"""The background thread of a client: it reads for those that cannot, and tells them.

`concurrent.futures.wait`, `as_completed`, callbacks and event loops are the *audience* of a future: they wait in places
that know nothing of the ring. While a future with an audience is pending, it is *watched*, and this thread takes part
in reading; when it has ended it is *due*, and this thread tells its audience, as the own thread of the standard
library does. A callback may wait, submit and take locks, so no other thread calls it, least of all one that leads or
submits.

The thread is started when it is first needed and lives until the worker is over. What may come in between is said in
`mpworker.reader`; this thread itself handles no signals.
"""

import _thread
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mpworker.waiting import Follower, taken, wake_all

if TYPE_CHECKING:
    from mpworker.reader import Reader

_FOREVER: Final = -1.0
_LOOK_SECONDS: Final = 0.5  # after so long, who joins asks whether there is any progress
_RETRY_SECONDS: Final = 0.02  # until it tries again to tell somebody who cannot be told now


class Background:
    """The background thread, running or not.

    Args:
        reader: Of which client.

    Attributes:
        watched: How many pending futures have an audience.
        running: Is there a thread?
    """

    def __init__(self, reader: "Reader") -> None:
        self._reader = reader
        self.watched = 0
        self.running = False
        self._due: deque[Any] = deque()
        self.at_end: deque[Any] = deque()  # whom to wake when the worker is over
        self._thread: int | None = None
        self._rest = Follower()  # what it sleeps on while nothing is watched
        self._resting = False
        self._held_up = False  # is there somebody whom it could not tell?
        self._joining: list[Follower] = []  # those that wait for its end

    def announce(self, future: Any) -> None:
        """A future has ended: tell its audience."""
        self._due.append(future)

    def need(self) -> None:
        """Something is watched, or due: see to it that the thread knows.

        Raises:
            RuntimeError: No thread can be started.
        """
        if not self.running:
            self.running = True
            try:
                _thread.start_new_thread(self._begin, ())  # no call since the look
            except RuntimeError:
                self.running = False
                raise
        if self._resting:
            self._rest.wake()
        if self._due or self._reader.leads_below():
            self._reader.wake_everybody()

    def look(self) -> None:
        """Something may be due."""
        if self._due:
            self._rest.wake()

    def wake(self) -> None:
        """The worker is over."""
        self._rest.wake()

    def join(self, timeout: float | None) -> None:
        """Wait until every audience has been told, for `timeout` seconds at most.

        Not in a callback. Nor for long for a waiter that cannot be told: the frame that holds its lock may be the one
        below this handler.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        follower = Follower()
        self._joining.append(follower)
        try:
            self._join(follower, deadline)
        finally:
            self._joining.remove(follower)

    def _join(self, follower: Follower, deadline: float | None) -> None:
        while self.running and self._thread != threading.get_ident():
            left = _LOOK_SECONDS if deadline is None else min(_LOOK_SECONDS, deadline - time.monotonic())
            if left <= 0 or (not follower.wait(left) and self._held_up):
                return

    # ------------------------------------------------------------ the thread

    def _begin(self) -> None:
        # In a thread that handles no signals: a handler in the middle of Thread.start could neither start it nor wait.
        try:
            threading.Thread(target=self._run, name="mpworker-reader", daemon=True).start()
        except RuntimeError:  # no room for a second one, or the interpreter is at its end
            self._run()

    def _run(self) -> None:
        self._thread = threading.get_ident()
        reader = self._reader
        something = reader.when(lambda: bool(self._due) or not self.watched)
        while True:
            held_up = self._tell_audiences()
            self._held_up = bool(held_up)
            if self.watched:
                reader.wait_for(something, _RETRY_SECONDS if held_up else None)
            else:
                self._sleep_until_needed(_RETRY_SECONDS if held_up else _FOREVER)
            self._due.extend(held_up)
            if reader.is_over():
                for waiter in taken(self.at_end):
                    waiter.wake()
            if reader.is_over() and not self._due:
                self.running = False  # no call since the look: what is due from now on starts another one
                wake_all(self._joining)
                return

    def _sleep_until_needed(self, seconds: float) -> None:
        self._resting = True  # first: who needs this thread says so first, too, and looks at this afterwards
        if not self.watched and not self._due and not self._reader.is_over():
            self._rest.wait(seconds)
        self._resting = False

    def _tell_audiences(self) -> list[Any]:
        """Tell what is due; those that could not be told yet."""
        held_up = []
        for future in taken(self._due):
            if not future.tell_waiters():
                held_up.append(future)
            for call in future.callbacks():
                _call_back(future, call)
        return held_up


def _call_back(future: Any, call: Callable[[Any], object]) -> None:
    try:
        call(future)
    except BaseException:  # noqa: BLE001  # as the standard library: logged, never raised
        # A SystemExit too: raised, it would end the reading thread, and whoever waits would wait for ever.
        from concurrent.futures._base import LOGGER

        try:
            LOGGER.exception("exception calling callback for %r", future)
        except BaseException:  # noqa: BLE001, S110  # the program's own log handler; there is nobody left to tell
            pass
