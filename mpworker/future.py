"""The future of a task: a `concurrent.futures.Future` that costs one small object.

The standard library's future has a condition of its own and two lists. Here all futures of a client share the
client's condition, and the lists are made when somebody asks for them: a future that is submitted and waited for by
`result()` needs neither. What the library's own `wait` and `as_completed` look at (`_state`, `_condition`,
`_waiters`) is there for them.

A condition that is made lazily for each future would not do: a setter that is preempted between the state and the
look-up of the condition lets `wait(ALL_COMPLETED)` return early.
"""

import json
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING
from threading import Condition
from typing import TYPE_CHECKING, Any, TypeVar

from mpworker.errors import (
    ConfigurationError,
    RemoteTraceback,
    SerializationError,
    StartFailed,
    SupervisorLost,
    TaskCancelled,
    TaskExited,
    TaskTimeout,
    WorkerCrashed,
)
from mpworker.ipc import codec, payload
from mpworker.waiting import wake_all

if TYPE_CHECKING:
    from mpworker.client import Client

T = TypeVar("T")

# Outcomes that the client decides; the others are codec's.
LOST = 100
BROKEN = 101


def make_error(status: int, data: bytes, subject: str) -> BaseException:
    """The exception for an outcome that is no value.

    Args:
        status: A status of `mpworker.ipc.codec`, or LOST or BROKEN.
        data: Its payload.
        subject: What failed, for the message, such as "task 4f-3".
    """
    if status == codec.ERROR:
        try:
            error, text = payload.loads_known(data)
        except (Exception, SystemExit) as broken:  # noqa: BLE001  # an exception's class may do anything
            return SerializationError(f"{subject}: the exception of the task cannot be unpickled: {_brief(broken)}")
        if not isinstance(error, BaseException):
            return SerializationError(f"{subject}: the exception came back as {payload.name_of_type(error)}")
        error.__cause__ = RemoteTraceback(text)
        return error
    report: dict[str, Any] = json.loads(data) if data else {}
    return _DECIDED[status](report, subject)


def _unserializable(report: dict[str, Any], subject: str) -> BaseException:
    type_name, message = report["type"], report["message"]
    if report["what"] == "item":
        text = f"{subject} cannot be sent: {message}"
    elif report["what"] == "call":
        text = f"{subject}: the function or its arguments cannot be unpickled in the child: {message}"
    else:
        text = f"{subject}: the {report['what']} of type {type_name} cannot be sent back: {message}"
    error = SerializationError(text)
    if report["traceback"]:
        error.__cause__ = RemoteTraceback(report["traceback"])
    return error


def _exited(report: dict[str, Any], subject: str) -> BaseException:
    error = TaskExited(f"{subject} raised {report['type']}({report['code']})", report["code"])
    error.__cause__ = RemoteTraceback(report["traceback"])
    return error


_CAUSES = {
    "oom": "it was killed because memory ran out",
    "lease": "it gave no heartbeat within lease_ttl and was killed",
    "corrupt": "it wrote nonsense into the memory it shares with the supervisor and was killed",
    "nursery": "the process that forks the children died",
    "lost": "the item had ended, but its result was lost with the child",
    "unkillable": "it survives SIGKILL",
}


def _crashed(report: dict[str, Any], subject: str) -> BaseException:
    pid, number, code = report["pid"], report["signal"], report["exit_code"]
    if number:
        import signal

        try:
            how = f"died by {signal.Signals(number).name}"
        except ValueError:
            how = f"died by signal {number}"
    else:
        how = f"ended with exit code {code}"
    why = _CAUSES.get(report["cause"])
    detail = f" ({why})" if why else ""
    message = f"{subject}: child {pid} {how}{detail} on attempt {report['attempt']}"
    return WorkerCrashed(message, pid, number, code, report["cause"], report["attempt"])


def _timed_out(report: dict[str, Any], subject: str) -> BaseException:
    stack = json.loads(report["interrupted"])["stack"] if report["interrupted"] else ""
    how = "; it did not react to the interrupt and its child was killed" if report["killed"] else ""
    return TaskTimeout(f"{subject} ran for over {report['timeout']:g} s on attempt {report['attempt']}{how}", stack)


def start_failed(report: dict[str, Any], subject: str = "") -> BaseException:
    """The exception for a pool that cannot start: what a BROKEN event says."""
    prefix = f"{subject}: " if subject else ""
    if report["what"] == "python":
        return ConfigurationError(prefix + report["why"])
    return StartFailed(f"{prefix}the children cannot start ({report['what']}): {report['why']}", cause="start")


_DECIDED: dict[int, Callable[[dict[str, Any], str], BaseException]] = {
    codec.UNSERIALIZABLE: _unserializable,
    codec.EXITED: _exited,
    codec.INTERRUPTED: lambda _, subject: TaskCancelled(f"{subject} was interrupted"),
    codec.CRASHED: _crashed,
    codec.TIMED_OUT: _timed_out,
    codec.CANCELLED: lambda _, subject: TaskCancelled(f"{subject} was cancelled"),
    LOST: lambda _, subject: SupervisorLost(f"{subject}: the supervisor died before it had ended"),
    BROKEN: start_failed,
}


def _brief(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # the __str__ of a stranger
        return type(error).__name__


class _Waiters(list[Any]):
    """The waiters of `concurrent.futures`, which removes each of its own, told or not."""

    def remove(self, waiter: Any) -> None:
        if waiter in self:
            super().remove(waiter)


class TaskFuture(Future[T]):
    """The result to come of one task.

    Made by `ProcessWorker.submit`. All of `concurrent.futures.Future` works, with these differences: `cancel` also
    stops a task that runs, and a result is unpickled when it is first asked for, in the thread that asks.
    """

    # Class-level defaults: an instance sets only what differs, and stays small.
    _state = PENDING
    _status = -1
    _payload: bytes | None = None
    _result: Any = None
    _exception: BaseException | None = None
    _slow = False  # has waiters or callbacks
    _watched = False  # and somebody needs the background reader for it

    def __init__(self, client: "Client", key: int) -> None:
        # Not Future.__init__, on purpose: see the module's docstring.
        self._client = client
        self._key = key

    def __getattr__(self, name: str) -> Any:
        # The library's `wait` and `as_completed` append to _waiters, and need the background thread. What is appended
        # when the task has ended is not told: `as_completed` has counted it already.
        if name == "_waiters":
            self._watch()
            if self._state is not PENDING:
                return _Waiters()
            return self.__dict__.setdefault("_waiting", _Waiters())  # not its own name: the next look shall come here
        if name == "_done_callbacks":
            self._watch()
            made: list[Any] = []
            return self.__dict__.setdefault(name, made)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def _condition(self) -> Condition:  # type: ignore[override]
        return self._client.condition

    @property
    def task_id(self) -> str:
        """The task's id, unique on this machine while its worker lives; logs and `mpworker.current()` show the same."""
        return f"{self._client.prefix}{self._key}"

    def __repr__(self) -> str:
        return f"<TaskFuture {self.task_id} {self._state.lower()}>"

    # ------------------------------------------------------------ state

    @property
    def ready(self) -> bool:
        """Has it ended, as far as this client has read? `done()` looks first."""
        return self._state is not PENDING

    def done(self) -> bool:
        """Has the task ended?"""
        if self._state is PENDING:
            self._client.poll()
        return self._state is not PENDING

    def cancelled(self) -> bool:
        """Did the task end by being cancelled?"""
        return self.done() and self._state is CANCELLED_AND_NOTIFIED

    def running(self) -> bool:
        """Has a child claimed the task? One question to the supervisor."""
        return not self.done() and self._client.is_running(self._key)

    def cancel(self) -> bool:
        """Cancel the task: before its start it never starts; while it runs it is interrupted, and killed after `grace`.

        Returns:
            True if it will end cancelled, False if it had ended.
        """
        if self.done():
            return self._state is CANCELLED_AND_NOTIFIED
        return self._client.cancel(self._key)

    def result(self, timeout: float | None = None) -> T:
        """The task's value.

        Args:
            timeout: Seconds to wait; None waits as long as it takes.

        Raises:
            TimeoutError: It has not ended in time.
            TaskCancelled: It was cancelled.
            Exception: What the task raised, with the child's traceback as its cause, or one of `mpworker.errors`.
        """
        if self._state is PENDING and not self._client.wait_for(self, timeout):
            raise TimeoutError(f"task {self.task_id} has not ended within {timeout} s")
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
        if self._state is PENDING and not self._client.wait_for(self, timeout):
            raise TimeoutError(f"task {self.task_id} has not ended within {timeout} s")
        if self._payload is not None:
            self._decode()
        if self._state is CANCELLED_AND_NOTIFIED and self._exception is not None:
            raise self._exception
        return self._exception

    def _decode(self) -> None:
        data, status = self._payload, self._status
        if data is None:
            return
        value: Any = None
        error: BaseException | None = None
        if status == codec.OK:
            try:
                value = payload.loads_known(data)
            except (Exception, SystemExit) as broken:  # noqa: BLE001  # a value's own code may raise anything
                error = SerializationError(
                    f"task {self.task_id}: its result cannot be unpickled here: {_brief(broken)}"
                )
                error.__cause__ = broken
        else:
            error = make_error(status, data, f"task {self.task_id}")
        with self._client.mutex:
            if self._payload is not None:  # the first thread's value is everybody's
                self._result, self._exception = value, error
                self._payload = None

    # ------------------------------------------------------------ callbacks

    def _watch(self) -> None:
        """Somebody waits who does not read the ring: a reader thread must."""
        with self._client.mutex:
            if not self._watched and self._state is PENDING:
                self._client.watch()
                self._slow = True
                if not self._watched and self._state is PENDING:  # type: ignore[redundant-expr]  # in a handler
                    self._watched = True
                    self._client.watched += 1  # no call between the two: see `mpworker.reader`

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn(self)` when the task has ended, in a thread of the worker's, or now and here if it has."""
        self._client.poll()
        with self._client.mutex:
            if self._state is PENDING:
                callbacks = self._done_callbacks  # whose making starts the reader
                if self._state is PENDING:
                    callbacks.append(fn)
                    return
        try:
            fn(self)
        except Exception:  # noqa: BLE001  # the library's own behaviour: logged, never raised
            LOGGER.exception("exception calling callback for %r", self)

    def settle(self, status: int, data: bytes) -> None:
        """Set the outcome and wake the followers. Called under the client's condition; `announce` comes later."""
        if self._state is PENDING:  # else this was interrupted, and goes on
            self._status = status
            self._payload = data
            self._state = CANCELLED_AND_NOTIFIED if status == codec.CANCELLED else FINISHED
        if self._slow:
            if self._watched:
                self._watched = False
                self._client.watched -= 1  # no call between the two: see `mpworker.reader`
            wake_all(self.__dict__.get("_followers", ()))

    def add_waiter(self, waiter: Any) -> None:
        """Have `settle` wake the waiter, which reads the ring itself if it must. Under the client's condition."""
        self.__dict__.setdefault("_followers", []).append(waiter)
        self._slow = True

    def remove_waiter(self, waiter: Any) -> None:
        """Undo `add_waiter`. Under the client's condition."""
        followers = self.__dict__.get("_followers", [])
        if waiter in followers:
            followers.remove(waiter)

    def has_audience(self) -> bool:
        """Is there anybody for `announce` to tell?"""
        return bool(self.__dict__.get("_waiting") or self.__dict__.get("_done_callbacks"))

    def announce(self) -> list[Callable[[Future[T]], object]]:
        """Tell the library's waiters that it has ended. Under the client's condition, by the background thread.

        That thread alone handles no signals: in the main one a handler that raises could come in the middle, and then
        a waiter would be told twice, which `as_completed` takes ill, or never.

        Returns:
            The callbacks, each of which is now to be called once.
        """
        waiters: list[Any] = self.__dict__.pop("_waiting", [])
        for waiter in waiters:
            if self._status == codec.CANCELLED:
                waiter.add_cancelled(self)
            elif self._status == codec.OK:
                waiter.add_result(self)
            else:
                waiter.add_exception(self)
        callbacks: list[Callable[[Future[T]], object]] = self.__dict__.pop("_done_callbacks", [])
        return callbacks
