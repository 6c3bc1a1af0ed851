"""How a child runs tasks: those that have nothing unusual in C (tasks.h), and any one of them here."""

from __future__ import annotations

import os
import sys
import time

from mpworker.child.answers import EXIT_CHANNEL_LOST
from mpworker.child.attempt import TaskInterrupted, is_ours
from mpworker.child.calls import UNREAD
from mpworker.child.outcomes import unserializable
from mpworker.child.runs import Runs
from mpworker.ipc import codec
from mpworker.ipc._native import Tasks, loads_plain
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import Record
from mpworker.ipc.failures import full
from mpworker.ipc.payload import NONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_UNUSUAL: Final = codec.DETAILED | codec.WATCHED | codec.ARENA


class TaskRunner(Runs):
    """Runs tasks; the arguments are those of `Runs`."""

    def takes_from(self, channel: Channel, max_payload_bytes: int, puts_off: bool = False) -> None:
        """Have `run_tasks` take them from a channel.

        Args:
            channel: The channel to the supervisor.
            max_payload_bytes: What a result may have.
            puts_off: The supervisor may be told of several answers at once: see tasks.h.
        """
        outcomes, calls = self._outcomes, self._calls
        self._tasks = Tasks(
            self._claims,
            self._attempt,
            channel.inbound,
            channel.outbound,
            channel.peer_bell,
            calls.received,
            calls.loads,
            outcomes.of_value,
            outcomes.of_failure,
            _of_unread,
            self._answers.push,
            max_payload_bytes,
            puts_off,
        )

    def run_tasks(self) -> Record | None:
        """Run what has come of tasks, up to the first record that is something else, or has something unusual.

        Returns:
            That record; None if nothing is left.
        """
        try:
            return self._tasks.run()
        except OSError:
            os._exit(EXIT_CHANNEL_LOST)  # a task has closed our descriptors: see `Answers`

    def run_task(  # noqa: PLR0912, PLR0915  # nearly all tasks pass few of its branches, and each call costs them more
        self, flags: int, task: int, generation: int, c: int, data: bytes | MemoryError
    ) -> None:
        """Claim the task of a TASK record, run it, and answer; nothing if it was revoked."""
        attempt, outcomes, calls = self._attempt, self._outcomes, self._calls
        slot = c & 0xFF
        started = self._claims.claim(slot, generation)
        if not started:
            return
        attempt.number = flags & codec.LOW
        attempt.task = task
        attempt.details = b""
        late = False
        try:
            if flags & _UNUSUAL:
                if flags & codec.WATCHED:
                    self._answers.push(codec.BEGUN, 0, started, generation, slot, b"")
                data, late = attempt.detailed(flags, started, data)
                if flags & codec.ARENA:
                    data = self._received(data)  # type: ignore[assignment]  # for `loads`, which takes either
            function = c >> 8
            if function:
                # As `function` does, without a call more for each task.
                known = calls.received[function]
                call = calls.function(function) if isinstance(known, UNREAD) else known
                args, kwargs = loads_plain(data, calls.loads)
            else:
                call, args, kwargs = calls.loaded(data)
        except BaseException as error:  # noqa: BLE001
            status, out = _of_unread(error)
        else:
            attempt.slot = slot
            try:
                try:
                    if late:
                        attempt.stack = ""
                        raise TaskInterrupted
                    attempt.running = generation
                    if attempt.early:  # it came while the call was unpickled, perhaps: no time to raise anything
                        attempt.on_interrupt(0, sys._getframe())
                    value = call(*args, **kwargs)
                finally:
                    attempt.running = 0
            except BaseException as error:  # noqa: BLE001
                status, out = outcomes.of_failure(error)
            else:
                if attempt.stack is not None:
                    status, out = outcomes.of_interrupt()
                elif value is None:  # as `of_value` does, without a call more for what many tasks return
                    status, out = codec.OK, NONE
                else:
                    status, out = outcomes.of_value(value)
                    value = None  # not kept until the next task
            args = kwargs = None
        attempt.number = 0
        if flags & codec.ARENA:
            data = b""
            self._call_is_over()
        duration = time.monotonic_ns() - started
        self._answers.push(codec.DONE, status, started, generation, slot | duration << 8, out)


def _of_unread(error: BaseException) -> tuple[int, bytes]:
    return unserializable("call", "arguments", error, full(error))


is_ours(TaskRunner.run_task.__code__)
is_ours(TaskRunner.run_tasks.__code__)
