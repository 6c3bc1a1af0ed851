"""The contenders: this pool and its peers, each made as its documentation shows, with `n` workers.

A peer is an entry of `PEERS`: the name it goes by, the module that must be there, an adapter, and a program for the
benchmark of starts, which loads nothing else.
"""

import importlib.util
import multiprocessing
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from mpworker.bench.measure import NotOffered
from mpworker.errors import ConfigurationError

MPWORKER: Final = "mpworker"
EXECUTOR: Final = "ProcessPoolExecutor"
POOL: Final = "multiprocessing.Pool"

PENDING_MAX: Final = 20_000_000  # tasks that may wait in this pool: above what any benchmark has wait
STOP_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True)
class Running:
    """A pool that has been started, whichever it is.

    Attributes:
        submit: Takes a function and its arguments; returns something for `result`.
        result: Waits for what `submit` has returned, and gives the task's result.
        mapped: Takes a function, items and the size of chunks; an iterable of the results, in order.
        plain: The same as users write it who give no size of chunks.
        batch: Takes a function and argument tuples; runs a task for each, and returns the results.
        submit_then: Takes a callable without arguments, a function and its arguments; has the first called when
            the task has ended.
        share: Places an object that many tasks read, and returns what is handed to each: something with a `value`, and
            a context; None if there is no such thing.
        chooses: Does it find the best size of chunks itself? `mapped` then gets None.
    """

    submit: Callable[..., Any]
    result: Callable[[Any], Any]
    mapped: Callable[[Callable[..., Any], Iterable[Any], int | None], Iterable[Any]]
    plain: Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]
    submit_then: Callable[..., Any]
    batch: Callable[[Callable[..., Any], Collection[tuple[Any, ...]]], list[Any]] | None = None
    share: Callable[[Any], Any] | None = None
    chooses: bool = False

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run one task and wait for it."""
        if self.batch is not None:
            return self.batch(function, [args])[0]
        return self.result(self.submit(function, *args))

    def gather(self, function: Callable[..., Any], tasks: int, *args: Any) -> None:
        """Submit tasks one by one, all with these arguments; then wait for each."""
        if self.batch is not None:
            self.batch(function, [args] * tasks)
            return
        submit, result = self.submit, self.result
        for handle in [submit(function, *args) for _ in range(tasks)]:
            result(handle)


def _result(future: Any) -> Any:
    return future.result()


def _get(handle: Any) -> Any:
    return handle.get()


def _then(submit: Callable[..., Any], done: Callable[[], None], function: Callable[..., Any], *args: Any) -> Any:
    """`submit_then` of whatever returns a `Future`."""
    future = submit(function, *args)
    future.add_done_callback(lambda _: done())
    return future


def _executor(pool: Any) -> Running:
    """Whatever is a `concurrent.futures.Executor` that is to be given the size of chunks."""
    return Running(
        pool.submit,
        _result,
        lambda function, items, size: pool.map(function, items, chunksize=size),
        pool.map,
        partial(_then, pool.submit),
    )


@contextmanager
def _mpworker(n: int) -> Iterator[Running]:
    from mpworker.worker import ProcessWorker

    with ProcessWorker(n, max_pending=PENDING_MAX) as worker:
        yield Running(
            worker.submit,
            _result,
            lambda function, items, _: worker.map(function, items),
            worker.map,
            partial(_then, worker.submit),
            share=worker.share,
            chooses=True,
        )


@contextmanager
def _process_pool_executor(n: int) -> Iterator[Running]:
    from concurrent.futures import ProcessPoolExecutor

    # Its fastest way to start, and the default before Python 3.14.
    with ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("fork")) as pool:
        yield _executor(pool)


@contextmanager
def _pool(n: int) -> Iterator[Running]:
    with multiprocessing.get_context("fork").Pool(n) as pool:
        yield Running(
            lambda function, *args: pool.apply_async(function, args),
            _get,
            lambda function, items, size: pool.imap(function, items, chunksize=size or 1),
            pool.map,
            lambda done, function, *args: pool.apply_async(function, args, callback=lambda _: done()),
        )


@contextmanager
def _loky(n: int) -> Iterator[Running]:
    import loky

    with loky.ProcessPoolExecutor(n) as pool:
        yield _executor(pool)


@contextmanager
def _pebble(n: int) -> Iterator[Running]:
    import pebble

    def submit(function: Callable[..., Any], *args: Any) -> Any:
        return pool.schedule(function, args=args)

    with pebble.ProcessPool(n, context=multiprocessing.get_context("fork")) as pool:
        yield Running(
            submit,
            _result,
            lambda function, items, size: pool.map(function, items, chunksize=size).result(),
            lambda function, items: pool.map(function, items).result(),
            partial(_then, submit),
        )


@contextmanager
def _mpire(n: int) -> Iterator[Running]:
    import mpire

    # It starts workers when they are first needed. Those of a `map` end with it unless they are to be kept, and then
    # take nothing but the same `map`: so there are two pools, of which most benchmarks start one.
    with (
        mpire.WorkerPool(n, start_method="fork") as pool,
        mpire.WorkerPool(n, start_method="fork", keep_alive=True) as mapping,
    ):
        yield Running(
            lambda function, *args: pool.apply_async(function, args),
            _get,
            lambda function, items, size: mapping.imap(function, items, iterable_len=_len(items), chunk_size=size),
            mapping.map,
            lambda done, function, *args: pool.apply_async(function, args, callback=lambda _: done()),
        )


def _len(items: Iterable[Any]) -> int | None:
    return len(items) if isinstance(items, Collection) else None


@contextmanager
def _joblib(n: int) -> Iterator[Running]:
    import joblib

    if n == 1:
        raise NotOffered("joblib.Parallel(1) runs tasks in the caller, in no other process")

    def no_submit(*_: Any) -> Any:
        raise NotOffered("joblib.Parallel takes batches, and has no submit")

    def run(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        each = joblib.delayed(function)
        return list(one(each(*args) for args in calls))

    def mapped(function: Callable[..., Any], items: Iterable[Any], size: int | None) -> Iterable[Any]:
        each = joblib.delayed(function)
        pool.batch_size = size or "auto"
        return list(pool(each(item) for item in items))

    # Memory maps are its way to pass large arrays; they are its default.
    with joblib.Parallel(n, batch_size=1, pre_dispatch="all") as one, joblib.Parallel(n) as pool:
        yield Running(
            no_submit, _result, mapped, lambda function, items: mapped(function, items, None), no_submit, batch=run
        )


@contextmanager
def _ray(n: int) -> Iterator[Running]:
    import ray

    ray.init(num_cpus=n, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    remotes: dict[Callable[..., Any], Any] = {}

    def submit(function: Callable[..., Any], *args: Any) -> Any:
        if function not in remotes:
            remotes[function] = ray.remote(function)
        return remotes[function].remote(*args)

    def then(done: Callable[[], None], function: Callable[..., Any], *args: Any) -> Any:
        handle = submit(function, *args)
        handle.future().add_done_callback(lambda _: done())
        return handle

    from ray.util.multiprocessing import Pool

    pool = Pool(n)
    try:
        yield Running(
            submit,
            ray.get,
            lambda function, items, size: pool.imap(function, items, chunksize=size),
            pool.map,
            then,
        )
    finally:
        pool.terminate()
        ray.shutdown()


@contextmanager
def _dask(n: int) -> Iterator[Running]:
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=n, threads_per_worker=1, dashboard_address=None, memory_limit=0, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        submit = partial(client.submit, pure=False)  # else it takes equal calls for one

        def mapped(function: Callable[..., Any], items: Iterable[Any], size: int | None) -> Iterable[Any]:
            return list(client.gather(client.map(function, list(items), batch_size=size, pure=False)))

        yield Running(
            submit, _result, mapped, lambda function, items: mapped(function, items, None), partial(_then, submit)
        )


@dataclass(frozen=True)
class Peer:
    """A pool that takes part.

    Attributes:
        module: What must be installed for it.
        version_of: The distribution whose version is told; none for what comes with Python.
        start: Opens one with that many workers; a context that stops it.
        program: Of the benchmark of starts: a `with` statement, for `{n}` workers.
        call: In it, a call of `abs(-1)` that waits for the result.
        light: Does it take part where a pool of very many workers is made?
    """

    module: str
    version_of: str
    start: Callable[[int], AbstractContextManager[Running]]
    program: str
    call: str = "pool.submit(abs, -1).result()"
    light: bool = False


_FORK: Final = "from multiprocessing import get_context\n"
PEERS: Final[dict[str, Peer]] = {
    MPWORKER: Peer(
        "mpworker", "", _mpworker, "from mpworker import ProcessWorker\nwith ProcessWorker({n}) as pool:", light=True
    ),
    EXECUTOR: Peer(
        "concurrent.futures",
        "",
        _process_pool_executor,
        f"{_FORK}from concurrent.futures import ProcessPoolExecutor\n"
        "with ProcessPoolExecutor({n}, mp_context=get_context('fork')) as pool:",
        light=True,
    ),
    POOL: Peer(
        "multiprocessing",
        "",
        _pool,
        f"{_FORK}with get_context('fork').Pool({{n}}) as pool:",
        "pool.apply_async(abs, (-1,)).get()",
        light=True,
    ),
    "loky": Peer("loky", "loky", _loky, "import loky\nwith loky.ProcessPoolExecutor({n}) as pool:"),
    "pebble": Peer(
        "pebble",
        "pebble",
        _pebble,
        f"{_FORK}import pebble\nwith pebble.ProcessPool({{n}}, context=get_context('fork')) as pool:",
        "pool.schedule(abs, args=(-1,)).result()",
    ),
    "mpire": Peer(
        "mpire",
        "mpire",
        _mpire,
        "import mpire\nwith mpire.WorkerPool({n}, start_method='fork') as pool:",
        "pool.apply_async(abs, (-1,)).get()",
    ),
    "joblib": Peer(
        "joblib",
        "joblib",
        _joblib,
        "import joblib\nwith joblib.Parallel({n}) as pool:",
        "pool([joblib.delayed(abs)(-1)])[0]",
    ),
    "ray": Peer(
        "ray",
        "ray",
        _ray,
        "import contextlib, ray\nwith contextlib.ExitStack() as pool:\n"
        "    ray.init(num_cpus={n}, include_dashboard=False, log_to_driver=False, logging_level='ERROR')\n"
        "    pool.callback(ray.shutdown)",
        "ray.get(ray.remote(lambda x: abs(x)).remote(-1))",
    ),
    "dask": Peer(
        "distributed",
        "distributed",
        _dask,
        "import distributed\n"
        "with distributed.Client(n_workers={n}, threads_per_worker=1, dashboard_address=None) as pool:",
    ),
}


def chosen(names: Collection[str] | None) -> tuple[list[str], list[str]]:
    """The contenders of these names that are installed, and the names of those that are not.

    Args:
        names: Of peers; None for all of them. This pool always takes part.

    Raises:
        ConfigurationError: There is no such peer.
    """
    wrong = [name for name in names or () if name not in PEERS]
    if wrong:
        others = ", ".join(name for name in PEERS if name != MPWORKER)
        raise ConfigurationError(f"peers must be among {others}, not {wrong[0]!r}")
    wanted = [name for name in PEERS if names is None or name == MPWORKER or name in names]
    there = [name for name in wanted if _installed(PEERS[name].module)]
    return there, [name for name in wanted if name not in there]


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def opened(name: str, n: int) -> AbstractContextManager[Running]:
    """Start the pool of that name with n workers; leaving the context stops it."""
    return PEERS[name].start(n)
