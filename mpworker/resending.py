"""Items of a `map` that children could not unpickle together, and which the client therefore sends one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mpworker.ipc import codec, json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mpworker.client import Client


class Resending:
    """The chunks of one client that have such items.

    Args:
        client: The client.

    Attributes:
        chunks: Each with its map; a drain waits until their items are sent.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.chunks: dict[Any, Any] = {}
        self._under_way: list[tuple[int, int]] = []  # (thread, chunk) of those who send

    @contextmanager
    def sends(self, key: int) -> Iterator[None]:
        """While items of a chunk are sent again: a handler on top of it must not wait for that."""
        mark = (threading.get_ident(), key)
        try:
            self._under_way.append(mark)
            yield
        finally:
            if mark in self._under_way:
                self._under_way.remove(mark)

    def say(self, key: int, start: int | None) -> None:
        """Say that items of a chunk have been sent one by one, or (None) that no more of them will be."""
        if not self._client._exited:
            data = json.dumps({"verb": "resent", "task": key, "start": start}).encode()
            self._client.sending.send(codec.REQUEST, 0, 0, 0, 0, data)

    def send_all(self) -> None:
        """Send what is to be sent, whoever would take its results."""
        for chunk, mapping in list(self.chunks.items()):
            mapping.resend(chunk)

    def give_up_below(self) -> None:
        """Say so of what a frame of this thread sends, on top of which this is a signal handler: it cannot go on."""
        thread = threading.get_ident()
        for key in [key for who, key in list(self._under_way) if who == thread]:
            self.say(key, None)
