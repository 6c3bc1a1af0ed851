"""The supervisor's loop: what it notices while its rings are never empty."""

import _socket
import os
import time

from mpworker.ipc import frames
from mpworker.ipc.channel import close_all, make_channel
from mpworker.supervisor.loop import Loop

_CONFIG = {
    "n": 1,
    "slots": 8,
    "lease_ttl": 10.0,
    "grace": 1.0,
    "start_timeout": 10.0,
    "kill_timeout": 10.0,
    "child_ring_bytes": 4096,
    "child": {"max_payload_bytes": 1 << 20},
}


class _NeverIdle(Loop):
    """A loop whose every turn finds a full batch, and which has no processes."""

    give_up_at = 0.0
    turns = 0
    client_end: _socket.socket

    def _start_nursery(self) -> None:
        self.give_up_at = time.monotonic() + 20

    def _turn(self) -> int:
        self.turns += 1
        if self.turns == 100:
            self.client_end.close()  # as the kernel does for a process that dies
        self._turned_at = time.monotonic()
        assert self._turned_at < self.give_up_at, "the death of the client went unnoticed"
        return 1000


def test_a_supervisor_that_is_never_idle_notices_its_clients_death() -> None:
    ours, theirs = frames.pair()
    fds, channel = make_channel("test", (4096, 4096))
    close_all(fds)
    pidfd = os.pidfd_open(os.getpid())
    blob = os.memfd_create("blob")
    try:
        loop = _NeverIdle(_CONFIG, ours, channel, blob, pidfd)
        loop.client_end = theirs
        loop.run()
    finally:
        ours.close()
        channel.close()
        os.close(pidfd)
        os.close(blob)
