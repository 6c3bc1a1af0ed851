"""Starts that fail, and stops in the middle of a start: one clear error, nothing printed, nothing left behind."""

import errno
import json
import os
import random
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import programs
import pytest
from leaks import alive, wait_until
from test_loop import made

import mpworker
from mpworker import ProcessWorker, launch
from mpworker.client import Client
from mpworker.errors import ConfigurationError, StartFailed, SupervisorLost
from mpworker.ipc import _native, codec, frames
from mpworker.ipc.codec import Record
from mpworker.observing import Observing
from mpworker.options import WorkerOptions
from mpworker.starting import Start
from mpworker.supervisor import children
from mpworker.supervisor.nursing import _START_FAILURES_MAX

LIMIT = 60.0  # seconds: a guard against a hang, never a measure


def until(condition: Callable[[], object], what: str) -> None:
    assert wait_until(lambda: bool(condition()), LIMIT), f"not within {LIMIT} s: {what}"


def ready(w: ProcessWorker) -> list[int]:
    return [child["pid"] for child in w.processes()["children"] if child["ready"]]


def whole(w: ProcessWorker, n: int) -> list[int]:
    """The children's pids, once all of them are ready."""
    until(lambda: len(ready(w)) == n, f"{n} children are ready")
    return ready(w)


# ------------------------------------------------------------ nothing is printed

STOPPED_WHILE_IT_STARTS = """
import os, signal, sys, time
from mpworker import ProcessWorker

how, *moments = sys.argv[1:]
for number, moment in enumerate(moments):
    w = ProcessWorker(n=2, preload=["nosuch"] if number % 2 else [])
    stop_at = time.monotonic() + float(moment)
    while time.monotonic() < stop_at:
        pass
    if how == "lost":
        os.kill(w._client.supervisor.pid, signal.SIGKILL)
    getattr(w, "stop_graceful" if how == "stop_graceful" else "stop_now")()
"""


@pytest.mark.parametrize("how", ["stop_now", "stop_graceful", "lost"])
def test_a_stop_at_any_moment_of_the_start_prints_nothing(tmp_path: Path, how: str) -> None:
    script = programs.write(tmp_path / "script.py", STOPPED_WHILE_IT_STARTS)
    moments = [f"{random.uniform(0.0, 0.3):.4f}" for _ in range(40)]  # seconds: until after it is up
    done = programs.run("-W", "error", script, how, *moments)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    "source",
    [
        """
        from mpworker import ProcessWorker
        from mpworker.errors import StartFailed
        w = ProcessWorker(n=1, preload=["nosuch"])
        try:
            w.submit(abs, -1).result()
        except StartFailed:
            print("told")
        """,
        """
        import os
        from mpworker import ProcessWorker
        with ProcessWorker(n=1) as w:
            w.submit(abs, -1).result()
            if os.fork():
                os.wait()
                print("told")
        """,
    ],
    ids=["preload", "fork"],
)
def test_a_program_whose_warnings_are_errors_sees_none(tmp_path: Path, source: str) -> None:
    done = programs.run_source(source, tmp_path, "-W", "error")
    assert (done.stdout, done.stderr) == ("told\n", "")


def test_what_a_preload_prints_is_printed_once(tmp_path: Path) -> None:
    (tmp_path / "printing_preload.py").write_text("print('imported')")
    script = programs.write(
        tmp_path / "script.py",
        """
        from mpworker import ProcessWorker
        with ProcessWorker(n=2, preload=["printing_preload"]) as w:
            while [child["ready"] for child in w.processes()["children"]] != [True, True]:
                pass
        """,
    )
    done = programs.run(script, cwd=tmp_path, env=programs.environment(PYTHONUNBUFFERED=None))
    assert done.stdout == "imported\n"


# ------------------------------------------------------------ too few descriptors

LIMITED = """
import errno, os, resource, signal, sys
from mpworker import ProcessWorker, launch
from mpworker.errors import StartFailed

n, limit = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
if len(sys.argv) > 3:
    launch._descriptors = lambda *_: 0
try:
    w = ProcessWorker(n=n)
except OSError as error:
    assert error.errno == errno.EMFILE, error
    assert f"RLIMIT_NOFILE allows {limit}" in str(error), error
    print("refused")
    sys.exit()


def whole(but=()):
    while True:
        found = {child["pid"] for child in w.processes()["children"] if child["ready"]}
        if len(found) == n and not found & {*but}:
            return found


try:
    assert w.submit(abs, -3).result() == 3
except StartFailed as error:
    assert f"RLIMIT_NOFILE allows {limit}" in str(error), error
    print("failed")
    sys.exit()
victim = min(whole())
os.kill(victim, signal.SIGKILL)  # while all that the others need is there
before = whole([victim])
os.kill(w.processes()["nursery"], signal.SIGKILL)
whole(before)
assert w.submit(abs, -3).result() == 3
assert w.stop_graceful()
print("works")
"""


def limited(folder: Path, *arguments: int) -> str:
    done = programs.run(programs.write(folder / "script.py", LIMITED), *map(str, arguments))
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.parametrize("n", [1, 3])
def test_at_any_limit_of_descriptors_a_pool_works_or_is_refused(tmp_path: Path, n: int) -> None:
    found = [limited(tmp_path, n, limit) for limit in range(10, 41)]
    refused = found.count("refused")
    assert found == ["refused"] * refused + ["works"] * (31 - refused)
    assert 0 < refused < 31


def test_no_pool_is_refused_that_could_work(tmp_path: Path) -> None:
    needed = launch._FDS_OWN + launch._FDS_TO_MAKE_A_CHILD
    assert limited(tmp_path, 1, needed, 1) == "works"
    assert limited(tmp_path, 1, needed - 1, 1) == "failed"


def test_the_supervisor_raises_a_soft_limit_for_itself_alone(tmp_path: Path) -> None:
    script = programs.write(
        tmp_path / "script.py",
        """
        import resource
        from mpworker import ProcessWorker
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, hard))
        with ProcessWorker(n=8) as w:
            while [child["ready"] for child in w.processes()["children"]] != [True] * 8:
                pass
            assert w.submit(resource.getrlimit, resource.RLIMIT_NOFILE).result() == (24, hard)
            print("fine")
        """,
    )
    assert programs.run(script).stdout == "fine\n"


@contextmanager
def few_descriptors(pid: int, count: int) -> Iterator[None]:
    """Let a process open nothing with a number of `count` or above."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it has ended of it
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("who", ["supervisor", "nursery"])
def test_a_child_that_cannot_be_replaced_for_want_of_descriptors_is_tried_again(who: str) -> None:
    with ProcessWorker(n=2) as w:
        first, second = whole(w, 2)
        nursery = w.processes()["nursery"]
        with few_descriptors(w.processes()[who], 4):
            os.kill(first, signal.SIGKILL)
            until(lambda: ready(w) == [second], "one is left")
            assert [w.submit(abs, -number).result(LIMIT) for number in range(100)] == list(range(100))
        assert second in whole(w, 2)
        assert w.processes()["nursery"] == nursery


def patch_fork(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """A module to preload that replaces os.fork; its body knows `real` and `folder`."""
    monkeypatch.syspath_prepend(folder)
    lines = [
        "import os, errno",
        f"folder = {str(folder)!r}",
        "def fork(real=os.fork):",
        *body.splitlines(),
        "os.fork = fork",
    ]
    (folder / "patched_fork.py").write_text("\n".join(lines))
    return "patched_fork"


def test_a_child_that_cannot_be_watched_for_want_of_descriptors_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, forked = tmp_path / "gate", tmp_path / "forked"
    body = """\
    if os.path.exists(folder + "/gate"):
        with open(folder + "/gate") as gate:
            gate.read()
    pid = real()
    if pid:
        with open(folder + "/new", "w") as file:
            file.write(str(pid))
        os.rename(folder + "/new", folder + "/forked")
    return pid"""
    with ProcessWorker(n=2, preload=[patch_fork(tmp_path, monkeypatch, body)]) as w:
        first, second = whole(w, 2)
        nursery = w.processes()["nursery"]
        forked.unlink()
        os.mkfifo(gate)
        os.kill(first, signal.SIGKILL)
        opened = open(gate, "w")  # noqa: SIM115  # returns when the order has come to the nursery
        gate.unlink()
        with few_descriptors(w.processes()["supervisor"], 4):
            opened.close()  # it forks, and reports
            until(forked.exists, "the child is there")
            until(lambda: not Path(f"/proc/{forked.read_text()}").exists(), "it is killed, for nobody can watch it")
            assert [w.submit(abs, -number).result(LIMIT) for number in range(100)] == list(range(100))
        assert second in whole(w, 2)
        assert w.processes()["nursery"] == nursery


def test_a_nursery_that_cannot_be_replaced_for_want_of_descriptors_is_tried_again_and_then_told() -> None:
    with ProcessWorker(n=2) as w:
        whole(w, 2)
        processes = w.processes()
        with few_descriptors(processes["supervisor"], 4):
            os.kill(processes["nursery"], signal.SIGKILL)
            with pytest.raises(StartFailed, match=r"Errno 24.*RLIMIT_NOFILE allows 4 ") as told:  # noqa: PT012
                while True:
                    w.options(crash_retries=99).submit(abs, -1).result(LIMIT)
        assert f"{_START_FAILURES_MAX} starts in a row" in str(told.value)


# ------------------------------------------------------------ nothing left of something else


def test_a_fork_that_is_refused_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """\
    if os.path.exists(folder + "/refuse"):
        with open(folder + "/refused", "w"):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real()"""
    with ProcessWorker(n=2, preload=[patch_fork(tmp_path, monkeypatch, body)]) as w:
        first, second = whole(w, 2)
        (tmp_path / "refuse").touch()
        os.kill(first, signal.SIGKILL)
        until((tmp_path / "refused").exists, "a fork is refused")
        assert [w.submit(abs, -number).result(LIMIT) for number in range(100)] == list(range(100))
        (tmp_path / "refuse").unlink()
        assert second in whole(w, 2)
        (tmp_path / "refuse").touch()
        for pid in whole(w, 2):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(StartFailed, match=r"fork failed.*RLIMIT_NPROC"):  # noqa: PT012
            while True:
                w.options(crash_retries=99).submit(abs, -1).result(LIMIT)


def test_a_child_that_can_have_no_thread_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_thread.py").write_text(
        "import errno, os\n"
        "from mpworker.child import main\n"
        "class Claims:\n"
        "    def start_heartbeat(self, interval):\n"
        "        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "main.run = lambda channel, claims, *rest, run=main.run: run(channel, Claims(), *rest)\n"
    )
    with ProcessWorker(n=1, preload=["no_thread"]) as w, pytest.raises(StartFailed, match=r"heartbeat.*RLIMIT_NPROC"):
        w.submit(abs, -1).result(LIMIT)
    assert capfd.readouterr().err == ""


def refusal(number: int) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("call", "number", "says"),
    [
        ("mpworker.ipc._native.start", errno.EAGAIN, "RLIMIT_NPROC"),
        ("os.pidfd_open", errno.EMFILE, "RLIMIT_NOFILE"),
        ("os.memfd_create", errno.ENFILE, "open files in system"),
        ("os.posix_fallocate", errno.ENOSPC, "space"),
        ("mmap.mmap", errno.ENOMEM, "memory"),
    ],
    ids=["process", "pidfd", "descriptor", "space", "memory"],
)
def test_what_the_constructor_cannot_have_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int, says: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(call, refusal(number))
        with pytest.raises(OSError, match=rf"no supervisor can be started: .*{says}") as told:
            ProcessWorker(n=1)
        assert told.value.errno == number
    with ProcessWorker(n=1) as w:  # and nothing is left: the check after each test looks
        assert w.submit(abs, -1).result() == 1


@pytest.mark.parametrize(
    ("call", "number", "says"),
    [
        (
            "spawning.posix.posix_spawn",
            errno.EAGAIN,
            "no process that forks the children can be started: .*RLIMIT_NPROC",
        ),
        (
            "spawning._socket.socketpair",
            errno.EMFILE,
            "no process that forks the children can be started: .*RLIMIT_NOFILE",
        ),
        ("make_channel", errno.ENOSPC, "no child can be made: No space"),
        ("Roll.take", errno.ENOMEM, "no child can be made: Cannot allocate"),
    ],
    ids=["process", "descriptor", "space", "memory"],
)
def test_what_the_supervisor_cannot_have_is_tried_again_and_then_told(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int, says: str
) -> None:
    monkeypatch.setattr(children, "kill_strays", lambda _: None)  # here they would be the test's own
    with made() as loop:
        sent: list[Record] = []
        ours, theirs = frames.pair()
        monkeypatch.setattr(f"{children.__name__}.{call}", refusal(number))
        monkeypatch.setattr(loop.world, "send", lambda *record: sent.append(record))
        for_a_nursery = not call.startswith(("make", "Roll"))
        if not for_a_nursery:
            loop.world.nursery, loop.world.nursery_ready = ours, True
        for failures in range(1, _START_FAILURES_MAX + 1):
            assert not sent
            if for_a_nursery:
                loop._start_nursery()
            else:
                loop._spawn_missing()
            assert loop._start_failures == failures
            assert loop.world.by_number == {}
            loop._spawn_at = None
        ours.close()
        theirs.close()
        assert [record[0] for record in sent] == [codec.BROKEN]
        assert re.search(says, json.loads(sent[0][5])["why"])


# ------------------------------------------------------------ python=


def executable(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize("text", ["exit 1", "exit 0", "exec cat /dev/null", "read word; exit 1"])
def test_a_python_that_is_none(tmp_path: Path, text: str) -> None:
    python = executable(tmp_path / "python", f"#!/bin/sh\n{text}\n")
    with pytest.raises(ConfigurationError, match=f"python='{python}' must be a Python .*ended"):  # noqa: PT012
        w = ProcessWorker(n=1, python=python)
        w.submit(abs, -1).result()
    with pytest.raises(ConfigurationError, match="must be a Python"):  # noqa: PT012
        w = ProcessWorker(n=1, python=python)
        list(w.map(abs, [-1]))


def test_a_python_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 99))
    match = r"must be a Python 3\.99.*it is a Python 3\.[0-9.]+$"
    with pytest.raises(ConfigurationError, match=match):  # noqa: PT012
        w = ProcessWorker(n=1)
        w.submit(abs, -1).result()
    assert capfd.readouterr().err == ""


def test_a_python_that_cannot_import_the_package(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(mpworker, "__file__", str(tmp_path / "mpworker" / "__init__.py"))
    match = "ModuleNotFoundError: No module named 'mpworker'"
    with pytest.raises(ConfigurationError, match=match):  # noqa: PT012
        w = ProcessWorker(n=1)
        future = w.submit(abs, -1)
        assert not w.stop_graceful()
        future.result()
    assert capfd.readouterr().err == ""


def test_a_python_that_lacks_what_the_package_needs_finds_it_on_the_path_of_the_program() -> None:
    with ProcessWorker(n=1, python=getattr(sys, "_base_executable", None)) as w:
        assert w.submit(lambda: 3).result() == 3


def test_a_supervisor_that_is_killed_before_it_serves_is_lost() -> None:
    w = ProcessWorker(n=1)
    os.kill(w._client.supervisor.pid, signal.SIGKILL)
    with pytest.raises(SupervisorLost):
        w.submit(abs, -1).result()


def test_a_supervisor_that_cannot_have_what_it_needs_says_so(tmp_path: Path) -> None:
    python = executable(tmp_path / "python", f'#!/bin/sh\nulimit -n 9\nexec {sys.executable} "$@"\n')
    match = r"a supervisor cannot start.*RLIMIT_NOFILE allows 9 "
    with pytest.raises(StartFailed, match=match):  # noqa: PT012
        w = ProcessWorker(n=1, python=python)
        w.submit(abs, -1).result()


@pytest.mark.parametrize(
    ("word", "error"), [(codec.CANNOT, StartFailed), (codec.CANNOT_IMPORT, ConfigurationError)], ids=["have", "import"]
)
def test_a_supervisor_that_is_dead_before_it_is_sent_anything_is_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: bytes, error: type[Exception]
) -> None:
    python = executable(tmp_path / "python", f"#!/bin/sh\nprintf %s '{word.decode()}why not' >&3\n")

    def start_and_wait(*arguments: Any, real: Callable[..., int] = _native.start) -> int:
        pid = real(*arguments)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return pid

    monkeypatch.setattr(_native, "start", start_and_wait)
    with pytest.raises(error, match=r"why not$"):
        ProcessWorker(n=1, python=python)


def test_a_supervisor_whose_client_is_not_made_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on its way when the client is loaded, which Ctrl-C may break off. The suite sees that nothing is left."""
    started: list[Start] = []

    def interrupted(_self: Client, _options: WorkerOptions, _observing: Observing, start: Start) -> None:
        started.append(start)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ProcessWorker(n=1)
    assert not alive(started[0].supervisor.pid)


def test_a_program_whose_children_are_reaped_at_once_is_told_why_there_is_no_pool(tmp_path: Path) -> None:
    source = """
        import os, signal
        from mpworker import ProcessWorker
        from mpworker.errors import SerializationError
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        before = os.listdir("/proc/self/fd")
        for _ in range(2):
            try:
                ProcessWorker(n=1, initializer=print, initargs=(os.scandir("."),))
            except SerializationError:
                print("told")
        assert os.listdir("/proc/self/fd") == before
        """
    done = programs.run_source(source, tmp_path)
    assert (done.stdout, done.stderr) == ("told\n" * 2, "")


def test_a_signal_that_waits_until_the_processes_are_started_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """All signals wait while they are, which is most of the time that a constructor takes."""
    begin, pids = _native.start, []

    def start(*args: Any) -> None:
        pids.append(begin(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(_native, "start", start)
    with pytest.raises(KeyboardInterrupt):
        ProcessWorker(n=1)
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], os.WNOHANG)
