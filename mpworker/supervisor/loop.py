"""The event loop: rings, bells, sockets, pidfds and timers in; the scheduler decides; rings out.

Each turn pops what has come, tells the scheduler, lets it dispatch, and pushes what waits. When a turn finds nothing,
the loop arms its bells, looks once more, and sleeps in epoll until a bell, a death or a timer. It never blocks on a
peer: a full ring's records wait in that peer's outbox, and a peer whose ring is corrupt is condemned alone.
"""

from __future__ import annotations

import select
import time

from mpworker.ipc import codec, frames, json
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import SUBMIT, Record
from mpworker.ipc.ring import RingCorrupt
from mpworker.supervisor.describe import Describer
from mpworker.supervisor.latency import Latency
from mpworker.supervisor.nursing import DRAIN, NOW, Nursing
from mpworker.supervisor.registry import READY, Task
from mpworker.supervisor.requests import Requests, counts_at_the_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.supervisor.cron import CronDesk

_CLIENT_BATCH: Final = 256
_LOOK_EVERY: Final = 0.002  # seconds; rings that are never empty must not hide a death, which only epoll tells of
_SLEEP_MAX: Final = 86_400.0  # seconds; epoll takes no more than 2**31 ms
_PRECISE: Final = 0.01  # seconds; from here on it matters that epoll counts in ms, and `select` in us
_SELECT_MAX: Final = 1024  # numbers of descriptors that `select` can take
_BUSY: Final = 8  # a turn that found more is followed by another before any thought of sleep


class Loop(Nursing):
    """One supervisor.

    Args:
        config: What the client sent.
        client: The socket to the client; its end is the client's.
        channel: The channel to the client.
        fds: What the nursery needs: its configuration, and the arenas.
        client_pidfd: Readable when the client process is dead.

    Attributes:
        submitted: What a task is handed to that has nothing more to say than its options.
        client_listens: It is to be told of runs of recurring tasks.
    """

    def __init__(
        self, config: dict[str, Any], client: frames.Frames, channel: Channel, fds: list[int], client_pidfd: int
    ) -> None:
        super().__init__(config, channel, fds)
        self._client = client
        self._client_pidfd = client_pidfd
        self._client_batch: list[Record] = []
        self.submitted = self.scheduler.submitted
        self._turned_at = 0.0
        self._cores: int = config["usable_cores"]
        self._exit_grace: float = config["grace"]
        self.requests = Requests(self)
        self.world.on_dismissed = self._place_vacated
        self.cron: CronDesk | None = None  # not before somebody asks for it
        self.client_listens = False
        self.describer = Describer(self.scheduler, self.world.ids)
        self.latency = Latency()

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Serve until the client is gone or has stopped us."""
        self._watch_bell(self.world.channel)
        self._watch(self._client.fileno(), self._client_gone)
        self._watch(self._client_pidfd, self._client_gone)
        self._start_nursery()
        look_at = 0.0
        while self._stopping != NOW:
            if self._turn() > _BUSY and self._turned_at < look_at:
                continue
            # Little is going on, so sleep may be near: arm, and look once more for what was published before its
            # peer could see the armed bell (ipc/bell.h).
            self.world.let_rest()
            channels = [self.world.channel, *(child.channel for child in self.world.active)]
            bells = [channel.bell for channel in channels]  # a child that dies has none any more
            for bell in bells:
                bell.arm()
            idle = not self._finds_more(channels)
            if (idle or self._turned_at >= look_at) and self._stopping != NOW:
                for fd, _ in self._sleep(self._timeout() if idle else 0.0):
                    handler = self._handlers.get(fd)
                    if handler is not None:
                        handler()
                now = time.monotonic()
                look_at = now + _LOOK_EVERY
                if self.cron is not None:
                    self.cron.look(now)
            for bell in bells:
                bell.disarm()
        self._say_farewell()

    def _finds_more(self, channels: list[Channel]) -> bool:
        """Has anything come since the last turn, or has that left something to do?

        A look at the rings is all that it takes where nothing is left and children are busy on all cores: a turn that
        finds nothing would be a third of what it costs to be woken for one answer. Where a core is free that turn is as
        good as a short spin, and the answer to a short task often comes while it lasts.
        """
        world, scheduler = self.world, self.scheduler
        left = world.outbox.waiting or world.backlog or world.blocks.freed or world.blocks.shares.unneeded
        if left or scheduler.is_overtaken or self._stopping or scheduler.busy < self._cores:
            return self._turn() > 0
        try:
            return any(channel.inbound.readable() for channel in channels)
        except RingCorrupt:
            return self._turn() > 0  # which condemns whose it is

    def _turn(self) -> int:
        """Take in what has come and act on it; how many things that were."""
        world, scheduler = self.world, self.scheduler
        found = self._read_client()
        for child in world.active:
            found += self.read_child(child)
        now = self._turned_at = time.monotonic()
        at = scheduler.next_timer()
        if at is not None and now >= at:
            found += 1
            self._timer(now)
        if self._spawn_at is not None and now >= self._spawn_at:
            found += 1
            self._spawn_at = None
            self._start_missing()
        at = self._nursery_lease.next_at
        if at is not None and now >= at:
            found += 1
            self._nursery_speaks()
            self._look_at_nursery(now)
        scheduler.dispatch(now)
        if world.ended_ns:
            self.latency.take(world.ended_ns, int(now * 1e9))
            world.ended_ns.clear()
        self.requests.answer_later_ones()
        if world.blocks.shares.unneeded:
            self._close_unneeded(now)
        if world.outbox.waiting or world.blocks.freed:
            world.flush_client()
        if world.backlog:
            world.flush()
        while world.corrupt:
            scheduler.kill(world.corrupt.pop().seat, "corrupt", now)
        if world.sent:
            world.sent = False
            world.channel.peer_bell.ring()
        if self._stopping == DRAIN:
            self._drain(now)
        if world.told:
            found += world.ring_told()  # an answer of one whose bell is not armed is not to be slept through
        return found

    def _close_unneeded(self, now: float) -> None:
        for seat in self.world.close_unneeded():
            self.scheduler.asked(seat, now)

    def _timer(self, now: float) -> None:
        self._nursery_speaks()  # of deaths that would otherwise be taken for late
        for child in self.world.active:
            self.read_child(child, whole=True)  # what is in a ring was answered before we came to look
        self.scheduler.timer(now)
        self._remove_unkillable()

    def _timeout(self) -> float:
        cron_at = self.cron.look_at if self.cron is not None else None
        own = (self._exit_at, self._spawn_at, self._nursery_lease.next_at, cron_at)
        times = [at for at in (self.scheduler.next_timer(), *own) if at is not None]
        return max(0.0, min(min(times) - time.monotonic(), _SLEEP_MAX)) if times else -1.0

    def _sleep(self, seconds: float) -> list[tuple[int, int]]:
        """Wait for an event, so long at most; negative for as long as it takes."""
        if 0.0 < seconds < _PRECISE and self._epoll.fileno() < _SELECT_MAX:
            select.select([self._epoll], [], [], seconds)
            seconds = 0.0
        return self._epoll.poll(seconds)

    def _place_vacated(self) -> None:
        """A child exits, and another one is made: soon and not now, for the scheduler is in the middle of it."""
        if self._spawn_at is None:
            self._spawn_at = self._turned_at

    # ------------------------------------------------------------ the client

    def _client_gone(self) -> None:
        self._stopping = NOW

    def _read_client(self) -> int:
        batch = self._client_batch
        count = 1
        try:
            count = self.world.channel.inbound.pop(batch, _CLIENT_BATCH)
            if not count:
                return 0
            world = self.world
            world.channel.peer_bell.ring_room()
            world.now_ns = time.monotonic_ns()
            functions, options, now_ns = world.functions, world.options, world.now_ns
            tasks: list[Task] = []
            for kind, flags, a, b, c, data in batch:
                if kind == SUBMIT and not flags:  # nearly all of many: as `_take_in` does, without two calls for each
                    tasks.append(Task(a, functions[b] if b else None, options[c], data, 0, 0, now_ns))
                    continue
                if tasks:
                    self.scheduler.submitted_all(tasks)
                    tasks = []
                self._take_in(kind, flags, a, b, c, data)
            self.scheduler.submitted_all(tasks)
        except (RingCorrupt, KeyError, ValueError, TypeError):
            # The client's memory is corrupt: it gets no service, and we have no other.
            self._stopping = NOW
        batch.clear()
        return count

    def _take_in(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        world, scheduler = self.world, self.scheduler
        if flags & codec.FRAGMENTED:
            data = world.whole((kind, flags, a, b, c, data))
        if flags & codec.ARENA:
            data = world.blocks.held(data)
        if kind == codec.SUBMIT and not flags & codec.DETAILED:
            self.submitted(world.task(flags & codec.ARENA, a, b, c, data))
        elif kind == codec.CHUNK and not flags & codec.DETAILED:
            self.submitted(world.chunk(flags, a, b, c, data))
        elif kind in (codec.SUBMIT, codec.CHUNK):
            scheduler.submitted_with_details(world.detailed(kind, flags, a, b, c, data))
        elif kind == codec.OPTIONS:
            scheduler.options_known(world.note_options(a, data))
        elif kind == codec.REQUEST:
            self.requests.take(a, data)
        elif kind == codec.FREE:
            world.forget_block(a, bool(b))
        elif kind == codec.SHARE:
            world.blocks.shares.place((a, b, c))
        elif kind == codec.UNSHARE:
            world.blocks.shares.let_go(a)
        else:
            forgotten = world.note(kind, flags, a, data)
            if forgotten is not None:
                world.forget(forgotten)

    def tell_of_tasks(self, on: bool) -> None:
        """The client watches from now on, or no longer."""
        self.watch.tell(on, self.scheduler)
        self.submitted = self.scheduler.submitted_watched if on else self.scheduler.submitted

    # ------------------------------------------------------------ the end

    def stop(self, now: bool) -> None:
        """End at once, or when all that was accepted has ended."""
        self._stopping = NOW if now else DRAIN
        if self.cron is not None:
            self.cron.close(waiting=True)
        self.scheduler.close()

    def _drain(self, now: float) -> None:
        """All done? Then the children exit, and then we."""
        children = self.world.by_number.values()
        if self._exit_at is None:
            if self.scheduler.unfinished() or self.world.splits or self.world.outbox.waiting:
                return
            if self.cron is not None and self.cron.unfinished():
                return
            self._exit_at = now + self._exit_grace
            for child in children:
                if child.seat.state == READY:
                    self.world.tell(child, codec.EXIT, 0, 0, 0, 0, b"")
                    child.stopping = True
        # Reaped or not: whoever reaps may be frozen, and at the end all is reaped without it.
        if not any(child.stopping and not child.ended for child in children) or now >= self._exit_at:
            self._stopping = NOW

    def _say_farewell(self) -> None:
        """Nobody can be asked any more: say what is asked most often, if the client has room for it."""
        try:
            self.world.flush_client()
            self.world.send(codec.FAREWELL, 0, 0, 0, 0, json.dumps(counts_at_the_end(self)).encode())
        except RingCorrupt:
            pass  # it is told nothing

    def close(self) -> None:
        """Kill what is left and leave nothing behind."""
        self.world.end()
