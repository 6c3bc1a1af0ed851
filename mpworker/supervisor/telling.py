"""What a client that listens is told of runs of recurring tasks, for which it has no futures.

Each run is announced before it is handed over, and once it has ended its outcome is sent, exactly once. When the client
begins to listen, those that are under way are announced first. When it no longer does, no more are announced; of those
that were, the outcome still comes, so that on the other side none stays open. While nobody listens a run costs two
looks here, and no record.

A client that reads nothing leaves no more than WAITING_MAX records waiting: beyond that runs are not announced, and
the next announcement says how many were left out.
"""

import json
from collections.abc import Callable, Iterable

from mpworker.ipc import codec, details
from mpworker.supervisor.fanout import ClientPort
from mpworker.supervisor.registry import Task
from mpworker.supervisor.watching import WAITING_MAX


class Telling:
    """Tells one client.

    Args:
        port: The client.
        find: Finds a task that has not ended by its number.
    """

    def __init__(self, port: ClientPort, find: Callable[[int], Task | None]) -> None:
        self._port = port
        self._find = find
        self._on = False
        self._announced: set[int] = set()
        self._left_out = 0

    def listen(self, on: bool, under_way: Iterable[int]) -> None:
        """The client listens from now on, or no longer.

        Args:
            on: Whether it does.
            under_way: The numbers of the runs that have not ended.
        """
        self._on = on
        for key in sorted({*under_way} - self._announced) if on else ():
            task = self._find(key)
            if task is not None:  # else it has not been handed over yet
                self.begins(task)

    def begins(self, task: Task) -> None:
        """A run is about to be handed over."""
        if not self._on:
            return
        if len(self._port.outbox.waiting) >= WAITING_MAX:
            self._left_out += 1
            return
        key = task.key & codec.TASK_MASK
        self._announced.add(key)
        said = {"name": details.read(task.payload)["name"], "queue": task.options.queue}
        self._port.send(codec.RUN, 0, key, self._left_out, 0, json.dumps(said).encode())

    def ended(self, key: int, status: int, payload: bytes) -> None:
        """A run has its outcome."""
        if key in self._announced:
            self._announced.remove(key)
            self._port.send(codec.RAN, status, key, 0, 0, payload)
