"""When silence means that a child is frozen, and when it means that the supervisor, or the machine, was away."""

import time

import psutil
import pytest
from leaks import wait_until
from scheduler_world import LEASE_TTL, World

from mpworker import ProcessWorker
from mpworker.supervisor import effects as rules
from mpworker.supervisor.leases import Leases

TTL = 8.0
INTERVAL = TTL / 4


# ------------------------------------------------------------ alone


def test_nothing_is_looked_at_while_no_offer_is_outstanding() -> None:
    assert Leases(TTL).next_at is None


def test_looks_come_four_times_a_lease_while_a_child_is_busy() -> None:
    leases = Leases(TTL)
    leases.watch(100.0)
    assert leases.next_at == 100.0 + INTERVAL
    leases.begin_look(102.0, busy=True)
    assert leases.next_at == 102.0 + INTERVAL
    leases.begin_look(104.0, busy=False)
    assert leases.next_at is None


def test_a_second_offer_does_not_put_the_look_off() -> None:
    leases = Leases(TTL)
    leases.watch(100.0)
    leases.watch(101.0)
    assert leases.next_at == 100.0 + INTERVAL


def _look_every_interval(leases: Leases, start: float, stop: float) -> float:
    now = start
    while now < stop:
        now += INTERVAL
        leases.begin_look(now, busy=True)
    return now


def test_a_lease_lasts_its_whole_time_and_no_longer() -> None:
    leases = Leases(TTL)
    leases.watch(100.0)
    _look_every_interval(leases, 100.0, 200.0)
    assert not leases.expired(200.0, beat_at=200.0 - TTL)
    assert leases.expired(200.0, beat_at=200.0 - TTL - 0.125)


def test_a_child_that_beat_long_ago_has_a_whole_lease_from_the_first_offer() -> None:
    leases = Leases(TTL)
    leases.watch(100.0)
    leases.begin_look(100.0 + INTERVAL, busy=True)
    assert not leases.expired(100.0 + TTL, beat_at=3.0)
    assert leases.expired(100.0 + TTL + 0.125, beat_at=3.0)


@pytest.mark.parametrize("away", [INTERVAL + 0.125, TTL, 1000 * TTL])
def test_after_a_pause_every_lease_counts_from_its_end(away: float) -> None:
    leases = Leases(TTL)
    leases.watch(100.0)
    now = 100.0 + INTERVAL + away
    leases.begin_look(now, busy=True)
    assert not leases.expired(now, beat_at=100.0)
    assert not leases.expired(now + TTL, beat_at=100.0)
    assert leases.expired(now + TTL + 0.125, beat_at=100.0)


@pytest.mark.parametrize("late", [0.0, INTERVAL / 2, INTERVAL])
def test_a_look_that_is_a_little_late_is_no_pause(late: float) -> None:
    leases = Leases(TTL)
    leases.watch(100.0)
    now = _look_every_interval(leases, 100.0, 100.0 + TTL) + INTERVAL + late
    leases.begin_look(now, busy=True)
    assert leases.expired(now, beat_at=100.0)


def test_a_pause_while_nobody_was_busy_is_none() -> None:
    leases = Leases(TTL)
    leases.watch(100.0)
    leases.begin_look(102.0, busy=False)
    leases.watch(5000.0)
    leases.begin_look(5000.0 + INTERVAL, busy=True)
    assert not leases.expired(5000.0 + INTERVAL, beat_at=90.0)


# ------------------------------------------------------------ in the scheduler


def _until(world: World, end: float) -> None:
    """A supervisor that does every timer on time."""
    while (at := world.scheduler.next_timer()) is not None and at <= end:
        world.advance(max(0.0, at - world.now))
        world.turn()
    world.advance(end - world.now)


def _kills(world: World) -> list[tuple[object, ...]]:
    return [entry for entry in world.log if entry[0] == "kill"]


def test_a_frozen_child_is_killed_soon_after_its_lease() -> None:
    world = World(2)
    world.submit()
    world.turn()
    child = world.children[1]
    child.step()
    child.frozen = True
    frozen_at = world.now
    _until(world, frozen_at + LEASE_TTL)
    assert not _kills(world)
    _until(world, frozen_at + LEASE_TTL + LEASE_TTL / 4 + 0.125)
    assert _kills(world) == [("kill", 1, "lease")]


def test_a_busy_child_that_beats_is_never_killed_however_long_it_runs() -> None:
    world = World(1)
    world.submit()
    world.turn()
    world.children[0].step()
    _until(world, world.now + 100 * LEASE_TTL)
    assert not _kills(world)
    world.finish()


def test_a_frozen_child_without_offers_is_left_alone() -> None:
    world = World(2)
    world.children[0].frozen = True
    world.submit()
    world.turn()
    _until(world, world.now + 10 * LEASE_TTL)
    assert not _kills(world)


def test_the_task_of_a_frozen_child_is_lost_or_retried_and_its_neighbours_go_on() -> None:
    world = World(1)
    first = world.submit(crash_retries=1)
    world.turn()
    child = world.children[0]
    child.step()
    child.frozen = True
    _until(world, world.now + 2 * LEASE_TTL)
    assert (first.attempts, first.setbacks.crashes) == (1, 1)
    world.finish()
    assert world.accepted[first.key].outcomes == {None: rules.OK}


def test_a_pause_of_the_machine_is_not_a_death() -> None:
    world = World(3)
    for _ in range(3):
        world.submit()
    world.turn()
    for child in world.children.values():
        child.step()
    for _ in range(5):
        world.pause(10 * LEASE_TTL)
        world.turn()
        _until(world, world.now + LEASE_TTL)
    assert not _kills(world)
    world.finish()


def test_a_child_that_stays_frozen_after_a_pause_of_the_machine_is_killed() -> None:
    world = World(2)
    world.submit()
    world.submit()
    world.turn()
    for child in world.children.values():
        child.step()
    world.children[1].frozen = True
    world.pause(10 * LEASE_TTL)
    world.turn()
    assert not _kills(world)
    _until(world, world.now + 2 * LEASE_TTL)
    assert _kills(world) == [("kill", 1, "lease")]


# ------------------------------------------------------------ in a real supervisor


def test_answers_that_came_while_the_supervisor_was_away_came_in_time() -> None:
    """More of them than one look at the ring takes in."""
    count = 120
    with ProcessWorker(n=1) as w:
        list(w.map(abs, range(1_000_000)))  # until a call is known to be short, and so many are offered at once
        found = w.processes()
        child = psutil.Process(found["children"][0]["pid"])
        supervisor = psutil.Process(found["supervisor"])
        child.suspend()
        try:
            timed = w.options(timeout=0.5)
            futures = [timed.submit(abs, -1) for _ in range(count)]
            assert wait_until(lambda: w.processes()["children"][0]["offers"] == count, 5.0)
            supervisor.suspend()
            child.resume()
            end = time.monotonic() + 0.75
            # It sleeps only when it has answered all.
            assert wait_until(lambda: child.status() == psutil.STATUS_SLEEPING and time.monotonic() > end, 5.0)
        finally:
            child.resume()
            supervisor.resume()
        assert [future.result() for future in futures] == [1] * count
