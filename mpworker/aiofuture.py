"""What is awaited in an event loop: the future of a task, and whatever else waits for the loop's client."""

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mpworker.checks import in_a_line
from mpworker.errors import SerializationError
from mpworker.future import TaskFuture
from mpworker.ipc import codec
from mpworker.ipc.failures import brief

if TYPE_CHECKING:
    from mpworker.loopclient import LoopClient

T = TypeVar("T")


class AsyncTaskFuture(asyncio.Future[T]):
    """The result to come of one task: an `asyncio.Future`, made by `AsyncProcessWorker.submit`.

    It can be awaited, and given to `asyncio.gather`, `wait`, `wait_for`, `shield` and the like. What it raises is what
    `TaskFuture.result` raises. Cancelling it, or the asyncio task that awaits it, cancels the task: before its start it
    never starts; while it runs it is interrupted, and killed after `grace`. The future is cancelled at once.
    """

    def __init__(self, client: "LoopClient", key: int, name: str) -> None:
        super().__init__(loop=client.loop)
        self._client = client
        self._key = key
        self._name = name  # of the function
        self._id = ""  # of the user's own

    @property
    def task_id(self) -> str:
        """The task's id; logs and `mpworker.current()` show the same."""
        return self._id or f"{self._client.prefix}{self._key}"

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else "finished" if self.done() else "unfinished"
        return f'<AsyncTaskFuture {in_a_line(self.task_id)} ("{in_a_line(self._name)}") {state}>'

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task; False if the future is done."""
        if not super().cancel(msg):
            return False
        self._client.cancel_soon(self._key)
        return True


class LoopFuture(TaskFuture[Any]):
    """What the reader settles: it hands on to the future that is awaited."""

    _client: "LoopClient"

    def __init__(self, client: "LoopClient", key: int, name: str) -> None:
        super().__init__(client, key, name)
        self.awaited: AsyncTaskFuture[Any] = AsyncTaskFuture(client, key, name)

    def settle(self, status: int, data: bytes) -> None:
        """As for every future, it may be done twice."""
        if self.status < 0:
            self._payload = data
            self.status = status
        self._client.due.append(self)

    def take_id(self, task_id: str, retold: bool = False) -> None:
        """See `TaskFuture.take_id`."""
        super().take_id(task_id, retold)
        self.awaited._id = task_id

    def has_been_told(self) -> bool:
        """See `TaskFuture.has_been_told`."""
        return self.status >= 0 and self.awaited.done()

    def refuse(self, error: Exception) -> None:
        """It will not be sent: it ends by this."""
        self._exception = error
        self.settle(codec.ERROR, b"")
        self._payload = None

    def tell(self) -> None:
        """Unpickle, and end the wait. The user's code runs here, and so not while events are read."""
        awaited = self.awaited
        if awaited.done():
            return  # it was cancelled
        try:
            self._decode()
        except KeyboardInterrupt:
            raise
        except BaseException as broken:  # noqa: BLE001  # a value's own code may raise anything; asked again it would anew
            self._exception = SerializationError(
                f"{self._subject}: its result cannot be unpickled here: {brief(broken)}"
            )
        error = self._exception
        if awaited.done():
            return
        if error is None:
            awaited.set_result(self._result)
        elif isinstance(error, StopIteration):  # which no future takes: it would end the coroutine that awaits it
            awaited.set_exception(_wrapped(error, self._subject))
        else:
            awaited.set_exception(error)
        if self.status == codec.CANCELLED or self._retold:
            awaited.exception()  # whoever stopped the worker knows: asyncio need not log what nobody asked for


def awaited_of(future: Future[T]) -> AsyncTaskFuture[T]:
    """What is awaited for a future of a `LoopClient`; what an idempotency key has found is that itself."""
    return cast("AsyncTaskFuture[T]", getattr(future, "awaited", future))


def _wrapped(error: StopIteration, subject: str) -> RuntimeError:
    wrapped = RuntimeError(f"{subject} raised StopIteration")
    wrapped.__cause__ = error
    return wrapped


class Wakes:
    """Something that waits in the event loop.

    Attributes:
        future: Done when it has been woken.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()
        self.answer: dict[str, Any] | None = None  # to a request

    @property
    def ready(self) -> bool:
        """Is it there?"""
        return self.future.done()

    def wake(self) -> None:
        """End the wait."""
        if not self.future.done() and not self.future.get_loop().is_closed():
            self.future.set_result(None)

    def settle(self, answer: dict[str, Any]) -> None:
        """The answer to a request is there."""
        self.answer = answer
        self.wake()
