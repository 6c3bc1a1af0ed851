"""How many calls of one function are submitted together: their records cross into the ring in one native call.

What is promised of each is what `Client.submit` promises. That is also who sends what is no common case: a call that is
too large for a record, and any call where nobody may wait for room, or where tasks run in this process.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from mpworker.future import TaskFuture
from mpworker.ipc import codec, details, payload

if TYPE_CHECKING:
    from mpworker.client import Client

_BATCH: Final = 128  # calls, so that a supervisor begins with the first of many while the others are pickled

Future = TaskFuture[Any]


class Submitting:
    """One function, to be called with one item after the other.

    Args:
        client: Who sends the calls.
        function: What is called.
        options: The key of its options.
        said: What each task says beyond them: see `mpworker.ipc.details`.
        make: Makes the future of a task.
    """

    def __init__(
        self,
        client: "Client",
        function: Callable[..., Any],
        options: int,
        said: dict[str, Any] | None,
        make: Callable[["Client", int, str], Future],
    ) -> None:
        self._client = client
        self._function = function
        self._options = options
        self._said = said
        self._make = make

    def submit(self, items: Sequence[Any]) -> list[Future]:
        """Submit a call for each item; if one raises, those before it are submitted."""
        futures: list[Future] = []
        together = self._client._push_many is not None
        while len(futures) < len(items):
            sent = self._submit_some(items[len(futures) : len(futures) + _BATCH]) if together else []
            futures += sent or [self._submit_one(items[len(futures)])]
        return futures

    def _submit_one(self, item: Any) -> Future:
        return self._client.submit(self._function, (item,), {}, self._options, self._said, self._make)

    def _submit_some(self, items: Sequence[Any]) -> list[Future]:
        """As many of the first ones as go together, or none: the first one goes by itself then."""
        client = self._client
        room = client.room()
        if room <= 0 or client.is_closed():
            return []
        function_key = client.functions.key(self._function)
        calls = self._pickled(itertools.islice(items, room), function_key)
        name = client.functions.live.get(function_key) or payload.name_of_callable(self._function)
        keys = [client.new_key() for _ in calls]
        futures = [self._make(client, key, name) for key in keys]
        client.pending.update(zip(keys, futures, strict=True))
        flags = codec.DETAILED if self._said is not None else 0
        sent = [0]
        try:
            self._send(flags, keys, function_key, calls, sent)
        finally:
            if sent[0] < len(keys):  # after an interrupt, too: whatever was sent has nobody who could ask for it
                client.forget_pending(keys[sent[0] :])
        client.wake_supervisor()
        return futures[: sent[0]]

    def _send(self, flags: int, keys: list[int], function_key: int, calls: list[bytes], sent: list[int]) -> None:
        client = self._client
        sent[0] = client.push_many(codec.SUBMIT, flags, keys, function_key, self._options, calls)
        while sent[0] < len(keys):  # the ring was full
            record = (codec.SUBMIT, flags, keys[sent[0]], function_key, self._options, calls[sent[0]])
            if not client.sending.slowly(*record):
                return  # the function was dropped meanwhile: the rest takes it along anew
            sent[0] += 1

    def _pickled(self, items: "itertools.islice[Any]", function_key: int) -> list[bytes]:
        calls: list[bytes] = []
        for item in items:
            try:
                data = payload.dumps_parts(((item,), {}) if function_key else (self._function, (item,), {}))
            except payload.Unserializable:
                break  # its turn comes, and its error
            if not isinstance(data, bytes):
                break  # it goes by way of the arena
            if self._said is not None:
                data = details.pack(self._said, data)
            if len(data) > self._client.sending.max_record:
                break
            calls.append(data)
        return calls
