"""joblib on this pool, and so scikit-learn and whatever else has `n_jobs`.

`register()` makes the backend known; then it is chosen by name, for a block or a call::

    from mpworker.integrations import joblib as on_mpworker

    on_mpworker.register()
    with joblib.parallel_config("mpworker", n_jobs=8):
        joblib.Parallel()(joblib.delayed(score)(each) for each in table)

Calls are sent in batches whose size joblib chooses. What a batch is called with and what it returns goes by shared
memory where it is large (docs/payloads.md), so joblib's own memory-mapped files are not used. A child that dies takes
its batch with it, whose error joblib raises; the pool goes on.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    register_parallel_backend,
)

from mpworker.cgroups import available_cores
from mpworker.future import TaskFuture
from mpworker.worker import ProcessWorker

__all__ = ["Backend", "register"]


def register() -> None:
    """Make the backend known to `joblib.parallel_config` and `joblib.Parallel`, as "mpworker"."""
    register_parallel_backend("mpworker", Backend)


class Backend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """What `joblib.Parallel` sends its calls to.

    Its pool is made by the first call, is kept for later ones, and ends with the `parallel_config` block or the
    `Parallel` object that it is of.

    Args:
        worker: A pool to use, which stays yours: it is not stopped, and has its own number of children.
        options: Of the `ProcessWorker` that is made else; `n` is joblib's `n_jobs`.
        nesting_level: joblib's own.
        inner_max_num_threads: Threads of BLAS and OpenMP in each child; None for what the environment says, or else
            cores by children.

    Raises:
        TypeError: Options were given for a worker that exists.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    uses_threads = False
    supports_sharedmem = False
    # Seconds. A tenth of joblib's own: what a batch costs here is microseconds, and small ones share the work better.
    MIN_IDEAL_BATCH_DURATION = 0.02
    MAX_IDEAL_BATCH_DURATION = 0.2

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        worker: ProcessWorker | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        if worker is not None and (options or inner_max_num_threads is not None):
            names = ", ".join([*options, *(["inner_max_num_threads"] if inner_max_num_threads is not None else [])])
            raise TypeError(f"{names}: say that to the ProcessWorker that is given as worker=")
        self._given = worker
        self._options = options
        self._made: ProcessWorker | None = None
        self._calls: weakref.WeakSet[TaskFuture[Any]] = weakref.WeakSet()  # that may not have ended

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many children work at a call: those of a given worker, or as many as `n_jobs` says; -1 is all cores."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        most = self._given.n if self._given is not None else available_cores()
        return max(1, most + 1 + n_jobs) if n_jobs < 0 else n_jobs

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_for_other_backends: Any) -> int:
        """A call begins."""
        count = self.effective_n_jobs(n_jobs)
        if count == 1 and self._given is None:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        if self._given is None and self._made is None:
            self._made = ProcessWorker(count, **self._options_for(count))
            weakref.finalize(self, self._made.shutdown, wait=True, cancel_futures=True)
        elif self._made is not None and self._made.n != count:
            self._made.set_max_workers(count)
        return count

    def _options_for(self, count: int) -> dict[str, Any]:
        """Those of the pool; its children bound what they load of libraries with threads, as joblib's own do."""
        threads, options = self.inner_max_num_threads, dict(self._options)
        bounds = dict.fromkeys(self.MAX_NUM_THREADS_VARS, str(threads or max(1, available_cores() // count)))
        if threads is not None:
            options["blas_threads"] = threads  # of what is preloaded
        else:
            bounds = {name: bound for name, bound in bounds.items() if name not in os.environ}
        then = options.get("initializer"), tuple(options.get("initargs", ()))
        return options | {"initializer": _begin, "initargs": (bounds, *then)}

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> TaskFuture[Any]:
        """Send a batch."""
        worker = self._given if self._given is not None else self._made
        assert worker is not None  # joblib configures a backend first
        future = worker.submit(_run, func)
        self._calls.add(future)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: TaskFuture[Any]) -> Any:
        """What a batch has returned."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed, or nobody wants the rest: its batches are cancelled, and interrupted where they run."""
        for future in list(self._calls):
            future.cancel()
        self._calls.clear()

    def terminate(self) -> None:
        """A call is over. The pool is kept for the next one."""
        self._calls.clear()
        self.reset_batch_stats()


def _begin(bounds: dict[str, str], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """A child begins."""
    os.environ.update(bounds)
    if initializer is not None:
        initializer(*initargs)


def _run(batch: Callable[[], Any]) -> Any:
    return batch()
