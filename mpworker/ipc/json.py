"""JSON by the C half of the standard library's `json`, without the other half.

That one imports `re`, and by it `enum`: some milliseconds of a start, for what only its error messages and its
fallback in Python need.
"""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class _Reading:
    """How the scanner is to read: the attributes of a `json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = _CONSTANTS.__getitem__


def _refuse(value: object) -> object:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_scan = _json.make_scanner(_Reading())  # type: ignore[arg-type]  # anything with these attributes


def dumps(value: object) -> str:
    """A value as JSON, with no spaces.

    Raises:
        TypeError: It holds something that JSON has not.
        ValueError: It holds itself.
    """
    encode = _json.make_encoder({}, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)
    return "".join(encode(value, 0))


def loads(data: bytes | str) -> Any:
    """What `dumps` was given.

    Raises:
        ValueError: It is no such text.
    """
    text = data if isinstance(data, str) else str(data, "utf-8")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError) as error:  # the other half has the exception that 3.11 wants to raise
        raise ValueError("this is not JSON") from error
    if end != len(text):
        raise ValueError(f"there is more than JSON from character {end} on")
    return value
