"""What a client that listens is told of runs, record by record."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from mpworker.ipc import codec, details
from mpworker.supervisor import telling
from mpworker.supervisor.registry import DetailedTask, TaskOptions
from mpworker.supervisor.telling import Telling


class Port:
    """A client, and what it is sent: kind, key and what else is told."""

    def __init__(self) -> None:
        self.outbox = SimpleNamespace(waiting=deque[int]())
        self.sent: list[tuple[int, int, int]] = []

    def send(self, kind: int, flags: int, a: int, b: int, c: int, payload: bytes) -> None:
        self.sent.append((kind, a, b if kind == codec.RUN else flags))


def a_run(key: int) -> DetailedTask:
    options = TaskOptions(queue="mail")
    return DetailedTask(key, None, options, details.pack({"name": "it"}) + b"call", 0, codec.DETAILED)


class World:
    """A client, and the runs that are under way."""

    def __init__(self) -> None:
        self.port: Any = Port()
        self.tasks: dict[int, DetailedTask] = {}
        self.telling = Telling(self.port, self.tasks.get)

    def begin(self, *keys: int) -> None:
        for key in keys:
            run = a_run(key)
            self.telling.begins(run)
            self.tasks[key] = run

    def end(self, *keys: int) -> None:
        for key in keys:
            del self.tasks[key]
            self.telling.ended(key, codec.OK, b"value")

    def listen(self, on: bool, *more: int) -> None:
        self.telling.listen(on, [*self.tasks, *more])

    def told(self) -> list[tuple[int, int, int]]:
        told, self.port.sent = self.port.sent, []
        return told  # type: ignore[no-any-return]


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_told_to_who_does_not_listen(world: World) -> None:
    world.begin(1, 2)
    world.end(1)
    world.listen(False)
    world.end(2)
    assert world.told() == []


def test_what_is_under_way_is_announced_first_and_in_order(world: World) -> None:
    world.begin(2, 1)
    world.listen(True, 3)  # the third is not handed over yet
    assert world.told() == [(codec.RUN, 1, 0), (codec.RUN, 2, 0)]
    world.begin(3)
    world.end(2, 3)
    assert world.told() == [(codec.RUN, 3, 0), (codec.RAN, 2, codec.OK), (codec.RAN, 3, codec.OK)]


def test_each_run_is_announced_once_and_no_announcement_stays_open(world: World) -> None:
    world.listen(True)
    world.begin(1)
    world.listen(True)  # said again, after an interrupt
    world.listen(False)
    world.begin(2)
    world.end(1)
    world.telling.ended(1, codec.OK, b"")
    assert world.told() == [(codec.RUN, 1, 0), (codec.RAN, 1, codec.OK)]
    world.begin(3)
    world.listen(True)
    assert world.told() == [(codec.RUN, 2, 0), (codec.RUN, 3, 0)]


def test_what_a_client_that_reads_nothing_leaves_waiting_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "WAITING_MAX", 3)
    world.listen(True)
    world.begin(1)
    world.port.outbox.waiting.extend((0, 0, 0))
    world.begin(2, 3)
    world.end(1, 2)  # what was announced is told to its end
    assert world.told() == [(codec.RUN, 1, 0), (codec.RAN, 1, codec.OK)]
    world.port.outbox.waiting.clear()
    world.begin(4)
    assert world.told() == [(codec.RUN, 4, 2)]
