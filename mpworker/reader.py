"""How a client reads what its supervisor sends.

Who reads the event ring
------------------------
The thread that waits reads it: no reader thread to wake, no GIL to hand over. One thread at a time is the *leader*:
it pops events, settles futures, and sleeps on the bell. Others that wait meanwhile are *followers*: each sleeps on a
lock of its own, which the leader releases when the follower's future has ended, or when the leader leaves and the
follower must lead. `concurrent.futures.wait`, `as_completed`, callbacks and event loops wait in places that know
nothing of this: while such a future is pending, a background thread leads.

What is popped is first in `_inbox`, by one native call; then each event is settled, and only then removed. A
KeyboardInterrupt anywhere in between loses nothing: the next reader goes on with the rest. No user code runs under
the condition: results are unpickled by whoever asks for them, callbacks run after the release.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from mpworker.future import BROKEN, LOST
from mpworker.ipc import codec
from mpworker.ipc.codec import Record
from mpworker.ipc.ring import Assembler
from mpworker.launch import Supervisor
from mpworker.waiting import Condition, Follower, Reply, Waitable

_BATCH: Final = 512
_FOREVER: Final = -1.0


class Reader:
    """The reading half of a client.

    Args:
        supervisor: The process whose events are read.
        max_payload_bytes: The largest payload that is put together from fragments.
    """

    def __init__(self, supervisor: Supervisor, max_payload_bytes: int) -> None:
        self.supervisor = supervisor
        self.condition = threading.Condition(threading.RLock())
        self.pending: dict[int, Any] = {}
        self._any_event: list[Follower] = []
        self._lead = threading.RLock()  # re-entrant: a callback, which the leader runs, may wait for another future
        self._settling = False
        self._followers: dict[Follower, None] = {}
        self._inbox: list[Record] = []
        self._assembler = Assembler(max_payload_bytes)
        self._replies: dict[int, Reply] = {}
        self._watched = 0
        self._background: threading.Thread | None = None
        self._stop_asked = False
        self._stop_now = False
        self._closed = ""  # why nothing more is accepted: "stopped", "lost", "broken" or "forked"; "" while open
        self._broken: dict[str, Any] | None = None
        self._exited = False
        self._forked = False
        channel = supervisor.channel
        self._push: Callable[..., bool] = channel.outbound.push
        self._pop = channel.inbound.pop
        self._ring: Callable[[], None] = channel.peer_bell.ring
        self._ring_room: Callable[[], None] = channel.peer_bell.ring_room

    def _refuse(self) -> None:
        """Raise why nothing more is accepted."""
        raise NotImplementedError

    def when(self, test: Callable[[], bool]) -> Condition:
        """Something to wait for that any event may bring about."""
        return Condition(self._any_event, test)

    # ------------------------------------------------------------ wait

    def wait_for(self, target: Waitable, timeout: float | None, need: int | None = None) -> bool:
        """Wait until the target is ready, reading events if nobody else does.

        Args:
            target: What to wait for.
            timeout: Seconds, None for no limit.
            need: Also wake for this much room (bytes of payload) in the ring to the supervisor.

        Returns:
            Whether it is ready.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not target.ready:
            if self._forked:
                self._refuse()
            left = _FOREVER if deadline is None else deadline - time.monotonic()
            if self._lead.acquire(blocking=False):
                try:
                    self._read_until(target, deadline, need)
                    return target.ready
                finally:
                    self._lead.release()
                    self._hand_over()
            if deadline is not None and left <= 0:
                return False
            self._follow(target, left)
        return True

    def _read_until(self, target: Waitable, deadline: float | None, need: int | None) -> None:
        channel = self.supervisor.channel
        outbound = None if need is None else channel.outbound
        while True:
            self._drain()
            if target.ready or self._exited:
                return
            left = _FOREVER
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
            found = channel.bell.wait(
                channel.inbound, outbound, need or 0, left, self.supervisor.pidfd, self.supervisor.spin_ns
            )
            if found & 2:
                self._supervisor_died()

    def _follow(self, target: Waitable, left: float) -> None:
        follower = Follower()
        with self.condition:
            if target.ready:
                return
            target.add_waiter(follower)
            self._followers[follower] = None
        try:
            # The leader may have left before it could see this follower: then there is nobody to wait for.
            if self._lead.acquire(blocking=False):
                self._lead.release()
            else:
                follower.wait(left)
        finally:
            with self.condition:
                self._followers.pop(follower, None)
                target.remove_waiter(follower)
            self._hand_over()  # it may have been woken to lead, and not be the one that does

    def _hand_over(self) -> None:
        """The leader leaves: one follower must lead."""
        if self._followers:
            with self.condition:
                follower = next(iter(self._followers), None)
            if follower is not None:
                follower.wake()

    def poll(self) -> None:
        """Read what has come, without waiting."""
        if not self._forked and self._lead.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lead.release()
                self._hand_over()

    # ------------------------------------------------------------ the background reader

    def watch(self) -> None:
        """One more pending future needs the background reader. Under the condition."""
        self._watched += 1
        if self._background is None:
            self._background = threading.Thread(target=self._read_in_background, name="mpworker-reader", daemon=True)
            self._background.start()
        elif self._watched == 1:
            self.condition.notify_all()

    def unwatch(self) -> None:
        """One fewer. Under the condition."""
        self._watched -= 1

    def _read_in_background(self) -> None:
        unwatched = self.when(lambda: not self._watched)
        while True:
            with self.condition:
                while not self._watched:
                    if self._exited:
                        return
                    self.condition.wait()
            if self._exited:
                return
            self.wait_for(unwatched, None)

    # ------------------------------------------------------------ read

    def _drain(self) -> None:
        """Pop and settle everything that has come. Only the leader calls it."""
        if self._exited or self._settling:
            return  # settling: a signal handler or a finalizer came in between; the frame below goes on
        inbox = self._inbox
        while self._pop(inbox, _BATCH) or inbox:
            self._ring_room()
            self._settle_inbox()

    def _settle_inbox(self) -> None:
        inbox = self._inbox
        callbacks: list[tuple[Any, Callable[[Any], object]]] = []
        settled = 0
        pending = self.pending
        with self.condition:
            self._settling = True
            try:
                for kind, flags, a, b, c, data in inbox:
                    if flags & codec.FRAGMENTED:
                        data = self._assembler.finish(data)  # noqa: PLW2901
                        flags &= ~codec.FRAGMENTED  # noqa: PLW2901
                        inbox[settled] = (kind, flags, a, b, c, data)  # once, even if this is interrupted
                    if kind == codec.RESULT:
                        future = pending.get(a)
                        if future is not None:
                            future.settle(flags & codec.LOW, data)
                            if future._slow:
                                callbacks += [(future, call) for call in future.callbacks()]
                            del pending[a]
                    else:
                        self._settle_other(kind, flags, a, b, c, data)
                    settled += 1
            finally:
                del inbox[:settled]
                self._settling = False
                for follower in self._any_event:
                    follower.wake()
        for future, call in callbacks:
            _call_back(future, call)

    def _settle_other(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        if kind == codec.RESULTS:
            chunk = self.pending.get(a)
            if chunk is not None and chunk.settle_items(flags & codec.LOW, b & 0xFFFFFFFF, b >> 32, c, data):
                del self.pending[a]
        elif kind == codec.SPLIT:
            chunk = self.pending.get(a)
            if chunk is not None and chunk.split(b & 0xFFFFFFFF, b >> 32):
                del self.pending[a]
        elif kind == codec.FRAGMENT:
            self._assembler.add(flags, data)
        elif kind == codec.REPLY:
            reply = self._replies.pop(a, None)
            if reply is not None:
                reply.settle(json.loads(data))
        elif kind == codec.BROKEN:
            self._broken = json.loads(data)
            self._closed = "broken"

    def _fail_all(self, status: int, data: bytes) -> None:
        """Nothing more will come: settle what is pending. Only the leader calls it."""
        callbacks: list[tuple[Any, Callable[[Any], object]]] = []
        with self.condition:
            for key, future in list(self.pending.items()):
                future.settle(status, data)
                callbacks += [(future, call) for call in future.callbacks()]
                del self.pending[key]
            for reply in self._replies.values():
                reply.settle({"lost": True})
            self._replies.clear()
            for follower in (*self._any_event, *self._followers):
                follower.wake()
            self.condition.notify_all()
        for future, call in callbacks:
            _call_back(future, call)

    def _supervisor_died(self) -> None:
        """The pidfd is readable: take in what it had sent, then settle the rest. Only the leader calls it."""
        self._drain()
        self._exited = True
        if self._broken is not None:
            self._fail_all(BROKEN, json.dumps(self._broken).encode())
        elif self._stop_now or (self._stop_asked and self.supervisor.ended_well()):
            self._closed = "stopped"
            self._fail_all(codec.CANCELLED, b"")
        else:
            self._closed = "lost"
            self._fail_all(LOST, b"")
        self._push = _push_nowhere  # the eventfds' numbers may be another file's from now on
        self._ring = self._ring_room = _ring_nowhere
        self.supervisor.close()


def _push_nowhere(*_: object) -> bool:
    return True


def _ring_nowhere() -> None:
    pass


def _call_back(future: Any, call: Callable[[Any], object]) -> None:
    try:
        call(future)
    except BaseException as error:  # as the standard library: logged, never raised
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # Ctrl-C, most likely
        # A SystemExit too: raised, it would end the reading thread, and whoever waits would wait for ever.
        from concurrent.futures._base import LOGGER

        LOGGER.exception("exception calling callback for %r", future)
