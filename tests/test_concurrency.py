"""Many threads, forks, pauses and full rings on one client."""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import campaign_tasks as tasks
import psutil
import pytest
from concurrently import GUARD, a_function, eventually, lines, script, together
from mixed import Mixed

from mpworker import ProcessWorker
from mpworker.chunks import Chunk
from mpworker.errors import TaskCancelled, WorkerStopped
from mpworker.ipc import codec

# ------------------------------------------------------------ threads


@pytest.mark.parametrize("ring", [4096, 1 << 20], ids=["small ring", "large ring"])
def test_eight_threads_on_one_client(hasty: None, ring: int) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    with ProcessWorker(n=2, client_ring_bytes=ring) as pool:
        together(*(Mixed(pool, seed + number, 60) for number in range(8)))
        assert len(pool._client.pending) == 0


def test_new_functions_of_many_threads_are_not_mixed_up(hasty: None) -> None:
    def run(base: int) -> None:
        for number in range(base, base + 100):
            function = a_function(number)
            assert [pool.submit(function, each).result(GUARD) for each in range(2)] == [number, 1000 + number]

    with ProcessWorker(n=2) as pool:
        together(*(lambda base=base: run(base) for base in range(0, 800, 100)))


def test_a_function_that_is_dropped_while_others_use_it(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The table is full all the time: every look-up drops a function that another thread may be about to name, a map of
    # its own may be using, or a large task is on its way with.
    monkeypatch.setattr("mpworker.functions._CACHED_MAX", 2)
    functions = [a_function(value) for value in range(5)]

    def submit() -> None:
        for number in range(150):
            value = number % 5
            assert pool.submit(functions[value], number).result(GUARD) == number * 1000 + value

    def submit_large() -> None:
        for number in range(40):
            data = bytes([number]) * 20_000
            assert pool.submit(tasks.size_of, data).result(GUARD) == (20_000, 20_000 * number)

    def map_() -> None:
        for value in range(5):
            results = pool.map(functions[value], range(200), chunksize=3)
            assert list(results) == [number * 1000 + value for number in range(200)]

    with ProcessWorker(n=2, client_ring_bytes=8192) as pool:
        together(submit, submit, submit_large, submit_large, map_, map_)


def test_a_function_that_is_dropped_between_look_and_push(monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessWorker(n=1, client_ring_bytes=8192) as pool:
        table = pool._client.functions
        look_up = table.key
        dropped: list[int] = []

        def key(function: Any) -> int:
            found = look_up(function)
            if len(dropped) < 4 and found not in dropped:
                dropped.append(found)
                with table.lock:
                    table._drop(id(function))  # as another thread would that needs the place
            return found

        monkeypatch.setattr(table, "key", key)
        for number in range(4):
            assert pool.submit(tasks.size_of, bytes(number)).result(GUARD)[0] == number
            assert pool.submit(tasks.size_of, bytes(9000 + number)).result(GUARD)[0] == 9000 + number
        assert len(dropped) == 4


def test_a_chunk_that_is_abandoned_while_it_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    settle_items = Chunk.settle_items

    def settle(chunk: Any, *arguments: Any) -> bool:
        last = settle_items(chunk, *arguments)
        if last:
            pool._client.pending.pop(chunk.key)  # as `abandon` does in another thread
        return last

    monkeypatch.setattr(Chunk, "settle_items", settle)
    with ProcessWorker(n=1) as pool:
        assert list(pool.map(tasks.square, range(20), chunksize=5)) == [number**2 for number in range(20)]


def test_payloads_in_parts_are_not_mixed_with_those_of_callbacks(hasty: None) -> None:
    called: list[tuple[int, int]] = []

    def more(_: object) -> None:
        called.append(pool.submit(tasks.size_of, bytes([3]) * 30_000).result(GUARD))

    def run(value: int) -> None:
        for _ in range(30):
            future = pool.submit(tasks.size_of, bytes([value]) * 30_000)
            future.add_done_callback(more)
            assert future.result(GUARD) == (30_000, 30_000 * value)

    with ProcessWorker(n=2, client_ring_bytes=4096) as pool:
        together(*(lambda value=value: run(value) for value in (1, 2)))
        eventually(lambda: len(called) == 60)
        assert set(called) == {(30_000, 90_000)}


def test_what_was_ready_and_is_no_longer_is_waited_for_again() -> None:
    """Room in a ring, say, that another thread has taken between two looks."""
    looks = iter([False, True, False])
    with ProcessWorker(n=1) as w:
        client = w._client
        assert client.wait_for(client.when(lambda: next(looks, True)), None)
        looks = iter([False, True, False])
        w._client.ending.wait_for_room(client.when(lambda: next(looks, True)), 1)
        assert w.submit(abs, -1).result(GUARD) == 1


def test_more_threads_send_payloads_in_parts_than_there_are_streams(hasty: None) -> None:
    def run(value: int) -> None:
        for _ in range(5):
            assert pool.submit(tasks.size_of, bytes([value]) * 30_000).result(GUARD) == (30_000, 30_000 * value)

    with ProcessWorker(n=2, client_ring_bytes=4096) as pool:
        together(*(lambda value=value: run(value) for value in range(codec.MAX_STREAMS + 5)))
        assert not any(pool._client.sending.streams)


def test_handlers_on_top_of_each_other_run_out_of_streams() -> None:
    with ProcessWorker(n=1, client_ring_bytes=4096) as pool:
        streams = pool._client.sending.streams
        streams[:] = [threading.get_ident()] * codec.MAX_STREAMS  # as if each frame below sent a large payload
        with pytest.raises(RuntimeError, match=f"on top of {codec.MAX_STREAMS} others"):
            pool.submit(tasks.size_of, bytes(30_000))
        streams[:] = [0] * codec.MAX_STREAMS
        assert pool.submit(tasks.size_of, bytes(30_000)).result(GUARD) == (30_000, 0)


def test_a_submit_that_waits_for_room_while_another_thread_reads(tmp_path: Path) -> None:
    # No event comes for as long as the task runs, so only the room itself can wake the submitter.
    gate = tmp_path / "gate"
    with ProcessWorker(n=1, client_ring_bytes=4096) as pool:
        held = pool.submit(tasks.hold, str(tmp_path / "begun"), str(gate))
        reader = threading.Thread(target=held.result, args=(GUARD,))
        reader.start()
        eventually(lambda: pool._client._leader == reader.ident)
        futures: list[Any] = []

        def submit() -> None:
            for number in range(3000):
                futures.append(pool.submit(tasks.square, number))  # noqa: PERF401

        submitter = threading.Thread(target=submit)
        submitter.start()
        submitter.join(GUARD)
        assert not submitter.is_alive()
        assert not held.done(), "it was the room that woke it, not an outcome"
        gate.touch()
        reader.join(GUARD)
        assert [future.result(GUARD) for future in futures] == [number**2 for number in range(3000)]


def test_threads_that_wait_leave_each_other_asleep(tmp_path: Path) -> None:
    # A follower that is woken for its own future must not wake the next one, who would wake the next.
    gate = tmp_path / "gate"
    with ProcessWorker(n=4) as pool:
        held = [pool.submit(tasks.hold, str(tmp_path / f"begun-{number}"), str(gate)) for number in range(3)]
        threads = [threading.Thread(target=future.result, args=(GUARD,)) for future in held]
        for thread in threads:
            thread.start()
        eventually(lambda: len(pool._client._followers) == 2)
        for number in range(20):
            follower = threading.Thread(target=pool.submit(tasks.square, number).result, args=(GUARD,))
            follower.start()
            follower.join(GUARD)
        began, cpu = time.monotonic(), time.process_time()
        eventually(lambda: time.monotonic() - began > 0.5)
        used = time.process_time() - cpu
        gate.touch()
        for thread in threads:
            thread.join(GUARD)
        assert used < 0.25, "they were busy waking each other"


def test_a_callback_may_wait_for_a_thread_that_waits_for_the_pool() -> None:
    # The callback blocks on a lock that is held by a thread that needs somebody to read.
    lock = threading.RLock()  # a callback on a task that has ended is called at once
    called = threading.Event()

    def take_lock(_: object) -> None:
        with lock:
            called.set()

    with ProcessWorker(n=2) as pool:

        def hold_lock() -> None:
            for number in range(100):
                with lock:
                    pool.submit(tasks.square, number).add_done_callback(take_lock)
                    assert pool.submit(tasks.square, number).result(GUARD) == number**2

        together(hold_lock, hold_lock)
        assert called.wait(GUARD)


def test_the_end_of_a_drain_waits_for_the_callbacks() -> None:
    called: list[int] = []

    def call(future: Any) -> None:
        if not called:
            threading.Event().wait(0.3)  # it has much to do
        called.append(future.result())

    with ProcessWorker(n=2) as pool:
        for number in range(300):
            pool.submit(tasks.square, number).add_done_callback(call)
    assert sorted(called) == sorted(number**2 for number in range(300))


def test_a_map_that_is_given_up_lets_a_submit_go_on_that_waits_for_max_pending(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ProcessWorker(n=1, max_pending=8) as pool:
        results = pool.map(tasks.hold, [str(tmp_path / "begun")] * 40, [str(gate)] * 40, chunksize=1)
        futures: list[Any] = []
        submitter = threading.Thread(target=lambda: futures.append(pool.submit(tasks.square, 3)))
        submitter.start()
        eventually(lambda: pool._client._leader == submitter.ident)
        results.close()  # type: ignore[attr-defined]
        submitter.join(GUARD)
        assert futures, "it was woken though the task that runs tells nothing yet"
        gate.touch()
        assert futures[0].result(GUARD) == 9


# ------------------------------------------------------------ a machine that pauses


def test_a_pause_of_client_and_pool_loses_and_retries_nothing(tmp_path: Path) -> None:
    with script("paused", str(tmp_path)) as process:
        answer = next(lines(process))
        supervisor = psutil.Process(int(answer[1]))
        everyone = [process.pid, supervisor.pid, *(child.pid for child in supervisor.children(recursive=True))]
        for pid in everyone:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 5)
        for pid in everyone:
            os.kill(pid, signal.SIGCONT)
        (tmp_path / "gate").touch()


# ------------------------------------------------------------ forks


@pytest.mark.parametrize("how", ["_exit", "exit", "new pool at exit"])
def test_a_fork_of_the_client(how: str) -> None:
    with script("forked", how):
        pass


# ------------------------------------------------------------ full rings


def test_results_larger_than_every_ring() -> None:
    with ProcessWorker(n=2, client_ring_bytes=4096, child_ring_bytes=4096) as pool:
        futures = [pool.submit(tasks.grow, number, 10_000 + number % 7 * 4) for number in range(2000)]
        for number, future in enumerate(futures):
            assert future.result(GUARD) == tasks.grow(number, 10_000 + number % 7 * 4)
        sizes = pool.map(tasks.size_of, (bytes([number % 256]) * 9000 for number in range(300)))
        assert list(sizes) == [(9000, 9000 * (number % 256)) for number in range(300)]


def test_a_client_that_reads_nothing_and_is_stopped_for_a_while() -> None:
    with script("backlog", "100000") as process:
        assert next(lines(process)) == ["ready"]
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 0.5)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


# ------------------------------------------------------------ start and stop


@pytest.mark.parametrize("stops", [["stop_now"], ["stop_graceful"], ["stop_graceful", "stop_now", "stop_now"]])
@pytest.mark.parametrize("delay_ns", [0, 60_000_000, 200_000_000])
def test_stop_races_with_submit(hasty: None, stops: list[str], delay_ns: int) -> None:
    # From a pool that is still starting to one that is busy.
    pool = ProcessWorker(n=2)
    pids = {pool._client.supervisor.pid}
    futures: list[Any] = []

    def submit() -> None:
        try:
            for number in range(20_000):
                futures.append((pool.submit(tasks.square, number), number))  # noqa: PERF401
        except WorkerStopped:
            pass

    def map_() -> None:
        results: list[int] = []
        with contextlib.suppress(WorkerStopped, TaskCancelled):
            results.extend(pool.map(tasks.square, range(20_000), chunksize=3))
            assert len(results) == 20_000
        assert results == [number * number for number in range(len(results))]

    def stop(verb: str) -> None:
        until = time.monotonic_ns() + delay_ns
        while time.monotonic_ns() < until:
            pass
        getattr(pool, verb)()

    together(submit, submit, map_, *(lambda verb=verb: stop(verb) for verb in stops))
    for future, number in futures:
        assert future._state != "PENDING", "every future is settled"
        if future.cancelled():
            assert "stop_now" in stops, "what a drain had accepted it runs"
        else:
            assert future.result(0) == number * number
    assert pool.stop_graceful(1) is not None
    pool.stop_now()
    pool.shutdown()
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("verb", ["submit", "map"])
def test_a_submit_that_passes_the_end_of_the_pool_is_settled(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ProcessWorker(n=1)
    push = pool._client._push

    def late(kind: int, *rest: Any) -> bool:
        if kind not in (codec.SUBMIT, codec.CHUNK):
            return push(kind, *rest)
        stopper = threading.Thread(target=pool.stop_now)  # the submit has looked, and not pushed yet
        stopper.start()
        stopper.join(GUARD)
        return True

    pool.submit(tasks.square, 1).result(GUARD)
    monkeypatch.setattr(pool._client, "_push", late)
    monkeypatch.setattr(pool._client, "_submit", None)  # in one call of which nothing comes between look and push
    calls = {"submit": lambda: pool.submit(tasks.square, 2).result(GUARD), "map": lambda: next(pool.map(abs, [2]))}
    with pytest.raises(TaskCancelled):
        calls[verb]()


def test_pools_made_and_stopped_by_many_threads(hasty: None) -> None:
    def run(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(3):
            pool = ProcessWorker(n=rng.choice([1, 2]))
            futures = [pool.submit(tasks.square, number) for number in range(rng.choice([0, 1, 100]))]
            if rng.random() < 0.5:
                assert pool.stop_graceful()
                assert [future.result(0) for future in futures] == [number**2 for number in range(len(futures))]
            else:
                pool.stop_now()
                assert all(future.done() for future in futures)

    together(*(lambda seed=seed: run(seed) for seed in range(4)))
