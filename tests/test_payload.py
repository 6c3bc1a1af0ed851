"""Pickles: what is made of one is whole, and lives as long as somebody uses it."""

import gc
import itertools
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cloudpickle import cloudpickle
from concurrently import together
from points import sweep

from mpworker.ipc import payload


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """What is freed now is in no cycle. The collector of early 3.11 releases does not see one through an unpickler."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("loads", [payload.loads_known, payload.loads_in_child, payload.loads])
def test_what_was_unpickled_is_freed_with_its_last_user(loads: Any) -> None:
    kind = type("Kind", (), {"__module__": "__main__"})
    data = payload.dumps(kind())
    assert b"cloudpickle" in data
    value = loads(data)
    assert type(value) is kind
    alive = weakref.ref(value)
    del value
    assert alive() is None


@pytest.mark.usefixtures("_no_collector")
def test_so_it_is_where_an_initializer_has_set_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "_initialized", {"__main__": {"connection": 1}})
    value = payload.loads_in_child(payload.dumps(type("Kind", (), {"__module__": "__main__"})()))
    alive = weakref.ref(value)
    del value
    assert alive() is None


# ------------------------------------------------------------ classes that only a child has


def foreign_classes(size: int) -> Iterator[bytes]:
    """Pickles of instances, each of a class that this process has never seen."""
    methods = {f"method{number}": lambda self, number=number: number for number in range(size)}
    kind = type("Foreign", (), {"__module__": "__main__", **methods})
    data = payload.dumps(kind())
    identity = cloudpickle._get_or_create_tracker_id(kind).encode()
    assert data.count(identity) == 1
    while True:
        yield data.replace(identity, uuid.uuid4().hex.encode())


def see_whole(value: Any, size: int) -> None:
    assert [getattr(value, f"method{number}")() for number in range(size)] == list(range(size))


PARTS = ("/cloudpickle/", "/ipc/payload.py", "/pickle.py")


def at_every_point(handle: Callable[[bytes], object] | None) -> int:
    """Unpickle such a class, with a signal at each point of that; then once more."""
    payloads = foreign_classes(3)
    current = next(payloads)

    def check() -> None:
        nonlocal current
        see_whole(payload.loads_known(current), 3)
        current = next(payloads)

    def scenario() -> None:
        see_whole(payload.loads_known(current), 3)

    if handle is None:
        return sweep(scenario, check, parts=PARTS)
    return sweep(scenario, check, lambda: handle(current), parts=PARTS)


def test_a_class_whose_unpickling_is_interrupted_is_whole_the_next_time() -> None:
    assert at_every_point(None) > 20


def test_a_handler_gets_a_whole_class_on_top_of_its_unpickling() -> None:
    assert at_every_point(lambda data: see_whole(payload.loads_known(data), 3)) > 20


@pytest.mark.usefixtures("hasty")
def test_threads_that_unpickle_one_class_all_get_it_whole() -> None:
    for data in itertools.islice(foreign_classes(40), 50):
        together(*[lambda data=data: see_whole(payload.loads_known(data), 40)] * 4)


def test_nothing_is_remembered_of_a_class_that_was_made() -> None:
    for data in itertools.islice(foreign_classes(1), 10):
        payload.loads_known(data)
    assert not payload._unfinished
