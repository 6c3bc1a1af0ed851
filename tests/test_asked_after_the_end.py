"""What is asked of a worker after its end is refused, but for what is documented to be empty then."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pooljobs
import pytest
from concurrently import eventually
from pooljobs import Gate

from mpworker import AsyncProcessWorker, ProcessWorker, Task
from mpworker.errors import StartFailed, SupervisorLost, WorkerStopped

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
# What is told of a stop, and not of a death.
LOOKS: dict[str, Callable[[Any], Any]] = {
    "metrics": lambda w: w.metrics(),
    "get_tasks": lambda w: w.get_tasks(),
    "queues": lambda w: w.queues(),
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
    assert (w.queues(), w.processes(), w.get_tasks()) == ({}, {}, [])


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("verb", VERBS | LOOKS)
def test_after_the_supervisor_is_lost(verb: str, seen: bool) -> None:
    w = ProcessWorker(n=1)
    future = w.submit(os.getpid)
    future.result(GUARD)
    os.kill(w.processes()["supervisor"], signal.SIGKILL)
    if seen:
        eventually(lambda: w.processes() == {})
    with pytest.raises(SupervisorLost):
        (VERBS | LOOKS)[verb](w)


@pytest.mark.parametrize("verb", VERBS | LOOKS)
def test_in_an_event_loop(verb: str) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            await (await w.register_task(Task(abs, (-1,), id="mine")))
        if verb in VERBS:
            with pytest.raises(WorkerStopped):
                await VERBS[verb](w)
        lost = AsyncProcessWorker(n=1)
        os.kill((await lost.processes())["supervisor"], signal.SIGKILL)
        with pytest.raises(SupervisorLost):
            await (VERBS | LOOKS)[verb](lost)

    asyncio.run(main())


@pytest.mark.parametrize("debug", [False, True])
def test_the_counts_stay(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug, queues={"mail": 2}) as w:
        futures = [w.submit(int, text) for text in ("1", "two", "3")]
    counts = w.metrics()
    assert (counts.accepted, counts.completed, counts.failed, counts.latency.count) == (3, 2, 1, 3)
    assert (counts.remembered, counts.queues) == (0, {"default": 0, "mail": 0})
    assert [future.exception() is None for future in futures] == [True, False, True]
    assert w.metrics() == counts


@pytest.mark.parametrize("stop", ["stop_now", "stop_graceful"])
def test_what_a_stop_cuts_short_counts_as_cancelled(stop: str, gate: Gate) -> None:
    w = ProcessWorker(n=1)
    held, waits = w.submit(pooljobs.hold, gate.folder), w.submit(abs, -1)
    later = w.register_task_after(3600.0, Task(abs, (-1,)))
    gate.wait_begun()
    w.stop_now() if stop == "stop_now" else w.stop_graceful(0.01)
    assert [future.cancelled() for future in (held, waits, later)] == [True] * 3
    counts = w.metrics()
    assert (counts.accepted, counts.cancelled) == (3, 3)
    assert (counts.scheduled, counts.queued, counts.running) == (0, 0, 0)


def test_the_counts_stay_in_an_event_loop() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            await w.submit(abs, -1)
        assert (await w.metrics()).completed == 1
        w = AsyncProcessWorker(n=1)
        await w.submit(abs, -1)
        await w.stop_now()
        assert (await w.metrics()).completed == 1

    asyncio.run(main())


def test_of_a_worker_that_never_came_to_work_there_are_none() -> None:
    w = ProcessWorker(n=1, preload=["no_such_module"])
    with pytest.raises(StartFailed):
        w.submit(abs, -1).result(GUARD)
    for look in (w.metrics, w.get_tasks, w.queues):
        with pytest.raises(StartFailed):
            look()


def test_what_drains_can_still_be_asked(tmp_path: Any) -> None:
    with ProcessWorker(n=1) as w:
        later = w.register_task(Task(abs, (-1,), id="later", run_at=3600.0))
        assert not w.stop_graceful(wait=False)
        assert w.get_task("later").status.value == "scheduled"
        assert w.cancel_all() == 1
        assert later.cancelled()
