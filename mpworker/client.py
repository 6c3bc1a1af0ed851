"""The client's end of a worker: tasks and requests go out here; `mpworker.reader` takes in what comes back."""

import atexit
import itertools
import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from mpworker import context
from mpworker.errors import (
    ConfigurationError,
    QueueFull,
    SerializationError,
    StartFailed,
    SupervisorLost,
    WorkerStopped,
)
from mpworker.functions import FunctionTable
from mpworker.future import TaskFuture
from mpworker.ipc import codec, details, payload
from mpworker.ipc.codec import Record
from mpworker.ipc.levels import INFO
from mpworker.ipc.ring import split
from mpworker.launch import descriptors_of, launch, overlap, too_few_descriptors
from mpworker.logs import as_logger, level_of
from mpworker.mapping import Mapping as Map
from mpworker.middleware import Submission, pickled
from mpworker.observer import Observer
from mpworker.observing import Observing
from mpworker.options import QUEUES_MAX, TaskDefaults, WorkerOptions
from mpworker.outcomes import start_failed
from mpworker.reader import Reader
from mpworker.steps import Answer, Steps, asking
from mpworker.waiting import Reply, wake_all

if TYPE_CHECKING:
    from mpworker.queues import QueueOptions
    from mpworker.registering import Registration
    from mpworker.retry import RetryPolicy
    from mpworker.stopping import StopReport

T = TypeVar("T")

_EXIT_SECONDS: Final = 10.0  # how long stop_now lets the supervisor clean up before it is killed
_CALLBACK_SECONDS: Final = 1.0  # how long stop_now waits for the callbacks of what it cancelled
_ANSWER_SECONDS: Final = 1.0  # how long a stop whose time is over waits for an answer
_DRAIN: Final = json.dumps({"verb": "stop", "now": False}).encode()
_ORDER: Final = ("queue", "priority", "weight")  # what is told only where it differs
_PLAIN: Final = TaskDefaults()
OPTIONS_MAX: Final = 1024
_NOW: Final = json.dumps({"verb": "stop", "now": True}).encode()


# Every client whose supervisor runs. Strong references: a worker that is dropped with tasks under way finishes them.
_live: "set[Client]" = set()


def _after_fork() -> None:
    for client in list(_live):
        client.forked()
    _live.clear()


def _sweep() -> None:
    """Reap the supervisors of workers that were dropped and have finished."""
    for client in list(_live):
        client.reap()


def _at_exit() -> None:
    """An interpreter that ends without a stop drains, as the standard library's pool does; Ctrl-C stops now."""
    clients = list(_live)
    try:
        _drain_all(clients)
    except KeyboardInterrupt:
        _stop_all(clients)


def _drain_all(clients: "list[Client]") -> None:
    for client in clients:
        client.stop_graceful(None)


def _stop_all(clients: "list[Client]") -> None:
    for client in clients:
        client.stop_now()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def _age(future: TaskFuture[Any]) -> int:
    return future._key


def queue_full(bound: int, timeout: float) -> QueueFull:
    """The error of a submission that finds `max_pending` tasks unfinished."""
    return QueueFull(f"max_pending={bound} tasks are unfinished, and submit_timeout={timeout:g} s is over")


class Client(Reader):
    """One client of one supervisor of its own.

    Args:
        options: The worker's options.
        initializer: Called in each child before its first task, with initargs.
        initargs: Its arguments.
        observing: What is beside and around the tasks.

    Raises:
        ConfigurationError: No interpreter can be started.
        SerializationError: The initializer or an execution middleware cannot be pickled.
        OSError: No memory, descriptor or process is left.
    """

    make_future: type[TaskFuture[Any]] = TaskFuture
    _interrupts = False  # a map that is closed interrupts its items that run
    _launch = staticmethod(launch)
    _observer_kind: type[Observer] = Observer

    def __init__(
        self,
        options: WorkerOptions,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        observing: Observing | None = None,
    ) -> None:
        _sweep()
        observing = observing or Observing()
        self.prefix = f"{secrets.token_hex(4)}-"
        logger = as_logger(observing.logger)
        level = level_of(logger)
        middleware = pickled(tuple(observing.execute_middleware))
        super().__init__(self._launch(options, self.prefix, initializer, initargs, level, middleware))
        self.observer = self._observer_kind(self, logger, observing.tracer)
        self.submission: Submission | None = None
        if observing.submit_middleware:
            self.submission = Submission(
                tuple(observing.submit_middleware), partial(self.observer.failed, "middleware")
            )
        self.registration: Registration | None = None
        self._options = options
        self._queue_names = {"default"}
        self.queues: dict[str, QueueOptions] = {}  # that were configured
        self.refuses_queues = False
        self.default_burst = min(options.n, options.max_pending)
        self._keys = itertools.count(1)
        self._last_key = 0
        self._streams = [0] * codec.MAX_STREAMS  # which thread sends a payload in parts as this stream, or 0
        self._sending = 0  # how many do
        self._reaping = False
        self.split: dict[Any, Any] = {}  # chunk: its map; has items to be sent one by one, for which a drain waits
        self._resending: list[tuple[int, int]] = []  # (thread, chunk) of those who do so
        self.recurs = False  # a recurring task was registered
        self._cancels = False  # what has not begun shall not
        self._left: tuple[list[TaskFuture[Any]], int] = ([], 0)  # tasks, and how many items, that the end has cut off
        self._unwanted: list[Any] = []  # what may not have begun when a stop cancelled all that had not
        self.cancelled_items = 0  # of maps
        self._cancelled_before = 0  # that stop
        self._stop_by: float | None = None  # the time that a stop was given, which later ones without have, too
        self.end: tuple[int, bytes] | None = None  # what became of all that was pending
        self._forgotten: deque[int] = deque()  # functions that the supervisor is still to be told of
        self._option_keys: dict[TaskDefaults, int] = {}
        self._option_numbers = itertools.count(1)
        # What is larger goes by `_send_slowly`, in parts or not at all.
        self._max_record = min(self.supervisor.channel.outbound.max_payload, options.max_payload_bytes)
        self._half = options.client_ring_bytes // 2
        self.functions = FunctionTable(self._send_function, self._forget_function)
        _live.add(self)
        try:
            self._observe(observing)
        except BaseException:  # no thread is left, say
            self.stop_now()  # whoever keeps the error keeps the client, too
            raise

    def _observe(self, observing: Observing) -> None:
        self.observer.post(INFO, "pool_started", supervisor=self.supervisor.pid, n=self._options.n)
        self.observer.watch(observing.hooks)
        if observing.logger is not None:
            self.observer.read_in_time(True)

    # ------------------------------------------------------------ send

    def say_options(self, options: TaskDefaults) -> tuple[int, dict[str, Any] | None]:
        """The number under which the supervisor knows these options, and what of them goes along with each task."""
        if self._closed:
            self._refuse()
        said: dict[str, Any] = {}
        if options.concurrency_key:
            said["concurrency"] = [options.concurrency_key, options.concurrency]
        shared = options
        if options.concurrency_key or options.concurrency != 1:
            shared = replace(options, concurrency_key="", concurrency=1)
        key = self._option_keys.get(shared)
        if key is None and len(self._option_keys) >= OPTIONS_MAX:
            key = 1  # any
            said["options"] = self._options_report(shared)
        elif key is None:
            key = next(self._option_numbers)
            self._send(codec.OPTIONS, 0, key, 0, 0, json.dumps(self._options_report(shared)).encode())
            self._option_keys[shared] = key  # another thread may have sent the same ones: either number will do
        return key, said or None

    def _options_report(self, options: TaskDefaults) -> dict[str, Any]:
        crash_retries = options.retries if options.crash_retries is None else options.crash_retries
        report: dict[str, Any] = {
            "timeout": options.timeout,
            "retries": options.retries,
            "crash_retries": crash_retries,
        }
        if options.retry_policy is not None:
            report |= self._retry_report(options.retry_policy)
        if options.queue not in self._queue_names:
            self._add_queue(options.queue)
        return report | {name: each for name in _ORDER if (each := getattr(options, name)) != getattr(_PLAIN, name)}

    def _retry_report(self, policy: "RetryPolicy") -> dict[str, Any]:
        judge = policy.judge()
        try:
            # Kept as long as the worker, as the options are.
            key = self.functions.always(judge) if judge is not None else 0
        except payload.Unserializable as error:
            raise SerializationError(f"an exception of the retry_policy cannot be pickled: {error}") from error
        return {"judge": key, "backoff": [policy.base, policy.factor, policy.cap, policy.jitter]}

    def _add_queue(self, name: str) -> None:
        if self.refuses_queues:
            known = ", ".join(map(repr, sorted(self._queue_names)))
            raise ConfigurationError(f"there is no queue {name!r}, and unknown_queues is 'refuse'; there are {known}")
        if len(self._queue_names) >= QUEUES_MAX:
            raise ConfigurationError(f"a worker has at most {QUEUES_MAX} queues: there is no room for {name!r}")
        self._queue_names.add(name)

    def tell(self, message: dict[str, Any]) -> None:
        """A request whose answer nobody waits for; it comes before whatever is sent later."""
        self._send(codec.REQUEST, 0, 0, 0, 0, json.dumps(message).encode())

    def configure_queue(self, name: str, options: "QueueOptions") -> None:
        """Make a queue, or change one."""
        burst = options.burst if options.burst is not None else self.default_burst
        told = {"weight": options.weight, "max_running": options.max_running, "rate": options.rate, "burst": burst}
        self.tell({"verb": "queue", "name": name, "options": told})
        self.queues[name] = options
        self._queue_names.add(name)

    def configure_queues(self, queues: "Mapping[str, QueueOptions]") -> None:
        """Make several queues, or change them."""
        for name, options in queues.items():
            self.configure_queue(name, options)

    def limit_rate(self, rate: float | None, burst: int | None) -> None:
        """Limit the starts of all queues together."""
        self.tell({"verb": "rate", "rate": rate, "burst": burst if burst is not None else self.default_burst})

    def _send_function(self, key: int, blob: bytes) -> None:
        self._send(codec.FUNCTION, 0, key, 0, 0, blob)

    def _forget_function(self, key: int) -> None:
        self._forgotten.append(key)
        self._send_forgotten()

    def _send_forgotten(self) -> None:
        # Not while a record is on its way in parts, which may name one. None begins between the look and the push.
        while self._forgotten and not self._closed:
            key = self._forgotten.popleft()
            if self._sending or not self._push(codec.FORGET, 0, key, 0, 0, b""):
                self._forgotten.appendleft(key)
                return

    def _refuse(self) -> None:
        """Raise if nothing more is accepted."""
        if self._forked:
            raise WorkerStopped("this worker was made before fork: make a new one in this process")
        if self._broken is not None:
            raise start_failed(self._broken)
        if self._closed == "lost":
            raise SupervisorLost(f"the supervisor (pid {self.supervisor.pid}) has died")
        if self._closed:
            raise WorkerStopped("the worker is stopped and takes no more tasks")

    def submit(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: int,
        said: dict[str, Any] | None = None,
        make: Callable[["Client", int, str], TaskFuture[Any]] | None = None,
    ) -> TaskFuture[Any]:
        """Send one task.

        Args:
            function: What is called.
            args: Its arguments.
            kwargs: Its keyword arguments.
            options: The key of its options.
            said: What it says beyond them: see `mpworker.ipc.details`.
            make: Makes its future of this client, its key and the name of the function; None makes a plain one.
        """
        pending = self.pending
        flags = 0
        live = self.functions.live
        while True:
            if self._closed:
                self._refuse()
            try:
                function_key = self.functions.key(function)
                data = payload.dumps((args, kwargs) if function_key else (function, args, kwargs))
            except payload.Unserializable as error:
                raise self.cannot_send(function, args, kwargs, error) from error
            if said is not None:
                flags = codec.DETAILED
                data = details.pack(said, data)
            key = next(self._keys)
            if len(pending) >= self._options.max_pending:
                self._wait_until_there_is_room()
            name = live.get(function_key) or payload.name_of_callable(function)
            future: TaskFuture[Any] = (make or self.make_future)(self, key, name)
            large = len(data) > self._max_record
            pending[key] = future
            self._last_key = key
            try:
                # The GIL changes hands at calls: between these looks and the push no other thread can close the worker
                # or drop the function. Nor is the task forgotten: whoever closes settles what is pending afterwards.
                if function_key in live and not self._closed:
                    if not large and self._push(codec.SUBMIT, flags, key, function_key, options, data):
                        break
                    if self._send_slowly(codec.SUBMIT, flags, key, function_key, options, data):
                        break
            except BaseException:
                pending.pop(key, None)
                raise
            pending.pop(key, None)
        self._ring()
        if not key & 63 and self._fill() > self._half:
            self.poll()
        return future

    def _wait_until_there_is_room(self) -> None:
        timeout, bound = self._options.submit_timeout, self._options.max_pending
        self.poll()
        if not self.wait_for(self.when(lambda: len(self.pending) < bound or bool(self._closed)), timeout):
            raise queue_full(bound, timeout or 0.0)
        self.refuse_if_closed()

    def _is_closed(self) -> bool:
        return bool(self._closed)

    def refuse_if_closed(self) -> None:
        """Raise if nothing more is accepted."""
        if self._closed:
            self._refuse()

    def cannot_send(
        self, function: object, args: Sequence[Any], kwargs: Mapping[str, Any], error: payload.Unserializable
    ) -> BaseException:
        """The error of a call that cannot be pickled."""
        from mpworker import hints

        name = payload.name_of_callable(function)
        cause = error.__cause__ if error.__cause__ is not None else error
        what = hints.culprit(function, args, kwargs)
        return SerializationError(f"the call of {name!r} cannot be pickled: {type(cause).__name__}: {cause}{what}")

    def is_iterable(self, value: Any) -> bool:
        """Can `map` read it?"""
        try:
            iter(value)
        except TypeError:
            return False
        return True

    def map(self, *args: Any) -> Any:
        """The results of a `map`; for the arguments see `Mapping`."""
        return Map(self, *args).results()

    def send_chunk(
        self, chunk: Any, flags: int, function: int, options: int, items: int, data: bytes, again: bool = False
    ) -> None:
        """Send a chunk of a map; `again`: its items have been accepted before, and go until the end."""
        key = next(self._keys)
        c = options | items << 32
        large = len(data) > self._max_record
        chunk.key = key
        self.pending[key] = chunk
        try:
            if self._closed and not again:
                self._refuse()
            if again and (self.end or self._cancels):  # if not yet, then what is pending is settled at the end
                self.pending.pop(key, None)
                chunk.settle(*(self.end or (codec.CANCELLED, b"")))
            elif large or not self._push(codec.CHUNK, flags, key, function, c, data):
                self._send_slowly(codec.CHUNK, flags, key, function, c, data, again)
        except Exception:
            self.pending.pop(key, None)  # not after an interrupt: it may have been sent, and its map cancels it
            raise
        chunk.sent = True
        self._ring()

    @contextmanager
    def resending(self, key: int) -> Iterator[None]:
        """While items of a chunk are sent again: a handler on top of it must not wait for that."""
        mark = (threading.get_ident(), key)
        try:
            self._resending.append(mark)
            yield
        finally:
            if mark in self._resending:
                self._resending.remove(mark)

    def say_resent(self, key: int, start: int | None) -> None:
        """Say that items of a chunk have been sent one by one, or (None) that no more of them will be."""
        if not self._exited:
            data = json.dumps({"verb": "resent", "task": key, "start": start}).encode()
            self._send(codec.REQUEST, 0, 0, 0, 0, data)

    def _resend_splits(self) -> None:
        for chunk, mapping in list(self.split.items()):
            mapping.resend(chunk)

    def _fail_all(self, status: int, data: bytes) -> None:
        self.end = (status, data)
        if self.observer.unfinished is None:
            self.observer.unfinished = frozenset(self.pending)
        self._left = self._what_is_left()
        super()._fail_all(status, data)

    def _send(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        if len(data) > self._max_record or not self._push(kind, flags, a, b, c, data):
            self._send_slowly(kind, flags, a, b, c, data, kind == codec.REQUEST)  # answered until the end
        self._ring()

    def _send_slowly(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes, until_end: bool = False) -> bool:
        """Send a record that must wait for room or go in parts, reading events meanwhile.

        Returns:
            False if the function that a task names has been dropped meanwhile; nothing was sent then.
        """
        if len(data) > self._options.max_payload_bytes:
            raise SerializationError(
                f"a pickle of {len(data)} bytes exceeds max_payload_bytes={self._options.max_payload_bytes}"
            )
        record = (kind, flags, a, b, c, data)
        if len(data) <= self._max_record:
            return self._push_when_there_is_room(record, until_end)
        taken = [-1]
        try:
            self._take_stream(taken)  # from here on no function is forgotten
            if self._is_dropped(kind, b):
                return False
            self._push_each(split(record, self._max_record // 2, taken[0]), until_end)
        finally:
            if taken[0] >= 0:
                self._streams[taken[0]] = 0
                self._sending -= 1  # no call since the try
            self._stream_is_free()
        return True

    def _is_dropped(self, kind: int, function: int) -> bool:
        return kind in (codec.SUBMIT, codec.CHUNK) and function not in self.functions.live

    def _take_stream(self, taken: list[int]) -> None:
        """Find a stream that no other payload on its way in parts has; wait for one if there is none.

        Args:
            taken: Its number is put here.
        """
        thread = threading.get_ident()
        streams = self._streams
        while True:
            for stream in range(codec.MAX_STREAMS):
                if not streams[stream]:
                    streams[stream] = thread
                    self._sending += 1
                    taken[0] = stream  # no call since the look
                    return
            if streams.count(thread) == codec.MAX_STREAMS:
                raise RuntimeError(f"signal handlers send large payloads on top of {codec.MAX_STREAMS} others")
            self.wait_for(self.when(lambda: not all(streams)), None)

    def _stream_is_free(self) -> None:
        if self._sending == codec.MAX_STREAMS - 1:  # somebody may wait for one
            wake_all(self._any_event)
            self._wake_leader()
        if self._forgotten:
            self._send_forgotten()

    def _push_each(self, parts: Iterable[Record], until_end: bool) -> None:
        for part in parts:
            self._push_when_there_is_room(part, until_end)

    def _push_when_there_is_room(self, record: Record, until_end: bool) -> bool:
        """Push a record, reading events while the ring is full; False if it names a function that was dropped."""
        kind, function, size = record[0], record[3], len(record[5])
        names_one = kind in (codec.SUBMIT, codec.CHUNK) and not record[1] & codec.FRAGMENTED
        live = self.functions.live
        while True:
            if self._closed and not until_end:
                self._refuse()
            if names_one and function not in live:
                return False
            if self._push(*record):  # no call between the looks and this, as in submit
                return True
            self._ring()
            over = self.is_over if until_end else self._is_closed
            self.wait_for(self.when(lambda: self._fits(size) or over()), None, size)  # noqa: B023

    # ------------------------------------------------------------ requests

    def request(self, message: dict[str, Any], timeout: float | None = None) -> dict[str, Any] | None:
        """Ask the supervisor; None when it is gone or does not answer in time."""
        if self._forked:
            self._refuse()
        reply = Reply()
        key = next(self._keys)
        self._replies[key] = reply
        if self._exited:
            self._replies.pop(key, None)
            return None
        self._send(codec.REQUEST, 0, key, 0, 0, json.dumps(message).encode())
        self.wait_for(reply, timeout)
        self._replies.pop(key, None)
        return None if reply.answer is None or "lost" in reply.answer else reply.answer

    def carry_out(self, steps: Steps[T]) -> T:
        """Ask what a verb asks, and return what it returns."""
        try:
            self._ask_each(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    def _ask_each(self, steps: Steps[T]) -> NoReturn:
        answer: Answer = None
        while True:
            answer = self.request(steps.send(answer))

    def cancel(self, key: int) -> bool:
        """Cancel a task. True if it will end cancelled, False if it had ended."""
        try:
            answer = self.request({"verb": "cancel", "task": key})
        except (WorkerStopped, SupervisorLost, StartFailed):
            if self._forked:
                raise
            answer = None
        return bool(answer and answer["cancelled"])

    def abandon(self, key: int) -> None:
        """Nobody wants the rest of this chunk any more."""
        if key in self.pending and not (self._exited or self._forked):
            # The reply is an event, by which a submit that waits for max_pending sees that there is room.
            message = {"verb": "cancel", "task": key, "interrupt": self._interrupts}
            self._send(codec.REQUEST, 0, 0, 0, 0, json.dumps(message).encode())
        self.pending.pop(key, None)  # last: a chunk that is neither here nor cancelled would keep a drain waiting

    def new_key(self) -> int:
        """The number of a task that the supervisor makes for this client."""
        key = self._last_key = next(self._keys)
        return key

    def key_of(self, task_id: str) -> int:
        """The number that an id of ours names; 0 if it names none that was given out."""
        number = task_id.removeprefix(self.prefix)
        if not (task_id.startswith(self.prefix) and number.isdecimal() and len(number) < 20):
            return 0
        key = int(number)
        return key if 0 < key <= self._last_key or (self.recurs and key >= codec.CRON_KEYS) else 0

    def is_running(self, key: int) -> bool:
        """Has a child claimed the task?"""
        answer = self.request({"verb": "running", "task": key})
        return bool(answer and answer["running"])

    def resizing(self, n: int) -> Steps[None]:
        """Have n children from now on."""
        self.refuse_if_closed()
        needed = descriptors_of(n + overlap(self._options))
        answer = yield from asking({"verb": "set_max_workers", "n": n, "descriptors": needed})
        if answer is None:
            self._refuse()
        elif answer["hard"]:
            raise too_few_descriptors(n, needed, answer["hard"])

    # ------------------------------------------------------------ stop

    def close_submit(self) -> None:
        """Accept nothing more."""
        if not self._closed:
            self._closed = "stopped"

    def cancel_unstarted(self, timeout: float | None = None) -> None:
        """Accept nothing more, and cancel what no child has begun."""
        self.close_submit()
        self._cancels = True
        if not self._forked:
            self.request({"verb": "cancel_unstarted"}, timeout)

    def stop_graceful(self, timeout: float | None, cancel_queued: bool = False) -> "StopReport":
        """Finish what was accepted, then end everything; when the time is over first the rest is cancelled."""
        if self._forked:
            return self._stop_report(True)
        if self._over:
            return self._stop_report(self._all_finished())
        self._stop_within(timeout)

        def left() -> float | None:
            return None if self._stop_by is None else max(0.0, self._stop_by - time.monotonic())

        if cancel_queued and not self._cancels:
            self._unwanted, self._cancelled_before = list(self.pending.values()), self.cancelled_items
            self.cancel_unstarted(left())
        if not self._say_drain():
            self._say_drain_when_there_is_room(left())
        thread = threading.get_ident()
        for key in [key for who, key in list(self._resending) if who == thread]:
            self.say_resent(key, None)  # this is a signal handler on top of a frame that cannot go on
        told = self.when(lambda: self._over or bool(self.split))
        while self.wait_for(told, left()) and not self.is_over():
            self._resend_splits()
        if self.is_over():
            self._join_background(left())
        else:
            self._cut_short = self._cut_short or self._cuts_a_run_short()
            self.stop_now()
        return self._stop_report(self._all_finished())

    def begin_to_stop(self, timeout: float | None, cancel_queued: bool = False) -> "StopReport":
        """`stop_graceful` in a thread of its own, if it has a time; what is left now."""
        if not (self._forked or self._over):
            if timeout is None and not cancel_queued:
                self.ask_drain()
            else:
                self.close_submit()
                self._stop_within(timeout)
                stop = partial(self.stop_graceful, timeout, cancel_queued)
                try:
                    threading.Thread(target=stop, name="mpworker-stop", daemon=True).start()
                except RuntimeError:
                    pass  # the interpreter is at its end and starts no thread; the exit handler stops, in the same time
        self.poll()
        return self._stop_report(not self.pending)

    def _stop_within(self, timeout: float | None) -> None:
        """No stop takes longer than the shortest time that one was given: the interpreter may end meanwhile."""
        if timeout is not None:
            by = time.monotonic() + timeout
            self._stop_by = by if self._stop_by is None else min(by, self._stop_by)

    def _stop_report(self, finished: bool) -> "StopReport":
        from mpworker.stopping import report_on

        tasks, items = self._left if self._over else self._what_is_left()
        return report_on(finished, tasks, items)

    def _what_is_left(self) -> tuple[list[TaskFuture[Any]], int]:
        """Tasks, and how many items, that have no outcome or that a stop has cancelled."""
        pending = list(self.pending.values())
        unwanted = [each for each in self._unwanted if isinstance(each, TaskFuture)]
        cancelled = [each for each in unwanted if each.status == codec.CANCELLED]  # not `cancelled()`, which reads more
        tasks = sorted({*cancelled, *(each for each in pending if isinstance(each, TaskFuture))}, key=_age)
        items = sum(each.left for each in pending if not isinstance(each, TaskFuture))
        return tasks, items + (self.cancelled_items - self._cancelled_before if self._unwanted else 0)

    def _cuts_a_run_short(self) -> bool:
        """Is a run of a recurring task, which has no future, unfinished?"""
        if not self.recurs:
            return False
        answer = self.request({"verb": "cron", "op": "unfinished"}, _ANSWER_SECONDS)
        return bool(answer["unfinished"]) if answer is not None else not self.is_over()

    def _all_finished(self) -> bool:
        """Of what was accepted; it may have been though the time was over before all processes had gone."""
        return self._over and self._closed == "stopped" and not self._cut_short

    def stop_now(self) -> None:
        """End everything at once; what is pending ends cancelled."""
        if self._forked or self._over:
            return
        self.close_submit()
        self._stop_asked = self._stop_now = True
        # The ring may be full and its reader stopped: the closed socket says the same.
        if self._push(codec.REQUEST, 0, 0, 0, 0, _NOW):
            self._ring()
        else:
            self.supervisor.hang_up()
        gone = self.when(self.is_over)
        if not self.wait_for(gone, _EXIT_SECONDS):
            self.supervisor.kill()
            self.wait_for(gone, _EXIT_SECONDS)
        self._join_background(_CALLBACK_SECONDS)

    def _join_background(self, timeout: float | None) -> None:
        """Wait until all callbacks have been called, if none of them can be waiting for this thread."""
        lock: Any = self.functions.lock
        if not lock._is_owned():  # else this is a handler, on top of a frame that holds what a callback may want
            deadline = None if timeout is None else time.monotonic() + timeout
            self.background.join(timeout)
            self.observer.join(None if deadline is None else deadline - time.monotonic())

    def reap(self) -> None:
        """If a dropped worker's supervisor has ended, take note."""
        if self._stop_asked and not self._over:
            self.wait_for(self.when(self.is_over), 0.0)

    def ask_drain(self) -> None:
        """Finish what was accepted and end, without waiting for it."""
        if self._forked or self._over:
            return
        if not self._say_drain():  # the ring is full: waiting for room is for somebody else to do
            try:
                threading.Thread(target=self._say_drain_when_there_is_room, name="mpworker-drain", daemon=True).start()
            except RuntimeError:
                return  # the interpreter is at its end and starts no thread; the exit handler waits
        if not self._reaping and not self._over:
            # Somebody must reap the supervisor, though nobody may ask for a result again.
            self._reaping = True
            self.background.watched += 1
            try:
                self.background.need()
            except RuntimeError:
                pass  # the interpreter is at its end and starts no thread; the exit handler waits

    def _say_drain(self) -> bool:
        """Say that nothing more comes; False if there is no room to say it."""
        self.close_submit()
        self._stop_asked = True
        said = self._push(codec.REQUEST, 0, 0, 0, 0, _DRAIN)
        self._ring()
        return said

    def _say_drain_when_there_is_room(self, timeout: float | None = None) -> None:
        room = self.when(lambda: self._fits(len(_DRAIN)) or self._over)
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.wait_for(room, None if deadline is None else deadline - time.monotonic(), len(_DRAIN)):
            if self._over or self._say_drain():
                return

    def is_fork(self) -> bool:
        """Is this process a fork of the one that made the worker?"""
        return self._forked

    def _supervisor_died(self) -> None:
        if not self._exited and not self._stop_now:
            self._broken = self._broken or self.supervisor.start_failure()
            if self._broken is not None:
                self._closed = "broken"
        super()._supervisor_died()
        if self._closed == "lost":
            context._orphans = True
        _live.discard(self)

    def forked(self) -> None:
        """This process is a fork: the rings are not here, the supervisor is not ours."""
        self._forked = True
        self._closed = "forked"
        self.supervisor.hang_up()  # this process's copy of the socket: it would be warned of as never closed
        self._forget_threads()
        self.observer.forked()
        self.functions = FunctionTable(self._send_function, self._forget_function)
