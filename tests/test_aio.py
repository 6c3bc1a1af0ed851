"""`AsyncProcessWorker`: the pool in an event loop that it never blocks, and with no thread."""

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any, cast

import pooljobs
import programs
import pytest
from loops import GUARD, begun, run
from pooljobs import Gate

import mpworker
from mpworker import AsyncProcessWorker, AsyncTaskFuture
from mpworker.errors import (
    ConfigurationError,
    InvalidArgument,
    RemoteTraceback,
    SerializationError,
    TaskCancelled,
    TaskNotFound,
    TaskTimeout,
    WorkerCrashed,
    WorkerStopped,
    WrongEventLoop,
)
from mpworker.loopclient import LoopClient

# ------------------------------------------------------------ submit


def test_a_call_is_awaited() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            future = w.submit(pow, 2, 10)
            assert isinstance(future, AsyncTaskFuture)
            assert await future == 1024
            assert await w.submit(lambda *args, **kwargs: (args, kwargs), 1, fn=2) == ((1,), {"fn": 2})
            with pytest.raises(ValueError, match=r"^wrong$") as caught:
                await w.submit(pooljobs.fail, "wrong")
            assert isinstance(caught.value.__cause__, RemoteTraceback)
            seen = w.submit(lambda: mpworker.current().task_id)
            assert await seen == seen.task_id
            assert seen.task_id in repr(seen)
            assert "finished" in repr(seen)
            assert "unfinished" in repr(w.submit(abs, 1))

    run(main)


def test_what_asyncio_offers_for_futures_works() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2) as w:
            assert await asyncio.gather(*(w.submit(pooljobs.square, n) for n in range(200))) == [
                n * n for n in range(200)
            ]
            done, pending = await asyncio.wait([w.submit(pooljobs.square, n) for n in range(5)])
            assert {future.result() for future in done} == {0, 1, 4, 9, 16}
            assert not pending
            found = [await each for each in asyncio.as_completed([w.submit(abs, n) for n in range(5)])]
            assert sorted(found) == [0, 1, 2, 3, 4]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(awaits(w, number)) for number in range(20)]
            assert [task.result() for task in tasks] == list(range(20))

    async def awaits(w: AsyncProcessWorker, number: int) -> int:
        return await w.submit(abs, -number)

    run(main)


def test_what_is_wrong_with_a_call_is_told_at_once() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_payload_bytes=1 << 14) as w:
            with pytest.raises(SerializationError, match="cannot be pickled"):
                w.submit(abs, pooljobs.Unpicklable())
            with pytest.raises(SerializationError, match="exceeds max_payload_bytes=16384"):
                w.submit(len, bytes(1 << 14))
            with pytest.raises(InvalidArgument, match=r"submit\(f, x\)"):
                w.submit(3)  # type: ignore[call-overload]
            with pytest.raises(InvalidArgument, match="is asynchronous"):
                w.submit(main)
            assert await w.submit(abs, -1) == 1

    run(main)


def test_results_that_cannot_be_had() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
                await w.submit(next, iter(()))
            assert isinstance(caught.value.__cause__, StopIteration)
            with pytest.raises(SerializationError, match="its result cannot be unpickled here"):
                await w.submit(pooljobs.Unloadable)
            with pytest.raises(SerializationError, match="its result cannot be unpickled here: CancelledError"):
                await w.submit(_LoadsAsCancelled, os.getpid())
            with pytest.raises(WorkerCrashed):
                await w.submit(os._exit, 3)
            assert await w.submit(abs, -1) == 1

    run(main)


class _LoadsAsCancelled:
    """Raises what is no Exception where it is unpickled in the process that asked for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return _load, (self.pid,)


def _load(pid: int) -> int:
    if os.getpid() == pid:
        raise asyncio.CancelledError
    return pid


def test_payloads_larger_than_the_ring() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, client_ring_bytes=1 << 12, child_ring_bytes=1 << 12) as w:
            data = bytes(range(256)) * 400
            results = await asyncio.gather(*(w.submit(bytes.__add__, data, bytes([n])) for n in range(20)))
            assert results == [data + bytes([n]) for n in range(20)]

    run(main)


def test_options_of_tasks() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, retries=2) as w:
            assert await w.submit(_third_attempt) == 3
            with pytest.raises(ValueError, match=r"^1$"):
                await w.options(retries=0).submit(_third_attempt)
            with pytest.raises(TaskTimeout):
                await w.options(retries=0, timeout=0.05).submit(signal.pause)
            with pytest.raises(InvalidArgument, match="unknown option"):
                w.options(retry=3)  # type: ignore[call-arg]

    run(main)


def _third_attempt() -> int:
    attempt = mpworker.current().attempt
    return attempt if attempt == 3 else cast(int, pooljobs.fail(attempt))


def test_queues_and_their_limits() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, queues={"mail": 3}, rate=1e6) as w:
            await w.pause("mail")
            view = w.options(queue="mail", priority=3)
            waiting = view.submit(abs, -1)
            assert await w.submit(abs, -2) == 2
            states = await w.queues()
            assert (states["mail"].weight, states["mail"].paused, states["mail"].queued) == (3, True, 1)
            await w.set_queue("mail", weight=5)
            await w.set_rate(None)
            await w.resume("mail")
            assert await waiting == 1
            state = (await w.queues())["mail"]
            assert (state.weight, state.paused, state.queued) == (5, False, 0)
            with pytest.raises(InvalidArgument, match="a queue's name must be a str"):
                await w.pause(3)  # type: ignore[arg-type]
            with pytest.raises(InvalidArgument, match="wait"):
                await w.set_queue("mail", wait=3)
            with pytest.raises(ConfigurationError, match="rate must be at least"):
                await w.set_rate(-1.0)
        assert await w.queues() == {}
        with pytest.raises(WorkerStopped):
            await w.set_rate(1.0)

    run(main)


# ------------------------------------------------------------ cancel


def test_cancelling_the_awaiting_task_interrupts_the_child(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:

            async def waits() -> None:
                await w.submit(pooljobs.hold, gate.folder)

            task = asyncio.create_task(waits())
            await begun(gate)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await w.submit(abs, -1) == 1, "the only child is free"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(w.submit(pooljobs.hold, gate.folder), 0.01)
            assert await w.submit(abs, -1) == 1

    run(main)


def test_a_cancelled_task_that_has_not_begun_never_does(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            await begun(gate)
            waiting = w.submit(pooljobs.note, str(tmp_path / "note"), 1)
            assert waiting.cancel()
            assert waiting.cancelled()
            assert "cancelled" in repr(waiting)
            assert not waiting.cancel()
            await w.processes()  # the cancel was sent before
            gate.release()
            await held
        assert not (tmp_path / "note").exists()

    run(main)


def test_a_shielded_call_goes_on(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(held), 0.01)
            gate.release()
            assert await held == "held"

    run(main)


def test_cancel_by_id(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            await begun(gate)
            assert await w.cancel_task(held.task_id)
            with pytest.raises(TaskCancelled):
                await held
            assert not await w.cancel_task(held.task_id)
            with pytest.raises(TaskNotFound):
                await w.cancel_task("unheard-of")
            with pytest.raises(InvalidArgument):
                await w.cancel_task(3)  # type: ignore[arg-type]

    run(main)


# ------------------------------------------------------------ whose it is


def test_another_event_loop_gets_one_clear_error() -> None:
    workers = []

    async def main() -> None:
        w = AsyncProcessWorker(n=1)
        workers.append(w)
        assert await w.submit(abs, -1) == 1
        await refused_elsewhere(w, asyncio.to_thread)
        await w.stop_now()

    async def refused_elsewhere(w: AsyncProcessWorker, elsewhere: Any) -> None:
        async def verbs() -> None:
            for call in (lambda: w.submit(abs, 1), lambda: w.map(abs, [1]), lambda: w.options(retries=1)):
                with pytest.raises(WrongEventLoop, match="another event loop"):
                    call()
            plain = (w.stop_graceful, w.stop_now, w.processes, w.shutdown, w.queues, w.pause, w.resume)
            given = (lambda: w.cancel_task("x"), lambda: w.set_rate(1), lambda: w.set_queue("x"))
            for verb in (*plain, *given):
                with pytest.raises(WrongEventLoop, match="another event loop"):
                    await verb()
            with pytest.raises(WrongEventLoop, match="another event loop"):
                async with w:
                    pass

        await elsewhere(asyncio.run, verbs())

    asyncio.run(main())
    with pytest.raises(WrongEventLoop, match="no event loop runs in this thread"):
        workers[0].submit(abs, 1)


def test_in_a_fork_it_is_stopped() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            assert await w.submit(abs, -1) == 1
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    try:
                        w.submit(abs, 1)
                    except WorkerStopped as error:
                        code = 0 if "before fork" in str(error) else 2
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert await w.submit(abs, -2) == 2

    if os.sys.version_info >= (3, 12):  # type: ignore[attr-defined]
        import warnings

        warnings.filterwarnings("ignore", r".*use of fork\(\) may lead to deadlocks", DeprecationWarning)
    run(main)


_CTRL_C = """
import asyncio, os, signal, sys
from mpworker import AsyncProcessWorker

async def main():
    loop = asyncio.get_running_loop()
    async with AsyncProcessWorker(n=1, grace=1000) as w:
        assert await w.submit(abs, -1) == 1
        loop.call_soon(os.kill, os.getpid(), signal.SIGINT)
        await w.submit(signal.pause)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    import mpworker.clients
    assert not mpworker.clients.living
    print("interrupted")
"""

_LOOP_ENDS = """
import asyncio
from mpworker import AsyncProcessWorker

def note(path):
    open(path, "w").close()

async def main(path):
    global w, future
    w = AsyncProcessWorker(n=1)
    assert await w.submit(abs, -1) == 1
    future = w.submit(note, path)

asyncio.run(main({!r}))
"""


def test_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    assert programs.run_source(_CTRL_C, tmp_path).stdout.strip() == "interrupted"


def test_a_program_whose_loop_ends_first_drains_at_its_exit(tmp_path: Path) -> None:
    programs.run_source(_LOOP_ENDS.format(str(tmp_path / "note")), tmp_path)
    assert (tmp_path / "note").exists()


def test_it_starts_no_thread(gate: Gate) -> None:
    async def main() -> None:
        before = threading.active_count()
        async with AsyncProcessWorker(n=2, max_pending=50) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            futures = [w.submit(abs, number) for number in range(2000)]
            most = threading.active_count()
            async for _ in w.map(abs, range(2000)):
                most = max(most, threading.active_count())
            await asyncio.wait(futures)
            futures[0].cancel()
            assert most == threading.active_count() == before
            gate.release()
            await held
        assert threading.active_count() == before

    run(main)


@pytest.mark.parametrize("name", ["_read_batch", "_tell", "_leave_line", "_flush", "_take_turn"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_turn_that_an_interrupt_breaks_off_is_taken_again(name: str, after: bool) -> None:
    interrupted = False
    call = getattr(LoopClient, name)

    def interrupts(client: LoopClient, *args: Any) -> Any:
        nonlocal interrupted
        now, interrupted = not interrupted and bool(client.pending), interrupted or bool(client.pending)
        if now and not after:
            raise KeyboardInterrupt
        value = call(client, *args)
        if now:
            raise KeyboardInterrupt
        return value

    async def main(w: AsyncProcessWorker) -> None:
        assert await asyncio.wait_for(w.submit(abs, -2), GUARD) == 2

    with asyncio.Runner() as runner:
        w = AsyncProcessWorker(n=1, max_pending=1)
        runner.run(main(w))
        loop = runner.get_loop()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LoopClient, name, interrupts)
            calls = [loop.create_task(main(w)) for _ in range(3)]
            with pytest.raises(KeyboardInterrupt):
                loop.run_forever()
            loop.run_until_complete(asyncio.gather(*calls))
        assert interrupted
        runner.run(w.stop_now())


@pytest.mark.parametrize("name", ["_supervisor_died", "_fail_all", "_tell"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_end_that_an_interrupt_breaks_off_is_gone_on_with(name: str, after: bool) -> None:
    interrupted = False
    call = getattr(LoopClient, name)

    def interrupts(client: LoopClient, *args: Any) -> Any:
        nonlocal interrupted
        at_the_end = client._exited or name == "_supervisor_died"
        now, interrupted = at_the_end and not interrupted, interrupted or at_the_end
        if now and not after:
            raise KeyboardInterrupt
        value = call(client, *args)
        if now:
            raise KeyboardInterrupt
        return value

    async def main(w: AsyncProcessWorker) -> None:
        pending = [w.submit(signal.pause) for _ in range(1000)]
        await w.stop_now()
        assert all(isinstance(each.exception(), TaskCancelled) for each in pending)

    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        loop = runner.get_loop()
        w = AsyncProcessWorker(n=1)
        patch.setattr(LoopClient, name, interrupts)
        task = loop.create_task(main(w))
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert interrupted
        loop.run_until_complete(asyncio.wait_for(task, GUARD))
