"""What runs tasks and what submits them in C (tasks.h, submit.h), each by itself: rings and claims, and nobody at their
other ends but the test."""

import ctypes
import itertools
import mmap
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mpworker.ipc import _native, codec
from mpworker.ipc._native import AttemptState, Bell, Claims, Ring, RingCorrupt, Submit, Tasks
from mpworker.ipc.codec import Record

CAPACITY = 8192
FUNCTION = 5
TASK_NUMBER = 7 | 3 << codec.CONTEXT_SHIFT


def ends(memory: mmap.mmap, ctl: int, data: int) -> tuple[Ring, Ring]:
    """Both ends of a ring."""
    return Ring(memory, ctl, data, CAPACITY), Ring(memory, ctl, data, CAPACITY)


def test_the_numbers_of_records_are_the_same_in_c() -> None:
    assert (_native.SUBMIT, _native.TASK, _native.DONE) == (codec.SUBMIT, codec.TASK, codec.DONE)


def written(value: Any) -> bytes:
    """As a client writes it."""
    return _native.dumps_plain(value) or pickle.dumps(value, 5)


class Runs:
    """A child's half, and who offers it tasks."""

    def __init__(self, plain_max: int = 4096) -> None:
        memory = mmap.mmap(-1, 1 << 16)
        memory.madvise(mmap.MADV_DONTFORK)  # as channels are mapped
        self.offers, self.inbound = ends(memory, 0, 8192)
        self.outbound, self.answers = ends(memory, 128, 16384)
        self.claims = Claims(mmap.mmap(-1, 4096), 4)
        self.bell_end, write_end = os.pipe()
        os.set_blocking(self.bell_end, False)
        self.supervisor = Bell(memory, 512, write_end)  # as the child rings it
        self.attempt = State()
        self.functions: dict[int, Any] = {}
        self.pushed: list[Record] = []
        self.tasks = Tasks(
            *(self.claims, self.attempt, self.inbound, self.outbound, self.supervisor, self.functions),
            *(self.loads, self.of_value, self.of_failure, self.of_unread, lambda *record: self.pushed.append(record)),
            plain_max,
            True,
        )
        self.asked: list[tuple[str, Any]] = []
        self.close = lambda: (os.close(self.bell_end), os.close(write_end))
        self.generation = 0

    def loads(self, data: bytes) -> Any:
        self.asked.append(("loads", self.attempt.number))
        return pickle.loads(data)

    def of_value(self, value: Any) -> tuple[int, bytes]:
        self.asked.append(("value", value))
        return codec.OK, b"of a value"

    def of_failure(self, error: BaseException) -> tuple[int, bytes]:
        self.asked.append(("failure", error))
        return codec.ERROR | codec.FINAL, b"of a failure"

    def of_unread(self, error: BaseException) -> tuple[int, bytes]:
        self.asked.append(("unread", error))
        return codec.UNSERIALIZABLE, b"of what was not read"

    def offer(self, call: Any = None, *args: Any, flags: int = 1, data: bytes | None = None, **kwargs: Any) -> int:
        """Offer a task; its generation."""
        if call is not None:
            self.functions[FUNCTION] = call
        self.generation += 1
        payload = written((args, kwargs)) if data is None else data
        assert self.claims.send_offer(
            2, self.generation, self.offers, codec.TASK, flags, TASK_NUMBER, 2 | FUNCTION << 8, payload
        )
        return self.generation

    def answered(self) -> list[tuple[int, bytes]]:
        """(status, payload) of all that was answered since; each is of the last generation."""
        found: list[Record] = []
        self.answers.pop(found, 100)
        for kind, _, started_ns, generation, c, _ in found:
            assert (kind, generation, c & 0xFF) == (codec.DONE, self.generation, 2)
            assert started_ns == self.claims.peek(2)[2]
        return [(flags, data) for _, flags, _, _, _, data in found]


class State(AttemptState):
    """An attempt that notes what is asked of it."""

    __slots__ = ("interrupts",)

    def __init__(self) -> None:
        self.interrupts: list[tuple[int, int]] = []

    def on_interrupt(self, _signal: int, _frame: object) -> None:
        self.interrupts.append((self.running, self.slot))


@pytest.fixture
def runs() -> Iterator[Runs]:
    made = Runs()
    yield made
    made.close()


def test_a_plain_task_asks_python_for_nothing(runs: Runs) -> None:
    runs.offer(pow, 3, 4)
    assert runs.tasks.run() is None
    ((status, data),) = runs.answered()
    assert (status, pickle.loads(data)) == (codec.OK, 81)
    assert not runs.asked
    assert not runs.offers.fill(), "its bytes are free again"


def test_the_answer_says_how_long_it_took(runs: Runs) -> None:
    runs.offer(lambda: [None for _ in range(20_000)] and None)
    runs.tasks.run()
    found: list[Record] = []
    runs.answers.pop(found, 1)
    assert 10_000 < found[0][4] >> 8 < 10**10


class Rings:
    """Several tasks that are offered at once, and when the supervisor was told of which answer.

    Args:
        runs: The child's half.
        turns: How long each task computes, in turns of a loop.
        revoked: How many more there are, which are taken back before they begin.
    """

    def __init__(self, runs: Runs, turns: int, revoked: int = 0) -> None:
        self._runs = runs
        self._turns = turns
        runs.functions[FUNCTION] = self._work
        runs.supervisor.arm()
        for slot in range(4):
            assert runs.claims.send_offer(
                slot, slot + 1, runs.offers, codec.TASK, 1, TASK_NUMBER, slot | FUNCTION << 8, written(((), {}))
            )
        for slot in range(4 - revoked, 4):
            assert runs.claims.revoke(slot, slot + 1)
        self.told_after: list[bool] = []
        runs.tasks.run()
        self.told_at_the_end = self._is_told()
        found: list[Record] = []
        runs.answers.pop(found, 10)
        self.ends_ns = [started_ns + (c >> 8) for _, _, started_ns, _, c, _ in found]
        self.took_ns = [c >> 8 for *_, c, _ in found]

    def _is_told(self) -> bool:
        try:
            told = bool(os.read(self._runs.bell_end, 10))
        except BlockingIOError:
            told = False
        self._runs.supervisor.arm()
        return told

    def _work(self) -> None:
        self.told_after.append(self._is_told())
        sum(range(self._turns))

    def expected(self, waiting: int) -> list[bool]:
        """Of which answers the supervisor was to be told at once, if so many records were there at the beginning."""
        told, rung_ns = [], 0
        for number, (end_ns, took_ns) in enumerate(zip(self.ends_ns, self.took_ns, strict=True), 1):
            now = (waiting - number) * took_ns <= 150_000 or end_ns - rung_ns >= 500_000
            told.append(now)
            rung_ns = end_ns if now else rung_ns
        return told


@pytest.mark.parametrize("turns", [1, 1_000, 5_000, 20_000, 100_000])
def test_of_an_answer_that_others_follow_soon_the_supervisor_is_told_with_these(runs: Runs, turns: int) -> None:
    rings = Rings(runs, turns)
    assert len(rings.ends_ns) == 4
    *others, last = rings.expected(4)
    assert rings.told_after[1:] == others
    assert last, "nothing follows it"
    assert rings.told_at_the_end


def test_some_are_put_off(runs: Runs) -> None:
    """Else the test above shows nothing."""
    for turns in (4_000, 8_000, 16_000, 32_000):
        made = Runs()
        if not all(Rings(made, turns).told_after[1:]):
            made.close()
            return
        made.close()
    pytest.fail("each was told at once")


@pytest.mark.parametrize("turns", [1, 5_000, 20_000])
def test_what_follows_may_have_been_taken_back(runs: Runs, turns: int) -> None:
    rings = Rings(runs, turns, revoked=2)
    assert len(rings.ends_ns) == 2
    assert rings.told_after[1:] == rings.expected(4)[:1]
    assert rings.told_at_the_end, "it is told before the child sleeps, whatever was put off"


@pytest.mark.parametrize("bad", [[1], {"a": 1}, 2**70, "\ud800"])
def test_what_is_not_plain_of_a_call_is_read_by_python_once_it_is_claimed(runs: Runs, bad: object) -> None:
    runs.offer(lambda value, **more: (value == bad, more), bad, more=(1,))
    runs.tasks.run()
    ((_, data),) = runs.answered()
    assert pickle.loads(data) == (True, {"more": (1,)}) if not runs.asked[1:] else runs.asked[1][0] == "value"
    assert runs.asked[0] == ("loads", 1), "the number of its attempt says that it is claimed"


@pytest.mark.parametrize("data", [b"no pickle", written(7), written(((), 7)), written(((), {}, 1))])
def test_a_call_that_cannot_be_read_is_told(runs: Runs, data: bytes) -> None:
    runs.offer(print, data=data)
    runs.tasks.run()
    assert runs.answered() == [(codec.UNSERIALIZABLE, b"of what was not read")]
    assert [what for what, _ in runs.asked if what != "loads"] == ["unread"]


def test_a_revoked_task_is_neither_read_nor_run(runs: Runs) -> None:
    called: list[int] = []
    runs.claims.revoke(2, runs.offer(called.append, [1]))
    runs.tasks.run()
    assert (called, runs.asked, runs.answered()) == ([], [], [])
    assert not runs.attempt.number


def test_what_is_unusual_comes_out_and_the_order_is_kept(runs: Runs) -> None:
    called: list[str] = []
    runs.offer(called.append, "first")
    runs.tasks.run()
    runs.offer(flags=1 | codec.DETAILED)
    runs.offers.push(codec.FORGET, 0, 9, 0, 0, b"")
    runs.offer(None, "last")
    record = runs.tasks.run()
    assert record is not None
    assert record[:4] == (codec.TASK, 1 | codec.DETAILED, TASK_NUMBER, 2)
    assert called == ["first"]
    assert runs.tasks.run() == (codec.FORGET, 0, 9, 0, 0, b"")
    assert runs.tasks.run() is None
    assert called == ["first", "last"]


@pytest.mark.parametrize("unread", [b"a pickle", MemoryError("none for it"), None])
def test_a_function_that_is_not_read_yet_comes_out(runs: Runs, unread: object) -> None:
    runs.offer()
    if unread is not None:
        runs.functions[FUNCTION] = unread
    record = runs.tasks.run()
    assert record is not None
    assert record[0] == codec.TASK
    assert runs.claims.peek(2)[1] == _native.OFFERED, "it is not claimed"


@pytest.mark.parametrize(("slot", "generation"), [(4, 1), (2, 2**62)])
def test_a_record_that_no_slot_can_be_of_comes_out(runs: Runs, slot: int, generation: int) -> None:
    runs.functions[FUNCTION] = print
    runs.offers.push(codec.TASK, 1, 7, generation, slot | FUNCTION << 8, written(((), {})))
    assert runs.tasks.run() is not None


def test_what_a_task_sees_of_itself(runs: Runs) -> None:
    attempt = runs.attempt
    attempt.details, attempt.slot = b"of the one before", 0

    def look() -> None:
        seen.append((attempt.number, attempt.task, attempt.slot, attempt.running, attempt.details))
        seen.append(runs.offers.fill())

    seen: list[object] = []
    generation = runs.offer(look, flags=3)
    runs.tasks.run()
    assert seen == [(3, TASK_NUMBER, 2, generation, b""), 0], "and its bytes are free while it runs"
    assert (attempt.number, attempt.running) == (0, 0)


def test_what_was_held_back_goes_before_what_is_in_the_ring(runs: Runs) -> None:
    def hold_back(_: Any) -> tuple[int, bytes]:
        runs.attempt.held_back = True
        return codec.OK, b"of a value"

    runs.tasks = Tasks(
        *(runs.claims, runs.attempt, runs.inbound, runs.outbound, runs.supervisor, runs.functions),
        *(runs.loads, hold_back, runs.of_failure, runs.of_unread, print, 4096, True),
    )
    runs.offer(lambda: [1])
    for number in range(2):
        runs.offers.push(codec.FORGET, 0, number, 0, 0, b"")
    assert runs.tasks.run() is None
    assert len(runs.answered()) == 1
    assert runs.tasks.run() is None, "as long as it is held back"
    runs.attempt.held_back = False
    assert [record and record[2] for record in (runs.tasks.run(), runs.tasks.run(), runs.tasks.run())] == [0, 1, None]


class Noted:
    """Notes the state at its end."""

    def __init__(self, note: Callable[[], object]) -> None:
        self._note = note

    def __del__(self) -> None:
        self._note()


def test_arguments_are_freed_before_the_attempt_is_over_and_after_the_result_is_told(runs: Runs) -> None:
    seen: list[object] = []
    runs.tasks = Tasks(
        *(runs.claims, runs.attempt, runs.inbound, runs.outbound, runs.supervisor, runs.functions),
        lambda _: ((Noted(lambda: seen.append((runs.attempt.number, len(runs.asked)))),), {}),
        *(runs.of_value, runs.of_failure, runs.of_unread, print, 4096, True),
    )
    runs.offer(lambda _: [1], data=b"whatever")
    runs.tasks.run()
    assert seen == [(1, 1)]


def fail() -> None:
    raise KeyError("of the task")


def test_an_exception_is_told_with_the_frames_of_the_function_alone(runs: Runs) -> None:
    runs.offer(fail)
    runs.tasks.run()
    assert runs.answered() == [(codec.ERROR | codec.FINAL, b"of a failure")]
    ((_, error),) = runs.asked
    assert type(error) is KeyError
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["fail"]
    assert not runs.attempt.running


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_no_exception_leaves(runs: Runs, error: BaseException) -> None:
    def leave() -> None:
        raise error

    runs.offer(leave)
    assert runs.tasks.run() is None
    assert runs.asked == [("failure", error)]


def test_an_interrupt_that_the_task_has_caught_is_its_end(runs: Runs) -> None:
    def caught() -> int:
        runs.attempt.stack = "where it was"
        return 1

    runs.offer(caught)
    runs.tasks.run()
    assert runs.answered() == [(codec.ERROR | codec.FINAL, b"of a failure")]


def test_an_early_interrupt_is_looked_at_when_there_is_something_to_interrupt(runs: Runs) -> None:
    runs.attempt.early = True
    generation = runs.offer(int)
    runs.tasks.run()
    assert runs.attempt.interrupts == [(generation, 2)]


def test_a_handler_that_runs_after_a_function_in_c_interrupts_its_task(runs: Runs) -> None:
    def handle(*_: object) -> None:
        assert runs.attempt.running == runs.generation
        raise InterruptedError("by a signal")

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        runs.offer(ctypes.CDLL(None)["raise"], int(signal.SIGUSR1))  # looks for no handler itself
        runs.tasks.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [(what, type(error)) for what, error in runs.asked] == [("failure", InterruptedError)]


def test_a_result_that_is_larger_than_may_be_is_looked_at() -> None:
    runs = Runs(plain_max=64)
    runs.offer(bytes, 50)
    runs.offer(None, 70)
    runs.tasks.run()
    runs.close()
    assert [what for what, _ in runs.asked] == ["value"]


def test_an_answer_without_room_is_pushed_by_who_can_wait(runs: Runs) -> None:
    while runs.outbound.push(codec.BEGUN, 0, 0, 0, 0, bytes(100)):
        pass
    runs.offer(str, "x" * 900)
    runs.tasks.run()
    ((kind, status, _, generation, c, data),) = runs.pushed
    assert (kind, status, generation, c & 0xFF, pickle.loads(data)) == (codec.DONE, codec.OK, 1, 2, "x" * 900)


def test_the_supervisor_is_woken_by_each_answer_if_it_sleeps(runs: Runs) -> None:
    runs.offer(int)
    runs.supervisor.arm()
    runs.tasks.run()
    assert os.read(runs.bell_end, 10), "a byte in its pipe"
    runs.offer(int)
    runs.tasks.run()
    with pytest.raises(BlockingIOError):
        os.read(runs.bell_end, 10)


def test_a_supervisor_that_wants_room_hears_of_it_before_the_task_runs(runs: Runs) -> None:
    heard: list[bytes] = []
    runs.supervisor.want_room(True)
    runs.supervisor.arm()
    runs.offer(lambda: heard.append(os.read(runs.bell_end, 10)))
    runs.tasks.run()
    assert heard


def test_after_a_lost_pool_nothing_more_is_run(runs: Runs) -> None:
    called: list[int] = []

    def lose() -> None:
        called.append(1)
        runs.attempt.orphans = True

    runs.offer(lose)
    runs.generation += 1
    runs.claims.send_offer(3, 2, runs.offers, codec.TASK, 1, 8, 3 | FUNCTION << 8, written(((), {})))
    assert runs.tasks.run() is None
    assert runs.tasks.run() is None
    assert called == [1]


def test_a_corrupt_ring_is_told() -> None:
    runs = Runs()
    memory = mmap.mmap(-1, 1 << 14)
    broken = Ring(memory, 0, 8192, CAPACITY)
    memory[0:8] = (2**64 - 8).to_bytes(8, "little")
    tasks = Tasks(
        *(runs.claims, runs.attempt, broken, runs.outbound, runs.supervisor, runs.functions),
        *(runs.loads, runs.of_value, runs.of_failure, runs.of_unread, print, 4096, True),
    )
    with pytest.raises(RingCorrupt):
        tasks.run()
    runs.close()


def test_in_a_fork_that_its_task_has_left_nothing_is_answered(runs: Runs) -> None:
    pids: list[int] = []
    runs.offer(lambda: pids.append(os.fork()))
    try:
        runs.tasks.run()
        ended_by = 1
    except _native.MadeBeforeFork:
        ended_by = 0
    if not pids[0]:
        os._exit(ended_by)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert len(runs.answered()) == 1


# ------------------------------------------------------------------ submit


class Sends:
    """A client, and who reads what it sends."""

    def __init__(
        self, pending_max: int = 100, record_max: int = 4000, look_at: int = 0, kept: dict[int, Record] | None = None
    ) -> None:
        self.kept = kept
        memory = mmap.mmap(-1, 1 << 16)
        outbound, self.sent = ends(memory, 0, 8192)
        self.other_end, inbound = ends(memory, 128, 16384)
        self.outbound = outbound
        self.client = SimpleNamespace(_closed="", _last_key=0, poll=lambda: self.polls.append(1))
        self.polls: list[int] = []
        self.entry = SimpleNamespace(guard=None, key=FUNCTION)
        self.entries = {id(abs): self.entry}
        self.live = {0: "", FUNCTION: "abs"}
        self.pending: dict[int, object] = {}
        self.bell_end, write_end = os.pipe()
        os.set_blocking(self.bell_end, False)
        self.bell = Bell(memory, 512, write_end)
        self.keys = itertools.count(1)
        self.dumped: list[object] = []
        self.native = Submit(
            *(outbound, inbound, self.bell, self.entries, self.live, self.pending, self.keys, self.dumps),
            *(self.kept, pending_max, record_max, look_at),
        )
        self.close = lambda: (os.close(self.bell_end), os.close(write_end))

    def dumps(self, call: Any) -> object:
        self.dumped.append(call)
        return call if call == LARGE else pickle.dumps(call, 5)

    def submit(self, *args: Any, function: Any = abs, details: bytes = b"", make: Any = None, **kwargs: Any) -> Any:
        return self.native.submit(self.client, function, args, kwargs, 9, details, make or self.make)

    def submit_all(self, *calls: tuple[Any, ...], function: Any = abs, make: Any = None) -> tuple[list[Any], Any]:
        """The futures, and what is returned."""
        futures: list[Any] = []
        listed = [(function, args, {}, 9, b"", make or self.make) for args in calls]
        return futures, self.native.submit_all(self.client, listed, futures)

    @staticmethod
    def make(*made: Any) -> Any:
        return made

    def records(self) -> list[Record]:
        found: list[Record] = []
        self.sent.pop(found, 1000)
        return found

    def calls(self) -> list[Any]:
        """The calls in the records that were sent since."""
        return [pickle.loads(data) for kind, *_, data in self.records() if kind == codec.SUBMIT]


LARGE = (([],), {"large": 1})  # a call that is no record's


@pytest.fixture
def sends() -> Iterator[Sends]:
    made = Sends(pending_max=1000)
    yield made
    made.close()


def test_what_is_submitted(sends: Sends) -> None:
    future = sends.submit(-1, "a", (2.5, None), b"b")
    assert future == (sends.client, 1, "abs")
    assert sends.pending == {1: future}
    assert sends.client._last_key == 1
    ((kind, flags, a, b, c, data),) = sends.records()
    assert (kind, flags, a, b, c) == (codec.SUBMIT, 0, 1, FUNCTION, 9)
    assert data == _native.dumps_plain(((-1, "a", (2.5, None), b"b"), {}))
    assert not sends.dumped


def test_what_is_not_plain_is_pickled_by_python(sends: Sends) -> None:
    assert sends.submit([1, 2], base=2) == (sends.client, 1, "abs")
    assert sends.calls() == [(([1, 2],), {"base": 2})]
    assert sends.dumped == [(([1, 2],), {"base": 2})]


@pytest.mark.parametrize("args", [(7,), ([7],)])
def test_details_go_before_the_pickle(sends: Sends, args: tuple[Any, ...]) -> None:
    sends.submit(*args, details=b"details")
    ((_, flags, _, _, _, data),) = sends.records()
    assert flags == codec.DETAILED
    assert data[:7] == b"details"
    assert pickle.loads(data[7:]) == (args, {})


def test_a_pickle_that_is_no_records_is_left_for_who_knows_what_to_do(sends: Sends) -> None:
    assert sends.submit([], large=1) == LARGE
    assert next(sends.keys) == 1, "no number is taken"
    assert sends.submit(bytes(5000)) == pickle.dumps(((bytes(5000),), {}), 5), "it is too large for a record"
    whole = bytes(3980)
    assert type(sends.submit(whole, details=bytes(100))) is bytes
    assert type(sends.submit([whole], details=bytes(100))) is bytes
    assert sends.submit(whole) == sends.pending[2]


def test_what_may_have_to_be_sent_again_is_kept_as_it_was_sent() -> None:
    kept: dict[int, Record] = {}
    sends = Sends(kept=kept)
    sends.client._submit = sends.native
    sends.submit(-1, details=b"details")
    sends.submit([2])
    sends.submit_all((3,), ("x" * 300,))
    assert list(kept.values()) == sends.records()
    assert [record[2] for record in kept.values()] == list(kept) == list(sends.pending)
    _fill(sends)
    assert sends.submit(4) is None
    assert len(kept) == 4
    sends.client._submit = None  # another supervisor takes this one's place
    sends.records()
    assert sends.submit(5) is None
    assert (sends.records(), len(kept), len(sends.pending)) == ([], 4, 4)
    sends.close()


@pytest.mark.parametrize("now", [threading.Lock(), [1], 1])
def test_one_that_is_no_plain_call_any_more_when_it_is_written_is_left(sends: Sends, now: object) -> None:
    kwargs: dict[str, object] = {}

    def make(*made: Any) -> Any:
        kwargs["a"] = now
        return made

    assert sends.native.submit(sends.client, abs, (7,), kwargs, 9, b"", make) is None
    assert (sends.pending, sends.records(), sends.client._last_key) == ({}, [], 0)
    assert sends.submit(8), "and the ring is as it was"
    assert sends.calls() == [((8,), {})]


def _close(sends: Sends) -> None:
    sends.client._closed = "stopped"


def _drop(sends: Sends) -> None:
    sends.live.pop(FUNCTION, None)


def _fill(sends: Sends) -> None:
    while sends.outbound.push(codec.FORGET, 0, 0, 0, 0, b""):
        pass


def _reach_the_bound(sends: Sends) -> None:
    sends.pending.update(dict.fromkeys(range(-1000, 0)))


def _guard(sends: Sends) -> None:
    sends.entry.guard = SimpleNamespace(holds=lambda: False)


@pytest.mark.parametrize("hinder", [_close, _drop, _fill, _reach_the_bound, _guard])
@pytest.mark.parametrize("when", ["before", "while it is pickled", "while its future is made"])
def test_what_hinders_it_leaves_nothing_behind(sends: Sends, hinder: Callable[[Sends], None], when: str) -> None:
    def make(*made: Any) -> Any:
        if when == "while its future is made":
            hinder(sends)
        return made

    class Argument:
        def __reduce__(self) -> Any:
            if when == "while it is pickled":
                hinder(sends)
            return int, ()

    if when == "before":
        hinder(sends)
    elif hinder in (_guard, _reach_the_bound):
        return  # each was right when it was looked at
    assert sends.submit(Argument(), make=make) is None
    assert not sends.calls()
    assert set(sends.pending) <= set(range(-1000, 0))
    assert sends.client._last_key == 0


def test_a_function_by_value_goes_as_long_as_its_guard_holds(sends: Sends) -> None:
    looks = iter([True, True, False])
    sends.entry.guard = SimpleNamespace(holds=lambda: next(looks))
    assert sends.submit(1)
    assert sends.submit_all((2,), (3,))[0], "and is looked at once for all calls in a row"
    assert sends.submit(4) is None
    assert sends.calls() == [((number,), {}) for number in (1, 2, 3)]


def test_a_function_that_is_not_known_is_left(sends: Sends) -> None:
    assert sends.submit(1, function=len) is None
    assert sends.submit_all((1,), function=len) == ([], None)


@pytest.mark.parametrize("of_many", [False, True])
def test_what_making_the_future_raises_comes_out_and_nothing_is_sent(sends: Sends, of_many: bool) -> None:
    def make(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sends.submit_all((1,), make=make) if of_many else sends.submit(1, make=make)
    assert (sends.pending, sends.records()) == ({}, [])


def test_what_cannot_be_pickled_is_told_by_dumps(sends: Sends) -> None:
    with pytest.raises(TypeError, match="lock"):
        sends.submit(threading.Lock())
    assert not sends.records()


def test_all_of_a_list_go_in_one_call_and_the_supervisor_is_woken_at_the_end(sends: Sends) -> None:
    sends.bell.arm()
    futures, left = sends.submit_all(*((number,) for number in range(50)))
    assert left is None
    assert [future[1] for future in futures] == list(range(1, 51))
    assert sends.calls() == [((number,), {}) for number in range(50)]
    assert len(os.read(sends.bell_end, 100)) == 1


@pytest.mark.parametrize("of_many", [False, True])
def test_a_supervisor_that_sleeps_is_woken(sends: Sends, of_many: bool) -> None:
    sends.bell.arm()
    sends.submit_all((1,)) if of_many else sends.submit(1)
    assert os.read(sends.bell_end, 100)


def test_of_many_it_is_woken_before_the_last_one(sends: Sends) -> None:
    woken: list[bytes] = []

    def make(*made: Any) -> Any:
        if made[1] == 65:
            woken.append(os.read(sends.bell_end, 100))
        return made

    sends.bell.arm()
    sends.submit_all(*((number,) for number in range(100)), make=make)
    assert woken


def test_of_many_it_is_woken_for_those_before_one_that_raises(sends: Sends) -> None:
    sends.bell.arm()
    with pytest.raises(TypeError, match="lock"):
        sends.submit_all((1,), (threading.Lock(),), (3,))
    assert os.read(sends.bell_end, 100)
    assert sends.calls() == [((1,), {})]


def test_many_end_at_the_first_that_goes_otherwise_and_go_on_after_it(sends: Sends) -> None:
    calls: list[Any] = [
        (abs, args, kwargs, 9, b"", sends.make) for args, kwargs in [((1,), {}), LARGE, ((3,), {}), ((4,), {})]
    ]
    futures: list[Any] = []
    assert sends.native.submit_all(sends.client, calls, futures) == LARGE
    assert len(futures) == 1
    futures.append("sent otherwise")
    assert sends.native.submit_all(sends.client, calls, futures) is None
    assert len(futures) == 4
    assert sends.calls() == [((number,), {}) for number in (1, 3, 4)]


def test_no_more_than_may_be_pending_are_sent() -> None:
    sends = Sends(pending_max=3)
    assert len(sends.submit_all(*((number,) for number in range(5)))[0]) == 3
    assert len(sends.calls()) == 3
    sends.close()


@pytest.mark.parametrize("of_many", [False, True])
def test_it_looks_at_what_has_come_every_now_and_then(sends: Sends, of_many: bool) -> None:
    def submit_64() -> None:
        if of_many:
            sends.submit_all(*[(1,)] * 64)
        else:
            for _ in range(64):
                sends.submit(1)

    submit_64()
    assert not sends.polls, "nothing has come"
    sends.records()
    sends.other_end.push(codec.RESULT, 0, 1, 0, 0, b"")
    submit_64()
    assert sends.polls == [1]


@pytest.mark.parametrize("of_many", [False, True])
def test_in_a_fork_it_is_left_to_who_can_say_why(sends: Sends, of_many: bool) -> None:
    pid = os.fork()
    if not pid:
        well = False
        try:
            well = sends.submit_all((1,)) == ([], None) if of_many else sends.submit(1) is None
        finally:
            os._exit(not well)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
