"""What is in place of a supervisor with `debug=True`: a few dictionaries."""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from mpworker.child.calls import Context
from mpworker.child.middleware import Middleware
from mpworker.context import current
from mpworker.inline.books import PLAIN_QUEUE, Books
from mpworker.inline.requests import answered
from mpworker.inline.runner import GENERATION, Runner, here, install_source
from mpworker.ipc import codec, payload
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import Record
from mpworker.ipc.failures import brief, cut, full
from mpworker.launch import pickle_initializer
from mpworker.options import WorkerOptions
from mpworker.supervisor.describe import Describer
from mpworker.supervisor.fanout import ClientPort
from mpworker.supervisor.ids import Ids
from mpworker.supervisor.latency import Latency
from mpworker.supervisor.lifecycle import COME_DUE, QUEUED, SCHEDULED
from mpworker.supervisor.registry import DetailedTask, Task
from mpworker.supervisor.requests import counts_at_the_end
from mpworker.supervisor.scheduler import Scheduler
from mpworker.supervisor.watching import Watch

if TYPE_CHECKING:
    from mpworker.supervisor.session import Session

_LOOK_SECONDS: Final = 0.5  # a wait for another thread's task looks up so often


class InlineSupervisor:
    """In place of a supervisor, its children and the rings between.

    Args:
        options: The worker's options.
        prefix: What task ids begin with.
        initializer: Called once, here and now.
        initargs: Its arguments.
        level: The least level of records for the log.
        middleware: The pickle of the execution middleware; b"" for none.

    Attributes:
        channel: What the client sees of it.
        events: What the client is to be told.
        port: Which tells it.
        scheduler: What is known of the tasks.
        describer: Who describes them.
        latency: How long they took.
        watch: Who tells hooks, tracers and the log.
        chunks: Items of maps that are to be run.
        later: Tasks that wait for their time.
        running: Threads, each once for each task that it runs.
        eager: How many wait for more than one thing, and so run what is to be run.
        draining: Nothing more comes.
        dead: It has ended.
    """

    pid = 0
    pidfd = -1
    arenas = None
    spin_ns = longest_spin_ns = 0
    cores = 1

    def __init__(
        self,
        options: WorkerOptions,
        prefix: str,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        level: int,
        middleware: bytes,
    ) -> None:
        self.channel = _Channel(self, options.max_payload_bytes)
        self.events: list[Record] = []
        self._settings = {"max_payload_bytes": options.max_payload_bytes, "task_prefix": prefix, "spin_ns": 0}
        self._functions: dict[int, Any] = {}
        self._contexts: dict[int, Context] = {}
        self._initialized: dict[str, Any] = {}
        self.scheduler = Books()
        self.latency = Latency()
        self.port = ClientPort(cast(Channel, _Way(self.events)), options.max_payload_bytes)
        self.port.ids = Ids(self.scheduler.keys)
        self.describer = Describer(cast(Scheduler, self.scheduler), self.port.ids)
        self.watch = self.scheduler.watcher = Watch(self.port, level)
        self._middleware: Middleware | None = None
        self.chunks: dict[int, Task] = {}
        self.later: dict[int, DetailedTask] = {}
        self.eager = 0
        self.running: list[int] = []
        self.draining = self.dead = False
        self._moved = threading.Condition()
        install_source()
        self._start(options.preload, pickle_initializer(initializer, initargs), middleware)

    def _start(self, preload: tuple[str, ...], initializer: bytes, middleware: bytes) -> None:
        what = ""
        try:
            for module in preload:
                what = f"preload of {module!r}"
                __import__(module)
            if initializer:
                what = "the initializer"
                call, args = payload.loads_here(initializer, {})
                payload.call_initializer(call, args, self._initialized)
            if middleware:
                what = "unpickling the execute_middleware"
                self._middleware = Middleware(
                    payload.loads_here(middleware, self._initialized), current, self._middleware_failed
                )
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # told by the first use, as a child's is
            report = {"what": "debug=True", "why": f"{what} raised {brief(error)}", "traceback": cut(full(error))}
            self.events.append((codec.BROKEN, 0, 0, 0, 0, json.dumps(report).encode()))
            self.dead = True

    def _middleware_failed(self, name: str, trace: str) -> None:
        # Of no task: here a task may run within another, and what raises is seen anyway.
        self.watch.middleware_failed(None, json.dumps({"middleware": name, "traceback": trace}).encode())

    def tell_of_tasks(self, on: bool) -> None:
        """The client watches from now on, or no longer."""
        self.watch.tell(on, cast(Scheduler, self.scheduler))

    # ------------------------------------------------------------ what a client knows of a supervisor

    def is_a_forks(self) -> None:
        """There is no socket."""

    def hang_up(self) -> None:
        """It ends."""
        self.end()
        self.wake()

    kill = close = hang_up

    def end(self) -> None:
        """Nothing more is run; the last word is that of a supervisor."""
        if not self.dead:
            counts = counts_at_the_end(cast("Session", self))
            self.events.append((codec.FAREWELL, 0, 0, 0, 0, json.dumps(counts).encode()))
            self.dead = True

    def ended_well(self) -> bool:
        """It does."""
        return True

    def start_failure(self) -> None:
        """There is none but what an event tells."""

    @property
    def loop(self) -> "InlineSupervisor":
        """What serves the client, as a supervisor's sessions name it: for `mpworker.supervisor.requests`."""
        return self

    # ------------------------------------------------------------ records

    def take(self, record: Record) -> None:
        """Do what a record says."""
        kind, flags, a, b, c, data = record
        if self.dead:
            return
        port = self.port
        port.now_ns = time.monotonic_ns()
        detailed = bool(flags & codec.DETAILED)
        if kind == codec.SUBMIT:
            self.enter(port.detailed(kind, flags, a, b, c, data) if detailed else port.task(flags, a, b, c, data))
        elif kind == codec.CHUNK:
            task = port.detailed(kind, flags, a, b, c, data) if detailed else port.chunk(flags, a, b, c, data)
            self.chunks[a] = task
        elif kind == codec.REQUEST:
            answer = answered(self, json.loads(data))
            if a:
                port.reply(a, answer)
        elif kind == codec.OPTIONS:
            port.note_options(a, data)
        else:
            port.note(kind, flags, a, b, data)
            self._functions.pop(a, None)

    # ------------------------------------------------------------ tasks

    def enter(self, task: Task) -> None:
        """A task is accepted: it is run now, unless it is for later."""
        self.scheduler.queues.setdefault(task.options.queue, PLAIN_QUEUE)
        self.scheduler.enter(task)
        if task.state == SCHEDULED:
            self.later[task.key] = cast(DetailedTask, task)
            self.wake()  # who waits may have slept for too long
        else:
            self._carry_out(task)

    def is_for_later(self, key: int) -> bool:
        """Does a task wait for its time?"""
        return key in self.later

    def run_due(self) -> bool:
        """Run one task whose time is here; False if there is none."""
        while self.later and not self.dead:
            at, key = min((_due_at(task), key) for key, task in list(self.later.items()))
            if at > time.monotonic():
                return False
            task = self.later.pop(key, None)  # another thread may have been faster
            if task is not None:
                task.state = COME_DUE[task.state]
                self._carry_out(task)
                return True
        return False

    def cancel_later(self, key: int) -> bool:
        """A task that waits for its time never runs; False if it does not wait."""
        task = self.later.pop(key, None)
        if task is not None:
            self._end(task, codec.CANCELLED, {})
        return task is not None

    def _end(self, task: Task, status: int, report: dict[str, object]) -> None:
        self.scheduler.end(task, status, report)
        self.port.emit_report(task, 0, 0, status, report)
        self._measure()

    def _measure(self) -> None:
        ended_ns, self.port.ended_ns = self.port.ended_ns, []
        self.latency.take(ended_ns, time.monotonic_ns())

    def _carry_out(self, task: Task) -> None:
        function = task.function.key if task.function is not None else 0
        started = [0]

        def run(runner: Runner, flags: int, number: int, generation: int) -> None:
            if not _is_late(task):  # else the child's code does not begin either
                self.scheduler.begin(task)
            started[0] = time.monotonic_ns()
            runner.run_task(flags, number, generation, function << 8, task.payload)

        def goes_on(status: int, out: bytes) -> bool:
            self.scheduler.again(task, status, started[0], time.monotonic_ns() - started[0], out)
            return not _is_late(task)

        try:
            status, out = self._run(task, run, goes_on)  # where the child's code sees whether it is too late
            if _is_late(task) and (status == codec.INTERRUPTED or task.state == QUEUED):
                self._end(task, codec.TIMED_OUT, _too_late(task))
                return
            self.scheduler.end(task, status, out, started[0], time.monotonic_ns() - started[0])
            self.port.emit(task, status, out)
            self._measure()
        except BaseException:
            if self.scheduler.task(task.key) is not None:
                self._end(task, codec.CANCELLED, {})  # the user has had enough
            raise

    def run_chunk(self, key: int) -> None:
        """Run an item of a map, if it has not been run."""
        chunk = self.chunks.pop(key, None)
        if chunk is None or chunk.function is None:
            return
        where = codec.pack_range(0, chunk.function.key, 0, 1)

        def run(runner: Runner, flags: int, number: int, generation: int) -> None:
            runner.run_range(flags, number, generation, where, chunk.payload)

        self.scheduler.queues.setdefault(chunk.options.queue, PLAIN_QUEUE)
        self.port.emit_items(chunk, 0, 1, *self._run(chunk, run, lambda *_: True), 0)

    def _run(self, task: Task, run: Callable[..., None], goes_on: Callable[[int, bytes], bool]) -> tuple[int, bytes]:
        """Run the attempts of a task, with no pause between them; the status and payload of the last one.

        Args:
            task: The task, or an item of a map.
            run: Runs one attempt.
            goes_on: Whether another one follows one that has failed, if `retries` allow.
        """
        if task.function is not None:
            self._functions.setdefault(task.function.key, task.function.blob)
        number, context = task.key, task.options.context
        if context is not None and context.judge is not None:
            self._functions.setdefault(context.judge.key, context.judge.blob)
            self._contexts.setdefault(context.key, Context(context.judge.key))
            number += context.shift
        flags = task.flags & (codec.SPREAD | codec.DETAILED)
        thread, below = threading.get_ident(), here.runner
        self.running.append(thread)
        try:
            attempt = 1
            while True:
                runner = here.runner = Runner(
                    self._settings, self._functions, self._contexts, self._initialized, self._middleware
                )
                here.trace = None
                run(runner, min(attempt, codec.LOW) | flags, number, GENERATION)
                answer, out = runner.answers[0]
                status = answer & codec.LOW
                failed = status in (codec.ERROR, codec.EXITED) and not answer & codec.FINAL
                if not failed or attempt > task.options.retries or not goes_on(status, out):
                    return status, out
                attempt += 1
        finally:
            here.runner = below
            self.running.remove(thread)
            self.wake()

    # ------------------------------------------------------------ waiting

    def wake(self) -> None:
        """Have those that wait look again."""
        with self._moved:
            self._moved.notify_all()

    def _has_news(self) -> bool:
        return self.dead or bool(self.events)

    def is_idle(self) -> bool:
        """Is there nothing to be run, and does nothing run?"""
        return not self.chunks and not self.later and not self.running

    def wait(self, timeout: float) -> bool:
        """Run what is to be run before the end, or wait for other threads; True at the end."""
        thread = threading.get_ident()
        if self._has_news():
            return self.dead
        if self.run_due():
            return False
        if self.draining or self.eager:
            for key in list(self.chunks)[:1]:
                self.run_chunk(key)
                return False
        # A handler, or the task itself, cannot wait for itself.
        if self.draining and not self.later and (not self.running or thread in self.running):
            self.end()
            return True
        look_at = [time.monotonic() + _LOOK_SECONDS, *map(_due_at, list(self.later.values()))]
        left = max(0.0, min(look_at) - time.monotonic())
        with self._moved:
            if not self._has_news():  # what comes from now on notifies
                self._moved.wait(left if timeout < 0 else min(timeout, left))
        return False


def _due_at(task: DetailedTask) -> float:
    """When it is to be run, or to end unrun."""
    times = [at for at in (task.run_at, task.deadline_at) if at is not None]
    return min(times)


def _is_late(task: Task) -> bool:
    return task.deadline_at is not None and time.monotonic() >= task.deadline_at


def _too_late(task: Task) -> dict[str, object]:
    report: dict[str, object] = {
        "timeout": None,
        "deadline": task.deadline_at,
        "killed": False,
        "interrupted": "",
        "dumped": "",
    }
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
        """Another thread may sleep that reads: it has the answer, or the end, for who has sent this."""
        self._supervisor.wake()

    ring_room = ring

    def wake(self) -> None:
        self._supervisor.wake()

    def wait(self, _inbound: Any, _outbound: Any, _need: int, timeout: float, *_how: Any) -> int:
        return 2 if self._supervisor.wait(timeout) else 1
