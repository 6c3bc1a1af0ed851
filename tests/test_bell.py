"""The bell: when its pipe is written, what ends a wait, and that no wake-up is lost."""

import fcntl
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from mpworker.ipc._native import Bell, Ring, RingCorrupt

sys.path.append(str(Path(__file__).parent / "native"))
import peer

CAPACITY = 256
FOR_EVER = -1.0
STALL = 20.0


class Side:
    """A ring with a bell, and a bare pipe to watch besides."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4096)
        self.fd, self.also_fd = (peer.make_pipe() for _ in range(2))
        self.bell = Bell(self.memory, 1024, self.fd)
        self.producer, self.consumer = (Ring(self.memory, 0, 128, CAPACITY) for _ in range(2))

    @property
    def sleeping(self) -> bool:
        return self.memory[1024] == 1

    def written(self) -> int:
        try:
            return len(os.read(self.fd, 4096))
        except BlockingIOError:
            return 0

    def push(self, payload: bytes = b"") -> None:
        assert self.producer.push(0, 0, 0, 0, 0, payload)

    def wait(
        self,
        *,
        need: int | None = None,
        timeout: float = STALL,
        inbound: bool = True,
        spin_ns: int = 0,
        by_habit: bool = False,
        longest_ns: int = 0,
    ) -> int:
        return self.bell.wait(
            self.consumer if inbound else None,
            None if need is None else self.producer,
            need or 0,
            timeout,
            self.also_fd,
            spin_ns,
            by_habit,
            longest_ns,
        )


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    os.close(side.fd)
    os.close(side.also_fd)


def test_a_ringer_writes_only_for_a_sleeper(side: Side) -> None:
    side.bell.ring()
    assert side.written() == 0
    side.bell.arm()
    assert side.sleeping
    side.bell.ring()
    side.bell.ring()
    assert side.written() == 1  # a burst costs one write
    side.bell.arm()
    side.bell.disarm()
    side.bell.ring()
    assert side.written() == 0


def test_room_wakes_only_who_wants_it(side: Side) -> None:
    side.bell.arm()
    side.bell.ring_room()
    assert side.written() == 0  # it sleeps for records alone
    side.bell.want_room(True)
    side.bell.arm()
    side.bell.ring_room()
    side.bell.ring_room()
    assert side.written() == 1
    side.bell.arm()
    side.bell.ring()
    assert side.written() == 1  # records wake it too
    side.bell.want_room(False)
    side.bell.arm()
    side.bell.ring_room()
    assert side.written() == 0


def test_wake_writes_always(side: Side) -> None:
    side.bell.wake()
    side.bell.wake()
    assert side.written() == 2


def test_a_full_pipe_is_no_error(side: Side) -> None:
    capacity = fcntl.fcntl(side.fd, fcntl.F_SETPIPE_SZ, 8192)
    os.write(side.fd, bytes(capacity))
    side.bell.wake()
    for _ in range(capacity // 4096):
        assert side.wait() == 1
    assert side.wait(timeout=0) == 0


def test_a_drain_takes_out_what_was_written(side: Side) -> None:
    side.bell.drain()  # nothing, which is no error and does not block
    for _ in range(4096):
        side.bell.wake()
    side.bell.drain()
    assert side.written() == 0


def test_a_look_takes_no_wake_up_from_a_thread_that_sleeps(side: Side) -> None:
    woken: list[int] = []
    sleeper = threading.Thread(target=lambda: woken.append(side.wait(timeout=STALL)))
    sleeper.start()
    while not side.bell.waiting:
        pass
    time.sleep(0.05)  # it sleeps, or is about to
    for _ in range(100):
        assert side.wait(timeout=0.0) == 0
    side.push()
    side.bell.ring()  # which writes only if somebody sleeps
    sleeper.join(STALL / 2)
    assert woken == [1]


def test_a_look_leaves_the_pipe_to_who_sleeps_and_sees_the_other_descriptor(side: Side) -> None:
    side.bell.wake()
    assert side.wait(timeout=0.0) == 0
    assert side.wait(timeout=STALL) == 1, "which is still there"
    os.eventfd_write(side.also_fd, 1)
    assert side.wait(timeout=0.0) == 2
    side.push()
    assert side.wait(timeout=0.0) & 1


def test_who_waits_by_habit_spins_no_more_where_that_is_in_vain(side: Side) -> None:
    def cpu_of(waits: int, by_habit: bool) -> float:
        begun = time.thread_time()
        for _ in range(waits):
            assert side.wait(timeout=0.05, spin_ns=20_000_000, by_habit=by_habit) == 0
        return time.thread_time() - begun

    cpu_of(5, True)  # the habit is made
    assert cpu_of(5, True) < cpu_of(5, False) / 4


def test_who_waits_for_something_that_takes_its_time_does_not_spin_for_long(side: Side) -> None:
    begun = time.thread_time()
    spun = 0
    for _ in range(40):
        while side.wait(timeout=0.002, longest_ns=1_000_000_000):  # a spin in vain, and then it sleeps
            spun += 1
    assert 1 <= spun <= 4
    assert time.thread_time() - begun < 0.02, "for 2 ms each"


def test_where_longer_spins_end_waits_early_they_are_kept(side: Side) -> None:
    def cpu_of(waits: int, delay: float) -> float:
        """Of waits for a thread that pushes at once if nobody sleeps, and else after a delay."""
        spent = 0.0
        for _ in range(waits):
            pushed = threading.Thread(target=lambda: (time.sleep(delay), side.push(), side.bell.ring()))
            pushed.start()
            begun = time.thread_time()
            while not side.consumer.readable():
                assert side.wait(longest_ns=100_000_000) == 1
            spent += time.thread_time() - begun
            pushed.join()
            side.consumer.pop([], 10)
        return spent

    cpu_of(31, 0.02)  # which is how long they last with a sleep
    assert cpu_of(40, 0.002) > 30 * 0.001, "and this is less than three fifths of it"


@pytest.mark.parametrize("spin_ns", [0, 1000, 2**64 - 1])
def test_a_record_ends_a_wait(side: Side, spin_ns: int) -> None:
    side.push()
    assert side.wait(spin_ns=spin_ns) == 1
    side.push()
    side.consumer.pop([], 1)
    assert side.wait() == 1  # the second record was seen with the first
    side.consumer.pop([], 1)
    assert side.wait(timeout=0) == 0
    assert not side.sleeping


def test_room_ends_a_wait(side: Side) -> None:
    for _ in range(2):
        side.push(bytes(96))
    assert side.wait(inbound=False, need=0, timeout=0) == 0
    side.consumer.pop([], 1)
    assert side.wait(inbound=False, need=0) == 1
    assert side.wait(inbound=False, need=96) == 1
    side.push()
    assert side.wait(inbound=False, need=96, timeout=0) == 0
    assert side.wait(inbound=False, need=64) == 1


def test_the_pipe_and_the_other_descriptor_end_a_wait(side: Side) -> None:
    side.bell.wake()
    assert side.wait() == 1
    assert side.wait(timeout=0) == 0  # the wait has read it
    os.write(side.also_fd, b"1")
    assert side.wait() == 2
    side.bell.wake()
    assert side.wait() == 3
    assert side.written() == 0


def test_a_wait_lets_other_threads_run(side: Side) -> None:
    def push_when_asleep() -> None:
        while not side.sleeping:
            pass
        side.push()
        side.bell.ring()

    thread = threading.Thread(target=push_when_asleep)
    thread.start()
    assert side.wait(timeout=FOR_EVER) == 1
    thread.join()


def test_a_signal_handler_runs_during_a_wait(side: Side) -> None:
    def handler(*_: object) -> None:
        os.write(side.also_fd, b"1")

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        assert side.wait(timeout=FOR_EVER) == 1, "look again: the handler may have changed anything"
        assert side.wait(timeout=FOR_EVER) == 2
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_that_raises_ends_a_wait(side: Side) -> None:
    class Alarm(Exception):
        pass

    def handler(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(Alarm):
            side.wait(timeout=FOR_EVER)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not side.sleeping


def test_a_wait_returns_at_an_impossible_head(side: Side) -> None:
    # A liar; or another thread that pushed after this one looked, with a consumer that is past it already.
    while side.producer.push(0, 0, 0, 0, 0, b""):
        pass
    side.memory[64:72] = (512).to_bytes(8, "little")
    assert side.wait(inbound=False, need=0) == 1
    with pytest.raises(RingCorrupt):
        side.push()


def test_a_wait_returns_at_an_impossible_tail(side: Side) -> None:
    side.memory[0:8] = (2**64 - 1).to_bytes(8, "little")
    assert side.wait() == 1
    with pytest.raises(RingCorrupt):
        side.consumer.pop([], 1)
    with pytest.raises(RingCorrupt):
        side.wait()


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (TypeError, ()),
        (TypeError, (object(), None, 0, 0.0, -1, 0, False)),
        (TypeError, (None, 7, 0, 0.0, -1, 0, False)),
        (TypeError, (None, None, 0, "soon", -1, 0, False)),
        (TypeError, (None, None, 0, 0.0, None, 0, False)),
        (TypeError, (None, None, 0.5, 0.0, -1, 0, False)),
        (ValueError, (None, None, 0, 0.0, 2**32, 0, False)),
        (ValueError, (None, None, 0, 0.0, -2, 0, False)),
        (OverflowError, (None, None, 0, 0.0, 2**64, 0, False)),
        (OverflowError, (None, None, 0, 0.0, -1, -1, False)),
        (OverflowError, (None, None, -1, 0.0, -1, 0, False)),
    ],
    ids=range(11),
)
def test_a_wait_with_wrong_arguments(side: Side, error: type[Exception], arguments: tuple[object, ...]) -> None:
    with pytest.raises(error):
        side.bell.wait(*arguments)  # type: ignore[arg-type]


def test_a_wait_for_more_room_than_there_ever_is(side: Side) -> None:
    for need in (side.producer.max_payload + 1, 2**64 - 1):
        with pytest.raises(ValueError, match="never has"):
            side.wait(need=need)


def test_a_pipe_that_is_closed(side: Side) -> None:
    gone = peer.make_pipe()
    bell = Bell(side.memory, 1024, gone)
    os.close(gone)
    with pytest.raises(OSError, match="write to a bell: Bad file descriptor"):
        bell.wake()
    bell.arm()
    with pytest.raises(OSError, match="write to a bell"):
        bell.ring()
    with pytest.raises(OSError, match="read a bell: Bad file descriptor"):
        bell.drain()
    with pytest.raises(OSError, match="wait for a bell: Bad file descriptor"):
        bell.wait(None, None, 0, FOR_EVER, -1, 0, False)
    assert not side.sleeping


@pytest.mark.parametrize("offset", [-64, 8, 4096, 2**62])
def test_a_bell_lies_inside_its_buffer(side: Side, offset: int) -> None:
    with pytest.raises(ValueError, match="a bell of 64 bytes"):
        Bell(side.memory, offset, side.fd)


def test_a_sleeper_by_other_means(side: Side) -> None:
    # An event loop arms the bell, looks at the ring, and waits for the pipe with everything else.
    side.bell.arm()
    assert not side.consumer.readable()
    side.push()
    side.bell.ring()
    assert select.select([side.fd], [], [], STALL)[0] == [side.fd]
    side.bell.drain()
    assert not select.select([side.fd], [], [], 0)[0]


def ping_pong(rounds: int) -> None:
    memfd = os.memfd_create("rings")
    os.ftruncate(memfd, peer.SIZE)
    bells = peer.make_pipe(), peer.make_pipe()
    command = [sys.executable, peer.__file__, "echo", *map(str, (memfd, *bells, rounds))]
    rng = Random()
    try:
        with subprocess.Popen(command, pass_fds=(memfd, *bells)) as process:
            mine = peer.Shared(memfd, bells, 0)
            for i in range(rounds):
                mine.push(0, 0, i, 0, 0, b"")
                for _ in range(rng.randrange(30)):
                    pass
                ((_, _, a, _, _, _),) = mine.pop(1, spin_ns=rng.choice((0, 0, 0, 3000)))
                assert a == i
        assert process.returncode == 0
    finally:
        for fd in (memfd, *bells):
            os.close(fd)


def test_no_wake_up_is_lost() -> None:
    ping_pong(40_000)


@pytest.mark.deep
def test_no_wake_up_is_lost_in_a_long_time() -> None:
    ping_pong(2_000_000)
