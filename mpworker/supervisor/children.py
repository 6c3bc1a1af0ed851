"""The children, as the supervisor holds them: channels, claim pages, pidfds and the nursery that forks them."""

from __future__ import annotations

import errno
import os
import time

from mpworker.ipc import codec, frames
from mpworker.ipc._native import Claims
from mpworker.ipc.channel import Channel, close_all, make_channel
from mpworker.ipc.codec import LOW, TASK
from mpworker.ipc.ring import Assembler, Outbox, RingCorrupt
from mpworker.ipc.roll import Roll
from mpworker.ipc.signals import signal
from mpworker.ipc.stacks import STACK_BYTES, StackView
from mpworker.supervisor import spawning
from mpworker.supervisor.burying import bury, ends, kill_and_reap, kill_strays
from mpworker.supervisor.held import Blocks, Held, Lending, of_result
from mpworker.supervisor.memory import anonymous_bytes
from mpworker.supervisor.oom import OomKills
from mpworker.supervisor.registry import READY, Context, Death, Function, Seat, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_KILLED_SECONDS = 5.0  # in which a killed nursery and its children are gone, or hang in the kernel


class Child:
    """One child process and what is shared with it."""

    __slots__ = (
        "assembler",
        "channel",
        "claims",
        "cores",
        "ended",
        "known",
        "max_payload",
        "outbox",
        "owes",
        "pidfd",
        "pop",
        "push",
        "ready",
        "refusal",
        "region",
        "ring",
        "ring_bell",
        "ring_room",
        "seat",
        "send_offer",
        "stack_view",
        "stopping",
    )

    def __init__(self, seat: Seat, channel: Channel, region: int, claims: Claims, max_payload_bytes: int) -> None:
        self.seat = seat
        self.channel = channel
        self.region = region  # of the roll
        self.claims = claims
        self.stack_view = StackView(channel.more)
        self.outbox = Outbox(channel.outbound)
        self.ring = channel.outbound
        self.push = channel.outbound.push
        self.send_offer = claims.send_offer
        self.pop = channel.inbound.pop
        self.ring_bell = channel.peer_bell.ring
        self.ring_room = channel.peer_bell.ring_room
        self.max_payload = channel.outbound.max_payload
        self.assembler = Assembler(max_payload_bytes + codec.REPORT_BYTES_MAX)
        self.known: set[int] = set()  # functions that it was sent and not told to forget; of contexts, less than 0
        self.owes: set[int] = set()  # shared objects that it was asked to let go of, and has not
        self.pidfd = -1
        self.cores: list[int] = []  # that it is pinned to
        self.ready = False  # has been so in time
        self.ended = False  # is dead, and is still to be reaped
        self.stopping = False  # told to exit
        self.refusal: tuple[str, str] | None = None  # why it is not used, and the traceback of that

    @property
    def pid(self) -> int:
        """The process, 0 until the nursery has said that it is forked."""
        return self.seat.pid

    def has_ended(self) -> bool:
        """Is the process dead, reaped or not?"""
        return ends(self.pidfd, 0.0)

    def signal(self, number: int) -> None:
        """Signal the process; nothing if it is dead or not forked yet."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Close the descriptors."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        self.channel.close()


class Children:
    """All children of one pool, and the half of the scheduler's effects that concerns them.

    Args:
        config: What the client sent; see `mpworker.client`.
        fds: What the nursery needs: its part of the configuration, passed on unread, and the arenas.

    Attributes:
        roll: Their claim pages.
    """

    def __init__(self, config: dict[str, Any], fds: list[int]) -> None:
        self._config = config | {"fds": fds}
        self.blocks = Blocks(Lending(config["arena_bytes"], self._taken_away))
        self.roll = Roll(config["slots"])
        self._next_number = 0
        self._oom_kills = OomKills()
        self.by_number: dict[int, Child] = {}
        self.active: dict[Child, None] = {}  # that may say something, or take something from us; all others are silent
        self.backlog: set[Child] = set()  # whose rings were full
        self.told: set[Child] = set()  # whose bells are still to be rung
        self.corrupt: set[Child] = set()  # whose rings cannot be pushed to; the loop has them killed
        self.nursery: frames.Frames | None = None
        self.nursery_pid = 0
        self.nursery_ready = False
        self._inherited_bytes = 0  # what every child of this nursery has from the fork on, 0 while nobody has looked
        self.on_dismissed: Callable[[], None] = lambda: None  # a child's place is vacated
        self._own_limits: tuple[int, int] | None = None  # that this process had, for those who run the user's code
        if config["descriptors"]:
            self.raise_limit(config["descriptors"])

    @property
    def everyone(self) -> tuple[Child, ...]:
        """All children that are not reaped yet."""
        return tuple(self.by_number.values())

    def raise_limit(self, descriptors: int) -> int:
        """Let this process open so many, if it may not; what the hard limit allows if that is less, else 0."""
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < descriptors:
            if hard != resource.RLIM_INFINITY and hard < descriptors:
                return hard
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
            self._own_limits = self._own_limits or (soft, hard)
        return 0

    # ------------------------------------------------------------ the nursery

    def start_nursery(self) -> frames.Frames:
        """Exec a nursery, or take the one that is there already.

        It reports "ready", or "failed" when a preload cannot be imported.

        Raises:
            OSError: No memory, descriptor or process is left; `nursery_lost` clears away what was begun.
        """
        self.nursery_ready = False
        self._inherited_bytes = 0
        if self.nursery is None:  # else it has been sent nothing so far
            self.adopt(spawning.start(self._config["nursery_argv"], self._config.get("apart", False)))
        nursery = self.nursery
        assert nursery is not None
        if self._own_limits is not None:
            import resource

            resource.prlimit(self.nursery_pid, resource.RLIMIT_NOFILE, self._own_limits)
        nursery.send({name: self._config.get(name) for name in ("child", "holds_life")}, self._config["fds"])
        return nursery

    def adopt(self, nursery: spawning.Started) -> None:
        """Here is a nursery that has been sent nothing."""
        sock, self.nursery_pid = nursery
        self.nursery = frames.Frames(sock)

    def nursery_lost(self) -> list[tuple[Child, int, str]]:
        """The nursery is dead or of no use: it is killed, its children die with it, and all are reaped here.

        What hangs in the kernel and does not die by SIGKILL is not waited for longer than _KILLED_SECONDS.

        Returns:
            Each child with its wait status and the cause.
        """
        deaths = self._kill_all()
        kill_strays(set())
        return deaths

    def end(self) -> None:
        """Everything below dies; afterwards this process has no descendants.

        The nursery is not asked: it may be frozen, and its death is as sure an end for all that it has forked.
        """
        self._kill_all()
        for child in self.by_number.values():
            child.close()  # no descriptor might be left to look for strays by
        self.roll.close()
        kill_strays(set())

    def _kill_all(self) -> list[tuple[Child, int, str]]:
        if self.nursery is not None:
            self.nursery.close()
            self.nursery = None
        self.nursery_ready = False
        give_up_at = time.monotonic() + _KILLED_SECONDS
        children = list(self.by_number.values())
        for child in children:
            child.signal(signal.SIGKILL)
        if self.nursery_pid:
            kill_and_reap(self.nursery_pid, give_up_at)
            self.nursery_pid = 0
        deaths = []
        for child in children:
            status, cause = int(signal.SIGKILL), "nursery"
            if child.pid and not ends(child.pidfd, give_up_at):
                cause = "unkillable"
            elif child.pid:
                try:
                    # Re-parented to us: the supervisor is a subreaper.
                    status = bury(child.pid)
                except ChildProcessError:
                    pass  # the nursery had reaped it and could not say so any more
            deaths.append((child, status, cause))
        return deaths

    # ------------------------------------------------------------ spawning

    def spawn(self) -> Child:
        """Order a child from the nursery.

        Raises:
            OSError: No memory or descriptor is left, or the nursery is gone.
        """
        if self.nursery is None:
            raise BrokenPipeError(errno.EPIPE, "the nursery is gone")
        slots: int = self._config["slots"]
        capacities: tuple[int, int] = (self._config["child_ring_bytes"],) * 2
        seat = Seat(self._next_number, slots)
        self._next_number += 1
        fds, channel = make_channel("mpworker-child", capacities, STACK_BYTES)
        region = -1
        try:
            region, claims = self.roll.take()
            order = {"op": "spawn", "id": seat.number, "capacities": capacities, "slots": slots, "region": region}
            order["cores"] = cores = self._cores_of_next()
            self.nursery.send(order, [*fds, self.roll.fd])
        except OSError:
            channel.close()
            if region >= 0:
                self.roll.give(region)
            raise
        finally:
            close_all(fds)
        child = Child(seat, channel, region, claims, self._config["child"]["max_payload_bytes"])
        child.cores = cores
        self.by_number[seat.number] = child
        return child

    def spawned(self, child: Child, pid: int, pidfd: int) -> None:
        """The nursery has forked a child. From now on it is listened to: what it does is told by its pid."""
        child.seat.pid = pid
        child.pidfd = pidfd
        self.active[child] = None

    def _cores_of_next(self) -> list[int]:
        """The cores that the next child is pinned to, none for all; if each has one, that which the fewest have."""
        cores: list[int] = self._config["cores"]
        if not self._config["spread"]:
            return cores
        taken = [child.cores[0] for child in self.everyone if not child.seat.vacated]
        return [min(cores, key=taken.count)]

    def kill_unwatched(self, number: int) -> None:
        """Have the nursery kill a child whose pidfd did not arrive."""
        if self.nursery is not None:
            self.nursery.send({"op": "kill", "id": number})

    def remove(self, child: Child) -> None:
        """Forget a child that is dead."""
        self.blocks.lending.died(child.seat.number)
        self.blocks.shares.died(child.seat.number)
        self.by_number.pop(child.seat.number, None)
        self.active.pop(child, None)
        self.backlog.discard(child)
        self.told.discard(child)
        self.corrupt.discard(child)
        if not child.pid or child.has_ended():
            self.roll.give(child.region)  # else it hangs in the kernel, and has it still
        child.close()

    def death(self, child: Child, status: int, cause: str = "") -> Death:
        """What a wait status says, in the scheduler's words."""
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        if not cause:
            if child.seat.kill_cause in ("lease", "corrupt", "memory", "grace"):
                cause = child.seat.kill_cause
            elif number == signal.SIGKILL and not child.seat.kill_cause and self._oom_kills.take():
                cause = "oom"
            else:
                cause = "signal" if number else "exit"
        return Death(child.pid, number, exit_code, cause, time.monotonic())

    def tell(self, child: Child, kind: int, flags: int, a: int, b: int, c: int, payload: bytes) -> None:
        """Send a child a record, now or when it has made room; `ring_told` wakes it."""
        try:
            outbox = child.outbox
            if outbox.waiting or len(payload) > child.max_payload or not child.push(kind, flags, a, b, c, payload):
                outbox.send(kind, flags, a, b, c, payload)
                if outbox.waiting:
                    self.backlog.add(child)
                    child.channel.bell.want_room(True)
            self.told.add(child)
        except RingCorrupt:
            self.corrupt.add(child)  # what it was offered is settled at its death

    def flush(self) -> None:
        """Send what waits for room, as far as there is some by now."""
        for child in list(self.backlog):
            try:
                if child.outbox.flush():
                    self.backlog.discard(child)
                    child.channel.bell.want_room(False)
            except RingCorrupt:
                self.backlog.discard(child)
                self.corrupt.add(child)
            self.told.add(child)

    def ring_told(self) -> int:
        """Wake the children that were sent something: once each, for a wake-up costs more than a task.

        Returns:
            How many of them were silent before, and so whose bells nobody has armed.
        """
        active = self.active
        before = len(active)
        for child in self.told:
            child.ring_bell()
            if child.pid:
                active[child] = None
        self.told.clear()
        return len(active) - before

    def let_rest(self) -> None:
        """Look no longer at children that are ready and have nothing to do.

        They say nothing until they are offered something: a turn costs no more for their being there.
        """
        for child in list(self.active):
            busy = child.seat.offers or child.outbox.waiting or child.owes
            if child.seat.state == READY and not busy:
                del self.active[child]

    # ------------------------------------------------------------ the arena for results

    def lend(self, child: Child, size: int) -> None:
        """A child asks for room for a result of so many bytes."""
        number, offset, size = self.blocks.lending.lend(child.seat.number, size)
        self.tell(child, codec.LENT, 0, offset, size, number, b"")

    def _taken_away(self, number: int, block: int) -> None:
        child = self.by_number.get(number)
        if child is not None:
            self.tell(child, codec.FREE, 0, block, 0, 0, b"")

    def result(self, child: Child, slot: int, generation: int, data: bytes) -> Held:
        """What a child answers with an envelope, of what it has claimed in this slot."""
        task = child.seat.offers.get(slot)
        call = task.payload if task is not None and task.generation == generation else None
        return of_result(data, child.seat.number, self.blocks.lending, call)

    def share_opened(self, child: Child, number: int) -> None:
        """A child has opened a shared object, for a call that it has.

        Raises:
            ProtocolViolation: No call that it has speaks of it.
        """
        calls = [task.payload for task in child.seat.offers.values()]
        self.blocks.shares.opened(child.seat.number, number, calls)

    def share_closed(self, child: Child, number: int) -> None:
        """A child has let go of a shared object."""
        child.owes.discard(number)
        self.blocks.shares.closed(child.seat.number, number)

    def close_unneeded(self) -> list[Seat]:
        """Ask the children that have open what no task needs any more to let go of it; whom."""
        asked: dict[Seat, None] = {}
        for number, share in self.blocks.shares.to_close():
            child = self.by_number[number]
            child.owes.add(share)
            asked[child.seat] = None
            self.tell(child, codec.UNSHARE, 0, share, 0, 0, b"")
        return list(asked)

    def forget(self, function: Function) -> None:
        """No later task uses the function, unless it is sent again."""
        for child in self.by_number.values():
            if function.key in child.known:
                child.known.discard(function.key)
                self.tell(child, codec.FORGET, 0, function.key, 0, 0, b"")

    # ------------------------------------------------------------ effects

    def offer(self, seat: Seat, task: Task) -> None:
        """See `mpworker.supervisor.effects.Effects`, here and below."""
        child = self.by_number[seat.number]
        slot, generation = task.slot, task.generation
        function = task.function
        key, name = 0, task.key
        if function is not None:
            key = function.key
            if key not in child.known:
                self._teach(child, function)
        context = task.options.context
        if context is not None:
            name += context.shift
            if -context.key not in child.known:
                self._introduce(child, context)
        attempt = (task.attempts + 1 if task.attempts < LOW else LOW) | task.flags
        kind, c, items = TASK, slot | key << 8, 0
        if task.items:
            kind, c = codec.RANGE, codec.pack_range(slot, key, task.start, task.stop)
            items = task.start | task.stop << 32
        try:
            # As `tell` does, without a call more for each task.
            if child.outbox.waiting:
                child.claims.offer(slot, generation, task.key, items)
            elif child.send_offer(slot, generation, child.ring, kind, attempt, name, c, task.payload, task.key, items):
                self.told.add(child)
                return
        except RingCorrupt:
            pass  # `tell` will find that again
        self.tell(child, kind, attempt, name, generation, c, task.payload)

    def _teach(self, child: Child, function: Function) -> None:
        child.known.add(function.key)
        self.tell(child, codec.FUNCTION, 0, function.key, 0, 0, function.blob)

    def _introduce(self, child: Child, context: Context) -> None:
        judge = context.judge
        if judge is not None and judge.key not in child.known:
            self._teach(child, judge)
        child.known.add(-context.key)
        self.tell(child, codec.CONTEXT, 0, context.key, judge.key if judge is not None else 0, 0, context.said)

    def revoke(self, seat: Seat, slot: int, generation: int) -> bool:
        return self.by_number[seat.number].claims.revoke(slot, generation)

    def peek(self, seat: Seat, slot: int) -> tuple[int, int, float, int]:
        generation, state, started_ns, cursor, _ = self.by_number[seat.number].claims.peek(slot)
        return generation, state, started_ns / 1e9, cursor

    def halt(self, seat: Seat, slot: int, generation: int) -> int:
        return self.by_number[seat.number].claims.halt(slot, generation)

    def interrupt(self, seat: Seat) -> None:
        self.by_number[seat.number].signal(codec.INTERRUPT_SIGNAL)

    def ask_stack(self, seat: Seat) -> None:
        child = self.by_number[seat.number]
        child.stack_view.clear()
        child.signal(codec.STACK_SIGNAL)

    def stack(self, seat: Seat) -> bytes:
        return self.by_number[seat.number].stack_view.read()

    def kill(self, seat: Seat) -> None:
        self.by_number[seat.number].signal(signal.SIGKILL)

    def dismiss(self, seat: Seat) -> None:
        child = self.by_number[seat.number]
        self.tell(child, codec.EXIT, 0, 0, 0, 0, b"")
        child.stopping = True
        self.on_dismissed()

    def memory(self, seat: Seat) -> int:
        if not self._inherited_bytes:
            self._inherited_bytes = anonymous_bytes(self.nursery_pid)
        return anonymous_bytes(seat.pid) - self._inherited_bytes

    def beat(self, seat: Seat) -> float:
        return self.by_number[seat.number].claims.beat() / 1e9

    def looked(self) -> None:
        self._oom_kills.look()
