"""How a client sends what a plain push does not: what must wait for room, goes in parts, or must be put off.

A record that is larger than the ring takes goes in parts, of several streams at once. While one is on its way no
function is forgotten, which it may name. Like `mpworker.reader` this takes no lock; the same rules hold.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from mpworker.errors import QueueFull, SerializationError
from mpworker.ipc import arena, codec, details
from mpworker.ipc.arena import NO_BLOCK, SHARES_MAX
from mpworker.ipc.codec import Record
from mpworker.ipc.payload import Parts
from mpworker.ipc.ring import split
from mpworker.kept import Pending
from mpworker.waiting import wake_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mpworker.arenas import Arenas
    from mpworker.client import Client
    from mpworker.ipc.shares import Share
    from mpworker.launch import Supervisor

_NAMES_ONE = (codec.SUBMIT, codec.CHUNK)  # records that name a function


class _OtherSupervisor(Exception):
    """The one that a record was being sent to has died, and another one takes its place."""


class Sending:
    """What one client sends with patience.

    Args:
        client: The client.
        max_payload_bytes: What is larger is sent not at all.

    Attributes:
        streams: Which thread sends a payload in parts as this stream, or 0.
        under_way: How many do.
        max_record: Bytes of a payload that goes as one record.
    """

    def __init__(self, client: Client, max_payload_bytes: int) -> None:
        self._client = client
        self._max_payload_bytes = max_payload_bytes
        self.max_record = min(client.supervisor.channel.outbound.max_payload, max_payload_bytes)
        self.streams = [0] * codec.MAX_STREAMS
        self.under_way = 0
        self._forgotten: deque[int] = deque()  # functions that the supervisor is still to be told of

    def send(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        """Send a record that names no function."""
        client = self._client
        if len(data) > self.max_record or not self.push((kind, flags, a, b, c, data)):
            self.slowly(kind, flags, a, b, c, data, kind == codec.REQUEST)  # answered until the end
        client._ring()

    def push(self, record: Record, whole: Record | None = None) -> bool:
        """Push a record if there is room for it, and keep what is kept of it: `whole`, or the record itself."""
        client, kept = self._client, self._kept_of(record)
        if kept is None:
            return client._push(*record)
        return client._push_keeping(kept, record if whole is None else whole, *record)

    def _kept_of(self, record: Record) -> dict[int, Any] | None:
        """Where it is kept that the supervisor has a record; None where nobody keeps it."""
        if record[0] in _NAMES_ONE:
            return self._client._keeps
        return self._client._asks if record[0] == codec.REQUEST and record[2] else None

    def slowly(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes, until_end: bool = False) -> bool:
        """Send a record that must wait for room or go in parts, reading events meanwhile.

        Returns:
            False if the function that a task names has been dropped meanwhile; nothing was sent then.
        """
        if len(data) > self._max_payload_bytes:
            raise SerializationError(
                f"a pickle of {len(data)} bytes exceeds max_payload_bytes={self._max_payload_bytes}"
            )
        while True:
            supervisor = self._client.supervisor
            try:
                return self._send_to(supervisor, (kind, flags, a, b, c, data), until_end)
            except _OtherSupervisor:
                pass  # which has nothing of it

    def _send_to(self, supervisor: Supervisor, record: Record, until_end: bool) -> bool:
        """Send a record to this supervisor.

        Raises:
            _OtherSupervisor: There is another one by now.
        """
        kind, _, _, b, _, data = record
        if len(data) <= self.max_record:
            return self._push_when_there_is_room(supervisor, record, None, until_end)
        taken = [-1]
        try:
            self._take_stream(taken)  # from here on no function is forgotten
            if kind in _NAMES_ONE and b not in self._client.functions.live:
                return False
            self._push_each(supervisor, split(record, self.max_record // 2, taken[0]), record, until_end)
        finally:
            if taken[0] >= 0:
                self.streams[taken[0]] = 0
                self.under_way -= 1  # no call since the try
            self._stream_is_free()
        return True

    def _take_stream(self, taken: list[int]) -> None:
        """Find a stream that no other payload on its way in parts has; wait for one if there is none.

        Args:
            taken: Its number is put here.
        """
        client = self._client
        thread = threading.get_ident()
        streams = self.streams
        while True:
            for stream in range(codec.MAX_STREAMS):
                if not streams[stream]:
                    streams[stream] = thread
                    self.under_way += 1
                    taken[0] = stream  # no call since the look
                    return
            if streams.count(thread) == codec.MAX_STREAMS:
                raise RuntimeError(f"signal handlers send large payloads on top of {codec.MAX_STREAMS} others")
            client.wait_for(client.when(lambda: not all(streams)), None)

    def _stream_is_free(self) -> None:
        if self.under_way == codec.MAX_STREAMS - 1:  # somebody may wait for one
            wake_all(self._client._any_event)
            self._client._wake_leader()
        if self._forgotten:
            self._send_forgotten()

    def _push_each(self, supervisor: Supervisor, parts: Iterable[Record], whole: Record, until_end: bool) -> None:
        for part in parts:
            self._push_when_there_is_room(supervisor, part, whole, until_end)

    def _push_when_there_is_room(
        self, supervisor: Supervisor, record: Record, whole: Record | None, until_end: bool
    ) -> bool:
        """Push a record, reading events while the ring is full; False if it names a function that was dropped.

        Args:
            supervisor: To which.
            record: The record.
            whole: What it is the last part of, perhaps; None if it is no part.
            until_end: It goes although nothing more is accepted.

        Raises:
            _OtherSupervisor: There is another one by now.
        """
        client = self._client
        kind, function, size = record[0], record[3], len(record[5])
        names_one = kind in _NAMES_ONE and not record[1] & codec.FRAGMENTED
        live = client.functions.live
        over = client.is_over if until_end else client.is_closed
        kept = self._kept_of(record)
        what = record if whole is None else whole
        while True:
            if client._closed and not until_end:
                client._refuse()
            if names_one and function not in live:
                return False
            if client.supervisor is not supervisor:
                raise _OtherSupervisor
            # No call between the looks and this, as in submit.
            if client._push(*record) if kept is None else client._push_keeping(kept, what, *record):
                return True
            try:
                client._ring()
                ready = client.when(lambda: client._fits(size) or over() or client.supervisor is not supervisor)
                client.ending.wait_for_room(ready, size)
            except BaseException:
                if names_one:
                    self.unsent(record[1], record[5])
                raise

    # ------------------------------------------------------------ what goes by way of the arena

    def place(self, parts: Parts, key: int, until_end: bool = False) -> tuple[int, bytes]:
        """Put a call into the arena, or else into its record.

        It waits for room there, reading events meanwhile, as long as the end of a task gives back some: what the
        program itself keeps is not waited for.

        Args:
            parts: The call.
            key: The number of its task.
            until_end: It goes although nothing more is accepted.

        Returns:
            The flag of the record, and its payload.

        Raises:
            SerializationError: It is larger than `max_payload_bytes`.
            QueueFull: There was no room for `submit_timeout` seconds.
        """
        size = parts.nbytes
        if size > self._max_payload_bytes:
            raise SerializationError(f"a pickle of {size} bytes exceeds max_payload_bytes={self._max_payload_bytes}")
        self._refuse_foreign(parts.shares)
        data = self._placed(parts, key, until_end) if parts.is_large else None
        if data is not None:
            return codec.ARENA, data
        return codec.ARENA if self._needs_envelope(parts.shares) else 0, self.with_shares(parts.in_band(), parts.shares)

    def _needs_envelope(self, shares: Sequence[Share]) -> bool:
        return bool(shares) and self._client.arenas is not None  # else they are in this process, as are the tasks

    def with_shares(self, data: bytes, shares: Sequence[Share]) -> bytes:
        """A call, with an envelope that says which shared objects it speaks of; without one if there are none.

        Raises:
            SerializationError: One is of another worker, or there are too many.
        """
        self._refuse_foreign(shares)
        if not self._needs_envelope(shares):
            return data
        return arena.pack(data, NO_BLOCK, NO_BLOCK, (), False, [share.block for share in shares])

    def _refuse_foreign(self, shares: Sequence[Share]) -> None:
        for share in shares:
            if share.pool != self._client.prefix:
                raise SerializationError("a call takes along a shared object of another worker: share it with this one")
        if len(shares) > SHARES_MAX:
            raise SerializationError(f"a call takes along {len(shares)} shared objects, and can take {SHARES_MAX}")

    def _placed(self, parts: Parts, key: int, until_end: bool) -> bytes | None:
        client = self._client
        if client.arenas is None or client.stands_in_line():
            return None
        client.arenas.give_back(client._push, client.may_wait)  # the bell is rung for the call
        timeout = client._options.submit_timeout
        try:
            return self._place_when_there_is_room(parts, key, until_end, None if until_end else timeout)
        except OSError:
            return None  # no memory for more of the arena

    def _place_when_there_is_room(self, parts: Parts, key: int, until_end: bool, timeout: float | None) -> bytes | None:
        arenas = self._client.arenas
        assert arenas is not None
        data = arenas.place(parts, key)
        if data is not None or not self._client.may_wait or arenas.bytes_of(parts) > arenas.capacity:
            return data
        waiting = object()
        arenas.awaited.add(waiting)
        try:
            return self._wait_and_place(arenas, parts, key, until_end, timeout)
        finally:
            arenas.awaited.discard(waiting)

    def _wait_and_place(
        self, arenas: Arenas, parts: Parts, key: int, until_end: bool, timeout: float | None
    ) -> bytes | None:
        client = self._client
        by = None if timeout is None else time.monotonic() + timeout
        size = arenas.bytes_of(parts)
        room = client.when(lambda: arenas.fits(size) or not arenas.under_way(client.pending) or client.is_closed())
        while True:
            self.awaits_room(until_end)
            client.poll()
            if not arenas.under_way(client.pending):
                return arenas.place(parts, key)
            if not until_end:
                client.refuse_if_closed()
            if not client.wait_for(room, None if by is None else max(0.0, by - time.monotonic())):
                raise QueueFull(
                    f"arena_max_bytes={arenas.capacity} have no room for {size} bytes, and "
                    f"submit_timeout={timeout or 0.0:g} s is over"
                )
            data = arenas.place(parts, key)
            if data is not None:
                return data

    def awaits_room(self, until_end: bool = False) -> None:
        """Have the bell rung for what was given back quietly before this: see `Arenas.give_back`."""
        if not self._client._push(codec.FREE, 0, 0, 0, 0, b""):
            self.slowly(codec.FREE, 0, 0, 0, 0, b"", until_end)
        self._client._ring()

    def unsent(self, flags: int, data: bytes) -> None:
        """A record is not sent: what `place` has put into the arena for it is given back. It may be said twice.

        Args:
            flags: Of the record.
            data: Its payload.
        """
        if flags & codec.ARENA and self._client.arenas is not None:
            self._client.arenas.unsent(details.after(data) if flags & codec.DETAILED else data)

    # ------------------------------------------------------------ functions

    def function(self, key: int, name: str, blob: bytes) -> None:
        """A function, before any task that uses it."""
        said = name.encode(errors="replace")[: codec.NAME_BYTES_MAX]
        record = codec.FUNCTION, 0, key, len(said), 0, said + blob
        if isinstance(self._client.pending, Pending):
            self._client.pending.functions[key] = record  # first: another supervisor is sent all that are here
        self.send(*record)

    def forget(self, key: int) -> None:
        """No later task will use this function."""
        if isinstance(self._client.pending, Pending):
            self._client.pending.forget_function(key)
        self._forgotten.append(key)
        self._send_forgotten()

    def _send_forgotten(self) -> None:
        # Not while a record is on its way in parts, which may name one. None begins between the look and the push.
        client = self._client
        while self._forgotten and not client._closed:
            key = self._forgotten.popleft()
            if self.under_way or not client._push(codec.FORGET, 0, key, 0, 0, b""):
                self._forgotten.appendleft(key)
                return
