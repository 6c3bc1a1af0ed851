"""Idempotency keys: the same key and the same call is the same task."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from mpworker.errors import DuplicateTask
from mpworker.future import TaskFuture
from mpworker.ipc import payload
from mpworker.retention import Retention
from mpworker.task import Task


class _Known:
    __slots__ = ("args", "ended_at", "fingerprint", "future", "kwargs", "name")

    def __init__(self, task: Task[Any], future: TaskFuture[Any]) -> None:
        self.name = payload.name_of_callable(task.fn)
        self.fingerprint = task.fingerprint
        self.args = tuple(task.args)
        self.kwargs = dict(task.kwargs)
        self.future = future
        self.ended_at: float | None = None  # seen to have, at the latest then


class Idempotency:
    """The keys of one worker: known while their task is unfinished, and then as long as it is remembered.

    Attributes:
        retention: How long that is.
    """

    def __init__(self) -> None:
        self.retention = Retention()
        self._look_at, self._look_beyond = 0.0, 0
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.RLock()  # between the look and the submit; a signal handler may register, too

    def register(self, task: Task[Any], submit: Callable[[], TaskFuture[Any]]) -> TaskFuture[Any]:
        """The future of the first task with this key, or that of a new one.

        Raises:
            DuplicateTask: The first one was another call.
        """
        key = task.idempotency_key
        assert key is not None
        with self._lock:
            now = time.monotonic()
            if now >= self._look_at or len(self._known) > self._look_beyond:
                self._forget(now)
            known = self._known.get(key)
            if known is not None and known.future.ready:
                self._forget(now)  # it may be one of those that are no longer remembered
                known = self._known.get(key)
            if known is None or known.future.refused:
                future = submit()
                self._known[key] = _Known(task, future)
                return future
        if not _is_same(task, known):
            raise DuplicateTask(f"idempotency_key {key!r} belongs to {known.future!r}, which is another call")
        return known.future

    def _forget(self, now: float) -> None:
        ttl, bound = self.retention.ttl, self.retention.max_entries
        ended = 0
        # The newest first, so that the oldest are those that there is no room for.
        for key, known in reversed(list(self._known.items())):
            if not known.future.ready:
                continue
            ended += 1
            known.ended_at = known.ended_at or now
            if ended > bound or (ttl is not None and known.ended_at + ttl <= now):
                del self._known[key]
        # As many again before the next look, so that a look at all of them costs each one little.
        self._look_beyond = 2 * len(self._known) + 64
        self._look_at = math.inf if ttl is None else now + self.retention.cleanup_interval


def _is_same(task: Task[Any], known: _Known) -> bool:
    if payload.name_of_callable(task.fn) != known.name or task.fingerprint != known.fingerprint:
        return False
    if task.fingerprint is not None:
        return True
    return _equal(tuple(task.args), known.args) and _equal(dict(task.kwargs), known.kwargs)


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # noqa: BLE001  # arrays have no truth; such calls need a fingerprint
        return False
