"""What the tests of the pool in an event loop run in, and wait with."""

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from pooljobs import Gate

from mpworker import AsyncProcessWorker
from mpworker.loopclient import LoopClient

GUARD = 60.0  # seconds; only a bound for what would hang


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it, with no thread beside this one at its end, and nothing said to the loop's exception handler."""
    said: list[dict[str, Any]] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with asyncio.timeout(GUARD):
            await main()
        gc.collect()  # what nobody asked for is told of when it is freed

    threads = threading.active_count()
    asyncio.run(guarded())
    assert threading.active_count() == threads
    assert not said


async def until(condition: Callable[[], object]) -> None:
    """Let the loop go round until something is so."""
    while not condition():
        await asyncio.sleep(0)


async def begun(gate: Gate) -> None:
    """Wait until one more task is in `hold`."""
    await until(gate.begun)
    gate.wait_begun()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def client_of(w: AsyncProcessWorker) -> LoopClient:
    return w._client
