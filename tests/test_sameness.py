"""Which calls are the same: equal values of the same types, however they were made."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import Any

import numpy
import pooljobs
import pytest

from mpworker import sameness
from mpworker.ipc.payload import Unserializable
from mpworker.sameness import digest_of


@dataclass
class Point:
    name: str
    where: dict[str, int]


class Meter:
    def __init__(self, unit: str) -> None:
        self.unit = unit

    def read(self) -> str:
        return self.unit


def fresh(text: str) -> str:
    """An equal string that is another object."""
    return "".join(list(text))


def closure(value: object) -> Callable[[], object]:
    return lambda: value


def recursive() -> Callable[[int], int]:
    def down(n: int) -> int:
        return down(n - 1) if n else 0

    return down


def local_point(name: str) -> Any:
    class Local:
        def __init__(self, name: str) -> None:
            self.name = name

        def again(self) -> Any:
            return Local(self.name)

    return Local(name)


LOCAL = type(local_point(""))
ONE = fresh("one")
LOOP: list[Any] = [1]
LOOP.append(LOOP)
OTHER_LOOP: list[Any] = [1]
OTHER_LOOP.append(OTHER_LOOP)
BEYOND = [str(n % 7) for n in range(20)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((ONE, ONE), (fresh("one"), fresh("one"))),
        ([[], []], [[]] * 2),
        ({"a": 1, "b": (2,)}, {"b": (2,), "a": 1}),
        ({1: {ONE: ONE}, "b": 2}, {"b": 2, 1: {fresh("one"): fresh("one")}}),
        ({8, 0, "c"}, {"c", 0, 8}),
        (frozenset([0, 8]), frozenset([8, 0])),
        (Point(ONE, {"a": 1, ONE: 2}), Point(fresh("one"), {fresh("one"): 2, "a": 1})),
        ((Point(ONE, {}), ONE), (Point(fresh("one"), {}), fresh("one"))),
        (numpy.arange(100.0), numpy.arange(100.0)),
        (LOOP, OTHER_LOOP),
        (LOCAL(ONE), LOCAL(fresh("one"))),
        ([LOCAL(ONE), ONE], [LOCAL(fresh("one")), fresh("one")]),
    ],
)
def test_equal_values_are_the_same_however_they_were_made(one: object, other: object) -> None:
    assert digest_of(len, (one, "x")) == digest_of(len, (other, fresh("x")))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        ((1,), [1]),
        ("1", b"1"),
        ({1: 2}, {2: 1}),
        ({1}, frozenset([1])),
        ({}, set()),
        ([1, [2]], [[1], 2]),
        (["a", "bc"], ["ab", "c"]),
        (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
        (Point("a", {"a": 1}), Point("a", {"a": 2})),
        (LOCAL("a"), LOCAL("b")),
        (numpy.arange(3), numpy.arange(3.0)),
    ],
)
def test_other_values_and_other_types_are_not(one: object, other: object) -> None:
    assert digest_of(len, (one,)) != digest_of(len, (other,))


def test_a_function_is_its_module_and_name_or_its_code_with_what_it_reaches() -> None:
    import json
    import pickle

    assert digest_of(json.dumps, ()) != digest_of(pickle.dumps, ())
    assert digest_of(closure(1), ()) == digest_of(closure(1), ()) != digest_of(closure(2), ())
    assert digest_of(lambda: 1, ()) != digest_of(lambda: 2, ())
    down = recursive()
    assert digest_of(down, ()) == digest_of(down, ()) == digest_of(recursive(), ())
    assert digest_of(functools.partial(add, ONE), ()) == digest_of(functools.partial(add, fresh("one")), ())
    assert digest_of(functools.partial(add, 1), ()) != digest_of(functools.partial(add, 2), ())
    assert digest_of(Meter(ONE).read, ()) == digest_of(Meter(fresh("one")).read, ()) != digest_of(Meter("V").read, ())
    again = LOCAL("a").again
    assert digest_of(again, ()) == digest_of(LOCAL("a").again, ()) != digest_of(LOCAL("b").again, ())
    assert digest_of(add, (1,)) != digest_of(functools.partial(add, 1), ())


def test_what_was_changed_is_another_value() -> None:
    values = [1]
    before = digest_of(sum, (values,))
    values.append(41)
    assert digest_of(sum, (values,)) != before == digest_of(sum, ([1],))


def test_what_has_too_many_parts_is_the_pickle_that_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: Any = ["x"]
    for _ in range(60):  # written anew each time it has more parts than there are atoms in a hand
        shared = [shared, shared]
    assert digest_of(len, shared) == digest_of(len, shared) != digest_of(len, shared[0])
    apart = [fresh(each) for each in BEYOND]
    assert digest_of(len, BEYOND) == digest_of(len, apart)
    monkeypatch.setattr(sameness, "PARTS_MAX", 10)
    assert digest_of(len, BEYOND) == digest_of(len, BEYOND)
    assert digest_of(len, [*range(20)]) == digest_of(len, [*range(20)]) != digest_of(len, [*range(21)])


def test_what_cannot_be_pickled_has_no_digest() -> None:
    with pytest.raises(Unserializable, match="an Unpicklable cannot be pickled"):
        digest_of(len, (pooljobs.Unpicklable(),))
