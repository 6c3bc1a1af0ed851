"""A supervisor as a service, as the tests have it: `mpworker serve` in a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mpworker
from mpworker import ConnectedWorker

GUARD = 60.0
TESTS = str(Path(__file__).parent)


class Service:
    """One that runs.

    Args:
        folder: For its socket, its configuration and its log.
        config: Its configuration, in TOML.
        arguments: More of the command line.
    """

    def __init__(self, folder: Path, config: str = "", *arguments: str) -> None:
        self.socket = str(folder / "pool.sock")
        self.log = folder / "log"
        self.config = folder / "mpworker.toml"
        self.config.write_text(config)
        self.process = self.start(*arguments)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start it, and again after its end."""
        command = [sys.executable, "-m", "mpworker.cli", "serve", "--config", str(self.config), "--socket", self.socket]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": TESTS, **environment},
            )
        return self.process

    def connect(self, **options: Any) -> ConnectedWorker:
        return mpworker.connect(self.socket, connect_timeout=GUARD, **options)

    def records(self, event: str = "") -> list[dict[str, Any]]:
        """What it has logged, of one kind or of all."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if event in ("", line["event"])]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Until it has logged that so often."""
        give_up_at = time.monotonic() + GUARD
        while len(found := self.records(event)) < count:
            assert time.monotonic() < give_up_at, f"no {event} in the log:\n{self.log.read_text()}"
            time.sleep(0.01)
        return found

    def ended(self, timeout: float = GUARD) -> int:
        """The exit code, once it has ended."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            assert select.select([pidfd], [], [], timeout)[0], "it goes on"
        finally:
            os.close(pidfd)
        return self.process.wait()

    def stop(self) -> int:
        """Have it stop, and wait for that."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def replace(self) -> None:
        """Kill it, and start the next one."""
        self.kill()
        self.start()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def serving(folder: Path, config: str = "", *arguments: str) -> Iterator[Service]:
    """A service, until the end of the block."""
    service = Service(folder, config, *arguments)
    try:
        yield service
    finally:
        service.close()
