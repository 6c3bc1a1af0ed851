"""The units under a real systemd: they are installed here, so it must be one that nobody needs afterwards.

MPWORKER_SYSTEMD_TESTS=1 says that this machine is such a one. The package is copied to where the service's user, who
exists only while it runs, can read it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaks import wait_until

import mpworker
from mpworker.service import units

GUARD = 60.0
UNIT = "mpworker.service"
SOCKET = "/run/mpworker/mpworker.sock"
CONFIG = "n = 2\nstop_timeout = 2.0\n[clients]\nuids = [0]\nsteering_uids = [0]\n"
HOME = Path("/opt/mpworker-test")
NEEDED = ("click", "rich", "cloudpickle", "psutil", "markdown_it", "mdurl", "pygments")
PYTHON = f"/usr/bin/python3.{sys.version_info[1]}"


def _why_not() -> str:
    if os.environ.get("MPWORKER_SYSTEMD_TESTS") != "1":
        return "MPWORKER_SYSTEMD_TESTS=1 does not say that units may be installed on this machine"
    if os.getuid():
        return "only root installs units"
    if not os.path.isdir("/run/systemd/system"):
        return "no systemd runs here"
    if not os.path.exists(PYTHON):
        return f"there is no {PYTHON} that a service's user could run"
    return ""


pytestmark = [pytest.mark.systemd, pytest.mark.skipif(bool(_why_not()), reason=_why_not())]


def systemctl(*words: str, check: bool = True) -> str:
    return subprocess.run(
        ["systemctl", *words], check=check, capture_output=True, text=True, timeout=GUARD
    ).stdout.strip()


def shown(name: str, unit: str = UNIT) -> str:
    return systemctl("show", "-p", name, "--value", unit)


def journal() -> str:
    return subprocess.run(
        ["journalctl", "--no-pager", "-o", "cat", "-u", UNIT], check=True, capture_output=True, text=True, timeout=GUARD
    ).stdout


@pytest.fixture(scope="module")
def installed() -> Iterator[None]:
    """The units, with what differs on such a machine: where the package is, and what a container refuses."""
    packages = Path(sysconfig.get_path("purelib"))
    package = Path(mpworker.__file__).parent
    for source in (package, *(packages / name for name in NEEDED)):
        shutil.copytree(source, HOME / source.name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    subprocess.run(["chmod", "-R", "a+rX", str(HOME)], check=True)
    folder = Path(units.FOLDER)
    units.install(str(folder))
    for name in units.units():
        file = folder / name
        file.write_text(file.read_text().replace(sys.executable, PYTHON))
    dropin = folder / f"{UNIT}.d"
    dropin.mkdir(exist_ok=True)
    (dropin / "test.conf").write_text(
        f"[Service]\nEnvironment=PYTHONPATH={HOME}\nPrivateDevices=no\nWatchdogSec=2\nRestartSec=0.1\n"
    )
    Path("/etc/mpworker").mkdir(exist_ok=True)
    Path("/etc/mpworker/mpworker.toml").write_text(CONFIG)
    systemctl("daemon-reload")
    yield
    systemctl("stop", "mpworker.socket", UNIT, check=False)


@pytest.fixture
def running(installed: None) -> Iterator[int]:
    """The service, started; its process."""
    systemctl("reset-failed", UNIT, check=False)
    systemctl("start", UNIT)
    yield int(shown("MainPID"))
    systemctl("stop", "mpworker.socket", UNIT, check=False)


def processes() -> list[int]:
    """All of the service's."""
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
        with contextlib.suppress(OSError):
            return [int(each) for each in Path(f"{root}/system.slice/{UNIT}/cgroup.procs").read_text().split()]
    return []


def test_it_is_started_when_its_first_child_has_answered_and_says_what_it_does(running: int) -> None:
    assert shown("ActiveState") == "active"
    with mpworker.connect(SOCKET) as w:
        assert w.submit(pow, 2, 10).result(GUARD) == 1024
        assert w.processes()["supervisor"] == running
        wait_until(lambda: shown("StatusText").startswith("1 clients, 0 tasks, 2 of 2 children"), GUARD)
        assert w.submit(os.getuid).result(GUARD) != 0, "its user exists only while it runs"
    assert '"event":"serving"' in journal()


def test_it_stops_in_time_with_tasks_that_run_and_leaves_nothing(running: int) -> None:
    w = mpworker.connect(SOCKET)
    future = w.submit(time.sleep, 600)
    wait_until(future.running, GUARD)
    begun = time.monotonic()
    systemctl("stop", UNIT)
    assert time.monotonic() - begun < 20.0
    with pytest.raises(mpworker.errors.TaskCancelled):
        future.result(GUARD)
    assert shown("Result") == "success"
    assert processes() == []
    assert not Path(SOCKET).exists()


def test_one_that_stands_still_is_killed_and_started_again(running: int) -> None:
    with mpworker.connect(SOCKET) as w:
        again = w.options(crash_retries=1)  # for what runs then, or is not told of yet
        ran = again.submit(time.sleep, 0.5)
        waiting = [again.submit(pow, 2, number) for number in range(100)]
        wait_until(ran.running, GUARD)
        os.kill(running, signal.SIGSTOP)
        assert [future.result(GUARD) for future in waiting] == [2**number for number in range(100)], "nothing is lost"
        assert ran.result(GUARD) is None
        assert w.processes()["supervisor"] not in (0, running)
    assert int(shown("NRestarts")) >= 1


def test_a_reload_is_in_force_or_refused(running: int) -> None:
    config = Path("/etc/mpworker/mpworker.toml")
    config.write_text(CONFIG.replace("n = 2", "n = 3"))
    systemctl("reload", UNIT)
    assert wait_until(lambda: shown("ActiveState") == "active", GUARD), "and not reloading"
    with mpworker.connect(SOCKET) as w:
        assert wait_until(lambda: len(w.processes()["children"]) == 3, GUARD)
    config.write_text("n = 0\n")
    systemctl("reload", UNIT)
    said = ["journalctl", "-u", UNIT, "-o", "cat"]
    assert wait_until(lambda: b"reload_refused" in subprocess.run(said, capture_output=True, check=True).stdout, GUARD)
    assert wait_until(lambda: shown("ActiveState") == "active", GUARD)
    assert int(shown("MainPID")) == running
    config.write_text(CONFIG)


def test_one_that_is_killed_is_started_again(running: int) -> None:
    os.kill(running, signal.SIGKILL)
    wait_until(lambda: int(shown("MainPID") or 0) not in (0, running) and shown("ActiveState") == "active", GUARD)
    with mpworker.connect(SOCKET) as w:
        assert w.submit(pow, 2, 3).result(GUARD) == 8


def test_the_first_program_that_attaches_has_it_started(installed: None) -> None:
    systemctl("stop", UNIT, check=False)
    systemctl("start", "mpworker.socket")
    try:
        assert shown("ActiveState") == "inactive"
        with mpworker.connect(SOCKET) as w:
            assert w.submit(pow, 2, 5).result(GUARD) == 32
        assert shown("ActiveState") == "active"
    finally:
        systemctl("stop", "mpworker.socket", UNIT, check=False)


def test_a_wrong_configuration_is_tried_once(installed: None) -> None:
    Path("/etc/mpworker/mpworker.toml").write_text("n = 0\n")
    try:
        assert subprocess.run(["systemctl", "start", UNIT], capture_output=True, check=False, timeout=GUARD).returncode
        wait_until(lambda: shown("ActiveState") == "failed", GUARD)
        assert (shown("ExecMainStatus"), shown("NRestarts")) == ("78", "0")
        assert "n must be at least 1, not 0" in journal()
    finally:
        Path("/etc/mpworker/mpworker.toml").write_text(CONFIG)


def test_it_can_do_no_more_than_it_needs(installed: None) -> None:
    said = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", UNIT], check=True, capture_output=True, text=True, timeout=GUARD
    ).stdout
    level = float(said.rpartition("exposure level for")[2].split()[1].strip(":"))
    assert level <= 3.0
