"""Children that start and die: the nursery that forks and reaps them, and what is done where that fails."""

from __future__ import annotations

import os
import time

from mpworker.ipc import frames
from mpworker.ipc.channel import Channel
from mpworker.ipc.levels import DEBUG, INFO, WARNING
from mpworker.ipc.limits import explained
from mpworker.ipc.signals import signal
from mpworker.supervisor.children import Child
from mpworker.supervisor.leases import Leases
from mpworker.supervisor.reading import Reading
from mpworker.supervisor.registry import DYING, READY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_START_FAILURES_MAX: Final = 3
_START_KILLS_MAX: Final = 8  # by somebody else: that says nothing of how a child starts
_KILLS: Final = (signal.SIGKILL, signal.SIGTERM)
_START_BACKOFF: Final = 0.025  # seconds until the next try, doubled by each failure
_START_BACKOFF_MAX: Final = 5.0
_NURSERY_SILENT_MAX: Final = 5.0  # seconds that it may owe a word about an order or a death
DRAIN, NOW = "drain", "now"


class Nursing(Reading):
    """As many children as are wanted, as long as more may begin.

    Args:
        config: What the client sent.
        channel: The channel to the only client; None where clients come and go.
        fds: What the nursery needs: its configuration, and the arenas.
    """

    def __init__(self, config: dict[str, Any], channel: Channel | None, fds: list[int]) -> None:
        super().__init__(config, channel, fds)
        self._children_wanted: int = config["n"]
        self._overlap: int = config["overlap"]  # children that may exit while others have their places already
        self._children_max: int = config["n"] + self._overlap  # that there are descriptors for
        self._start_timeout: float = config["start_timeout"]
        self._start_failures = self._start_kills = 0
        self._stopping = ""
        self._exit_at: float | None = None
        self._spawn_at: float | None = None  # no child is made before, if there was a failure
        self._nursery_lease = Leases(self._start_timeout)  # looked at while it owes us a word
        self._nursery_heard_at = 0.0
        self._nursery_late = False  # and so killed
        self._nursery_served = False  # a child of it was ready
        self._nursery_error = ""  # what it could not have

    # ------------------------------------------------------------ how many there are

    @property
    def children_wanted(self) -> int:
        """How many there are to be."""
        return self._children_wanted

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

    def _ending(self) -> bool:
        """Will no further task begin? Until then a drain replaces the children that die."""
        return self._stopping == NOW or self._exit_at is not None

    # ------------------------------------------------------------ the nursery

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
            self.world.spawned(child, report["pid"], fds[0])
            self.watch.log(DEBUG, "child_started", pid=child.pid)
            try:
                self._watch_bell(child.channel)
                self._watch(child.pidfd, lambda: self._child_ended(child))
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

    # ------------------------------------------------------------ children

    def _child_is_ready(self, child: Child) -> None:
        self.scheduler.child_ready(child.seat)
        if child.seat.state == READY:
            self.watch.log(INFO, "child_ready", pid=child.pid)
            self._start_failures = self._start_kills = 0
            self._nursery_served = True
            child.ready = True

    def _unwatched(self, number: int, error: OSError) -> None:
        """A child was forked, and nothing is left to see its death by: another is made later."""
        child = self.world.by_number.get(number)
        if child is not None:
            child.refusal = (str(explained(error, "no child can be watched")), "")
            self.scheduler.child_ended(child.seat)
        self.world.kill_unwatched(number)

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
        death = self.world.death(child, status, cause)
        if child.pid:  # else the nursery died before it could say that it has forked it, or had not
            self.read_child(child, whole=True)
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

    # ------------------------------------------------------------ starts that fail

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
        """There will be no children: for the layer that knows who must be told."""
        raise NotImplementedError
