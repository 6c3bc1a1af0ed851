"""The client of a worker with `debug=True`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from mpworker.client import Client
from mpworker.ending import Ending
from mpworker.future import TaskFuture
from mpworker.inline.runner import here
from mpworker.ipc import codec
from mpworker.mapping import Mapping
from mpworker.waiting import Condition

if TYPE_CHECKING:
    from mpworker.waiting import Waitable


class _InlineMapping(Mapping):
    """A `map` whose items are read and run when their results are taken."""

    def _raise_or_return(self, error: BaseException) -> Iterator[Any]:
        _show_where(error)
        return super()._raise_or_return(error)


def _show_where(error: BaseException) -> None:
    """Give an exception that has been through a pickle the traceback of the one that was raised."""
    trace, here.trace = here.trace, None
    if trace is not None:
        BaseException.__traceback__.__set__(error, trace)  # type: ignore[union-attr]  # its class may refuse it


def _show_failure(future: TaskFuture[Any]) -> None:
    if future._payload is not None and future.status != codec.OK:
        future._decode()
        if future._exception is not None:
            _show_where(future._exception)


class _InlineEnding(Ending):
    _client: InlineClient

    def ask_drain(self) -> None:
        """Accept no more; what is accepted is run when it is asked for."""
        client = self._client
        if client._forked or client._over:
            return
        self._say_drain()
        if client.supervisor.is_idle():
            client.wait_for(client.when(client.is_over), None)


class InlineClient(Client):
    """The client of an `InlineSupervisor`; the arguments are those of `Client`."""

    __slots__ = ()

    supervisor: Any
    _ending_kind = _InlineEnding

    def submit(self, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Run one task, before it returns, unless it is for later."""
        here.trace = None
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
