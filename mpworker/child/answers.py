"""The way out of a child: records to the supervisor."""

import os
from typing import Final

from mpworker.ipc.channel import Channel
from mpworker.ipc.ring import split

_FOREVER: Final = -1.0
EXIT_CHANNEL_LOST: Final = 70  # the task closed our descriptors: the answer is in the ring, this process cannot go on


class Answers:
    """What one child answers.

    Args:
        channel: Its channel to the supervisor.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def push(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        """Push one record, waiting for room: the supervisor always drains."""
        ring = self._channel.outbound
        if len(data) <= ring.max_payload:
            while not ring.push(kind, flags, a, b, c, data):
                self._wait_for_room(len(data))
        else:
            for part in split((kind, flags, a, b, c, data), ring.max_payload // 2):
                while not ring.push(*part):
                    self._wait_for_room(len(part[5]))
        self._ring_supervisor()

    def _wait_for_room(self, need: int) -> None:
        self._ring_supervisor()
        self._channel.bell.wait(None, self._channel.outbound, need, _FOREVER, -1, 0)

    def _ring_supervisor(self) -> None:
        try:
            self._channel.peer_bell.ring()
        except OSError:
            # The task has closed our descriptors. What was pushed is in shared memory: the supervisor reads the ring to
            # its end when it sees this process die.
            os._exit(EXIT_CHANNEL_LOST)
