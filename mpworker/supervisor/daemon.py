"""The supervisor of many clients: they attach to a socket and leave again, and it goes on.

A client is served as one that has a supervisor of its own, by the same code; what it shares with others are the
children, and the order in which its tasks start (`mpworker.supervisor.fair`). Whatever a client does wrong, ends the
service for that client. One that is dead has its tasks cancelled, or finished if it had asked for that.

    attached --stop--> leaving --(all that it has submitted has ended)--> gone
        |                                                                  ^
        +--(dead, or corrupt)--> lost --(its tasks are cancelled)----------+
"""

from __future__ import annotations

import os
import time

from mpworker.containers import deque
from mpworker.ipc import codec, json
from mpworker.ipc.build import build
from mpworker.ipc.channel import Channel, close_all, make_channel
from mpworker.ipc.ledger import Ledger
from mpworker.ipc.levels import ERROR, INFO, WARNING
from mpworker.ipc.ring import RingCorrupt
from mpworker.ipc.signals import SERVICE_SIGNALS, signal
from mpworker.supervisor.accounts import SharedScheduler
from mpworker.supervisor.burying import ends
from mpworker.supervisor.gate import Gate, Peer, Refused, check_hello
from mpworker.supervisor.guest import Guest
from mpworker.supervisor.hall import Hall, Port
from mpworker.supervisor.ids import Ids
from mpworker.supervisor.lookout import Log, Lookout
from mpworker.supervisor.notify import Manager
from mpworker.supervisor.nursing import DRAIN, NOW
from mpworker.supervisor.operating import Overview
from mpworker.supervisor.reloading import Reloading
from mpworker.supervisor.serving import Serving
from mpworker.supervisor.stacktaking import StackTaking

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Iterable
    from typing import Any, Final

    from mpworker.supervisor.children import Child
    from mpworker.supervisor.session import Session

_NUMBERS_MAX: Final = (1 << 23) - 1  # of clients: with their numbers in front, those of tasks stay below 2**63
_STATUS_EVERY: Final = 1.0  # seconds
_WHEN_GONE: Final = ("cancel", "finish")
_PREFIX_BYTES: Final = 4  # twice as many characters


class Daemon(Serving):
    """A supervisor that clients attach to.

    Args:
        config: What it is to be; `mpworker.service.launch` makes it.
        sock: It listens.
        fds: What the nursery needs.
        log: Takes what is to be told to the operator.

    Attributes:
        guests: The clients that are attached, by their numbers.
        overview: What an operator is told.
        manager: The service manager, if there is one.
        began_at: When it began.
        failed: There can be no children.
    """

    def __init__(self, config: dict[str, Any], sock: _socket.socket, fds: list[int], log: Log) -> None:
        self._service: dict[str, Any] = config["service"]
        self._log = log
        super().__init__(config, None, fds)
        self.guests: dict[int, Guest] = {}
        self._leaving: dict[Guest, None] = {}
        self._gone: dict[int, Guest] = {}  # that still have tasks
        self._numbers = 0
        self._free_numbers: deque[int] = deque()
        self._sock = sock
        self._gate: Gate | None = None
        self.manager = Manager()
        self._alive_at = 0.0 if self.manager.alive_every is not None else None
        self._status_at = 0.0
        self._stop_by: float | None = None
        self._signals = -1
        self._slots: int = config["slots"]
        self._lookout.tried_again = self.hall.tried_again
        self.overview = Overview(self)
        self._lookout.name_of = self.overview.name_of
        self._stack_taking = StackTaking(self)
        self._reloading = Reloading(self, self._service, self._watch, self._unwatch)
        self._taking_time: dict[str, Reloading | StackTaking] = {
            "reload": self._reloading,
            "stacks": self._stack_taking,
        }
        self._ready = False
        self.began_at = time.monotonic()
        self.failed = False

    def _make_world(self, config: dict[str, Any], channel: Channel | None, fds: list[int]) -> Any:
        return Hall(config, fds)

    def _kind_of_scheduler(self, recycles: bool) -> Any:
        return SharedScheduler

    def _make_watch(self, level: int) -> Lookout:
        return Lookout(level, self._log)

    @property
    def stopping(self) -> bool:
        """Does it take nothing more?"""
        return bool(self._stopping)

    @property
    def hall(self) -> Hall:
        """The children, and the port of each client."""
        hall: Any = self.world
        assert isinstance(hall, Hall)
        return hall

    @property
    def shared(self) -> SharedScheduler:
        """The scheduler of all clients."""
        scheduler = self.scheduler
        assert isinstance(scheduler, SharedScheduler)
        return scheduler

    @property
    def _lookout(self) -> Lookout:
        assert isinstance(self.watch, Lookout)
        return self.watch

    # ------------------------------------------------------------ the whole of it

    def run(self) -> None:
        """Serve until it is stopped."""
        service = self._service
        now = time.monotonic()
        for name, options in service["queues"].items():
            self.scheduler.configure_queue(name, **options, now=now)
        if service["rate"] is not None:
            self.scheduler.limit_rate(service["rate"], service["burst"], now)
        self._heed_signals()
        self._gate = Gate(self._sock, service["uids"], service["gids"], self._watch, self._unwatch, self._attach)
        self.watch.log(INFO, "serving", pid=os.getpid(), n=self.children_wanted, socket=service["socket"])
        self.serve_until_the_end()
        self._end()

    def _heed_signals(self) -> None:
        """Signals are told through a pipe, and so come between two turns."""
        self._signals, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SERVICE_SIGNALS:
            signal.signal(number, _noted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SERVICE_SIGNALS)
        self._watch(self._signals, self._signalled)

    def _signalled(self) -> None:
        try:
            numbers = os.read(self._signals, 64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._asked_to_stop()
            elif number in (signal.SIGTTIN, signal.SIGTTOU):
                self._resize_by(1 if number == signal.SIGTTIN else -1)
            elif number == signal.SIGHUP and not self._stopping:
                self._reloading.ask()

    def _resize_by(self, more: int) -> None:
        # One child more never means fewer, where `n_max` was lowered since.
        n = min(max(1, self.children_wanted + more), max(self.children_allowed, self.children_wanted))
        hard = self.set_max_workers(n, self._service["descriptors_of_n_max"])
        if hard:
            self.watch.log(WARNING, "resize_refused", n=n, descriptors=hard)
        else:
            self.watch.log(INFO, "pool_resized", n=n)

    def _child_is_ready(self, child: Child) -> None:
        super()._child_is_ready(child)
        if not self._ready:
            self._ready = True
            self.manager.is_ready()

    # ------------------------------------------------------------ clients come

    def _attach(self, peer: Peer, hello: dict[str, Any]) -> None:
        """Somebody has said hello.

        Raises:
            Refused: It may not attach.
            KeyError: It is no hello of ours; so are TypeError and ValueError.
            OSError: No memory or descriptor is left.
        """
        service = self._service
        check_hello(hello, build())
        if self._stopping:
            raise Refused("the supervisor is stopping")
        if len(self.guests) >= service["clients_max"]:
            raise Refused(f"{len(self.guests)} clients are attached, which are all that `clients_max` allows")
        if hello["when_gone"] not in _WHEN_GONE or not 0 <= int(hello["log_level"]) <= 1000:
            raise ValueError("no hello of ours")
        capacities: tuple[int, int] = (service["client_ring_bytes"],) * 2
        prefix = self._prefix_of(hello)
        fds, channel = make_channel("mpworker-client", capacities)
        ledger: Ledger | None = None
        try:
            number = self._take_number()
            if hello["recovers"]:
                ledger = Ledger()
                fds += [self.hall.roll.readable(), os.dup(self.hall.life), *map(os.dup, ledger.fds)]
            steers = peer.uid in service["steering_uids"]
            answer = {
                "prefix": prefix,
                "client": number,
                "slots": self._slots,
                "pid": os.getpid(),
                "n": self.children_wanted,
                "capacities": capacities,
                "max_payload_bytes": service["max_payload_bytes"],
                "max_pending": service["max_pending"],
                "steers": steers,
                **self._terms(),
            }
            peer.frames.send(answer, fds)
        except BaseException:
            channel.close()
            if ledger is not None:
                ledger.close()
            raise
        finally:
            close_all(fds)
        port = Port(self.hall, number, prefix, channel, service["max_payload_bytes"])
        port.admits = self._admits
        port.allow(service["priority_min"], service["unknown_queues"] == "create")
        account = self.shared.open_account(number, steers)
        port.ids = Ids(account.keys)
        port.ledger = ledger
        port.is_unfinished = account.is_unfinished
        guest = Guest(self, port, account, peer, hello)
        self.guests[number] = guest
        self._lookout.watches[number] = guest.watch
        self._watch(channel.fd, lambda: self._woken(guest))
        self._watch(peer.frames.fileno(), lambda: self._heard(guest))
        if peer.pidfd >= 0:
            self._watch(peer.pidfd, lambda: self._died(guest))
        self.sessions[guest] = None
        self.watch.log(INFO, "client_attached", client=number, pid=peer.pid, uid=peer.uid, name=guest.name)

    def _prefix_of(self, hello: dict[str, Any]) -> str:
        """What the ids of a client's tasks begin with: as before, if it was attached to a supervisor that has died.

        Raises:
            Refused: Another one has it.
            ValueError: It is no prefix of ours.
        """
        if hello["prefix"] is None:
            return f"{os.urandom(_PREFIX_BYTES).hex()}-"
        prefix = str(hello["prefix"])
        if not prefix.endswith("-") or len(bytes.fromhex(prefix[:-1])) != _PREFIX_BYTES:
            raise ValueError("no prefix of ours")
        if any(port.prefix == prefix for port in self.hall.ports.values()):
            raise Refused("another program has attached by the same name of its tasks")
        return prefix

    def _terms(self) -> dict[str, Any]:
        """What a client may ask for: see `mpworker.client.Client.agree`."""
        service = self._service
        return {
            "queues": list(self.scheduler.queue_states()),
            "unknown_queues": service["unknown_queues"],
            "priority_min": service["priority_min"],
        }

    def _admits(self, queue: str, creates: bool) -> bool:
        """May a client put tasks into a queue of this name; may it make one for that?"""
        known = self.scheduler.queue_states()
        return queue in known or (creates and len(known) < self._service["queues_max"])

    def _take_number(self) -> int:
        """A number for a client: that of none that is there; of those that were there the one gone for longest."""
        if self._numbers < _NUMBERS_MAX:
            self._numbers += 1
            return self._numbers
        return self._free_numbers.popleft()

    # ------------------------------------------------------------ clients rest

    def _woken(self, guest: Guest) -> None:
        """A client has rung."""
        bell = guest.port.channel.bell
        bell.drain()
        bell.disarm()
        self.sessions[guest] = None

    def _before_offers(self) -> None:
        self._stack_taking.look(self._turned_at)
        if self.hall.unwritten:
            self.hall.write_ledgers()

    def _let_rest(self) -> None:
        super()._let_rest()
        for session in tuple(self.sessions):
            assert isinstance(session, Guest)
            if session.is_silent():
                # It rings if it has something to say from here on; what it said just before is seen by the look.
                session.port.channel.bell.arm()
                if not _has_something(session):
                    del self.sessions[session]

    def _told_sessions(self) -> Iterable[Session]:
        hall, guests = self.hall, self.guests
        told = [guests[number] for number in hall.told_ports if number in guests]
        return dict.fromkeys([*self.sessions, *told])

    # ------------------------------------------------------------ clients go

    def condemned(self, session: Session) -> None:
        """What a client has sent cannot be read, or means nothing: it is served no more."""
        assert isinstance(session, Guest)
        if session.number in self.guests:
            self.watch.log(ERROR, "client_condemned", client=session.number)
            session.peer.frames.say(codec.DISMISSED)
            self._dismiss(session, "client_dismissed", finishes=False)

    def _heard(self, guest: Guest) -> None:
        """A client's socket has something to tell: its end, or what nobody is to say there.

        An event may be of another descriptor that had the same number, so what it tells is looked at.
        """
        said = guest.peer.frames.peek()
        if said == b"":
            self._lost(guest)
        elif said is not None:
            self.condemned(guest)

    def _died(self, guest: Guest) -> None:
        """A client's process is dead, if this event is not another's, likewise."""
        if ends(guest.peer.pidfd, 0.0):
            self._lost(guest)

    def _lost(self, guest: Guest) -> None:
        """A client is gone without a word."""
        if guest.number in self.guests and not guest.own_port.broken:
            guest.read_whole()
        if guest.number in self.guests:  # else it has left, or was condemned, by what was read
            self._dismiss(guest, "client_lost", finishes=guest.finishes)

    def stop(self, session: Session, now: bool) -> None:
        """A client leaves: at once, or when all that it has submitted has ended."""
        assert isinstance(session, Guest)
        if now:
            self._leave(session)
        else:
            self._leaving[session] = None
            if session.cron is not None:
                session.cron.close(waiting=True)
            session.account.go_on()

    def _leave(self, guest: Guest) -> None:
        """A client that has asked for it is served no more."""
        guest.say_farewell()
        self._dismiss(guest, "client_left", finishes=False)

    def _dismiss(self, guest: Guest, event: str, finishes: bool) -> None:
        """A client is served no more."""
        number, port, peer = guest.number, guest.own_port, guest.peer
        del self.guests[number]
        self.sessions.pop(guest, None)
        self._leaving.pop(guest, None)
        self._lookout.watches.pop(number, None)
        self._unwatch(port.channel.fd)
        self._unwatch(peer.frames.fileno())
        if peer.pidfd >= 0:
            self._unwatch(peer.pidfd)
        left = guest.account.unfinished()
        self.watch.log(INFO, event, client=number, unfinished=left, finishes=finishes)
        if guest.cron is not None:
            self.crons.remove(guest.cron)
            guest.cron.close(waiting=False)
        port.close()
        port.channel.close()
        peer.close()
        self._gone[number] = guest
        if not finishes:
            guest.account.give_up(time.monotonic())

    def _forget_those_without_tasks(self) -> None:
        for number, guest in list(self._gone.items()):
            if not guest.account.unfinished():
                del self._gone[number]
                self.shared.close_account(guest.account)
                guest.dissolve()
                self._free_numbers.append(number)

    # ------------------------------------------------------------ the operator

    def operated(self, message: dict[str, Any]) -> dict[str, Any]:
        """See `Serving`: `op` is one of these."""
        op = message["op"]
        if op == "stop":
            self._asked_to_stop()
            if message["now"]:
                self._asked_to_stop()
            return {}
        overview = self.overview
        if op == "describe":
            return overview.described()
        asked = {"tasks": overview.listed, "task": overview.found, "cancel": overview.cancel, "cron": overview.cron}
        return asked[op](message)

    @property
    def children_allowed(self) -> int:
        n_max: int = self._service["n_max"]
        return n_max

    def begin(self, what: str) -> int:
        return self._taking_time[what].ask()

    def outcome(self, what: str, number: int) -> dict[str, Any] | None:
        return self._taking_time[what].outcome(number)

    def take_on(self, told: dict[str, Any]) -> None:
        """A configuration that was read again has these values; those of the service are in force already."""
        service = self._service
        self._start_timeout, self._exit_grace = told["start_timeout"], told["grace"]
        self._lookout.change_level(told["log_level"])
        if self._gate is not None:
            self._gate.admit(service["uids"], service["gids"])
        terms = json.dumps(self._terms()).encode()
        for guest in self.guests.values():
            # It is not to blame for what it sends before it has heard of that: it may still do what it might before.
            guest.own_port.allow(service["priority_min"], service["unknown_queues"] == "create")
            guest.own_port.send(codec.TERMS, 0, 0, 0, 0, terms)

    # ------------------------------------------------------------ the end

    def _asked_to_stop(self) -> None:
        """Once: all that was accepted is finished, for so long as that may take. Once more: now."""
        now = time.monotonic()
        if self._stopping:
            self._stop_by = now
            return
        self._stopping = DRAIN
        timeout = self._service["stop_timeout"]
        self._stop_by = None if timeout is None else now + timeout
        self._reloading.close()
        self.manager.tell("STOPPING=1")
        self.watch.log(INFO, "stopping", clients=len(self.guests), timeout=timeout)
        if self._gate is not None:
            self._gate.close()
            self._gate = None
        for guest in tuple(self.guests.values()):
            guest.own_port.send(codec.CLOSING, 0, 0, 0, 0, b"")
            self.stop(guest, now=False)
        self.scheduler.close()

    def _look_at_the_end(self, now: float) -> None:
        for number in self.hall.told_ports:
            if number in self.guests and self.hall.ports[number].broken:
                self.condemned(self.guests[number])
        self.hall.told_ports.clear()
        self.hall.forget_released()
        for guest in tuple(self._leaving):
            if guest.is_finished():
                self._leave(guest)
        if self._gone:
            self._forget_those_without_tasks()
        if self._gate is not None and self._gate.next_at is not None and now >= self._gate.next_at:
            self._gate.look(now)
        self._reloading.look(now)
        self._tell_manager(now)
        if self._stopping == DRAIN:
            self._drain(now)

    def _drain(self, now: float) -> None:
        if (self._stop_by is not None and now >= self._stop_by) or (
            not self.guests and not self._gone and self._children_are_gone(now)
        ):
            self._stopping = NOW

    def _tell_manager(self, now: float) -> None:
        manager = self.manager
        if self._alive_at is not None and now >= self._alive_at:
            assert manager.alive_every is not None
            self._alive_at = now + manager.alive_every
            manager.tell("WATCHDOG=1")
        if now >= self._status_at:
            self._status_at = now + _STATUS_EVERY
            waiting = self.scheduler.unfinished()
            children = sum(not seat.vacated for seat in (child.seat for child in self.world.everyone))
            manager.status(
                f"{len(self.guests)} clients, {waiting} tasks, {children} of {self.children_wanted} children"
            )

    def _times(self) -> list[float | None]:
        at = self._gate.next_at if self._gate is not None else None
        return [
            *super()._times(),
            at,
            self._stack_taking.next_at,
            self._reloading.next_at,
            self._alive_at,
            self._stop_by,
            self._exit_at,
        ]

    def _broken(self, why: str, traceback: str) -> None:
        """There will be no children, and so no service."""
        self.watch.log(ERROR, "children_fail", why=why, traceback=traceback)
        report = json.dumps({"what": "the children", "why": why, "traceback": traceback}).encode()
        for guest in self.guests.values():
            guest.own_port.send(codec.BROKEN, 0, 0, 0, 0, report)
        self.failed = True
        self._stopping = NOW

    def _end(self) -> None:
        """What has not ended is cancelled: that is what a client makes of a farewell."""
        unfinished = self.scheduler.unfinished()
        for guest in tuple(self.guests.values()):
            if self.failed:
                guest.ring()
            else:
                guest.say_farewell()
            self._dismiss(guest, "client_dismissed", finishes=True)
        if self._gate is not None:
            self._gate.close()
        self._reloading.close()
        self.watch.log(INFO, "stopped", unfinished=unfinished)


def _has_something(guest: Guest) -> bool:
    """Has it sent something? A corrupt ring counts as that: the read that follows finds it out."""
    try:
        return guest.port.channel.inbound.readable()
    except RingCorrupt:
        return True


def _noted(_number: int, _frame: object) -> None:
    """The number has gone through the pipe by now."""
