"""Idempotency keys: the same key and the same call is the same task.

What is remembered, and for how long, the supervisor knows. Here is only which task each key is of: its number, and a
digest of its call. Neither the arguments nor the result are kept by that, nor is the future, which is found in
`pending` until it is told, and afterwards for as long as somebody else holds it. A key that comes again when its task
has ended is a question to the supervisor. If that remembers the task it has its outcome, too, whatever
`Retention.results` says, and a future is made of it.

Keys that nobody uses again go out in bulk: whenever there are twice as many as were left the last time, the supervisor
is asked which of their tasks it remembers. So each costs a constant share of a question.

Nothing is locked while a task is sent, which may take as long as `submit_timeout`. Whoever comes first with a key
stores it, and others with the same one wait for that.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from mpworker.client import Client, queue_full
from mpworker.errors import DuplicateTask, TaskNotFound
from mpworker.future import TaskFuture
from mpworker.ipc import payload
from mpworker.recalling import recalling
from mpworker.steps import Steps
from mpworker.task import Task

if TYPE_CHECKING:
    from mpworker.registering import Look

_LOOK_SECONDS: Final = 0.05  # whether the worker is full, while another thread sends the task
_NUMBER_BYTES: Final = 24  # of a task in a request, at most


class LookAgain(TaskNotFound):
    """What was looked up is no longer so, or it was for another task: nothing was sent.

    Attributes:
        task: For which it is to be looked up.
    """

    def __init__(self, task: Task[Any]) -> None:
        super().__init__(
            f"what has the id {task.id!r} or the idempotency_key {task.idempotency_key!r} has just changed"
        )
        self.task = task


class _Sending(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()


class Known:
    """The task of a key.

    Attributes:
        sending: Set when the task has been sent, or could not be; None from then on.
    """

    __slots__ = ("digest", "future", "id", "number", "sending")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.sending: _Sending | None = _Sending()
        self.number = 0
        self.id = ""
        self.future: Callable[[], Any] = _nothing

    def has_been_sent(self) -> None:
        """Or could not be: wake those that wait for it."""
        sending, self.sending = self.sending, None
        if sending is not None:
            sending.set()

    def point_to(self, future: TaskFuture[Any]) -> None:
        """This is its future, or the one that is awaited is."""
        self.future = ref(getattr(future, "awaited", future))


class Idempotency:
    """The keys of one worker."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self._look_beyond = 64

    # ------------------------------------------------------------ what the supervisor remembers

    def has_too_many(self) -> bool:
        """Is it time to ask which are to be forgotten? `looking` does."""
        return len(self._known) > self._look_beyond

    def looking(self, client: Client, key: str | None) -> Steps[tuple[Known | None, Any]]:
        """The steps to whether a key is known, and to its future, if there is one or can be."""
        if self.has_too_many():
            yield from self._forgetting(client)
        known = self._known.get(key) if key is not None else None
        if key is None or known is None or known.sending is not None:
            return None, None
        if client.may_wait:
            client.poll()
        pending = client.pending.get(known.number)
        if pending is not None:
            return known, pending
        answer = yield {"verb": "task", "task": known.number}
        if answer is not None and answer["task"] is None:
            self._forget(key, known)
            return None, None
        future = known.future()
        if future is None and answer is not None and answer["task"].get("kept"):
            future = yield from recalling(client, answer["task"])
            if future is not None:
                known.point_to(future)
        return known, future

    def _forgetting(self, client: Client) -> Steps[None]:
        self._look_beyond = sys.maxsize  # not for others meanwhile
        try:
            ended = [each for each in list(self._known.items()) if each[1].number not in client.pending]
            at_once = client._options.max_payload_bytes // _NUMBER_BYTES
            for start in range(0, len(ended), at_once):
                some = [each for each in ended[start : start + at_once] if each[1].sending is None]
                answer = yield {"verb": "remembered", "tasks": [known.number for _, known in some]}
                remembered = set(answer["tasks"]) if answer is not None else ()
                for key, known in some:
                    if known.number not in remembered:
                        self._forget(key, known)
        finally:
            self._look_beyond = 2 * len(self._known) + 64

    def _forget(self, key: str, known: Known) -> None:
        if self._known.get(key) is known:
            del self._known[key]  # no call since the look

    # ------------------------------------------------------------ register

    def register(
        self, client: Client, task: Task[Any], look: "Look", submit: Callable[[], TaskFuture[Any]]
    ) -> TaskFuture[Any]:
        """The future of the first task with this key, or that of a new one.

        Args:
            client: Whose task it is.
            task: The task.
            look: What `looking` has found of its key.
            submit: Sends it.

        Raises:
            DuplicateTask: The first one was another call.
            TaskNotFound: It has ended, and its outcome is not kept, nor its future.
            LookAgain: The task of this key has ended since it was looked for.
            QueueFull: Another thread sends it, for whom there is no room, and `submit_timeout` is over.
            SerializationError: It cannot be pickled.
        """
        key = task.idempotency_key
        assert key is not None
        digest = _digest(client, task)
        waits: _Wait | None = None
        while True:
            known = self._known.get(key)
            if known is None:
                mine = Known(digest)
                try:
                    if self._known.setdefault(key, mine) is mine:
                        return self._send(task, mine, waits, submit)
                except BaseException:
                    self._forget(key, mine)
                    raise
                finally:
                    mine.has_been_sent()
                continue
            sending = known.sending
            if sending is not None:
                waits = waits or _Wait(client)
                waits.until_sent(sending, key)
                continue
            future = client.pending.get(known.number)
            future = future or look.future or known.future()
            if known.number not in client.pending and known is not look.known and (future is None or not look.trusts):
                raise LookAgain(task)
            if known.digest != digest:
                raise DuplicateTask(
                    f"idempotency_key {key!r} belongs to {_named(client, known)}, which is another call"
                )
            if future is None:
                client.refuse_if_closed()
                raise TaskNotFound(
                    f"{_named(client, known)}, to which idempotency_key {key!r} belongs, has ended, and its outcome is "
                    "no longer kept: hold its future, or give Retention more max_bytes"
                )
            return future  # type: ignore[no-any-return]

    def _send(
        self,
        task: Task[Any],
        mine: Known,
        waits: "_Wait | None",
        submit: Callable[[], TaskFuture[Any]],
    ) -> TaskFuture[Any]:
        if waits is not None:
            waits.until_there_is_room()
        future = submit()
        mine.number, mine.id = future._key, task.id or ""
        mine.point_to(future)
        return future


class _Wait:
    """What is left of `submit_timeout` while another thread sends a task with the same key."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._timeout = client._options.submit_timeout
        self._until = None if self._timeout is None else time.monotonic() + self._timeout

    def _left(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def _is_full(self) -> bool:
        client = self._client
        return len(client.pending) >= client._options.max_pending and not client.is_closed()

    def _refuse(self) -> None:
        raise queue_full(self._client._options.max_pending, self._timeout or 0.0)

    def until_sent(self, sending: _Sending, key: str) -> None:
        if sending.thread == threading.get_ident():
            raise DuplicateTask(f"idempotency_key {key!r} belongs to a task that this signal handler has interrupted")
        while True:
            if sending.wait(min(self._left() or _LOOK_SECONDS, _LOOK_SECONDS)):
                return
            if self._left() == 0.0 and self._is_full():
                self._refuse()

    def until_there_is_room(self) -> None:
        client = self._client
        client.poll()
        if not client.wait_for(client.when(lambda: not self._is_full()), self._left()):
            self._refuse()


def _digest(client: Client, task: Task[Any]) -> bytes:
    from mpworker.sameness import digest_of  # not before: no start shall wait for it

    args, kwargs = tuple(task.args), dict(task.kwargs)
    try:
        return digest_of(task.fn, (args, kwargs) if task.fingerprint is None else task.fingerprint)
    except payload.Unserializable as error:
        raise client.cannot_send(task.fn, args, kwargs, error) from error


def _named(client: Client, known: Known) -> str:
    return f"task {known.id or f'{client.prefix}{known.number}'}"


def _nothing() -> None:
    """There is no future yet."""
