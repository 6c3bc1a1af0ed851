"""`AsyncProcessWorker`: the pool in an event loop."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, Self, TypeVar, Unpack, cast, overload

from mpworker.aiocontrol import AsyncControl
from mpworker.aiocron import AsyncCronView, AsyncCronWorker
from mpworker.aiodocs import like
from mpworker.aiofuture import AsyncTaskFuture, awaited_of
from mpworker.aiotasks import AsyncTasks
from mpworker.checks import check_bool, check_seconds
from mpworker.connected import ConnectedWorker
from mpworker.errors import InvalidArgument
from mpworker.loopclient import LoopClient
from mpworker.observing import Observing
from mpworker.options import WorkerOptions
from mpworker.optiontypes import SizeOptions, TaskOptions
from mpworker.starting import Start
from mpworker.view import TaskView, no_attribute
from mpworker.worker import ProcessWorker

if TYPE_CHECKING:
    import logging

    from mpworker.client import Client
    from mpworker.hooks import Hooks, Tracer
    from mpworker.logger import Logger
    from mpworker.queues import QueueOptions
    from mpworker.retention import Retention
    from mpworker.retry import RetryPolicy
    from mpworker.stopping import StopReport

P = ParamSpec("P")
T = TypeVar("T")


class PoolOptions(SizeOptions, total=False):
    """The options of `ProcessWorker` beside `n` and `debug`, for type checkers."""

    timeout: float | None
    grace: float
    retries: int
    crash_retries: int | None
    retry_policy: "RetryPolicy | None"
    preload: Sequence[str]
    initializer: Callable[..., object] | None
    initargs: Iterable[Any]
    max_tasks_per_child: int | None
    memory_limit: int | None
    memory_limit_hard: int | None
    cpu_affinity: Collection[int] | str | None
    nice: int
    blas_threads: int | None
    max_pending: int
    submit_timeout: float | None
    queues: "Mapping[str, int | QueueOptions] | None"
    unknown_queues: Literal["create", "refuse"]
    rate: float | None
    burst: int | None
    retention: "Retention | None"
    hooks: "Hooks | None"
    tracer: "Tracer | None"
    logger: "Logger | logging.Logger | None"
    record: str | PathLike[str] | None
    submit_middleware: Sequence[Callable[..., Any]]
    execute_middleware: Sequence[Callable[..., Any]]
    lease_ttl: float
    start_timeout: float
    kill_timeout: float
    python: str | PathLike[str] | None


class _Pool(ProcessWorker):
    """The pool behind an `AsyncProcessWorker`."""

    def _make_client(
        self,
        debug: bool,
        options: WorkerOptions,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        observing: Observing,
    ) -> "Client":
        if debug:
            raise InvalidArgument("debug=True would run tasks in the event loop: use it with a ProcessWorker")
        with Start(options, initializer, initargs, observing) as start:
            return LoopClient(options, observing, start)


class _AttachedPool(ConnectedWorker):
    """The same where the supervisor is there already."""

    def _client_kind(self) -> "type[Client]":
        return LoopClient


class AsyncTaskView(AsyncCronView):
    """An asynchronous worker with other task options; made by `AsyncProcessWorker.options`.

    It shares everything with its worker, which owns the processes.
    """

    def __init__(self, view: TaskView) -> None:
        self._view = view
        self._client = cast(LoopClient, view._client)

    def __reduce__(self) -> NoReturn:
        self._view.__reduce__()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> AsyncTaskFuture[T]:
        """Have a child call `fn(*args, **kwargs)`; not a coroutine: the task is on its way when this returns.

        Where `max_pending` tasks are unfinished, or the ring to the supervisor is full, the call waits in this process,
        as a pickle, and the event loop goes on; the future is done when the task is, or after `submit_timeout` has
        raised QueueFull. So `await` what you submit before
        you submit more, or use `map`, which reads its input as results are taken.

        Args:
            fn: As for `ProcessWorker.submit`.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            A future to await, which gives the value or raises what `TaskFuture.result` raises. If the asyncio task that
            awaits it is cancelled, then so is the call: one that has not begun never does, one that runs is
            interrupted, and killed after `grace`. `asyncio.shield` keeps it from that.

        Raises:
            InvalidArgument: `fn` is not callable, or asynchronous.
            SerializationError: It, or an argument, cannot be pickled.
            WorkerStopped: The worker was stopped, or made before this process was forked.
            WrongEventLoop: The worker is in use by another event loop, or none runs here.
            QueueFull: `max_pending` tasks are unfinished, and `submit_timeout` is 0; else the future raises it.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker
            >>> async def main():
            ...     async with AsyncProcessWorker(n=2) as w:
            ...         return await w.submit(pow, 2, 10)
            >>> asyncio.run(main())
            1024
        """
        self._client.check()
        return awaited_of(self._view.submit(fn, *args, **kwargs))

    def submit_many(self, fn: Callable[..., T], items: Iterable[Any], /) -> list[AsyncTaskFuture[T]]:
        """Have a child call `fn(item)` for each item; not a coroutine, as `submit` is none.

        Args:
            fn: As for `submit`.
            items: The argument of each call; no asynchronous iterable.

        Returns:
            The futures, in the order of the items.

        Raises:
            Exception: What `submit` raises for an item. The tasks of the items before it are submitted, and run.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker
            >>> async def main():
            ...     async with AsyncProcessWorker(n=2) as w:
            ...         return await asyncio.gather(*w.submit_many(abs, [-1, -2]))
            >>> asyncio.run(main())
            [1, 2]
        """
        self._client.check()
        return [awaited_of(future) for future in self._view.submit_many(fn, items)]

    @overload
    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: Literal[False] = False,
        progress: bool = False,
    ) -> AsyncIterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool,
        progress: bool = False,
    ) -> AsyncIterator[T | BaseException]: ...

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> AsyncIterator[T | BaseException]:
        """Call `fn` with each item (or one of each iterable) and yield the results in order.

        As `ProcessWorker.map`, with these differences. It begins when its first result is asked for. An iterable may be
        asynchronous. A map that is closed (`aclose()`), whose awaiting task is cancelled, or that fails, interrupts the
        items that run, too. A plain iterable is read in the event loop, which waits for an item that is slow to come;
        an asynchronous one is not read while nobody takes results and enough is under way.

        Args:
            fn: As for `submit`.
            *iterables: One or more, plain or asynchronous; the shortest ends the map.
            timeout: Seconds from now in which all results must be there.
            chunksize: Items sent together; None lets it follow the measured duration of a call. A result may wait for
                the next item of its chunk, at most until that one has ended; with 1 it never does.
            buffersize: The most items under way, or ready and not taken; None for a bound on chunks.
            return_exceptions: Yield a failed item's exception in its place and go on. Without it the exception is
                raised and the rest is cancelled.
            progress: Show a bar on standard error, where that is a terminal, or in a notebook.

        Returns:
            An asynchronous generator of the results. Leaving an `async for` early does not close it at once: wrap it in
            `contextlib.aclosing`.

        Raises:
            InvalidArgument: `fn` is not callable or asynchronous, there is no iterable, or an option has a wrong type.
            ConfigurationError: An option is out of its bounds.
            SerializationError: `fn` cannot be pickled.
            WorkerStopped: The worker was stopped, or made before this process was forked.
            WrongEventLoop: The worker is in use by another event loop, or none runs here.
            TimeoutError: `timeout` is over.
            Exception: What `fn` raised for the item whose turn it is.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker
            >>> async def main():
            ...     async with AsyncProcessWorker(n=2) as w:
            ...         return [result async for result in w.map(abs, range(-3, 2))]
            >>> asyncio.run(main())
            [3, 2, 1, 0, 1]
        """
        self._client.check()
        check_bool("progress", progress)
        # The client of the view makes an asynchronous one.
        results: Any = self._view.map(
            fn,
            *iterables,  # type: ignore[arg-type]
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            return_exceptions=return_exceptions,
        )
        if progress:
            from mpworker.ipc.payload import name_of_callable
            from mpworker.progress import shown_async, total_of

            results = shown_async(results, name_of_callable(fn), total_of(iterables))
        return cast("AsyncIterator[T | BaseException]", results)

    def options(self, **options: Unpack[TaskOptions]) -> "AsyncTaskView":
        """The same worker with other task options.

        Args:
            **options: As for `ProcessWorker.options`.

        Raises:
            InvalidArgument: There is no such option of tasks, or it has a wrong type.
            ConfigurationError: An option is out of its bounds.
            SerializationError: An exception of the retry policy cannot be pickled.
            WrongEventLoop: The worker is in use by another event loop, or none runs here.

        Example:
            >>> import asyncio
            >>> from mpworker import AsyncProcessWorker
            >>> async def main():
            ...     async with AsyncProcessWorker(n=1) as w:
            ...         return await w.options(timeout=5.0, retries=3).submit(len, "four")
            >>> asyncio.run(main())
            4
        """
        self._client.check()
        return _WithOptions(self._view.options(**options))


class _WithOptions(AsyncTaskView):
    """What `options` gives; see `mpworker.view`."""

    if not TYPE_CHECKING:  # as there

        def __getattr__(self, name: str) -> NoReturn:
            raise no_attribute(self, name, AsyncTaskView, "AsyncProcessWorker")


class AsyncProcessWorker(AsyncTaskView, AsyncTasks, AsyncControl, AsyncCronWorker):
    """A `ProcessWorker` for asyncio: what waits there is awaited here, and the event loop goes on meanwhile.

    It has no thread: the loop itself watches for results, and unpickles them. It belongs to the event loop in which it
    is first used. All tasks of that loop may use it at once.

    Leaving the `async with` block drains: it awaits what was submitted. Leaving it by an exception, also by the
    cancellation of the asyncio task, stops at once.

    Args:
        n: Children, 1 to 256; None for as many as there are cores for this process.
        **options: Those of `ProcessWorker`, but for `debug`, which would run tasks in the event loop.

    Raises:
        InvalidArgument: There is no such option, or it has a wrong type.
        ConfigurationError: An option is out of its bounds, or there is no interpreter to start. A `python` that starts
            and then proves to be none is told by the first use.
        SerializationError: The initializer, its arguments, or an exception of the retry policy cannot be pickled.
        OSError: No memory, descriptor or process is left.

    Example:
        >>> import asyncio
        >>> from mpworker import AsyncProcessWorker
        >>> async def main():
        ...     async with AsyncProcessWorker(n=2) as w:
        ...         return await asyncio.gather(w.submit(sum, [1, 2, 3]), w.submit(max, 4, 5))
        >>> asyncio.run(main())
        [6, 5]
    """

    def __init__(self, n: int | None = None, **options: Unpack[PoolOptions]) -> None:
        self._pool: ProcessWorker = _Pool(n, **options)
        super().__init__(self._pool)

    @classmethod
    async def connect(cls, path: "str | PathLike[str] | None" = None, **options: Any) -> Self:
        """Attach to a supervisor that runs as a service: see `mpworker.connect`.

        Args:
            path: Its socket; None for the usual places.
            **options: Those of `ConnectedWorker`.

        Raises:
            ConfigurationError: An option is out of its bounds.
            ConnectError: No supervisor listens there, or it refuses this program.
            OSError: No memory or descriptor is left.
        """
        worker = cls.__new__(cls)
        attached = await asyncio.to_thread(_AttachedPool, path, **options)  # it waits, at most `connect_timeout`
        worker._pool = attached
        AsyncTaskView.__init__(worker, attached)
        return worker

    def __repr__(self) -> str:
        return f"<AsyncProcessWorker n={self._view._n} supervisor={self._client.supervisor.pid}>"

    async def __aenter__(self) -> Self:
        self._client.check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if kind is None:
            try:
                await self.stop_graceful()
            except BaseException:
                await self.stop_now()
                raise
        else:
            await self.stop_now()
        return False

    @property
    def n(self) -> int:
        """How many children there are to be."""
        return self._pool.n

    @like(ProcessWorker.set_max_workers)
    async def set_max_workers(self, n: int) -> None:
        """As `ProcessWorker.set_max_workers`."""
        self._client.check()
        await self._client.carry_out_soon(self._pool._resizing(n))

    async def processes(self) -> dict[str, Any]:
        """The process ids of the supervisor, the nursery and the children: see `ProcessWorker.processes`.

        Raises:
            WrongEventLoop: The worker is in use by another event loop.
        """
        return await self._client.ask({"verb": "children"}) or {}

    async def stop_graceful(
        self, timeout: float | None = None, *, cancel_queued: bool = False, wait: bool = True
    ) -> "StopReport":
        """Accept no more, finish what was accepted, end every process: see `ProcessWorker.stop_graceful`.

        Args:
            timeout: Seconds; when they are over, the rest is cancelled as by `stop_now`, within a quarter of a second.
                None awaits every task.
            cancel_queued: Cancel what no child has begun, what is for later and items of a `map` included.
            wait: False returns at once, and all of this goes on; also when the event loop ends before.

        Returns:
            What was left: true if everything accepted was finished.

        Raises:
            InvalidArgument: `timeout` is no number, or another argument no bool.
            ConfigurationError: `timeout` is out of its bounds.
            WrongEventLoop: The worker is in use by another event loop.
        """
        check_bool("cancel_queued", cancel_queued)
        check_bool("wait", wait)
        timeout = check_seconds("timeout", timeout, optional=True)
        if wait:
            return await self._client.ending.stop(timeout, cancel_queued)
        return self._client.ending.stop_soon(timeout, cancel_queued)

    @like(ProcessWorker.stop_now)
    async def stop_now(self) -> None:
        """As `ProcessWorker.stop_now`."""
        await self._client.ending.end_now()

    @like(ProcessWorker.shutdown)
    async def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `ProcessWorker.shutdown`."""
        if cancel_futures:
            await self._client.ending.cancel_what_waits()
        if wait:
            await self._client.ending.stop(None, False)
        else:
            self._client.ending.begin_to_drain()
