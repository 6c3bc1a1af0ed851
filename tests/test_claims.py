"""Claims: who wins an offer, what the page tells, and what makes the heart stop."""

import contextlib
import functools
import mmap
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mpworker.ipc import _native
from mpworker.ipc._native import CLAIMED, FREE, OFFERED, REVOKED, Claims, Ring
from mpworker.ipc.codec import Record

sys.path.append(str(Path(__file__).parent / "native"))
import peer

SLOTS = 3
PAGE = 4096
GENERATION_MAX = 2**62 - 1


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what


class ClaimsMachine(RuleBasedStateMachine):
    """Both sides on one page, in any order, with generations that are gone and some that never were."""

    @initialize(first=st.integers(1, GENERATION_MAX - 1000))
    def start(self, first: int) -> None:
        memory = mmap.mmap(-1, PAGE)
        self.supervisor, self.child = Claims(memory, SLOTS), Claims(memory, SLOTS)
        self.generation = first
        self.model = [[0, FREE, 0, 0, 0] for _ in range(SLOTS)]  # generation, state, started, cursor, halt

    def offered(self, slot: int, back: int) -> tuple[int, bool]:
        generation = max(1, self.model[slot][0] - back)
        return generation, self.model[slot][:2] == [generation, OFFERED]

    @rule(slot=st.integers(0, SLOTS - 1))
    def offer(self, slot: int) -> None:
        self.generation += 1
        self.supervisor.offer(slot, self.generation)
        self.model[slot] = [self.generation, OFFERED, 0, 0, 0]

    @rule(slot=st.integers(0, SLOTS - 1), back=st.integers(-1, 2))
    def claim(self, slot: int, back: int) -> None:
        generation, wins = self.offered(slot, back)
        before = time.monotonic_ns()
        now = self.child.claim(slot, generation)
        if wins:
            assert before <= now <= time.monotonic_ns()
            self.model[slot][1:3] = CLAIMED, now
        else:
            assert now == 0

    @rule(slot=st.integers(0, SLOTS - 1), back=st.integers(-1, 2))
    def revoke(self, slot: int, back: int) -> None:
        generation, wins = self.offered(slot, back)
        assert self.supervisor.revoke(slot, generation) is wins
        if wins:
            self.model[slot][1] = REVOKED

    @rule(slot=st.integers(0, SLOTS - 1), back=st.integers(0, 1) | st.just(GENERATION_MAX))
    def halt(self, slot: int, back: int) -> None:
        generation = max(0, self.model[slot][0] - back)
        assert self.supervisor.halt(slot, generation) == self.model[slot][3]
        self.model[slot][4] = generation

    @rule(slot=st.integers(0, SLOTS - 1), first=st.integers(0, 5), count=st.integers(0, 3))
    def run(self, slot: int, first: int, count: int) -> None:
        generation, state, _, _, halt = self.model[slot]
        if state == CLAIMED and count:
            before = time.monotonic_ns()
            cursors, values = list[int](), list[int]()

            def call(item: int) -> int:
                cursors.append(self.supervisor.peek(slot)[3])
                return item * 10

            assert self.child.run(slot, generation, call, list(range(8)), values, first, first + count, False, 2**63)
            done = 0 if halt == generation else count
            assert cursors == list(range(first + 1, first + 1 + done))
            assert values == [item * 10 for item in range(first, first + done)]
            started = self.child.peek(slot)[2]
            assert before <= started <= time.monotonic_ns()
            self.model[slot][2:4] = started, first + (done or 1)

    @invariant()
    def peek(self) -> None:
        if hasattr(self, "model"):
            assert [list(self.supervisor.peek(slot)) for slot in range(SLOTS)] == self.model
            assert self.supervisor.beat() == 0


TestClaimsMachine = ClaimsMachine.TestCase
TestClaimsMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def claimed() -> Claims:
    claims = Claims(mmap.mmap(-1, PAGE), SLOTS)
    claims.offer(0, 7)
    assert claims.claim(0, 7)
    return claims


def test_an_offer_is_open_before_its_record_can_be_seen() -> None:
    claims, memory = Claims(mmap.mmap(-1, PAGE), SLOTS), mmap.mmap(-1, PAGE)
    producer, consumer = (Ring(memory, 0, 128, 256) for _ in range(2))
    assert claims.send_offer(2, 7, producer, 8, 1, 5, 2, b"call")
    found: list[Record] = []
    assert consumer.pop(found, 9) == 1
    assert found == [(8, 1, 5, 7, 2, b"call")]
    assert claims.peek(2)[:2] == (7, OFFERED)
    generation = 8
    for payload in (bytes(200), b""):  # that never fits, and that does until there is no room
        while claims.send_offer(2, generation, producer, 8, 1, 5, 2, payload):
            generation += 1
        assert claims.peek(2)[:2] == (generation, OFFERED), "whoever sends it otherwise need not open it"
    with pytest.raises(ValueError, match="generation 0 stands for none"):
        claims.send_offer(2, 0, producer, 8, 1, 5, 2, b"")


def test_values_that_have_waited_are_handed_over_before_the_next_item_begins() -> None:
    claims, values = claimed(), list[int]()
    assert not claims.run(0, 7, abs, [-1, -2, -3], values, 0, 3, False, 0)
    assert values == [1]
    assert claims.peek(0)[3] == 1, "the next one has not begun"
    assert not claims.run(0, 7, abs, [-1, -2, -3], values, 0, 3, False, 0)
    assert values == [1], "none is called before these are taken"
    assert claims.run(0, 7, abs, [-1, -2, -3], values, 0, 3, False, 2**63)
    assert values == [1, 2, 3]


def test_an_item_that_raises_is_the_next_one_and_said_to_have() -> None:
    claims, values = claimed(), list[float]()
    with pytest.raises(ZeroDivisionError):
        claims.run(0, 7, (1).__truediv__, [1, 2, 0, 4], values, 0, 4, False, 2**63)
    assert values == [1.0, 0.5]
    assert claims.peek(0)[3] == 3
    assert claims.inside
    assert claims.run(0, 7, (1).__truediv__, [1, 2, 0, 4], values, 2, 3, False, 2**63), "there is a value for item 2"
    assert not claims.inside
    with pytest.raises(IndexError):
        claims.run(0, 7, abs, [], [], 0, 1, False, 2**63)
    assert not claims.inside


@pytest.mark.parametrize("spread", [False, True])
def test_what_an_item_raises_is_not_taken_for_the_end_of_the_items(spread: bool) -> None:
    def stop_at(item: int) -> int:
        if item == 2:
            raise StopIteration(item)
        return item

    claims, values = claimed(), list[int]()
    items: list[Any] = [(each,) if spread else each for each in range(4)]
    with pytest.raises(StopIteration) as raised:
        claims.run(0, 7, stop_at, items, values, 0, 4, spread, 2**63)
    assert (values, raised.value.value, claims.inside) == ([0, 1], 2, True)
    values.clear()
    assert claims.run(0, 7, stop_at, items, values, 3, 4, spread, 2**63)
    assert values == [3]


@pytest.mark.parametrize("spread", [False, True])
def test_an_item_lives_as_long_as_its_call_whatever_that_does_to_the_list(spread: bool) -> None:
    class Item:
        pass

    seen: list[Item | None] = []

    def call(item: Item) -> int:
        known = weakref.ref(item)
        del item
        items.clear()
        seen.append(known())
        return 1

    claims, values = claimed(), list[int]()
    items: list[Any] = [(Item(),) if spread else Item() for _ in range(3)]
    with pytest.raises(IndexError):
        claims.run(0, 7, call, items, values, 0, 3, spread, 2**63)
    assert len(seen) == 1
    assert isinstance(seen[0], Item)
    assert not claims.inside, "no item is to blame"


def test_an_item_begins_when_the_one_before_has_ended() -> None:
    """It is asked of the processor's counter how long ago the clock was looked at: a few microseconds do not count."""
    claims, values = claimed(), list[int]()
    ended: list[int] = []
    began: list[int] = []

    def call(seconds: float) -> None:
        began.append(claims.peek(0)[2])
        time.sleep(seconds)
        ended.append(time.monotonic_ns())

    before = time.monotonic_ns()
    assert claims.run(0, 7, call, [0.001, 0.02, 0.0, 0.001, 0.0], values, 0, 5, False, 2**63)
    assert before <= began[0] <= ended[0]
    for number, seconds in enumerate([0.001, 0.02, 0.0, 0.001]):
        assert began[number + 1] <= ended[number + 1]
        assert not seconds or began[number + 1] >= ended[number]


def test_a_chunk_that_is_halted_by_an_item_ends_with_it() -> None:
    claims, values = claimed(), list[int]()
    assert claims.run(
        0, 7, lambda item: item if item < 2 else claims.halt(0, 7), [0, 1, 2, 3], values, 0, 4, False, 2**63
    )
    assert values == [0, 1, 3], "the cursor as it was in the third"


def test_what_a_signal_raises_is_raised_in_the_item_that_it_met_also_where_that_is_c() -> None:
    claims, values = claimed(), list[object]()
    inside: list[bool] = []
    pidfd = os.pidfd_open(os.getpid())
    kill_self = functools.partial(signal.pidfd_send_signal, pidfd)  # which does not look for signals itself

    def handler(_number: int, _frame: object) -> None:
        inside.append(claims.inside)
        raise InterruptedError

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(InterruptedError):
            claims.run(0, 7, kill_self, [0, signal.SIGUSR1, 0], values, 0, 3, False, 2**63)
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(pidfd)
    assert values == [None]
    assert claims.peek(0)[3] == 2
    assert inside == [True]


def test_no_further_item_begins_in_a_fork_of_a_child() -> None:
    claims, values = claimed(), list[int]()

    def call(item: int) -> int:
        return os.fork() if item else item

    pid, code = os.getpid(), 0
    try:
        claims.run(0, 7, call, [0, 1, 0], values, 0, 3, False, 2**63)
    except _native.MadeBeforeFork:
        code = 8 if claims.inside else 7
    if os.getpid() != pid:
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(values[1], 0)[1]) == 7
    assert values == [0, values[1], 0]


VERBS: dict[str, tuple[int, ...]] = {
    "offer": (1,),
    "claim": (1,),
    "revoke": (1,),
    "halt": (1,),
    "peek": (),
}


@pytest.mark.parametrize("verb", VERBS)
def test_arguments_out_of_bounds(verb: str) -> None:
    claims = Claims(mmap.mmap(-1, PAGE), SLOTS)
    call, rest = getattr(claims, verb), VERBS[verb]
    call(SLOTS - 1, *rest)
    for slot in (SLOTS, 256, 2**32, 2**64 - 1):
        with pytest.raises(IndexError, match=f"slot {slot} of {SLOTS}"):
            call(slot, *rest)
    for slot in (-1, 2**64):
        with pytest.raises(OverflowError):
            call(slot, *rest)
    with pytest.raises(TypeError):
        call("0", *rest)
    with pytest.raises(TypeError):
        call(0, *rest, 0)
    if rest:
        for generation in (GENERATION_MAX + 1, 2**64 - 1, *([0] if verb == "offer" else [])):
            with pytest.raises(ValueError, match="generation"):
                call(0, generation, *rest[1:])
        call(0, GENERATION_MAX, *rest[1:])


@pytest.mark.parametrize(("slots", "size"), [(0, PAGE), (-1, PAGE), (257, 3 * PAGE), (127, PAGE), (2**62, PAGE)])
def test_a_page_has_room_for_its_slots(slots: int, size: int) -> None:
    Claims(mmap.mmap(-1, PAGE), 126)
    with pytest.raises(ValueError, match="claim page"):
        Claims(mmap.mmap(-1, size), slots)


def test_the_largest_page() -> None:
    size = _native.CLAIMS_HEADER_BYTES + 256 * _native.CLAIM_SLOT_BYTES
    memory = mmap.mmap(-1, 3 * PAGE)
    claims = Claims(memoryview(memory)[:size], 256)
    claims.offer(255, 7)
    assert claims.peek(255) == (7, OFFERED, 0, 0, 0)
    assert memory[size:] == bytes(3 * PAGE - size)


@pytest.fixture
def channel() -> Iterator[tuple[int, tuple[int, int]]]:
    memfd = os.memfd_create("claims")
    os.ftruncate(memfd, peer.SIZE)
    bells = peer.make_pipe(), peer.make_pipe()
    yield memfd, bells
    for fd in (memfd, *bells):
        os.close(fd)


def start(role: str, channel: tuple[int, tuple[int, int]], *arguments: int) -> subprocess.Popen[bytes]:
    memfd, bells = channel
    command = [sys.executable, peer.__file__, role, *map(str, (memfd, *bells, *arguments))]
    return subprocess.Popen(command, pass_fds=(memfd, *bells), stdin=subprocess.PIPE)


def test_two_processes_race_for_each_offer(channel: tuple[int, tuple[int, int]]) -> None:
    rounds = 20_000
    rng = Random()
    revoked = 0
    with start("claim", channel, rounds) as process:
        mine = peer.Shared(*channel, 0)
        for generation in range(1, rounds + 1):
            slot = generation % peer.SLOTS
            mine.claims.offer(slot, generation)
            mine.push(0, 0, generation, slot, 0, b"")
            for _ in range(rng.randrange(60)):
                pass
            won = mine.claims.revoke(slot, generation)
            revoked += won
            ((_, _, answered, _, claimed, _),) = mine.pop(1)
            assert answered == generation
            assert bool(claimed) is not won
            assert mine.claims.peek(slot)[:2] == (generation, REVOKED if won else CLAIMED)
    assert process.returncode == 0
    assert 0 < revoked < rounds, "one side always won: not a race"


@contextlib.contextmanager
def beating(channel: tuple[int, tuple[int, int]]) -> Iterator[tuple[peer.Shared, subprocess.Popen[bytes]]]:
    with start("beat", channel) as process:
        mine = peer.Shared(*channel, 0)
        mine.pop(1)
        yield mine, process
        process.communicate()
    assert process.returncode == 0


def beats(shared: peer.Shared, count: int) -> None:
    for _ in range(count):
        last = shared.claims.beat()
        until(lambda last=last: shared.claims.beat() != last, "no heartbeat")  # type: ignore[misc]


def test_the_heart_beats_while_c_code_holds_the_gil(channel: tuple[int, tuple[int, int]]) -> None:
    with beating(channel) as (shared, process):
        place = Path(f"/proc/{process.pid}/wchan")
        until(lambda: "pipe" in place.read_text(), "the child did not come to its read()")
        beats(shared, 20)


def test_the_heart_stops_with_the_process(channel: tuple[int, tuple[int, int]]) -> None:
    with beating(channel) as (shared, process):
        beats(shared, 3)
        process.send_signal(signal.SIGSTOP)
        until(lambda: b"T (stopped)" in Path(f"/proc/{process.pid}/status").read_bytes(), "it did not stop")
        stopped = shared.claims.beat()
        end = time.monotonic() + 0.1  # a hundred intervals
        while time.monotonic() < end:
            assert shared.claims.beat() == stopped
        process.send_signal(signal.SIGCONT)
        beats(shared, 3)


def test_signals_do_not_reach_the_heart(channel: tuple[int, tuple[int, int]]) -> None:
    with beating(channel) as (_, process):
        tasks = Path(f"/proc/{process.pid}/task")
        (heart,) = (task for task in tasks.iterdir() if task.name != str(process.pid))
        blocked = int(re.findall(r"SigBlk:\s*(\w+)", (heart / "status").read_text())[0], 16)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            assert blocked >> (number - 1) & 1, number


@pytest.mark.parametrize("interval", [0, -1, 0.0009, 3601, float("nan"), float("inf")])
def test_a_heartbeat_out_of_bounds(interval: float) -> None:
    with pytest.raises(ValueError, match="interval"):
        Claims(mmap.mmap(-1, PAGE), 1).start_heartbeat(interval)


def test_one_heart(channel: tuple[int, tuple[int, int]]) -> None:
    script = """
import mmap, gc
from mpworker.ipc._native import Claims
memory = mmap.mmap(-1, 4096)
claims = Claims(memory, 1)
claims.start_heartbeat(0.001)
try:
    claims.start_heartbeat(0.001)
except RuntimeError as error:
    assert "beats already" in str(error)
else:
    raise SystemExit("two hearts")
del claims
gc.collect()
try:
    memory.close()  # the thread writes there
except BufferError:
    pass
else:
    raise SystemExit("unmapped under the heart")
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)


def test_the_first_beat_is_there_before_its_thread() -> None:
    # A lease would else end right after the start of a child whose heart has not had a core yet.
    script = """
import mmap
from mpworker.ipc._native import Claims
for _ in range(200):
    claims = Claims(mmap.mmap(-1, 4096), 1)
    claims.start_heartbeat(3600.0)
    assert claims.beat(), "it has not beaten"
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)
