"""The supervisor's loop: what it notices while its rings are never empty, and how long it waits for the nursery."""

import _socket
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pooljobs
import psutil
import pytest
from leaks import wait_until
from pooljobs import Gate

from mpworker import ProcessWorker
from mpworker.ipc import codec, frames
from mpworker.ipc.channel import Channel, close_all, make_channel
from mpworker.supervisor import burying, children
from mpworker.supervisor.effects import ProtocolViolation
from mpworker.supervisor.leases import Leases
from mpworker.supervisor.loop import Loop
from mpworker.supervisor.nursing import _NURSERY_SILENT_MAX, _START_BACKOFF_MAX
from mpworker.supervisor.places import Places
from mpworker.supervisor.reading import _refusal
from mpworker.supervisor.registry import GONE, LEAVING, READY, STARTING, Seat

_CONFIG = {
    "n": 1,
    "descriptors": 0,
    "overlap": 0,
    "recycling": {},
    "cores": [],
    "usable_cores": 0,
    "spread": False,
    "slots": 8,
    "lease_ttl": 10.0,
    "log_level": 100,
    "grace": 1.0,
    "start_timeout": 10.0,
    "kill_timeout": 10.0,
    "child_ring_bytes": 4096,
    "arena_bytes": 0,
    "child": {"max_payload_bytes": 1 << 20},
    "nursery_argv": ["/bin/true"],
}


class _NeverIdle(Loop):
    """A loop whose every turn finds a full batch, and which has no processes."""

    give_up_at = 0.0
    turns = 0
    client_end: _socket.socket

    def _start_nursery(self) -> None:
        self.give_up_at = time.monotonic() + 20

    def _finds_more(self, channels: list[Channel]) -> bool:
        return self._turn() > 0

    def _turn(self) -> int:
        self.turns += 1
        if self.turns == 100:
            self.client_end.close()  # as the kernel does for a process that dies
        self._turned_at = time.monotonic()
        assert self._turned_at < self.give_up_at, "the death of the client went unnoticed"
        return 1000


@contextmanager
def made(kind: type[Loop] = Loop, ends: list[Channel] | None = None) -> Iterator[Loop]:
    """A loop that has no processes. The client's end of its channel is put into `ends`, for the caller to close."""
    ours, theirs = frames.pair()
    fds, channel = make_channel("test", (4096, 4096))
    if ends is not None:
        ends.append(Channel([fds[0], *map(os.dup, fds[1:])], (4096, 4096), 1))
    close_all(fds)
    pidfd = os.pidfd_open(os.getpid())
    blob = os.memfd_create("blob")
    try:
        loop = kind(_CONFIG, ours, channel, blob, pidfd)
        if isinstance(loop, _NeverIdle):
            loop.client_end = theirs
        yield loop
        loop._epoll.close()
        loop.world.roll.close()
    finally:
        ours.close()
        theirs.close()
        channel.close()
        os.close(pidfd)
        os.close(blob)


def test_a_supervisor_that_is_never_idle_notices_its_clients_death() -> None:
    with made(_NeverIdle) as loop:
        loop.run()


def test_of_a_child_that_was_perhaps_never_forked_nothing_is_told() -> None:
    told: list[str] = []
    ends: list[Channel] = []
    with made() as loop:
        loop.watch.log = lambda _level, event, _task=0, **_fields: told.append(event)  # type: ignore[method-assign]
        loop.world.nursery = SimpleNamespace(  # type: ignore[assignment]
            send=lambda order, fds: ends.append(Channel([fds[0], *map(os.dup, fds[1:3])], order["capacities"], 1))
        )
        child = loop.world.spawn()
        loop.scheduler.child_starting(child.seat, time.monotonic())
        assert ends[0].outbound.push(codec.READY, 0, 0, 0, 0, b"")
        loop._stopping = "now"  # so that no other is made
        loop._child_died(child, signal.SIGKILL, "nursery")
        assert (child.seat.state, told) == (GONE, [])
        ends[0].close()


def test_a_child_is_not_heard_before_it_is_known_who_it_is() -> None:
    told: list[tuple[str, int]] = []
    ends: list[Channel] = []

    def send(order: dict[str, Any], fds: list[int]) -> None:
        ends.append(Channel([fds[0], *map(os.dup, fds[1:3])], order["capacities"], 1))

    with made() as loop, subprocess.Popen(["sleep", "60"]) as forked:
        world = loop.world
        loop.watch.log = lambda _level, event, _task=0, **fields: told.append((event, fields["pid"]))  # type: ignore[method-assign]
        world.nursery = SimpleNamespace(send=send)  # type: ignore[assignment]
        child = world.spawn()
        loop.scheduler.child_starting(child.seat, time.monotonic())
        assert ends[0].outbound.push(codec.READY, 0, 0, 0, 0, b"")
        world.tell(child, codec.FORGET, 0, 7, 0, 0, b"")  # nor does it matter that it was sent something
        world.ring_told()
        assert loop._turn() == 0
        assert (child.seat.state, told) == (STARTING, [])
        spawned = {"op": "spawned", "id": child.seat.number, "pid": forked.pid}
        loop._nursery_report(spawned, [os.pidfd_open(forked.pid)])
        assert loop._turn() == 1
        assert child.seat.state == READY
        assert told == [("child_started", forked.pid), ("child_ready", forked.pid)]
        forked.kill()
        ends[0].close()
        child.close()


@pytest.mark.parametrize("left", ["a free core", "outbox", "backlog", "freed", "unneeded", "overtaken", "stopping"])
def test_before_it_sleeps_a_loop_does_what_a_turn_has_left(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    with made() as loop:
        world: Any = loop.world
        channels = [world.channel]
        turns = iter([0, 3])
        loop._turn = lambda: next(turns)  # type: ignore[method-assign]
        assert not loop._finds_more(channels)
        if left == "a free core":
            loop._cores = 1
        elif left == "outbox":
            world.outbox.waiting.append("a record")
        elif left == "backlog":
            world.backlog.add("a child")
        elif left == "freed":
            world.blocks.freed.append(1)
        elif left == "unneeded":
            world.blocks.shares.unneeded.append(1)
        elif left == "overtaken":
            monkeypatch.setattr(Places, "is_overtaken", True)
        else:
            loop._stopping = "drain"
        assert not loop._finds_more(channels)
        assert loop._finds_more(channels)
        assert next(turns, None) is None


def test_before_it_sleeps_a_loop_looks_for_what_has_come() -> None:
    ends: list[Channel] = []
    with made(ends=ends) as loop:
        loop._turn = lambda: pytest.fail("a turn, where a look is enough")  # type: ignore[method-assign]
        assert not loop._finds_more([loop.world.channel])
        assert ends[0].outbound.push(codec.REQUEST, 0, 0, 0, 0, b"")
        assert loop._finds_more([loop.world.channel])
        ends[0].close()


@dataclass(eq=False)
class _Dead:
    """A child that the nursery has still to report."""

    pid: int = 1
    ended: bool = True


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whom a loop of this test has killed."""
    pids: list[int] = []
    monkeypatch.setattr("mpworker.supervisor.nursing.os.kill", lambda pid, _: pids.append(pid))
    return pids


@contextmanager
def _owing() -> Iterator[Loop]:
    """A loop whose nursery owes a word since 1000.0."""
    with made() as loop:
        loop.world.nursery_ready, loop.world.nursery_pid = True, 4711
        loop._nursery_lease = Leases(_NURSERY_SILENT_MAX)
        loop.world.by_number = {0: _Dead()}  # type: ignore[dict-item]
        loop._nursery_owes(1000.0)
        yield loop


def _look_until(loop: Loop, end: float) -> None:
    while (at := loop._nursery_lease.next_at) is not None and at <= end:
        loop._look_at_nursery(at)


def test_a_nursery_may_owe_a_word_for_so_long(killed: list[int]) -> None:
    told: list[str] = []
    with _owing() as loop:
        loop.watch.log = lambda level, event, task=0, **fields: told.append(event)  # type: ignore[method-assign]
        _look_until(loop, 1000.0 + _NURSERY_SILENT_MAX)
        assert killed == told == []
        loop._nursery_heard_at = 1004.0  # of another child: it lives
        _look_until(loop, 1004.0 + _NURSERY_SILENT_MAX)
        assert killed == []
        _look_until(loop, 1004.0 + _NURSERY_SILENT_MAX * 1.5)
        assert set(killed) == {4711}
        assert told == ["nursery_killed"]


def test_a_nursery_that_was_paused_with_the_supervisor_has_its_time_anew(killed: list[int]) -> None:
    with _owing() as loop:
        _look_until(loop, 1001.5)
        loop._look_at_nursery(5000.0)
        _look_until(loop, 5000.0 + _NURSERY_SILENT_MAX)
        assert killed == []
        _look_until(loop, 5000.0 + _NURSERY_SILENT_MAX * 1.5)
        assert set(killed) == {4711}


def test_a_nursery_that_owes_nothing_may_be_silent_for_ever(killed: list[int]) -> None:
    with _owing() as loop:
        loop.world.by_number = {}
        _look_until(loop, 9999.0)
        assert killed == []
        assert loop._nursery_lease.next_at is None


def test_what_the_nursery_says_is_read_before_any_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(Places, "next_timer", lambda _: 0.0)  # of the class: an instance has nothing but its slots
    monkeypatch.setattr(Places, "timer", lambda _, now: done.append("timer"))
    with made() as loop:
        loop._nursery_speaks = lambda: done.append("read")  # type: ignore[method-assign]
        loop._look_at_nursery = lambda _: done.append("look")  # type: ignore[method-assign]
        loop._nursery_lease.next_at = 0.0
        loop._turn()
    assert done == ["read", "timer", "read", "look"]


def test_the_pause_after_failed_starts_is_bounded_however_many_there_were() -> None:
    with made() as loop:
        loop.world.by_number = {0: SimpleNamespace(seat=Seat(0, 8, state=READY))}  # type: ignore[dict-item]
        loop._start_failures = 100_000
        loop._start_failed("again")
        assert loop._spawn_at is not None
        assert 0 < loop._spawn_at - time.monotonic() <= _START_BACKOFF_MAX


@dataclass(eq=False)
class _Sitting:
    """A child of which the loop needs no more than whether it may say something."""

    seat: Seat
    outbox: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(waiting=[]))
    owes: set[int] = field(default_factory=set)
    pid: int = 1
    rung: int = 0

    def ring_bell(self) -> None:
        self.rung += 1


def test_the_loop_looks_at_those_children_alone_that_may_say_something() -> None:
    with made() as loop:
        world: Any = loop.world
        starts, rests, works, leaves, stuffed, owing = children = [
            _Sitting(Seat(number, 8, state=state))
            for number, state in enumerate((0, READY, READY, LEAVING, READY, READY))
        ]
        works.seat.offers[0] = SimpleNamespace()  # type: ignore[assignment]
        stuffed.outbox.waiting.append("a record")
        owing.owes.add(7)
        world.active = dict.fromkeys(children)
        world.let_rest()
        assert list(world.active) == [starts, works, leaves, stuffed, owing]
        world.told.update((rests, works))
        assert world.ring_told() == 1
        assert list(world.active) == [starts, works, leaves, stuffed, owing, rests]
        assert [child.rung for child in children] == [0, 1, 1, 0, 0, 0]


def test_a_turn_that_gives_a_silent_child_something_is_followed_by_another_before_any_sleep() -> None:
    with made() as loop:
        world: Any = loop.world
        assert loop._turn() == 0
        loop.read_child = lambda _child, _whole=False: 0  # type: ignore[method-assign,assignment]
        world.told.add(_Sitting(Seat(0, 8, state=READY)))
        assert loop._turn() == 1, "its bell is not armed"
        assert loop._turn() == 0


def test_a_list_of_the_children_shows_what_was_submitted_before_it(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with ProcessWorker(n=1) as w:
        w.submit(pooljobs.square, 2).result()
        supervisor = psutil.Process(w.processes()["supervisor"])
        outbound = w._client.supervisor.channel.outbound
        supervisor.suspend()
        try:
            held = w.submit(pooljobs.hold, gate.folder)
            sent = outbound.fill()
            found: list[dict[str, Any]] = []
            thread = threading.Thread(target=lambda: found.append(w.processes()))
            thread.start()
            assert wait_until(lambda: outbound.fill() > sent, 10.0)
        finally:
            supervisor.resume()
        thread.join(60.0)
        gate.wait_begun()
        gate.release()
        held.result(60.0)
    gate.close()
    assert [child["offers"] for child in found[0]["children"]] == [1]


def test_an_orphan_that_hangs_in_the_kernel_does_not_hold_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    # A process that nobody kills stands for one that does not die by it.
    monkeypatch.setattr(children, "_KILLED_SECONDS", 0.2)
    monkeypatch.setattr(children, "kill_strays", lambda _: None)
    with made() as loop, subprocess.Popen(["sleep", "60"]) as hanging:
        child: Any = SimpleNamespace(pid=hanging.pid, pidfd=os.pidfd_open(hanging.pid), signal=lambda _: None)
        loop.world.by_number = {0: child}
        nursery = loop.world.nursery_pid = os.posix_spawn("/bin/true", ["true"], {})
        try:
            assert loop.world.nursery_lost() == [(child, signal.SIGKILL, "unkillable")]
        finally:
            os.close(child.pidfd)
            hanging.kill()
    with pytest.raises(ChildProcessError):
        os.waitpid(nursery, os.WNOHANG)  # it was reaped


def test_a_refusal_says_why() -> None:
    assert _refusal(b'{"why": "a line", "traceback": "and more"}') == ("a line", "and more")


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"3", b"{}", b'{"why": "no traceback"}'])
def test_a_refusal_that_no_child_of_ours_would_send_condemns_the_child(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        _refusal(data)


def test_a_time_that_is_far_away_is_waited_for_in_parts() -> None:
    with made() as loop, subprocess.Popen(["true"]) as process:
        loop._spawn_at = time.monotonic() + 40 * 86_400.0  # epoll and poll count ms in 31 bits
        pidfd = os.pidfd_open(process.pid)
        loop._watch(pidfd, lambda: None)
        assert loop._sleep(loop._timeout())[0][0] == pidfd
        assert burying.ends(pidfd, time.monotonic() + 1e9)
        os.close(pidfd)


@pytest.mark.parametrize(("seconds", "precise"), [(0.0003, True), (1.0, False), (-1.0, False), (0.0, False)])
def test_a_short_sleep_is_no_longer_than_it_should_be(
    seconds: float, precise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    with made() as loop:
        loop._epoll.close()
        loop._epoll = SimpleNamespace(fileno=lambda: 3, poll=asked.append)  # type: ignore[assignment]
        monkeypatch.setattr(
            "mpworker.supervisor.serving.select.select", lambda *_: asked.append(_[-1])
        )  # it counts in us, and epoll in ms
        loop._sleep(seconds)
        loop._epoll = select.epoll()
    assert asked == ([seconds, 0.0] if precise else [seconds])
