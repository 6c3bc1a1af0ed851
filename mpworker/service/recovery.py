"""What a client does when the supervisor that it has attached to dies: it attaches to the next one by itself.

What the supervisor had accepted and has no outcome is submitted again, with what is known of it
(`mpworker.service.estate`). No attempt of it can still be under way by then: the supervisor, its nurseries and all of
their children have one end of a pipe, and its other end, which the client has, ends when the last of them is dead.

    served --(the supervisor dies)--> standing by --(there is another one, and it knows all)--> served
                                           |
                                           +--(too late, or it refuses, or the client stops)--> over

Meanwhile the client has a stand-in for a supervisor: its ring is full, so who wants to send something waits, and its
bell wakes who waits for events. A thread does what takes time; what it needs of the client is kept in `mpworker.kept`.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from mpworker.chunks import Chunk
from mpworker.clientthread import ClientThread
from mpworker.errors import ConnectError
from mpworker.ipc import codec, details, json
from mpworker.ipc._native import RECORD_HEADER_BYTES
from mpworker.ipc.channel import close_all, make_channel
from mpworker.ipc.levels import INFO, WARNING
from mpworker.ipc.remains import claimed, noted
from mpworker.ipc.ring import RingCorrupt, split
from mpworker.kept import Pending
from mpworker.launch import Supervisor
from mpworker.outcomes import LOST
from mpworker.service.attaching import Attachment, attach
from mpworker.service.estate import Estate

if TYPE_CHECKING:
    from mpworker.client import Client
    from mpworker.ipc.codec import Record

_ATTEMPT_SECONDS: Final = 0.5  # for one hello, and to wait for one who listens: then it is looked whether to go on
_AGAIN_AFTER: Final = 0.05
_LOOK_SECONDS: Final = 0.1  # after so long it is looked whether the client has come to its end
_ROOM_SECONDS: Final = 10.0  # in which a supervisor reads something of what it is sent


class StandIn(Supervisor):
    """In the place of a supervisor while there is none. Its end is told as that of a process.

    Args:
        before: The one that has died.
        end: Readable when no other one is waited for any more; it is not closed here.

    Raises:
        OSError: No memory or descriptor is left.
    """

    def __init__(self, before: Supervisor, end: int) -> None:
        capacity = 2 * (before.channel.outbound.max_payload + RECORD_HEADER_BYTES)
        fds, channel = make_channel("mpworker-standin", (capacity, capacity))
        close_all(fds)
        while channel.outbound.push(codec.FRAGMENT, 0, 0, 0, 0, bytes(channel.outbound.max_payload)):
            pass  # until it is full
        sock: Any = None
        super().__init__("", channel, sock, before.pid, end, 0, before.cores, None)

    def hang_up(self) -> None:
        """No other supervisor is waited for."""
        if self.pidfd >= 0:
            os.eventfd_write(self.pidfd, 1)

    def is_a_forks(self) -> None:
        """See `Supervisor`: there is nothing that would be warned of."""

    def kill(self) -> None:
        """See `hang_up`."""
        self.hang_up()

    def ended_well(self) -> bool:
        """It has not: there were tasks."""
        return False

    def start_failure(self) -> dict[str, str] | None:
        """Nothing: see `Supervisor`."""
        return None

    def close(self) -> None:
        """Close the channel. It may be called again."""
        self.channel.close()


class GivenUp(Exception):
    """No other supervisor is waited for any more; the text says why."""


class Recovery(ClientThread):
    """The way of one client from one supervisor to the next. Its thread is there from the beginning: nobody may read.

    Args:
        client: The client.
        path: The socket.
        hello: What a supervisor is told.
        terms: What the present one has said.
        left: The descriptors of what it leaves if it dies.
        timeout: Seconds from that until it is given up.

    Raises:
        OSError: No descriptor is left.
    """

    _name = "mpworker-recovery"

    def __init__(
        self, client: Client, path: str, hello: dict[str, Any], terms: dict[str, Any], left: list[int], timeout: float
    ) -> None:
        super().__init__()
        self._client = client
        self._path = path
        self._hello = hello
        self._terms = terms
        self._left = left
        self._timeout = timeout
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stand_in: StandIn | None = None
        self._before: Supervisor | None = None  # the one that has died
        self._given_up = False

    # ------------------------------------------------------------ the supervisor is dead

    def takes_over(self) -> bool:
        """Wait for another supervisor from now on, if that is to be done; it may be called again meanwhile.

        Whoever calls this has read all that the dead one had sent.
        """
        client, supervisor = self._client, self._client.supervisor
        if self._given_up or supervisor is self._stand_in:
            return not self._is_over()
        if client.ending.wants_no_other() or not self.running:
            return False
        if isinstance(supervisor, Attachment) and supervisor.last_words():
            return False  # it has let this client go, and lives on perhaps
        try:
            if self._stand_in is None:
                self._stand_in = StandIn(supervisor, self._end)
        except OSError:
            return False  # no descriptor or memory is left
        self._before = supervisor
        client.stand_by(self._stand_in)
        self._rest.wake()
        return True

    def stands_by(self) -> bool:
        """Is another supervisor waited for?"""
        return self._stand_in is not None and self._client.supervisor is self._stand_in

    def _is_over(self) -> bool:
        """Is no other supervisor waited for any more?"""
        return self._given_up or self._end < 0 or bool(select.select([self._end], [], [], 0)[0])

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        client = self._client
        while not client.is_over():
            supervisor = client.supervisor
            if self._before is not None and supervisor is self._stand_in and not self._is_over():
                self._go_on(self._before)
                continue
            if supervisor is not self._stand_in:  # else the client's loop has not come to it yet
                self._wait_for_end(supervisor)
            if client.may_wait:  # else its loop sees it
                with suppress(Exception):  # that is for whoever asks for something
                    client.poll()
            if client.supervisor is supervisor and not client.is_over():
                self._rest.wait(_LOOK_SECONDS)  # whoever reads is to see it, too
        self.running = False
        self.close()

    def _wait_for_end(self, supervisor: Supervisor) -> None:
        """Until a supervisor has ended, or the client has."""
        try:
            fd = os.dup(supervisor.pidfd)  # whoever comes to the end of that one closes its own
        except OSError:
            return
        try:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            poller.register(self._end, select.POLLIN)
            poller.poll()
        finally:
            os.close(fd)

    def _go_on(self, before: Supervisor) -> None:
        """The client stands by: find it another supervisor than the one before, or give up."""
        by = time.monotonic() + self._timeout
        client = self._client
        client.observer.post(WARNING, "supervisor_lost", supervisor=before.pid, reconnect_timeout=self._timeout)
        supervisor: Supervisor | None = None
        try:
            supervisor = self._next_one(by)
        except Exception as why:  # noqa: BLE001  # whatever it is, nobody is to wait for ever
            self._given_up = True
            client.observer.post(WARNING, "reconnect_failed", error=type(why).__name__, reason=_told(why))
        before.close()
        self._before = None
        if supervisor is None:
            os.eventfd_write(self._end, 1)  # which is the end of the stand-in
            return
        client.is_served_by(supervisor)
        client.observer.post(INFO, "reconnected", supervisor=supervisor.pid)

    def _next_one(self, by: float) -> Supervisor:
        """Another supervisor, which knows all that the one before did; or which has died while it was told."""
        self._wait_for_deaths(by)
        self._take_stock()
        supervisor, terms, left = self._attach(by)
        gone, self._left, self._terms = self._left, left, terms
        close_all(gone)
        try:
            Telling(self._client, supervisor, self._look_for_end).tell_all(terms)
        except _Died:
            # What it has sent is for the client to read, which then sees its death: of what was told it knows what it
            # leaves, and of the rest there is what is known already.
            return supervisor
        except BaseException:
            supervisor.hang_up()
            supervisor.close()
            raise
        return supervisor

    def _take_stock(self) -> None:
        """Note what is known of each task that has no outcome: from here on the dead need not be asked."""
        pending, left = self._pending, self._left
        offers = claimed(left[0], self._terms["slots"])
        estate = Estate(self._terms["client"], offers, noted(left[2:]), dict(pending.known))
        for key in list(pending.kept):
            future = pending.get(key)
            if isinstance(future, Chunk):
                pending.known[key] = estate.of_items(key, future.unsettled())
            elif future is not None and estate.was_cancelled(key):
                future.settle(codec.CANCELLED, b"")
                self._client.take_out(key, None)
            elif future is not None:
                pending.known[key] = estate.of_task(key)

    @property
    def _pending(self) -> Pending:
        pending = self._client.pending
        assert isinstance(pending, Pending)
        return pending

    def _wait_for_deaths(self, by: float) -> None:
        """Until the supervisor and all that it has started are dead."""
        poller = select.poll()
        life = self._left[1]
        poller.register(life, 0)  # its end is told in any case
        poller.register(self._end, select.POLLIN)
        events = dict(poller.poll(max(0.0, by - time.monotonic()) * 1000))
        self._look_for_end()
        if life not in events:
            raise GivenUp(
                f"processes of the supervisor that has died are still there after reconnect_timeout={self._timeout:g} s"
            )

    def _look_for_end(self) -> None:
        if self._is_over() or self._client.is_fork():
            raise GivenUp("the worker has stopped")

    def _attach(self, by: float) -> tuple[Attachment, dict[str, Any], list[int]]:
        while True:
            try:
                until = min(by, time.monotonic() + _ATTEMPT_SECONDS)
                return attach(self._path, self._hello, until, self._timeout)
            except ConnectError as error:
                self._look_for_end()
                if error.for_good or time.monotonic() + _AGAIN_AFTER >= by:
                    raise
            time.sleep(_AGAIN_AFTER)

    def forked(self) -> None:
        """This process is a fork: the thread is not here."""
        self._forget_thread()
        self.close()

    def close(self) -> None:
        """The client is over: let go of everything, or have the thread do so. It may be called again."""
        if self.running:
            self._rest.wake()  # what else it waits for has come: the end of the supervisor, or that of the stand-in
            return
        left, self._left = self._left, []
        end, self._end = self._end, -1
        close_all(left if end < 0 else [*left, end])
        if self._stand_in is not None:
            self._stand_in.pidfd = -1
            self._stand_in.close()


def _told(why: Exception) -> str:
    """What may be said of a failure: of what is not ours its type says it."""
    return str(why) if isinstance(why, GivenUp | ConnectError | OSError | RingCorrupt) else ""


class _Died(Exception):
    """The supervisor that was being told died meanwhile."""


class Telling:
    """A new supervisor is told all that the one before knew. Nothing that is told changes meanwhile: the client waits.

    Args:
        client: The client.
        supervisor: The new one.
        look_for_end: Raises `GivenUp` if there is no need any more.
    """

    def __init__(self, client: Client, supervisor: Attachment, look_for_end: Callable[[], None]) -> None:
        self._client = client
        self._supervisor = supervisor
        self._look_for_end = look_for_end
        pending = client.pending
        assert isinstance(pending, Pending)
        self._pending = pending

    def tell_all(self, terms: dict[str, Any]) -> None:
        """Tell it.

        Args:
            terms: What it has said.

        Raises:
            _Died: It has died.
            GivenUp: There is no need any more, or it does not read.
            RingCorrupt: It is none.
        """
        client, pending = self._client, self._pending
        client.agree(terms)
        for function in list(pending.functions.values()):
            self._send(function)
        for key, report in client.option_table.reports():
            self._send((codec.OPTIONS, 0, key, 0, 0, report))
        for messages in list(pending.standing.values()):
            for message in messages:
                self._request(message)
        for key, record in sorted(pending.kept.items()):
            parts = pending.known.get(key)
            if parts and key in pending:
                self._tell_of(key, record, parts)
        for key in pending.forgotten():
            self._send((codec.FORGET, 0, key, 0, 0, b""))
        for key in list(pending.recalled):
            future = pending.get(key)
            if future is not None:
                future.settle(LOST, b"")
                client.take_out(key, None)
        for key in list(pending.cancelled):  # of those that were told before it was so
            self._request({"verb": "cancel", "task": key})
        for key in list(client.unwanted):  # likewise
            self._request(client.cancel_of_chunk(key))
        if client.ending.drains():
            self._request({"verb": "stop", "now": False})

    def _tell_of(self, key: int, record: Record, parts: list[list[int]]) -> None:
        kind, flags, _, function, c, data = record
        said: dict[str, Any] = {"before": parts}
        if flags & codec.DETAILED:
            said, data = details.read(data) | said, details.after(data)
        flags = flags & ~codec.FRAGMENTED | codec.DETAILED | codec.AGAIN
        self._send((kind, flags, key, function, c, details.pack(said) + data))

    def _request(self, message: dict[str, Any]) -> None:
        self._send((codec.REQUEST, 0, 0, 0, 0, json.dumps(message).encode()))

    def _send(self, record: Record) -> None:
        for part in self._parts(record):
            self._push(part)

    def _parts(self, record: Record) -> Iterator[Record]:
        most = self._supervisor.channel.outbound.max_payload
        return iter([record] if len(record[5]) <= most else split(record, most // 2, 0))

    def _push(self, record: Record) -> None:
        channel = self._supervisor.channel
        give_up_at = time.monotonic() + _ROOM_SECONDS
        while not channel.outbound.push(*record):
            channel.peer_bell.ring()
            left = give_up_at - time.monotonic()
            self._look_for_end()
            if left <= 0:
                raise GivenUp("the next supervisor reads nothing")
            # Not by what comes in: that is the client's to read.
            pidfd, size = self._supervisor.pidfd, len(record[5])
            if channel.bell.wait(None, channel.outbound, size, min(left, _LOOK_SECONDS), pidfd, 0, False) & 2:
                raise _Died
        channel.peer_bell.ring()
