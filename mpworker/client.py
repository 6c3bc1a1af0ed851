"""The client's end: it starts the supervisor, sends tasks, and reads outcomes.

Who reads the event ring
------------------------
The thread that waits reads it: no reader thread to wake, no GIL to hand over. One thread at a time is the *leader*:
it pops events, settles futures, and sleeps on the bell. Others that wait meanwhile are *followers*: each sleeps on a
lock of its own, which the leader releases when the follower's future has ended, or when the leader leaves and the
follower must lead. `concurrent.futures.wait`, `as_completed`, callbacks and event loops wait in places that know
nothing of this: while such a future is pending, a background thread leads.

What is popped is first in `_inbox`, by one native call; then each event is settled, and only then removed. A
KeyboardInterrupt anywhere in between loses nothing: the next reader goes on with the rest. No user code runs under
the condition: results are unpickled by whoever asks for them, callbacks run after the release.
"""

import atexit
import itertools
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import mpworker
from mpworker.errors import (
    ConfigurationError,
    InvalidArgument,
    SerializationError,
    StartFailed,
    SupervisorLost,
    TaskNotFound,
    WorkerStopped,
)
from mpworker.functions import FunctionTable
from mpworker.future import BROKEN, LOST, TaskFuture
from mpworker.ipc import codec, frames, payload
from mpworker.ipc.channel import make_channel, make_segment
from mpworker.ipc.codec import Record
from mpworker.ipc.ring import Assembler, split
from mpworker.options import TaskDefaults, WorkerOptions, available_cores

_BATCH: Final = 512
_SPIN_NS: Final = 50_000
_EXIT_SECONDS: Final = 10.0  # how long stop_now lets the supervisor clean up before it is killed
_FOREVER: Final = -1.0


class Waitable(Protocol):
    """What a thread can wait for."""

    @property
    def ready(self) -> bool:
        """Is it there?"""

    def add_waiter(self, waiter: Any) -> None:
        """Call the waiter when it is."""

    def remove_waiter(self, waiter: Any) -> None:
        """Do not."""


class Pending(Waitable, Protocol):
    """What an event can settle: a future, or a chunk of a map."""

    def settle(self, status: int, data: bytes) -> None:
        """The outcome."""

    def callbacks(self) -> list[Callable[[Any], object]]:
        """What to call after the condition is released."""


class _Follower:
    """A thread that waits while another one reads; looks like the waiters of `concurrent.futures`."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float) -> bool:
        return self._lock.acquire(timeout=timeout)

    def wake(self, _: object = None) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # awake already

    add_result = add_exception = add_cancelled = wake


class _Condition:
    """A thing to wait for that any event may bring about."""

    def __init__(self, client: "Client", test: Callable[[], bool]) -> None:
        self._client = client
        self._test = test

    @property
    def ready(self) -> bool:
        return self._test()

    def add_waiter(self, waiter: _Follower) -> None:
        self._client.any_event.append(waiter)

    def remove_waiter(self, waiter: _Follower) -> None:
        if waiter in self._client.any_event:
            self._client.any_event.remove(waiter)


class _Reply:
    """The answer to one request."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = None
        self._waiters: list[_Follower] = []

    @property
    def ready(self) -> bool:
        return self.answer is not None

    def add_waiter(self, waiter: _Follower) -> None:
        self._waiters.append(waiter)

    def remove_waiter(self, waiter: _Follower) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def settle(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        for waiter in self._waiters:
            waiter.wake()


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
        for client in clients:
            client.stop_graceful(None)
    except KeyboardInterrupt:
        for client in clients:
            client.stop_now()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def _interpreter_flags() -> list[str]:
    """The options that start an interpreter like this one."""
    flags = sys.flags
    found = []
    for letter, value in (
        ("d", flags.debug),
        ("O", flags.optimize),
        ("B", flags.dont_write_bytecode),
        ("s", flags.no_user_site),
        ("v", flags.verbose),
        ("b", flags.bytes_warning),
    ):
        if value:
            found.append("-" + letter * value)
    for option in sys.warnoptions:
        found.append(f"-W{option}")
    for name, value in sys._xoptions.items():
        if name not in ("importtime", "showrefcount"):
            found += ["-X", name if value is True else f"{name}={value}"]
    if flags.no_site:
        found.append("-S")
    return found


def _interpreter(options: WorkerOptions) -> str:
    python = options.python or sys.executable
    if getattr(sys, "frozen", False) and not options.python:
        raise ConfigurationError(
            "this interpreter is frozen into a program: pass python=PATH of an interpreter to start"
        )
    if not python or not os.path.isfile(python):
        raise ConfigurationError(f"no Python interpreter at {python!r}: pass python=PATH of an interpreter to start")
    return python


class Client:
    """One client of one supervisor of its own.

    Args:
        options: The worker's options.
        initializer: Called in each child before its first task, with initargs.

    Raises:
        ConfigurationError: No interpreter can be started.
        SerializationError: The initializer cannot be pickled.
        OSError: No memory, descriptor or process is left.
    """

    def __init__(
        self, options: WorkerOptions, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        self.prefix = f"{secrets.token_hex(4)}-"
        self._options = options
        self.condition = threading.Condition(threading.RLock())
        self.any_event: list[_Follower] = []
        self._lead = threading.RLock()  # re-entrant: a callback, which the leader runs, may wait for another future
        self._settling = False
        self._followers: dict[_Follower, None] = {}
        self._submit_lock = threading.RLock()
        self._inbox: list[Record] = []
        self.pending: dict[int, Any] = {}
        self._replies: dict[int, _Reply] = {}
        self._keys = itertools.count(1)
        self._last_key = 0
        self._option_keys: dict[TaskDefaults, int] = {}
        self._watched = 0
        self._reader: threading.Thread | None = None
        self._stop_asked = False
        self._closed = ""  # why nothing more is accepted, "" while open
        self._broken: dict[str, Any] | None = None
        self._exited = False
        self._forked = False
        _sweep()
        self._start(options, initializer, initargs)
        self.functions = FunctionTable(self._send_function, self._forget_function)
        _live.add(self)

    # ------------------------------------------------------------ start

    def _start(
        self, options: WorkerOptions, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        python = _interpreter(options)
        root = os.path.dirname(os.path.dirname(os.path.abspath(mpworker.__file__)))
        code = "import sys; sys.path.append({!r}); __import__({!r}, fromlist=['main']).main(3)"
        flags = _interpreter_flags()
        cores = available_cores()
        nursery = code.format(root, "mpworker.supervisor.nursery")
        config = {
            "build": mpworker.__version__,
            "n": options.n,
            "slots": options.slots,
            "lease_ttl": options.lease_ttl,
            "grace": options.grace,
            "start_timeout": options.start_timeout,
            "kill_timeout": options.kill_timeout,
            "child_ring_bytes": options.child_ring_bytes,
            "client_ring_bytes": [options.client_ring_bytes, options.client_ring_bytes],
            "nursery_argv": [python, "-P", *flags, "-c", nursery],
            "hash_seed": os.environ.get("PYTHONHASHSEED") or str(secrets.randbelow(1 << 32)),
            "child": {
                "max_payload_bytes": options.max_payload_bytes,
                "task_prefix": self.prefix,
                "heartbeat_interval": min(1.0, options.lease_ttl / 8),
                # Children spin only if every one of them has a core, and the supervisor and the client too.
                "spin_ns": 20_000 if cores > options.n + 1 else 0,
            },
        }
        blob = json.dumps(
            {
                "path": [entry for entry in sys.path if isinstance(entry, str)],
                "directory": os.getcwd(),
                "environment": dict(os.environ),
                "argv": sys.argv if hasattr(sys, "argv") else [""],
                "preload": list(options.preload),
                "initializer": _pickle_initializer(initializer, initargs).hex(),
            }
        ).encode()
        self._spin_ns = _SPIN_NS if cores > 1 else 0
        fds, channel = make_channel("mpworker-client", (options.client_ring_bytes, options.client_ring_bytes))
        self._channel = channel
        try:
            self._supervisor, theirs = frames.pair()
            argv = [python, "-I", "-S", "-c", code.format(root, "mpworker.supervisor.__main__")]
            try:
                self.supervisor_pid = os.posix_spawn(
                    python,
                    argv,
                    os.environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT],
                )
            finally:
                theirs.close()
            self._pidfd = os.pidfd_open(self.supervisor_pid)
            blob_fd = make_segment("mpworker-config", len(blob))
            try:
                os.pwrite(blob_fd, blob, 0)
                self._supervisor.send(config, [*fds, blob_fd])
            finally:
                os.close(blob_fd)
        except BaseException:
            channel.close()
            raise
        finally:
            os.close(fds[0])
        self._push: Callable[..., bool] = channel.outbound.push
        self._pop = channel.inbound.pop
        self._ring: Callable[[], None] = channel.peer_bell.ring
        self._max_record = channel.outbound.max_payload
        self._half = options.client_ring_bytes // 2
        self._assembler = Assembler(options.max_payload_bytes)

    # ------------------------------------------------------------ send

    def options_key(self, options: TaskDefaults) -> int:
        """The number under which the supervisor knows these options."""
        with self._submit_lock:
            key = self._option_keys.get(options)
            if key is None:
                crash_retries = options.retries if options.crash_retries is None else options.crash_retries
                report = {"timeout": options.timeout, "retries": options.retries, "crash_retries": crash_retries}
                key = len(self._option_keys) + 1
                self._send(codec.OPTIONS, 0, key, 0, 0, json.dumps(report).encode())
                self._option_keys[options] = key
            return key

    def _send_function(self, key: int, blob: bytes) -> None:
        self._send(codec.FUNCTION, 0, key, 0, 0, blob)

    def _forget_function(self, key: int) -> None:
        if not self._closed:
            self._send(codec.FORGET, 0, key, 0, 0, b"")

    def _refuse(self) -> None:
        """Raise if nothing more is accepted."""
        if self._forked:
            raise WorkerStopped("this worker was made before fork: make a new one in this process")
        if self._broken is not None:
            raise StartFailed(
                f"the children cannot start ({self._broken['what']}): {self._broken['why']}", cause="start"
            )
        if self._closed == "lost":
            raise SupervisorLost(f"the supervisor (pid {self.supervisor_pid}) has died")
        if self._closed:
            raise WorkerStopped("the worker is stopped and takes no more tasks")

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: int
    ) -> TaskFuture[Any]:
        """Send one task."""
        if self._closed:
            self._refuse()
        try:
            function_key = self.functions.key(function)
            data = payload.dumps((args, kwargs) if function_key else (function, args, kwargs))
        except payload.Unserializable as error:
            raise self._cannot_send(function, args, error) from error
        key = next(self._keys)
        pending = self.pending
        if len(pending) >= self._options.max_pending:
            self.wait_for(
                _Condition(self, lambda: len(pending) < self._options.max_pending or bool(self._closed)), None
            )
            self._refuse_if_closed()
        future: TaskFuture[Any] = TaskFuture(self, key)
        pending[key] = future
        self._last_key = key
        if len(data) > self._max_record or not self._push(codec.SUBMIT, 0, key, function_key, options, data):
            self._send_slowly(codec.SUBMIT, 0, key, function_key, options, data)
        self._ring()
        if self._exited:
            self._settle_late()
        elif not key & 63 and self._channel.inbound.fill() > self._half:
            self.poll()
        return future

    def _settle_late(self) -> None:
        """The supervisor's end was noticed by another thread between our look and our push."""
        self._fail_all(codec.CANCELLED if self._stop_asked else LOST, b"")

    def _refuse_if_closed(self) -> None:
        if self._closed:
            self._refuse()

    def _cannot_send(self, function: object, args: object, error: payload.Unserializable) -> BaseException:
        name = getattr(function, "__qualname__", None) or payload.name_of_type(function)
        cause = error.__cause__ if error.__cause__ is not None else error
        return SerializationError(f"the call of {name!r} cannot be pickled: {type(cause).__name__}: {cause}")

    def send_chunk(self, chunk: Any, flags: int, function: int, options: int, items: int, data: bytes) -> int:
        """Send a chunk of a map."""
        self._refuse_if_closed()
        key = next(self._keys)
        self.pending[key] = chunk
        c = options | items << 32
        if len(data) > self._max_record or not self._push(codec.CHUNK, flags, key, function, c, data):
            self._send_slowly(codec.CHUNK, flags, key, function, c, data)
        self._ring()
        return key

    def _send(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        if len(data) > self._max_record or not self._push(kind, flags, a, b, c, data):
            self._send_slowly(kind, flags, a, b, c, data)
        self._ring()

    def _send_slowly(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        """Send a record that must wait for room or go in parts, reading events meanwhile."""
        if len(data) > self._options.max_payload_bytes:
            self.pending.pop(a, None)
            raise SerializationError(
                f"a pickle of {len(data)} bytes exceeds max_payload_bytes={self._options.max_payload_bytes}"
            )
        record = (kind, flags, a, b, c, data)
        parts = split(record, self._max_record // 2) if len(data) > self._max_record else iter((record,))
        # One at a time: the parts of two payloads must not mix. A record that is pushed whole meanwhile does no harm.
        with self._submit_lock:
            for part in parts:
                while not self._push(*part):
                    self._ring()
                    size = len(part[5])
                    fits = self._channel.outbound.fits
                    self.wait_for(_Condition(self, lambda: fits(size) or bool(self._closed)), None, size)  # noqa: B023
                    self._refuse_if_closed()

    # ------------------------------------------------------------ wait

    def wait_for(self, target: Waitable, timeout: float | None, need: int | None = None) -> bool:
        """Wait until the target is ready, reading events if nobody else does.

        Args:
            target: What to wait for.
            timeout: Seconds, None for no limit.
            need: Also wake for this much room (bytes of payload) in the ring to the supervisor.

        Returns:
            Whether it is ready.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not target.ready:
            if self._forked:
                self._refuse()
            left = _FOREVER if deadline is None else deadline - time.monotonic()
            if self._lead.acquire(blocking=False):
                try:
                    self._read_until(target, deadline, need)
                    return target.ready
                finally:
                    self._lead.release()
                    self._hand_over()
            if deadline is not None and left <= 0:
                return False
            self._follow(target, left)
        return True

    def _read_until(self, target: Waitable, deadline: float | None, need: int | None) -> None:
        channel = self._channel
        outbound = None if need is None else channel.outbound
        while True:
            self._drain()
            if target.ready or self._exited:
                return
            left = _FOREVER
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
            found = channel.bell.wait(channel.inbound, outbound, need or 0, left, self._pidfd, self._spin_ns)
            if found & 2:
                self._supervisor_died()

    def _follow(self, target: Waitable, left: float) -> None:
        follower = _Follower()
        with self.condition:
            if target.ready:
                return
            target.add_waiter(follower)
            self._followers[follower] = None
        try:
            # The leader may have left before it could see this follower: then there is nobody to wait for.
            if self._lead.acquire(blocking=False):
                self._lead.release()
            else:
                follower.wait(left)
        finally:
            with self.condition:
                self._followers.pop(follower, None)
                target.remove_waiter(follower)
            self._hand_over()  # it may have been woken to lead, and not be the one that does

    def _hand_over(self) -> None:
        """The leader leaves: one follower must lead."""
        if self._followers:
            with self.condition:
                follower = next(iter(self._followers), None)
            if follower is not None:
                follower.wake()

    def poll(self) -> None:
        """Read what has come, without waiting."""
        if not self._forked and self._lead.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lead.release()
                self._hand_over()

    # ------------------------------------------------------------ the background reader

    def watch(self) -> None:
        """One more pending future needs the background reader. Under the condition."""
        self._watched += 1
        if self._reader is None:
            self._reader = threading.Thread(target=self._read_in_background, name="mpworker-reader", daemon=True)
            self._reader.start()
        elif self._watched == 1:
            self.condition.notify_all()

    def unwatch(self) -> None:
        """One fewer. Under the condition."""
        self._watched -= 1

    def _read_in_background(self) -> None:
        unwatched = _Condition(self, lambda: not self._watched)
        while True:
            with self.condition:
                while not self._watched:
                    if self._exited:
                        return
                    self.condition.wait()
            if self._exited:
                return
            self.wait_for(unwatched, None)

    # ------------------------------------------------------------ read

    def _drain(self) -> None:
        """Pop and settle everything that has come. Only the leader calls it."""
        if self._exited or self._settling:
            return  # settling: a signal handler or a finalizer came in between; the frame below goes on
        inbox = self._inbox
        while self._pop(inbox, _BATCH) or inbox:
            self._ring()  # there is room again
            self._settle_inbox()

    def _settle_inbox(self) -> None:
        inbox = self._inbox
        callbacks: list[tuple[Any, Callable[[Any], object]]] = []
        settled = 0
        pending = self.pending
        with self.condition:
            self._settling = True
            try:
                for kind, flags, a, b, c, data in inbox:
                    if flags & codec.FRAGMENTED:
                        data = self._assembler.finish(data)  # noqa: PLW2901
                        flags &= ~codec.FRAGMENTED  # noqa: PLW2901
                        inbox[settled] = (kind, flags, a, b, c, data)  # once, even if this is interrupted
                    if kind == codec.RESULT:
                        future = pending.get(a)
                        if future is not None:
                            future.settle(flags & codec.LOW, data)
                            if future._slow:
                                callbacks += [(future, call) for call in future.callbacks()]
                            del pending[a]
                    else:
                        self._settle_other(kind, flags, a, b, c, data)
                    settled += 1
            finally:
                del inbox[:settled]
                self._settling = False
                for follower in self.any_event:
                    follower.wake()
        for future, call in callbacks:
            _call_back(future, call)

    def _settle_other(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        if kind == codec.RESULTS:
            chunk = self.pending.get(a)
            if chunk is not None and chunk.settle_items(flags & codec.LOW, b & 0xFFFFFFFF, b >> 32, c, data):
                del self.pending[a]
        elif kind == codec.SPLIT:
            chunk = self.pending.get(a)
            if chunk is not None and chunk.split(b & 0xFFFFFFFF, b >> 32):
                del self.pending[a]
        elif kind == codec.FRAGMENT:
            self._assembler.add(flags, data)
        elif kind == codec.REPLY:
            reply = self._replies.pop(a, None)
            if reply is not None:
                reply.settle(json.loads(data))
        elif kind == codec.BROKEN:
            self._broken = json.loads(data)
            self._closed = "broken"

    def _fail_all(self, status: int, data: bytes) -> None:
        """Nothing more will come: settle what is pending. Only the leader calls it."""
        callbacks: list[tuple[Any, Callable[[Any], object]]] = []
        with self.condition:
            for key, future in list(self.pending.items()):
                future.settle(status, data)
                callbacks += [(future, call) for call in future.callbacks()]
                del self.pending[key]
            for reply in self._replies.values():
                reply.settle({"lost": True})
            self._replies.clear()
            for follower in (*self.any_event, *self._followers):
                follower.wake()
            self.condition.notify_all()
        for future, call in callbacks:
            _call_back(future, call)

    def _supervisor_died(self) -> None:
        """The pidfd is readable: take in what it had sent, then settle the rest. Only the leader calls it."""
        self._drain()
        self._exited = True
        _live.discard(self)
        try:
            os.waitpid(self.supervisor_pid, 0)
        except ChildProcessError:
            pass  # the program waited for all its children itself
        if self._broken is not None:
            self._fail_all(BROKEN, json.dumps(self._broken).encode())
        elif self._stop_asked:
            self._closed = "stopped"
            self._fail_all(codec.CANCELLED, b"")
        else:
            self._closed = "lost"
            self._fail_all(LOST, b"")
        self._push = _push_nowhere  # the eventfds' numbers may be another file's from now on
        self._ring = _ring_nowhere
        self._supervisor.close()
        self._channel.close()
        os.close(self._pidfd)
        self._pidfd = -1

    # ------------------------------------------------------------ requests

    def request(self, message: dict[str, Any], timeout: float | None = None) -> dict[str, Any] | None:
        """Ask the supervisor; None when it is gone or does not answer in time."""
        if self._forked:
            self._refuse()
        reply = _Reply()
        key = next(self._keys)
        self._replies[key] = reply
        if self._exited:
            self._replies.pop(key, None)
            return None
        self._send(codec.REQUEST, 0, key, 0, 0, json.dumps(message).encode())
        self.wait_for(reply, timeout)
        self._replies.pop(key, None)
        return None if reply.answer is None or "lost" in reply.answer else reply.answer

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
        if self.pending.pop(key, None) is not None and not self._closed:
            self._send(codec.REQUEST, 0, 0, 0, 0, json.dumps({"verb": "cancel", "task": key}).encode())

    def cancel_id(self, task_id: str) -> bool:
        """Cancel by id; see `cancel`."""
        if not isinstance(task_id, str):
            raise InvalidArgument(f"a task id is a str, not {task_id!r}")
        number = task_id.removeprefix(self.prefix)
        key = int(number) if task_id.startswith(self.prefix) and number.isdigit() else 0
        future = self.pending.get(key)
        if future is None:
            if not 0 < key <= self._last_key:
                raise TaskNotFound(f"no task has the id {task_id!r}")
            return False
        return bool(future.cancel())

    def is_running(self, key: int) -> bool:
        """Has a child claimed the task?"""
        answer = self.request({"verb": "running", "task": key})
        return bool(answer and answer["running"])

    # ------------------------------------------------------------ stop

    def close_submit(self) -> None:
        """Accept nothing more."""
        if not self._closed:
            self._closed = "stopped"

    def stop_graceful(self, timeout: float | None) -> bool:
        """Finish what was accepted, then end everything. False if the time was over first, and the rest was
        cancelled."""
        if self._forked or self._exited:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        self._ask_stop(now=False)
        gone = _Condition(self, lambda: self._exited)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if self.wait_for(gone, left):
            return True
        self.stop_now()
        return False

    def stop_now(self) -> None:
        """End everything at once; what is pending ends cancelled."""
        if self._forked or self._exited:
            return
        self._ask_stop(now=True)
        gone = _Condition(self, lambda: self._exited)
        if not self.wait_for(gone, _EXIT_SECONDS):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.wait_for(gone, _EXIT_SECONDS)

    def reap(self) -> None:
        """If a dropped worker's supervisor has ended, take note."""
        if self._stop_asked and not self._exited:
            self.wait_for(_Condition(self, lambda: self._exited), 0.0)

    def ask_drain(self) -> None:
        """Finish what was accepted and end, without waiting for it."""
        if not (self._forked or self._exited):
            self._ask_stop(now=False)

    def _ask_stop(self, now: bool) -> None:
        self.close_submit()
        self._stop_asked = True
        message = json.dumps({"verb": "stop", "now": now}).encode()
        if now:
            # The ring may be full and its reader stopped: the closed socket says the same.
            if not self._push(codec.REQUEST, 0, 0, 0, 0, message):
                self._supervisor.close()
            else:
                self._ring()
            return
        while not self._push(codec.REQUEST, 0, 0, 0, 0, message):
            self._ring()
            fits = self._channel.outbound.fits
            self.wait_for(_Condition(self, lambda: fits(len(message)) or self._exited), None, len(message))
            if self._exited:
                return
        self._ring()

    def forked(self) -> None:
        """This process is a fork: the rings are not here, the supervisor is not ours."""
        self._forked = True
        self._closed = "forked"
        self._lead = threading.RLock()
        self.condition = threading.Condition(threading.RLock())
        self._submit_lock = threading.RLock()


def _push_nowhere(*_: object) -> bool:
    return True


def _ring_nowhere() -> None:
    pass


def _call_back(future: Any, call: Callable[[Any], object]) -> None:
    try:
        call(future)
    except Exception:  # as the standard library: logged, never raised
        from concurrent.futures._base import LOGGER

        LOGGER.exception("exception calling callback for %r", future)


def _pickle_initializer(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> bytes:
    if initializer is None:
        return b""
    if not callable(initializer):
        raise InvalidArgument(f"initializer must be callable, not {initializer!r}")
    try:
        return payload.dumps((initializer, tuple(initargs)))
    except payload.Unserializable as error:
        raise SerializationError(f"the initializer or its initargs cannot be pickled: {error}") from error
