"""`share`: how a client places an object once for many tasks.

It is written into the arena of the calls, and what keeps it there (`mpworker.arenas.Kept`) lives in its handle, in each
call that is being sent, and in what views it here. The end of the last one tells the supervisor, which knows whether a
task or a child still needs it (`mpworker.supervisor.shares`), and gives back the room.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mpworker.errors import QueueFull, SerializationError, ShareError, WorkerStopped
from mpworker.ipc import payload, shares
from mpworker.shared import Shared

if TYPE_CHECKING:
    from mpworker.arenas import Arenas, Kept
    from mpworker.client import Client
    from mpworker.loopclient import LoopClient

T = TypeVar("T")

_LET_GO_SECONDS: Final = 5.0  # for children to let go of what was closed, where no task is unfinished


class _InArena:
    """An object in the arena of a client that runs."""

    __slots__ = ("__weakref__", "_client", "_kept", "_over", "_value")

    def __init__(self, client: Client, arenas: Arenas, kept: Kept) -> None:
        self._client = client
        self._kept: Kept | None = kept
        self._value: tuple[Any] | None = None  # once it was opened
        self._over = False
        arenas.handles.add(self)

    def value(self) -> Any:
        known = self._value
        if known is None:
            kept = self._still_kept()
            arenas = self._client.arenas
            assert arenas is not None  # it is in there
            try:
                view = arenas.open_share(kept)
            except OSError as error:
                raise ShareError(f"a shared object of {kept.block[2]} bytes cannot be mapped: {error}") from error
            known = self._value or (shares.read(view, payload.loads_known),)  # or another thread was faster
            if self._kept is kept:  # nor has one closed it
                self._value = known
        return known[0]

    def _still_kept(self) -> Kept:
        self._client.refuse_if_forked()
        kept = self._kept
        if self._over:
            raise WorkerStopped("the worker of this shared object is stopped, and the object was not opened before")
        if kept is None:
            raise ShareError("the handle of this shared object is closed")
        return kept

    def travels(self) -> None:
        if not shares.note(self._still_kept()):
            raise ShareError("the handle of a shared object is pickled by its worker alone: hand it to a task")

    def close(self) -> None:
        self._kept = self._value = None
        self._over = False
        if not self._client.is_fork():
            self._client.give_back()

    def end(self) -> None:
        """The worker is over: what was opened stays."""
        self._over = self._kept is not None
        self._kept = None

    def state(self) -> str:
        if self._kept is not None:
            return "open"
        return "of a stopped worker" if self._over else "closed"


class _Here:
    """An object in this very process, where the tasks run as well.

    Attributes:
        pool: Whose it is.
        block: Its number, and no place.
    """

    def __init__(self, client: Client, number: int, memory: bytes) -> None:
        self.pool = client.prefix
        self.block = number, 0, 0
        self._memory: bytes | None = memory
        self._value: tuple[Any] | None = None

    def value(self) -> Any:
        memory = self._still_there()
        if self._value is None:
            self._value = (shares.read(memoryview(memory), payload.loads_known),)
        return self._value[0]

    def _still_there(self) -> bytes:
        if self._memory is None:
            raise ShareError("the handle of this shared object is closed")
        return self._memory

    def travels(self) -> None:
        self._still_there()
        shares.note(self)

    def close(self) -> None:
        self._memory = self._value = None

    def state(self) -> str:
        return "closed" if self._memory is None else "open"


class Placing:
    """An object that is to be shared.

    Args:
        client: By whom.
        obj: The object.

    Raises:
        SerializationError: It cannot be pickled.
        ShareError: It is larger than all of the arena, there is none, or a handle is in it.
    """

    def __init__(self, client: Client, obj: object) -> None:
        client.refuse_if_closed()
        self._client = client
        try:
            self._parts = payload.dumps_apart(obj, 0)
        except payload.Unserializable as error:
            what = f"an object of type {error.type_name} cannot be shared"
            raise SerializationError(f"{what}: it cannot be pickled: {error}") from error
        if self._parts.shares:
            raise ShareError("an object that is shared cannot have handles of others in it")
        self._size = shares.lay_out(self._parts)[2]
        capacity = 0 if client.arenas is None else client.arenas.capacity
        if self._size > capacity and not self._is_inline:
            raise ShareError(f"an object of {self._size} bytes can never be shared: arena_max_bytes={capacity}")
        self._waits_since = time.monotonic()
        self._idle_since: float | None = None  # while it waits and no task is unfinished

    @property
    def _is_inline(self) -> bool:
        return self._client.supervisor.pid == 0  # with debug=True

    def tried(self) -> Shared[Any] | None:
        """Its handle; None if there is no room for it now.

        Raises:
            ShareError: There is no memory for it.
            WorkerStopped: Nothing more is accepted.
        """
        client = self._client
        client.refuse_if_closed()
        if self._is_inline:
            here = _Here(client, client.new_key(), self._written())
            return Shared(client.prefix, here.block[0], self._parts.nbytes, here)
        arenas = client.arenas
        assert arenas is not None  # or it would not fit
        client.give_back()
        try:
            kept = arenas.share(self._parts, client.prefix, client.sending.send)
        except OSError as error:
            raise ShareError(f"there is no memory to share {self._size} bytes: {error}") from error
        if kept is None:
            return None
        return Shared(client.prefix, kept.block[0], self._parts.nbytes, _InArena(client, arenas, kept))

    def _written(self) -> bytes:
        pieces, starts, size = shares.lay_out(self._parts)
        memory = bytearray(size)
        for start, piece in zip(starts, pieces, strict=True):
            memory[start : start + len(piece)] = piece
        return bytes(memory)

    @property
    def fits(self) -> bool:
        """Is there room?"""
        arenas = self._client.arenas
        return arenas is not None and arenas.fits(self._size)

    def may_go_on(self) -> bool:
        """Is there room, or something new to be thought of?"""
        client = self._client
        became_idle = not client.pending and self._idle_since is None
        return client.is_closed() or self.fits or became_idle or not self._room_comes()

    def _room_comes(self) -> bool:
        arenas = self._client.arenas
        return arenas is not None and (arenas.under_way(self._client.pending) or arenas.room_comes)

    def patience(self) -> float | None:
        """For how many seconds from now to wait for room; None for as long as it takes.

        Raises:
            QueueFull: It is waited for no longer: nothing gives back any, or `submit_timeout` is over.
        """
        client, arenas = self._client, self._client.arenas
        assert arenas is not None
        full = f"arena_max_bytes={arenas.capacity} have no room to share {self._size} bytes"
        if not self._room_comes():
            raise QueueFull(f"{full}: {arenas.taken} are taken by what is shared, or kept by this program")
        now = time.monotonic()
        timeout = client._options.submit_timeout
        ends = [] if timeout is None else [self._waits_since + timeout]
        self._idle_since = None if client.pending else self._idle_since or now
        if self._idle_since is not None:
            ends.append(self._idle_since + _LET_GO_SECONDS)
        left = min(ends, default=now) - now
        if ends and left <= 0:
            raise QueueFull(f"{full}, and in {now - self._waits_since:.3g} s none has come")
        return left if ends else None


def share(client: Client, obj: T) -> Shared[T]:
    """Share an object, and wait for room."""
    placing = Placing(client, obj)
    shared = placing.tried()
    if shared is not None:
        return shared
    assert client.arenas is not None  # or it would not have been tried
    client.arenas.awaited.add(placing)
    try:
        return _share_after_waiting(client, placing)
    finally:
        client.arenas.awaited.discard(placing)


def _share_after_waiting(client: Client, placing: Placing) -> Shared[Any]:
    while True:
        client.sending.awaits_room()
        client.poll()
        if not placing.fits:
            client.wait_for(client.when(placing.may_go_on), placing.patience())
        shared = placing.tried()
        if shared is not None:
            return shared


async def share_soon(client: LoopClient, obj: T) -> Shared[T]:
    """The same in an event loop."""
    client.check()
    placing = Placing(client, obj)
    while True:
        shared = placing.tried()
        if shared is not None:
            return shared
        await client.until(placing.may_go_on, placing.patience())
