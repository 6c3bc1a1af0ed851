"""A service: takes jobs over a socket on 127.0.0.1, runs them on all cores, and stops well when it is told to.

    python examples/service.py --port 7070
    printf '{"id": 1, "below": 1000}\n{"id": 2, "below": 2000000}\n' | nc -q 60 127.0.0.1 7070

A job is a line of JSON, and so is its answer: ``{"id": 1, "result": 168}``, or ``{"id": 2, "error": "TaskTimeout"}``.
Answers come as jobs end, so a client tells them apart by the id, which is its own.

What a service needs, and where it is here:

- **Back-pressure**: a connection has at most `JOBS_MAX` jobs in work; while it has, its next line is not read.
- **A bad job hurts nobody else**: it has a time limit, and one that kills its process is tried once more.
- **Its log holds no payload**: task ids, types of errors and seconds.
- **SIGTERM or Ctrl-C** stops it: nothing more is read, what was read is finished and answered, for at most ``--grace``
  seconds; what is left then is cancelled, and answered so. The exit code is 0 if all was finished.
- **A pool that cannot go on** ends the service with exit code 1, for its supervisor (systemd, say) to start it anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from typing import Any

from mpworker import ProcessWorker
from mpworker.errors import StartFailed, SupervisorLost

JOBS_MAX = 100
JOB_SECONDS = 30.0
GRACE_SECONDS = 20.0

log = logging.getLogger("service")


def count_primes(below: int) -> int:
    """The work: how many primes there are below a number."""
    sieve = bytearray([1]) * max(below, 2)
    sieve[:2] = b"\0\0"
    for n in range(2, int(below**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, len(sieve), n)))
    return sum(sieve)


class Service:
    """What all connections share."""

    def __init__(self, worker: ProcessWorker) -> None:
        self.worker = worker
        self.over = asyncio.Event()
        self.broken = False
        self.connections: set[asyncio.Task[None]] = set()
        self.reading: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        self.reading.add(task)
        jobs: set[asyncio.Task[None]] = set()
        room = asyncio.Semaphore(JOBS_MAX)
        try:
            while line := await reader.readline():
                await room.acquire()
                job = asyncio.create_task(self.run(line, writer))
                jobs.add(job)
                job.add_done_callback(jobs.discard)
                job.add_done_callback(lambda _: room.release())
        except (asyncio.CancelledError, ConnectionError, ValueError) as end:  # told to stop; gone; a line too long
            log.info("a connection is read no further: %s", type(end).__name__)
        self.reading.discard(task)
        await asyncio.gather(*jobs)
        writer.close()
        self.connections.discard(task)

    async def run(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        """Run one job and answer it."""
        answer: dict[str, Any] = {"id": None}
        began = time.monotonic()
        task_id = "no task"
        try:
            job = json.loads(line)
            answer["id"] = job["id"]
            future = self.worker.submit(count_primes, job["below"])
            task_id = future.task_id
            answer["result"] = await asyncio.wrap_future(future)
        except (StartFailed, SupervisorLost) as error:
            answer["error"] = type(error).__name__
            log.error("the pool cannot go on: %s", type(error).__name__)
            self.broken = True
            self.over.set()
        except (asyncio.CancelledError, Exception) as error:  # noqa: BLE001  # a job may raise anything
            answer["error"] = type(error).__name__
        seconds = time.monotonic() - began
        log.info("%s: %s after %.3f s", task_id, answer.get("error", "done"), seconds)
        try:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            log.info("%s: nobody waits for it any more", task_id)


async def serve(port: int, n: int | None, grace: float) -> bool:
    """Serve until told to stop; True if everything was finished."""
    worker = ProcessWorker(n, timeout=JOB_SECONDS, crash_retries=1)
    service = Service(worker)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.over.set)
    server = await asyncio.start_server(service.connected, "127.0.0.1", port)
    log.info("listening on 127.0.0.1:%d", server.sockets[0].getsockname()[1])
    await service.over.wait()

    log.info("stopping")
    server.close()
    for connection in list(service.reading):
        connection.cancel()
    # Not in this thread: it has the answers to send.
    finished = await asyncio.to_thread(worker.stop_graceful, grace)
    await asyncio.gather(*service.connections)
    log.info("stopped: %s", "everything was finished" if finished else "not everything was finished")
    return finished and not service.broken


def main() -> None:
    """Run the service."""
    parser = argparse.ArgumentParser(description="Count primes for others.")
    parser.add_argument("--port", type=int, default=7070, help="0 for any that is free")
    parser.add_argument("-n", type=int, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS, help="seconds for what is in work at the end")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    sys.exit(0 if asyncio.run(serve(options.port, options.n, options.grace)) else 1)


if __name__ == "__main__":
    main()
