"""Pickles of plain values: written as pickle would, and whatever else there is to read left to it."""

import math
import pickle
import struct
from collections import OrderedDict
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpworker.ipc._native import dumps_plain, loads_plain

BYTES_MAX = 4096

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**65), 2**65),
    st.sampled_from([0, 255, 256, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1]),
    st.floats(),
    st.text(max_size=300),
    st.binary(max_size=300),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=9).map(tuple), max_leaves=20)
CALLS = st.tuples(st.lists(SCALARS, max_size=9).map(tuple), st.just({}))


class Otherwise(Exception):
    """The pickle module is asked."""


def otherwise(_: object) -> Any:
    raise Otherwise


def same(left: Any, right: Any) -> bool:
    """Of the same types all through, and the same to the bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    return bool(left == right)


@given(st.one_of(VALUES, CALLS))
@example(math.nan)
@example(-0.0)
@settings(deadline=None)
def test_a_plain_value_is_a_pickle_like_any_other(value: Any) -> None:
    data = dumps_plain(value)
    if data is None:
        return
    assert len(data) <= BYTES_MAX
    assert same(pickle.loads(data), value)
    assert same(loads_plain(data, otherwise), value)


@pytest.mark.parametrize(
    "value",
    [
        ((), {}),
        ((1, 2.0, "three", b"four", None, True), {}),
        (tuple(range(16)), {}),
        "\u20ac" * 1000,
        bytes(BYTES_MAX - 8),
        ((((((("deep",),),),),),),),
        2**63 - 1,
        -(2**63),
    ],
)
def test_these_are_plain(value: Any) -> None:
    data = dumps_plain(value)
    assert data is not None
    assert same(loads_plain(data, otherwise), value)


class Number(IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


shared: dict[str, int] = {}


@pytest.mark.parametrize(
    "value",
    [
        [],
        (1, []),
        {"a": 1},
        ((), {}, {}),  # may be one and the same
        (shared, shared),
        OrderedDict(),
        Number.ONE,
        Text("text"),
        bytearray(b"bytes"),
        2**63,
        -(2**63) - 1,
        1j,
        "half a pair: \ud800",
        bytes(BYTES_MAX),
        ("a" * 3000, "b" * 3000),
        tuple(range(17)),
        ((((((((("too deep",),),),),),),),),),
        len,
        object,
    ],
)
def test_all_else_is_left_to_pickle(value: Any) -> None:
    assert dumps_plain(value) is None
    if isinstance(value, str) and not value.isprintable():
        return
    assert loads_plain(pickle.dumps(value, 5), lambda data: ("asked", data)) == ("asked", pickle.dumps(value, 5))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x05",
        b"\x80\x05.",
        b"\x80\x04N.",
        b"\x80\x05NN.",
        b"\x80\x05N(.",
        b"\x80\x05N(\x85t\x86.",  # a tuple that reaches below a mark
        b"\x80\x05" + b"N" * 300 + b".",
        b"\x80\x05" + b"(" * 99 + b"t.",
        bytearray(b"\x80\x05N."),
        None,
        1,
    ],
)
def test_what_is_no_such_pickle_is_asked_about(data: Any) -> None:
    with pytest.raises(Otherwise):
        loads_plain(data, otherwise)


def pickled_or_why(data: bytes) -> tuple[str, Any]:
    try:
        return "value", pickle.loads(data)
    except Exception as error:  # noqa: BLE001  # a damaged pickle raises anything
        return "error", type(error)


@given(
    st.one_of(VALUES, CALLS).map(dumps_plain).filter(lambda data: data is not None),
    st.lists(
        st.tuples(st.integers(0, BYTES_MAX), st.sampled_from(b"\x00\x01\x08(t).\x85\x86\x87NKJGXBC}\x8a\x8c\x88\xff")),
        max_size=6,
    ),
    st.integers(0, 40),
)
@settings(deadline=None, max_examples=400)
def test_whatever_the_bytes_it_reads_what_pickle_reads_or_asks_it(
    data: bytes, damage: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(data)
    for at, byte in damage:
        damaged[at % len(damaged)] = byte
    damaged = damaged[: len(damaged) - cut % len(damaged)]
    try:
        value = loads_plain(bytes(damaged), otherwise)
    except Otherwise:
        return
    kind, expected = pickled_or_why(bytes(damaged))
    assert kind == "value"
    assert same(value, expected)
