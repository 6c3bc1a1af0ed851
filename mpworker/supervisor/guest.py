"""One client of several: the session of somebody who has attached, and may leave or be lost at any moment."""

from __future__ import annotations

import time

from mpworker.ipc import codec, json
from mpworker.ipc._native import RECORD_HEADER_BYTES
from mpworker.ipc.levels import ERROR
from mpworker.supervisor.requests import counts_at_the_end
from mpworker.supervisor.session import Session
from mpworker.supervisor.watching import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mpworker.supervisor.accounts import Account
    from mpworker.supervisor.daemon import Daemon
    from mpworker.supervisor.gate import Peer
    from mpworker.supervisor.hall import Port
    from mpworker.supervisor.registry import DetailedTask


class Guest(Session):
    """One client.

    Args:
        daemon: Which serves it.
        port: Its port.
        account: What of the scheduler is its own.
        peer: The process.
        hello: What it has said.

    Attributes:
        peer: The process.
        account: As above.
        name: What it calls itself.
        finishes: What it has submitted goes on when it is gone.
    """

    __slots__ = ("_since", "account", "finishes", "found", "name", "own_port", "peer")

    def __init__(self, daemon: Daemon, port: Port, account: Account, peer: Peer, hello: dict[str, Any]) -> None:
        scheduler: Any = account
        self.account = account
        self.own_port = port
        self.peer = peer
        self.name = str(hello["name"])[:64]
        self.finishes = hello["when_gone"] == "finish"
        self._since = time.monotonic()
        self.found = 0  # records, when it was looked at last
        super().__init__(daemon, port, scheduler, Watch(port, int(hello["log_level"])))

    @property
    def number(self) -> int:
        """That of the client."""
        return self.own_port.number

    @property
    def watch(self) -> Watch:
        """Who looks on for it."""
        return self._watch

    def read(self) -> int:
        try:
            self.found = super().read()
        except Exception as error:  # noqa: BLE001  # whatever its records do here, they do it to no other client
            self._failed(error)
            self.found = 0
        return self.found

    def end_turn(self, now: float) -> None:
        try:
            super().end_turn(now)
        except Exception as error:  # noqa: BLE001  # as above: here it is answered what it has asked
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.loop.watch.log(ERROR, "client_failed", client=self.number, error=type(error).__name__)
        self.loop.condemned(self)

    def read_whole(self) -> None:
        """Take in all that it had sent when it died, but no more than a ring has room for."""
        for _ in range(1 + self.own_port.channel.inbound.fill() // RECORD_HEADER_BYTES):
            if self.own_port.broken or not self.read():
                return

    def submitted_again(self, task: DetailedTask, data: bytes) -> None:
        self.account.submitted_again(task, self.own_port.before(data))

    def may_steer(self) -> None:
        self.account.may_steer()

    def described(self, now: float) -> dict[str, Any]:
        """What an operator is told of it."""
        account = self.account
        failed = sum(account.ended.values())
        return {
            "client": self.number,
            "name": self.name,
            "pid": self.peer.pid,
            "uid": self.peer.uid,
            "for": now - self._since,
            "accepted": account.accepted,
            "unfinished": account.unfinished_tasks(),
            "completed": account.accepted - account.unfinished_tasks() - failed,
            "not_completed": failed,
            "retries": account.retries,
            "latency": self.latency.told(),
        }

    def is_silent(self) -> bool:
        """Has it said nothing when it was looked at last, and is there nothing left to be done for it?"""
        return not (self.found or self.has_left() or self.requests.are_open())

    def dissolve(self) -> None:
        """It is gone, and so are its tasks: what refers to each other here does so no more, for nobody collects it."""
        del self.requests
        self.cron = None
        self.own_port.leave()

    def say_farewell(self) -> None:
        """All is well, and it is served no more: its counts, and the word that tells this from a crash."""
        port = self.own_port
        port.flush_client()
        port.send(codec.FAREWELL, 0, 0, 0, 0, json.dumps(counts_at_the_end(self)).encode())
        self.ring()
        self.peer.frames.say(codec.LEFT)
