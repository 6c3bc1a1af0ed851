"""The event loop: rings, bells, sockets, pidfds and timers in; the scheduler decides; rings out.

Each turn pops what has come, tells the scheduler, lets it dispatch, and pushes what waits. When a turn finds nothing,
the loop arms its bells, looks once more, and sleeps in epoll until a bell, a death or a timer. It never blocks on a
peer: a full ring's records wait in that peer's outbox, and a peer whose ring is corrupt is condemned alone.
"""

from __future__ import annotations

import select
import time

from mpworker.ipc import codec
from mpworker.ipc.channel import Channel
from mpworker.ipc.ring import RingCorrupt
from mpworker.supervisor.nursing import NOW, Nursing
from mpworker.supervisor.registry import READY
from mpworker.supervisor.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

    from mpworker.supervisor.cron import CronDesk

_LOOK_EVERY: Final = 0.002  # seconds; rings that are never empty must not hide a death, which only epoll tells of
_SLEEP_MAX: Final = 86_400.0  # seconds; epoll takes no more than 2**31 ms
_PRECISE: Final = 0.01  # seconds; from here on it matters that epoll counts in ms, and `select` in us
_SELECT_MAX: Final = 1024  # numbers of descriptors that `select` can take
_BUSY: Final = 8  # a turn that found more is followed by another before any thought of sleep


class Serving(Nursing):
    """A supervisor, whoever its clients are.

    Args:
        config: What the children are to be, and how many.
        channel: The channel to the only client; None where clients come and go.
        fds: What the nursery needs: its configuration, and the arenas.

    Attributes:
        sessions: The clients that may say something.
        crons: The recurring tasks of all clients.
    """

    def __init__(self, config: dict[str, Any], channel: Channel | None, fds: list[int]) -> None:
        super().__init__(config, channel, fds)
        self.sessions: dict[Session, None] = {}
        self.crons: list[CronDesk] = []
        self._turned_at = 0.0
        self._cores: int = config["usable_cores"]
        self._exit_grace: float = config["grace"]
        self.world.on_dismissed = self._place_vacated

    # ------------------------------------------------------------ the loop

    def serve_until_the_end(self) -> None:
        """Take turns until there is to be no more."""
        self._start_nursery()
        look_at = 0.0
        while self._stopping != NOW:
            if self._turn() > _BUSY and self._turned_at < look_at:
                continue
            # Little is going on, so sleep may be near: arm, and look once more for what was published before its
            # peer could see the armed bell (ipc/bell.h).
            self._let_rest()
            channels = [*(session.port.channel for session in self.sessions)]
            channels += [child.channel for child in self.world.active]
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
                for cron in self.crons:
                    cron.look(now)
            for bell in bells:
                bell.disarm()

    def _let_rest(self) -> None:
        """Look no longer at those that have nothing to say."""
        self.world.let_rest()

    def _finds_more(self, channels: list[Channel]) -> bool:
        """Has anything come since the last turn, or has that left something to do?

        A look at the rings is all that it takes where nothing is left and children are busy on all cores: a turn that
        finds nothing would be a third of what it costs to be woken for one answer. Where a core is free that turn is as
        good as a short spin, and the answer to a short task often comes while it lasts.
        """
        world, scheduler = self.world, self.scheduler
        left = world.backlog or scheduler.is_overtaken or self._stopping or scheduler.busy < self._cores
        if left or any(session.has_left() for session in self.sessions):
            return self._turn() > 0
        try:
            return any(channel.inbound.readable() for channel in channels)
        except RingCorrupt:
            return self._turn() > 0  # which condemns whose it is

    def _turn(self) -> int:
        """Take in what has come and act on it; how many things that were."""
        world, scheduler = self.world, self.scheduler
        found = 0
        for session in tuple(self.sessions):
            found += session.read()
        for child in world.active:
            found += self.read_child(child)
        now = self._turned_at = time.monotonic()
        at = scheduler.next_timer()
        if at is not None and now >= at:
            found += 1
            self._timer(now)
        self._before_offers()
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
        for session in self._told_sessions():
            session.end_turn(now)
        if world.blocks.shares.unneeded:
            self._close_unneeded(now)
        if world.backlog:
            world.flush()
        while world.corrupt:
            scheduler.kill(world.corrupt.pop().seat, "corrupt", now)
        for session in self._told_sessions():
            session.ring()
        self._look_at_the_end(now)
        if world.told:
            found += world.ring_told()  # an answer of one whose bell is not armed is not to be slept through
        return found

    def _before_offers(self) -> None:
        """The slots of what has been answered are about to be used anew."""

    def _told_sessions(self) -> Iterable[Session]:
        """Those that this turn may have told something."""
        return tuple(self.sessions)

    def _look_at_the_end(self, now: float) -> None:
        """Is what was asked to stop over?"""
        raise NotImplementedError

    def operated(self, message: dict[str, Any]) -> dict[str, Any]:
        """What a service tells its operator, or does for one.

        Raises:
            ValueError: This is none.
        """
        raise ValueError("what an operator asks is asked of a supervisor that has one client")

    @property
    def children_allowed(self) -> int:
        """How many there may be: of one that has one client that is the client's to say."""
        return codec.CHILDREN_MAX

    def begin(self, what: str) -> int:
        """Begin with what takes its time: "reload" the configuration, or take "stacks".

        Returns:
            The number by which `outcome` is asked.

        Raises:
            ValueError: This is none of a service.
        """
        raise ValueError(f"{what} is asked of a supervisor that has one client")

    def outcome(self, what: str, number: int) -> dict[str, Any] | None:
        """What came of it; None as long as it is not over, or was not begun."""
        return None

    def stop(self, session: Session, now: bool) -> None:
        """A client has asked for the end, of itself or of all: at once, or when its tasks have ended."""
        raise NotImplementedError

    def condemned(self, session: Session) -> None:
        """What a client has sent cannot be read, or means nothing."""
        raise NotImplementedError

    def _close_unneeded(self, now: float) -> None:
        for seat in self.world.close_unneeded():
            self.scheduler.asked(seat, now)

    def _timer(self, now: float) -> None:
        self._nursery_speaks()  # of deaths that would otherwise be taken for late
        for child in self.world.active:
            self.read_child(child, whole=True)  # what is in a ring was answered before we came to look
        self.scheduler.timer(now)
        self._remove_unkillable()

    def _times(self) -> list[float | None]:
        """When something is to be done next, if anything is."""
        times = [self.scheduler.next_timer(), self._spawn_at, self._nursery_lease.next_at]
        return times + [cron.look_at for cron in self.crons]

    def _timeout(self) -> float:
        times = [at for at in self._times() if at is not None]
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

    # ------------------------------------------------------------ the end

    def _children_are_gone(self, now: float) -> bool:
        """Have all children exited, which were asked to when this was called first, or is their time over?"""
        children = self.world.by_number.values()
        if self._exit_at is None:
            self._exit_at = now + self._exit_grace
            for child in children:
                if child.seat.state == READY:
                    self.world.tell(child, codec.EXIT, 0, 0, 0, 0, b"")
                    child.stopping = True
        # Reaped or not: whoever reaps may be frozen, and at the end all is reaped without it.
        return not any(child.stopping and not child.ended for child in children) or now >= self._exit_at

    def close(self) -> None:
        """Kill what is left and leave nothing behind."""
        self.world.end()
