"""The future of a task: a `concurrent.futures.Future` that costs one small object.

The standard library's future has a condition of its own and two lists. Here there is no lock, and a list is made when
somebody asks for it: a future that is submitted and waited for by `result()` needs neither. What the library's own
`wait` and `as_completed` look at (`_state`, `_condition`, `_waiters`) is in `mpworker.audience`.

Instead of a lock there is an order, and the GIL, under which no two threads see two stores in a different order: who
settles a future stores its state first and then looks for an audience; who joins the audience does so first and then
looks at the state. One of them sees the other; if both do, each of the audience is still taken out, and told, once.

A condition that is made lazily for each future would not do: a setter that is preempted between the state and the
look-up of the condition lets `wait(ALL_COMPLETED)` return early.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING

from mpworker.audience import Look, Waiters, state_seen, tell
from mpworker.checks import check_wait, in_a_line
from mpworker.errors import SerializationError
from mpworker.ipc import codec, payload
from mpworker.ipc.failures import brief
from mpworker.outcomes import make_error
from mpworker.waiting import taken, wake_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn, TypeVar

    from mpworker.client import Client

    T = TypeVar("T")


_UNSETTLED: Final = -1


class TaskFuture(Future["T"]):  # in quotes: `typing`, which makes a TypeVar, costs a start 2 ms
    """The result to come of one task.

    Made by `ProcessWorker.submit`. All of `concurrent.futures.Future` works, with these differences: `cancel` also
    stops a task that runs, and a result is unpickled when it is first asked for, in the thread that asks.
    """

    status: int  # of `mpworker.ipc.codec` or `mpworker.outcomes`
    _slow: bool  # has followers or an audience
    # Class-level defaults: an instance sets only what differs, and stays small. Not what is looked at in each: CPython
    # looks up a default in three dictionaries, and what an instance has by its place.
    queue = "default"  # in which the task was put
    _retold = False  # its outcome was told before, by another future
    _payload: bytes | None = None
    _result: Any = None
    _exception: BaseException | None = None
    _watched = False  # and somebody needs the background reader for it
    _id = ""  # of the user's own

    def __init__(self, client: Client, key: int, name: str) -> None:
        # Not Future.__init__, on purpose: see the module's docstring.
        self._client = client
        self._key = key
        self._name = name  # of the function, for messages
        self.status = _UNSETTLED
        self._slow = False

    # What the library's own code looks at. It never sets any of it.
    @property
    def _state(self) -> str:  # type: ignore[override]
        return state_seen(self)

    @property
    def _condition(self) -> Look:  # type: ignore[override]
        return Look(self)

    @property
    def _waiters(self) -> Waiters:  # type: ignore[override]
        return Waiters(self)

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        # asyncio's look in CPython 3.14, at fields that `result` fills here.
        if not self.done() or self.state is CANCELLED_AND_NOTIFIED:
            return self.ready, self.ready, None, None
        if self._payload is not None:
            self._decode()
        return True, False, self._result, self._exception

    @property
    def task_id(self) -> str:
        """The task's id, unique on this machine while its worker lives; logs and `mpworker.current()` show the same."""
        return self._id or f"{self._client.prefix}{self._key}"

    def take_id(self, task_id: str, retold: bool = False) -> None:
        """It has an id of the user's own, or, if it was `retold`, is a second future of the task of that id."""
        self._id = task_id
        if retold:
            self._retold = True

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TaskFuture cannot be sent to another process: send its result()")

    def __repr__(self) -> str:
        # Whoever prints it wants to know how it is. Not whether it runs: that is a question to the supervisor, which
        # may be slow to answer.
        state = self.state.lower().removesuffix("_and_notified") if self.done() else "unfinished"
        return f'<TaskFuture {in_a_line(self.task_id)} ("{in_a_line(self._name)}") {state}>'

    @property
    def _subject(self) -> str:
        return f'task {self.task_id} ("{self._name}")'

    # ------------------------------------------------------------ state

    @property
    def ready(self) -> bool:
        """Has it ended, as far as this client has read? `done()` looks first."""
        return self.status >= 0

    def has_been_told(self) -> bool:
        """Does whoever waits for it know?"""
        return self.status >= 0

    @property
    def state(self) -> str:
        """The same in the words of `concurrent.futures`."""
        if self.status < 0:
            return PENDING
        return CANCELLED_AND_NOTIFIED if self.status == codec.CANCELLED else FINISHED

    def done(self) -> bool:
        """Has the task ended?"""
        if self.status < 0:
            self._client.poll()
        return self.status >= 0

    def cancelled(self) -> bool:
        """Did the task end by being cancelled?"""
        return self.done() and self.status == codec.CANCELLED

    def running(self) -> bool:
        """Has a child claimed the task? One question to the supervisor."""
        return not self.done() and self._client.is_running(self._key)

    def cancel(self) -> bool:
        """Cancel the task: before its start it never starts; while it runs it is interrupted, and killed after `grace`.

        Returns:
            True if it will end cancelled or has ended so, False if it had ended in another way.
        """
        if self.done():
            return self.status == codec.CANCELLED
        return self._client.cancel(self._key)

    def result(self, timeout: float | None = None) -> T:
        """The task's value.

        Args:
            timeout: Seconds to wait; None waits as long as it takes, 0 or less does not wait.

        Raises:
            InvalidArgument: `timeout` is no number.
            ConfigurationError: It is too large.
            TimeoutError: It has not ended in time.
            TaskCancelled: It was cancelled.
            Exception: What the task raised, with the child's traceback as its cause, or one of `mpworker.errors`.
        """
        if timeout is not None:
            timeout = check_wait(timeout)
        if self.status < 0 and not self._client.wait_for(self, timeout):
            raise TimeoutError(f"{self._subject} has not ended within {timeout:g} s")
        if self._payload is not None:
            self._decode()
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # noqa: PLW0642  # the traceback would hold it in a cycle
        return self._result  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None if it has a value. See `result`."""
        if timeout is not None:
            timeout = check_wait(timeout)
        if self.status < 0 and not self._client.wait_for(self, timeout):
            raise TimeoutError(f"{self._subject} has not ended within {timeout:g} s")
        if self._payload is not None:
            self._decode()
        if self.status == codec.CANCELLED and self._exception is not None:
            raise self._exception
        return self._exception

    def _decode(self) -> None:
        data, status = self._payload, self.status
        if data is None:
            return
        value: Any = None
        error: BaseException | None = None
        if status == codec.OK:
            try:
                value = None if data == payload.NONE else payload.loads_result(data)
            except (Exception, SystemExit) as broken:  # noqa: BLE001  # a value's own code may raise anything
                error = SerializationError(f"{self._subject}: its result cannot be unpickled here: {brief(broken)}")
                error.__cause__ = broken
        else:
            error = make_error(status, data, self._subject)
        if self._payload is not None:  # the first thread's value is everybody's: no call from here on
            self._result = value
            self._exception = error
            self._payload = None

    # ------------------------------------------------------------ who waits

    def add_waiter(self, waiter: Any) -> None:
        """Have `settle` wake the waiter, which reads the ring itself if it must."""
        self.__dict__.setdefault("_followers", []).append(waiter)
        self._slow = True

    def remove_waiter(self, waiter: Any) -> None:
        """Undo `add_waiter`."""
        followers = self.__dict__.get("_followers", [])
        if waiter in followers:
            followers.remove(waiter)

    def add_audience(self, line: str, member: Any) -> None:
        """Have the background thread tell somebody who does not read the ring.

        Args:
            line: "_waiting" for waiters of the library, "_callbacks" for callbacks.
            member: The one who is to be told.
        """
        self._client.refuse_if_forked()
        self.__dict__.setdefault(line, deque()).append(member)
        self._slow = True
        if not self._watched and self.status < 0:
            self._watched = True
            self._client.background.watched += 1  # no call since the look: see `mpworker.reader`
        if self.status >= 0:
            self._client.background.announce(self)
        self._client.background.need()

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn(self)` when the task has ended, in a thread of the worker's, or now and here if it has."""
        self._client.poll()
        if self.status < 0:
            self.add_audience("_callbacks", fn)
            return
        try:
            fn(self)
        except Exception:  # noqa: BLE001  # the library's own behaviour: logged, never raised
            LOGGER.exception("exception calling callback for %r", self)

    def settle(self, status: int, data: bytes) -> None:
        """Set the outcome, wake the followers, and have the audience told.

        It may be interrupted at any call, and is then done again; and two threads may do the same at once.
        """
        if self.status < 0:
            self._payload = data
            self.status = status
        if self._slow:
            if self.__dict__.get("_waiting") or self.__dict__.get("_callbacks"):
                self._client.background.announce(
                    self
                )  # first: this may be the last future to need the background thread
            if self._watched:
                self._watched = False
                self._client.background.watched -= 1  # no call since the look: see `mpworker.reader`
            wake_all(self.__dict__.get("_followers", ()))

    def tell_waiters(self) -> bool:
        """Tell the library's waiters that this has ended; False if one of them must be told later."""
        waiting: deque[Any] = self.__dict__.get("_waiting", deque())
        for waiter in taken(waiting):
            if not tell(waiter, self):
                waiting.append(waiter)
                return False
        return True

    def callbacks(self) -> Iterator[Callable[[Future[T]], object]]:
        """Take out the callbacks, each of which is to be called once."""
        return taken(self.__dict__.get("_callbacks", deque()))


def in_queue(queue: str, client: Client, key: int, name: str) -> TaskFuture[Any]:
    """The future of a task in a queue of this name."""
    future: TaskFuture[Any] = client.make_future(client, key, name)
    if queue != future.queue:
        future.queue = queue
    return future
