"""What a start of a pool loads: each module that comes back here is paid by every start."""

import gc
import sys
from pathlib import Path
from typing import TypeAlias

import programs
import pytest
from points import sweep
from test_isolation import SPY

from mpworker import ProcessWorker, uncollected

# Dear, by themselves or by what they bring along: `dataclasses` has `inspect`, and so `ast` and `dis`.
DEAR = {
    *("argparse", "ast", "asyncio", "base64", "cloudpickle", "ctypes", "dataclasses", "datetime", "decimal", "dis"),
    *("inspect", "importlib.metadata", "json", "multiprocessing", "platform", "queue", "random", "selectors", "socket"),
    *("ssl", "subprocess", "tempfile", "uuid", "zoneinfo", "click", "rich", "psutil", "cronsim"),
}
OF_NURSERY = DEAR | {
    *("array", "concurrent", "contextlib", "enum", "importlib", "linecache", "logging", "pickle", "re", "signal"),
    *("string", "textwrap", "threading", "tokenize", "traceback", "typing", "warnings"),
}
OF_SUPERVISOR = OF_NURSERY | {"collections", "functools", "operator", "resource", "types"}
# What users make (a `Task`, `Hooks`) are dataclasses, which nobody has to import who makes none.
OF_CLIENT = DEAR | {
    *("hashlib", "hmac", "secrets", "typing"),
    *("mpworker.hooks", "mpworker.mapping", "mpworker.queues", "mpworker.task"),
}
WHILE_PROCESSES_COME_UP = {
    *("collections", "concurrent", "functools", "logging", "operator", "pickle", "re", "struct", "threading"),
    *("mpworker.client", "mpworker.future", "mpworker.launch", "mpworker.logs"),
}

Spied: TypeAlias = dict[str, list[str]]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Spied:
    """By the kind of the process: what it had imported, in this order, when the pool had run a task and was stopped."""
    folder = tmp_path_factory.mktemp("spy")
    log, spy = folder / "log", folder / "spy"
    spy.write_text(SPY.format(python=sys.executable, log=str(log)))
    spy.chmod(0o700)
    done = programs.run_source(
        f"""
        from mpworker import ProcessWorker
        with ProcessWorker(2, python={str(spy)!r}) as pool:
            print(pool.submit(abs, -1).result())
        """,
        folder,
    )
    assert done.stdout == "1\n"
    found: Spied = {"supervisor": [], "nursery": [], "child": []}
    for line in log.read_text().splitlines():
        who, _, event, *what = line.split()
        if event in ("import", "os.fork", "os.posix_spawn"):
            found[who].append(what[0] if event == "import" else event)
    assert "mpworker.supervisor.loop" in found["supervisor"]
    assert "mpworker.child.main" in found["nursery"]
    return found


def test_what_the_supervisor_loads(imported: Spied) -> None:
    assert OF_SUPERVISOR.isdisjoint(imported["supervisor"])


def test_what_the_nursery_loads_before_it_has_forked(imported: Spied) -> None:
    done = imported["nursery"]
    assert OF_NURSERY.isdisjoint(done[: done.index("os.fork")])


def test_a_later_child_finds_what_cloudpickle_needs_imported(tmp_path: Path) -> None:
    log, spy = tmp_path / "log", tmp_path / "spy"
    spy.write_text(SPY.format(python=sys.executable, log=str(log)))
    spy.chmod(0o700)
    done = programs.run_source(
        f"""
        import os
        from mpworker import ProcessWorker
        with ProcessWorker(1, python={str(spy)!r}) as pool:
            first = pool.submit(lambda: os.getpid()).result()
            while not any(line.startswith("nursery") and "import uuid" in line for line in open({str(log)!r})):
                pass
            pool.submit(os._exit, 1).exception()
            print(first, pool.submit(lambda: os.getpid()).result())
        """,
        tmp_path,
    )
    first, second = done.stdout.split()
    found: Spied = {first: [], second: []}
    for line in log.read_text().splitlines():
        _, pid, event, *what = line.split()
        if event == "import" and pid in found:
            found[pid].append(what[0])
    assert {"cloudpickle", "dataclasses", "uuid"} <= {*found[first]}
    assert {*found[second]} == {"cloudpickle", "cloudpickle.cloudpickle"}


def test_a_child_loads_nothing_for_a_first_task(imported: Spied) -> None:
    assert imported["child"] == []


def test_the_first_nursery_is_started_together_with_the_supervisor() -> None:
    with ProcessWorker(n=1) as pool:
        pids = pool.processes()
        assert Path(f"/proc/{pids['supervisor']}/cmdline").read_text().split("\0")[5] == str(pids["nursery"])


def test_on_another_interpreter_it_is_started_before_the_supervisor_has_loaded_itself(imported: Spied) -> None:
    done = imported["supervisor"]
    assert done.index("os.posix_spawn") < done.index("mpworker.supervisor.standing")
    before = done[: done.index("os.posix_spawn")]
    assert {name for name in before if not name.startswith("mpworker")} <= {"_socket", "gc"}  # built in, both of them


def test_what_the_client_loads(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import sys
        from mpworker import ProcessWorker
        print(*sys.modules)
        with ProcessWorker(n=1) as pool:
            pool.submit(abs, -1).result()
            print(*sys.modules)
        print(*sys.modules)
        """,
        tmp_path,
    )
    imported, started, stopped = (set(line.split()) for line in done.stdout.splitlines())
    assert {"mpworker.starting", "mpworker.worker"} <= imported
    assert WHILE_PROCESSES_COME_UP.isdisjoint(imported)
    assert "mpworker.client" in started
    assert OF_CLIENT.isdisjoint(stopped)


@pytest.mark.parametrize("before", ["", "import concurrent.futures"])
def test_a_worker_is_an_executor_whichever_is_imported_first(before: str, tmp_path: Path) -> None:
    done = programs.run_source(
        f"""
        {before}
        from mpworker import ProcessWorker
        class Mine(ProcessWorker):
            pass
        with Mine(n=1) as pool:
            from concurrent.futures import Executor
            print(isinstance(pool, Executor), isinstance(pool.options(retries=1), Executor))
            print(issubclass(ProcessWorker, Executor), issubclass(Mine, Executor))
        """,
        tmp_path,
    )
    assert done.stdout.split() == ["True"] * 4


def test_the_class_is_an_executor_at_once_where_those_are_known(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        from concurrent.futures import Executor
        from mpworker import ProcessWorker
        print(issubclass(ProcessWorker, Executor))
        """,
        tmp_path,
    )
    assert done.stdout == "True\n"


def test_a_pool_that_fails_when_its_processes_are_on_their_way_leaves_none(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import os, threading
        from mpworker import ProcessWorker
        from mpworker.errors import SerializationError
        before = os.listdir("/proc/self/fd")
        try:
            ProcessWorker(n=1, initializer=print, initargs=[threading.Lock()])
        except SerializationError:
            print(before == os.listdir("/proc/self/fd"))
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("none")
        """,
        tmp_path,
    )
    assert done.stdout.split() == ["True", "none"]


@pytest.mark.parametrize("switch", ["enable", "disable"])
def test_no_collection_while_the_client_is_loaded_and_the_collector_is_afterwards_as_it_was(
    switch: str, tmp_path: Path
) -> None:
    done = programs.run_source(
        f"""
        import gc, sys
        from mpworker import uncollected
        open("looks.py", "w").write("import gc; print(gc.isenabled())")
        uncollected.load("looks")
        gc.{switch}()
        found = []
        gc.callbacks.append(lambda phase, _: found.append(phase))
        from mpworker import ProcessWorker
        print(len(found), gc.isenabled())
        with ProcessWorker(n=1) as pool:
            pool.submit(abs, -1).result()
        print(gc.isenabled())
        """,
        tmp_path,
    )
    after = str(switch == "enable")
    assert done.stdout.split() == ["False", "0", after, after]


def test_who_is_interrupted_while_the_client_is_loaded_has_the_collector_as_it_was() -> None:
    def collects() -> None:
        assert gc.isenabled()

    assert gc.isenabled()
    try:
        assert sweep(lambda: uncollected.load("mpworker.client"), collects, parts=("/mpworker/uncollected.py",)) > 2
    finally:
        gc.enable()


def test_the_supervisor_has_its_configuration_before_the_client_imports_logging(tmp_path: Path) -> None:
    done = programs.run_source(
        """
        import sys
        from mpworker import ProcessWorker
        from mpworker.ipc import frames
        send = frames.Frames.send
        def spy(*args):
            print("logging" in sys.modules)
            return send(*args)
        frames.Frames.send = spy
        with ProcessWorker(n=1) as pool:
            print(pool.submit(abs, -1).result())
        """,
        tmp_path,
    )
    assert done.stdout.split() == ["False", "1"]
