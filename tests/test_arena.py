"""Arenas: large calls and results, written once and mapped."""

import asyncio
import contextlib
import functools
import mmap
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import arena_tasks as tasks
import numpy as np
import pooljobs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leaks import wait_until
from pooljobs import Gate

from mpworker import AsyncProcessWorker, ProcessWorker, Retention, TaskStatus, arenas
from mpworker.errors import ConfigurationError, QueueFull, SerializationError
from mpworker.ipc import arena, payload
from mpworker.ipc._native import Extents, Loan, detach_all
from mpworker.ipc.arena import NO_BLOCK, PAGE, Parcel
from mpworker.ipc.codec import BUFFER_MIN, PICKLE_MIN, RANGES_MAX
from mpworker.ipc.payload import Parts
from mpworker.supervisor.effects import ProtocolViolation
from mpworker.supervisor.held import Blocks, Held, Lending, held, of_result

MB = 1 << 20
LIMIT = 60.0


# ------------------------------------------------------------ extents

CAPACITY = 64 * PAGE
STEPS = st.lists(st.one_of(st.integers(0, 20 * PAGE), st.integers(0, 40).map(lambda place: -place - 1)), max_size=80)


@given(STEPS)
@settings(deadline=None)
def test_extents_never_overlap_and_join_again(steps: list[int]) -> None:
    extents = Extents(CAPACITY)
    blocks: list[tuple[int, int, int]] = []
    numbers: set[int] = set()

    def gaps() -> list[tuple[int, int]]:
        found, at = [], 0
        for _, offset, size in sorted(blocks, key=lambda block: block[1]):
            if at < offset:
                found.append((at, offset - at))
            at = offset + size
        return [*found, *([(at, CAPACITY - at)] if at < CAPACITY else [])]

    for step in steps:
        if step < 0:
            if blocks:
                number, _, _ = blocks.pop(-step % len(blocks))
                assert extents.give(number)
                assert not extents.give(number)
        else:
            needed = max(1, -(-step // PAGE)) * PAGE
            fits = [offset for offset, size in gaps() if size >= needed]
            taken: list[tuple[int, int, int]] = []
            assert extents.take(step, taken) == bool(fits)
            if fits:
                [(number, offset, size)] = taken
                assert (offset, size) == (fits[0], needed)  # the lowest that it fits
                assert number not in numbers
                numbers.add(number)
                blocks += taken
        assert extents.taken == sum(size for _, _, size in blocks)
        assert extents.largest == max([size for _, size in gaps()], default=0)
    for number, _, _ in blocks:
        assert extents.give(number)
    assert (extents.taken, extents.largest) == (0, CAPACITY)


# ------------------------------------------------------------ loans


@pytest.fixture
def memory() -> Iterator[tuple[int, mmap.mmap]]:
    """A file in memory, and the mapping by which its owner writes."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, 8 * PAGE)
    with mmap.mmap(fd, 8 * PAGE) as mapping:
        mapping[:] = b"a" * len(mapping)
        yield fd, mapping
    os.close(fd)


def test_what_is_written_to_a_loan_is_seen_there_alone(memory: tuple[int, mmap.mmap]) -> None:
    fd, mapping = memory
    loan, other = Loan(fd, PAGE, 2 * PAGE), Loan(fd, PAGE, 2 * PAGE)
    memoryview(loan)[3] = ord("b")
    assert bytes(memoryview(loan)[2:5]) == b"aba"
    assert bytes(memoryview(other)[2:5]) == b"aaa"
    assert mapping[:] == b"a" * len(mapping)


def test_a_loan_that_is_detached_sees_nothing_that_comes_later(memory: tuple[int, mmap.mmap]) -> None:
    fd, mapping = memory
    loan, detached = Loan(fd, 0, 2 * PAGE), Loan(fd, 0, 2 * PAGE)
    detached.detach()
    mapping[PAGE : PAGE + 3] = b"new"
    assert bytes(memoryview(loan)[PAGE : PAGE + 3]) == b"new"  # a private mapping is no snapshot
    assert bytes(memoryview(detached)[PAGE : PAGE + 3]) == b"aaa"


def test_a_loan_is_returned_once_and_only_when_it_is_armed(memory: tuple[int, mmap.mmap]) -> None:
    fd, _ = memory
    returned: list[int] = []
    Loan(fd, 0, PAGE, returned, 1)
    assert returned == []
    loan = Loan(fd, 0, PAGE, returned, 2)
    loan.arm()
    view = memoryview(loan)[5:]
    assert loan.views
    del loan
    assert returned == []
    view.release()
    del view
    assert returned == [2]
    loan = Loan(fd, 0, PAGE, returned, 3)
    loan.arm()
    loan.detach()
    loan.arm()
    del loan
    assert returned == [2, 3]


def test_before_a_fork_all_are_detached_or_those_that_return_to_one_list(memory: tuple[int, mmap.mmap]) -> None:
    fd, mapping = memory
    mine: list[int] = []
    loans = [Loan(fd, 0, PAGE, mine, 1), Loan(fd, 0, PAGE, [], 2), Loan(fd, 0, PAGE)]
    detach_all(mine)
    mapping[:1] = b"b"
    assert [bytes(memoryview(loan)[:1]) for loan in loans] == [b"a", b"b", b"b"]
    detach_all()
    mapping[:1] = b"c"
    assert [bytes(memoryview(loan)[:1]) for loan in loans] == [b"a", b"b", b"b"]


def test_a_fork_sees_what_was_there_when_it_began(memory: tuple[int, mmap.mmap]) -> None:
    fd, mapping = memory
    loan = Loan(fd, 0, PAGE)
    view = memoryview(loan)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        os._exit(view[0])
    mapping[:1] = b"z"
    os.write(writer, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ord("a")
    os.close(reader)
    os.close(writer)


def test_where_a_buffer_lies_in_a_loan_is_known_until_it_is_written(memory: tuple[int, mmap.mmap]) -> None:
    fd, _ = memory
    loan = Loan(fd, 0, 4 * PAGE)
    view = memoryview(loan)
    assert loan.locate(view) == 0
    assert loan.locate(view[PAGE + 7 : 3 * PAGE]) == PAGE + 7
    assert loan.locate(bytes(10)) == -1
    assert loan.locate(memoryview(Loan(fd, 0, PAGE))) == -1
    bytes(view)  # to read a page is not to write it
    assert loan.locate(view) == 0
    view[2 * PAGE] = 0
    assert loan.locate(view) == -1
    assert loan.locate(view[: 2 * PAGE]) == 0
    assert loan.locate(view[2 * PAGE + 5 : 2 * PAGE + 9]) == -1  # the page is a copy
    assert loan.locate(view[3 * PAGE :]) == 3 * PAGE
    loan.detach()
    assert loan.locate(view[:5]) == -1


# ------------------------------------------------------------ envelopes

SIZES = st.integers(0, 1 << 40)
BLOCKS = st.tuples(st.integers(0, 1 << 60), SIZES.map(lambda size: size * PAGE), SIZES)


@given(st.binary(max_size=50), BLOCKS, BLOCKS, st.data())
def test_an_envelope_says_what_was_put_on_it(data: bytes, own: Any, call: Any, more: st.DataObject) -> None:
    ranges = []
    for of_call in more.draw(st.lists(st.booleans(), max_size=5)):
        start = more.draw(st.integers(0, (call if of_call else own)[2]))
        ranges.append((of_call, start, more.draw(st.integers(0, (call if of_call else own)[2] - start))))
    has_pickle = bool(ranges) and more.draw(st.booleans())
    packed = arena.pack(data, own, call, ranges, has_pickle)
    found = arena.unpack(packed)
    assert (found.own, found.call, found.ranges, found.has_pickle) == (own, call, ranges, has_pickle)
    assert packed[: found.end] == data
    again = arena.unpack(arena.renumber(packed, 7, 8))
    assert (again.own, again.call, again.ranges) == ((7, *own[1:]), (8, *call[1:]), ranges)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 55,
        arena.pack(b"", (1, 0, PAGE), NO_BLOCK, [(False, PAGE - 1, 2)], False),
        arena.pack(b"", (1, 0, PAGE), NO_BLOCK, [(True, 0, 1)], False),
        arena.pack(b"", NO_BLOCK, NO_BLOCK, [], True),
        arena.pack(b"", NO_BLOCK, NO_BLOCK, [(False, 0, 0)] * 2, False)[16:],
        arena.pack(b"", NO_BLOCK, NO_BLOCK, [(False, 0, 0)] * (RANGES_MAX + 2), False),
    ],
    ids=["empty", "short", "beyond", "no call", "no pickle", "cut", "too many"],
)
def test_nonsense_is_no_envelope(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"envelope|range"):
        arena.unpack(data)


def test_a_pickle_has_beside_it_what_is_large() -> None:
    small, large = np.zeros(BUFFER_MIN - 1, "u1"), np.zeros(BUFFER_MIN, "u1")
    assert isinstance(payload.dumps_parts((1, small)), bytes)
    parts = payload.dumps_parts([small, large, large[::-1].reshape(-1, 2), np.asfortranarray(large.reshape(2, -1))])
    assert isinstance(parts, Parts)
    assert [len(each) for each in parts.buffers] == [BUFFER_MIN] * 2
    with_lambda = payload.dumps_parts((lambda: 3, large))
    assert isinstance(with_lambda, Parts)
    assert len(with_lambda.buffers) == 1
    function, values = pickle.loads(with_lambda.pickle, buffers=with_lambda.buffers)
    assert (function(), values.tobytes()) == (3, large.tobytes())
    long = payload.dumps_parts(b"x" * PICKLE_MIN)
    assert isinstance(long, Parts)
    assert long.buffers == []
    parts = payload.dumps_parts([large] + [large.copy() for _ in range(RANGES_MAX + 5)])
    assert isinstance(parts, Parts)
    assert len(parts.buffers) == RANGES_MAX
    assert len(pickle.loads(parts.pickle, buffers=parts.buffers)) == RANGES_MAX + 6


# ------------------------------------------------------------ what the supervisor holds


def test_a_child_gets_again_what_it_has_mapped_until_another_needs_the_room() -> None:
    taken_away: list[tuple[int, int]] = []
    lending = Lending(8 * PAGE, lambda *what: taken_away.append(what))
    first = lending.lend(1, 4 * PAGE)
    holding = lending.written(1, first)
    assert lending.in_use == 4 * PAGE
    del holding
    assert (lending.in_use, lending.taken) == (0, 4 * PAGE)
    assert lending.lend(1, 3 * PAGE) == first
    lending.written(1, first)  # and nobody holds it
    other = lending.lend(2, 2 * PAGE)
    assert other[1] == 4 * PAGE
    assert lending.lend(1, PAGE)[1] == 6 * PAGE  # `first` is too large for so little
    assert not taken_away
    lending.unused(1, lending.lend(1, PAGE)[0])
    assert lending.lend(2, 4 * PAGE)[1] == 0
    assert taken_away == [(1, first[0])]
    assert lending.lend(2, 3 * PAGE) == NO_BLOCK
    lending.died(1)
    lending.died(2)
    assert lending.taken == 0


def test_a_dead_childs_results_stay_until_nobody_has_them() -> None:
    lending = Lending(8 * PAGE, lambda *_: None)
    block, lost = lending.lend(1, PAGE), lending.lend(1, PAGE)
    holding = lending.written(1, block)
    lending.died(1)
    assert lending.taken == PAGE
    with pytest.raises(ProtocolViolation):
        lending.written(1, lost)
    del holding
    assert lending.taken == 0


def test_a_child_may_speak_of_its_own_blocks_alone() -> None:
    lending = Lending(8 * PAGE, lambda *_: None)
    mine, other = lending.lend(1, PAGE), lending.lend(2, PAGE)
    freed: list[Any] = []
    call = held(b"", _holding((5, 0, PAGE), freed))

    def answer(known: bytes, own: Any = NO_BLOCK, of_call: Any = NO_BLOCK) -> Held:
        return of_result(arena.pack(b"x", own, of_call, [], False), 1, lending, known)

    for wrong in ({"own": other}, {"own": (mine[0], 0, 2 * PAGE)}, {"of_call": (6, 0, PAGE)}):
        with pytest.raises(ProtocolViolation):
            answer(call, **wrong)
    with pytest.raises(ProtocolViolation):
        answer(b"a small call", of_call=(5, 0, PAGE))
    with pytest.raises(ProtocolViolation):
        of_result(b"x", 1, lending, call)
    mine = lending.lend(1, PAGE)
    result = answer(call, own=mine, of_call=(5, 0, PAGE))
    assert result.block_bytes == 2 * PAGE
    del call
    assert freed == []
    blocks = Blocks(lending)
    delivered = arena.unpack(blocks.deliver(result))
    again = arena.unpack(blocks.deliver(result))
    assert len({delivered.own[0], delivered.call[0], again.own[0], again.call[0]}) == 4
    del result
    for number in (delivered.call[0], delivered.call[0], 99, delivered.own[0], again.own[0]):
        blocks.forget(number)
    assert freed == []
    blocks.forget(again.call[0])
    assert freed == [(5, 0, PAGE)]


def _holding(block: Any, freed: list[Any]) -> Any:
    from mpworker.supervisor.held import Holding

    return Holding(block, freed.append)


# ------------------------------------------------------------ through a pool


@pytest.fixture
def w() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=2, arena_max_bytes=64 * MB) as worker:
        worker.submit(abs, 1).result(LIMIT)
        yield worker


def numbers(size: int = MB // 8) -> Any:
    return np.random.default_rng(size).random(size)


def in_use(w: ProcessWorker) -> dict[str, int]:
    return w.metrics().arena_bytes


def nothing_is_held(w: ProcessWorker) -> bool:
    return in_use(w) == {"calls": 0, "results": 0}


def test_arrays_go_in_and_come_back(w: ProcessWorker) -> None:
    values = numbers()
    assert w.submit(tasks.total, values).result(LIMIT) == values.sum()
    for result in (w.submit(tasks.echo, values).result(LIMIT), w.submit(np.sort, values).result(LIMIT)):
        assert sorted(result) == sorted(values)
        assert result.flags.writeable
        result[0] = 7.0  # as it does with other pools
        assert (result[0], values[0]) == (7.0, numbers()[0])
    fixed = numbers()
    fixed.flags.writeable = False
    assert not w.submit(tasks.echo, fixed).result(LIMIT).flags.writeable
    assert (
        w.submit(tasks.echo, np.asfortranarray(values.reshape(64, -1))).result(LIMIT) == values.reshape(64, -1)
    ).all()
    several = {"a": values, "b": [numbers(5000), "text", numbers(9000)]}
    back = w.submit(tasks.echo, value=several).result(LIMIT)
    assert (back["a"] == values).all()
    assert (back["b"][2] == several["b"][2]).all()
    del result, back
    assert wait_until(lambda: nothing_is_held(w), LIMIT)


@pytest.mark.parametrize("size", [PICKLE_MIN - 100, PICKLE_MIN, 3 * MB, 80 * MB])
def test_large_pickles_go_the_same_way(w: ProcessWorker, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert w.submit(tasks.echo, data).result(LIMIT) == data
    assert next(w.map(tasks.echo, [data])) == data
    assert w.submit(tasks.echo, value=bytearray(data)).result(LIMIT) == data
    assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_a_task_that_changes_its_input_and_returns_it(w: ProcessWorker) -> None:
    values = numbers()
    for _ in range(3):
        assert (w.submit(tasks.double, values).result(LIMIT) == 2 * values).all()
    changed, same = w.submit(tasks.write_one, values).result(LIMIT)
    assert changed[0] == -1
    assert (np.concatenate([changed, same])[1:] == values[1:]).all()
    assert values[0] != -1


def test_what_comes_back_as_it_was_is_not_written_again(w: ProcessWorker) -> None:
    values = numbers()
    back = w.submit(tasks.echo, values).result(LIMIT)
    slice_of_it = w.submit(tasks.part, values, 100, 50_000).result(LIMIT)
    assert wait_until(lambda: in_use(w)["results"] == 0, LIMIT)
    assert in_use(w)["calls"] >= 2 * values.nbytes
    assert (back == values).all()
    assert (slice_of_it == values[100:50_000]).all()
    for _ in range(20):  # nobody may write where they lie
        assert w.submit(tasks.total, values + 1).result(LIMIT) == (values + 1).sum()
    assert (back == values).all()
    assert (slice_of_it == values[100:50_000]).all()
    del back, slice_of_it
    assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_a_task_that_keeps_its_input(w: ProcessWorker) -> None:
    w.set_max_workers(1)
    expected = []
    for number in range(5):
        values = numbers() + number
        w.submit(tasks.keep, values).result(LIMIT)
        expected.append(float(values.sum()))
        assert w.submit(tasks.of_kept).result(LIMIT) == expected
    assert wait_until(lambda: nothing_is_held(w), LIMIT)


@pytest.mark.parametrize("spoil", [tasks.spoil_and_die, tasks.spoil_and_raise])
def test_each_attempt_sees_its_arguments_as_they_were_submitted(w: ProcessWorker, spoil: Any, tmp_path: Path) -> None:
    values = numbers()
    assert w.options(retries=1).submit(spoil, values, tmp_path / "once").result(LIMIT) == values.sum()
    assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_a_failed_task_is_run_again_with_what_it_was_given() -> None:
    with ProcessWorker(n=1, arena_max_bytes=8 * MB, retention=Retention(max_entries=10)) as w:
        values = numbers()
        failed = w.submit(tasks.fail, values)
        assert isinstance(failed.exception(LIMIT), ValueError)
        assert in_use(w)["calls"] >= values.nbytes  # it may be run again
        again = w.retry_task(failed.task_id)
        assert str(again.exception(LIMIT)) == str(len(values))
        w.set_retention(Retention(max_entries=0))
        assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_a_call_that_is_run_again_keeps_its_block_itself(gate: Gate) -> None:
    with ProcessWorker(n=1, arena_max_bytes=4 * MB, retention=Retention(max_entries=1)) as w:
        failed = w.submit(tasks.fail, numbers())
        assert isinstance(failed.exception(LIMIT), ValueError)
        holding = w.submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        again = w.retry_task(failed.task_id)
        w.set_retention(Retention(max_entries=0))  # the first one's is let go
        for _ in range(3):
            w.submit(tasks.total, numbers(20_000)).cancel()
            assert in_use(w)["calls"] >= numbers().nbytes
        gate.release()
        assert str(again.exception(LIMIT)) == str(len(numbers()))
        holding.result(LIMIT)
        assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_blocks_count_in_what_is_remembered() -> None:
    with ProcessWorker(n=1, arena_max_bytes=8 * MB, retention=Retention(max_bytes=numbers().nbytes)) as w:
        failed = [w.submit(tasks.fail, values) for values in (numbers(10_000), numbers())]
        assert all(isinstance(each.exception(LIMIT), ValueError) for each in failed)
        assert wait_until(lambda: nothing_is_held(w), LIMIT)
        assert w.get_task(failed[0].task_id).status is TaskStatus.FAILED


def test_map_over_arrays(w: ProcessWorker) -> None:
    arrays = [numbers(20_000 + number) for number in range(40)]
    for got, sent in zip(w.map(tasks.echo, arrays), arrays, strict=True):
        assert (got == sent).all()
    for chunksize in (1, 7):
        doubled = list(w.map(tasks.double, arrays, chunksize=chunksize))
        assert all((got == 2 * sent).all() for got, sent in zip(doubled, arrays, strict=True))
    del got, doubled
    assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_an_array_in_a_loop_and_in_the_caller(tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncProcessWorker(n=1, arena_max_bytes=2 * MB, max_pending=3) as w:
            values = numbers()
            results = await asyncio.gather(*(w.submit(tasks.echo, values + number) for number in range(12)))
            assert all((got == values + number).all() for number, got in enumerate(results))

    asyncio.run(run())
    with ProcessWorker(debug=True) as w:
        values = numbers()
        assert (w.submit(tasks.double, values).result(LIMIT) == 2 * values).all()


# ------------------------------------------------------------ bounds


def test_a_submit_waits_for_room_in_the_arena(gate: Gate) -> None:
    with ProcessWorker(n=2, arena_max_bytes=3 * MB) as w:
        held_back = [w.submit(tasks.hold_and_count, gate.folder, np.zeros(MB, "u1")) for _ in range(2)]
        gate.wait_begun(2)
        third = w.submit(tasks.hold_and_count, gate.folder, np.zeros(MB - PAGE, "u1"))
        late: list[Any] = []
        waits = threading.Thread(target=lambda: late.append(w.submit(tasks.total, np.ones(MB, "u1"))), daemon=True)
        waits.start()
        assert wait_until(lambda: w._client._leader == waits.ident, LIMIT)
        assert not late
        gate.release(1)
        wait(held_back, return_when="FIRST_COMPLETED")
        waits.join(LIMIT)
        assert late
        gate.release(2)
        assert late[0].result(LIMIT) == MB
        for future in (*held_back, third):
            future.result(LIMIT)


@pytest.mark.parametrize("verb", ["submit", "share"])
def test_who_waits_for_room_hears_of_what_was_given_back_just_before(verb: str, gate: Gate) -> None:
    with ProcessWorker(n=1, arena_max_bytes=3 * MB) as w:
        calls = {
            "submit": lambda: w.submit(tasks.total, np.ones(MB, "u1")),
            "share": lambda: w.share(np.ones(MB // 2, "u1")),
        }
        kept = w.submit(tasks.echo, np.ones(MB, "u1")).result(LIMIT)
        supervisor = w.processes()["supervisor"]
        os.kill(supervisor, signal.SIGSTOP)
        try:
            del kept  # which the next call gives back
            holding = [w.submit(tasks.hold_and_count, gate.folder, np.ones(MB, "u1")) for _ in range(2)]
            late: list[object] = []
            waits = threading.Thread(target=lambda: late.append(calls[verb]()), daemon=True)
            waits.start()
            bell = w._client._bell
            assert bell is not None
            assert wait_until(lambda: w._client._leader == waits.ident and bell.waiting, LIMIT)
        finally:
            os.kill(supervisor, signal.SIGCONT)
        waits.join(LIMIT)
        assert late  # the tasks that hold on go on
        gate.release(2)
        assert [future.result(LIMIT) for future in holding] == [MB, MB]


def test_who_waits_for_a_result_is_not_woken_by_what_it_gave_back(gate: Gate) -> None:
    with ProcessWorker(n=1, arena_max_bytes=3 * MB) as w:
        kept = w.submit(tasks.echo, np.ones(MB, "u1")).result(LIMIT)
        supervisor = w.processes()["supervisor"]
        os.kill(supervisor, signal.SIGSTOP)
        try:
            del kept
            holding = w.submit(tasks.hold_and_count, gate.folder, np.ones(MB, "u1"))
            waits = threading.Thread(target=holding.result, daemon=True)
            waits.start()
            client = w._client
            bell = client._bell
            assert bell is not None
            asleep = Path(f"/proc/self/task/{waits.native_id}/stat")  # it looks at the ring for a while before it is
            assert wait_until(lambda: bell.waiting and asleep.read_text().rsplit(")")[1].split()[0] == "S", LIMIT)
            turns = client._turn
        finally:
            os.kill(supervisor, signal.SIGCONT)
        gate.wait_begun()
        assert client._turn == turns
        gate.release()
        assert holding.result(LIMIT) == MB
        waits.join(LIMIT)


@pytest.mark.parametrize(("quietly", "wakes"), [((True, True), False), ((True, False), True)])
def test_what_nobody_waits_for_wakes_nobody(quietly: tuple[bool, bool], wakes: bool) -> None:
    blocks = Blocks(Lending(4 * PAGE, lambda *_: None))
    numbers = []
    for number in (5, 6):
        call = blocks.held(arena.pack(b"", (number, 0, PAGE), NO_BLOCK, [(False, 0, 1)], True))
        refers = arena.pack(b"", NO_BLOCK, (number, 0, PAGE), [(True, 0, 1)], False)
        numbers.append(arena.unpack(blocks.deliver(held(refers, None, call.own))).call[0])
    del call
    for number, quiet in zip(numbers, quietly, strict=True):
        blocks.forget(number, quiet)
    assert blocks.take_freed() == ([5, 6], wakes)
    assert blocks.take_freed() == ([], False)


def test_a_submit_without_patience_for_the_arena(gate: Gate) -> None:
    with ProcessWorker(n=1, arena_max_bytes=MB + PAGE, submit_timeout=0.0) as w:
        first = w.submit(pooljobs.hold, gate.folder, np.zeros(MB, "u1"))
        with pytest.raises(QueueFull, match=f"arena_max_bytes={MB + PAGE} have no room for {MB} bytes"):
            w.submit(tasks.total, np.zeros(MB, "u1"))
        gate.release()
        first.result(LIMIT)


def test_what_the_program_keeps_is_not_waited_for() -> None:
    with ProcessWorker(n=2, arena_max_bytes=2 * MB) as w:
        values = numbers()
        back = [w.submit(tasks.echo, values + number).result(LIMIT) for number in range(10)]
        made = [w.submit(tasks.make, MB // 2, number).result(LIMIT) for number in range(10)]
        assert all((got == values + number).all() for number, got in enumerate(back))
        assert all((got == number).all() for number, got in enumerate(made))
        del back, made
        assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_more_than_the_arena_takes_goes_through_the_rings() -> None:
    with ProcessWorker(n=1, arena_max_bytes=MB) as w:
        values = numbers(MB)
        assert (w.submit(tasks.double, values).result(LIMIT) == 2 * values).all()
        assert nothing_is_held(w)


@pytest.mark.usefixtures("hasty")
def test_many_producers_whose_results_are_larger_than_half_of_the_arena() -> None:
    with ProcessWorker(n=2, arena_max_bytes=2 * MB) as w:
        wrong: list[Any] = []

        def produce(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(15):
                size, value = rng.randrange(MB // 2, 3 * MB // 2), rng.randrange(256)
                result = w.submit(tasks.echo, np.full(size, value, "u1")).result(LIMIT)
                made = w.submit(tasks.make, size, value).result(LIMIT)
                if not ((result == value).all() and (made == value).all() and len(result) == len(made) == size):
                    wrong.append((seed, size, value))

        threads = [threading.Thread(target=produce, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * LIMIT)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong
        assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_where_there_is_no_memory_for_the_arena_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with ProcessWorker(n=1, arena_max_bytes=8 * MB) as w:
        monkeypatch.setattr(arena.Arena, "back", refuse)
        values = numbers()
        assert (w.submit(tasks.double, values).result(LIMIT) == 2 * values).all()
        assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_a_result_that_cannot_be_mapped_is_copied(w: ProcessWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")  # as the kernel does where a process has vm.max_map_count mappings

    monkeypatch.setattr(arenas, "Loan", refuse)
    values = numbers()
    results = [w.submit(task, values).result(LIMIT) for task in (tasks.echo, tasks.double)]
    assert wait_until(lambda: nothing_is_held(w), LIMIT)
    assert all((got == sent).all() for got, sent in zip(results, (values, 2 * values), strict=True))
    assert all(got.flags.writeable for got in results)


def test_what_comes_while_a_result_waits_for_room_is_done(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    try:
        with ProcessWorker(n=1, arena_max_bytes=64 * MB) as w:
            for _ in range(200):  # so that it is known to be short, and another is offered behind it
                w.submit(tasks.make_held, None, 1, 1).result(LIMIT)
            held = w.submit(tasks.make_held, gate.folder, 2 * BUFFER_MIN, 2)
            gate.wait_begun()
            behind = [w.submit(tasks.make_held, None, 2 * BUFFER_MIN, 3), w.submit(tasks.total, np.ones(MB))]
            assert wait_until(lambda: w.processes()["children"][0]["offers"] == 2, LIMIT)
            gate.release()
            assert [held.result(LIMIT)[0], behind[0].result(LIMIT)[0], behind[1].result(LIMIT)] == [2, 3, MB]
    finally:
        gate.close()


def test_bounds_of_the_option() -> None:
    with pytest.raises(ConfigurationError, match=r"arena_max_bytes must be .*not -1"):
        ProcessWorker(n=1, arena_max_bytes=-1)
    with ProcessWorker(n=1, max_payload_bytes=MB) as w:
        with pytest.raises(SerializationError, match=f"exceeds max_payload_bytes={MB}"):
            w.submit(tasks.total, np.zeros(MB + 1, "u1"))
        assert isinstance(w.submit(tasks.make, MB + 1, 0).exception(LIMIT), SerializationError)
        assert nothing_is_held(w)


# ------------------------------------------------------------ nothing stays


def test_blocks_of_children_that_are_killed_come_back(tmp_path: Path) -> None:
    rng = random.Random(1)
    with ProcessWorker(n=2, arena_max_bytes=16 * MB, retries=3, crash_retries=50) as w:
        futures = []
        for number in range(120):
            futures.append((number, w.submit(tasks.double, np.full(rng.randrange(BUFFER_MIN, MB), number % 100, "u1"))))
            futures.append((number, w.submit(tasks.make, rng.randrange(BUFFER_MIN, MB), 2 * (number % 100))))
            alive = w.processes()["children"] if number % 10 == 5 else []
            if alive:
                with contextlib.suppress(ProcessLookupError):  # it may be that of the kill before, which is told late
                    os.kill(rng.choice(alive)["pid"], signal.SIGKILL)
        for number, future in futures[::2]:
            assert (future.result(LIMIT) == 2 * (number % 100)).all()
        del futures, future  # the other half was never looked at
        assert wait_until(lambda: w.metrics().queued + w.metrics().running == 0 and nothing_is_held(w), LIMIT)


def test_results_outlive_the_pool_and_of_the_arena_nothing_else() -> None:
    with ProcessWorker(n=1, arena_max_bytes=64 * MB) as w:
        values = numbers()
        unseen = w.submit(tasks.echo, values)
        made = w.submit(tasks.make, MB, 3).result(LIMIT)
        others = [w.submit(tasks.make, MB, number).result(LIMIT) for number in range(20)]
        watched = os.dup(w._client.arenas._results.fd)  # type: ignore[union-attr]
        assert os.fstat(watched).st_blocks * 512 >= 21 * MB
        del others
    try:
        assert (unseen.result(LIMIT) == values).all()
        assert (made == 3).all()
        assert os.fstat(watched).st_blocks * 512 <= 2 * MB
    finally:
        os.close(watched)


PART_OF_A_CALL = """
import os, sys, threading
import arena_tasks as tasks
import numpy as np
from mpworker import ProcessWorker


def arenas():
    with open("/proc/self/maps") as maps:
        return [line for line in maps if "mpworker-calls" in line]


go_on = threading.Event()
if sys.argv[1] == "accompanied":
    threading.Thread(target=go_on.wait, daemon=True).start()
with ProcessWorker(n=1, arena_max_bytes=1 << 26) as w:
    w.submit(tasks.total, np.ones(1 << 25, "u1")).result()
    part = w.submit(tasks.part, np.arange(1 << 20, dtype="u1"), 256, 1 << 18).result()
    unseen = w.submit(tasks.echo, np.arange(1 << 20, dtype="u1"))
kept = len(arenas())
go_on.set()
part += 1
assert (part == np.arange(257, (1 << 18) + 1).astype("u1")).all()
assert (unseen.result() == np.arange(1 << 20, dtype="u1")).all()
print(kept)
"""


@pytest.mark.parametrize(("company", "kept"), [("alone", 0), ("accompanied", 1)])
def test_a_part_of_a_call_that_is_kept_does_not_keep_the_arena(company: str, kept: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PART_OF_A_CALL, company],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{kept}\n")


def test_pandas_and_arrow(w: ProcessWorker) -> None:
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": numbers(MB // 8), "b": range(MB // 8), "c": ["x", "yz"] * (MB // 16)})
    table = pyarrow.table({"a": frame["a"], "b": frame["b"]})
    assert isinstance(payload.dumps_parts(frame), Parts)
    assert w.submit(tasks.echo, frame).result(LIMIT).equals(frame)
    assert w.submit(tasks.echo, table).result(LIMIT).equals(table)
    assert wait_until(lambda: nothing_is_held(w), LIMIT)


def test_results_outlive_a_supervisor_that_is_killed() -> None:
    w = ProcessWorker(n=1, arena_max_bytes=8 * MB)
    made = w.submit(tasks.make, MB, 3).result(LIMIT)
    os.kill(w.processes()["supervisor"], signal.SIGKILL)
    assert (made == 3).all()
    assert wait_until(lambda: w._client.is_over() or not w._client.poll(), LIMIT)
    w.stop_now()
    assert (made == 3).all()


def test_a_fork_of_a_task_sees_the_input_as_it_was(w: ProcessWorker, tmp_path: Path) -> None:
    values = numbers()
    reader, writer = tmp_path / "gate", tmp_path / "out"
    os.mkfifo(reader)
    w.submit(tasks.seen_in_fork, values, str(reader), str(writer)).result(LIMIT)
    for number in range(10):
        w.submit(tasks.total, values * number).result(LIMIT)
    reader.write_bytes(b"x")
    assert wait_until(lambda: writer.exists() and bool(writer.read_text()), LIMIT)
    assert float(writer.read_text()) == values.sum()


FORKING = """
import os, sys
import numpy as np
from mpworker import ProcessWorker

with ProcessWorker(n=1, arena_max_bytes=1 << 22) as w:
    result = w.submit(np.full, 1 << 20, 1, "u1").result()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        os._exit(int(result.sum()) != 1 << 20)
    del result
    for number in range(20):
        w.submit(np.full, 1 << 20, 2, "u1").result()
    os.write(writer, b"x")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_fork_of_the_program_keeps_its_results() -> None:
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")


MAPPING_AFTER_FORK = """
import ctypes, os, sys
import numpy as np

FIXED_NOREPLACE, PRIVATE, ANONYMOUS = 0x100000, 2, 32
mmap = ctypes.CDLL(None).mmap
mmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def take_the_place():
    assert mmap(place, 1 << 22, 3, FIXED_NOREPLACE | PRIVATE | ANONYMOUS, -1, 0) == place


os.register_at_fork(after_in_child=take_the_place)  # before mpworker has its own
from mpworker import ProcessWorker

with ProcessWorker(n=1, arena_max_bytes=1 << 22) as w:
    w.submit(len, np.zeros(1 << 20, "u1")).result()
    with open("/proc/self/maps") as maps:
        [place] = [int(line.split("-")[0], 16) for line in maps if "mpworker-calls" in line]
    pid = os.fork()
    if pid == 0:
        ctypes.memset(place, 1, 1 << 22)
        os._exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_fork_of_the_program_unmaps_nothing_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAPPING_AFTER_FORK], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_parcel_is_given_back_by_whoever_was_armed(memory: tuple[int, mmap.mmap]) -> None:
    fd, mapping = memory
    mapping[: 3 * 8] = np.arange(3.0).tobytes()
    parts = payload.dumps_parts(np.arange(3.0))
    assert isinstance(parts, bytes)
    pickled = pickle.dumps(np.arange(3.0), 5, buffer_callback=lambda _: None)
    data = arena.pack(pickled, (4, 0, PAGE), NO_BLOCK, [(False, 0, 24)], False)
    returned: list[int] = []
    lend = functools.partial(_lend, fd, returned)
    first, second = (Parcel(data, arena.unpack(data), lend) for _ in range(2))
    second.arm()
    del first  # made of the same record, and never anybody's
    assert returned == []
    value = payload.loads_result(second)  # type: ignore[arg-type]
    del second
    assert (value.tolist(), returned) == ([0.0, 1.0, 2.0], [])
    del value
    assert returned == [4]


def _lend(fd: int, returned: list[int], _of_call: bool, block: Any) -> Loan:
    number, offset, size = block
    return Loan(fd, offset, size, returned, number)
