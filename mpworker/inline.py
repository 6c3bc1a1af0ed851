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
from typing import TYPE_CHECKING, Any, Final, cast

from mpworker import context
from mpworker.child.main import Child
from mpworker.client import Client
from mpworker.future import TaskFuture
from mpworker.inlinebooks import Books
from mpworker.ipc import codec, payload
from mpworker.ipc._native import Claims
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import Record
from mpworker.ipc.failures import brief, cut, full, outer_frames_cut
from mpworker.ipc.stacks import StackFile
from mpworker.launch import Supervisor, pickle_initializer
from mpworker.mapping import Mapping
from mpworker.options import WorkerOptions
from mpworker.supervisor.describe import Describer
from mpworker.supervisor.fanout import ClientPort
from mpworker.supervisor.lifecycle import COME_DUE, OFFERED, QUEUED, SCHEDULED
from mpworker.supervisor.registry import DetailedTask, Task
from mpworker.supervisor.requests import VERBS
from mpworker.supervisor.scheduler import Scheduler
from mpworker.waiting import Condition, Waitable

if TYPE_CHECKING:
    from mpworker.supervisor.loop import Loop

_GENERATION: Final = 1  # of every claim
# These are answered as by a supervisor, by the same code.
_SHARED: Final = ("task", "tasks", "outcome", "metrics", "queues", "retention")
_CRON: Final[dict[str, dict[str, Any]]] = {
    "register": {"error": "nobody"},
    "list": {"tasks": []},
    "unfinished": {"unfinished": False},
}
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
        super().__init__(cast(Channel, None), cast(Claims, _Claims()), cast(StackFile, None), settings)
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
        self._initialized: dict[str, Any] = {}
        self.scheduler = Books()
        self.describer = Describer(cast(Scheduler, self.scheduler))
        self.world = ClientPort(cast(Channel, _Way(self.events)), options.max_payload_bytes)
        self._chunks: dict[int, Task] = {}
        self._later: dict[int, DetailedTask] = {}  # tasks that wait for their time
        self.eager = 0  # how many wait for more than one thing, and so run what is to be run
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
        kind, flags, a, b, c, data = record
        if self._dead:
            return
        world = self.world
        detailed = bool(flags & codec.DETAILED)
        if kind == codec.SUBMIT:
            self._enter(world.detailed(kind, flags, a, b, c, data) if detailed else world.task(flags, a, b, c, data))
        elif kind == codec.CHUNK:
            task = world.detailed(kind, flags, a, b, c, data) if detailed else world.chunk(flags, a, b, c, data)
            self._chunks[a] = task
        elif kind == codec.REQUEST:
            answer = self._asked(json.loads(data))
            if a:
                world.reply(a, answer)
        elif kind == codec.OPTIONS:
            world.note_options(a, data)
        else:
            world.note(kind, flags, a, data)
            self._functions.pop(a, None)

    def _asked(self, message: dict[str, Any]) -> dict[str, Any]:
        verb = message["verb"]
        self.scheduler.clean()
        if verb in _SHARED:
            return VERBS[verb](cast("Loop", self), message)
        if verb == "cancel":
            chunk = self._chunks.pop(message["task"], None)
            return {"cancelled": chunk is not None or self._cancel_later(message["task"])}
        if verb == "running":
            task = self.scheduler.task(message["task"])
            return {"running": task is not None and task.state == OFFERED}
        if verb == "children":
            return {"supervisor": None, "nursery": None, "children": []}
        if verb in ("cancel_unstarted", "cancel_all"):
            for key in list(self._chunks):
                self._chunks.pop(key, None)
                self.events.append((codec.RESULTS, codec.CANCELLED, key, 1 << 32, 0, b""))
            return {"cancelled": sum(map(self._cancel_later, list(self._later)))}
        if verb == "again":
            task = self.scheduler.history.again(message["task"], message["as"])
            if task is not None:
                self._enter(task)
            return {"again": task is not None}
        if verb == "queue":
            options = message["options"]
            options = options | ({} if options["rate"] is not None else {"burst": None})
            self.scheduler.queues[message["name"]] = options
        elif verb == "set_max_workers":
            return {"hard": 0}
        elif verb == "cron":
            return _CRON.get(message["op"], {"error": "unknown", "names": [], "more": False})
        elif verb == "stop":
            self._draining = True
            self._dead = self._dead or message["now"]
        return {}

    # ------------------------------------------------------------ tasks

    def _enter(self, task: Task) -> None:
        """A task is accepted: it is run now, unless it is for later."""
        self.scheduler.queues.setdefault(task.options.queue, _PLAIN_QUEUE)
        self.scheduler.enter(task)
        if task.state == SCHEDULED:
            self._later[task.key] = cast(DetailedTask, task)
            self.wake()  # who waits may have slept for too long
        else:
            self._carry_out(task)

    def is_for_later(self, key: int) -> bool:
        """Does a task wait for its time?"""
        return key in self._later

    def run_due(self) -> bool:
        """Run one task whose time is here; False if there is none."""
        while self._later and not self._dead:
            at, key = min((_due_at(task), key) for key, task in list(self._later.items()))
            if at > time.monotonic():
                return False
            task = self._later.pop(key, None)  # another thread may have been faster
            if task is not None:
                task.state = COME_DUE[task.state]
                self._carry_out(task)
                return True
        return False

    def _cancel_later(self, key: int) -> bool:
        task = self._later.pop(key, None)
        if task is not None:
            self._end(task, codec.CANCELLED, {})
        return task is not None

    def _end(self, task: Task, status: int, report: dict[str, object]) -> None:
        self.scheduler.end(task, status, report)
        self.world.emit_report(task, 0, 0, status, report)

    def _carry_out(self, task: Task) -> None:
        function = task.function.key if task.function is not None else 0
        started = [0]

        def run(runner: _Runner, flags: int, number: int, generation: int) -> None:
            self.scheduler.begin(task)
            started[0] = time.monotonic_ns()
            runner._run_task(flags, number, generation, function << 8, task.payload)

        def goes_on(status: int) -> bool:
            self.scheduler.again(task, status, started[0], time.monotonic_ns() - started[0])
            return not _is_late(task)

        try:
            status, out = (codec.INTERRUPTED, b"") if _is_late(task) else self._run(task, run, goes_on)
            if _is_late(task) and (status == codec.INTERRUPTED or task.state == QUEUED):
                self._end(task, codec.TIMED_OUT, _too_late(task))
                return
            self.scheduler.end(task, status, out, started[0], time.monotonic_ns() - started[0])
            self.world.emit(task, status, out)
        except BaseException:
            if self.scheduler.task(task.key) is not None:
                self._end(task, codec.CANCELLED, {})  # the user has had enough
            raise

    def run_chunk(self, key: int) -> None:
        """Run an item of a map, if it has not been run."""
        chunk = self._chunks.pop(key, None)
        if chunk is None or chunk.function is None:
            return
        where = codec.pack_range(0, chunk.function.key, 0, 1)

        def run(runner: _Runner, flags: int, number: int, generation: int) -> None:
            runner._run_range(flags, number, generation, where, chunk.payload)

        self.scheduler.queues.setdefault(chunk.options.queue, _PLAIN_QUEUE)
        self.world.emit_items(chunk, 0, 1, *self._run(chunk, run, lambda _: True), 0)

    def _run(self, task: Task, run: Callable[..., None], goes_on: Callable[[int], bool]) -> tuple[int, bytes]:
        """Run the attempts of a task, with no pause between them; the status and payload of the last one.

        Args:
            task: The task, or an item of a map.
            run: Runs one attempt.
            goes_on: Whether another one follows one that has failed, if `retries` allow.
        """
        if task.function is not None:
            self._functions.setdefault(task.function.key, task.function.blob)
        judge = task.options.judge
        if judge is not None:
            self._functions.setdefault(judge.key, judge.blob)
        number = task.key | (judge.key if judge is not None else 0) << codec.JUDGE_SHIFT
        flags = task.flags & (codec.SPREAD | codec.DETAILED)
        thread, below = threading.get_ident(), _here.runner
        self._running.append(thread)
        try:
            attempt = 1
            while True:
                runner = _here.runner = _Runner(self._settings, self._functions, self._initialized)
                _here.trace = None
                run(runner, min(attempt, codec.LOW) | flags, number, _GENERATION)
                answer, out = runner.answers[0]
                status = answer & codec.LOW
                failed = status in (codec.ERROR, codec.EXITED) and not answer & codec.FINAL
                if not failed or attempt > task.options.retries or not goes_on(status):
                    return status, out
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
        return not self._chunks and not self._later and not self._running

    def wait(self, timeout: float) -> bool:
        """Run what is to be run before the end, or wait for other threads; True at the end."""
        thread = threading.get_ident()
        if self._dead or self.events:
            return self._dead
        if self.run_due():
            return False
        if self._draining or self.eager:
            for key in list(self._chunks)[:1]:
                self.run_chunk(key)
                return False
        # A handler, or the task itself, cannot wait for itself.
        if self._draining and not self._later and (not self._running or thread in self._running):
            self._dead = True
            return True
        look_at = [time.monotonic() + _LOOK_SECONDS, *map(_due_at, list(self._later.values()))]
        left = max(0.0, min(look_at) - time.monotonic())
        with self._moved:
            self._moved.wait(left if timeout < 0 else min(timeout, left))
        return False


def _due_at(task: DetailedTask) -> float:
    """When it is to be run, or to end unrun."""
    times = [at for at in (task.run_at, task.deadline_at) if at is not None]
    return min(times)


def _is_late(task: Task) -> bool:
    return task.deadline_at is not None and time.monotonic() >= task.deadline_at


def _too_late(task: Task) -> dict[str, object]:
    report: dict[str, object] = {"timeout": None, "killed": False, "interrupted": "", "dumped": ""}
    return report | {"attempts": task.attempts} | ({"attempt": task.attempts} if task.attempts else {})


class _Way:
    """The way to the client, as a `ClientPort` sees it: events, for which there is always room."""

    def __init__(self, events: list[Record]) -> None:
        self._events = events
        self.max_payload = sys.maxsize
        self.outbound = self

    def push(self, *record: Any) -> bool:
        self._events.append(cast(Record, record))
        return True


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


def _show_failure(future: TaskFuture[Any]) -> None:
    if future._payload is not None and future.status != codec.OK:
        future._decode()
        if future._exception is not None:
            _show_where(future._exception)


class InlineClient(Client):
    """The client of an `InlineSupervisor`; the arguments are those of `Client`."""

    supervisor: Any
    _launch = staticmethod(
        lambda options, prefix, initializer, initargs: cast(
            Supervisor, InlineSupervisor(options, prefix, initializer, initargs)
        )
    )

    def submit(self, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Run one task, before it returns, unless it is for later."""
        _here.trace = None
        future = super().submit(*args, **kwargs)
        if not future.ready and not self.supervisor.is_for_later(future._key):
            self.wait_for(future, None)
        _show_failure(future)
        return future

    def map(self, *args: Any) -> Iterator[Any]:
        """The results of a `map`; for the arguments see `Mapping`."""
        function, iterables, options, n, _chunksize, _buffersize, *rest = args
        mapping = _InlineMapping(self, function, iterables, options, n, 1, None, *rest)
        mapping.window = 1
        return mapping.results()

    def wait_for(self, target: Waitable, timeout: float | None, need: int | None = None) -> bool:
        """As ever; but what waits for an item runs it."""
        supervisor = self.supervisor
        key = getattr(target, "key", None)
        if key is not None and not target.ready and (timeout is None or timeout > 0):
            supervisor.run_chunk(key)
        eager = isinstance(target, Condition)
        late = isinstance(target, TaskFuture) and supervisor.is_for_later(target._key)
        supervisor.eager += eager
        try:
            return super().wait_for(target, timeout, need)
        finally:
            supervisor.eager -= eager
            if late:
                _show_failure(cast("TaskFuture[Any]", target))

    def poll(self) -> None:
        """Run what is due, and read what has come."""
        if not self._forked:
            self.supervisor.run_due()
        super().poll()

    def ask_drain(self) -> None:
        """Accept no more; what is accepted is run when it is asked for."""
        if self._forked or self._over:
            return
        self._say_drain()
        if self.supervisor.is_idle():
            self.wait_for(self.when(self.is_over), None)
