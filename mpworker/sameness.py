"""Which calls are the same: a digest of what a call would send.

Two pickles of equal values may differ: a dict and a set have an order, and what stands in a value twice is written
once if it is one object, as equal strings of one module are and others are not. So the pickle that is digested here is
another one than the one that is sent: it has no memory of what it has written (`Pickler.fast`), and in place of a dict
or a set stands a digest of its sorted parts. Types are told apart, as pickles do: 1, 1.0 and True are three values.

A function or class that cannot be imported is its code, with all that it reaches, and itself among that. In its place
stands a digest of the pickle that would be sent. The same goes for a whole value that refers to itself, and for one
that is too large.
"""

import functools
import io
import pickle
from collections.abc import Callable
from hashlib import blake2b
from types import FunctionType
from typing import Any, Final

from mpworker.functions import is_importable
from mpworker.ipc import payload, shares

# What is shared is written anew each time: of twenty lists, each of them twice in the next, a million.
PARTS_MAX: Final = 1 << 18
_BYTES: Final = 16


def digest_of(function: Callable[..., Any], arguments: object) -> bytes:
    """A digest of a call: equal for the same function and equal arguments of the same types.

    Args:
        function: The function: by its name if it can be imported, else with its code and all that it reaches.
        arguments: All of its arguments, or what stands for them.

    Raises:
        mpworker.ipc.payload.Unserializable: One of them cannot be pickled.
    """
    return _digest(_written(function), _written(arguments))


def _digest(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class _Main(Exception):
    """There is something of `__main__` in it, which goes by value."""


class _Large(Exception):
    """It has too many parts."""


def _written(value: object) -> bytes:
    before = shares.collecting.found
    try:
        shares.collecting.found = {}  # and not to keep what is shared: a handle is its number
        return _pickled(value)
    finally:
        shares.collecting.found = before


def _pickled(value: object) -> bytes:
    for by_value in (False, True):
        try:
            return b"u" + _Walk(by_value).write(value)
        except Exception:  # noqa: BLE001, S112  # whatever it was, the pickle that is sent is made of it, or says so
            continue
    return b"s" + payload.dumps(value)


class _Walk:
    """One value that is being written, with all that is in it."""

    def __init__(self, by_value: bool) -> None:
        self._by_value = by_value
        self._parts = 0
        self._codes: dict[int, tuple[object, bytes]] = {}  # by identity; each itself, too, so that it stays its own

    def write(self, value: object) -> bytes:
        file = io.BytesIO()
        pickler = _pickler(self._by_value)(file, payload.PROTOCOL)
        pickler.fast = True
        pickler.walk = self
        pickler.dump(value)
        data = file.getvalue()
        if not self._by_value and b"__main__" in data:
            raise _Main
        return data

    def stand_in(self, value: object) -> bytes | None:
        """What is written in place of a part; None if it is written itself."""
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise _Large
        kind = type(value)
        if kind is dict:
            parts: Any = value.items()  # type: ignore[attr-defined]
        elif kind is set or kind is frozenset:
            parts = value
        elif isinstance(value, FunctionType | type) and not is_importable(value):
            return self._code(value)
        else:
            return None
        return kind.__name__.encode() + _digest(*sorted(_digest(self.write(part)) for part in parts))

    def _code(self, value: object) -> bytes:
        known = self._codes.get(id(value))
        if known is None:
            known = self._codes[id(value)] = value, b"code" + _digest(payload.dumps(value))
        return known[1]


@functools.cache
def _pickler(by_value: bool) -> Any:
    base: Any = payload.by_value_pickler() if by_value else pickle.Pickler

    class Pickler(base):  # type: ignore[misc]
        walk: _Walk

        def persistent_id(self, value: object) -> bytes | None:
            return self.walk.stand_in(value)

    return Pickler
