"""Compiles the drivers and models of this directory, each once a run, and runs them."""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from toolchain import FLAGS, HERE, IPC, run

Build = Callable[..., Path]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Build:
    """Returns the path of a compiled driver; the workers of one run share it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "drivers"
    shared.mkdir(exist_ok=True)

    def build(name: str, *flags: str, headers: Path = IPC, compiler: str = "cc") -> Path:
        key = hashlib.sha256(repr((name, flags, str(headers), compiler)).encode()).hexdigest()[:8]
        binary = shared / f"{name}-{key}"
        with open(f"{binary}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not binary.exists():
                done = run([compiler, f"-I{headers}", *FLAGS, *flags, HERE / f"{name}.c", "-o", f"{binary}.part"])
                assert done.returncode == 0, done.stderr
                os.rename(f"{binary}.part", binary)
        return binary

    return build


@pytest.fixture
def drive(build: Build) -> Run:
    """Compiles and runs a driver; its output and exit status."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: cc")

    def drive(
        name: str, *arguments: object, flags: Sequence[str] = (), headers: Path = IPC, timeout: float = 3000, **env: str
    ) -> subprocess.CompletedProcess[str]:
        command = [str(build(name, *flags, headers=headers)), *map(str, arguments)]
        # ThreadSanitizer of GCC 12 knows only some layouts of the address space.
        if "-fsanitize=thread" in flags and shutil.which("setarch"):
            command = ["setarch", platform.machine(), "-R", *command]
        return run(command, timeout=timeout, env={**os.environ, **env})

    return drive


@pytest.fixture(scope="session")
def install() -> Callable[..., None]:
    """Makes sure that tools are there, or skips the test with the reason."""

    def install(*tools: str) -> None:
        if any(shutil.which(tool) is None for tool in tools):
            done = run([HERE / "install-tools"], timeout=600)
            if done.returncode != 0:
                pytest.skip(f"{' and '.join(tools)}: {done.stderr.strip()[-200:] or 'cannot be installed'}")

    return install
