"""What runs in a child for one item: decode it, call the user's function, encode what comes back.

JSON is made here rather than in the client so that the children share its cost, and so that no result has to be
pickled and unpickled first: the client gets a `str` to write as it is, or a `Failed`.

What can never go better on a second attempt (an undecodable line, a result that JSON can't express) is returned as a
`Failed`, not raised: an exception would be retried.
"""

from __future__ import annotations

import json
import os
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LINE_BYTES_MAX", "Failed", "apply_to_arguments", "apply_to_line", "apply_to_path", "check_target"]

LINE_BYTES_MAX = 64 * 1024 * 1024
"""A longer input line fails instead of being held in memory; it is usually a file that has no lines at all."""


class Failed(NamedTuple):
    """Why an item has no result, in the words of the failures file."""

    error: str
    message: str


def apply_to_line(spec: str, line: bytes | None) -> str | Failed:
    r"""Apply the target to one line of text.

    Args:
        spec: The target, as ``package.module:function``.
        line: UTF-8 with its ``\n`` or ``\r\n``, if it has one; None for a line of more than `LINE_BYTES_MAX`.

    Returns:
        The result as JSON, or why there is none.
    """
    if line is None:
        return Failed("ValueError", f"the line is longer than {LINE_BYTES_MAX} bytes")
    ending = 2 if line.endswith(b"\r\n") else 1 if line.endswith(b"\n") else 0
    try:
        text = line[: len(line) - ending].decode()
    except UnicodeDecodeError as error:
        return Failed("UnicodeDecodeError", f"the line is not UTF-8: {error}")
    return _apply(spec, text)


def apply_to_path(spec: str, path: bytes) -> str | Failed:
    """Apply the target to one path, given as the file system has it; the target gets it as `str`."""
    return _apply(spec, os.fsdecode(path))


def check_target(spec: str) -> None:
    """Find the target here, or raise a `CommandError`."""
    _target(spec)


def apply_to_arguments(spec: str, args: list[Any], kwargs: dict[str, Any]) -> str | Failed:
    """Apply the target to these arguments."""
    return _as_json(_target(spec)(*args, **kwargs))


def _apply(spec: str, argument: str) -> str | Failed:
    return _as_json(_target(spec)(argument))


def _as_json(result: object) -> str | Failed:
    try:
        # ASCII only: a U+2028 in a string is a line break to some readers, and a lone surrogate has no UTF-8.
        return json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return Failed("SerializationError", f"JSON cannot express the result, a {type(result).__name__}: {error}")


@cache
def _target(spec: str) -> Callable[..., object]:
    # By name, not by pickle: any callable that the name leads to will do, and it is sent once, as a short string.
    from mpworker.cli.target import resolve

    return resolve(spec)
