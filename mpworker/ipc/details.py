"""What a task says beyond its options: JSON before the pickle of its call, told by the flag DETAILED.

The supervisor reads it and the child passes over it. Most tasks have none, and their records carry nothing more.
"""

from __future__ import annotations

from mpworker.ipc import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_LENGTH_BYTES: Final = 4


def pack(details: dict[str, Any]) -> bytes:
    """What goes before the pickle of a call: the length of the details, and these."""
    text = json.dumps(details).encode()
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def end(data: bytes) -> int:
    """Where the call begins."""
    return _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")


def read(data: bytes) -> dict[str, Any]:
    """The details of a payload.

    Raises:
        ValueError: It has none.
    """
    details = json.loads(data[_LENGTH_BYTES : end(data)])
    if not isinstance(details, dict):
        raise ValueError(f"details are a {type(details).__name__}")  # of what came, not of the caller
    return details


def after(data: bytes) -> bytes:
    """The payload without its details."""
    return data[end(data) :]
