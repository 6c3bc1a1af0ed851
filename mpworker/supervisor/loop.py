"""The supervisor of one client, which has started it, and with which it ends."""

from __future__ import annotations

from mpworker.ipc import codec, frames, json
from mpworker.ipc.channel import Channel
from mpworker.ipc.ring import RingCorrupt
from mpworker.supervisor.ids import Ids
from mpworker.supervisor.nursing import DRAIN, NOW
from mpworker.supervisor.requests import counts_at_the_end
from mpworker.supervisor.serving import Serving
from mpworker.supervisor.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class Loop(Serving):
    """One supervisor.

    Args:
        config: What the client sent.
        client: The socket to the client; its end is the client's.
        channel: The channel to the client.
        fds: What the nursery needs: its configuration, and the arenas.
        client_pidfd: Readable when the client process is dead.

    Attributes:
        session: The client's.
    """

    def __init__(
        self, config: dict[str, Any], client: frames.Frames, channel: Channel, fds: list[int], client_pidfd: int
    ) -> None:
        super().__init__(config, channel, fds)
        self._client = client
        self._client_pidfd = client_pidfd
        self.world.ids = Ids(self.scheduler.keys)
        self.session = Session(self, self.world, self.scheduler, self.watch)
        self.sessions[self.session] = None
        self._only = (self.session,)

    def run(self) -> None:
        """Serve until the client is gone or has stopped us."""
        self._watch_bell(self.world.channel)
        self._watch(self._client.fileno(), self._client_gone)
        self._watch(self._client_pidfd, self._client_gone)
        self.serve_until_the_end()
        self._say_farewell()

    def _told_sessions(self) -> Iterable[Session]:
        return self._only

    def _client_gone(self) -> None:
        self._stopping = NOW

    def condemned(self, session: Session) -> None:
        """It gets no service, and we have no other."""
        self._stopping = NOW

    # ------------------------------------------------------------ the end

    def stop(self, session: Session, now: bool) -> None:
        """End at once, or when all that was accepted has ended."""
        self._stopping = NOW if now else DRAIN
        if session.cron is not None:
            session.cron.close(waiting=True)
        self.scheduler.close()

    def _look_at_the_end(self, now: float) -> None:
        """All done? Then the children exit, and then we."""
        exits = self._stopping == DRAIN and (self._exit_at is not None or self.session.is_finished())
        if exits and self._children_are_gone(now):
            self._stopping = NOW

    def _times(self) -> list[float | None]:
        return [*super()._times(), self._exit_at]

    def _broken(self, why: str, traceback: str) -> None:
        if self._stopping != NOW:
            report = {"what": "the children", "why": why, "traceback": traceback}
            self.world.send(codec.BROKEN, 0, 0, 0, 0, json.dumps(report).encode())
            self.world.channel.peer_bell.ring()
            self._stopping = NOW

    def _say_farewell(self) -> None:
        """Nobody can be asked any more: say what is asked most often, if the client has room for it."""
        try:
            self.world.flush_client()
            self.world.send(codec.FAREWELL, 0, 0, 0, 0, json.dumps(counts_at_the_end(self.session)).encode())
        except RingCorrupt:
            pass  # it is told nothing
