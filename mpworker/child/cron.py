"""What a child runs for a recurring task."""

from collections.abc import Callable
from typing import Any


def call(function: Callable[..., object], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
    """Call it. Nobody gets the value, so it is not sent, and need not be one that can be."""
    function(*args, **(kwargs or {}))
