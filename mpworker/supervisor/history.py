"""The tasks that have ended, as long as they are remembered."""

from __future__ import annotations

from mpworker.containers import OrderedDict, deque
from mpworker.supervisor.registry import Task, size_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeAlias

# What came of it: a payload, or what was decided here.
Outcome: TypeAlias = bytes | dict[str, object]
# The task, its final status, and of the attempt that ended it the process, the start and the duration in ns: all 0 if
# that attempt is in the task's `past`, or if none began. A plain tuple: one is made for every task.
Ended: TypeAlias = tuple[Task, int, int, int, int]

FOUND_BY_LOOKING_MAX: Final = 4096  # entries; where there may be more, each task pays for an index of them


class History:
    """What is remembered, oldest first.

    Args:
        max_entries: How many tasks, 0 for none.
        max_bytes: How many bytes of their payloads.
        ttl: Seconds that a task is remembered, None for as long as there is room.
        results: Are results kept, too, and not only what went wrong?

    Attributes:
        entries: The tasks.
        append: Whoever ends a task calls this; `change` makes it another.
        any_results: Is some task's result kept? Only then `keep_result` need be asked.
    """

    def __init__(self, max_entries: int, max_bytes: int, ttl: float | None, results: bool) -> None:
        self._remember(deque(maxlen=max_entries))
        self.max_bytes = max_bytes
        self.ttl = ttl
        self.results = self.any_results = results
        self._payloads: OrderedDict[int, tuple[bytes, Outcome]] = OrderedDict()  # by key: the call, and the outcome
        self._bytes = 0
        self._times: deque[tuple[float, Task]] = deque()  # the last one that was there at these times

    def change(self, max_entries: int, max_bytes: int, ttl: float | None, results: bool) -> None:
        """Other figures from now on."""
        self._remember(deque(self.entries, maxlen=max_entries))
        self.max_bytes, self.ttl, self.results = max_bytes, ttl, results
        self.any_results |= results
        self._trim()

    def _remember(self, entries: deque[Ended]) -> None:
        self.entries = entries
        self._by_key: dict[int, Ended] | None = None
        self.append: Callable[[Ended], None] = entries.append
        if (entries.maxlen or 0) > FOUND_BY_LOOKING_MAX:
            self._by_key = {entry[0].key: entry for entry in entries}
            self.append = self._append_by_key

    def _append_by_key(self, entry: Ended) -> None:
        assert self._by_key is not None
        if len(self.entries) == self.entries.maxlen:
            del self._by_key[self.entries[0][0].key]
        self.entries.append(entry)
        self._by_key[entry[0].key] = entry

    def keep_result(self, task: Task, result: bytes) -> None:
        """Keep a result, if it is to be kept: of a task with an idempotency key another future of it may be wanted."""
        if self.results or task.keyed:
            self.keep(task, result)

    def keep(self, task: Task, outcome: Outcome) -> None:
        """What a task was called with, to run it again, and what has come of it."""
        if self.entries.maxlen:
            call = task.payload
            if call.__class__ is not bytes:
                call.over()  # type: ignore[attr-defined]  # a `Held`, which these files know no more of
            self._payloads[task.key] = (call, outcome)
            self._bytes += size_of(call) + size_of(outcome)
            self._trim()

    def _trim(self) -> None:
        while self._payloads and (self._bytes > self.max_bytes or len(self._payloads) > (self.entries.maxlen or 0)):
            _, (call, outcome) = self._payloads.popitem(last=False)
            self._bytes -= size_of(call) + size_of(outcome)

    def payloads(self, key: int) -> tuple[bytes, Outcome] | None:
        """The call of a task and its outcome, if they are kept."""
        return self._payloads.get(key)

    def remembered(self) -> tuple[Ended, ...]:
        """All of it as it is now, oldest first: with `debug=True` other threads end tasks meanwhile."""
        return tuple(self.entries)

    def find(self, key: int) -> Ended | None:
        """One task, if it is remembered."""
        if self._by_key is not None:
            return self._by_key.get(key)
        return next((entry for entry in reversed(self.remembered()) if entry[0].key == key), None)

    def evict(self, now: float) -> None:
        """Forget what is too old; to be called every now and then, for nobody notes when each task ended."""
        if self.ttl is None:
            self._times.clear()
            return
        last: Task | None = None
        while self._times and self._times[0][0] + self.ttl <= now:
            last = self._times.popleft()[1]
        if last is not None and any(entry[0] is last for entry in self.remembered()):
            while self.entries and self._forget(self.entries.popleft()) is not last:
                pass
        if self.entries and (not self._times or self._times[-1][1] is not self.entries[-1][0]):
            self._times.append((now, self.entries[-1][0]))

    def _forget(self, entry: Ended) -> Task:
        if self._by_key is not None:
            del self._by_key[entry[0].key]
        kept = self._payloads.pop(entry[0].key, None)
        if kept is not None:
            self._bytes -= size_of(kept[0]) + size_of(kept[1])
        return entry[0]
