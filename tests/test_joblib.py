"""joblib on this pool."""

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import psutil
import pytest
from concurrently import eventually

from mpworker import ProcessWorker
from mpworker.errors import WorkerCrashed
from mpworker.integrations.joblib import Backend, register


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    register()
    yield
    gc.collect()  # an exception's frames hold what they were raised in
    joblib.parallel.BACKENDS.pop("mpworker", None)


def run(function: Any, items: Any, **options: Any) -> Any:
    return joblib.Parallel(**options)(joblib.delayed(function)(each) for each in items)


def square(x: int) -> int:
    return x * x


def pid_of(_: int) -> int:
    return os.getpid()


def say(word: str) -> None:
    os.environ["SAID"] = word


def said(_: int) -> str | None:
    return os.environ.get("SAID")


def fail_at_three(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    if x > 3:
        time.sleep(600)  # until it is interrupted
    return x


def die_at_three(x: int) -> int:
    if x == 3:
        os._exit(7)
    return x


def test_results_come_in_order() -> None:
    with joblib.parallel_config("mpworker", n_jobs=2):
        assert run(square, range(1000)) == [x * x for x in range(1000)]
        found = joblib.Parallel(return_as="generator")(joblib.delayed(square)(x) for x in range(50))
        assert list(found) == [x * x for x in range(50)]


def test_calls_run_in_children_of_one_pool_that_ends_with_the_block() -> None:
    with joblib.parallel_config("mpworker", n_jobs=2):
        first, second = set(run(pid_of, range(20))), set(run(pid_of, range(20)))
    assert os.getpid() not in first
    assert len(first | second) <= 2
    gc.collect()  # joblib's own cycles hold the backend
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in first | second))


def test_functions_of_this_program_and_their_arrays() -> None:
    factor = np.arange(100_000.0)

    def scaled(x: int) -> Any:
        return factor * x

    with joblib.parallel_config("mpworker", n_jobs=2):
        for x, found in enumerate(run(scaled, range(5))):
            assert (found == factor * x).all()


def test_a_failure_is_raised_and_the_rest_is_cancelled() -> None:
    with ProcessWorker(n=2) as w:
        with joblib.parallel_config("mpworker", worker=w, n_jobs=2), pytest.raises(ValueError, match="three"):
            run(fail_at_three, range(200), batch_size=1)
        assert w.wait(60.0)
        assert w.metrics().completed <= 3


def test_a_child_that_dies_takes_its_batch() -> None:
    with ProcessWorker(n=2) as w, joblib.parallel_config("mpworker", worker=w, n_jobs=2):
        with pytest.raises(WorkerCrashed):
            run(die_at_three, range(10), batch_size=1)
        assert run(square, range(10)) == [x * x for x in range(10)]


def test_a_given_worker_stays_its_owners() -> None:
    with ProcessWorker(n=2) as w:
        with joblib.parallel_config("mpworker", worker=w):
            assert joblib.effective_n_jobs() == 2
            assert set(run(pid_of, range(20))) <= {child["pid"] for child in w.processes()["children"]}
        assert w.submit(square, 3).result() == 9


def test_how_many() -> None:
    backend = Backend()
    assert backend.effective_n_jobs(3) == 3
    assert backend.effective_n_jobs(None) == 1
    assert backend.effective_n_jobs(-1) == len(os.sched_getaffinity(0))
    assert backend.effective_n_jobs(-1000) == 1
    with pytest.raises(ValueError, match="n_jobs == 0"):
        backend.effective_n_jobs(0)
    with joblib.parallel_config("mpworker", n_jobs=2):
        run(square, range(3))
        assert len(set(run(pid_of, range(60), n_jobs=3))) <= 3


def test_one_job_needs_no_pool() -> None:
    with joblib.parallel_config("mpworker", n_jobs=1):
        assert set(run(pid_of, range(3))) == {os.getpid()}


def test_threads_of_blas_are_bounded() -> None:
    def threads(_: int) -> Any:
        import numpy  # noqa: F401
        from threadpoolctl import threadpool_info

        return {each["num_threads"] for each in threadpool_info()}

    with joblib.parallel_config("mpworker", n_jobs=2, inner_max_num_threads=1):
        assert set().union(*run(threads, range(4))) == {1}
    with joblib.parallel_config("mpworker", n_jobs=2, initializer=say, initargs=("yes",)):
        assert run(said, range(2)) == ["yes"] * 2


def test_a_call_within_a_call_has_threads() -> None:
    def nested(x: int) -> Any:
        return joblib.Parallel(n_jobs=2)(joblib.delayed(threading.get_ident)() for _ in range(x))

    with joblib.parallel_config("mpworker", n_jobs=2):
        assert [len(each) for each in run(nested, [2, 3])] == [2, 3]


def test_what_is_said_to_a_worker_that_exists() -> None:
    with (
        ProcessWorker(n=1) as w,
        pytest.raises(TypeError, match="retries, inner_max_num_threads: say that to the ProcessWorker"),
    ):
        Backend(worker=w, retries=2, inner_max_num_threads=1)


def test_a_timeout_ends_a_call() -> None:
    with joblib.parallel_config("mpworker", n_jobs=2), pytest.raises(multiprocessing.TimeoutError):
        run(time.sleep, [30.0], timeout=0.2)
