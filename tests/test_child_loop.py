"""A child's loop: in which order it does what comes, also what comes while it asks for room."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from mpworker.child.loop import Loop
from mpworker.ipc import codec
from mpworker.ipc._native import AttemptState
from mpworker.ipc.channel import Channel, close_all, make_channel
from mpworker.ipc.codec import Record

CAPACITIES = (4096, 4096)


class Side:
    """A child's side of a channel, whose bell is asked only where there is nothing to do."""

    def __init__(self, fds: list[int]) -> None:
        channel = Channel(fds, CAPACITIES, 1)
        self.inbound, self.peer_bell, self.bell, self.close = channel.inbound, channel.peer_bell, self, channel.close

    def wait(self, *_: Any) -> None:
        raise AssertionError("it sleeps, with something to do")


class Child:
    """A loop whose tasks are noted, and the first of which asks for room."""

    def __init__(self) -> None:
        fds, self.supervisor = make_channel("test-child-loop", CAPACITIES)
        self.side = Side(fds)
        close_all(fds[:1])
        self.attempt = AttemptState()
        self.received: dict[int, bytes] = {}
        self.contexts: dict[int, Any] = {}
        self.wanted: list[int] = []
        self.done: list[tuple[str, int]] = []
        self.lent: Record | None = None
        parts: Any = (self.side, self, self.attempt, self, 1 << 20, 0)
        self.loop = Loop(*parts)

    def push(self, _kind: int, _flags: int, a: int, *_: Any) -> None:
        self.wanted.append(a)

    def send(self, kind: int, a: int, data: bytes = b"") -> None:
        assert self.supervisor.outbound.push(kind, 0, a, 0, 0, data)

    def run_tasks(self) -> Record | None:
        """As tasks.h: the first thing to be done is a task, which asks for room."""
        if self.lent is None:
            self.lent = self.loop.ask(1000)
            return None
        assert not self.attempt.held_back
        found: list[Record] = []
        self.side.inbound.pop(found, 1)
        return found[0] if found else None

    def run_task(self, _flags: int, task: int, *_: Any) -> None:
        self.done.append(("task", task))
        if task == 2:
            assert self.loop.ask(2000)[2] == 20

    def serve(self) -> None:
        tasks: Any = self
        self.loop.serve(
            tasks,
            lambda _flags, task, *_: self.done.append(("range", task)),
            lambda number: self.done.append(("taken away", number)),
            lambda number: self.done.append(("let go", number)),
        )


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.side.close()
    made.supervisor.close()
    vars(made).clear()  # it is known to its own loop, and what is mapped keeps a descriptor
    gc.collect()


def test_what_comes_while_it_asks_is_done_in_the_order_in_which_it_came(child: Child) -> None:
    child.send(codec.FUNCTION, 7, b"call")
    child.send(codec.TASK, 1)
    child.send(codec.TASK, 2)
    child.send(codec.LENT, 10)
    child.send(codec.FREE, 5)
    child.send(codec.LENT, 20)
    child.send(codec.UNSHARE, 6)
    child.send(codec.RANGE, 3)
    child.send(codec.EXIT, 0)
    child.serve()
    assert child.lent is not None
    assert (child.lent[2], child.wanted, child.received) == (10, [1000, 2000], {7: b"call"})
    assert child.done == [("task", 1), ("task", 2), ("taken away", 5), ("let go", 6), ("range", 3)]


def test_it_does_what_came_while_it_asked_though_nothing_more_comes(child: Child) -> None:
    child.send(codec.EXIT, 0)
    child.send(codec.LENT, 10)
    child.serve()
    assert child.lent is not None
    assert not child.done


def test_what_a_task_has_orphaned_ends_it_with_nothing_more_done(child: Child) -> None:
    child.send(codec.TASK, 1)
    child.send(codec.LENT, 10)
    child.attempt.orphans = True
    child.serve()
    assert not child.done
