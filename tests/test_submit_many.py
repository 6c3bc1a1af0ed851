"""`submit_many`: what `submit` promises of one call holds for each of many."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator

import pooljobs
import pytest
from kinds import Make
from pooljobs import Gate

import mpworker
from mpworker import AsyncProcessWorker, Hooks, ProcessWorker
from mpworker.errors import ConfigurationError, InvalidArgument, QueueFull, SerializationError, WorkerStopped

GUARD = 60.0  # seconds; only a bound for what would hang


def results(futures: list[mpworker.TaskFuture[int]]) -> list[int]:
    return [future.result(GUARD) for future in futures]


def test_a_future_for_each_item_in_the_order_of_the_items(w: ProcessWorker) -> None:
    assert results(w.submit_many(pooljobs.square, range(1_000))) == [number**2 for number in range(1_000)]
    assert results(w.submit_many(lambda number: number + 1, iter([1, 2]))) == [2, 3]
    assert w.submit_many(pooljobs.square, []) == []
    assert w.metrics().completed == 1_002


def test_tasks_begin_in_the_order_of_the_items_and_have_ids_of_their_own(w: ProcessWorker) -> None:
    seen: list[str] = [w.submit(pooljobs.square, 1).task_id]
    futures = w.submit_many(lambda _: mpworker.current().task_id, range(300))
    assert [future.task_id for future in futures] == [future.result(GUARD) for future in futures]
    assert len({*seen, *(future.task_id for future in futures)}) == 301


def test_what_cannot_be_submitted_ends_it_and_those_before_run(make: Make) -> None:
    with make() as w:
        items = [*range(200), threading.Lock(), 1]
        with pytest.raises(SerializationError, match="lock") as caught:
            w.submit_many(pooljobs.square, items)
        assert caught.value.__notes__ == ["It is item 200 of 202, the first being 0; those before it are submitted."]
        assert len(w._client.pending) <= 200
    assert w.metrics().completed == 200

    def broken() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with make() as w:
        with pytest.raises(ZeroDivisionError):
            w.submit_many(pooljobs.square, broken())
        assert w.metrics().accepted == 0


def test_a_call_that_is_too_large_for_a_record_has_its_place_among_the_others() -> None:
    with ProcessWorker(n=1, client_ring_bytes=4096) as w:
        items = [b"1", bytes(10_000), b"22", *[b"333"] * 300, bytes(5_000)]
        assert results(w.submit_many(len, items)) == list(map(len, items))


@pytest.mark.parametrize("bound", [1, 7, 300])
def test_no_more_than_max_pending_are_unfinished(bound: int) -> None:
    with ProcessWorker(n=1, max_pending=bound) as w:
        assert results(w.submit_many(pooljobs.square, range(1_000))) == [number**2 for number in range(1_000)]


def test_where_there_is_no_room_it_says_so_and_what_was_submitted_runs(gate: Gate) -> None:
    with ProcessWorker(n=1, max_pending=10, submit_timeout=0) as w:
        held = w.submit(pooljobs.hold, gate.folder)
        with pytest.raises(QueueFull):
            w.submit_many(pooljobs.square, range(20))
        assert len(w._client.pending) == 10
        gate.release()
        held.result(GUARD)
    assert w.metrics().completed == 10


def test_options_retries_and_hooks_are_those_of_a_view() -> None:
    queued: list[str] = []
    with ProcessWorker(n=1, hooks=Hooks(on_queued=lambda event: queued.append(event.task_id))) as w:
        view = w.options(retries=2, queue="other")
        futures = view.submit_many(fails_twice, range(5))
        assert results(futures) == [3] * 5
        keyed = w.options(concurrency_key="key").submit_many(pooljobs.square, range(5))
        assert results(keyed) == [0, 1, 4, 9, 16]
        assert {w.get_task(future.task_id).queue for future in futures} == {"other"}
    assert queued == [future.task_id for future in [*futures, *keyed]]


def fails_twice(_: int) -> int:
    attempt = mpworker.current().attempt
    if attempt < 3:
        raise ValueError(attempt)
    return attempt


def test_middleware_is_around_each_submission(make: Make) -> None:
    seen: list[object] = []

    def note(submit: object, task: mpworker.Task[object]) -> object:
        seen.append(task.args)
        return submit(task)  # type: ignore[operator]

    with make(submit_middleware=[note]) as w:
        assert results(w.submit_many(pooljobs.square, [2, 3])) == [4, 9]
    assert seen == [(2,), (3,)]


def test_bad_arguments(w: ProcessWorker) -> None:
    with pytest.raises(InvalidArgument, match="submit_many needs a callable, not 7"):
        w.submit_many(7, [1])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="submit_many needs an iterable, not 7"):
        w.submit_many(abs, 7)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="concurrency"):
        w.options(concurrency=2).submit_many(abs, [1])


def test_a_stopped_worker_takes_none(make: Make) -> None:
    with make() as w:
        pass
    with pytest.raises(WorkerStopped):
        w.submit_many(abs, [1])


def test_many_threads_submit_many(gate: Gate) -> None:
    with ProcessWorker(n=2, client_ring_bytes=8192) as w:
        found: dict[int, list[int]] = {}

        def submit(number: int) -> None:
            found[number] = results(w.submit_many(pooljobs.square, range(number, number + 400)))

        threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [each**2 for each in range(number, number + 400)] for number in range(4)}


def test_in_an_event_loop() -> None:
    async def main() -> list[int]:
        async with AsyncProcessWorker(n=1, client_ring_bytes=4096) as w:
            begun = await asyncio.gather(*w.submit_many(lambda _: time.monotonic_ns(), range(10_000)))
            assert begun == sorted(begun), "one that had no room has been overtaken"
        async with AsyncProcessWorker(n=1, max_pending=10) as w:
            first = await asyncio.gather(*w.submit_many(pooljobs.square, range(5)))
            assert len(w._client.pending) == 0
            return [*first, *await asyncio.gather(*w.options(queue="other").submit_many(pooljobs.square, range(30)))]

    assert asyncio.run(main()) == [number**2 for number in [*range(5), *range(30)]]


class _Holds:
    """Whose pickling has another task submitted."""

    def __init__(self, worker: ProcessWorker, folder: str) -> None:
        self.worker, self.folder = worker, folder
        self.held: list[mpworker.TaskFuture[None]] = []

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        if not self.held:
            self.held.append(self.worker.submit(pooljobs.hold, self.folder))
        return int, (3,)


def test_what_comes_while_a_call_is_pickled_counts_for_max_pending(gate: Gate) -> None:
    with ProcessWorker(n=1, max_pending=1, submit_timeout=0) as w:
        assert w.submit(pooljobs.square, 2).result(GUARD) == 4
        holds = _Holds(w, gate.folder)
        with pytest.raises(QueueFull):
            w.submit(pooljobs.square, holds)
        assert len(w._client.pending) == 1
        gate.release()
        assert holds.held[0].result(GUARD) is None
        assert w.submit(pooljobs.square, holds).result(GUARD) == 9


class _Forks:
    """Whose pickling forks, and goes on in both."""

    def __init__(self) -> None:
        self.pid = -1

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        self.pid = os.fork()
        return int, (3,)


def test_a_fork_in_the_midst_of_them_is_told_what_it_is(w: ProcessWorker) -> None:
    assert w.submit(pooljobs.square, 2).result(GUARD) == 4
    forks = _Forks()
    parent = os.getpid()
    try:
        futures = w.submit_many(pooljobs.square, [1, forks, 2])
    except BaseException as error:
        if os.getpid() != parent:
            os._exit(5 if isinstance(error, WorkerStopped) else 6)
        raise
    if os.getpid() != parent:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(forks.pid, 0)[1]) == 5
    assert results(futures) == [1, 9, 4]
