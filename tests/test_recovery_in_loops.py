"""A supervisor that dies and is started again while event loops are attached: see test_recovery.py."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from pooljobs import Gate
from services import GUARD, Service, serving

from mpworker import AsyncProcessWorker
from mpworker.errors import SupervisorLost, WorkerCrashed


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, "n = 1\n[clients]\nring_bytes = 65536\n") as service:
        service.connect().stop_graceful()
        yield service


def test_what_was_submitted_and_asked_for_goes_on(service: Service, gate: Gate) -> None:
    async def main() -> None:
        w = await AsyncProcessWorker.connect(service.socket, connect_timeout=GUARD)
        async with w:
            running = w.options(crash_retries=1).submit(pooljobs.hold, gate.folder, 1)
            blamed = w.submit(pooljobs.square, 3)
            await asyncio.to_thread(gate.wait_begun)
            waiting = [w.submit(pooljobs.square, number) for number in range(200)]
            large = w.submit(len, bytes(300_000))
            dropped = w.submit(pooljobs.hold_and_note, gate.folder, 5)
            await asyncio.to_thread(service.kill)
            dropped.cancel()
            meanwhile = [w.submit(pooljobs.square, number) for number in range(20)]
            asked = asyncio.create_task(w.get_tasks())
            await asyncio.sleep(0.05)
            service.start()
            await asyncio.to_thread(gate.wait_begun)
            gate.release()
            assert await running == 1
            assert await blamed == 9
            assert await asyncio.gather(*waiting) == [number**2 for number in range(200)]
            assert await asyncio.gather(*meanwhile) == [number**2 for number in range(20)]
            assert await large == 300_000
            assert isinstance(await asked, list)
            assert [value async for value in w.map(pooljobs.square, range(100))] == [each**2 for each in range(100)]
        assert not (Path(gate.folder) / "noted").exists()

    asyncio.run(main())


def test_it_is_given_up_in_time(service: Service, gate: Gate) -> None:
    async def main() -> None:
        w = await AsyncProcessWorker.connect(service.socket, connect_timeout=GUARD, reconnect_timeout=0.3)
        running = w.submit(pooljobs.hold, gate.folder, 1)
        await asyncio.to_thread(gate.wait_begun)
        await asyncio.to_thread(service.kill)
        with pytest.raises(SupervisorLost):
            await running
        with pytest.raises(SupervisorLost):
            w.submit(abs, 1)

    asyncio.run(main())


@pytest.mark.parametrize("times", [6])
def test_kills_at_any_moment(service: Service, tmp_path: Path, times: int) -> None:
    rng = random.Random(seed := random.randrange(2**32))
    noted = tmp_path / "noted"

    async def main() -> list[Any]:
        w = await AsyncProcessWorker.connect(service.socket, connect_timeout=GUARD)
        async with w:
            futures = [w.submit(pooljobs.note_and_rest, str(noted), number) for number in range(300)]
            for _ in range(times):
                await asyncio.sleep(rng.uniform(0, 0.5))
                await asyncio.to_thread(service.replace)
            return await asyncio.gather(*futures, return_exceptions=True)

    outcomes = asyncio.run(main())
    ran = Counter(map(int, pooljobs.notes(noted)))
    assert max(ran.values()) == 1, f"seed {seed}"
    for number, outcome in enumerate(outcomes):
        assert outcome == number or isinstance(outcome, WorkerCrashed), f"seed {seed}, task {number}: {outcome!r}"
        assert isinstance(outcome, WorkerCrashed) or ran[number] == 1, f"seed {seed}, task {number}"


def test_what_was_cancelled_before_never_begins(service: Service, gate: Gate) -> None:
    async def main() -> None:
        w = await AsyncProcessWorker.connect(service.socket, connect_timeout=GUARD)
        async with w:
            running = w.options(crash_retries=1).submit(pooljobs.hold, gate.folder, 1)
            await asyncio.to_thread(gate.wait_begun)
            dropped = w.submit(pooljobs.hold_and_note, gate.folder, 5)
            assert len(await w.get_tasks()) == 2
            os.kill(service.process.pid, signal.SIGSTOP)
            try:
                dropped.cancel()
                while w._client._cancels:
                    await asyncio.sleep(0)
                assert w._client.supervisor.channel.outbound.fill() > 0, "it was told, and does not know"
            finally:
                await asyncio.to_thread(service.replace)
            await asyncio.to_thread(gate.wait_begun)
            gate.release()
            assert await running == 1
            assert await w.submit(pooljobs.square, 3) == 9
        assert not pooljobs.notes(Path(gate.folder) / "noted")

    asyncio.run(main())
