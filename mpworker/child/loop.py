"""What a child does all its life: it takes records from its ring, and has each done."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mpworker import context
from mpworker.ipc import codec
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import Record
from mpworker.ipc.ring import Assembler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, TypeAlias

_BATCH: Final = 128
_FOREVER: Final = -1.0
Run: TypeAlias = Callable[[int, int, int, int, bytes | MemoryError], None]


class Loop:
    """The loop.

    Args:
        channel: The channel to the supervisor.
        functions: What has come of them, by their numbers.
        max_payload_bytes: What a payload in parts may have.
        spin_ns: How long it looks for the next record before it sleeps.
    """

    def __init__(self, channel: Channel, functions: dict[int, Any], max_payload_bytes: int, spin_ns: int) -> None:
        self._channel = channel
        self._functions = functions
        self._assembler = Assembler(max_payload_bytes)
        self._spin_ns = spin_ns

    def serve(self, run_task: Run, run_range: Run) -> None:
        """Run tasks until EXIT, or until a task has left what only the end of this process can clear away."""
        inbound, bell = self._channel.inbound, self._channel.bell
        peer_bell = self._channel.peer_bell
        batch: list[Record] = []
        while True:
            if not self._pop(batch):
                flush_streams()
                bell.wait(inbound, None, 0, _FOREVER, -1, self._spin_ns)
                continue
            peer_bell.ring_room()
            for kind, flags, a, b, c, part in batch:
                data = self._whole(flags, part) if flags & codec.FRAGMENTED else part
                if kind == codec.TASK:
                    run_task(flags, a, b, c, data)
                elif kind == codec.RANGE:
                    run_range(flags, a, b, c, data)
                elif kind == codec.FRAGMENT:
                    self._assembler.add(flags, part)
                elif kind == codec.FUNCTION:
                    self._functions[a] = data
                elif kind == codec.FORGET:
                    self._functions.pop(a, None)
                elif kind == codec.EXIT:
                    return
                if context._orphans:
                    return  # they die with this process; what it has not begun goes elsewhere
            batch.clear()

    def _pop(self, batch: list[Record]) -> int:
        try:
            return self._channel.inbound.pop(batch, _BATCH)
        except MemoryError:
            if not self._assembler.give_up():
                raise
            return self._channel.inbound.pop(batch, _BATCH)

    def _whole(self, flags: int, last: bytes) -> bytes | MemoryError:
        """A payload that came in parts. Where memory is short of it, that is said of the task, once it is claimed."""
        try:
            return self._assembler.finish(flags, last)
        except MemoryError as error:
            return error


def flush_streams() -> None:
    """Let out what tasks have printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the task closed or replaced it: nothing of ours is in it
