"""What a child asks of the machine for itself: cores, priority, and the threads of its BLAS."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import programs
import pytest
from leaks import alive, wait_until

from mpworker import ProcessWorker
from mpworker.errors import StartFailed
from mpworker.supervisor import blas

LIMIT = 60.0  # seconds: a guard against a hang, never a measure
CORES = sorted(os.sched_getaffinity(0))


def cores_of(w: ProcessWorker, n: int) -> list[list[int]]:
    """Of each child, once all are ready."""
    assert wait_until(lambda: [child["ready"] for child in w.processes()["children"]] == [True] * n, LIMIT)
    return [sorted(os.sched_getaffinity(child["pid"])) for child in w.processes()["children"]]


# ------------------------------------------------------------ cores


def test_all_children_are_pinned_to_the_cores_that_were_named() -> None:
    with ProcessWorker(n=2, cpu_affinity={CORES[-1]}) as w:
        assert cores_of(w, 2) == [[CORES[-1]]] * 2
        assert sorted(os.sched_getaffinity(w.processes()["supervisor"])) == CORES
    with ProcessWorker(n=1) as w:
        assert cores_of(w, 1) == [CORES]


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_each_child_is_pinned_to_a_core_that_the_fewest_have() -> None:
    with ProcessWorker(n=len(CORES), cpu_affinity="spread") as w:
        each = sorted([core] for core in CORES)
        assert sorted(cores_of(w, len(CORES))) == each
        for _ in range(3):  # the same one each time: by turns alone two would share a core after that
            first = w.processes()["children"][-1]["pid"]
            os.kill(first, signal.SIGKILL)
            assert wait_until(lambda: not alive(first), LIMIT)  # noqa: B023
            assert wait_until(lambda: first not in [c["pid"] for c in w.processes()["children"]], LIMIT)  # noqa: B023
            assert sorted(cores_of(w, len(CORES))) == each
        w.set_max_workers(2 * len(CORES))
        assert sorted(cores_of(w, 2 * len(CORES))) == sorted(each * 2)


def test_the_heartbeat_is_on_the_same_cores() -> None:
    def threads() -> list[list[int]]:
        return [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]

    with ProcessWorker(n=1, cpu_affinity=[CORES[0]]) as w:
        assert w.submit(threads).result(LIMIT) == [[CORES[0]]] * 2


def test_cores_that_the_kernel_refuses_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpworker.options.os.sched_getaffinity", lambda _: {0, 1000})
    with ProcessWorker(n=1, cpu_affinity=[1000]) as w, pytest.raises(StartFailed, match="cores or the priority"):
        w.submit(abs, 1).result(LIMIT)


# ------------------------------------------------------------ priority


def nice_value() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_children_are_as_nice_as_was_asked_and_nobody_else() -> None:
    ours = nice_value()
    with ProcessWorker(n=1, nice=19) as w:
        assert w.submit(nice_value).result(LIMIT) == 19
        assert os.getpriority(os.PRIO_PROCESS, w.processes()["supervisor"]) == ours
        assert os.getpriority(os.PRIO_PROCESS, w.processes()["nursery"]) == ours
    with ProcessWorker(n=1) as w:
        assert w.submit(nice_value).result(LIMIT) == ours


def test_children_are_never_less_nice_than_their_client(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import os
        from mpworker import ProcessWorker
        os.setpriority(os.PRIO_PROCESS, 0, 10)
        with ProcessWorker(n=1, nice=5) as w:
            print(w.submit(os.getpriority, os.PRIO_PROCESS, 0).result())
        """,
        tmp_path,
    )
    assert done.stdout == "10\n"


# ------------------------------------------------------------ BLAS


def threads_of_blas() -> list[int]:
    import numpy as np
    import threadpoolctl

    assert np is not None
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]


def is_imported() -> bool:
    return "threadpoolctl" in sys.modules


@pytest.fixture
def no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names none."""
    for name in blas._VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_number")
@pytest.mark.parametrize("n", [1, 2])
def test_what_was_preloaded_has_its_share_of_the_cores(n: int) -> None:
    share = max(1, len(CORES) // n)
    with ProcessWorker(n=n, preload=["numpy"]) as w:
        assert w.submit(is_imported).result(LIMIT) == (share > 1)
        assert w.submit(threads_of_blas).result(LIMIT) == [share]
        assert w.submit(multiply).result(LIMIT) == 500.0


def multiply() -> float:
    import numpy as np

    return float((np.ones((500, 500)) @ np.ones((500, 500)))[0, 0])


@pytest.mark.usefixtures("no_number")
@pytest.mark.parametrize(("threads", "options"), [(1, {}), (3, {"preload": ["numpy"]})], ids=["later", "preload"])
def test_so_many_threads_as_were_asked_for(threads: int, options: dict[str, Any]) -> None:
    with ProcessWorker(n=1, blas_threads=threads, **options) as w:
        assert w.submit(threads_of_blas).result(LIMIT) == [threads]
        assert w.submit(multiply).result(LIMIT) == 500.0


def test_what_was_asked_for_counts_more_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    with ProcessWorker(n=1, blas_threads=3, preload=["numpy"]) as w:
        assert w.submit(threads_of_blas).result(LIMIT) == [3]


@pytest.mark.usefixtures("no_number")
def test_the_environment_counts_more_than_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    with ProcessWorker(n=1, preload=["numpy"]) as w:
        assert w.submit(threads_of_blas).result(LIMIT) == [1]


@pytest.mark.usefixtures("no_number")
@pytest.mark.parametrize("preload", [[], ["json"]], ids=str)
def test_nobody_imports_what_is_not_needed(preload: list[str]) -> None:
    with ProcessWorker(n=1, preload=preload) as w:
        assert not w.submit(is_imported).result(LIMIT)


@pytest.mark.usefixtures("no_number")
def test_without_threadpoolctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "threadpoolctl.py").write_text("raise ImportError('it is not installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ProcessWorker(n=1, preload=["numpy"]) as w:
        assert w.submit(multiply).result(LIMIT) == 500.0
    match = r"blas_threads=3 of what was preloaded needs threadpoolctl: pip install threadpoolctl"
    with ProcessWorker(n=1, preload=["numpy"], blas_threads=3) as w, pytest.raises(StartFailed, match=match):
        w.submit(multiply).result(LIMIT)
