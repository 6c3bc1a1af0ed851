"""What the supervisor remembers of tasks that have ended."""

import pytest

from mpworker.supervisor.ends import HISTORY_BYTES_MAX
from mpworker.supervisor.history import FOUND_BY_LOOKING_MAX, Ended, History
from mpworker.supervisor.registry import Task, TaskOptions

SIZES = [100, FOUND_BY_LOOKING_MAX + 1]


def ended(key: int) -> Ended:
    return (Task(key, None, TaskOptions(), b"call"), 1, 0, 0, 0)


def history(size: int, ttl: float | None = None) -> History:
    return History(size, HISTORY_BYTES_MAX, ttl, False)


@pytest.mark.parametrize("size", SIZES)
def test_the_last_ones_are_found(size: int) -> None:
    kept = history(size)
    for key in range(size + 50):
        kept.append(ended(key))
    assert kept.find(49) is None
    for key in (50, 51, size + 49):
        found = kept.find(key)
        assert found is not None
        assert found[0].key == key
    assert len(kept.entries) == size


@pytest.mark.parametrize("size", SIZES)
def test_what_is_too_old_is_not_found(size: int) -> None:
    kept = history(size, ttl=10.0)
    kept.append(ended(1))
    kept.evict(0.0)
    kept.append(ended(2))
    kept.evict(10.0)
    assert kept.find(1) is None
    assert kept.find(2) is not None


@pytest.mark.parametrize("ttl", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("size", SIZES)
def test_what_has_ended_is_forgotten_after_its_ttl_and_within_two_looks_more(size: int, ttl: float) -> None:
    interval, ended_at = 1.0, [number / 8 for number in range(8)]
    kept = history(size, ttl)
    forgotten_at: dict[int, float] = {}
    for now in (number / 8 for number in range(80)):
        if now in ended_at:  # right before a look at the same time, or after the one before
            kept.append(ended(ended_at.index(now)))
        if now % interval == 0.0:
            kept.evict(now)
            there = [key for key, at in enumerate(ended_at) if at <= now and key not in forgotten_at]
            forgotten_at |= {key: now for key in there if kept.find(key) is None}
    ages = [forgotten_at[key] - at for key, at in enumerate(ended_at)]
    assert ttl <= min(ages)
    assert max(ages) <= ttl + 2 * interval


@pytest.mark.parametrize("sizes", [SIZES, SIZES[::-1]], ids=["more", "fewer"])
def test_what_is_there_is_found_also_where_more_or_fewer_are_remembered_since(sizes: list[int]) -> None:
    kept = history(sizes[0])
    for key in range(90):
        kept.append(ended(key))
    kept.change(sizes[1], HISTORY_BYTES_MAX, None, False)
    kept.append(ended(90))
    assert all(kept.find(key) is not None for key in range(91))
    assert kept.find(91) is None


def test_what_ends_during_a_look_disturbs_it_not() -> None:
    """With `debug=True` other threads end tasks at any moment."""
    kept = history(100)

    class Ending(Task):
        @property
        def key(self) -> int:  # type: ignore[override]
            kept.append(ended(7))
            return 1

        @key.setter
        def key(self, _: int) -> None: ...

    kept.append(ended(5))
    kept.append((Ending(1, None, TaskOptions(), b"call"), 1, 0, 0, 0))
    found = kept.find(5)
    assert found is not None
    assert found[0].key == 5
