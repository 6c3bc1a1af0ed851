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

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mpworker.audience import Look, Waiters, state_seen, tell
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
from mpworker.ipc import codec, payload, raised
from mpworker.ipc.failures import brief
from mpworker.waiting import taken, wake_all

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
        subject: What failed, for the message, such as 'task 4f-3 ("score")'.
    """
    if status == codec.ERROR:
        return _raised(raised.loads_report(data), subject)
    report: dict[str, Any] = json.loads(data) if data else {}
    return _DECIDED[status](report, subject)


def _raised(report: raised.Raised, subject: str) -> BaseException:
    why_not = f"sent back: {report.why_not}"
    error: BaseException | None = None
    if report.pickled:
        try:
            error = raised.checked(payload.loads_known(report.pickled))
        except (Exception, SystemExit) as broken:  # noqa: BLE001  # an exception's class may do anything
            why_not = f"unpickled here: {brief(broken)}"
    if error is None:
        message = " ".join(report.message.split())
        what = f"{report.type_name}: {message}" if message else report.type_name
        error = SerializationError(f"{subject} raised {what}; the exception cannot be {why_not}")
        error.raised_type, error.raised_message = report.type_name, report.message
    # Not by the attribute, which a frozen dataclass refuses to set.
    BaseException.__cause__.__set__(error, RemoteTraceback(report.traceback))  # type: ignore[union-attr]
    return error


_ASYNCHRONOUS = "; give a function that runs it, such as lambda x: asyncio.run(f(x))"
# What to do about a result that cannot be sent back, by its type.
_HINTS = {
    "coroutine": _ASYNCHRONOUS,
    "async_generator": _ASYNCHRONOUS,
    "generator": "; return a list of what it yields",
}


def _unserializable(report: dict[str, Any], subject: str) -> BaseException:
    type_name, message = report["type"], report["message"]
    if report["what"] == "item":
        text = f"{subject} cannot be sent: {message}"
    elif report["what"] == "call":
        text = f"{subject}: the function or its arguments cannot be unpickled in the child: {message}"
    else:
        text = f"{subject}: the result of type {type_name} cannot be sent back: {message}{_HINTS.get(type_name, '')}"
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
    "lost": "the item had ended, but its result was lost with the child: crash_retries=1 runs it again",
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
    message = f"{subject}: child {pid} {how}{detail} {_attempt(report)}"
    return WorkerCrashed(message, pid, number, code, report["cause"], report["attempt"])


def _timed_out(report: dict[str, Any], subject: str) -> BaseException:
    stack = json.loads(report["interrupted"])["stack"] if report["interrupted"] else ""
    how = "; it did not react to the interrupt and its child was killed" if report["killed"] else ""
    return TaskTimeout(f"{subject} ran for over {report['timeout']:g} s {_attempt(report)}{how}", stack)


def _attempt(report: dict[str, Any]) -> str:
    return f"on attempt {report['attempt']} of {report['attempts']}"


def start_failed(report: dict[str, Any], subject: str = "") -> StartFailed | ConfigurationError:
    """The error of a pool that cannot start; the subject is a task or item that it takes along."""
    of = f"{subject}: " if subject else ""
    if report["what"] == "python":
        return ConfigurationError(of + report["why"])
    error = StartFailed(f"{of}{report['what']} cannot start: {report['why']}", cause="start")
    if report["traceback"]:
        error.__cause__ = RemoteTraceback(report["traceback"])
    return error


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


_UNSETTLED: Final = -1


class TaskFuture(Future[T]):
    """The result to come of one task.

    Made by `ProcessWorker.submit`. All of `concurrent.futures.Future` works, with these differences: `cancel` also
    stops a task that runs, and a result is unpickled when it is first asked for, in the thread that asks.
    """

    # Class-level defaults: an instance sets only what differs, and stays small.
    status = _UNSETTLED  # of `mpworker.ipc.codec`, or LOST or BROKEN
    _payload: bytes | None = None
    _result: Any = None
    _exception: BaseException | None = None
    _slow = False  # has followers or an audience
    _watched = False  # and somebody needs the background reader for it

    def __init__(self, client: "Client", key: int, name: str) -> None:
        # Not Future.__init__, on purpose: see the module's docstring.
        self._client = client
        self._key = key
        self._name = name  # of the function, for messages

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
        return f"{self._client.prefix}{self._key}"

    def __repr__(self) -> str:
        return f'<TaskFuture {self.task_id} ("{self._name}") {self.state.lower()}>'

    @property
    def _subject(self) -> str:
        return f'task {self.task_id} ("{self._name}")'

    # ------------------------------------------------------------ state

    @property
    def ready(self) -> bool:
        """Has it ended, as far as this client has read? `done()` looks first."""
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
            True if it will end cancelled, False if it had ended.
        """
        if self.done():
            return self.status == codec.CANCELLED
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
        if self.status < 0 and not self._client.wait_for(self, timeout):
            raise TimeoutError(f"{self._subject} has not ended within {timeout} s")
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
        if self.status < 0 and not self._client.wait_for(self, timeout):
            raise TimeoutError(f"{self._subject} has not ended within {timeout} s")
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
                value = payload.loads_known(data)
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
