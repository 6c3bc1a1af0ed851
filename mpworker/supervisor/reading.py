"""What children say: the descriptors that the loop watches, and the answers in the children's rings.

The event loop is built in layers, a class and a file each, as the scheduler is:

    loop       the one client, the end
    serving    turns
    nursing    the nursery, and children that start and die
    reading    this one
"""

from __future__ import annotations

import os
import select
import time

from mpworker.ipc import codec, json
from mpworker.ipc._native import RECORD_HEADER_BYTES
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import DONE, Record
from mpworker.ipc.ring import RingCorrupt
from mpworker.supervisor.children import Child, Children
from mpworker.supervisor.effects import ProtocolViolation
from mpworker.supervisor.fanout import ClientPort
from mpworker.supervisor.places import Places
from mpworker.supervisor.recycling import Recycling
from mpworker.supervisor.registry import DYING, Times
from mpworker.supervisor.watching import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_CHILD_BATCH: Final = 64


class World(Children, ClientPort):
    """Everything the scheduler can act on: the children and the client."""

    def __init__(self, config: dict[str, Any], fds: list[int], channel: Channel) -> None:
        Children.__init__(self, config, fds)
        ClientPort.__init__(self, channel, config["child"]["max_payload_bytes"], self.blocks)


class Reading:
    """The world and its scheduler, and what children tell the one of the other.

    Args:
        config: What the client sent.
        channel: The channel to the only client; None where clients come and go.
        fds: What the nursery needs: its configuration, and the arenas.
    """

    def __init__(self, config: dict[str, Any], channel: Channel | None, fds: list[int]) -> None:
        self._ring_records: int = config["child_ring_bytes"] // RECORD_HEADER_BYTES
        self.world = self._make_world(config, channel, fds)
        recycling: dict[str, Any] = config["recycling"]
        make = self._kind_of_scheduler(bool(recycling))
        folder = os.environ.get("MPWORKER_RECORD")
        if folder:
            from mpworker.supervisor.recording import recorded_in

            make = recorded_in(folder, make, config["slots"])
        self.scheduler: Places = make(
            self.world,
            **recycling,
            times=Times(**{name: config[name] for name in Times.__slots__}),
            uniform=_uniform,
        )
        self.scheduler.watcher = self.watch = self._make_watch(config["log_level"])
        self._epoll = select.epoll()
        self._handlers: dict[int, Any] = {}

    # What there is of where there is one client; a supervisor of several has its own.

    def _make_world(self, config: dict[str, Any], channel: Channel | None, fds: list[int]) -> World:
        assert channel is not None
        return World(config, fds, channel)

    def _kind_of_scheduler(self, recycles: bool) -> Any:
        return Recycling if recycles else Places

    def _make_watch(self, level: int) -> Watch:
        return Watch(self.world, level)

    def _watch(self, fd: int, handler: Any) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def _watch_bell(self, channel: Channel) -> None:
        # Level-triggered: a byte that is still there keeps the loop from sleep, whatever makes an edge (before Linux
        # 5.14 a write to a pipe that is not empty makes none). Drained as soon as epoll tells of it, and so before the
        # loop arms and looks again, as bell.h asks.
        self._watch(channel.fd, channel.bell.drain)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def read_child(self, child: Child, whole: bool = False) -> int:
        """Take in a child's answers, a batch or the whole ring; how many."""
        batch: list[Record] = []
        found = 0
        try:
            while count := child.pop(batch, _CHILD_BATCH):
                found += count
                self._answers(child, batch)
                if not whole or found > self._ring_records:
                    break  # a child that never stops pushing is no reason to stay
                batch.clear()
        except (RingCorrupt, ProtocolViolation):
            # Found once: a ring that stays corrupt must not keep the loop from epoll, and so from hearing of the death.
            found = int(child.seat.state < DYING)
            self.scheduler.kill(child.seat, "corrupt", time.monotonic())
            return found
        if found:
            child.ring_room()
        return found

    def _answers(self, child: Child, batch: list[Record]) -> None:
        well, at, count = self.scheduler.well, 0, len(batch)
        while at < count:
            at = well(child.seat, batch, at)
            if at < count:
                self._answer(child, *batch[at])
                at += 1

    def _answer(self, child: Child, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        scheduler, seat = self.scheduler, child.seat
        if flags & codec.FRAGMENTED:
            data = child.assembler.finish(flags, data)
        if flags & codec.ARENA:
            data = self.world.result(child, c & 0xFF, b, data)
        if kind == DONE:
            scheduler.done(seat, c & 0xFF, b, flags & codec.LOW, c >> 8, data, bool(flags & codec.FINAL), a)
        elif kind == codec.ITEMS:
            last, final = bool(flags & codec.LAST), bool(flags & codec.FINAL)
            start, stop = a & 0xFFFFFFFF, a >> 32
            scheduler.items(seat, c & 0xFF, b, start, stop, flags & codec.LOW, last, c >> 8, data, final)
        elif kind == codec.AFTER:
            scheduler.asked_for_pause(seat, c & 0xFF, b, a / 1e6)
        elif kind == codec.BEGUN:
            scheduler.begun(seat, c, b, a / 1e9)
        elif kind == codec.FRAGMENT:
            child.assembler.add(flags, data)
        else:
            self._said(child, kind, a, c, data)

    def _said(self, child: Child, kind: int, a: int, c: int, data: bytes) -> None:
        if kind == codec.WANT:
            self.world.lend(child, a)
        elif kind == codec.FREE:
            self.world.blocks.lending.unused(child.seat.number, a)
        elif kind == codec.SHARE:
            self.world.share_opened(child, a)
        elif kind == codec.UNSHARE:
            self.world.share_closed(child, a)
            if not child.owes:
                self.scheduler.answered(child.seat)
        elif kind == codec.NOTE:
            self._note(child, c, data)
        elif kind == codec.READY:
            self._child_is_ready(child)
        elif kind == codec.REFUSED:
            child.refusal = _refusal(data)
        else:
            raise ProtocolViolation(f"record kind {kind}")

    def _note(self, child: Child, slot: int, data: bytes) -> None:
        try:
            self.watch.middleware_failed(child.seat.offers.get(slot), data)
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolViolation("a NOTE that is no report") from error

    def _child_is_ready(self, child: Child) -> None:
        """A child takes tasks from now on: for the layer that has made it."""
        raise NotImplementedError


def _uniform() -> float:
    """A random number from 0 to 1. Imported late: most pools need none, and every start would wait for it."""
    import random

    return random.random()


def _refusal(data: bytes) -> tuple[str, str]:
    try:
        report = json.loads(data)
        return str(report["why"]), str(report["traceback"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolViolation("a REFUSED that is no report") from error
