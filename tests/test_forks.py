"""Tasks that start processes of their own, by every means, and come back."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faults_tasks
import leaks
import pooljobs
import programs
import pytest

from mpworker import ProcessWorker
from mpworker.errors import WorkerCrashed, WorkerStopped

GUARD = 60.0  # seconds; only a bound for what would hang


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=2) as worker:
        yield worker


def test_a_task_that_uses_subprocess(pool: ProcessWorker) -> None:
    def work(text: str) -> tuple[str, int]:
        done = subprocess.run(["cat"], input=text, capture_output=True, text=True, check=True)
        failed = subprocess.run(["sh", "-c", "exit 7"], check=False)
        return done.stdout, failed.returncode

    assert [future.result() for future in [pool.submit(work, str(n)) for n in range(6)]] == [
        (str(n), 7) for n in range(6)
    ]
    assert list(pool.map(work, "ab")) == [("a", 7), ("b", 7)]
    assert pool.submit(os.system, "exit 3").result() >> 8 == 3


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_task_that_uses_multiprocessing(pool: ProcessWorker, method: str) -> None:
    def work(method: str) -> tuple[object, ...]:
        import multiprocessing

        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        process = context.Process(target=queue.put, args=("from a process",))
        process.start()
        text = queue.get()
        process.join()
        with context.Pool(2) as inner:
            squares = inner.map(pooljobs.square, range(5))
        return text, process.exitcode, squares

    before = pool.submit(os.getpid).result()
    assert pool.submit(work, method).result(GUARD) == ("from a process", 0, [0, 1, 4, 9, 16])
    children = {child["pid"] for child in pool.processes()["children"]}
    assert before in children, "no child died of it"


def test_a_task_that_uses_the_librarys_pool(pool: ProcessWorker) -> None:
    def work() -> list[int]:
        import concurrent.futures

        with concurrent.futures.ProcessPoolExecutor(2) as inner, concurrent.futures.ThreadPoolExecutor(2) as threads:
            return [*inner.map(pooljobs.square, range(3)), *threads.map(pooljobs.square, range(3))]

    assert pool.submit(work).result(GUARD) == [0, 1, 4, 0, 1, 4]


def test_a_task_that_opens_a_pool_of_its_own(pool: ProcessWorker) -> None:
    def work(depth: int) -> list[int]:
        from mpworker import ProcessWorker

        with ProcessWorker(n=1) as inner:
            if depth:
                return [depth, *inner.submit(work, depth - 1).result()]
            return list(inner.map(pooljobs.square, range(3)))

    assert pool.submit(work, 2).result(GUARD) == [2, 1, 0, 1, 4]


def test_a_pool_that_a_task_leaves_open_ends_with_its_child() -> None:
    def work() -> dict[str, object]:
        import builtins

        from mpworker import ProcessWorker

        inner = ProcessWorker(n=1)
        inner.submit(pow, 2, 3).result()
        builtins.kept = inner  # type: ignore[attr-defined]  # alive until the child's end
        return inner.processes()

    with ProcessWorker(n=1) as pool:
        inner = pool.submit(work).result(GUARD)
        assert Path(f"/proc/{inner['supervisor']}").exists()
    assert leaks.wait_until(lambda: not Path(f"/proc/{inner['supervisor']}").exists(), GUARD)


@pytest.mark.parametrize("end", ["task", "child", "pool"])
def test_what_a_lost_pool_of_a_task_leaves_is_gone_with_the_task(tmp_path: Path, end: str) -> None:
    # With its supervisor and nursery dead, only the outer child is left above what a task of the inner pool started.
    def work(folder: Path, blocks: bool) -> str:
        with ProcessWorker(n=1) as inner:
            left = [inner.submit(faults_tasks.leave_process, kind).result() for kind in ("plain", "session", "daemon")]
            (folder / "new").write_text(json.dumps([inner.processes(), left]))
            (folder / "new").rename(folder / "told")
            error = inner.submit(signal.pause).exception()
        if blocks:
            signal.pause()
        return type(error).__name__

    with ProcessWorker(n=1) as pool:
        before = pool.submit(os.getpid).result()
        future = pool.submit(work, tmp_path, end != "task")
        behind = [pool.submit(pooljobs.square, number) for number in range(20)]
        assert leaks.wait_until((tmp_path / "told").exists, GUARD)
        processes, left = json.loads((tmp_path / "told").read_text())
        for number in (signal.SIGSTOP, signal.SIGKILL):  # neither can do anything about the other's death
            for name in ("nursery", "supervisor"):
                os.kill(processes[name], number)
        if end == "task":
            assert future.result(GUARD) == "SupervisorLost"
        elif end == "child":
            os.kill(before, signal.SIGKILL)
            assert isinstance(future.exception(GUARD), WorkerCrashed)
        else:
            pool.stop_now()
        assert leaks.wait_until(lambda: not any(map(leaks.alive, left)), GUARD)
        if end != "pool":
            assert [each.result(GUARD) for each in behind] == [number**2 for number in range(20)]
            assert pool.submit(os.getpid).result(GUARD) != before


def test_a_task_that_forks_and_waits(pool: ProcessWorker) -> None:
    def work() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(5)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert [pool.submit(work).result() for _ in range(5)] == [5] * 5


@pytest.mark.parametrize("how", ["returns", "raises", "exits"])
def test_a_task_that_forks_and_comes_back_from_both_sides(pool: ProcessWorker, tmp_path: Path, how: str) -> None:
    # The fork is no child of the pool: it must not answer for it, and it ends.
    path = str(tmp_path / "forks")

    def work(number: int) -> int:
        pid = os.fork()
        if pid == 0:
            pooljobs.note(path, os.getpid())
            if how == "raises":
                raise ValueError("of the fork")
            if how == "exits":
                sys.exit(3)
            return -1
        os.waitpid(pid, 0)
        return number

    assert [pool.submit(work, number).result(GUARD) for number in range(4)] == [0, 1, 2, 3]
    assert list(pool.map(work, range(4))) == [0, 1, 2, 3]
    forks = list(map(int, Path(path).read_text().split()))
    assert len(set(forks)) == 8
    assert not any(Path(f"/proc/{pid}").exists() for pid in forks)
    assert pool.submit(pooljobs.square, 3).result(GUARD) == 9


def test_a_fork_that_comes_back_says_nothing(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import os
        from mpworker import ProcessWorker
        def work(n):
            pid = os.fork()
            if pid:
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            return n
        with ProcessWorker(n=1) as w:
            assert w.submit(work, 5).result() == 5
            assert list(w.map(work, range(3))) == [0, 1, 2]
        """,
        tmp_path,
    )
    assert done.stdout == ""
    assert done.stderr == ""


def test_a_fork_says_nothing_after_one_within_the_programs_own_filters(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import os, warnings
        from mpworker import ProcessWorker
        def fork():
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
        def work():
            with warnings.catch_warnings():
                fork()
            fork()
        with ProcessWorker(n=1) as w:
            w.submit(work).result()
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_what_a_task_leaves_running_ends_with_the_pool(tmp_path: Path) -> None:
    path = str(tmp_path / "pids")

    def work() -> int:
        for arguments in (["sleep", "1000"], ["setsid", "sleep", "1000"]):
            process = subprocess.Popen(arguments)
            pooljobs.note(path, process.pid)
        if (pid := os.fork()) == 0:
            if os.fork() == 0:
                pooljobs.note(path, os.getpid())
                os.execvp("sleep", ["sleep", "1000"])  # orphaned
            os._exit(0)
        os.waitpid(pid, 0)
        return os.getpid()

    with ProcessWorker(n=2) as pool:
        child = pool.submit(work).result()
        assert leaks.wait_until(lambda: len(Path(path).read_text().split()) == 3, GUARD)
        pids = [int(word) for word in Path(path).read_text().split()]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids), (
            "while the child lives they are the task's own affair"
        )
        assert child in {each["pid"] for each in pool.processes()["children"]}
    assert leaks.wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), GUARD)


def test_a_fork_of_the_client_has_no_worker(pool: ProcessWorker) -> None:
    ended, pending = pool.submit(pooljobs.square, 3), None
    assert ended.result() == 9
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        try:
            for call in (
                lambda: pool.submit(pooljobs.square, 1),
                lambda: pool.map(pooljobs.square, [1]),
                pool.processes,
                lambda: pool.cancel_task(ended.task_id + "0"),
            ):
                try:
                    call()
                    said.append("nothing raised")
                except WorkerStopped as error:
                    said.append("before fork" if "made before fork" in str(error) else str(error))
                except BaseException as error:  # noqa: BLE001
                    said.append(repr(error))
            pool.stop_now()
            pool.stop_graceful()
            pool.shutdown()
            said.append(str(ended.result()))
            os.write(writer, "|".join(said).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader, "rb") as file:
        said = file.read().decode().split("|")
    assert said[:3] == ["before fork"] * 3
    assert said[-1] == "9", "what had come before the fork is there"
    assert pool.submit(pooljobs.square, 4).result() == 16, "the worker of the parent has noticed nothing"
    assert pending is None


def test_a_fork_of_the_client_that_ends_stops_nothing_and_can_open_its_own(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import os, sys
        from mpworker import ProcessWorker
        with ProcessWorker(n=1) as w:
            assert w.submit(pow, 2, 3).result() == 8
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                with ProcessWorker(n=1) as own:
                    print("fork", own.submit(pow, 2, 4).result())
                sys.exit(0)  # leaves both with blocks and runs the exit handlers
            os.waitpid(pid, 0)
            print("parent", w.submit(pow, 2, 5).result())
        """,
        tmp_path,
    )
    assert done.stdout == "fork 16\nparent 32\n"
    assert done.stderr == ""
