"""What waits at `max_pending` in an event loop: it is cancelled, times out and is told of as any other task."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import leaks
import pooljobs
import pytest
from pooljobs import Gate

from mpworker import AsyncProcessWorker, Hooks, Task
from mpworker.errors import TaskCancelled, TaskTimeout

GUARD = 60.0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), GUARD))


def test_a_deadline_is_kept_in_line(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            await asyncio.to_thread(gate.wait_begun)
            late = await w.register_task(Task(abs, (-1,), id="late", deadline=0.05))
            w.submit(abs, -2)
            with pytest.raises(TaskTimeout, match="had not ended at its deadline"):
                await late  # while nothing has made room
            assert not held.done()
            info = await w.get_task("late")
            assert (info.status.value, info.attempts) == ("timed_out", ())
            counts = await w.metrics()
            assert (counts.accepted, counts.timed_out, counts.queued) == (3, 1, 1)
            gate.release()

    run(main)


@pytest.mark.parametrize("how", ["cancel_task", "cancel", "cancel_all"])
def test_what_is_cancelled_in_line_is_remembered(how: str, gate: Gate, tmp_path: Path) -> None:
    async def main() -> None:
        told: list[tuple[str, str]] = []
        hooks = Hooks(
            on_queued=lambda event: told.append((event.task_id, "queued")),
            on_finish=lambda event: told.append((event.task_id, str(event.status))),
        )
        async with AsyncProcessWorker(n=1, max_pending=1, hooks=hooks) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            await asyncio.to_thread(gate.wait_begun)
            note = str(tmp_path / "note")
            gone = await w.register_task(Task(pooljobs.note, (note, 2), id="gone"))
            plain = w.submit(pooljobs.note, note, 3)
            if how == "cancel_task":
                assert await w.cancel_task("gone")
                assert await w.cancel_task(plain.task_id)
            elif how == "cancel":
                assert gone.cancel()
                assert plain.cancel()
                await asyncio.sleep(0)
            else:
                assert await w.cancel_all() == 3
            for future in (gone, plain):
                info = await w.get_task(future.task_id)
                assert (info.status.value, info.attempts) == ("cancelled", ())
                if how != "cancel":
                    with pytest.raises(TaskCancelled):
                        await future
            if how == "cancel_all":
                await asyncio.wait([held])  # which is interrupted
            counts = await w.metrics()
            assert (counts.accepted, counts.cancelled) == (3, 3 if how == "cancel_all" else 2)
            assert not Path(note).exists()
            if how != "cancel_all":
                gate.release()
            await asyncio.wait([held])
            assert await (await w.retry_task("gone")) == 2
            assert [each for each in told if each[0] == "gone"] == [("gone", "queued"), ("gone", "cancelled")]

    run(main)


def test_what_is_cancelled_while_its_status_is_asked_for_is_not_lost(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            w.submit(pooljobs.hold, gate.folder)
            await asyncio.to_thread(gate.wait_begun)
            waiting = w.submit(abs, -1)
            asking = asyncio.create_task(w.get_task(waiting.task_id))
            while not w._client._holds:
                await asyncio.sleep(0)
            assert leaks.wait_until(lambda: w._client._fill() > 0, GUARD), "the supervisor has said that it knows none"
            assert w._client._drop_from_line(waiting._key)
            assert (await asking).status.value == "queued"
            assert (await w.get_task(waiting.task_id)).status.value == "cancelled"
            gate.release()

    run(main)


def test_what_is_cancelled_in_line_is_not_given_up_as_well(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1, submit_timeout=60.0) as w:
            w.submit(pooljobs.hold, gate.folder)
            await asyncio.to_thread(gate.wait_begun)
            waiting = w.submit(abs, -1)
            client = w._client
            client._holds = True  # as while the answer to a question is under way
            assert client._drop_from_line(waiting._key)
            client._give_up(waiting._key)  # its time is over
            client._holds = False
            client._leave_line()
            assert (await w.get_task(waiting.task_id)).status.value == "cancelled"
            gate.release()

    run(main)


def test_the_line_is_left_in_the_order_of_priorities(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            w.submit(pooljobs.hold, gate.folder)
            await asyncio.to_thread(gate.wait_begun)
            said = [(5, 1), (1, 1), (3, 1), (1, 7), (3, 1), (-2, 1)]
            futures = [w.options(priority=p, weight=weight).submit(time.monotonic) for p, weight in said]
            details = Task(time.monotonic, priority=2, weight=1, name="with details")
            futures.append(await w.register_task(details))
            gone = w.options(priority=-9).submit(time.monotonic)
            assert await w.cancel_task(gone.task_id)
            gate.release()
            times = await asyncio.gather(*futures)
            order = sorted(range(len(times)), key=times.__getitem__)
            assert order == [5, 3, 1, 6, 2, 4, 0]

    run(main)


def test_nothing_overtakes_what_keeps_its_place(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            w.submit(pooljobs.hold, gate.folder)
            before = w.submit(abs, -1)
            draining = asyncio.create_task(w.drain())
            await asyncio.sleep(0)
            after = w.options(priority=-9).submit(abs, -2)
            gate.release()
            assert await draining
            assert before.done()
            assert not after.done()
            await w.resume()
            assert await after == 2

    run(main)


def test_a_line_that_many_are_cancelled_in_keeps_nothing_of_them(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            w.submit(pooljobs.hold, gate.folder)
            w.submit(abs, -1)
            for number in range(500):
                assert await w.cancel_task(w.submit(abs, number).task_id)
            assert len(w._client._ranks) < 100
            gate.release()

    run(main)
