"""What an event loop's client sends, and what waits there until there is room for it.

Nothing blocks on the ring: a record for which there is no room goes to `_outbox`, in order, and while it is there the
bell wakes for room as well. A task above max_pending waits in `_line` with its pickle. Requests overtake the line, so
that a cancel goes through; what must not (a function to be forgotten, the drain) stands in it.

A record is taken out of either before it is pushed, with no call between the look and that: a second Ctrl-C, which
raises anywhere, may lose a task that then ends cancelled, but never sends one twice.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from mpworker.client import Client, queue_full
from mpworker.ending import DRAIN
from mpworker.ipc import codec
from mpworker.ipc.codec import Record
from mpworker.ipc.ring import split
from mpworker.observing import Observing
from mpworker.options import WorkerOptions
from mpworker.steps import Message

_KEEPS_ITS_PLACE: Final = (codec.SUBMIT, codec.FORGET)


class LineClient(Client):
    """The half of a `LoopClient` that sends; the arguments are those of `Client`.

    Attributes:
        loop: The event loop; None until the first call in one.
    """

    __slots__ = ("_drains", "_holds", "_in_line", "_line", "_outbox", "_push_now", "_questions", "_room_max", "loop")

    def __init__(
        self,
        options: WorkerOptions,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        observing: Observing,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        super().__init__(options, initializer, initargs, observing)
        self._line: dict[int, Record] = {}  # behind max_pending: of a task by its key, of others by a negative number
        self._in_line = 0  # how many of them are tasks
        self._drains: dict[int, Message] = {}  # those of them that are such requests
        self._questions = asyncio.Lock()  # about tasks
        self._holds = False  # the answer to one is under way: nothing leaves the line
        self._outbox: deque[Record] = deque()  # behind a full ring
        self._room_max = self.supervisor.channel.outbound.max_payload
        self._push_now = self._push
        self._push = self._send_or_keep
        self.sending.max_record = options.max_payload_bytes  # the outbox cuts what is larger than the ring takes

    def _send_or_keep(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> bool:
        """Send a record, or see to it that it is sent later: in place of a push, which may find no room."""
        line = self._line
        if kind == codec.SUBMIT and (line or len(self.pending) - self._in_line > self._options.max_pending):
            line[a] = (kind, flags, a, b, c, data)
            self._in_line += 1  # no call since the store
            if self._options.submit_timeout is not None and self.loop is not None:
                self.loop.call_later(self._options.submit_timeout, self._give_up, a)
        elif line and (kind in _KEEPS_ITS_PLACE or data is DRAIN):
            line[-next(self._keys)] = (kind, flags, a, b, c, data)
        else:
            self._post((kind, flags, a, b, c, data))
        return True

    def _post(self, record: Record) -> None:
        outbox = self._outbox
        large = len(record[5]) > self._room_max
        if not outbox and not large and self._push_now(*record):
            return
        # In one call: nothing of a handler's may come between the parts.
        outbox.extend(list(split(record, self._room_max // 2)) if large else [record])
        self._wake_leader()

    def _flush(self) -> bool:
        """Push what waits, as far as there is room; False if something still waits."""
        outbox = self._outbox
        while outbox:
            if not self._fits(len(outbox[0][5])):
                self._ring()
                return False
            first = outbox[0]
            del outbox[0]
            if not self._push_now(*first):  # a handler has taken the room
                outbox.appendleft(first)
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
            key = next(iter(line), 0)
            if key > 0 and len(self.pending) - self._in_line >= self._options.max_pending:
                return
            if key in line:
                record = line[key]
                del line[key]
                if key > 0:
                    self._in_line -= 1  # no call since the look
                self._drains.pop(key, None)
                if key < 0 or key in self.pending:  # else its submission was interrupted
                    self._post(record)

    def _give_up(self, key: int) -> None:
        """A task has been in line for `submit_timeout`."""
        timeout = self._options.submit_timeout
        if key in self._line and timeout is not None:
            del self._line[key]
            self._in_line -= 1  # no call since the look
            future = self.pending.get(key)
            if future is not None:
                future.refuse(queue_full(self._options.max_pending, timeout))
                self.take_out(key, None)  # not a plain pop: a subscription shall see it
            self._wake_leader()

    def _drop_from_line(self, key: int) -> bool:
        """A task is cancelled: if it is in line it never leaves; whether it was."""
        if key not in self._line:
            return False
        del self._line[key]
        self._in_line -= 1  # no call since the look
        future = self.pending.get(key)
        if future is not None:
            future.settle(codec.CANCELLED, b"")
            self.take_out(key, None)  # as in `_give_up`
        self._wake_leader()
        return True

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
            self._line[-key] = (codec.REQUEST, 0, key, 0, 0, data)
            self._drains[-key] = message
        return bool(self._line)

    def _forget_what_waits(self) -> None:
        self._line.clear()
        self._drains.clear()
        self._in_line = 0
        self._outbox.clear()
