"""`ProcessWorker`: the pool as its users see it."""

from __future__ import annotations

import os
import sys
from _collections_abc import Iterable  # as `os` has them: `collections` comes later

from mpworker import uncollected
from mpworker.cgroups import available_cores
from mpworker.checks import check_bool, check_int, check_seconds, shown
from mpworker.context import refuse_while_loading
from mpworker.control import Control, check_unknown_queues
from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.observing import Observing
from mpworker.options import (
    N_MAX,
    WORKER_OPTIONS,
    TaskDefaults,
    WorkerOptions,
)
from mpworker.recurring import CronWorker
from mpworker.starting import Start
from mpworker.steps import Steps
from mpworker.tasks import Tasks
from mpworker.view import TaskView, be_executors

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import FrameType, TracebackType
    from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack

    from mpworker.client import Client
    from mpworker.hooks import Hooks, Tracer
    from mpworker.logger import Logger
    from mpworker.optiontypes import SizeOptions
    from mpworker.queues import QueueOptions
    from mpworker.retention import Retention
    from mpworker.retry import RetryPolicy
    from mpworker.stopping import StopReport

    P = ParamSpec("P")

    T = TypeVar("T")


class ProcessWorker(TaskView, Tasks, Control, CronWorker):
    """A pool of child processes that keeps its promises when they die: a `concurrent.futures.Executor`.

    A supervisor process of its own schedules the tasks. A child that crashes is replaced at once, and only the task
    that it was running is affected. No `if __name__ == "__main__"` guard is needed.

    Leaving the `with` block drains: it waits for what was submitted. Leaving it by an exception stops at once.

    Args:
        n: Children, 1 to 256; None for as many as there are cores for this process.
        timeout: Seconds an attempt of a task may run, None for no limit. Then the task is interrupted, and its child
            killed after `grace`.
        grace: Seconds from an interrupt to the kill.
        retries: Further attempts after an exception or a timeout.
        crash_retries: Further attempts after the child died; None means as `retries`.
        retry_policy: A `RetryPolicy`: after what pause these begin, and after which exceptions none does; None for at
            once and after any.
        preload: Modules that are imported once, before the children are forked, and shared by them.
        initializer: Called in each child before its first task.
        initargs: Its arguments; without an initializer there are none.
        max_tasks_per_child: Tasks, or items of a `map`, after which a child is replaced; None for no such number. A
            chunk is cut at the answer by which the number is reached, which may be of a few items more.
        memory_limit: Bytes, at least 16 MiB. A child that keeps more of its own between two tasks is replaced; None for
            no limit. What was preloaded is shared and does not count. It is looked at ten times a second while children
            work, and once after that: a child may run more tasks until the next look.
        memory_limit_hard: Bytes. A child that has more of its own is killed, and its task ends with `WorkerCrashed`,
            cause "memory", or is tried again if `crash_retries` allow. It is looked at ten times a second: what
            grows faster may for a moment have more.
        cpu_affinity: Cores that all children are pinned to, or "spread" to pin each to one of them, in turn; None for
            all that this process may use.
        nice: 0 to 19: the least nice value of the children, which give way to others the more the higher it is.
        blas_threads: Threads of BLAS and OpenMP in a child; None for its share of the cores, `cores // n`, in what
            was preloaded. More than one in what was preloaded needs `threadpoolctl`: `pip install threadpoolctl`.
        max_pending: Accepted, unfinished tasks at which `submit` waits.
        submit_timeout: Seconds that it waits then before it raises QueueFull: 0 for at once, None for no limit.
        queues: Named queues, and for each its weight or a `QueueOptions`; None for "default" alone, with weight 1.
        unknown_queues: "create" makes a queue of weight 1 for a name that `options(queue=...)` uses first, "refuse"
            raises ConfigurationError, also where a queue is only looked for (`get_tasks`, `subscribe_results`).
        rate: How many tasks of all queues together start per second; None for no limit.
        burst: How many may start at once when none has for long; None for min(n, max_pending), as `n` is then. Only
            with a `rate`.
        retention: A `Retention`: how long tasks that have ended are remembered; None for the last 1,000 of them, and
            without their results.
        hooks: A `Hooks`: functions of this process that are called when a task is accepted, begins, is tried again and
            ends; None for none. See also `set_hooks`.
        tracer: A `Tracer`, which makes a span of each attempt; None for none.
        logger: A `Logger`, or one of the standard library, for what the worker has to say of its processes; None for
            that one's "mpworker".
        record: A file to whose end a trace is written, a line for each task that ends: when it came, how long each
            attempt took and how it ended, sizes, queue, priority; never what a task is called with or returns. For
            `mpworker plan`. It ends at 1 GiB. None for none, and with `debug=True`.
        submit_middleware: Functions `f(call_next, task)` around each submission, here, the first one outermost: each
            returns what `call_next(task)` returns, and may hand it another `Task`. `map` and recurring tasks go past
            them.
        execute_middleware: Functions `f(call_next, context)` around each call of a task's function, or item of a `map`,
            in the child, the first one outermost: each calls `call_next()`. They surround the task and do not change
            what comes of it.
        lease_ttl: Seconds without a heartbeat (it beats even while C code runs) after which a child counts as frozen.
        start_timeout: Seconds a child may take until it is ready.
        kill_timeout: Seconds after SIGKILL until a child counts as unkillable and is replaced.
        python: The interpreter to start, None for this one. It must be of the same version (such as 3.11): functions
            travel as byte code.
        debug: Run each task here, in the thread that submits it or takes its result, for a debugger to step into. There
            are no processes then, and no timeouts; see the quick start.
        **others: `child_ring_bytes`, `client_ring_bytes`, `slots`, `max_payload_bytes`, `arena_max_bytes`: see the
            table of defaults.

    Raises:
        InvalidArgument: There is no such option, or it has a wrong type.
        ConfigurationError: An option is out of its bounds, `record` cannot be written, or there is no interpreter to
            start. A `python` that starts and then proves to be none is told by the first use.
        SerializationError: The initializer, its arguments, an execution middleware, or an exception of the retry policy
            cannot be pickled.
        OSError: No memory, descriptor or process is left.

    Example:
        >>> from mpworker import ProcessWorker
        >>> with ProcessWorker(n=2) as w:
        ...     future = w.submit(sum, [1, 2, 3])
        ...     future.result()
        6
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        timeout: float | None = None,
        grace: float = 5.0,
        retries: int = 0,
        crash_retries: int | None = None,
        retry_policy: RetryPolicy | None = None,
        preload: Sequence[str] = (),
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        max_tasks_per_child: int | None = None,
        memory_limit: int | None = None,
        memory_limit_hard: int | None = None,
        cpu_affinity: Collection[int] | str | None = None,
        nice: int = 0,
        blas_threads: int | None = None,
        max_pending: int = 1_000_000,
        submit_timeout: float | None = None,
        queues: Mapping[str, int | QueueOptions] | None = None,
        unknown_queues: Literal["create", "refuse"] = "create",
        rate: float | None = None,
        burst: int | None = None,
        retention: Retention | None = None,
        hooks: Hooks | None = None,
        tracer: Tracer | None = None,
        logger: Logger | logging.Logger | None = None,
        record: str | os.PathLike[str] | None = None,
        submit_middleware: Sequence[Callable[..., Any]] = (),
        execute_middleware: Sequence[Callable[..., Any]] = (),
        lease_ttl: float = 10.0,
        start_timeout: float = 60.0,
        kill_timeout: float = 10.0,
        python: str | os.PathLike[str] | None = None,
        debug: bool = False,
        **others: Unpack[SizeOptions],
    ) -> None:
        refuse_while_loading(_calling_module())
        for name in others:
            if name not in WORKER_OPTIONS:
                raise unknown_option(name, "ProcessWorker", _all_options())
        defaults = TaskDefaults(timeout, retries, crash_retries, retry_policy)
        unusable = isinstance(preload, str) or not isinstance(preload, Iterable)
        modules: tuple[Any, ...] = (None,) if unusable else tuple(preload)
        if not all(isinstance(module, str) for module in modules):
            raise InvalidArgument(f"preload must be a sequence of module names, not {preload!r}")
        if not isinstance(initargs, Iterable):
            raise InvalidArgument(f"initargs must be a sequence of arguments, not {initargs!r}")
        given = tuple(initargs)
        if given and initializer is None:
            raise ConfigurationError(f"initargs={shown(given)} is for an initializer, which is not given")
        if not isinstance(python, str | os.PathLike | None):
            raise InvalidArgument(f"python must be the path of an interpreter, not {python!r}")
        options = WorkerOptions(
            n=min(available_cores(), N_MAX) if n is None else n,
            grace=grace,
            lease_ttl=lease_ttl,
            start_timeout=start_timeout,
            kill_timeout=kill_timeout,
            max_tasks_per_child=max_tasks_per_child,
            memory_limit=memory_limit,
            memory_limit_hard=memory_limit_hard,
            cpu_affinity=cpu_affinity,
            nice=nice,
            blas_threads=blas_threads,
            max_pending=max_pending,
            submit_timeout=submit_timeout,
            preload=modules,
            python="" if python is None else os.fspath(python),
            **others,
        )
        refuses = check_unknown_queues(unknown_queues)
        made: Mapping[str, QueueOptions] = {}
        if queues is not None or rate is not None or burst is not None:
            from mpworker.queues import check_limit, check_queues  # not before: no start shall wait for it

            made = check_queues(queues)
            rate, burst = check_limit(rate, burst)
        observing = Observing(hooks, tracer, logger, submit_middleware, execute_middleware)
        check_bool("debug", debug)
        trace = None
        if record is not None:
            from mpworker.tracefile import check_record

            trace = check_record(record)
        client = self._make_client(debug, options, initializer, given, observing)
        try:
            be_executors()
            super().__init__(client, defaults, options.n)
            if trace is not None and not debug:
                client.tell({"verb": "record", "path": trace})
            client.queues.configure_all(made)
            client.queues.refuses = refuses
            if rate is not None:
                client.queues.limit_rate(rate, burst)
            if retention is not None:
                self.set_retention(retention)
        except BaseException:
            client.ending.stop_now()  # whoever keeps the error keeps the client, too
            raise

    def _make_client(
        self,
        debug: bool,
        options: WorkerOptions,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        observing: Observing,
    ) -> Client:
        if debug:
            from mpworker.inline.client import InlineClient
            from mpworker.inline.supervisor import InlineSupervisor

            supervisor: Any = InlineSupervisor
            return InlineClient(options, observing, Start(options, initializer, initargs, observing, supervisor))
        with Start(options, initializer, initargs, observing) as start:
            uncollected.load("mpworker.client")  # while the supervisor comes up
            from mpworker.client import Client

            return Client(options, observing, start)

    def __repr__(self) -> str:
        pid = self._client.supervisor.pid
        return f"<ProcessWorker n={self._n} {f'supervisor={pid}' if pid else 'debug=True'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if kind is None:
            try:
                self.stop_graceful()
            except BaseException:
                self.stop_now()
                raise
        else:
            self.stop_now()
        return False

    def __del__(self) -> None:
        client = getattr(self, "_client", None)
        if client is not None:
            client.ending.ask_drain()

    @property
    def n(self) -> int:
        """How many children there are to be."""
        return self._n

    def set_max_workers(self, n: int) -> None:
        """Have n children from now on, while tasks run.

        Those that are missing are forked at once. Of those that are too many the idle ones exit at once, and the others
        when the task that they run, or the item of a `map`, has ended; what they were given ahead of time runs
        elsewhere. It returns as soon as this is decided.

        Args:
            n: 1 to 256.

        Raises:
            InvalidArgument: `n` is no whole number.
            ConfigurationError: It is out of its bounds.
            OSError: The supervisor may not open the descriptors that so many children need. Nothing has changed.
            WorkerStopped: The worker was stopped, or made before this process was forked.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     w.set_max_workers(2)
            ...     w.n
            2
        """
        self._client.carry_out(self._resizing(n))

    def _resizing(self, n: int) -> Steps[None]:
        """The steps of `set_max_workers`."""
        n = check_int("n", n, 1, N_MAX)
        yield from self._client.resizing(n)
        self._n = n

    def processes(self) -> dict[str, Any]:
        """The process ids of the supervisor, the nursery and the children, for a look from outside.

        Returns:
            A dictionary of "supervisor" and "nursery", which are process ids, and "children", a list of dictionaries
            of "pid", "ready" and "offers". With `debug=True`: None, None and no children. Empty after the stop.
        """
        return self._client.request({"verb": "children"}) or {}

    def stop_graceful(
        self, timeout: float | None = None, *, cancel_queued: bool = False, wait: bool = True
    ) -> StopReport:
        """Accept no more, finish what was accepted, end every process.

        It may be called again, from any thread and from a signal handler; of several times the shortest counts.

        Args:
            timeout: Seconds; when they are over, the rest is cancelled as by `stop_now`, within a quarter of a second.
                None waits for every task.
            cancel_queued: Cancel what no child has begun, what is for later and items of a `map` included. What runs
                ends by itself, after the retries that it has.
            wait: False returns at once, and all of this goes on.

        Returns:
            What was left. It is true if everything accepted was finished, and false if something was cancelled or the
            supervisor was lost; with `wait=False`, if something is unfinished now.

        Raises:
            InvalidArgument: `timeout` is no number, or another argument no bool.
            ConfigurationError: `timeout` is out of its bounds.

        Example:
            >>> from mpworker import ProcessWorker
            >>> w = ProcessWorker(n=1)
            >>> future = w.submit(pow, 2, 10)
            >>> report = w.stop_graceful(timeout=60.0)
            >>> bool(report), report.tasks, future.result()
            (True, 0, 1024)
        """
        check_bool("cancel_queued", cancel_queued)
        check_bool("wait", wait)
        timeout = check_seconds("timeout", timeout, optional=True)
        stop = self._client.ending.stop_graceful if wait else self._client.ending.begin_to_stop
        return stop(timeout, cancel_queued)

    def stop_now(self) -> None:
        """Kill every process now; tasks that have not ended end cancelled. Returns within seconds, whatever happens."""
        self._client.ending.stop_now()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As in `concurrent.futures`: accept no more and, with `wait`, return when all is done.

        Args:
            wait: False returns at once; what was accepted is finished all the same.
            cancel_futures: Cancel what no child has begun, items of a `map` included. What runs ends by itself, after
                the retries that it has.
        """
        if cancel_futures:
            self._client.ending.cancel_unstarted()
        if wait:
            self._client.ending.stop_graceful(None)
        else:
            self._client.ending.ask_drain()


def _calling_module() -> str:
    """The module of the first frame that is not in this package."""
    frame: FrameType | None = sys._getframe(1)
    name = "?"
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "?"))
        if name.partition(".")[0] != "mpworker":
            break
        frame = frame.f_back
    return name


def _all_options() -> tuple[str, ...]:
    """The options of `ProcessWorker`, as its signature has them, and then the rest."""
    from inspect import signature

    named = [name for name in signature(ProcessWorker).parameters if name != "others"]
    return (*named, *(name for name in WORKER_OPTIONS if name not in named))


def unknown_option(name: str, call: str, takes: Sequence[str]) -> InvalidArgument:
    """The error of an option that a call does not take.

    Args:
        name: The option.
        call: The call, as it is written.
        takes: Those that it takes.
    """
    from mpworker import hints

    others = [each for each in _all_options() if each not in takes]
    return InvalidArgument(hints.unknown_option(name, call, takes, others))
