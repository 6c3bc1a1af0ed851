"""How a client reads what its supervisor sends.

Who reads the event ring
------------------------
The thread that waits reads it: no reader thread to wake, no GIL to hand over. One thread at a time is the *leader*:
it pops events, settles futures, and sleeps on the bell. Others that wait meanwhile are *followers*: each sleeps on a
lock of its own, which the leader releases when the follower's future has ended, or when the leader leaves and the
follower must lead. `concurrent.futures.wait`, `as_completed`, callbacks and event loops wait in places that know
nothing of this: while such a future is pending, a background thread leads. It also tells those waiters and calls the
callbacks, as the standard library's own thread does: a callback may wait, submit and take locks, so no thread may call
it that leads, or that is in the middle of a submit.

What may come in between
------------------------
A KeyboardInterrupt can be raised in the main thread after any call that it makes, and at the start of a function or
a turn of a loop; so can the GIL change hands. Between other instructions neither happens, and this file relies on it:

- Who leads is one attribute, not a lock: it is taken with a look and a store, with no call in between, inside the
  `try` whose `finally` gives it back. A lock that was acquired a moment before its `try` began could stay locked.
- What is popped is first in `_inbox`, by one native call; each event is settled, and only then taken out. An event
  whose settling was interrupted is settled again by the next reader, so settling twice is as good as once.
- `mutex` is entered by `with`, which is safe for a lock in C; the `__enter__` of `threading.Condition` is Python, and
  could be interrupted with the lock held.
- No loop stands inside a `try` or a `with`: the signal that a turn of a loop meets belongs to the instruction before
  the loop in CPython 3.11 and 3.12, to the jump itself in 3.13, and the compiler counts either of them as outside in
  some cases. Then `finally` is passed over, and a lock stays locked. So a loop is a function of its own.
- A hand-over may be cut short, so a follower looks up once in FOLLOW_SECONDS whether anybody leads.

A signal handler (or, on 3.11, a finalizer) may itself wait for a result or stop the worker, on top of any of these
frames. It goes on where the frame below was: it settles the event that is being settled once more, takes it out, and
reads on; the frame below finds another event at the head, and leaves it there. While it sleeps it lets go of the mutex
that the frame below holds, for what it waits for may be another thread's to do; so whatever that frame has looked at
under the mutex it looks at again after each call.

No user code runs under the mutex but such a handler: results are unpickled by whoever asks for them.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from mpworker.future import BROKEN, LOST
from mpworker.ipc import codec
from mpworker.ipc._native import RECORD_HEADER_BYTES
from mpworker.ipc.codec import Record
from mpworker.launch import Supervisor
from mpworker.waiting import Condition, Follower, Reply, Waitable, wake_all

_BATCH: Final = 512
_FOREVER: Final = -1.0
FOLLOW_SECONDS: Final = 1.0


class Reader:
    """The reading half of a client.

    Args:
        supervisor: The process whose events are read.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self._make_locks()
        self.pending: dict[int, Any] = {}
        self._inbox: list[Record] = []
        self._settled = 0  # how often something has been settled
        self._parts: list[bytes] = []  # of a payload that comes in fragments
        self._replies: dict[int, Reply] = {}
        self.watched = 0  # pending futures that need the background thread; changed under the mutex
        self._due: deque[Any] = deque()  # ended futures that are to be announced
        self._background: threading.Thread | None = None
        self._stop_asked = False
        self._stop_now = False
        self._closed = ""  # why nothing more is accepted: "stopped", "lost", "broken" or "forked"; "" while open
        self._broken: dict[str, Any] | None = None
        self._exited = False  # the supervisor is dead
        self._ended_well = False  # with its work done
        self._over = False  # what was pending has been settled, and nothing of it is left
        self._forked = False
        self._cut_short = False  # the stop cancelled something
        channel = supervisor.channel
        self._push: Callable[..., bool] = channel.outbound.push
        self._pop: Callable[[list[Record], int], int] = channel.inbound.pop
        self._fill: Callable[[], int] = channel.inbound.fill
        self._fits: Callable[[int], bool] = channel.outbound.fits
        self._ring: Callable[[], None] = channel.peer_bell.ring
        self._ring_room: Callable[[], None] = channel.peer_bell.ring_room

    def _make_locks(self) -> None:
        self.mutex = threading.RLock()
        self.condition = threading.Condition(self.mutex)
        self._leader: int | None = None  # a thread
        self._followers: dict[Follower, None] = {}
        self._any_event: list[Follower] = []
        self._room: dict[Follower, int] = {}  # those that wait for room in the ring to the supervisor: how much

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
        thread = threading.get_ident()
        nested = self._leader == thread  # a signal handler or a finalizer: the frame below leads
        try:
            return self._lead_or_follow(target, deadline, need, thread, nested)
        finally:
            if not nested and self._leader == thread:
                self._leader = None
            self._hand_over()

    def _lead_or_follow(
        self, target: Waitable, deadline: float | None, need: int | None, thread: int, nested: bool
    ) -> bool:
        follower: Follower | None = None
        while not target.ready:
            if self._forked:
                self._refuse()
            left = _FOREVER if deadline is None else deadline - time.monotonic()
            if self._leader is None or nested:
                self._leader = thread
                self._read_until(target, deadline, need)
                return target.ready
            if deadline is not None and left <= 0:
                return False
            if follower is None:
                follower = Follower()
            self._follow(follower, target, left, need)
        return True

    def _read_until(self, target: Waitable, deadline: float | None, need: int | None) -> None:
        channel = self.supervisor.channel
        while True:
            found_some = self._read_some()
            settled = self._settled
            if self._exited and not self._over:
                self._supervisor_died()  # whoever began was interrupted
            if target.ready or self._exited:
                return
            left = _FOREVER
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    self._read_what_is_there()
                    return
            if found_some:
                continue
            room = need
            if self._room:
                room = max((need or 0, *list(self._room.values())))
            held = self._let_go()
            try:
                if self._settled != settled:
                    continue  # a signal handler has read what this thread would now sleep for, or closed the channel
                outbound = None if room is None else channel.outbound
                found = channel.bell.wait(
                    channel.inbound, outbound, room or 0, left, self.supervisor.pidfd, self.supervisor.spin_ns
                )
            finally:
                self._take_back(held)
            if found & 2:
                self._supervisor_died()
            elif self._room:
                self._wake_for_room()

    def _follow(self, follower: Follower, target: Waitable, left: float, need: int | None) -> None:
        try:
            with self.mutex:
                if target.ready:
                    return
                target.add_waiter(follower)
                self._followers[follower] = None
                if need is not None and not self._exited:
                    self._room[follower] = need
                    self.supervisor.channel.bell.wake()  # the leader does not watch for room yet
            # The leader may have left before it could see this follower: then there is nobody to wait for.
            if self._leader is not None:
                held = self._let_go()
                try:
                    follower.wait(min(left, FOLLOW_SECONDS) if left >= 0 else FOLLOW_SECONDS)
                finally:
                    self._take_back(held)
        finally:
            with self.mutex:
                self._followers.pop(follower, None)
                self._room.pop(follower, None)
                target.remove_waiter(follower)

    def _let_go(self) -> Any:
        """Release the mutex, however often this thread holds it: a handler sleeps on top of a frame that does."""
        lock: Any = self.mutex  # these three are what `threading.Condition` sleeps by
        return lock._release_save() if lock._is_owned() else None

    def _take_back(self, held: Any) -> None:
        """Hold the mutex again as before `_let_go`."""
        if held is not None:
            lock: Any = self.mutex
            lock._acquire_restore(held)

    def _hand_over(self) -> None:
        """If nobody leads, one follower must."""
        if self._followers and self._leader is None:
            with self.mutex:
                first = tuple(self._followers)[:1]
                if first:
                    self._followers.pop(first[0], None)  # the next one to leave shall wake another
                    first[0].wake()

    def _wake_for_room(self) -> None:
        with self.mutex:
            wake_all(self._room)
            self._room.clear()  # until they ask again

    def poll(self) -> None:
        """Read what has come, without waiting."""
        thread = threading.get_ident()
        if self._leader is None and not self._forked:
            self._leader = thread
            try:
                self._read_what_is_there()
            finally:
                self._leader = None
                self._hand_over()

    # ------------------------------------------------------------ the background reader

    def watch(self) -> None:
        """One more pending future is about to need the background thread. Under the mutex; the caller counts it."""
        if self._forked:
            self._refuse()
        thread = self._background
        if thread is None:
            thread = threading.Thread(target=self._read_in_background, name="mpworker-reader", daemon=True)
            self._background = thread
        if thread.ident is None:
            thread.start()
        self.condition.notify_all()

    def _read_in_background(self) -> None:
        something = self.when(lambda: bool(self._due) or not self.watched)
        while True:
            with self.mutex:
                while not self.watched and not self._due:
                    if self._over:
                        return
                    self.condition.wait()
            while self._due:
                with self.mutex:
                    future = self._due.popleft()  # this is the only thread that takes any
                    callbacks = future.announce() if future.ready else ()  # not if its settling was interrupted
                for call in callbacks:
                    _call_back(future, call)
                del future, callbacks
            if self._over and not self._due:
                return
            self.wait_for(something, None)

    # ------------------------------------------------------------ read

    def _read_some(self) -> bool:
        """Settle what was popped and is not settled yet, or else pop a batch; whether there was any.

        Only the leader calls it.
        """
        inbox = self._inbox
        if self._exited or not (inbox or self._pop(inbox, _BATCH)):
            return False
        self._ring_room()  # also for a batch whose reader was interrupted before it came to this
        self._settle_inbox()
        return True

    def _read_what_is_there(self) -> None:
        """Settle all that has come by now; what comes while it is settled may be left. Only the leader calls it."""
        batches = 2 + self._fill() // (_BATCH * RECORD_HEADER_BYTES)
        while batches and self._read_some():
            batches -= 1

    def _settle_inbox(self) -> None:
        self._settled += 1
        with self.mutex:
            try:
                self._settle_each()
            finally:
                wake_all(self._any_event)

    def _settle_each(self) -> None:
        inbox = self._inbox
        pending = self.pending
        while True:
            record = inbox[0] if inbox else None  # one look: a signal handler may empty it at a turn of the loop
            if record is None:
                return
            kind, flags, a, b, c, data = record
            if flags & codec.FRAGMENTED:
                whole = (kind, flags & ~codec.FRAGMENTED, a, b, c, b"".join((*self._parts, data)))
                none: list[bytes] = []
                if inbox and inbox[0] is record:
                    inbox[0] = whole
                    self._parts = none
                continue
            if kind == codec.RESULT:
                future = pending.get(a)
                if future is not None:
                    if future._slow:
                        self._announce_later(future)  # first: settled, it may be the last to need the thread
                    future.settle(flags & codec.LOW, data)
                    pending.pop(a, None)  # a map that is abandoned takes its own out, in any thread
            elif kind == codec.FRAGMENT:
                parts, part = [] if flags & codec.FIRST else self._parts, (data,)
                if inbox and inbox[0] is record:
                    parts += part
                    self._parts = parts
                    del inbox[0]
                continue
            else:
                self._settle_other(kind, flags, a, b, c, data)
            if inbox and inbox[0] is record:  # no call between look and act: see the module's docstring
                del inbox[0]

    def _announce_later(self, future: Any) -> None:
        """Have the background thread tell the library's waiters and call the callbacks. Under the mutex."""
        if future.has_audience():
            self._due.append(future)
            self.condition.notify_all()

    def _settle_other(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        if kind == codec.RESULTS:
            chunk = self.pending.get(a)
            if chunk is not None and chunk.settle_items(flags & codec.LOW, b & 0xFFFFFFFF, b >> 32, c, data):
                self.pending.pop(a, None)
        elif kind == codec.SPLIT:
            chunk = self.pending.get(a)
            if chunk is not None and chunk.split(b & 0xFFFFFFFF, b >> 32):
                self.pending.pop(a, None)
        elif kind == codec.REPLY:
            reply = self._replies.get(a)
            if reply is not None:
                reply.settle(json.loads(data))
                self._replies.pop(a, None)
        elif kind == codec.BROKEN:
            self._broken = json.loads(data)
            self._closed = "broken"

    def _fail_all(self, status: int, data: bytes) -> None:
        """Nothing more will come: settle what is pending. Under the mutex."""
        for key, future in list(self.pending.items()):
            if future._slow:
                self._announce_later(future)
            future.settle(status, data)
            self.pending.pop(key, None)
        for reply in list(self._replies.values()):
            reply.settle({"lost": True})
        self._replies.clear()
        wake_all((*self._any_event, *self._followers))
        self.condition.notify_all()

    def _supervisor_died(self) -> None:
        """The pidfd is readable: take in what it had sent, then settle the rest. Only the leader calls it.

        It may be interrupted, and called again.
        """
        while self._read_some():
            pass
        self._settled += 1
        self._exited = True
        status, report = codec.CANCELLED, b""
        if self._broken is not None:
            status, report = BROKEN, json.dumps(self._broken).encode()
        elif self._closed == "lost" or not (
            self._stop_now or (self._stop_asked and (self._ended_well or self.supervisor.ended_well()))
        ):
            self._closed = "lost"
            status = LOST
        else:
            self._ended_well = True
            self._closed = "stopped"
            self._cut_short = self._cut_short or bool(self.pending)
        with self.mutex:
            self._fail_all(status, report)
        # The bells' numbers may be another file's from now on, and a future that is kept shall not keep the memory.
        self._push = self._fits = _always
        self._pop = self._fill = _nothing
        self._ring = self._ring_room = _ring_nowhere
        self.supervisor.close()
        with self.mutex:
            self._over = True
            self.condition.notify_all()


def _always(*_: object) -> bool:
    return True


def _nothing(*_: object) -> int:
    return 0


def _ring_nowhere() -> None:
    pass


def _call_back(future: Any, call: Callable[[Any], object]) -> None:
    try:
        call(future)
    except BaseException:  # noqa: BLE001  # as the standard library: logged, never raised
        # A SystemExit too: raised, it would end the reading thread, and whoever waits would wait for ever.
        from concurrent.futures._base import LOGGER

        LOGGER.exception("exception calling callback for %r", future)
