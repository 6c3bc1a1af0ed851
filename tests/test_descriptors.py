"""Who holds which descriptors: each process its own and no other, so that nobody who abuses his blocks another."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import jam_tasks
import leaks
import programs
import pytest
from leaks import alive, wait_until

from mpworker import ProcessWorker
from mpworker.errors import TaskCancelled, TaskTimeout

HERE = Path(__file__).parent
LIMIT = 60.0  # seconds: a guard against a hang, never a measure
LINGER = 10.0  # seconds: ten times what is promised, for a machine that is busy
KILLED_AFTER = 10.0  # seconds: a supervisor that does not answer a stop is killed then


def ready(w: ProcessWorker, n: int) -> list[int]:
    """The children's pids, once all of them are ready."""
    assert wait_until(lambda: [child["ready"] for child in w.processes()["children"]] == [True] * n, LIMIT)
    return [child["pid"] for child in w.processes()["children"]]


def holders(pids: Iterable[int]) -> dict[str, list[int]]:
    """For each pipe the processes that hold it, one entry for each descriptor. Standard streams do not count."""
    found = defaultdict(list)
    for pid in pids:
        targets = leaks.descriptor_targets(pid)
        streams = {targets.get(fd) for fd in (0, 1, 2)}
        for target in targets.values():
            if target.startswith("pipe:") and target not in streams:
                found[target].append(pid)
    return found


def unread(pipe: int) -> int:
    """How many bytes are in it."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


# ------------------------------------------------------------ who holds what


@pytest.mark.parametrize("kills", [0, 5])
def test_each_process_holds_its_own_descriptors_and_no_other(kills: int) -> None:
    before = leaks.descriptors(os.getpid())
    with ProcessWorker(n=2) as w:
        children = ready(w, 2)
        for _ in range(kills):
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda: not any(map(alive, children)), LIMIT)  # noqa: B023
            assert wait_until(lambda: not {*children} & {*ready(w, 2)}, LIMIT)  # noqa: B023
            children = ready(w, 2)
        supervisor, nursery = (w.processes()[name] for name in ("supervisor", "nursery"))
        ours = leaks.descriptors(os.getpid()) - before
        assert ours == Counter(
            memfd=1 + 2 + 1, pipe=2, socket=1, pidfd=1
        )  # two arenas, as everywhere, and the mapping of one
        held_by = holders([supervisor, nursery, *children, os.getpid()]).values()
        pairs = Counter(tuple(sorted(pids)) for pids in held_by if set(pids) != {os.getpid()})
        # Two bells for each pair of processes, and each side has one descriptor of either.
        assert pairs == {tuple(sorted((supervisor, peer))): 2 for peer in (os.getpid(), *children)}
        for pid, expected in (
            (supervisor, {"memfd": 2 + 2 + 1 + 2 * 2, "socket": 2, "pidfd": 3, "eventpoll": 1}),
            (nursery, {"memfd": 2, "socket": 1, "pidfd": 2}),
            *((child, {"memfd": 2 + 3}) for child in children),  # the third for its stack
        ):
            held = leaks.descriptors(pid)
            assert {kind: held[kind] for kind in ("memfd", "socket", "pidfd", "eventpoll") if held[kind]} == expected


def test_the_supervisor_takes_out_of_its_bell_what_is_written() -> None:
    with ProcessWorker(n=2) as w:
        ready(w, 2)
        supervisors = w._client.supervisor.channel.peer_bell
        pipes = w._client.supervisor.channel._pipes
        for _ in range(10_000):  # more than one read takes out
            supervisors.wake()
        assert wait_until(lambda: not any(map(unread, pipes)), LIMIT)


LIMITED = """
import gc, os, resource
from mpworker import ProcessWorker
from mpworker.errors import ConfigurationError

ProcessWorker(n=1).stop_now()  # everything is imported
gc.collect()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
before = os.listdir("/proc/self/fd")
highest = max(map(int, before))
for limit in range(highest, highest + 12):
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        ProcessWorker(n=1).stop_now()
    except (OSError, ConfigurationError) as error:
        print(type(error).__name__)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
    assert os.listdir("/proc/self/fd") == before, (limit, os.listdir("/proc/self/fd"))
"""


def test_a_start_without_descriptors_leaves_none_open(tmp_path: Path) -> None:
    failures = programs.run_source(LIMITED, tmp_path).stdout.split()
    assert failures.count("OSError") >= 8, failures  # one for each descriptor that a channel and a socket need


NO_PROC = """
import os, sys
from mpworker.ipc.channel import make_channel
before = os.listdir("/proc/self/fd")
root = os.open("/", os.O_PATH | os.O_CLOEXEC)
try:
    os.chroot(sys.argv[1])
except PermissionError:
    print("not permitted")
    sys.exit()
try:
    make_channel("test", (4096, 4096))
except OSError as error:
    print(error)
os.fchdir(root)
os.chroot(".")
os.close(root)
assert os.listdir("/proc/self/fd") == before
"""


def test_without_proc_there_is_one_clear_error(tmp_path: Path) -> None:
    said = programs.run("-c", NO_PROC, tmp_path).stdout.strip()
    if said == "not permitted":
        pytest.skip("chroot is not permitted here")
    assert said == "[Errno 2] mpworker needs /proc, which is not mounted here"


# ------------------------------------------------------------ a hostile child


@pytest.mark.parametrize("how", ["stop_now", "stop_graceful"])
def test_a_child_that_jams_its_descriptors_blocks_nobody(tmp_path: Path, how: str) -> None:
    with ProcessWorker(n=2, grace=0.2) as w:
        ready(w, 2)
        for name in ("first", "second"):
            guilty = w.options(timeout=1.0).submit(jam_tasks.jam_and_stay, tmp_path / name)
            assert wait_until((tmp_path / name).exists, LIMIT)
            assert [w.submit(abs, -value).result(LIMIT) for value in range(100)] == list(range(100))
            if name == "first":
                assert isinstance(guilty.exception(LIMIT), TaskTimeout)
        begun_at = time.monotonic()
        getattr(w, how)()
        assert time.monotonic() - begun_at < KILLED_AFTER
        with pytest.raises(TaskTimeout if how == "stop_graceful" else TaskCancelled):
            guilty.result(0)


# ------------------------------------------------------------ a hostile client

CLIENT = """
import signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import jam_tasks
from mpworker import ProcessWorker, launch
if sys.argv[3] == "what it sent":
    launch.close_all = lambda fds: None
folder = Path(sys.argv[2])
w = ProcessWorker(n=2)
running = w.submit(jam_tasks.wait_for, folder / "running", folder / "gate")
while not (folder / "running").exists():
    pass
report = w.processes()
channel = w._client.supervisor.channel
jam_tasks.jam(channel)
(folder / "gate").touch()  # the task ends, and the supervisor rings
while not channel.inbound.readable():
    pass
print(report["supervisor"], report["nursery"], *(child["pid"] for child in report["children"]), flush=True)
signal.pause()
"""


@pytest.mark.parametrize("kept", ["its own", "what it sent"])
def test_a_client_that_jams_its_descriptors_and_is_killed_leaves_nothing(tmp_path: Path, kept: str) -> None:
    command = [sys.executable, "-c", CLIENT, HERE, tmp_path, kept]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None
            pids = [int(word) for word in client.stdout.readline().split()]
            assert len(pids) == 4
        finally:
            client.kill()
        assert wait_until(lambda: not any(map(alive, pids)), LINGER), "something outlives its client"


LOST = """
import os, select, signal, sys
from mpworker import ProcessWorker
from mpworker.errors import SupervisorLost

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
w = ProcessWorker(n=1)
assert w.submit(abs, -1).result() == 1
supervisor = w._client.supervisor
stat = f"/proc/{supervisor.pid}/stat"
while open(stat).read().rpartition(")")[2].split()[0] != "S":
    pass
os.kill(supervisor.pid, signal.SIGKILL)
select.select([supervisor.pidfd], [], [])
try:
    w.submit(abs, -2).result()
except SupervisorLost:
    print("told")
"""


def test_a_client_that_does_not_ignore_sigpipe_survives_its_supervisor(tmp_path: Path) -> None:
    assert programs.run_source(LOST, tmp_path).stdout == "told\n"
