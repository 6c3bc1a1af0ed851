"""`ProcessWorker(debug=True)`: each task runs in this process, in the thread that submits it, for a debugger.

What shall fail here as it fails in a pool must go the same way. So the client, its futures and its maps are those of a
pool; pickles are made and read; and a task is run by the code of a child. Only what is between the two is another: in
place of rings, a *supervisor* that is a few dictionaries. A push runs the task and keeps the answer to be read; a wait
runs what is still to be run.

An item of a `map` is run when its result is taken, and the next one is not read before, so that a debugger sees the
program in an order that makes sense: a map has one chunk of one item under way, which waits in `_chunks`.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, cast

from mpworker import context
from mpworker.child.main import Child
from mpworker.client import Client
from mpworker.future import TaskFuture
from mpworker.ipc import codec, payload
from mpworker.ipc._native import Claims
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import Record
from mpworker.ipc.failures import brief, cut, full, outer_frames_cut
from mpworker.launch import Supervisor, pickle_initializer
from mpworker.mapping import Mapping
from mpworker.options import WorkerOptions
from mpworker.waiting import Waitable

_GENERATION: Final = 1  # of every claim
_PLAIN_QUEUE: Final = {"weight": 1, "max_running": None, "rate": None, "burst": None}
_LOOK_SECONDS: Final = 0.5  # a wait for another thread's task looks up so often


class _Here(threading.local):
    """What this thread runs.

    Attributes:
        runner: The innermost task, None for none.
        trace: Where the last one raised.
    """

    runner: "_Runner | None" = None
    trace: TracebackType | None = None


_here = _Here()
_source_below: Callable[[], context.TaskContext | None] | None = None


def _source() -> context.TaskContext | None:
    if _here.runner is not None:
        return _here.runner.context()
    return _source_below() if _source_below is not None else None


def _install_source() -> None:
    """Have `current()` know the tasks that run here; in a child, beside the one that the child runs."""
    global _source_below
    if context._source is not _source:
        _source_below, context._source = context._source, _source


class _Claims:
    """A claim page on which every claim succeeds and nothing is halted."""

    def claim(self, _slot: int, _generation: int) -> int:
        return time.monotonic_ns()

    def step(self, _slot: int, _generation: int, _cursor: int) -> int:
        return 1

    def peek(self, _slot: int) -> tuple[int, int, int, int, int]:
        return _GENERATION, 0, 0, 0, 0


class _Runner(Child):
    """What a child is to one attempt of a task.

    Attributes:
        answers: Its answers: (status with flags, payload).
    """

    def __init__(self, settings: dict[str, Any], functions: dict[int, Any], initialized: dict[str, Any]) -> None:
        super().__init__(cast(Channel, None), cast(Claims, _Claims()), settings)
        self._functions = functions
        self._initialized = initialized
        self.answers: list[tuple[int, bytes]] = []

    def _answer(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        # Not the pause that the task asked for: nobody waits here. Nor that a chunk is over, which has no items.
        if kind == codec.DONE or (kind == codec.ITEMS and a & 0xFFFFFFFF != a >> 32):
            self.answers.append((flags, data))

    def _loads(self, data: bytes | MemoryError) -> Any:
        return payload.loads_here(cast(bytes, data), self._initialized)

    def _failure(self, error: BaseException) -> tuple[int, bytes]:
        bdb = sys.modules.get("bdb")
        if isinstance(error, KeyboardInterrupt) or (bdb is not None and isinstance(error, bdb.BdbQuit)):
            raise error  # the user's, who has had enough of the program and not of the task
        _here.trace = outer_frames_cut(error.__traceback__)
        return super()._failure(error)


class InlineSupervisor:
    """In place of a supervisor, its children and the rings between.

    Args:
        options: The worker's options.
        prefix: What task ids begin with.
        initializer: Called once, here and now.
        initargs: Its arguments.
    """

    pid = 0
    pidfd = -1
    spin_ns = 0

    def __init__(
        self,
        options: WorkerOptions,
        prefix: str,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
    ) -> None:
        self.channel = _Channel(self, options.max_payload_bytes)
        self.events: list[Record] = []
        self._settings = {"max_payload_bytes": options.max_payload_bytes, "task_prefix": prefix, "spin_ns": 0}
        self._functions: dict[int, Any] = {}
        self._options: dict[int, dict[str, Any]] = {}
        self._initialized: dict[str, Any] = {}
        self._queues: dict[str, dict[str, Any]] = {}  # what they were configured as, which is for nothing here
        self._chunks: dict[int, Record] = {}
        self._running: list[int] = []  # threads, each once for each task that it runs
        self._draining = self._dead = False
        self._moved = threading.Condition()
        _install_source()
        self._start(options.preload, pickle_initializer(initializer, initargs))

    def _start(self, preload: tuple[str, ...], initializer: bytes) -> None:
        what = ""
        try:
            for module in preload:
                what = f"preload of {module!r}"
                __import__(module)
            if initializer:
                what = "the initializer"
                call, args = payload.loads_here(initializer, {})
                payload.call_initializer(call, args, self._initialized)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # told by the first use, as a child's is
            report = {"what": "debug=True", "why": f"{what} raised {brief(error)}", "traceback": cut(full(error))}
            self.events.append((codec.BROKEN, 0, 0, 0, 0, json.dumps(report).encode()))
            self._dead = True

    # ------------------------------------------------------------ what a client knows of a supervisor

    def hang_up(self) -> None:
        """It ends."""
        self._dead = True

    kill = close = hang_up

    def ended_well(self) -> bool:
        """It does."""
        return True

    def start_failure(self) -> None:
        """There is none but what an event tells."""

    # ------------------------------------------------------------ records

    def take(self, record: Record) -> None:
        """Do what a record says."""
        kind, _, a, b, c, data = record
        if self._dead:
            return
        if kind == codec.SUBMIT:
            status, out = self._run(a, c, lambda runner, *attempt: runner._run_task(*attempt, b << 8, data))
            self.events.append((codec.RESULT, status, a, 0, 0, out))
        elif kind == codec.CHUNK:
            self._chunks[a] = record
        elif kind == codec.REQUEST:
            answer = self._asked(json.loads(data))
            if a:
                self.events.append((codec.REPLY, 0, a, 0, 0, json.dumps(answer).encode()))
        elif kind == codec.FUNCTION:
            self._functions[a] = data
        elif kind == codec.FORGET:
            self._functions.pop(a, None)
        elif kind == codec.OPTIONS:
            self._options[a] = json.loads(data)

    def _asked(self, message: dict[str, Any]) -> dict[str, Any]:
        verb = message["verb"]
        if verb == "cancel":
            return {"cancelled": self._chunks.pop(message["task"], None) is not None}
        if verb == "running":
            return {"running": False}  # whoever has the future has it from a call that is over
        if verb == "children":
            return {"supervisor": None, "nursery": None, "children": []}
        if verb == "cancel_unstarted":
            for key in list(self._chunks):
                self._chunks.pop(key, None)
                self.events.append((codec.RESULTS, codec.CANCELLED, key, 1 << 32, 0, b""))
        elif verb == "queue":
            options = message["options"]
            self._queues[message["name"]] = options | ({} if options["rate"] is not None else {"burst": None})
        elif verb == "queues":
            idle = {"paused": False, "queued": 0, "running": 0}
            return {name: {**options, **idle} for name, options in self._queues.items()}
        elif verb == "stop":
            self._draining = True
            self._dead = self._dead or message["now"]
        return {}

    def run_chunk(self, key: int) -> None:
        """Run an item of a map, if it has not been run."""
        record = self._chunks.pop(key, None)
        if record is not None:
            _, flags, _, function, c, data = record
            spread, where = flags & codec.SPREAD, codec.pack_range(0, function, 0, 1)

            def run(runner: _Runner, attempt: int, task: int, generation: int) -> None:
                runner._run_range(attempt | spread, task, generation, where, data)

            status, out = self._run(key, c & 0xFFFFFFFF, run)
            self.events.append((codec.RESULTS, status, key, 1 << 32, 0, out))

    def _run(self, task: int, options: int, run: Callable[..., None]) -> tuple[int, bytes]:
        """Run the attempts of a task, with no pause between them; the status and payload of the last one."""
        asked = self._options[options]
        self._queues.setdefault(asked.get("queue", "default"), _PLAIN_QUEUE)
        thread, below = threading.get_ident(), _here.runner
        self._running.append(thread)
        try:
            attempt = 1
            while True:
                runner = _here.runner = _Runner(self._settings, self._functions, self._initialized)
                _here.trace = None
                run(runner, min(attempt, codec.LOW), task | asked.get("judge", 0) << codec.JUDGE_SHIFT, _GENERATION)
                status, out = runner.answers[0]
                failed = status & codec.LOW in (codec.ERROR, codec.EXITED) and not status & codec.FINAL
                if not failed or attempt > asked["retries"]:
                    return status & codec.LOW, out
                attempt += 1
        finally:
            _here.runner = below
            self._running.remove(thread)
            self.wake()

    # ------------------------------------------------------------ waiting

    def wake(self) -> None:
        """Have those that wait look again."""
        with self._moved:
            self._moved.notify_all()

    def is_idle(self) -> bool:
        """Is there nothing to be run, and does nothing run?"""
        return not self._chunks and not self._running

    def wait(self, timeout: float) -> bool:
        """Run what is to be run before the end, or wait for other threads; True at the end."""
        thread = threading.get_ident()
        if self._dead or self.events:
            return self._dead
        if self._draining:
            for key in list(self._chunks)[:1]:
                self.run_chunk(key)
                return False
            if not self._running or thread in self._running:  # a handler, or the task itself: it cannot wait for itself
                self._dead = True
                return True
        with self._moved:
            self._moved.wait(_LOOK_SECONDS if timeout < 0 else min(timeout, _LOOK_SECONDS))
        return False


class _Channel:
    """What a client sees of its rings and bells: all of them."""

    waiting = False  # for long: a thread that runs what waits may be passed over

    def __init__(self, supervisor: InlineSupervisor, max_payload: int) -> None:
        self._supervisor = supervisor
        self.max_payload = max_payload
        self.outbound = self.inbound = self.bell = self.peer_bell = self

    def push(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> bool:
        self._supervisor.take((kind, flags, a, b, c, data))
        return True

    def fits(self, _size: int) -> bool:
        return True

    def pop(self, into: list[Record], _limit: int) -> int:
        events = self._supervisor.events
        count = len(events)
        into += events[:count]
        del events[:count]
        return count

    def fill(self) -> int:
        return 0

    def ring(self) -> None:
        """Nobody sleeps."""

    ring_room = ring

    def wake(self) -> None:
        self._supervisor.wake()

    def wait(self, _inbound: Any, _outbound: Any, _need: int, timeout: float, _fd: int, _spin_ns: int) -> int:
        return 2 if self._supervisor.wait(timeout) else 1


class _InlineMapping(Mapping):
    """A `map` whose items are read and run when their results are taken."""

    def _raise_or_return(self, error: BaseException) -> Iterator[Any]:
        _show_where(error)
        return super()._raise_or_return(error)


def _show_where(error: BaseException) -> None:
    """Give an exception that has been through a pickle the traceback of the one that was raised."""
    trace, _here.trace = _here.trace, None
    if trace is not None:
        BaseException.__traceback__.__set__(error, trace)  # type: ignore[union-attr]  # its class may refuse it


class InlineClient(Client):
    """The client of an `InlineSupervisor`; the arguments are those of `Client`."""

    supervisor: Any
    _launch = staticmethod(
        lambda options, prefix, initializer, initargs: cast(
            Supervisor, InlineSupervisor(options, prefix, initializer, initargs)
        )
    )

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: int
    ) -> TaskFuture[Any]:
        """Run one task, before it returns."""
        _here.trace = None
        future = super().submit(function, args, kwargs, options)
        if not future.ready:
            self.wait_for(future, None)
        if future._payload is not None and future.status != codec.OK:
            future._decode()
            if future._exception is not None:
                _show_where(future._exception)
        return future

    def map(self, *args: Any) -> Iterator[Any]:
        """The results of a `map`; for the arguments see `Mapping`."""
        function, iterables, options, n, _chunksize, _buffersize, timeout, return_exceptions = args
        mapping = _InlineMapping(self, function, iterables, options, n, 1, None, timeout, return_exceptions)
        mapping.window = 1
        return mapping.results()

    def wait_for(self, target: Waitable, timeout: float | None, need: int | None = None) -> bool:
        """As ever; but what waits for an item runs it."""
        key = getattr(target, "key", None)
        if key is not None and not target.ready and (timeout is None or timeout > 0):
            self.supervisor.run_chunk(key)
        return super().wait_for(target, timeout, need)

    def ask_drain(self) -> None:
        """Accept no more; what is accepted is run when it is asked for."""
        if self._forked or self._over:
            return
        self._say_drain()
        if self.supervisor.is_idle():
            self.wait_for(self.when(self.is_over), None)
