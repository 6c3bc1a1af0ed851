"""The background thread of a client: it reads for those that cannot, and tells them.

`concurrent.futures.wait`, `as_completed`, callbacks and event loops are the *audience* of a future: they wait in places
that know nothing of the ring. While a future with an audience is pending, it is *watched*, and this thread takes part
in reading; when it has ended it is *due*, and this thread tells its audience, as the own thread of the standard
library does. A callback may wait, submit and take locks, so no other thread calls it, least of all one that leads or
submits.

The thread is started when it is first needed and lives until the worker is over. What may come in between is said in
`mpworker.reader`; this thread itself handles no signals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mpworker.clientthread import ClientThread
from mpworker.waiting import taken, wake_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.reader import Reader

_FOREVER: Final = -1.0
_RETRY_SECONDS: Final = 0.02  # until it tries again to tell somebody who cannot be told now


class Background(ClientThread):
    """The background thread, running or not.

    Args:
        reader: Of which client.

    Attributes:
        watched: How many pending futures have an audience.
        at_end: Whom to wake when the worker is over.
    """

    _name = "mpworker-reader"

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self._reader = reader
        self.watched = 0
        self._due: deque[Any] = deque()
        self.at_end: deque[Any] = deque()
        self._resting = False

    def announce(self, future: Any) -> None:
        """A future has ended: tell its audience."""
        self._due.append(future)

    def need(self) -> None:
        """Something is watched, or due: see to it that the thread knows.

        Raises:
            RuntimeError: No thread can be started.
        """
        self.start()
        if self._resting:
            self._rest.wake()
        if self._due or self._reader.leads_below():
            self._reader.wake_everybody()

    def look(self) -> None:
        """Something may be due."""
        if self._due:
            self._rest.wake()

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
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
