"""A thread of a client's own, which is there from when it is first needed until the worker is over.

It is started without a lock, under the rules of `mpworker.reader`, and handles no signals.
"""

from __future__ import annotations

import _thread
import threading
import time

from mpworker.waiting import Follower

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_LOOK_SECONDS: Final = 0.5  # after so long, who joins asks whether there is any progress


class ClientThread:
    """The thread, running or not.

    Attributes:
        running: Is there a thread?
    """

    _name = ""  # of the thread

    def __init__(self) -> None:
        self._forget_thread()

    def _forget_thread(self) -> None:
        self.running = False
        self._thread: int | None = None
        self._rest = Follower()  # what it sleeps on while it has nothing to do
        self._joining: list[Follower] = []  # those that wait for its end
        self._held_up = False  # is there something that it could not do?

    def start(self) -> None:
        """See to it that there is one.

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

    def _begin(self) -> None:
        # In a thread that handles no signals: a handler in the middle of Thread.start could neither start it nor wait.
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:  # no room for a second one, or the interpreter is at its end
            self._run()

    def _run(self) -> None:
        self._thread = threading.get_ident()
        self._work()

    def _work(self) -> None:
        """All that it does. At its end it says that it does not run, and wakes those that join."""
        raise NotImplementedError

    def wake(self) -> None:
        """The worker is over."""
        self._rest.wake()

    def join(self, timeout: float | None) -> None:
        """Wait until it has done all that there is to do, for `timeout` seconds at most.

        Not in what it calls. Nor for long if something holds it up: that may be the frame below this signal handler.
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
