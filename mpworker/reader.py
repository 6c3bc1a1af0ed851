"""How a client reads what its supervisor sends.

Who reads the event ring
------------------------
The thread that waits reads it: no reader thread to wake, no GIL to hand over. One thread at a time is the *leader*:
it pops events, settles futures, and sleeps on the bell. Others that wait meanwhile are *followers*: each sleeps on a
lock of its own, which the leader releases when the follower's future has ended, or when the leader leaves and the
follower must lead. Those that wait in places which know nothing of this have a thread in `mpworker.background`; where
nobody may wait, an event loop reads (`mpworker.loopclient`).

What may come in between
------------------------
A KeyboardInterrupt can be raised in the main thread after any call that it makes, and at the start of a function or
a turn of a loop; so can a signal handler (or, on 3.11, a finalizer) run there that itself waits for results, and so can
the GIL change hands. Between other instructions none of it happens. A lock would be left locked by the first and kept
for as long as the second takes. So nothing here takes one:

- What is popped is first in `_inbox`, by one native call; each event is settled, and only then taken out. Settling
  twice is as good as once, and two threads may do it at the same time: whoever finds an event at the head settles it,
  and takes it out if it is still there.
- Who settles stores the outcome first and looks for those who wait afterwards; who comes to wait does it the other way
  round. One of the two sees the other.
- Leading is only the right to pop, and to sleep on the bell. It is one attribute, taken with a look and a store, and
  looked at again right before each pop and each sleep, all with no call in between. So it can be taken away at any
  time from a leader that does not sleep on the bell: it will find out, and settle no more than is in the inbox.
- It is taken away when a handler on top of the leader needs the background thread, and by a follower when the leader
  has done nothing for FOLLOW_SECONDS: then it is in a handler that does something else.
- No loop stands inside a `try` or a `with`: the signal that a turn of a loop meets belongs to the instruction before
  the loop in CPython 3.11 and 3.12, to the jump itself in 3.13, and the compiler counts either of them as outside in
  some cases. Then `finally` is passed over. So a loop is a function of its own.
- A hand-over may be cut short, so a follower looks up once in FOLLOW_SECONDS whether anybody leads.

No user code runs here but such handlers: results are unpickled by whoever asks for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mpworker.arenas import Arenas
from mpworker.background import Background
from mpworker.ipc import codec, json
from mpworker.ipc._native import RECORD_HEADER_BYTES, Bell
from mpworker.ipc.arena import Parcel
from mpworker.ipc.codec import Record
from mpworker.launch import Supervisor
from mpworker.waiting import Condition, Follower, Reply, wake_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.ending import Ending
    from mpworker.ipc._native import Submit
    from mpworker.observer import Observer
    from mpworker.subscribers import Fanout
    from mpworker.waiting import Waitable

_BATCH: Final = 512
_FOREVER: Final = -1.0
_COMES_IN_PIECES: Final = codec.FRAGMENTED | codec.ARENA
FOLLOW_SECONDS: Final = 0.5


class Reader:
    """The reading half of a client.

    Args:
        supervisor: The process whose events are read.
        ending: How it comes to its end.
    """

    __slots__ = (
        *("_any_event", "_followers", "_leader", "_room", "_turn", "background"),
        *("_inbox", "_parts", "_replies", "_settled", "fanout", "farewell", "pending", "take_out"),
        *("_broken", "_closed", "_exited", "_forked", "_over", "ending", "supervisor"),
        *("_bell", "_fill", "_fits", "_pop", "_push", "_push_keeping", "_ring", "_ring_room", "_submit"),
        "arenas",
    )
    observer: Observer

    def __init__(self, supervisor: Supervisor, ending: Ending) -> None:
        self.ending = ending
        self._forget_threads()
        self.pending: dict[int, Any] = {}
        # Takes out of `pending` what has ended; while there are subscriptions, `mpworker.subscribers` does, for them.
        self.take_out: Callable[[int, None], Any] = self.pending.pop
        self.fanout: Fanout | None = None
        self._inbox: list[Record] = []
        self._settled = 0  # how often something has been settled
        self._parts: list[bytes] = []  # of a payload that comes in fragments
        self._replies: dict[int, Reply] = {}
        self.arenas: Arenas | None = supervisor.arenas
        self.farewell = b""  # the supervisor's last word: its counts
        self._closed = ""  # why nothing more is accepted: "stopped", "lost", "broken" or "forked"; "" while open
        self._broken: dict[str, Any] | None = None
        self._exited = False  # the supervisor is dead
        self._over = False  # what was pending has been settled, and nothing of it is left
        self._forked = False
        # None where that is no ring, or where a record that has no room is kept.
        self._submit: Submit | None = None
        self.takes_from(supervisor)

    def takes_from(self, supervisor: Supervisor) -> None:
        """Send to this supervisor from now on, and read what it sends."""
        channel = supervisor.channel
        self._bell: Bell | None = channel.bell
        self._push: Callable[..., bool] = channel.outbound.push
        # What is no ring is this process's, which needs no other one.
        self._push_keeping: Callable[..., bool] = getattr(channel.outbound, "push_keeping", _always)
        self._pop: Callable[[list[Record], int], int] = channel.inbound.pop
        self._fill: Callable[[], int] = channel.inbound.fill
        self._fits: Callable[[int], bool] = channel.outbound.fits
        self._ring: Callable[[], None] = channel.peer_bell.ring
        self._ring_room: Callable[[], None] = channel.peer_bell.ring_room
        self.supervisor = supervisor

    def _forget_threads(self) -> None:
        """Nobody leads, follows or waits."""
        self._leader: int | None = None  # a thread
        self._turn = 0  # of its loop
        self._followers: dict[Follower, None] = {}
        self._any_event: list[Follower] = []
        self._room: dict[Follower, int] = {}  # those that wait for room in the ring to the supervisor: how much
        self.background = Background(self)

    def _refuse(self) -> None:
        """Raise why nothing more is accepted."""
        raise NotImplementedError

    def agree(self, terms: dict[str, Any]) -> None:
        """What the supervisor says of what may be asked for."""
        raise NotImplementedError

    def refuse_if_forked(self) -> None:
        """Raise in a fork."""
        if self._forked:
            self._refuse()

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
        try:
            return self._lead_or_follow(target, deadline, need, threading.get_ident())
        finally:
            self._hand_over()

    def _lead_or_follow(self, target: Waitable, deadline: float | None, need: int | None, thread: int) -> bool:
        follower: Follower | None = None
        while not target.ready:
            if self._forked:
                self._refuse()
            led = (self._leader is None or self._leader == thread) and self._lead(target, deadline, need, thread)
            left = _FOREVER if deadline is None else deadline - time.monotonic()
            if (led and self._exited) or (deadline is not None and left <= 0):
                return target.ready
            if led:
                continue  # what was ready is no longer, if another thread has taken the room, say
            if follower is None:
                follower = Follower()
            self._follow(follower, target, left, need)
        return True

    def _lead(self, target: Waitable, deadline: float | None, need: int | None, thread: int) -> bool:
        """Read until the target is ready, the time is over or nothing more will come; False if somebody else leads."""
        nested = self._leader == thread  # a handler on top of the frame that leads: it goes on for that frame
        try:
            if self._leader is not None and not nested:
                return False
            self._leader = thread
            return self._read_until(target, deadline, need, thread)
        finally:
            if self._leader == thread and not nested:
                self._leader = None

    def _read_until(self, target: Waitable, deadline: float | None, need: int | None, thread: int) -> bool:
        while self._leader == thread:
            supervisor = self.supervisor  # it may be another one after each wait
            channel = supervisor.channel
            self._turn += 1
            found_some = self._read_some(thread)
            settled = self._settled
            if self._exited and not self._over:
                self._supervisor_died()  # whoever began was interrupted
            if target.ready or self._exited:
                return True
            left = _FOREVER
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    self._read_what_is_there(thread)
                    return True
            if found_some:
                continue
            room = need
            if self._room:
                room = max((need or 0, *list(self._room.values())))
            # With a task for each core a spin takes from those who are waited for, unless it is a short one.
            busy = len(self.pending) >= supervisor.cores
            # Else a handler has read what this thread would now sleep for, closed the channel, or taken the lead away.
            if self._settled == settled and self._leader == thread:
                outbound = None if room is None else channel.outbound
                found = channel.bell.wait(
                    channel.inbound,
                    outbound,
                    room or 0,
                    left,
                    supervisor.pidfd,
                    supervisor.spin_ns,
                    busy,
                    supervisor.longest_spin_ns,
                )
                if found & 2:
                    self._supervisor_died()
                elif self._room:
                    self._wake_for_room()
        return False

    def _follow(self, follower: Follower, target: Waitable, left: float, need: int | None) -> None:
        leader, turn = self._leader, self._turn
        patience = FOLLOW_SECONDS if left < 0 else min(left, FOLLOW_SECONDS)
        woken = True
        try:
            target.add_waiter(follower)
            self._followers[follower] = None
            if need is not None:
                self._room[follower] = need
                self._wake_leader()  # which does not watch for room yet
            # Who ends what this waits for, or stops to lead, looks for followers afterwards.
            if not target.ready and self._leader is not None:
                woken = follower.wait(patience)
        finally:
            self._followers.pop(follower, None)
            self._room.pop(follower, None)
            target.remove_waiter(follower)
        bell = self._bell
        if woken or patience < FOLLOW_SECONDS or bell is None:
            return
        if self._leader == leader and self._turn == turn and not bell.waiting:
            self._leader = None  # it is in a handler; no call since the look, or it might have gone to sleep

    def _hand_over(self) -> None:
        """If nobody leads, one follower must."""
        if self._followers and self._leader is None:
            for first in tuple(self._followers)[:1]:
                self._followers.pop(first, None)  # the next one to leave shall wake another
                first.wake()

    def _wake_for_room(self) -> None:
        for follower in tuple(self._room):
            self._room.pop(follower, None)  # until it asks again
            follower.wake()

    def _wake_leader(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.wake()

    def is_over(self) -> bool:
        """Has the supervisor ended, and all that was pending with it?"""
        return self._over

    def leads_below(self) -> bool:
        """Is this a signal handler, on top of the frame that leads?"""
        return self._leader == threading.get_ident()

    def wake_everybody(self) -> None:
        """Have each thread that waits look again, and lead if the one that does is below this handler."""
        if self._leader == threading.get_ident():
            self._leader = None
        wake_all(self._any_event)
        self._wake_leader()

    def poll(self) -> None:
        """Read what has come, without waiting."""
        thread = threading.get_ident()
        nested = self._leader == thread
        if (self._leader is None or nested) and not self._forked:
            self._leader = thread
            try:
                self._read_what_is_there(thread)
            finally:
                if self._leader == thread and not nested:
                    self._leader = None
                self._hand_over()

    # ------------------------------------------------------------ read

    def _read_some(self, thread: int) -> bool:
        """Settle what was popped and is not settled yet, or else pop a batch; whether there was any.

        Args:
            thread: This one. If it leads no more it pops nothing.
        """
        inbox = self._inbox
        if self._exited or not (inbox or (self._leader == thread and self._pop(inbox, _BATCH))):
            return False
        self._ring_room()  # also for a batch whose reader was interrupted before it came to this
        self._settle_inbox()
        if self.arenas is not None and self.arenas.has_returns():
            self.give_back()
        return True

    def _read_what_is_there(self, thread: int) -> None:
        """Settle all that has come by now; what comes while it is settled may be left."""
        settled = self._settled
        batches = 2 + self._fill() // (_BATCH * RECORD_HEADER_BYTES)
        while batches and self._read_some(thread):
            batches -= 1
        # Else there may be more to read, or a handler has read it, or taken the lead away: as in `_read_until`.
        if self._settled == settled and self._leader == thread:
            self._look_for_death()

    def _look_for_death(self) -> None:
        """Nothing has come: who looks again and again, and never waits, must hear of the supervisor's death as well."""
        channel, pidfd = self.supervisor.channel, self.supervisor.pidfd
        if not self._exited and pidfd >= 0 and channel.bell.wait(channel.inbound, None, 0, 0.0, pidfd, 0, False) & 2:
            self._supervisor_died()

    def _settle_inbox(self) -> None:
        self._settled += 1
        try:
            self._settle_each()
        finally:
            self.background.look()
            wake_all(self._any_event)

    def _settle_each(self) -> None:
        inbox = self._inbox
        pending = self.pending
        while True:
            record = inbox[0] if inbox else None  # one look: it may be emptied at a turn of the loop
            if record is None:
                return
            kind, flags, a, b, c, data = record
            if flags & _COMES_IN_PIECES:
                parcel: Any = data
                if isinstance(parcel, Parcel):
                    parcel.arm()  # before it is anybody's; what was made of the record a second time never is
                else:
                    whole = self._whole(record) if flags & codec.FRAGMENTED else self._parcel(record)
                    none: list[bytes] = []
                    if inbox and inbox[0] is record:
                        inbox[0] = whole
                        self._parts = none
                    continue
            if kind == codec.RESULT:
                future = pending.get(a)
                if future is not None:
                    future.settle(flags & codec.LOW, data)
                self.take_out(a, None)  # in any case: whoever took it out before may have been interrupted in there
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

    def _whole(self, record: Record) -> Record:
        """The record with all parts of its payload; if memory is short of that, one that says so."""
        kind, flags, a, b, c, data = record
        flags &= ~codec.FRAGMENTED
        try:
            return kind, flags, a, b, c, b"".join((*self._parts, data))
        except MemoryError:
            size = sum(map(len, self._parts)) + len(data)
            message = f"MemoryError: it has {size} bytes as a pickle, for which this process has no memory"
            report = {"what": "result", "type": "unknown", "message": message, "traceback": ""}
            return kind, flags & ~codec.LOW | codec.UNSERIALIZABLE, a, b, c, json.dumps(report).encode()

    def _parcel(self, record: Record) -> Record:
        """The record with what of it lies in an arena; if that cannot be had, one that says so."""
        kind, flags, a, b, c, data = record
        assert self.arenas is not None
        try:
            return kind, flags, a, b, c, self.arenas.parcel(data)  # type: ignore[return-value]  # settled like bytes
        except (OSError, MemoryError) as error:
            message = f"{type(error).__name__}: it cannot be mapped: {error}"
            report = {"what": "result", "type": "unknown", "message": message, "traceback": ""}
            failed = flags & ~(codec.LOW | codec.ARENA) | codec.UNSERIALIZABLE
            return kind, failed, a, b, c, json.dumps(report).encode()

    def give_back(self) -> None:
        """Tell the supervisor which results are needed no more."""
        if self.arenas is not None:
            self.arenas.give_back(self._push)
            self._ring()

    def _settle_other(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        if kind == codec.RESULTS:
            chunk = self.pending.get(a)
            if chunk is not None and chunk.settle_items(flags & codec.LOW, b & 0xFFFFFFFF, b >> 32, c, data):
                self.pending.pop(a, None)
        elif kind == codec.SPLIT:
            chunk = self.pending.get(a)
            if chunk is not None:
                chunk.split(b & 0xFFFFFFFF, b >> 32)
        elif kind == codec.REPLY:
            reply = self._replies.get(a)
            if reply is not None:
                reply.settle(json.loads(data))
                self._replies.pop(a, None)
        elif kind in (codec.EVENT, codec.LOG):
            self.observer.take(kind, flags & codec.LOW, a, b, data)
        elif kind == codec.RUN and self.fanout is not None:
            self.fanout.run_begins(a, b, data)
        elif kind == codec.RAN and self.fanout is not None:
            self.fanout.run_ends(a, flags & codec.LOW, data)
        elif kind == codec.FREE and self.arenas is not None:
            self.arenas.free(a)
        else:
            self._settle_word(kind, data)

    def _settle_word(self, kind: int, data: bytes) -> None:
        """What the supervisor says of itself."""
        if kind == codec.BROKEN:
            self._broken = json.loads(data)
            self._closed = "broken"
        elif kind == codec.FAREWELL:
            self.farewell = data
        elif kind == codec.CLOSING:
            self.ending.is_asked_for()
        elif kind == codec.TERMS:
            self.agree(json.loads(data))

    def _fail_all(self, status: int, data: bytes) -> None:
        """Nothing more will come: settle what is pending."""
        self.ending.note((status, data))
        for key, future in list(self.pending.items()):
            future.settle(status, data)
            self.take_out(key, None)
        if self.fanout is not None:
            self.fanout.all_runs_end(status, data)
        self.take_out(0, None)  # nobody's key: what an interrupt has kept from the subscriptions goes to them now
        for reply in list(self._replies.values()):
            reply.settle({"lost": True})
        self._replies.clear()

    def _recovers(self) -> bool:
        """The supervisor is dead, and all that it had sent was read: is it waited for another one?"""
        return False

    def _supervisor_died(self) -> None:
        """The pidfd is readable: take in what it had sent, then settle the rest.

        It may be interrupted, and called again; and two threads may do it at once.
        """
        if not self._exited:
            self.ending.note_failure_to_start()
        thread = threading.get_ident()
        while self._read_some(thread):
            pass
        if self._leader != thread:
            return  # the one that leads sees it, too, and reads what this one did not
        self._settled += 1
        if self._recovers():
            return
        self._exited = True
        status, report = self.ending.verdict()
        if self._over:
            return  # a signal handler has done it all
        self._fail_all(status, report)
        # The bells' numbers may be another file's from now on, and a future that is kept shall not keep the memory.
        self._bell = None
        self._push = self._push_keeping = self._fits = _always
        self._submit = None
        self._pop = self._fill = _nothing
        self._ring = self._ring_room = _ring_nowhere
        self.supervisor.close()
        if self.arenas is not None:
            self.arenas.close()
        self.ending.log(status)
        self._over = True
        wake_all((*self._any_event, *self._followers))
        self.background.wake()
        self.observer.wake()


def _always(*_: object) -> bool:
    return True


def _nothing(*_: object) -> int:
    return 0


def _ring_nowhere() -> None:
    pass
