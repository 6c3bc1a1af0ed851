"""What an event loop's client sends, and what waits there until there is room for it.

Nothing blocks on the ring: a record for which there is no room goes to `_outbox`, in order, and while it is there the
bell wakes for room as well. A task above max_pending waits in `_line` with its pickle. Requests overtake the line, so
that a cancel goes through; what must not (a function to be forgotten, a shared object to be let go of, the drain)
stands in it.

The line is left in the order of priorities, weights and submissions, and nothing passes what keeps its place. A task
whose deadline comes, or that is cancelled, leaves it at once: how it ends is the supervisor's to decide, so that it is
counted, remembered and told of like any other.

A record is taken out of either before it is pushed, with no call between the look and that: a second Ctrl-C, which
raises anywhere, may lose a task that then ends cancelled, but never sends one twice.
"""

import asyncio
import base64
import math
import time
from collections import deque
from heapq import heapify, heappop, heappush
from typing import Any, Final

from mpworker.client import Client, queue_full
from mpworker.ending import DRAIN
from mpworker.ipc import codec, details
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import Record
from mpworker.ipc.ring import split
from mpworker.launch import Supervisor
from mpworker.observing import Observing
from mpworker.options import WorkerOptions
from mpworker.starting import Beginning
from mpworker.steps import Message

_KEEPS_ITS_PLACE: Final = (codec.SUBMIT, codec.FORGET, codec.UNSHARE)
_GONE_MAX: Final = 64  # ranks of what has left the line, beside twice as many as are in it


class LineClient(Client):
    """The half of a `LoopClient` that sends; the arguments are those of `Client`.

    Attributes:
        loop: The event loop; None until the first call in one.
    """

    __slots__ = (
        "_cut",
        "_drains",
        "_holds",
        "_in_line",
        "_leaving",
        "_line",
        "_outbox",
        "_places",
        "_push_now",
        "_questions",
        "_ranks",
        "_room_max",
        "loop",
    )

    def __init__(self, options: WorkerOptions, observing: Observing, start: Beginning) -> None:
        # Before the client, whose start may fail, and which is then stopped.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._line: dict[int, Record] = {}  # behind max_pending: of a task by its key, of others by a negative number
        self._in_line = 0  # how many of them are tasks
        # In what order they leave: after how many that keep their place, priority, -weight, key. A heap, of what has
        # left out of its turn as well.
        self._ranks: list[tuple[int, float, int, int]] = []
        self._places = 0
        self._leaving: dict[int, bool] = {}  # tasks that leave it as soon as anything may: because they are cancelled?
        self._drains: dict[int, Message] = {}  # those of them that are such requests
        self._questions = asyncio.Lock()  # about tasks
        self._holds = False  # the answer to one is under way: nothing leaves the line
        self._outbox: deque[Record] = deque()  # behind a full ring
        self._cut: deque[Record] = deque()  # of the first in the outbox, if that goes in parts and has begun to
        super().__init__(options, observing, start)
        self.sending.max_record = options.max_payload_bytes  # the outbox cuts what is larger than the ring takes

    def takes_from(self, supervisor: Supervisor) -> None:
        """See `Reader`."""
        super().takes_from(supervisor)
        self._room_max = supervisor.channel.outbound.max_payload
        self._push_now = self._push
        self._push = self._send_or_keep
        self._cut.clear()  # another supervisor has nothing of it

    def submits_to(self, channel: Channel) -> None:
        """Nothing goes in one native call: what there is no room for is kept."""

    def is_served_by(self, supervisor: Supervisor) -> None:
        """See `Client`."""
        super().is_served_by(supervisor)
        self.sending.max_record = self._options.max_payload_bytes

    @property
    def _keeps(self) -> dict[int, Record] | None:
        return None  # what is sent may wait in the outbox, and is kept when it leaves that

    @property
    def _asks(self) -> dict[int, object] | None:
        return None

    def _push_first(self, record: Record, whole: Record) -> bool:
        """Push what is next: a record, or the last or another part of one, which is kept if it is a task's."""
        kept: dict[int, Any] | None = self.kept if record[0] in (codec.SUBMIT, codec.CHUNK) else None
        if record[0] == codec.REQUEST and record[2] and self.recovery is not None:
            kept = self.asked
        return self._push_now(*record) if kept is None else self._push_keeping(kept, whole, *record)

    def _send_or_keep(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> bool:
        """Send a record, or see to it that it is sent later: in place of a push, which may find no room."""
        line = self._line
        if kind == codec.SUBMIT and (line or len(self.pending) - self._in_line > self._options.max_pending):
            self._stand(flags, a, c, data)
            line[a] = (kind, flags, a, b, c, data)
            self._in_line += 1  # no call since the store
        elif line and (kind in _KEEPS_ITS_PLACE or data is DRAIN):
            self._keep_place(-next(self._keys), (kind, flags, a, b, c, data))
        else:
            self._post((kind, flags, a, b, c, data))
        return True

    def _stand(self, flags: int, key: int, number: int, data: bytes) -> None:
        """A task comes into the line."""
        said = details.read(data) if flags & codec.DETAILED else {}
        order = said.get("options") or self.option_table.said(number)
        heappush(self._ranks, (self._places, order.get("priority", 0), -order.get("weight", 1), key))
        if self.loop is not None:
            if self._options.submit_timeout is not None:
                self.loop.call_later(self._options.submit_timeout, self._give_up, key)
            if "deadline" in said:
                self.loop.call_later(said["deadline"] - time.monotonic(), self._leave_early, key)

    def _keep_place(self, key: int, record: Record) -> None:
        heappush(self._ranks, (self._places, math.inf, 0, key))
        self._line[key] = record
        self._places += 1

    def _post(self, record: Record) -> None:
        outbox = self._outbox
        if not outbox and len(record[5]) <= self._room_max and self._push_first(record, record):
            return
        outbox.append(record)
        self._wake_leader()

    def _next_part(self) -> Record:
        """What is to be pushed next of what waits: the first record, or a part of it."""
        whole = self._outbox[0]
        if not self._cut and len(whole[5]) > self._room_max:
            self._cut.extend(split(whole, self._room_max // 2))
        return self._cut[0] if self._cut else whole

    def can_send(self) -> bool:
        """Is there something that waits, and room for it?"""
        return bool(self._outbox) and self._fits(len(self._next_part()[5]))

    def stands_in_line(self) -> bool:
        """See `Client`: what does lies in no arena, and so in nobody's way."""
        return bool(self._line) or len(self.pending) - self._in_line >= self._options.max_pending

    def _flush(self) -> bool:
        """Push what waits, as far as there is room; False if something still waits."""
        outbox, parts = self._outbox, self._cut
        while outbox:
            part = self._next_part()
            if not self._fits(len(part[5])):
                self._ring()
                return False
            whole = outbox[0]
            if len(parts) > 1:
                del parts[0]
                if not self._push_first(part, whole):  # a handler has taken the room
                    parts.appendleft(part)
                    return False
                continue
            parts.clear()
            del outbox[0]
            if not self._push_first(part, whole):
                outbox.appendleft(whole)
                if part is not whole:
                    parts.append(part)
                return False
        self._ring()
        return True

    def _wait_until_there_is_room(self) -> None:
        """What is too much waits in line, and not here."""
        if self._options.submit_timeout == 0.0:
            self.poll()
            self._wake_leader()  # what has ended is to be told
            if len(self.pending) >= self._options.max_pending:
                raise queue_full(self._options.max_pending, 0.0)
        self.refuse_if_closed()

    def _leave_line(self) -> None:
        """Send what waits for others to end."""
        line = self._line
        while line and not self._holds:
            early = next(iter(self._leaving), 0)
            key = early or self._first_in_line()
            if key > 0 and not early and len(self.pending) - self._in_line >= self._options.max_pending:
                return
            if key in line:
                record = line[key]
                del line[key]
                if key > 0:
                    self._in_line -= 1  # no call since the look
                self._drains.pop(key, None)
                if self._leaving.pop(key, False):
                    self._send_cancelled(record)
                elif key < 0 or key in self.pending:  # else its submission was interrupted
                    self._post(record)
            self._leaving.pop(key, None)

    def _first_in_line(self) -> int:
        line, ranks = self._line, self._ranks
        if len(ranks) > 2 * len(line) + _GONE_MAX:
            left = [rank for rank in ranks if rank[-1] in line]
            heapify(left)
            ranks = self._ranks = left
        while ranks:
            key = ranks[0][-1]
            if key in line:
                return key  # it stays: who leaves may be interrupted
            gone = heappop(ranks)
            if gone[-1] in line:
                heappush(ranks, gone)  # a handler has put it there
        return next(iter(line), 0)  # an interrupt has lost a rank

    def _leave_early(self, key: int, cancelled: bool = False) -> bool:
        """A task leaves the line out of its turn, and ends there where all others do; False if it is not in it."""
        if key not in self._line:
            return False
        self._leaving[key] = cancelled or self._leaving.get(key, False)
        self._leave_line()
        self._wake_leader()
        return True

    def _send_cancelled(self, record: Record) -> None:
        _, flags, key, function, options, data = record
        if key in self.pending:
            call = {"flags": flags, "function": function, "options": options, "call": base64.b64encode(data).decode()}
            self.tell({"verb": "cancelled", "task": key} | call)

    def _give_up(self, key: int) -> None:
        """A task has been in line for `submit_timeout`."""
        timeout = self._options.submit_timeout
        if key in self._line and key not in self._leaving and timeout is not None:
            del self._line[key]
            self._in_line -= 1  # no call since the look
            future = self.pending.get(key)
            if future is not None:
                future.refuse(queue_full(self._options.max_pending, timeout))
                self.take_out(key, None)  # not a plain pop: a subscription shall see it
            self._wake_leader()

    def _drop_from_line(self, key: int) -> bool:
        """A task is cancelled: if it is in line it never begins; whether it was."""
        return self._leave_early(key, cancelled=True)

    def _drop_all_from_line(self) -> int:
        return sum(self._drop_from_line(key) for key in [key for key in self._line if key > 0])

    def tasks_in_line(self) -> list[Record]:
        """What `submit` has kept back."""
        return [record for key, record in self._line.items() if key > 0]

    def _drop_drains(self, names: list[str] | None) -> None:
        """Drains that are still in line end by a `resume`, as those that the supervisor knows do."""
        for key, message in list(self._drains.items()):
            if names is None or message["names"] is None or set(names) & set(message["names"]):
                del self._drains[key]
                reply = self._replies.get(-key)
                if self._line.pop(key, None) is not None and reply is not None:
                    reply.settle({"drained": False})

    def _stand_in_line(self, key: int, message: Message, data: bytes) -> bool:
        """A drain is to be asked for: what was submitted before shall not be held; False if there is no line."""
        if self._line:
            self._keep_place(-key, (codec.REQUEST, 0, key, 0, 0, data))
            self._drains[-key] = message
        return bool(self._line)

    def _forget_what_waits(self) -> None:
        self._line.clear()
        self._drains.clear()
        self._ranks.clear()
        self._leaving.clear()
        self._in_line = 0
        self._outbox.clear()
        self._cut.clear()
