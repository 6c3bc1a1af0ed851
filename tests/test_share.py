"""Shared objects: placed once, opened by every task without a copy and read-only, and given back."""

import asyncio
import copy
import gc
import mmap
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import share_tasks as tasks
from hypothesis import given
from hypothesis import strategies as st
from leaks import wait_until
from points import sweep
from pooljobs import Gate

from mpworker import AsyncProcessWorker, ProcessWorker, Retention, Shared, Task, sharing
from mpworker.errors import QueueFull, SerializationError, ShareError, TaskNotFound, WorkerStopped
from mpworker.ipc import arena, payload, shares
from mpworker.ipc._native import Loan, detach_all
from mpworker.ipc.arena import NO_BLOCK, PAGE, SHARES_MAX
from mpworker.supervisor.effects import ProtocolViolation
from mpworker.supervisor.held import Blocks, Lending, held
from mpworker.supervisor.shares import Shares

MB = 1 << 20
LIMIT = 60.0


@pytest.fixture
def w() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=2, arena_max_bytes=64 * MB) as worker:
        yield worker


@pytest.fixture
def single() -> Iterator[ProcessWorker]:
    with ProcessWorker(n=1, arena_max_bytes=16 * MB) as worker:
        yield worker


def numbers(size: int = MB // 8) -> Any:
    return np.random.default_rng(size).random(size)


def taken(w: ProcessWorker) -> int:
    return w.metrics().arena_bytes["calls"]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # dead already, and reaped


def nothing_is_held(w: ProcessWorker) -> bool:
    return wait_until(lambda: taken(w) == 0, LIMIT)


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


def test_a_loan_that_is_read_only(memory: tuple[int, mmap.mmap]) -> None:
    fd, mapping = memory
    loan = Loan(fd, PAGE, 2 * PAGE, [], 0, True)
    view = memoryview(loan)
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1
    loan.detach()
    mapping[PAGE : PAGE + 1] = b"b"
    assert bytes(view[:2]) == b"aa"
    assert view.readonly
    assert "r--p" in _where(view)
    assert "memfd" not in _where(view)  # nothing of the file is kept


def _where(view: memoryview) -> str:
    at = np.frombuffer(view, "u1").ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(each, 16) for each in line.split()[0].split("-"))
        if start <= at < end:
            return line
    raise AssertionError("it is nowhere")


def test_before_a_fork_a_shared_object_is_copied_only_if_it_is_viewed(memory: tuple[int, mmap.mmap]) -> None:
    fd, mapping = memory
    returned: list[int] = []
    viewed, other = Loan(fd, 0, PAGE, returned, 1, True), Loan(fd, 0, PAGE, returned, 2, True)
    viewed.arm()
    other.arm()
    view = memoryview(viewed)
    detach_all(returned)
    assert returned == [1]
    mapping[:1] = b"b"
    assert bytes(view[:1]) == b"a"
    del other
    assert returned == [1, 2]


# ------------------------------------------------------------ envelopes and blocks

BLOCKS = st.lists(st.tuples(*[st.integers(0, (1 << 64) - 1)] * 3), max_size=5)


@given(st.binary(max_size=50), BLOCKS, st.booleans())
def test_an_envelope_says_of_what_it_speaks(data: bytes, blocks: list[Any], large: bool) -> None:
    own = (3, 0, PAGE) if large else NO_BLOCK
    ranges = [(False, 0, 10)] if large else []
    found = arena.unpack(arena.pack(data, own, NO_BLOCK, ranges, large, blocks))
    assert (found.shares, found.own, found.ranges, found.end) == (blocks, own, ranges, len(data))


def test_more_shared_objects_than_there_is_room_for_are_no_envelope() -> None:
    data = arena.pack(b"x", NO_BLOCK, NO_BLOCK, [], False, [(1, 0, PAGE)] * 3)
    with pytest.raises(ValueError, match="envelope"):
        arena.unpack(data[-4 - arena._FOOTER.size :])


def test_what_a_block_holds() -> None:
    value = {"a": np.arange(5), "b": [b"x" * 100, np.arange(6.0).reshape(2, 3).T], "c": np.zeros(0)}
    parts = payload.dumps_apart(value, 0)
    pieces, starts, size = shares.lay_out(parts)
    memory = bytearray(size)
    arena.write(memoryview(memory), starts, pieces)
    found = shares.read(memoryview(memory).toreadonly(), pickle.loads)
    assert (found["a"] == value["a"]).all()
    assert (found["b"][1] == value["b"][1]).all()  # type: ignore[index]
    assert found["b"][0] == b"x" * 100
    assert not found["a"].flags.writeable
    assert all(start % 64 == 0 for start in starts)  # as vector instructions want it


def test_who_holds_a_shared_object() -> None:
    freed: list[Any] = []
    held_by_all = Shares(freed.append)
    block = (7, 0, PAGE)
    held_by_all.place(block)
    assert held_by_all.named([(8, 0, PAGE)]) is None
    assert held_by_all.named([(7, 0, 2 * PAGE)]) is None
    spoken_of = held_by_all.named([block])
    assert spoken_of is not None
    call = held(b"call", None, shares=spoken_of)
    del spoken_of
    held_by_all.opened(1, 7, [b"another", call])
    with pytest.raises(ProtocolViolation):
        held_by_all.opened(1, 9, [call])
    held_by_all.let_go(7)
    held_by_all.let_go(7)
    assert held_by_all.named([block]) is None
    held_by_all.opened(2, 7, [call])  # the call may go to any child
    held_by_all.opened(3, 7, [call])
    assert held_by_all.to_close() == []
    call.over()
    assert held_by_all.to_close() == [(1, 7), (2, 7), (3, 7)]
    assert held_by_all.to_close() == []
    held_by_all.closed(1, 7)
    held_by_all.closed(1, 7)
    held_by_all.died(2)
    assert freed == []
    held_by_all.closed(3, 7)
    assert freed == [block]


def test_a_call_that_speaks_of_what_is_not_shared_is_none() -> None:
    blocks = Blocks(Lending(0, lambda *_: None))
    call = arena.pack(b"x", NO_BLOCK, NO_BLOCK, [], False, [(7, 0, PAGE)])
    with pytest.raises(ValueError, match="not shared"):
        blocks.held(call)
    blocks.shares.place((7, 0, PAGE))
    first = blocks.held(call)
    first.over()
    again = blocks.again(call, first)
    assert again is not None
    blocks.shares.let_go(7)
    assert blocks.again(call, first) is None
    assert blocks.freed == []
    del again
    assert blocks.freed == [7]


# ------------------------------------------------------------ what tasks see


def test_every_task_sees_it_and_none_has_a_copy(w: ProcessWorker) -> None:
    values = numbers()
    with w.share(values) as shared:
        before = taken(w)
        assert values.nbytes <= before <= values.nbytes + 2 * PAGE
        assert shared.nbytes >= values.nbytes
        futures = [w.submit(tasks.total, shared) for _ in range(20)]
        assert [future.result(LIMIT) for future in futures] == [values.sum()] * 20
        assert taken(w) == before
        assert (shared.value == values).all()
        assert shared.value is shared.value
        assert copy.copy(shared) is copy.deepcopy([shared])[0] is shared
        assert not shared.value.flags.writeable
    assert nothing_is_held(w)


def test_a_call_takes_along_a_few_bytes(w: ProcessWorker) -> None:
    with w.share(numbers()) as shared:
        with_it, _ = payload.dumps_sharing(((shared,), {}))
        assert len(with_it) - len(payload.dumps(((None,), {}))) < 100
        assert b"numpy" not in with_it


def test_it_is_opened_once_for_each_child(w: ProcessWorker) -> None:
    with w.share(numbers()) as shared:
        seen = {w.submit(tasks.identity, shared).result(LIMIT) for _ in range(50)}
        assert len(seen) == len({pid for pid, _ in seen})
        assert w.submit(tasks.in_threads, shared).result(LIMIT) == 1


def test_what_is_shared_was_written_when_it_was_shared(w: ProcessWorker) -> None:
    values = numbers()
    expected = values.sum()
    with w.share(values) as shared:
        values[:] = 0
        assert w.submit(tasks.total, shared).result(LIMIT) == expected == shared.value.sum()


@pytest.mark.parametrize("size", [1, 100, 3000, MB])
def test_a_task_cannot_write_to_it(w: ProcessWorker, size: int) -> None:
    values = np.ones(size)
    with w.share(values) as shared:
        error = w.submit(tasks.write, shared).exception(LIMIT)
        assert isinstance(error, ValueError)
        assert "read-only" in str(error)
        assert w.submit(tasks.total, shared).result(LIMIT) == size
        with pytest.raises(ValueError, match="read-only"):
            shared.value[0] = 2


@pytest.mark.parametrize(
    "value",
    [None, 7, b"x" * MB, {"a": np.arange(3), "b": [1, "text"]}, [], "x" * 100_000, (np.zeros(0), np.zeros((2, 0)))],
    ids=["None", "int", "bytes", "dict", "empty", "text", "empty arrays"],
)
def test_any_object_can_be_shared(w: ProcessWorker, value: Any) -> None:
    with w.share(value) as shared:
        for got in (w.submit(tasks.value_of, shared).result(LIMIT), shared.value):
            assert str(got) == str(value)
    del got
    assert nothing_is_held(w)


def test_pandas_and_arrow(w: ProcessWorker) -> None:
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": numbers(1000), "b": range(1000)})
    with w.share(frame) as shared, w.share(pyarrow.table({"a": frame["a"]})) as table:
        assert w.submit(lambda: (shared.value["a"].sum(), shared.value["b"].sum())).result(LIMIT) == (
            frame["a"].sum(),
            frame["b"].sum(),
        )
        assert w.submit(lambda: table.value.num_rows).result(LIMIT) == 1000


def test_classes_and_functions_of_this_program(w: ProcessWorker) -> None:
    class Model:
        def __init__(self, weights: Any) -> None:
            self.weights = weights

        def at(self, x: float) -> float:
            return float(self.weights.sum()) * x

    model = Model(numbers())
    with w.share(model) as shared:
        assert w.submit(lambda: shared.value.at(2.0)).result(LIMIT) == model.at(2.0)
        assert type(shared.value) is Model


# ------------------------------------------------------------ how handles travel


def test_handles_are_found_wherever_they_are(w: ProcessWorker) -> None:
    values = numbers(20_000)
    total = values.sum()
    with w.share(values) as shared, w.share(values) as other:
        assert w.submit(tasks.total_of_all, [shared, other, shared]).result(LIMIT) == 3 * total
        assert w.submit(tasks.total, shared=shared).result(LIMIT) == total
        assert w.submit(partial(tasks.total, shared)).result(LIMIT) == total
        assert w.submit(lambda: float(shared.value.sum())).result(LIMIT) == total
        assert w.submit(lambda: tasks.total_of_all([shared, other])).result(LIMIT) == 2 * total
        assert [each.result(LIMIT) for each in w.submit_many(tasks.total, [shared, other])] == [total] * 2
        assert list(w.map(tasks.total, [shared, other] * 20)) == [total] * 40
        assert list(w.map(lambda index: shared.value[index], range(300))) == list(values[:300])
        assert list(w.map(tasks.look_up, [shared] * 10, range(10))) == list(values[:10])
        assert list(w.map(lambda each: (each.value is not None) + other.value[0], [shared] * 5, chunksize=5)) == (
            [1 + values[0]] * 5
        )
        # Beside what is large itself.
        assert w.submit(lambda each, array: float(each.value.sum() + array.sum()), shared, values).result(LIMIT) == (
            2 * total
        )
        assert w.submit(lambda each, text: float(each.value.sum()) + len(text), shared, b"x" * MB).result(LIMIT) == (
            total + MB
        )
        task = Task(tasks.total, (shared,), id="mine", metadata={"a": 1}, idempotency_key="key")
        assert w.register_task(task).result(LIMIT) == total
        assert w.register_task(Task(tasks.total, (shared,), idempotency_key="key")).result(LIMIT) == total
    assert nothing_is_held(w)


def test_a_function_of_a_map_takes_handles_along(w: ProcessWorker) -> None:
    values = numbers(20_000)
    for chunksize in (None, 1, 7):
        with w.share(values) as shared:  # which no child has open by another call
            found = w.map(lambda index: shared.value[index], range(300), chunksize=chunksize)
            assert list(found) == list(values[:300])
    with w.share(values) as shared:
        found = w.map(lambda index: shared.value[index], range(300))
    assert list(found) == list(values[:300])  # closed when all chunks were on their way
    assert nothing_is_held(w)


def test_a_call_with_more_than_the_arena_takes_besides(single: ProcessWorker) -> None:
    with single.share(numbers()) as shared:
        large = np.ones(20 * MB, "u1")
        assert single.submit(lambda each, array: len(array) + each.value[0], shared, large).result(LIMIT) == (
            20 * MB + shared.value[0]
        )


def test_a_handle_that_a_task_returns_is_the_one_that_went(w: ProcessWorker) -> None:
    with w.share(numbers()) as shared:
        back = w.submit(tasks.echo, {"a": [shared, numbers()]}).result(LIMIT)["a"][0]
        assert back is shared
        assert w.submit(tasks.total, back).result(LIMIT) == numbers().sum()
        unseen = w.submit(tasks.echo, shared)
        assert w.wait(LIMIT)
        del back
    del shared
    gc.collect()
    late = unseen.result(LIMIT)
    with pytest.raises(ShareError, match="closed or dropped"):
        late.value  # noqa: B018
    late.close()
    assert "not here" in repr(late)
    assert nothing_is_held(w)


def test_what_a_task_returns_of_it_is_a_copy(w: ProcessWorker) -> None:
    values = numbers()
    with w.share(values) as shared:
        part = w.submit(lambda: shared.value[5:50_000]).result(LIMIT)
    assert nothing_is_held(w)
    assert (part == values[5:50_000]).all()


def test_recurring_tasks(w: ProcessWorker, tmp_path: Path) -> None:
    values = numbers(10_000)
    path = tmp_path / "out"
    shared = w.share(values)
    w.register_cron_task("beat", "@every 20ms", Task(tasks.record, (shared, str(path))))
    shared.close()
    del shared
    assert wait_until(lambda: path.exists() and len(path.read_text().splitlines()) > 3, LIMIT)
    assert set(path.read_text().splitlines()) == {str(values.sum())}
    assert taken(w) > 0
    w.remove_cron_task("beat")
    assert nothing_is_held(w)


def test_each_attempt_has_it(w: ProcessWorker, tmp_path: Path) -> None:
    with w.share(numbers()) as shared:
        future = w.options(crash_retries=1).submit(tasks.crash_once_then_total, shared, str(tmp_path))
    del shared
    assert future.result(LIMIT) == numbers().sum()
    assert nothing_is_held(w)


def test_a_failed_task_runs_again_as_long_as_what_it_shares_is_there(tmp_path: Path) -> None:
    with ProcessWorker(n=1, arena_max_bytes=8 * MB, retention=Retention(max_entries=10)) as w:
        with w.share(numbers()) as shared:
            failed = w.submit(tasks.fail, shared, str(tmp_path))
            assert isinstance(failed.exception(LIMIT), OSError)
            (tmp_path / "well").touch()
            assert w.retry_task(failed.task_id).result(LIMIT) == numbers().sum()
        assert nothing_is_held(w)  # though the failed task is remembered
        with pytest.raises(TaskNotFound, match="an object shared in it is gone"):
            w.retry_task(failed.task_id)


def test_in_a_loop() -> None:
    values = numbers()

    async def run() -> None:
        async with AsyncProcessWorker(n=1, arena_max_bytes=4 * MB, max_pending=2) as w:
            with await w.share(values) as shared:
                futures = [w.submit(tasks.total, shared) for _ in range(10)]  # most of them wait in line
                assert not futures[-1].done()
            assert await asyncio.gather(*futures) == [values.sum()] * 10
            async with asyncio.timeout(LIMIT):
                for number in range(8):  # there is room for three
                    with await w.share(values + number) as shared:
                        assert await w.submit(tasks.total, shared) == (values + number).sum()
                async for total in w.map(tasks.total, [await w.share(values)] * 3):
                    assert total == values.sum()
            with pytest.raises(ShareError, match="can never be shared"):
                await w.share(np.zeros(5 * MB, "u1"))

    asyncio.run(run())


def test_what_is_cancelled_in_line_lets_go() -> None:
    async def run() -> None:
        async with AsyncProcessWorker(
            n=1, arena_max_bytes=4 * MB, max_pending=1, retention=Retention(max_entries=10)
        ) as w:
            async with asyncio.timeout(LIMIT):
                with await w.share(numbers()) as shared:
                    first = w.submit(tasks.echo, 1)
                    waits = w.submit(tasks.total, shared)
                    waits.cancel()
                assert await first == 1
                while (await w.metrics()).arena_bytes["calls"]:
                    await asyncio.sleep(0)
                with pytest.raises(TaskNotFound):
                    await w.retry_task(waits.task_id)

    asyncio.run(run())


def test_with_debug() -> None:
    values = numbers(1000)
    with ProcessWorker(debug=True) as w:
        with w.share(values) as shared:
            assert w.submit(tasks.total, shared).result() == values.sum()
            assert list(w.map(lambda index: shared.value[index], range(3))) == list(values[:3])
            assert isinstance(w.submit(tasks.write, shared).exception(), ValueError)
            assert w.submit(tasks.echo, shared).result() is shared
            assert "open" in repr(shared)
        for use in (lambda: shared.value, lambda: w.submit(tasks.total, shared)):
            with pytest.raises((ShareError, SerializationError), match="closed"):
                use()


# ------------------------------------------------------------ what tasks keep


def test_a_view_that_a_task_keeps_stays_what_it_was(single: ProcessWorker) -> None:
    expected = []
    for number in range(4):
        values = numbers() + number
        with single.share(values) as shared:
            single.submit(tasks.keep_value, shared).result(LIMIT)
        expected.append(float(values[10:].sum()))
        assert nothing_is_held(single)
        with single.share(np.zeros_like(values)) as other:  # in the same place
            single.submit(tasks.total, other).result(LIMIT)
            assert single.submit(tasks.total_of_kept).result(LIMIT) == expected
    single.submit(tasks.forget_kept).result(LIMIT)


@pytest.mark.parametrize("opened", [False, True], ids=["unopened", "opened"])
def test_a_handle_that_a_task_keeps(single: ProcessWorker, opened: bool) -> None:
    values = numbers()
    with single.share(values) as shared:
        single.submit(tasks.keep_handle, shared, opened).result(LIMIT)
        later = single.submit(tasks.total_of_kept)
        if opened:
            assert later.result(LIMIT) == [values.sum()]
        else:
            assert "of another task" in str(later.exception(LIMIT))
        assert single.submit(tasks.total, shared).result(LIMIT) == values.sum()
    assert nothing_is_held(single)
    with single.share(np.zeros_like(values)) as other:
        single.submit(tasks.total, other).result(LIMIT)
        error = single.submit(tasks.total_of_kept).exception(LIMIT)
        assert isinstance(error, ShareError)
        assert "of another task" in str(error)
    single.submit(tasks.forget_kept).result(LIMIT)


def test_a_fork_of_a_task(w: ProcessWorker) -> None:
    with w.share(numbers()) as shared:
        assert w.submit(tasks.in_fork, shared, True).result(LIMIT) == str(numbers().sum())
        with w.share(numbers()) as unopened:
            assert "open it before the fork" in w.submit(tasks.in_fork, unopened, False).result(LIMIT)
    assert nothing_is_held(w)


# ------------------------------------------------------------ what keeps it


def test_it_is_kept_for_calls_that_were_submitted(gate: Gate) -> None:
    with ProcessWorker(n=1, arena_max_bytes=3 * MB) as w:
        values = numbers()
        with w.share(values) as shared:
            held_back = w.submit(tasks.hold_and_total, gate.folder, shared)
            queued = [w.submit(tasks.total, shared) for _ in range(3)]
        gate.wait_begun()
        del shared
        assert taken(w) >= values.nbytes
        for number in range(5):  # nobody gets its place
            with w.share(values + number) as other:
                assert (other.value == values + number).all()
        gate.release()
        assert [future.result(LIMIT) for future in (held_back, *queued)] == [values.sum()] * 4
        assert nothing_is_held(w)


def test_it_is_unpickled_once_for_each_child_also_when_its_handle_is_closed(gate: Gate, tmp_path: Path) -> None:
    with ProcessWorker(n=1) as w:
        with w.share(tasks.Unpickled(str(tmp_path / "loads"))) as shared:
            held_back = w.submit(tasks.hold_and_return, gate.folder)
            opens = [w.submit(tasks.opened, shared) for _ in range(3)]
            opens.append(w.options(crash_retries=1).submit(tasks.opened_after_a_crash, shared, str(tmp_path)))
        gate.wait_begun()
        gate.release()
        held_back.result(LIMIT)
        assert [future.result(LIMIT) for future in opens] == [True] * 4
        assert (tmp_path / "loads").read_text() == "loaded\n" * 2  # the second is of the child after the crash
        assert nothing_is_held(w)


def test_it_goes_with_its_last_handle(w: ProcessWorker) -> None:
    shared = w.share(numbers())
    assert w.submit(tasks.total, shared).result(LIMIT) == numbers().sum()
    assert taken(w) > 0
    del shared
    assert nothing_is_held(w)


def test_a_value_outlives_its_handle_and_the_pool() -> None:
    before = Path("/proc/self/maps").read_text().count("mpworker-calls")
    with ProcessWorker(n=1, arena_max_bytes=4 * MB) as w:
        values = numbers()
        with w.share(values) as shared:
            kept = shared.value[5:]
        for number in range(5):
            with w.share(values + number + 1):
                pass
        assert (kept == values[5:]).all()
        assert taken(w) >= values.nbytes
        del kept
        assert nothing_is_held(w)
        opened, unopened, closed = w.share(values), w.share(values), w.share(values)
        assert (opened.value == values).all()
        closed.close()
    assert (opened.value == values).all()
    assert Path("/proc/self/maps").read_text().count("mpworker-calls") == before  # the arena is not kept for that
    assert "stopped" in repr(opened)
    with pytest.raises(WorkerStopped, match="was not opened before"):
        unopened.value  # noqa: B018
    with pytest.raises(ShareError, match="closed"):
        closed.value  # noqa: B018
    for each in (opened, unopened, closed):
        each.close()
        each.close()
    with pytest.raises(ShareError):
        opened.value  # noqa: B018


def test_a_killed_child_has_nothing_open(w: ProcessWorker) -> None:
    with w.share(numbers()) as shared:
        pids = {w.submit(tasks.identity, shared).result(LIMIT)[0] for _ in range(20)}
        for pid in pids:
            kill(pid)
    assert nothing_is_held(w)


def test_a_frozen_child_that_has_it_open_and_nothing_to_do_loses_its_lease() -> None:
    with ProcessWorker(n=1, lease_ttl=1.0) as w:
        with w.share(numbers()) as shared:
            pid = w.submit(tasks.identity, shared).result(LIMIT)[0]
            os.kill(pid, signal.SIGSTOP)
        assert nothing_is_held(w)
        assert w.submit(os.getpid).result(LIMIT) != pid


def test_a_child_that_has_let_go_needs_no_lease(w: ProcessWorker) -> None:
    with w.share(numbers()) as shared:
        pids = {w.submit(tasks.identity, shared).result(LIMIT)[0] for _ in range(20)}
    assert nothing_is_held(w)
    assert pids <= {child["pid"] for child in w.processes()["children"]}


def test_a_busy_child_lets_go_when_its_task_has_ended(gate: Gate) -> None:
    with ProcessWorker(n=1, arena_max_bytes=4 * MB) as w:
        with w.share(numbers()) as shared:
            w.submit(tasks.total, shared).result(LIMIT)
            busy = w.submit(tasks.hold_and_return, gate.folder)
            gate.wait_begun()
        assert taken(w) > 0
        gate.release()
        busy.result(LIMIT)
        assert nothing_is_held(w)


# ------------------------------------------------------------ bounds


def test_what_can_never_fit() -> None:
    with ProcessWorker(n=1, arena_max_bytes=MB) as w:
        with pytest.raises(ShareError, match=rf"an object of \d+ bytes can never be shared: arena_max_bytes={MB}"):
            w.share(np.zeros(MB, "u1"))
        with w.share(np.zeros(MB - PAGE, "u1")):
            pass
    with ProcessWorker(n=1, arena_max_bytes=0) as w, pytest.raises(ShareError, match="arena_max_bytes=0"):
        w.share(1)


def test_what_the_program_keeps_is_not_waited_for() -> None:
    with ProcessWorker(n=1, arena_max_bytes=2 * MB) as w:
        with w.share(np.zeros(MB, "u1")) as shared:
            with pytest.raises(QueueFull, match=f"arena_max_bytes={2 * MB} have no room to share"):
                w.share(np.zeros(MB + PAGE, "u1"))
            # Nor by a call, which goes another way.
            assert w.submit(lambda each: len(each) + len(shared.value), np.zeros(MB + PAGE, "u1")).result(LIMIT) == (
                2 * MB + PAGE
            )
        with w.share(np.zeros(MB + PAGE, "u1")):
            pass


def test_it_waits_until_a_task_gives_back_room(gate: Gate) -> None:
    with ProcessWorker(n=1, arena_max_bytes=2 * MB) as w:
        busy = w.submit(tasks.hold_with, gate.folder, np.zeros(MB, "u1"))
        gate.wait_begun()
        late: list[Any] = []
        waits = threading.Thread(target=lambda: late.append(w.share(np.ones(MB + PAGE, "u1"))), daemon=True)
        waits.start()
        assert wait_until(lambda: w._client._leader == waits.ident, LIMIT)
        assert not late
        gate.release()
        waits.join(LIMIT)
        assert late[0].value.sum() == MB + PAGE
        busy.result(LIMIT)


def test_it_waits_until_children_have_let_go() -> None:
    with ProcessWorker(n=2, arena_max_bytes=2 * MB) as w:
        for number in range(20):
            with w.share(np.full(MB + PAGE, number, "u1")) as shared:
                futures = [w.submit(tasks.checked, shared, number) for _ in range(4)]
                assert [future.result(LIMIT) for future in futures] == [number] * 4


def test_it_waits_for_no_longer_than_submit_timeout(gate: Gate) -> None:
    with ProcessWorker(n=1, arena_max_bytes=2 * MB, submit_timeout=0.1) as w:
        with w.share(np.zeros(MB, "u1")) as shared:
            busy = w.submit(tasks.hold_and_total, gate.folder, shared)
        gate.wait_begun()
        with pytest.raises(QueueFull, match=r"no room to share \d+ bytes, and in 0\.\d+ s none has come"):
            w.share(np.zeros(MB + PAGE, "u1"))
        gate.release()
        busy.result(LIMIT)


def test_what_a_recurring_task_holds_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_LET_GO_SECONDS", 0.05)
    with ProcessWorker(n=1, arena_max_bytes=2 * MB) as w:
        with w.share(np.zeros(MB, "u1")) as shared:
            w.register_cron_task("rare", "@monthly", Task(tasks.record, (shared, str(tmp_path / "out"))))
        with pytest.raises(QueueFull, match="none has come"):
            w.share(np.zeros(MB + PAGE, "u1"))
        w.remove_cron_task("rare")
        with w.share(np.zeros(MB + PAGE, "u1")):
            pass


# ------------------------------------------------------------ errors


def test_a_handle_that_is_closed(w: ProcessWorker) -> None:
    secret = "payload-that-nobody-shall-read"
    shared = w.share([secret])
    assert repr(shared) == f"<Shared nbytes={shared.nbytes} open>"
    shared.close()
    shared.close()
    assert repr(shared) == f"<Shared nbytes={shared.nbytes} closed>"
    with pytest.raises(ShareError, match="closed"):
        shared.value  # noqa: B018
    for call in (lambda: w.submit(tasks.total, shared), lambda: w.submit_many(tasks.total, [shared])):
        with pytest.raises(SerializationError, match="the handle of this shared object is closed; it is argument 0"):
            call()
    with pytest.raises(SerializationError, match="closed"):
        list(w.map(tasks.total, [shared]))
    with pytest.raises(SerializationError, match="closed"):
        w.map(lambda _: shared.value, [1])


def test_who_forgets_value_is_told_so(w: ProcessWorker) -> None:
    with w.share(numbers()) as shared:
        with pytest.raises(AttributeError, match=r"a Shared has no 'sum': .* write handle\.value\.sum"):
            shared.sum()  # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match="__array__"):
            shared.__array__()  # type: ignore[attr-defined]
        assert not hasattr(shared, "__array__")
        assert "handle.value.sum" in str(w.submit(lambda handle: handle.sum(), shared).exception(LIMIT))


def test_a_handle_of_another_worker(w: ProcessWorker) -> None:
    with ProcessWorker(n=1, arena_max_bytes=4 * MB) as other, other.share(numbers()) as shared:
        calls = (
            lambda: w.submit(tasks.total, shared),
            lambda: list(w.map(tasks.total, [shared])),
            lambda: w.submit(lambda: shared.value),
            lambda: list(w.map(lambda _: shared.value, [1])),
            lambda: w.register_cron_task("x", "@monthly", partial(tasks.total, shared)),
            lambda: ProcessWorker(n=1, initializer=tasks.total, initargs=(shared,)),
        )
        for call in calls:
            with pytest.raises(SerializationError, match=r"another worker|by its worker alone"):
                call()
        with pytest.raises(ShareError, match="cannot have handles"):
            other.share([shared])
        with pytest.raises(ShareError, match="by its worker alone"):
            pickle.dumps(shared)
        pickled = other.submit(tasks.pickled, shared).result(LIMIT)
        assert pickle.loads(pickled) is shared
        assert "of another worker" in str(w.submit(tasks.total_of_pickled, pickled).exception(LIMIT))
        assert "a task does not close" in str(other.submit(tasks.closed, shared).exception(LIMIT))
        assert other.submit(tasks.total, shared).result(LIMIT) == numbers().sum()


def test_what_cannot_be_pickled(w: ProcessWorker) -> None:
    with pytest.raises(SerializationError, match=r"an object of type \S*list cannot be shared: .*lock"):
        w.share([threading.Lock()])
    assert nothing_is_held(w)


def test_too_many_in_one_call(w: ProcessWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpworker import sending

    monkeypatch.setattr(sending, "SHARES_MAX", 2)
    handles = [w.share(number) for number in range(3)]
    with pytest.raises(SerializationError, match="takes along 3 shared objects, and can take 2"):
        w.submit(tasks.echo, handles)
    assert SHARES_MAX >= 1 << 15
    assert [each.value for each in w.submit(tasks.echo, handles[:2]).result(LIMIT)] == [0, 1]


def test_a_stopped_worker_shares_nothing() -> None:
    w = ProcessWorker(n=1)
    w.stop_graceful()
    with pytest.raises(WorkerStopped):
        w.share(1)


def test_where_there_is_no_address_space(single: ProcessWorker) -> None:
    with single.share(np.zeros(12 * MB, "u1")) as shared:
        said = single.submit(tasks.mapped_with_little_room, shared).result(LIMIT)
        assert said.startswith("ShareError: a shared object of ")
        assert "cannot be mapped" in said
        assert single.submit(tasks.total, shared).result(LIMIT) == 0.0


def test_where_there_is_no_memory(single: ProcessWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(arena.Arena, "back", refuse)
        with pytest.raises(ShareError, match="no memory to share"):
            single.share(numbers())
    assert taken(single) == 0
    with single.share(numbers()) as shared:
        assert single.submit(tasks.total, shared).result(LIMIT) == numbers().sum()


FORKING = """
import os, sys
import numpy as np
from mpworker import ProcessWorker
from mpworker.errors import WorkerStopped

with ProcessWorker(n=1, arena_max_bytes=1 << 22) as w:
    opened, unopened = w.share(np.ones(1 << 19, "u1")), w.share(np.ones(1 << 19, "u1"))
    opened.value
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        good = opened.value.sum() == 1 << 19
        try:
            unopened.value
        except WorkerStopped as error:
            good = good and "made before fork" in str(error)
        else:
            good = False
        opened.close()
        unopened.close()
        os._exit(not good)
    assert w.submit(lambda: int(opened.value.sum() + unopened.value.sum())).result() == 1 << 20
    opened.close()
    unopened.close()
    for number in range(20):
        with w.share(np.zeros(1 << 19, "u1")):
            pass
    os.write(writer, b"x")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_fork_of_the_program() -> None:
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ------------------------------------------------------------ all of it at once


@pytest.mark.parametrize("seed", range(3))
def test_each_task_sees_its_own_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    with ProcessWorker(n=2, arena_max_bytes=6 * MB, crash_retries=50, submit_timeout=LIMIT) as w:
        handles: list[tuple[int, Shared[Any]]] = []
        views: list[tuple[int, Any]] = []
        futures: list[tuple[int, Any]] = []
        for step in range(300):
            choice = rng.random()
            if choice < 0.35 and len(handles) < 5:
                number = rng.randrange(256)
                try:
                    handles.append((number, w.share(np.full(rng.choice([10, 5000, MB // 2, MB]), number, "u1"))))
                except QueueFull:
                    views.clear()
            elif choice < 0.8 and handles:
                number, shared = rng.choice(handles)
                call = rng.choice([tasks.checked, partial(tasks.checked), tasks.checked_and_kept])
                futures.append((number, w.submit(call, shared, number)))
            elif choice < 0.9 and handles:
                number, shared = handles.pop(rng.randrange(len(handles)))
                if rng.random() < 0.5:
                    views.append((number, shared.value))
                if rng.random() < 0.5:
                    shared.close()
                del shared
            elif choice < 0.93:
                alive = [child["pid"] for child in w.processes()["children"] if child["ready"]]
                if alive:
                    kill(rng.choice(alive))
            elif views and choice < 0.96:
                number, view = views.pop()
                assert view.min() == view.max() == number
                del view
            if step % 50 == 49:
                for number, future in futures:
                    assert future.result(LIMIT) == number
                futures.clear()
        for number, future in futures:
            assert future.result(LIMIT) == number
        for number, view in views:
            assert view.min() == view.max() == number
        handles.clear()
        views.clear()
        shared = view = None  # type: ignore[assignment]
        assert nothing_is_held(w)
        assert not w._client.arenas._leaving  # type: ignore[union-attr]


def test_threads_share_and_close_at_once(w: ProcessWorker) -> None:
    wrong: list[Any] = []

    def use(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            number = rng.randrange(256)
            with w.share(np.full(rng.randrange(1, MB), number, "u1")) as shared:
                future = w.submit(tasks.checked, shared, number)
                if rng.random() < 0.5:
                    future.result(LIMIT)
            if future.result(LIMIT) != number:
                wrong.append((seed, number))

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LIMIT)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert nothing_is_held(w)


class _Sends:
    """What has a call of its own sent while it is pickled."""

    def __init__(self, send: Any) -> None:
        self.send = send

    def __reduce__(self) -> tuple[Any, ...]:
        self.send()
        return int, ()


def test_a_call_that_is_sent_while_another_one_is_pickled_takes_its_own_handles_along(w: ProcessWorker) -> None:
    with w.share([1, 2]) as outer, w.share([3, 4]) as inner:
        sent: list[Any] = []
        sends = _Sends(lambda: sent.append(w.submit(lambda shared: shared.value, inner)))
        assert w.submit(lambda shared, _: shared.value, outer, sends).result(LIMIT) == [1, 2]
        assert [future.result(LIMIT) for future in sent] == [[3, 4]] * len(sent)
        assert sent


def test_who_is_interrupted_while_a_call_is_pickled_collects_no_handles_afterwards(w: ProcessWorker) -> None:
    with w.share([1, 2]) as shared:

        def collects_nothing() -> None:
            assert shares.collecting.found is None

        files = ("/mpworker/ipc/payload.py", "/mpworker/ipc/shares.py", "/mpworker/shared.py")
        assert sweep(lambda: payload.dumps_parts((shared,)), collects_nothing, parts=files) > 5
