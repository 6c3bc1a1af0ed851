"""Pickles: what is made of one lives as long as somebody uses it, and no longer."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

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
