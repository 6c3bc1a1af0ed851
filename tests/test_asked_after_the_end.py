"""What is asked of a worker after its end is refused, but for what is documented to be empty then."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from concurrently import eventually

from mpworker import AsyncProcessWorker, ProcessWorker, Task
from mpworker.errors import SupervisorLost, WorkerStopped

GUARD = 60.0
VERBS: dict[str, Callable[[Any], Any]] = {
    "get_task": lambda w: w.get_task("mine"),
    "cancel_task": lambda w: w.cancel_task("other"),
    "cancel_all": lambda w: w.cancel_all(),
    "retry_task": lambda w: w.retry_task("mine"),
    "pause": lambda w: w.pause(),
    "drain": lambda w: w.drain(),
    "resume": lambda w: w.resume("default"),
}


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_after_a_stop(verb: str, debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        future = w.register_task(Task(abs, (-1,), id="mine"))
    with pytest.raises(WorkerStopped):
        VERBS[verb](w)
    assert future.result() == 1
    assert not w.cancel_task(future.task_id), "of this one it is known here"
    assert (w.queues(), w.processes(), w.get_tasks(), w.metrics().accepted) == ({}, {}, [], 0)


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_after_the_supervisor_is_lost(verb: str, seen: bool) -> None:
    w = ProcessWorker(n=1)
    future = w.submit(os.getpid)
    future.result(GUARD)
    os.kill(w.processes()["supervisor"], signal.SIGKILL)
    if seen:
        eventually(lambda: w.processes() == {})
    with pytest.raises(SupervisorLost):
        VERBS[verb](w)


@pytest.mark.parametrize("verb", VERBS)
def test_in_an_event_loop(verb: str) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            await (await w.register_task(Task(abs, (-1,), id="mine")))
        with pytest.raises(WorkerStopped):
            await VERBS[verb](w)
        lost = AsyncProcessWorker(n=1)
        os.kill((await lost.processes())["supervisor"], signal.SIGKILL)
        with pytest.raises(SupervisorLost):
            await VERBS[verb](lost)

    asyncio.run(main())


def test_what_drains_can_still_be_asked(tmp_path: Any) -> None:
    with ProcessWorker(n=1) as w:
        later = w.register_task(Task(abs, (-1,), id="later", run_at=3600.0))
        assert not w.stop_graceful(wait=False)
        assert w.get_task("later").status.value == "scheduled"
        assert w.cancel_all() == 1
        assert later.cancelled()
