"""How a child runs the items of a chunk of a `map`, and answers runs of them."""

from __future__ import annotations

import time

from mpworker.child.attempt import is_ours
from mpworker.child.outcomes import unserializable
from mpworker.child.runs import Runs
from mpworker.ipc import codec
from mpworker.ipc.failures import full

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_FLUSH_NS: Final = 1_000_000  # a chunk's results wait at most this long for the next item to begin


class ChunkRunner(Runs):
    """Runs chunks; the arguments are those of `Runs`."""

    def run_range(  # noqa: PLR0912, PLR0915  # what an answer, a flush and an interrupt change is local to one chunk
        self, flags: int, task: int, generation: int, c: int, data: bytes | MemoryError
    ) -> None:
        """Claim the chunk of a RANGE record, run its items, and answer; nothing if it was revoked."""
        attempt, outcomes = self._attempt, self._outcomes
        slot, start, stop = c & 0xFF, c >> 32 & 0xFFFF, c >> 48
        if not self._claims.claim(slot, generation):
            return
        attempt.number = flags & codec.LOW
        attempt.task = task
        attempt.slot = slot
        begun_at = time.monotonic_ns()
        try:
            call = self._calls.function(c >> 8 & 0xFFFFFF)
            attempt.details = b""
            if flags & codec.DETAILED:
                data = attempt.take_details(data)
            received = self._received(data) if flags & codec.ARENA else data
            items = list(self._calls.loads(received))  # of a range: it is one
            received = b""
        except BaseException as error:  # noqa: BLE001
            attempt.number = 0
            self._call_is_over()
            status, out = unserializable("call", "arguments", error, full(error))
            self._answers.push(codec.ITEMS, status | codec.LAST, start | stop << 32, generation, slot, out)
            return
        spread = bool(flags & codec.SPREAD)
        run = self._claims.run
        clock = time.monotonic_ns
        values: list[Any] = []
        flushed_at = begun_at
        first = index = start

        def flush(last: int) -> None:
            nonlocal first, flushed_at
            now = clock()
            if len(values) > 1 and self._claims.peek(slot)[4] == generation:
                # Halted, and perhaps for the last one: then its value comes too late, and the others' must not.
                late = values.pop()
                self._flush_values(values, first, generation, slot, now - flushed_at, 0)
                values.append(late)
                first = index - 1
                flushed_at = now
            self._flush_values(values, first, generation, slot, now - flushed_at, last)
            first = index
            flushed_at = now

        def drop_late() -> None:
            # The last item swallowed its interrupt: its value came too late.
            nonlocal index, first
            values.pop()
            index -= 1
            if values:
                flush(0)
            status, out = outcomes.of_interrupt()
            index += 1
            self._answers.push(codec.ITEMS, status, first | index << 32, generation, slot, out)
            first = index

        attempt.itemwise = True
        while True:
            try:
                try:
                    attempt.running = generation
                    over = run(slot, generation, call, items, values, first, stop, spread, flushed_at + _FLUSH_NS)
                finally:
                    attempt.running = 0
            except BaseException as error:
                if not self._claims.inside:
                    raise  # no item's: a fork of the child, say
                index = first + len(values)
                status, out = outcomes.of_failure(error)
                if values:
                    flush(0)
                index += 1
                duration = clock() - flushed_at
                self._answers.push(codec.ITEMS, status, first | index << 32, generation, slot | duration << 8, out)
                first = index
                flushed_at = clock()
                continue
            index = first + len(values)
            if over:
                break
            if attempt.stack is not None:
                drop_late()
            else:
                flush(0)
        attempt.itemwise = False
        if attempt.stack is not None:
            drop_late()
        attempt.number = 0
        if flags & codec.ARENA:
            if values:
                flush(0)
            items.clear()  # what still views them is somebody's who keeps it
            self._call_is_over()
        flush(codec.LAST)

    def _flush_values(
        self, values: list[Any], first: int, generation: int, slot: int, duration: int, last: int
    ) -> None:
        """Answer a run of values from item `first` on; one by one if they do not pickle together."""
        stop = first + len(values)
        try:
            status, out = self._outcomes.of_values(values)
        except BaseException:  # noqa: BLE001  # said below, of the value whose fault it is
            for offset, value in enumerate(values):
                status, one = self._outcome_of_one(value)
                end = last if offset == len(values) - 1 else 0
                at = first + offset
                self._answers.push(codec.ITEMS, status | end, at | at + 1 << 32, generation, slot | duration << 8, one)
        else:
            self._answers.push(codec.ITEMS, status | last, first | stop << 32, generation, slot | duration << 8, out)
        values.clear()

    def _outcome_of_one(self, value: Any) -> tuple[int, bytes]:
        status, out = self._outcomes.of_value([value], self._outcomes.dumps_tried)
        if status == codec.UNSERIALIZABLE:
            again, named = self._outcomes.of_value(value, self._outcomes.dumps_tried)
            if again == status:
                return again, named  # this message names the value's type, not the list's
        return status, out


is_ours(ChunkRunner.run_range.__code__)
