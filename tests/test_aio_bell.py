"""How the pool in an event loop is woken, and what waits where there is no room."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pooljobs
import pytest
from loops import begun, client_of, run, stopped
from pooljobs import Gate

from mpworker import AsyncProcessWorker
from mpworker.errors import TaskCancelled
from mpworker.loopclient import LoopClient

# ------------------------------------------------------------ wake-ups


@pytest.mark.parametrize("options", [{}, {"client_ring_bytes": 1 << 12}], ids=["roomy", "tight"])
def test_no_wake_up_is_lost(options: dict[str, int]) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=2, **options) as w:  # type: ignore[arg-type]
            for number in range(400):
                burst = [w.submit(abs, -each) for each in range(number % 60)]
                sum(range(number % 7 * 2000))  # a slow reader: the answers come while the loop is busy
                if number % 3:
                    await asyncio.sleep(0)
                assert await asyncio.gather(*burst) == list(range(number % 60))
                assert await w.submit(abs, -number) == number

    run(main)


class Bell:
    """The bell of a client, with something that happens just before it is armed."""

    def __init__(self, bell: Any, before: Callable[[], None]) -> None:
        self._bell = bell
        self._before = before

    def arm(self) -> None:
        self._before()
        self._bell.arm()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bell, name)


def test_what_comes_just_before_the_bell_is_armed_is_seen() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            assert await w.submit(abs, -1) == 1
            client = client_of(w)
            supervisor, inbound = client.supervisor.pid, client.supervisor.channel.inbound

            def answered() -> None:
                if client.pending:
                    os.kill(supervisor, signal.SIGCONT)
                    while not inbound.readable():
                        pass

            client._bell = cast(Any, Bell(client._bell, answered))
            for number in range(20):
                with stopped(supervisor):
                    future = w.submit(abs, -number)
                    client.supervisor.channel.bell.wake()  # a turn that finds nothing yet
                    assert await future == number

    run(main)


def test_room_that_comes_just_before_the_bell_is_armed_is_seen() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, client_ring_bytes=1 << 12) as w:
            assert await w.submit(abs, -1) == 1
            client = client_of(w)

            def room() -> None:
                while client._outbox and not client.can_send():
                    pass

            client._bell = cast(Any, Bell(client._bell, room))
            # It goes in many parts, and none of them but the last is answered.
            assert await w.submit(len, bytes(100_000)) == 100_000

    run(main)


def test_what_waits_for_room_keeps_its_order() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, client_ring_bytes=1 << 12) as w:
            assert await w.submit(abs, -1) == 1
            client = client_of(w)
            with stopped(client.supervisor.pid):
                futures = [w.submit(abs, 1) for _ in range(100)]
                futures.append(w.submit(pooljobs.square, 3))  # the function goes first
            fits = client.supervisor.channel.outbound.fits
            while not fits(1000):
                pass
            futures.append(w.submit(pooljobs.square, 4))
            assert await asyncio.gather(*futures) == [*[1] * 100, 9, 16]

    run(main)


def test_the_loop_sleeps_while_nothing_comes(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            held = w.submit(pooljobs.hold, gate.folder, "held")
            await begun(gate)
            turns = 0
            take_turn = LoopClient._take_turn

            def counted(client: LoopClient, bell: Any) -> bool:
                nonlocal turns
                turns += 1
                return take_turn(client, bell)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(LoopClient, "_take_turn", counted)
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert turns < 10
            gate.release()
            assert await held == "held"

    run(main)


def test_a_turn_that_fails_is_taken_again() -> None:
    said: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncProcessWorker(n=1) as w:
            assert await w.submit(abs, -1) == 1
            loop.set_exception_handler(lambda _, context: said.append(context["exception"]))
            read_batch = LoopClient._read_batch

            def fails_once(client: LoopClient) -> None:
                if not said:
                    raise MemoryError
                read_batch(client)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(LoopClient, "_read_batch", fails_once)
                assert await w.submit(abs, -2) == 2

    run(main)
    assert [type(each) for each in said] == [MemoryError]


def test_the_loop_does_not_unpickle_more_than_a_batch_at_once() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1) as w:
            client = client_of(w)
            futures = [w.submit(abs, number) for number in range(2000)]
            while len(client.due) < 2000:
                client.poll()  # as a large number of submissions does
            done = []
            while sum(done) < 2000:
                await asyncio.sleep(0)
                done.append(sum(future.done() for future in futures) - sum(done))
            assert max(done) <= 512

    run(main)


# ------------------------------------------------------------ bounds


def test_what_exceeds_max_pending_waits_and_the_loop_does_not(gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=2) as w:
            futures = [w.submit(pooljobs.hold, gate.folder, number) for number in range(10)]
            client = client_of(w)
            assert len(client._line) == 8
            await begun(gate)
            assert not any(future.done() for future in futures)
            for number, future in enumerate(futures):
                gate.release()
                assert await future == number
                assert len(client.pending) - len(client._line) <= 2
            assert await w.submit(abs, -1) == 1
            assert not client._line

    run(main)


def test_a_task_that_waits_for_room_can_be_cancelled(tmp_path: Path, gate: Gate) -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            notes = [w.submit(pooljobs.note, str(tmp_path / "notes"), number) for number in range(4)]
            assert notes[0].cancel()
            assert await w.cancel_task(notes[2].task_id)
            gate.release()
            await held
            assert await notes[1] == 1
            with pytest.raises(TaskCancelled):
                await notes[2]
            assert await notes[3] == 3
            assert not await w.cancel_task(notes[2].task_id)
            assert (tmp_path / "notes").read_text() == "1\n3\n"

    run(main)


def test_a_function_that_is_forgotten_is_known_to_the_tasks_that_wait(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpworker.functions._CACHED_MAX", 2)

    async def main() -> None:
        async with AsyncProcessWorker(n=1, max_pending=1) as w:
            held = w.submit(pooljobs.hold, gate.folder)
            futures = [w.submit(eval(f"lambda: {number}")) for number in range(20)]
            gate.release()
            assert await asyncio.gather(held, *futures) == [None, *range(20)]

    run(main)


def test_a_ring_that_nobody_reads_does_not_stop_the_loop() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, client_ring_bytes=1 << 12) as w:
            assert await w.submit(abs, -1) == 1
            supervisor = client_of(w).supervisor.pid
            with stopped(supervisor):
                futures = [w.submit(len, bytes(1000)) for _ in range(100)]
                asked = asyncio.create_task(w.processes())
                for _ in range(100):
                    await asyncio.sleep(0)
                assert not any(future.done() for future in futures)
            assert await asyncio.gather(*futures) == [1000] * 100
            assert (await asked)["supervisor"] == supervisor

    run(main)
