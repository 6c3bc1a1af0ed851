"""The order of starts where tasks are of several clients: those of equal rank take turns by client.

Queues, priorities and weights are as ever, and of all clients together: whoever runs the supervisor says what they
mean. Within a queue and a rank each client has a line of its own, and one task of each goes after the other: a client
that has sent a million tasks is in the way of another one's first by one task, and not by a million.

What is to be of no account for a while, because its client takes in no results or is gone, is set aside, and in
nobody's way: its place among the tasks of its own client it finds again.
"""

from __future__ import annotations

import heapq

from mpworker.containers import deque
from mpworker.supervisor.lifecycle import QUEUED
from mpworker.supervisor.queues import Queues
from mpworker.supervisor.registry import CONTEXT_SHIFT, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mpworker.supervisor.lanes import Lane


def client_of(key: int) -> int:
    """Whose task has this number: what is above the client's own part of it."""
    return key >> CONTEXT_SHIFT


class FairLine:
    """A line for each client, which take turns.

    What it costs does not depend on how many tasks or clients there are.
    """

    __slots__ = ("_count", "_lines", "_turns")

    def __init__(self) -> None:
        self._lines: dict[int, deque[Task]] = {}  # none of them is empty
        self._turns: deque[int] = deque()  # the clients that have one
        self._count = 0

    def append(self, task: Task) -> None:
        """One more."""
        client = client_of(task.key)
        line = self._lines.get(client)
        if line is None:
            line = self._lines[client] = deque()
            self._turns.append(client)
        line.append(task)
        self._count += 1

    def extend(self, tasks: Iterable[Task]) -> None:
        """Some more."""
        for task in tasks:
            self.append(task)

    def popleft(self) -> Task:
        """The next one; the next one then is another client's, if another has one."""
        client = self._turns.popleft()
        line = self._lines[client]
        task = line.popleft()
        self._count -= 1
        if line:
            self._turns.append(client)
        else:
            del self._lines[client]
        return task

    def take_out(self, client: int) -> Iterable[Task]:
        """All of one client, which are in it no longer."""
        line = self._lines.pop(client, None)
        if line is None:
            return ()
        self._turns.remove(client)
        self._count -= len(line)
        return line

    def clear(self) -> None:
        """None any more."""
        self._lines.clear()
        self._turns.clear()
        self._count = 0

    def __getitem__(self, index: int) -> Task:
        if index != 0:
            raise IndexError(index)
        return self._lines[self._turns[0]][0]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Task]:
        for client in self._turns:
            yield from self._lines[client]


class FairQueues(Queues):
    """All queues of one supervisor that has several clients."""

    def __init__(self) -> None:
        super().__init__(FairLine)
        self._aside: dict[int, dict[Task, None]] = {}  # by client

    def append(self, task: Task) -> None:
        """See `Queues`, here and below."""
        aside = self._aside.get(client_of(task.key))
        if aside is None:
            super().append(task)
        else:
            aside[task] = None

    def put_back(self, task: Task, owed: bool = True) -> None:
        aside = self._aside.get(client_of(task.key))
        if aside is None:
            super().put_back(task, owed)
        else:
            aside[task] = None

    def dropped(self, task: Task) -> None:
        aside = self._aside.get(client_of(task.key))
        if aside is not None and task in aside:
            del aside[task]
        else:
            super().dropped(task)

    def set_aside(self, client: int) -> None:
        """Nothing of this client's starts until `go_on_with`."""
        if client in self._aside:
            return
        aside = self._aside[client] = {}
        for queue in self._queues.values():
            found = [task for lane in queue.lanes.values() for task in _taken_out(lane, client)]
            for key in self._keys.values():
                for place in [place for place in key.parked if place[0] is queue]:
                    kept = [each for each in key.parked[place] if client_of(each[4].key) != client]
                    found += [each[4] for each in key.parked[place] if client_of(each[4].key) == client]
                    heapq.heapify(kept)
                    key.parked[place] = kept
                    if not kept:
                        del key.parked[place]
            if not found:
                continue
            waiting = [task for task in found if task.state == QUEUED]
            aside.update(dict.fromkeys(waiting))
            queue.count -= len(waiting)
            self._count -= len(waiting)
            queue.dead -= len(found) - len(waiting)
            queue.line = [lane for lane in queue.lanes.values() if lane]
            heapq.heapify(queue.line)
            self._turn = None
            self._look_at(queue)
        self._keys = {name: key for name, key in self._keys.items() if key.running or key.parked}

    def go_on_with(self, client: int) -> None:
        """The end of `set_aside`."""
        for task in self._aside.pop(client, ()):
            if task.order:
                super().put_back(task, owed=False)
            else:
                super().append(task)


def _taken_out(lane: Lane, client: int) -> list[Task]:
    """What a lane has of a client, and has no longer."""
    line = lane.fifo
    assert isinstance(line, FairLine)
    early = [each[3] for each in sorted(lane.early, key=lambda each: each[:3]) if client_of(each[3].key) == client]
    if early:
        lane.early = [each for each in lane.early if client_of(each[3].key) != client]
        heapq.heapify(lane.early)
    return [*early, *line.take_out(client)]
