"""`ProcessWorker.map`: order, laziness, bounds, failures and an early end."""

import itertools
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pooljobs
import pytest
from pooljobs import Gate

import mpworker
from mpworker import ProcessWorker
from mpworker.errors import SerializationError, WorkerStopped
from mpworker.mapping import WINDOW_MIN

GUARD = 60.0  # seconds; only a bound for what would hang


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=2) as worker:
        yield worker


class Pulled:
    """An iterator that counts how far it was read."""

    def __init__(self, source: Iterator[int]) -> None:
        self.count = 0
        self._source = source

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.count += 1
        return next(self._source)


# ------------------------------------------------------------ order


@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000], ids=str)
def test_results_come_in_the_order_of_the_input(pool: ProcessWorker, chunksize: int | None) -> None:
    assert list(pool.map(pooljobs.square, range(500), chunksize=chunksize)) == [n * n for n in range(500)]


def test_order_is_kept_when_the_first_item_is_the_last_to_end(pool: ProcessWorker, gate: Gate) -> None:
    def item(number: int) -> int:
        return int(pooljobs.hold(gate_folder, number)) if number == 0 else number

    gate_folder = gate.folder
    results = pool.map(item, range(30), chunksize=1)
    gate.wait_begun()
    gate.release()
    assert list(results) == list(range(30))


def test_chunks_grow_with_cheap_items(pool: ProcessWorker) -> None:
    tasks = pool.map(lambda _: mpworker.current().task_id, range(20_000))
    chunks = [len(list(group)) for _, group in itertools.groupby(tasks)]
    assert sum(chunks) == 20_000
    assert chunks[0] == 1, "nothing is known at first"
    assert max(chunks) > 50, "an item costs microseconds: many go together"


def test_expensive_items_go_alone(pool: ProcessWorker) -> None:
    def item(_: int) -> str:
        end = time.monotonic() + 0.005  # work, as far as the pool can tell
        while time.monotonic() < end:
            pass
        return mpworker.current().task_id

    ids = list(pool.map(item, range(100)))  # the first go alone anyway, for want of a measurement
    assert len(set(ids)) == 100


def test_a_given_chunksize_is_kept(pool: ProcessWorker) -> None:
    ids = list(pool.map(lambda _: mpworker.current().task_id, range(100), chunksize=30))
    assert [len(list(group)) for _, group in itertools.groupby(ids)] == [30, 30, 30, 10]


# ------------------------------------------------------------ input


def test_several_iterables_and_the_shortest_ends(pool: ProcessWorker) -> None:
    assert list(pool.map(pooljobs.add, range(1000), itertools.count(1))) == [2 * n + 1 for n in range(1000)]
    assert list(pool.map(pooljobs.add, range(5), (n for n in range(3)))) == [0, 2, 4]
    assert list(pool.map(pow, [2, 3], [5, 2, 7], [10, 10, 10])) == [2, 9]


@pytest.mark.parametrize("source", [[], (), "", iter(()), range(0), (n for n in ())], ids=lambda s: type(s).__name__)
def test_an_empty_input(pool: ProcessWorker, source: object) -> None:
    assert list(pool.map(pooljobs.square, source)) == []


def test_any_iterable_will_do(pool: ProcessWorker) -> None:
    class Old:
        """Iterates by the old protocol."""

        def __getitem__(self, index: int) -> int:
            return [1, 2, 3][index]

    class Liar(list):  # type: ignore[type-arg]
        """Its length is wrong."""

        def __len__(self) -> int:
            return 2

    assert list(pool.map(pooljobs.square, Old())) == [1, 4, 9]
    assert list(pool.map(pooljobs.square, Liar(range(50)))) == [n * n for n in range(50)]
    assert sorted(pool.map(pooljobs.square, {3, 4})) == [9, 16]
    assert list(pool.map(pooljobs.square, {5: "x"})) == [25]


def test_the_input_of_a_map_may_be_a_map(pool: ProcessWorker) -> None:
    # The read-ahead of one reads results of the other, in the same thread and the same pool.
    once = pool.map(pooljobs.square, range(300))
    twice = pool.map(pooljobs.square, once)
    assert list(twice) == [n**4 for n in range(300)]


def test_two_maps_can_be_read_in_turns_and_from_two_threads(pool: ProcessWorker) -> None:
    left, right = pool.map(pooljobs.square, range(400)), pool.map(str, range(400))
    assert list(zip(left, right, strict=True)) == [(n * n, str(n)) for n in range(400)]
    found: dict[int, list[int]] = {}

    def read(start: int) -> None:
        found[start] = list(pool.map(pooljobs.square, range(start, start + 500)))

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {start: [n * n for n in range(start, start + 500)] for start in (0, 1000, 2000)}


# ------------------------------------------------------------ bounds


def test_an_endless_input_is_read_a_bounded_way_ahead(pool: ProcessWorker) -> None:
    source = Pulled(itertools.count())
    results = pool.map(pooljobs.square, source)
    at_once = source.count
    assert 0 < at_once <= 64, "sent ahead though nobody has asked for a result"
    assert list(itertools.islice(results, 10)) == [n * n for n in range(10)]
    after_few = source.count
    # Nothing is read but by the thread that takes results.
    pool.submit(pooljobs.square, 1).result()
    assert source.count == after_few
    results.close()
    assert source.count == after_few


def test_an_endless_input_costs_bounded_memory(pool: ProcessWorker) -> None:
    blob = b"x" * 10_000
    results = pool.map(len, itertools.repeat(blob))
    taken = 0
    for _ in itertools.islice(results, 1000):
        taken += 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in itertools.islice(results, 20_000):  # 200 MB of input
        taken += 1
    assert taken == 21_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB
    results.close()


@pytest.mark.parametrize("chunksize", [None, 1, 3, 50], ids=str)
def test_buffersize_bounds_what_is_read_and_not_taken(pool: ProcessWorker, chunksize: int | None) -> None:
    source = Pulled(itertools.count())
    results = pool.map(pooljobs.square, source, buffersize=5, chunksize=chunksize)
    assert source.count <= 5
    for number in range(200):
        assert next(results) == number * number
        assert source.count <= number + 1 + 5
    results.close()


def test_a_buffersize_of_one_works_in_lockstep(pool: ProcessWorker) -> None:
    source = Pulled(iter(range(10)))
    results = pool.map(pooljobs.square, source, buffersize=1)
    for number in range(10):
        assert source.count <= number + 1
        assert next(results) == number * number
    assert list(results) == []


# ------------------------------------------------------------ failures


def test_the_first_failure_is_raised_in_its_turn(pool: ProcessWorker) -> None:
    results = pool.map(pooljobs.fail_if_odd, [0, 2, 4, 5, 6, 7])
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(ValueError, match=r"^5$") as caught:
        next(results)
    assert "pooljobs.py" in str(caught.value.__cause__)
    assert list(results) == [], "a generator that raised is at its end"


@pytest.mark.parametrize("chunksize", [None, 1, 4, 100], ids=str)
def test_failures_can_be_had_in_their_place(pool: ProcessWorker, chunksize: int | None) -> None:
    results = list(pool.map(pooljobs.fail_if_odd, range(50), chunksize=chunksize, return_exceptions=True))
    assert results[::2] == list(range(0, 50, 2))
    assert [type(error) for error in results[1::2]] == [ValueError] * 25
    assert [error.args[0] for error in results[1::2]] == list(range(1, 50, 2))


def test_a_result_that_is_an_exception_is_a_result(pool: ProcessWorker) -> None:
    (result,) = pool.map(ValueError, ["a value"])
    assert isinstance(result, ValueError)


def test_results_before_a_failing_input_come_first(pool: ProcessWorker) -> None:
    def source() -> Iterator[int]:
        yield from range(10)
        raise OSError("the input broke")

    for chunksize in (None, 1, 3, 4, 100):
        results = pool.map(pooljobs.square, source(), chunksize=chunksize)
        assert [next(results) for _ in range(10)] == [n * n for n in range(10)]
        with pytest.raises(OSError, match="the input broke"):
            next(results)


def test_an_item_that_cannot_be_pickled_fails_alone(pool: ProcessWorker) -> None:
    items = [1, 2, pooljobs.Unpicklable(), 4, 5]
    for chunksize in (None, 1, 2, 100):
        results = list(pool.map(str, items, chunksize=chunksize, return_exceptions=True))
        assert [result for result in results if isinstance(result, str)] == ["1", "2", "4", "5"]
        assert isinstance(results[2], SerializationError)
        assert "item 2 of map(str)" in str(results[2])
        assert "an Unpicklable cannot be pickled" in str(results[2])
        lazy = pool.map(str, items, chunksize=chunksize)
        assert [next(lazy), next(lazy)] == ["1", "2"]
        with pytest.raises(SerializationError, match=r"item 2 of map\(str\)"):
            next(lazy)


def test_an_item_that_cannot_be_unpickled_fails_alone(pool: ProcessWorker) -> None:
    items = [1, 2, pooljobs.Unloadable(), 4, 5]
    for chunksize in (None, 1, 2, 100):
        results = list(pool.map(str, items, chunksize=chunksize, return_exceptions=True))
        assert [result for result in results if isinstance(result, str)] == ["1", "2", "4", "5"]
        assert isinstance(results[2], SerializationError)
        assert "an Unloadable cannot be loaded" in str(results[2])


def test_a_result_that_cannot_be_pickled_fails_alone(pool: ProcessWorker) -> None:
    def item(number: int) -> object:
        return pooljobs.Unpicklable() if number == 3 else number

    for chunksize in (None, 1, 100):
        results = list(pool.map(item, range(6), chunksize=chunksize, return_exceptions=True))
        assert results[:3] + results[4:] == [0, 1, 2, 4, 5]
        assert isinstance(results[3], SerializationError)
        assert "pooljobs.Unpicklable" in str(results[3])


def test_a_result_that_cannot_be_unpickled_fails_alone(pool: ProcessWorker) -> None:
    def item(number: int) -> object:
        return pooljobs.Unloadable() if number == 3 else complex(number)

    for chunksize in (None, 1, 100):
        results = list(pool.map(item, range(6), chunksize=chunksize, return_exceptions=True))
        assert results[:3] + results[4:] == [0, 1, 2, 4, 5]
        assert isinstance(results[3], SerializationError)
        assert "an Unloadable cannot be loaded" in str(results[3])
        assert "item 3 of map" in str(results[3])


def test_a_result_does_not_wait_for_an_input_that_is_slow(pool: ProcessWorker) -> None:
    pulled: list[int] = []
    taken = threading.Event()

    def source() -> Iterator[int]:
        for number in range(100):
            pulled.append(number)
            if number:
                taken.wait(0.1)  # as a pipe whose other end has nothing to say for a while
            yield number

    results = pool.map(pooljobs.square, source())
    assert next(results) == 0
    assert len(pulled) < 10, "the window takes more"
    taken.set()
    assert list(results) == [number * number for number in range(1, 100)]


def test_a_chunk_that_is_too_large_goes_in_pieces() -> None:
    with ProcessWorker(n=1, max_payload_bytes=1 << 16) as pool:
        assert list(pool.map(len, [b"x" * 20_000] * 10, chunksize=10)) == [20_000] * 10
        results = list(pool.map(len, [b"x", b"x" * 70_000, b"xx"], chunksize=3, return_exceptions=True))
        assert (results[0], results[2]) == (1, 2)
        assert isinstance(results[1], SerializationError)
        assert "max_payload_bytes=65536" in str(results[1])


def test_a_function_that_cannot_be_pickled_is_told_at_the_call(pool: ProcessWorker) -> None:
    lock = threading.Lock()

    def locked(_: int) -> object:
        return lock

    with pytest.raises(SerializationError, match=r"locked.*cannot be pickled"):
        pool.map(locked, range(3))


# ------------------------------------------------------------ time


def test_timeout_counts_from_the_call_and_is_for_the_whole(pool: ProcessWorker, gate: Gate) -> None:
    results = pool.map(pooljobs.hold, [gate.folder], [1], timeout=0.05)
    gate.wait_begun()
    with pytest.raises(TimeoutError, match=r"map\(hold\) was not done within 0.05 s"):
        next(results)
    assert list(results) == []
    gate.release()  # the one that ran is left to end


def test_a_timeout_that_is_long_enough_changes_nothing(pool: ProcessWorker) -> None:
    assert list(pool.map(pooljobs.square, range(100), timeout=GUARD)) == [n * n for n in range(100)]


# ------------------------------------------------------------ an early end


@pytest.mark.parametrize("end", ["close", "drop", "failure", "timeout"])
def test_an_early_end_cancels_what_has_not_begun(pool: ProcessWorker, gate: Gate, tmp_path: Path, end: str) -> None:
    path = str(tmp_path / "began")

    def item(number: int) -> None:
        pooljobs.note(path, number)
        if number == 0 and end == "failure":
            raise ValueError(number)
        if number in (1, 2):
            pooljobs.hold(folder)

    folder = gate.folder
    results = pool.map(item, range(30), chunksize=1, timeout=1.0 if end == "timeout" else None)
    gate.wait_begun(2)  # both children are in an item: all others wait
    if end == "failure":
        with pytest.raises(ValueError, match=r"^0$"):
            next(results)
    else:
        next(results)
    if end == "timeout":
        with pytest.raises(TimeoutError):
            next(results)
    elif end == "close":
        results.close()
    elif end == "drop":
        del results
    assert not pool._client.pending
    pool.processes()  # the supervisor has taken in the cancels: requests come in order
    gate.release(2)
    pool.submit(pooljobs.square, 1).result()
    later = [pool.submit(pooljobs.hold, folder) for _ in range(2)]
    gate.wait_begun(2)  # each child has come past whatever it had
    gate.release(2)
    assert [future.result() for future in later] == [None, None]
    assert sorted(map(int, Path(path).read_text().split())) == [0, 1, 2]


def test_an_early_end_stops_a_chunk_between_two_items(pool: ProcessWorker, gate: Gate, tmp_path: Path) -> None:
    path = str(tmp_path / "began")

    def item(number: int) -> None:
        pooljobs.note(path, number)
        pooljobs.hold(folder)
        began_at = time.monotonic()
        while time.monotonic() - began_at < 0.002:
            pass  # a result that is older than a millisecond does not wait for the next item's

    folder = gate.folder
    results = pool.map(item, range(5), chunksize=5)
    gate.wait_begun()
    gate.release()
    gate.wait_begun()
    next(results)
    results.close()
    pool.processes()  # the supervisor has taken in the cancel: requests come in order
    gate.release()
    later = [pool.submit(pooljobs.hold, folder) for _ in range(2)]
    gate.wait_begun(2)
    gate.release(2)
    assert [future.result() for future in later] == [None, None]
    assert Path(path).read_text().split() == ["0", "1"]


def test_no_function_stays_behind_after_a_map(pool: ProcessWorker) -> None:
    seen: list[int] = []

    def uncacheable(number: int) -> int:
        return number + len(seen)

    entries = len(pool._client.functions.entries)
    for _ in range(5):
        assert list(pool.map(uncacheable, range(3))) == [0, 1, 2]
        pool.map(uncacheable, range(3)).close()
        pool.map(uncacheable, range(3))  # dropped
    assert len(pool._client.functions.entries) == entries


def test_what_was_sent_can_be_taken_after_the_stop() -> None:
    # The library's map has sent everything; this one as much as fits its window.
    with ProcessWorker(n=2) as pool:
        few = pool.map(pooljobs.square, range(20))
        many = pool.map(pooljobs.square, itertools.count())
    assert list(few) == [n * n for n in range(20)]
    taken = []
    with pytest.raises(WorkerStopped):
        taken.extend(many)
    with pytest.raises(WorkerStopped):
        pool.map(pooljobs.square, range(3))


# ------------------------------------------------------------ nested


def test_a_task_may_map_over_a_pool_of_its_own(pool: ProcessWorker) -> None:
    def inner(base: int) -> list[int]:
        with mpworker.ProcessWorker(n=1) as nested:
            return list(nested.map(pooljobs.add, range(3), itertools.repeat(base)))

    assert list(pool.map(inner, [10, 20])) == [[10, 11, 12], [20, 21, 22]]


def test_a_closed_map_has_no_further_result_though_the_rest_of_a_chunk_is_there(pool: ProcessWorker) -> None:
    results = pool.map(abs, list(range(100)), chunksize=50)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()  # type: ignore[attr-defined]
    assert list(results) == []


def test_a_map_is_over_with_the_first_failure_though_what_follows_is_there(pool: ProcessWorker) -> None:
    results = pool.map((12).__floordiv__, [4, 3, 0, 2, 1], chunksize=5)
    assert [next(results), next(results)] == [3, 4]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
    both = list(pool.map((12).__floordiv__, [4, 3, 0, 2, 1], chunksize=5, return_exceptions=True))
    assert both[:2] + both[3:] == [3, 4, 6, 12]
    assert isinstance(both[2], ZeroDivisionError)


@pytest.mark.parametrize("numbers", [range(0), range(5), range(10, -1_000, -7), range(3, 100_000, 5)], ids=repr)
def test_a_range_is_sent_in_pieces_of_it(pool: ProcessWorker, numbers: range) -> None:
    assert list(pool.map(abs, numbers)) == [abs(number) for number in numbers]
    assert list(pool.map(abs, numbers, chunksize=3, buffersize=7)) == [abs(number) for number in numbers]


def test_what_takes_no_result_of_a_range_sends_a_window_of_it(pool: ProcessWorker) -> None:
    results = pool.map(abs, range(10**15), chunksize=2)
    assert [next(results) for _ in range(5)] == list(range(5))
    pending = len(pool._client.pending)
    assert 0 < pending <= WINDOW_MIN
    results.close()  # type: ignore[attr-defined]
