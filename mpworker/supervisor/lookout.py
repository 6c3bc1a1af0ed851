"""Who looks on at the tasks of several clients: each client hears of its own, and the log of what is the operator's.

The log is a line of JSON for each record, to the descriptor that this process has opened for itself. It never waits for
whoever reads that: what does not go through is counted, and the count goes out with the next line that does. Nothing
here has seen a call or a result, so no line can tell of one.
"""

from __future__ import annotations

import time

from mpworker.ipc import codec, json
from mpworker.ipc.levels import NAMES
from mpworker.supervisor.fair import client_of
from mpworker.supervisor.watching import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from mpworker.supervisor.fanout import ClientPort
    from mpworker.supervisor.history import Ended
    from mpworker.supervisor.registry import Attempt, Task


class Log:
    """Where the lines go.

    Args:
        write: Takes a line, and says how much of it has gone through; it raises OSError rather than wait.
    """

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write = write
        self._dropped = 0

    def write(self, level: int, event: str, fields: dict[str, object]) -> None:
        """One record."""
        said = {"at": round(time.time(), 6), "level": NAMES.get(level, str(level)), "event": event, **fields}
        if self._dropped:
            said["dropped"] = self._dropped
        line = json.dumps(said).encode() + b"\n"
        try:
            if self._write(line) == len(line):
                self._dropped = 0
                return
        except OSError:
            pass  # full, or closed
        self._dropped += 1


class Lookout(Watch):
    """A `mpworker.supervisor.effects.Watcher` for all clients.

    Args:
        level: The least level that is logged.
        log: The log.

    Attributes:
        watches: Those of the clients, by their numbers.
        tried_again: Is called with each task of which another attempt follows.
        name_of: Tells the name of a task or chunk by its number; "" for none.
    """

    def __init__(self, level: int, log: Log) -> None:
        nobody: ClientPort = None  # type: ignore[assignment]  # what is told goes to the clients' own, or to the log
        super().__init__(nobody, level)
        self._log = log
        self.watches: dict[int, Watch] = {}
        self.tried_again: Callable[[Task], None] = lambda _: None
        self.name_of: Callable[[int], str] = lambda _: ""

    def accepted(self, task: Task) -> None:
        """See `mpworker.supervisor.effects.Watcher`, here and below."""
        watch = self.watches.get(client_of(task.key))
        if watch is not None and watch.tells:
            watch.accepted(task)

    def begun(self, task: Task, pid: int, started_at: float) -> None:
        watch = self.watches.get(client_of(task.key))
        if watch is not None:
            watch.begun(task, pid, started_at)

    def noted(self, task: Task, attempt: Attempt) -> None:
        watch = self.watches.get(client_of(task.key))
        if watch is not None:
            watch.noted(task, attempt)

    def retried(self, task: Task, pause: float) -> None:
        super().retried(task, pause)
        self.tried_again(task)
        watch = self.watches.get(client_of(task.key))
        if watch is not None and watch.tells:
            watch.told_of_retry(task, pause)

    def ended(self, entry: Ended) -> None:
        watch = self.watches.get(client_of(entry[0].key))
        if watch is not None:
            watch.ended(entry)

    def log(self, level: int, event: str, task: int = 0, **fields: object) -> None:
        """A record for the log, and for the client whose task it is of."""
        client = client_of(task)
        if level >= self._level:
            of: dict[str, object] = {}
            if task:
                of = {"client": client, "task": task & codec.TASK_MASK}
                name = self.name_of(task)
                if name:
                    of["name"] = name
            self._log.write(level, event, of | fields)
        watch = self.watches.get(client) if task else None
        if watch is not None:
            watch.log(level, event, task, **fields)
