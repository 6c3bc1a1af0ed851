"""The verbs of a worker for calls, which go by its task options; `options` gives the same ones with others."""

from __future__ import annotations

import sys
from _collections_abc import Iterable  # as `os` has them: `collections` comes later

from mpworker.checks import check_bool, check_int, check_seconds
from mpworker.errors import InvalidArgument
from mpworker.ipc import details
from mpworker.ipc.codec import MAX_CHUNK_ITEMS
from mpworker.options import TASK_OPTIONS, TaskDefaults
from mpworker.recurring import CronView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from typing import Any, Literal, NoReturn, ParamSpec, TypeVar, Unpack, overload

    from mpworker.client import Call, Client
    from mpworker.future import TaskFuture
    from mpworker.optiontypes import TaskOptions

    P = ParamSpec("P")

    T = TypeVar("T")
else:
    # The real one brings `logging` along, half of what a program loads before its first result: `be_executors`.
    Executor = getattr(sys.modules.get("concurrent.futures"), "Executor", object)


class TaskView(CronView, Executor):
    """A worker with other task options; made by `ProcessWorker.options`.

    It shares everything with its worker. Leaving a `with` block of it, or shutting it down, does nothing: the worker
    owns the processes.
    """

    def __init__(self, client: Client, defaults: TaskDefaults, n: int) -> None:
        self._client = client
        self._defaults = defaults
        self._n = n
        # A plain task's future pays nothing for what only those of other queues must know.
        self._make_future: Callable[..., TaskFuture[Any]] = client.make_future
        if defaults.queue != "default":
            from functools import partial

            from mpworker.future import in_queue

            self._make_future = partial(in_queue, defaults.queue)
        known = defaults
        if defaults.limits_nothing:
            from functools import partial

            known = defaults.but(concurrency=1)
            self.submit = self.map = partial(_refuse_limit_of_nothing, defaults)  # type: ignore[method-assign]
        self._options_key, self._said = client.option_table.say(known)
        self._packed = details.pack(self._said) if self._said else b""
        if client.submission is not None:
            from functools import partial

            from mpworker.registering import submit_as_task  # not before: no start shall wait for it

            # Not a method of this object's, which would keep it in a cycle: the supervisor ends when it is dropped.
            self.submit = partial(submit_as_task, client, defaults)  # type: ignore[method-assign]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a ProcessWorker cannot be sent to another process: where a method or a closure brings it along, "
            "use a function, or leave it out in __getstate__; a task may make a worker of its own"
        )

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Have a child call `fn(*args, **kwargs)`.

        Args:
            fn: Any callable that can be pickled, by name or (lambdas, closures, what `__main__` defines) by value.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The future of its result.

        Raises:
            InvalidArgument: `fn` is not callable, or asynchronous.
            SerializationError: It, or an argument, cannot be pickled.
            WorkerStopped: The worker was stopped, or made before this process was forked.
            QueueFull: `max_pending` tasks are unfinished, and `submit_timeout` is over.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=2) as w:
            ...     w.submit(pow, 2, 10).result()
            1024
        """
        if not callable(fn):
            raise InvalidArgument(f"submit needs a callable, not {fn!r}: write submit(f, x), not submit(f(x))")
        return self._client.submit(fn, args, kwargs, self._options_key, self._packed, self._make_future)

    def submit_many(self, fn: Callable[..., T], items: Iterable[Any], /) -> list[TaskFuture[T]]:
        """Have a child call `fn(item)` for each item: a task each, as `submit` makes them.

        It takes about half of the caller's time that as many calls of `submit` do.

        The items are read first, so what raises there submits nothing. `map` sends many items as one task and yields
        results: it is far cheaper where no future of each is needed.

        Args:
            fn: As for `submit`.
            items: The argument of each call.

        Returns:
            The futures, in the order of the items.

        Raises:
            Exception: What `submit` raises for an item, with a note which one it is. The tasks of the items before it
                are submitted, and run.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=2) as w:
            ...     [future.result() for future in w.submit_many(abs, [-1, -2])]
            [1, 2]
        """
        if not callable(fn):
            raise InvalidArgument(f"submit_many needs a callable, not {fn!r}: write submit_many(f, items)")
        if not isinstance(items, Iterable):
            raise InvalidArgument(f"submit_many needs an iterable, not {items!r}")
        if self._client.submission is not None:
            return [self.submit(fn, item) for item in items]
        if self._defaults.limits_nothing:
            self._defaults.refuse_limit_of_nothing()
        key, packed, make = self._options_key, self._packed, self._make_future
        calls: list[Call] = [(fn, (item,), {}, key, packed, make) for item in items]
        futures: list[TaskFuture[T]] = []
        try:
            self._client.submit_all(calls, futures)
        except Exception as error:
            at, many = len(futures), len(calls)
            error.add_note(f"It is item {at} of {many}, the first being 0; those before it are submitted.")
            raise
        return futures

    if TYPE_CHECKING:

        @overload
        def map(
            self,
            fn: Callable[..., T],
            /,
            *iterables: Iterable[Any],
            timeout: float | None = None,
            chunksize: int | None = None,
            buffersize: int | None = None,
            return_exceptions: Literal[False] = False,
            progress: bool = False,
        ) -> Iterator[T]: ...

        @overload
        def map(
            self,
            fn: Callable[..., T],
            /,
            *iterables: Iterable[Any],
            timeout: float | None = None,
            chunksize: int | None = None,
            buffersize: int | None = None,
            return_exceptions: bool,
            progress: bool = False,
        ) -> Iterator[T | BaseException]: ...

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> Iterator[T | BaseException]:
        """Call `fn` with each item (or one of each iterable) and yield the results in order.

        The input is read as results are taken, never far ahead: it may be endless. A map that is closed, or dropped
        before its end, cancels its rest: what has not begun never does, what runs goes on to its end.

        The function is sent once to each child for the whole map. What it writes to a global variable of its module is
        seen by the later items of that child, but neither by the other children nor here.

        Args:
            fn: As for `submit`.
            *iterables: One or more; the shortest ends the map.
            timeout: Seconds from now in which all results must be there.
            chunksize: Items sent together; None lets it follow the measured duration of a call. A result may wait for
                the next item of its chunk, at most until that one has ended; with 1 it never does.
            buffersize: The most items under way, or ready and not taken; None for a bound on chunks.
            return_exceptions: Yield a failed item's exception in its place and go on. Without it the exception is
                raised and the rest is cancelled.
            progress: Show a bar on standard error, where that is a terminal, or in a notebook.

        Returns:
            An iterator over the results. Its `close()` ends the map, as does dropping it.

        Raises:
            InvalidArgument: `fn` is not callable or asynchronous, there is no iterable, or an option has a wrong type.
            ConfigurationError: An option is out of its bounds.
            SerializationError: `fn` cannot be pickled.
            WorkerStopped: The worker was stopped, or made before this process was forked.
            TimeoutError: `timeout` is over.
            Exception: What `fn` raised for the item whose turn it is.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=2) as w:
            ...     list(w.map(abs, range(-3, 2)))
            [3, 2, 1, 0, 1]
        """
        if not callable(fn):
            raise InvalidArgument(f"map needs a callable, not {fn!r}: write map(f, items)")
        if not iterables:
            raise InvalidArgument("map needs at least one iterable")
        for each in iterables:
            if not self._client.is_iterable(each):
                raise InvalidArgument(f"map needs iterables, not {each!r}")
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        if chunksize is not None:
            chunksize = check_int("chunksize", chunksize, 1, MAX_CHUNK_ITEMS)
        if buffersize is not None:
            buffersize = check_int("buffersize", buffersize, 1, 1 << 40)
        check_bool("return_exceptions", return_exceptions)
        check_bool("progress", progress)
        results: Iterator[T | BaseException] = self._client.map(
            fn,
            iterables,
            self._options_key,
            self._n,
            chunksize,
            buffersize,
            timeout,
            return_exceptions,
            self._said,
        )
        if progress:
            from mpworker.ipc.payload import name_of_callable
            from mpworker.progress import shown, total_of

            return shown(results, name_of_callable(fn), total_of(iterables))
        return results

    def options(self, **options: Unpack[TaskOptions]) -> TaskView:
        """The same worker with other task options.

        Args:
            **options: `timeout`, `retries`, `crash_retries`, `retry_policy`, as for `ProcessWorker`; and `queue`, the
                name of the queue that the tasks wait in ("default"), `priority`, by which the lowest number goes first
                in it (0, at most 2**31 and at least the negative of that), and `weight`, by which the highest number
                goes first among tasks of one priority (1, at most 1,000,000); and `concurrency_key`, a text: of all
                tasks with the same one at most `concurrency` (1) run at once, and the least of those that run holds
                for all. `submit` and `map` of a view with another `concurrency` than 1 and no key raise
                ConfigurationError.

        Raises:
            InvalidArgument: There is no such option of tasks, or it has a wrong type.
            ConfigurationError: An option is out of its bounds, or the queue is refused.
            SerializationError: An exception of the retry policy cannot be pickled.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     w.options(timeout=5.0, retries=3).submit(len, "four").result()
            4
        """
        for name in options:
            if name not in TASK_OPTIONS:
                from mpworker.worker import unknown_option

                raise unknown_option(name, "options()", TASK_OPTIONS)
        return _WithOptions(self._client, self._defaults.but(**options), self._n)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing: the worker owns the processes."""


# Not in `TaskView` itself: CPython looks up each attribute of a class that has a `__getattr__` the slow way, and a
# worker, which is one, pays for that in each `submit`.
class _WithOptions(TaskView):
    """What `options` gives; it says where to find what only the worker has."""

    if not TYPE_CHECKING:  # a checker would take every name for one that is there

        def __getattr__(self, name: str) -> NoReturn:
            raise no_attribute(self, name, TaskView, "ProcessWorker")


def _refuse_limit_of_nothing(defaults: TaskDefaults, *_: object, **__: object) -> Any:
    defaults.refuse_limit_of_nothing()


def no_attribute(view: object, name: str, kind: type, worker: str) -> AttributeError:
    """The error of an attribute that a view of a worker does not have.

    Args:
        view: Which.
        name: Of the attribute.
        kind: The class of views, as users know it.
        worker: The name of the class of workers, which may have it.
    """
    text = f"{kind.__name__!r} object has no attribute {name!r}"
    if not name.startswith("_"):
        import mpworker

        if hasattr(getattr(mpworker, worker), name):
            text += f": it belongs to the {worker} itself, and not to what its options() gives"
            if name.startswith(("register_task", "execute_task")):
                text += "; say the options in the Task"
    return AttributeError(text, name=name, obj=view)


def be_executors() -> None:
    """Make workers what they are for type checkers already: executors of `concurrent.futures`.

    Where a program has imported that before this module, they are from the beginning. Else they become it with the
    first worker, whose processes come up while it is imported; until then the class alone is none.
    """
    from concurrent.futures import Executor

    if not issubclass(TaskView, Executor):
        TaskView.__bases__ = (CronView, Executor)
