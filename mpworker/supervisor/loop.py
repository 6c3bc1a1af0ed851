"""The event loop: rings, bells, sockets, pidfds and timers in; the scheduler decides; rings out.

Each turn pops what has come, tells the scheduler, lets it dispatch, and pushes what waits. When a turn finds nothing,
the loop arms its bells, looks once more, and sleeps in epoll until a bell, a death or a timer. It never blocks on a
peer: a full ring's records wait in that peer's outbox, and a peer whose ring is corrupt is condemned alone.
"""

import json
import os
import select
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from mpworker.ipc import codec, frames
from mpworker.ipc._native import RECORD_HEADER_BYTES
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import DONE, SUBMIT, Record
from mpworker.ipc.levels import DEBUG, INFO, WARNING
from mpworker.ipc.limits import explained
from mpworker.ipc.ring import RingCorrupt
from mpworker.supervisor.children import Child, Children
from mpworker.supervisor.describe import Describer
from mpworker.supervisor.effects import ProtocolViolation
from mpworker.supervisor.fanout import ClientPort
from mpworker.supervisor.latency import Latency
from mpworker.supervisor.leases import Leases
from mpworker.supervisor.places import Places
from mpworker.supervisor.recycling import Recycling
from mpworker.supervisor.registry import DYING, READY
from mpworker.supervisor.requests import Requests
from mpworker.supervisor.watching import Watch

if TYPE_CHECKING:
    from mpworker.supervisor.cron import CronDesk

_CLIENT_BATCH = 256
_CHILD_BATCH = 64
_LOOK_EVERY = 0.002  # seconds; rings that are never empty must not hide a death, which only epoll tells of
_BUSY = 8  # a turn that found more is followed by another before any thought of sleep
_START_FAILURES_MAX = 3
_START_KILLS_MAX = 8  # by somebody else: that says nothing of how a child starts
_KILLS = (signal.SIGKILL, signal.SIGTERM)
_START_BACKOFF, _START_BACKOFF_MAX = 0.025, 5.0  # seconds until the next try, doubled by each failure
_NURSERY_SILENT_MAX = 5.0  # seconds that it may owe a word about an order or a death
_DRAIN, _NOW = "drain", "now"


class World(Children, ClientPort):
    """Everything the scheduler can act on: the children and the client."""

    def __init__(self, config: dict[str, Any], blob_fd: int, channel: Channel) -> None:
        Children.__init__(self, config, blob_fd)
        ClientPort.__init__(self, channel, config["child"]["max_payload_bytes"])


class Loop:
    """One supervisor.

    Args:
        config: What the client sent.
        client: The socket to the client; its end is the client's.
        channel: The channel to the client.
        blob_fd: The nursery's configuration.
        client_pidfd: Readable when the client process is dead.
    """

    def __init__(
        self, config: dict[str, Any], client: frames.Frames, channel: Channel, blob_fd: int, client_pidfd: int
    ) -> None:
        self._client = client
        self._client_pidfd = client_pidfd
        self._children_wanted: int = config["n"]
        recycling: dict[str, Any] = config["recycling"]
        self._overlap: int = config["overlap"]  # children that may exit while others have their places already
        self._children_max: int = config["n"] + self._overlap  # that there are descriptors for
        self._ring_records: int = config["child_ring_bytes"] // RECORD_HEADER_BYTES
        self.world = World(config, blob_fd, channel)
        make: Any = Recycling if recycling else Places
        folder = os.environ.get("MPWORKER_RECORD")
        if folder:
            from mpworker.supervisor.recording import recorded_in

            make = recorded_in(folder, make, config["slots"])
        self.scheduler: Places = make(
            self.world,
            **recycling,
            lease_ttl=config["lease_ttl"],
            grace=config["grace"],
            start_timeout=config["start_timeout"],
            kill_timeout=config["kill_timeout"],
            uniform=_uniform,
        )
        self.scheduler.watcher = self.watch = Watch(self.world, config["log_level"])
        self._submitted = self.scheduler.submitted
        self._exit_grace: float = config["grace"]
        self._start_timeout: float = config["start_timeout"]
        self._start_failures = self._start_kills = 0
        self._stopping = ""
        self._turned_at = 0.0
        self._exit_at: float | None = None
        self._spawn_at: float | None = None  # no child is made before, if there was a failure
        self._nursery_lease = Leases(self._start_timeout)  # looked at while it owes us a word
        self._nursery_heard_at = 0.0
        self._nursery_late = False  # and so killed
        self._nursery_served = False  # a child of it was ready
        self._nursery_error = ""  # what it could not have
        self.requests = Requests(self)
        self.world.on_dismissed = self._place_vacated
        self.cron: CronDesk | None = None  # not before somebody asks for it
        self.describer = Describer(self.scheduler)
        self.latency = Latency()
        self._epoll = select.epoll()
        self._handlers: dict[int, Any] = {}
        self._client_batch: list[Record] = []

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Serve until the client is gone or has stopped us."""
        self._watch_bell(self.world.channel)
        self._watch(self._client.fileno(), self._client_gone)
        self._watch(self._client_pidfd, self._client_gone)
        self._start_nursery()
        look_at = 0.0
        while self._stopping != _NOW:
            if self._turn() > _BUSY and self._turned_at < look_at:
                continue
            # Little is going on, so sleep may be near: arm, and look once more for what was published before its
            # peer could see the armed bell (ipc/bell.h).
            bells = [self.world.channel.bell, *(child.channel.bell for child in self.world.everyone)]
            for bell in bells:
                bell.arm()
            idle = not self._turn()
            if (idle or self._turned_at >= look_at) and self._stopping != _NOW:
                for fd, _ in self._epoll.poll(self._timeout() if idle else 0.0):
                    handler = self._handlers.get(fd)
                    if handler is not None:
                        handler()
                now = time.monotonic()
                look_at = now + _LOOK_EVERY
                if self.cron is not None:
                    self.cron.look(now)
            for bell in bells:
                bell.disarm()

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

    def _turn(self) -> int:
        """Take in what has come and act on it; how many things that were."""
        world, scheduler = self.world, self.scheduler
        found = self._read_client()
        for child in world.everyone:
            found += self.read_child(child)
        now = self._turned_at = time.monotonic()
        at = scheduler.next_timer()
        if at is not None and now >= at:
            found += 1
            self._nursery_speaks()  # of deaths that would otherwise be taken for late
            for child in world.everyone:
                self.read_child(child, whole=True)  # what is in a ring was answered before we came to look
            scheduler.timer(now)
            self._remove_unkillable()
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
        if world.outbox.waiting:
            world.flush_client()
        if world.backlog:
            world.flush()
        while world.corrupt:
            scheduler.kill(world.corrupt.pop().seat, "corrupt", now)
        if world.sent:
            world.sent = False
            world.channel.peer_bell.ring()
        if self._stopping == _DRAIN:
            self._drain(now)
        if world.told:
            world.ring_told()
        return found

    def _timeout(self) -> float:
        cron_at = self.cron.look_at if self.cron is not None else None
        own = (self._exit_at, self._spawn_at, self._nursery_lease.next_at, cron_at)
        times = [at for at in (self.scheduler.next_timer(), *own) if at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else -1.0

    # ------------------------------------------------------------ the client

    def _client_gone(self) -> None:
        self._stopping = _NOW

    def _read_client(self) -> int:
        batch = self._client_batch
        count = 1
        try:
            count = self.world.channel.inbound.pop(batch, _CLIENT_BATCH)
            if not count:
                return 0
            world, scheduler = self.world, self.scheduler
            world.channel.peer_bell.ring_room()
            world.now_ns = time.monotonic_ns()
            submitted = self._submitted
            for kind, flags, a, b, c, data in batch:
                if kind == SUBMIT and not flags:  # nearly all of many
                    submitted(world.task(0, a, b, c, data))
                    continue
                if flags & codec.FRAGMENTED:
                    data = world.whole((kind, flags, a, b, c, data))  # noqa: PLW2901
                if kind == codec.SUBMIT and not flags & codec.DETAILED:
                    submitted(world.task(0, a, b, c, data))
                elif kind == codec.CHUNK and not flags & codec.DETAILED:
                    submitted(world.chunk(flags, a, b, c, data))
                elif kind in (codec.SUBMIT, codec.CHUNK):
                    scheduler.submitted_with_details(world.detailed(kind, flags, a, b, c, data))
                elif kind == codec.OPTIONS:
                    scheduler.options_known(world.note_options(a, data))
                elif kind == codec.REQUEST:
                    self.requests.take(a, data)
                    submitted = self._submitted
                else:
                    forgotten = world.note(kind, flags, a, data)
                    if forgotten is not None:
                        world.forget(forgotten)
        except (RingCorrupt, KeyError, ValueError, TypeError):
            # The client's memory is corrupt: it gets no service, and we have no other.
            self._stopping = _NOW
        batch.clear()
        return count

    def tell_of_tasks(self, on: bool) -> None:
        """The client watches from now on, or no longer."""
        self.watch.tell(on, self.scheduler)
        self._submitted = self.scheduler.submitted_watched if on else self.scheduler.submitted

    def set_max_workers(self, n: int, descriptors: int) -> int:
        """There are n children from now on; 0, or how many descriptors may be opened if they need more."""
        if n + self._overlap > self._children_max:
            hard = self.world.raise_limit(descriptors)
            if hard:
                return hard
            self._children_max = n + self._overlap
        self._children_wanted = n
        self.scheduler.resize(n)
        self._spawn_missing()
        return 0

    def _place_vacated(self) -> None:
        """A child exits, and another one is made: soon and not now, for the scheduler is in the middle of it."""
        if self._spawn_at is None:
            self._spawn_at = self._turned_at

    # ------------------------------------------------------------ children

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
        scheduler, seat = self.scheduler, child.seat
        for kind, flags, a, b, c, data in batch:
            if kind == DONE and not flags:  # nearly all of many: it is well, and whole
                scheduler.done(seat, c & 0xFF, b, 0, c >> 8, data, False, a)
                continue
            if flags & codec.FRAGMENTED:
                data = child.assembler.finish(flags, data)  # noqa: PLW2901
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
            elif kind == codec.NOTE:
                self._note(child, c, data)
            elif kind == codec.READY:
                self._child_is_ready(child)
            elif kind == codec.REFUSED:
                child.refusal = _refusal(data)
            else:
                raise ProtocolViolation(f"record kind {kind}")

    def _child_is_ready(self, child: Child) -> None:
        self.scheduler.child_ready(child.seat)
        if child.seat.state == READY:
            if child.pid:  # else its word has come before that of the nursery, which tells who it is
                self.watch.log(INFO, "child_ready", pid=child.pid)
            self._start_failures = self._start_kills = 0
            self._nursery_served = True
            child.ready = True

    def _note(self, child: Child, slot: int, data: bytes) -> None:
        try:
            self.watch.middleware_failed(child.seat.offers.get(slot), data)
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolViolation("a NOTE that is no report") from error

    def _start_nursery(self) -> None:
        if self._ending():
            return
        self._nursery_late = self._nursery_served = False
        self._nursery_error = ""
        self._nursery_lease = Leases(self._start_timeout)
        try:
            nursery = self.world.start_nursery()
            self._watch(nursery.fileno(), self._nursery_speaks)
        except OSError as error:
            self.world.nursery_lost()
            self._start_failed(str(explained(error, "no process that forks the children can be started")))
        else:
            self._nursery_owes(time.monotonic())

    def _nursery_owes(self, now: float) -> None:
        """The nursery has a word to say: that it is ready, what became of an order, or that it has reaped a child."""
        if self._nursery_lease.next_at is None:
            self._nursery_lease.watch(now)

    def _look_at_nursery(self, now: float) -> None:
        """A nursery that owes a word and is silent for too long is taken for frozen: its death settles the rest."""
        if not self.world.nursery_pid:
            self._nursery_lease.next_at = None  # there is none, until it is tried again
            return
        owing = not self.world.nursery_ready or any(not child.pid or child.ended for child in self.world.everyone)
        self._nursery_lease.begin_look(now, owing)
        if owing and self._nursery_lease.expired(now, self._nursery_heard_at):
            if not self._nursery_late:  # it may take more than one look until it is gone
                self.watch.log(WARNING, "nursery_killed", pid=self.world.nursery_pid, reason="silent")
            self._nursery_late = True
            os.kill(self.world.nursery_pid, signal.SIGKILL)  # ours to reap, so the number is its own

    def _nursery_speaks(self) -> None:
        nursery = self.world.nursery
        if nursery is None:
            return
        try:
            while True:
                try:
                    frame = nursery.receive(wait=False)
                except frames.DescriptorsLost as lost:
                    self._unwatched(lost.message["id"], lost)
                    continue
                if frame is None:
                    self._nursery_lost()
                    return
                self._nursery_report(frame[0], frame[1])
        except BlockingIOError:
            return
        except (ConnectionError, ValueError):
            self._nursery_lost()

    def _nursery_report(self, report: dict[str, Any], fds: list[int]) -> None:
        self._nursery_heard_at = time.monotonic()
        op = report["op"]
        child = self.world.by_number.get(report.get("id", -1))
        if op == "ready":
            self.world.nursery_ready = True
            self._nursery_lease = Leases(_NURSERY_SILENT_MAX)
            self._spawn_missing()
        elif op == "failed":
            self._broken(report["why"], report["traceback"])
        elif op == "spawned":
            if child is None:
                os.close(fds[0])
                return
            child.seat.pid = report["pid"]
            child.pidfd = fds[0]
            self.watch.log(DEBUG, "child_started", pid=child.pid)
            if child.ready:
                self.watch.log(INFO, "child_ready", pid=child.pid)
            try:
                self._watch_bell(child.channel)
                self._watch(child.pidfd, partial(self._child_ended, child))
            except OSError as error:
                self._unwatched(child.seat.number, error)
                return
            if child.seat.state >= DYING:
                child.signal(signal.SIGKILL)  # it was given up before it had a pid
        elif op == "spawn_failed" and child is not None:
            self._remove(child)
            self.scheduler.child_died(child.seat, self.world.death(child, 0))
            self._start_failed(report["error"])
        elif op == "unable":
            self._nursery_error = f": {report['error']}"
        elif op == "died" and child is not None:
            self._child_died(child, report["status"])

    def _unwatched(self, number: int, error: OSError) -> None:
        """A child was forked, and nothing is left to see its death by: another is made later."""
        child = self.world.by_number.get(number)
        if child is not None:
            child.refusal = (str(explained(error, "no child can be watched")), "")
            self.scheduler.child_ended(child.seat)
        self.world.kill_unwatched(number)

    def _start_missing(self) -> None:
        """What failed is tried again."""
        if self.world.nursery is None:
            self._start_nursery()
        else:
            self._spawn_missing()

    def _spawn_missing(self) -> None:
        if self._ending() or not self.world.nursery_ready or self._spawn_at is not None:
            return
        now = time.monotonic()
        while self.scheduler.serving() < self._children_wanted and len(self.world.by_number) < self._children_max:
            try:
                child = self.world.spawn()
            except ConnectionError:
                return  # the nursery's end is told by its socket
            except OSError as error:
                self._start_failed(str(explained(error, "no child can be made")))
                return
            self.scheduler.child_starting(child.seat, now)
            self._nursery_owes(now)

    def _child_ended(self, child: Child) -> None:
        """A child's process is dead. What it held is settled when the nursery, which alone can reap it, says so."""
        if not child.has_ended():
            return  # the event was for another that had the same number
        self._unwatch(child.pidfd)  # it would be readable for ever
        child.ended = True
        self.read_child(child, whole=True)
        self.scheduler.child_ended(child.seat)
        self._nursery_owes(time.monotonic())

    def _child_died(self, child: Child, status: int, cause: str = "") -> None:
        """A child is dead and reaped: read its last answers, then settle what it held."""
        self.read_child(child, whole=True)
        death = self.world.death(child, status, cause)
        self.watch.child_died(child, death, self.scheduler)
        self.scheduler.child_died(child.seat, death)
        self._remove(child)
        failed = not child.ready and not child.seat.vacated
        if failed and not self._ending() and cause not in ("nursery", "unkillable"):
            how = f"signal {death.signal}" if death.signal else f"exit code {death.exit_code}"
            why = " (it took longer than start_timeout)" if child.seat.kill_cause == "start" else ""
            killed = death.signal in _KILLS and death.cause == "signal" and not child.seat.kill_cause
            words = child.refusal or (f"child {child.pid} ended by {how} before it was ready{why}",)
            self._start_failed(*words, killed=killed)
        self._spawn_missing()

    def _remove(self, child: Child) -> None:
        """Forget a child that is dead: the numbers of its descriptors are somebody else's from now on."""
        self._unwatch(child.pidfd)
        self._unwatch(child.channel.fd)
        self.world.remove(child)

    def _remove_unkillable(self) -> None:
        """A child that survives SIGKILL has been settled by the scheduler; replace it."""
        for child in list(self.world.by_number.values()):
            if child.seat.state > DYING:
                self.watch.log(WARNING, "child_unkillable", pid=child.pid)
                self._remove(child)
                self._spawn_missing()

    def _nursery_lost(self) -> None:
        nursery = self.world.nursery
        if nursery is not None:
            self._unwatch(nursery.fileno())
        if self._nursery_served:
            self.watch.log(WARNING, "nursery_lost", children=len(self.world.by_number))
        when = "before a child was ready" if self.world.nursery_ready else "while it imported what to preload"
        for child, status, cause in self.world.nursery_lost():
            self._child_died(child, status, cause)
        if self._nursery_served:
            self._start_nursery()
        elif not self._ending():
            why = " (it took longer than start_timeout)" if self._nursery_late else self._nursery_error
            self._start_failed(f"the process that forks the children ended {when}{why}")

    def _start_failed(self, why: str, traceback: str = "", *, killed: bool = False) -> None:
        """Count a child that never ran; too many in a row, with no other there, end the pool with a clear error."""
        if killed:
            self._start_kills += 1
        else:
            self._start_failures += 1
        starts = self._start_failures + self._start_kills
        self.watch.log(WARNING, "start_failed", starts=starts)
        hopeless = self._start_failures >= _START_FAILURES_MAX or self._start_kills >= _START_KILLS_MAX
        if hopeless and not any(child.seat.state == READY for child in self.world.everyone):
            self._broken(f"{starts} starts in a row failed, the last one so: {why}", traceback)
        else:
            # A power of integers: one of many failures fits no float.
            doublings = min(starts, int(_START_BACKOFF_MAX / _START_BACKOFF))
            self._spawn_at = time.monotonic() + min(_START_BACKOFF_MAX, _START_BACKOFF * 2**doublings)

    def _broken(self, why: str, traceback: str) -> None:
        if self._stopping != _NOW:
            report = {"what": "the children", "why": why, "traceback": traceback}
            self.world.send(codec.BROKEN, 0, 0, 0, 0, json.dumps(report).encode())
            self.world.channel.peer_bell.ring()
            self._stopping = _NOW

    # ------------------------------------------------------------ the end

    def stop(self, now: bool) -> None:
        """End at once, or when all that was accepted has ended."""
        self._stopping = _NOW if now else _DRAIN
        if self.cron is not None:
            self.cron.close(waiting=True)
        self.scheduler.close()

    def _ending(self) -> bool:
        """Will no further task begin? Until then a drain replaces the children that die."""
        return self._stopping == _NOW or self._exit_at is not None

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
            self._stopping = _NOW

    def close(self) -> None:
        """Kill what is left and leave nothing behind."""
        self.world.end()


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
