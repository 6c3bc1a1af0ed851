"""When the stacks of the children are whole, whose they are, and who is answered with which."""

from types import SimpleNamespace
from typing import Any

import pytest

from mpworker.supervisor import stacktaking
from mpworker.supervisor.stacktaking import TAKE_SECONDS, StackTaking


class Fake:
    """A daemon with two children, of which the first runs something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(stacktaking.time, "monotonic", lambda: self.now)
        self.written = {0: b"", 1: b""}
        self.running = {0: 7}  # generations
        self.asked: list[int] = []
        self.children = {number: self._child(number) for number in (0, 1)}
        self.world = self.overview = self
        self.by_number = self.children
        daemon: Any = self
        self.taking = StackTaking(daemon)

    def _child(self, number: int) -> Any:
        view = SimpleNamespace(read=lambda: self.written[number])
        return SimpleNamespace(pid=4000 + number, seat=SimpleNamespace(number=number), stack_view=view)

    @property
    def everyone(self) -> list[Any]:
        return list(self.by_number.values())

    def runs(self, child: Any) -> Any:
        generation = self.running.get(child.seat.number)
        return None if generation is None else (SimpleNamespace(generation=generation), 1.0)

    def ask_stack(self, seat: Any) -> None:
        self.asked.append(seat.number)

    def child(self, child: Any, _now: float) -> dict[str, Any]:
        return {"pid": child.pid}

    def look(self, *written: bytes) -> None:
        for text in written:
            self.written[0] = text
            self.now += 0.02
            self.taking.look(self.now)

    def stacks(self, number: int) -> list[str] | None:
        told = self.taking.outcome(number)
        return None if told is None else [each["stack"] for each in told["children"]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def test_one_is_whole_when_two_looks_find_the_same(fake: Fake) -> None:
    number = fake.taking.ask()
    assert fake.asked == [0], "of one that runs nothing there is none"
    fake.look(b"", b"half", b"half and half")
    assert fake.stacks(number) is None
    fake.look(b"half and half")
    assert fake.stacks(number) == ["half and half", ""]
    assert fake.taking.next_at is None


def test_who_asks_meanwhile_has_them_taken_once_more(fake: Fake) -> None:
    first, second = fake.taking.ask(), fake.taking.ask()
    fake.look(b"a", b"a")
    assert (fake.stacks(first), fake.stacks(second)) == (["a", ""], None)
    assert fake.taking.next_at == fake.now
    fake.look(b"")
    assert fake.asked == [0, 0]
    fake.look(b"b", b"b")
    assert fake.stacks(second) == ["b", ""]


def test_one_of_another_task_is_not_told_of_this_one(fake: Fake) -> None:
    number = fake.taking.ask()
    fake.look(b"a", b"a")
    fake.running = {0: 8}
    assert fake.stacks(number) == ["", ""]


def test_one_that_is_dead_or_writes_none_is_not_waited_for(fake: Fake) -> None:
    number = fake.taking.ask()
    fake.look(b"")
    fake.now += TAKE_SECONDS
    fake.look(b"")
    assert fake.stacks(number) == ["", ""]
    number = fake.taking.ask()
    del fake.by_number[0]
    fake.look(b"")
    assert fake.stacks(number) == [""]
