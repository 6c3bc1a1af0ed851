"""What a child does all its life: it takes records from its ring, and has each done."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mpworker.child.answers import Answers
from mpworker.child.attempt import Attempt
from mpworker.child.calls import Calls, Context
from mpworker.child.task import TaskRunner
from mpworker.ipc import codec, json
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import Record
from mpworker.ipc.ring import Assembler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypeAlias

_FOREVER: Final = -1.0
Run: TypeAlias = Callable[[int, int, int, int, bytes | MemoryError], None]


class Loop:
    """The loop.

    Args:
        channel: The channel to the supervisor.
        answers: The way out.
        attempt: What runs.
        calls: What has come of functions, and what is known of many tasks.
        max_payload_bytes: What a payload in parts may have.
        spin_ns: How long it looks for the next record before it sleeps.
    """

    def __init__(
        self,
        channel: Channel,
        answers: Answers,
        attempt: Attempt,
        calls: Calls,
        max_payload_bytes: int,
        spin_ns: int,
    ) -> None:
        self._channel = channel
        self._answers = answers
        self._attempt = attempt
        self._functions = calls.received
        self._contexts = calls.contexts
        self._assembler = Assembler(max_payload_bytes)
        self._spin_ns = spin_ns
        self._waiting: list[Record] = []

    def ask(self, size: int) -> Record:
        """Ask for room for a result of so many bytes; the answer.

        What comes before that waits for its turn, which is before that of all that is in the ring still.
        """
        self._answers.push(codec.WANT, 0, size, 0, 0, b"")
        inbound, bell, ring_room = self._channel.inbound, self._channel.bell, self._channel.peer_bell.ring_room
        while True:
            found: list[Record] = []
            while not inbound.pop(found, 1):
                bell.wait(inbound, None, 0, _FOREVER, -1, self._spin_ns, False)
            ring_room()
            if found[0][0] == codec.LENT:
                return found[0]
            self._waiting += found
            self._attempt.held_back = True

    def serve(
        self, tasks: TaskRunner, run_range: Run, taken_away: Callable[[int], None], let_go: Callable[[int], None]
    ) -> None:
        """Run tasks until EXIT, or until a task has left what only the end of this process can clear away.

        Args:
            tasks: Runs tasks.
            run_range: Called with what a RANGE record says,
            taken_away: and with the number of a block that is another child's by now.
            let_go: The same for that of a shared object that nobody needs here any more.
        """
        inbound, bell = self._channel.inbound, self._channel.bell
        waiting, attempt = self._waiting, self._attempt
        while not attempt.orphans:  # they die with this process; what it has not begun goes elsewhere
            record = self._next(tasks)
            if record is None:
                if not (waiting or attempt.orphans):  # either may have come of the last task, the first by `ask`
                    flush_streams()
                    bell.wait(inbound, None, 0, _FOREVER, -1, self._spin_ns, False)
                continue
            kind, flags, a, b, c, part = record
            data = self._whole(flags, part) if flags & codec.FRAGMENTED else part
            if kind == codec.TASK:
                tasks.run_task(flags, a, b, c, data)
            elif kind == codec.RANGE:
                run_range(flags, a, b, c, data)
            elif kind == codec.FRAGMENT:
                self._assembler.add(flags, part)
            elif kind == codec.FUNCTION:
                self._functions[a] = data
            elif kind == codec.FORGET:
                self._functions.pop(a, None)
            elif kind == codec.CONTEXT:
                self._learn(a, b, data)
            elif kind == codec.EXIT:
                return
            elif kind == codec.FREE:
                taken_away(a)
            elif kind == codec.UNSHARE:
                let_go(a)

    def _learn(self, number: int, judge: int, said: bytes | MemoryError) -> None:
        """Here is what is known of many tasks, or that there are no more of them."""
        if judge or said:
            prefix = json.loads(said)["prefix"] if isinstance(said, bytes) and said else None
            self._contexts[number] = Context(judge, prefix)
        else:
            self._contexts.pop(number, None)

    def _next(self, tasks: TaskRunner) -> Record | None:
        if self._waiting:
            record = self._waiting.pop(0)
            self._attempt.held_back = bool(self._waiting)
            return record
        try:
            return tasks.run_tasks()
        except MemoryError:
            if not self._assembler.give_up():
                raise
            return tasks.run_tasks()

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
