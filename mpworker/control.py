"""The verbs by which a running worker is steered: its queues, their limits, and what waits in them."""

from __future__ import annotations

from mpworker.checks import check_seconds
from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.steps import Answer, Message, Steps, answered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Final, Literal, TypeVar

    from mpworker.client import Client
    from mpworker.queues import QueueState
    from mpworker.results import Subscription, TaskResult
    from mpworker.shared import Shared

    T = TypeVar("T")

RESULTS_BUFFER: Final = 1024


class Control:
    """What a `ProcessWorker` can do besides taking tasks."""

    _client: Client

    def share(self, obj: T) -> Shared[T]:
        """Place an object in shared memory, once, for all tasks that are handed its handle.

        For what many tasks read, such as a table or a model: each call takes along a few bytes instead of a copy, and
        each child maps the object once. It is written when this is called: what is changed in `obj` later no task sees.

        It takes room of `arena_max_bytes`, as a call does. If there is none, it waits until tasks that are under way
        have ended, at most `submit_timeout` seconds.

        Args:
            obj: What can be pickled. What pickle takes out of band (NumPy arrays, Arrow, pandas) is not copied where it
                is opened; all else is, once in each child.

        Returns:
            The handle. The object is there as long as that lives, or until `close()` or the end of a `with` block.

        Raises:
            SerializationError: It cannot be pickled.
            ShareError: It is larger than `arena_max_bytes`, has the handle of another shared object in it, or there is
                no memory for it.
            QueueFull: There was no room, and no task was to give back any, or `submit_timeout` is over.
            WorkerStopped: The worker was stopped, or made before this process was forked.

        Example:
            >>> from mpworker import ProcessWorker
            >>> def look_up(table, key):
            ...     return table.value[key]
            >>> with ProcessWorker(n=2) as w:
            ...     with w.share({"a": 1, "b": 2}) as table:
            ...         futures = [w.submit(look_up, table, key) for key in "ab"]
            ...     [future.result() for future in futures]
            [1, 2]
        """
        from mpworker.sharing import share

        return share(self._client, obj)

    def queues(self) -> dict[str, QueueState]:
        """How each queue is just now, by name: those that were configured or had a task. Empty after the stop.

        Raises:
            SupervisorLost: The supervisor has died.
            StartFailed: It never came to work.
        """
        return self._client.carry_out(self._telling_queues())

    def _telling_queues(self) -> Steps[dict[str, QueueState]]:
        """The steps of `queues`."""
        from mpworker.queues import QueueState

        answer = yield {"verb": "queues"}
        if answer is None:
            self._client.refuse_unless_stopped()
        return {name: QueueState(**state) for name, state in (answer or {}).items()}

    def set_queue(self, name: str, **options: Any) -> None:
        """Make a queue, or change one while it is in use.

        Args:
            name: Of the queue.
            **options: `weight`, `max_running`, `rate`, `burst`, as for `QueueOptions`; what is left out stays.

        Raises:
            InvalidArgument: There is no such option, or it has a wrong type.
            ConfigurationError: One is out of its bounds, or there are too many queues.
            WorkerStopped: The worker was stopped.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1, queues={"mail": 2}) as w:
            ...     w.set_queue("mail", rate=5.0)
            ...     w.queues()["mail"].weight
            2
        """
        from dataclasses import replace

        from mpworker.queues import QueueOptions, check_queue_name

        name = check_queue_name(name)
        known = list(QueueOptions.__dataclass_fields__)
        for each in options:
            if each not in known:
                from mpworker.hints import unknown_option

                raise InvalidArgument(unknown_option(each, "set_queue()", known, []))
        self._client.refuse_if_closed()
        queues = self._client.queues
        queues.configure(name, replace(queues.configured.get(name, QueueOptions()), **options))

    def set_rate(self, rate: float | None, burst: int | None = None) -> None:
        """Limit how many tasks of all queues together start per second, from now on.

        Args:
            rate: Starts per second, None for no limit.
            burst: How many may start at once when none has for long; None for as many as there are children at any
                time, or `max_pending` if that is less.

        Raises:
            InvalidArgument: One has a wrong type.
            ConfigurationError: One is out of its bounds, or there is a burst and no rate.
            WorkerStopped: The worker was stopped.
        """
        from mpworker.queues import check_limit

        self._client.refuse_if_closed()
        self._client.queues.limit_rate(*check_limit(rate, burst))

    def pause(self, *queues: str) -> None:
        """Start nothing more, until `resume`: tasks are accepted and wait. What runs goes on to its end.

        When this returns no task of these queues begins any more. A part of a `map` that runs counts as one task. A
        stop that drains ends the pause.

        Args:
            *queues: Names of queues; none for all of them, those still to come included.

        Raises:
            InvalidArgument: A name is no str.
            ConfigurationError: There is no such queue and `unknown_queues` is "refuse", or there are too many.
            WorkerStopped: The worker has stopped.
            SupervisorLost: Its supervisor has died.
        """
        self._client.carry_out(self._steering("pause", queues))

    def _steering(self, verb: str, queues: tuple[str, ...]) -> Steps[None]:
        """The steps of `pause` and `resume`."""
        yield from answered(self._client, {"verb": verb, "names": named_queues(self._client, queues)})

    def drain(self, *queues: str, timeout: float | None = None) -> bool:
        """Wait until all that these queues have taken so far has ended; what comes from now on waits until `resume`.

        So what runs can be changed with nothing under way and nothing refused. Attempts that are still to follow are
        waited for, tasks that are for later are not. Of a `map`, what the worker has read of the input so far counts.

        Args:
            *queues: Names of queues; none for all of them, those still to come included.
            timeout: Seconds to wait; None for no limit.

        Returns:
            True if all has ended. False if the time was over first, or `resume` or a stop came; after the time nothing
            new starts all the same, until `resume`.

        Raises:
            InvalidArgument: A name is no str, or `timeout` no number.
            ConfigurationError: `timeout` is out of its bounds, there is no such queue and `unknown_queues` is "refuse",
                or there are too many.
            WorkerStopped: The worker had stopped before.
            SupervisorLost: Its supervisor has died.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=1) as w:
            ...     first = w.submit(pow, 2, 10)
            ...     w.drain(timeout=60.0)
            ...     second = w.submit(pow, 2, 11)
            ...     first.done(), second.done()
            ...     w.resume()
            ...     second.result()
            True
            (True, False)
            2048
        """
        timeout = check_seconds("timeout", timeout, optional=True, zero=True)
        message = draining(self._client, queues)
        return is_drained(self._client, self._client.request(message, timeout))

    def resume(self, *queues: str) -> None:
        """The end of a `pause` or `drain` with the same arguments.

        Args:
            *queues: Names of queues; none ends every `drain`, and a pause of all, and leaves those alone that were
                paused by name.

        Raises:
            InvalidArgument: A name is no str.
            ConfigurationError: There is no such queue and `unknown_queues` is "refuse", or there are too many.
            WorkerStopped: The worker has stopped.
            SupervisorLost: Its supervisor has died.
        """
        self._client.carry_out(self._steering("resume", queues))

    def subscribe_results(
        self,
        buffer: int = RESULTS_BUFFER,
        policy: Literal["drop_newest", "drop_oldest", "block"] = "drop_newest",
        queues: Iterable[str] | None = None,
        statuses: Iterable[str] | None = None,
    ) -> Subscription:
        """The results of all tasks that end from now on, as they end: a stream beside the futures.

        Any number of subscriptions see every result each; none takes one away from another, or from a future. What they
        see are all tasks: those of `submit`, `register_task` and `retry_task`, and each run of a recurring task, also
        one that has begun by now, whose value is None, as what it returns is dropped. The items of a `map` are no
        tasks. Whoever takes from a subscription takes part in reading what the supervisor sends, as whoever waits for a
        future does; where tasks recur, a background thread reads as well, since of their runs there is no end.

        Args:
            buffer: How many results wait to be taken, 1 to 16,777,216.
            policy: What happens when so many do. "drop_newest" leaves out what comes, "drop_oldest" what has waited
                for longest; `dropped` counts them. "block" leaves out nothing: the worker starts no task, of whatever
                queue, and no part of a map until the buffer is half empty. What has ended or begun by the time that
                the supervisor hears of it still comes in. A thread that waits for a future while nobody takes the
                results may wait for ever. A stop that drains, such as leaving the worker's block, ends the hold, and
                the buffer takes everything from then on. A background thread reads for such a subscription.
            queues: Names of queues; None for all.
            statuses: Of "completed", "failed", "cancelled" and "timed_out", or as `TaskStatus`; None for all.

        Returns:
            An iterator over `TaskResult`, also an asynchronous one, for any asyncio event loop. It ends when the worker
            has stopped and all was taken; leaving a `with` block of it, or dropping it, ends the subscription.

        Raises:
            InvalidArgument: An argument has a wrong type.
            ConfigurationError: One is out of its bounds, there is no such policy or status, or there is no such queue
                and `unknown_queues` is "refuse".
            WorkerStopped: The worker was stopped, or made before this process was forked.
            RuntimeError: With "block", or where tasks recur, if no thread can be started.

        Example:
            >>> from mpworker import ProcessWorker
            >>> with ProcessWorker(n=2) as w:
            ...     results = w.subscribe_results(statuses=["completed"])
            ...     futures = [w.submit(divmod, 7, n) for n in (2, 0, 3)]
            >>> sorted(each.result() for each in results)
            [(2, 1), (3, 1)]
        """
        from mpworker.subscribers import subscribe  # not before: no start shall wait for it

        subscription: Subscription = subscribe(self._client, buffer, policy, queues, statuses)
        return subscription

    def get_results(self) -> Iterator[TaskResult]:
        """Deprecated: an iterator over a subscription with all its defaults; use `subscribe_results`.

        Raises:
            WorkerStopped: The worker was stopped, or made before this process was forked.
        """
        import warnings

        warnings.warn("get_results() is deprecated: use subscribe_results()", DeprecationWarning, stacklevel=2)
        return iter(self.subscribe_results())


def named_queues(client: Client, queues: tuple[str, ...]) -> list[str] | None:
    """The names of queues; None, for all, if there are none.

    Raises:
        InvalidArgument: A name is no str.
        ConfigurationError: One is unknown, and refused, or there are too many.
    """
    from mpworker.queues import check_queue_name

    names = [check_queue_name(name) for name in queues]
    for name in names:
        client.queues.use(name)
    return names or None


def draining(client: Client, queues: tuple[str, ...]) -> Message:
    """What `drain` asks.

    Raises:
        WorkerStopped: There is nobody to be asked any more.
        SupervisorLost: The same.
    """
    if client.is_over():
        client.refuse_if_closed()
    return {"verb": "drain", "names": named_queues(client, queues)}


def is_drained(client: Client, answer: Answer) -> bool:
    """What `drain` returns. No answer is a stop, or that the time is over.

    Raises:
        SupervisorLost: It is neither.
    """
    if answer is None and client.is_over() and client._closed != "stopped":
        client.refuse_if_closed()
    return bool(answer and answer["drained"])


def check_unknown_queues(value: Any) -> bool:
    """Does `unknown_queues` refuse them?"""
    if value not in ("create", "refuse"):
        raise ConfigurationError(f"unknown_queues must be 'create' or 'refuse', not {value!r}")
    return bool(value == "refuse")
