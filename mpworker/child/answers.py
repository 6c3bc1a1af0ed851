"""The way out of a child: records to the supervisor."""

from __future__ import annotations

import os

from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import Record
from mpworker.ipc.ring import split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_FOREVER: Final = -1.0
EXIT_CHANNEL_LOST: Final = 70  # the task closed our descriptors: the answer is in the ring, this process cannot go on


class Answers:
    """What one child answers.

    Args:
        channel: Its channel to the supervisor.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        # Bound here, once: each task comes by.
        self._push = channel.outbound.push
        self._ring = channel.peer_bell.ring
        self._max_payload = channel.outbound.max_payload

    def push(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        """Push one record, waiting for room: the supervisor always drains."""
        try:
            if len(data) > self._max_payload:
                self._push_in_parts((kind, flags, a, b, c, data))
            else:
                while not self._push(kind, flags, a, b, c, data):
                    self._wait_for_room(len(data))
            # What was pushed is in shared memory: the supervisor reads it to the end if we die here.
            self._ring()
        except OSError:
            os._exit(EXIT_CHANNEL_LOST)  # the task has closed our descriptors

    def _push_in_parts(self, record: Record) -> None:
        for part in split(record, self._max_payload // 2):
            while not self._push(*part):
                self._wait_for_room(len(part[5]))

    def _wait_for_room(self, need: int) -> None:
        self._ring()
        self._channel.bell.wait(None, self._channel.outbound, need, _FOREVER, -1, 0, False)
