"""Children that start, are killed and are given up, and pauses of the machine: the scheduler under virtual time."""

import pytest
from scheduler_steps import function, kills, last_report, offered, outcome, start, wait
from scheduler_world import KILL_TIMEOUT, LEASE_TTL, START_TIMEOUT, World

from mpworker.supervisor import effects as rules
from mpworker.supervisor.registry import DYING, Death


def test_a_child_that_takes_too_long_to_start_is_killed() -> None:
    world = World(1, start=False)
    wait(world, START_TIMEOUT - 0.0625)
    assert kills(world) == []
    wait(world, 0.0625)
    assert kills(world) == ["start"]


def test_each_child_has_its_own_deadline_to_start() -> None:
    world = World(1, start=False)
    wait(world, 1.0)
    world.spawn()
    wait(world, START_TIMEOUT - 1.0)
    assert kills(world) == ["start"]
    wait(world, 1.0)
    assert kills(world) == ["start", "start"]


def test_an_idle_child_that_is_killed_gets_no_more_offers() -> None:
    world = World(1)
    world.scheduler.kill(world.children[0].seat, "corrupt", world.now)
    world.submit()
    world.turn()
    assert not offered(world)


def test_a_child_that_is_ready_in_time_has_no_deadline_any_more() -> None:
    world = World(1)
    wait(world, 10 * START_TIMEOUT)
    assert kills(world) == []


def test_a_child_is_killed_once() -> None:
    world = World(1)
    seat = world.children[0].seat
    world.scheduler.kill(seat, "lease" if world.children[0].frozen else "corrupt", world.now)
    world.scheduler.kill(seat, "grace", world.now)
    assert kills(world) == ["corrupt"]
    assert (seat.state, seat.kill_cause) == (DYING, "corrupt")


def test_an_unkillable_child_is_given_up_and_its_task_never_retried() -> None:
    world = World(1, slots=16)
    stuck = world.submit(function(1), timeout=1.0, crash_retries=9)
    other = world.submit(function(1))
    child = start(world)
    child.unkillable = child.frozen = True
    wait(world, 2 * LEASE_TTL)
    assert len(kills(world)) == 1
    wait(world, KILL_TIMEOUT)
    assert child.seat.number not in world.children
    assert outcome(world, stuck) in (rules.CRASHED, rules.TIMED_OUT)
    world.scheduler.child_died(child.seat, Death(1, 9, None, "signal"))  # when the file system comes back
    world.finish()
    assert outcome(world, other) == rules.OK
    assert stuck.attempts == 1


def test_a_task_in_an_unkillable_child_crashes_for_that_reason() -> None:
    world = World(1)
    task = world.submit(crash_retries=9)
    child = start(world)
    child.unkillable = child.frozen = True
    wait(world, 2 * LEASE_TTL + KILL_TIMEOUT)
    assert outcome(world, task) == rules.CRASHED
    how = {"pid": 4000, "signal": 9, "exit_code": None, "cause": "unkillable"}
    assert last_report(world) == {**how, "attempt": 1, "attempts": 10, "unclaimed_deaths": 0}


def test_a_dead_child_gets_no_offer_and_waits_to_be_reaped() -> None:
    world = World(2, slots=16)
    running = world.submit(function(1))
    child = start(world, 1)
    world.die(child)
    world.notice(child)
    others = [world.submit(function(1)) for _ in range(8)]
    world.turn()
    assert not offered(world, 1)
    wait(world, 10 * (LEASE_TTL + KILL_TIMEOUT))
    assert kills(world) == []
    assert outcome(world, running) is None, "only the report says how it died"
    world.reap(child, signal=11)
    assert outcome(world, running) == rules.CRASHED
    world.finish()
    assert [outcome(world, task) for task in others] == [rules.OK] * 8


def test_an_idle_child_that_is_dead_gets_no_offer() -> None:
    world = World(1)
    world.die(world.children[0])
    world.notice(world.children[0])
    world.submit()
    world.turn()
    assert not offered(world)
    world.check()


@pytest.mark.parametrize("ready", [True, False])
def test_a_killed_child_that_is_dead_is_not_given_up(ready: bool) -> None:
    world = World(1, start=ready)
    child = world.children[0]
    world.scheduler.kill(child.seat, "corrupt", world.now)
    world.die(child)
    world.notice(child)
    for _ in range(100):
        world.now += LEASE_TTL / 4  # not `advance`, which would reap it
        world.turn()
    assert child.seat.number in world.children


def test_a_cancel_in_a_child_that_dies_needs_no_grace() -> None:
    world = World(1)
    task = world.submit()
    child = start(world)
    child.unkillable = True
    world.scheduler.kill(child.seat, "corrupt", world.now)
    assert world.cancel(task.key)
    wait(world, KILL_TIMEOUT)  # which sees that no timer comes again and again
    assert outcome(world, task) == rules.CANCELLED


# ------------------------------------------------------------ pauses of the machine


@pytest.mark.parametrize("before", [0.0, 1.0, KILL_TIMEOUT - 0.25])
def test_a_pause_is_not_taken_from_the_time_that_a_killed_child_has(before: float) -> None:
    world = World(1)
    child = world.children[0]
    child.unkillable = True
    world.scheduler.kill(child.seat, "corrupt", world.now)
    wait(world, before)
    world.pause(3 * KILL_TIMEOUT)
    world.turn()
    assert child.seat.number in world.children
    wait(world, KILL_TIMEOUT - before - 0.125)
    assert child.seat.number in world.children
    wait(world, 0.125 + LEASE_TTL / 4)
    assert child.seat.number not in world.children


def test_a_pause_is_not_taken_from_the_time_that_a_child_has_to_start() -> None:
    world = World(1, start=False)
    wait(world, START_TIMEOUT / 2)
    world.pause(3 * START_TIMEOUT)
    world.turn()
    wait(world, START_TIMEOUT / 2 - 0.125)
    assert kills(world) == []
    wait(world, 0.125 + LEASE_TTL / 4)
    assert kills(world) == ["start"]


def test_a_pause_that_ends_just_after_a_deadline_is_noticed() -> None:
    world = World(1)
    child = world.children[0]
    world.scheduler.kill(child.seat, "corrupt", world.now)
    world.pause(KILL_TIMEOUT + 0.125)
    world.turn()
    assert child.seat.number in world.children


def test_nobody_looks_once_nobody_starts_or_dies_or_works() -> None:
    world = World(1)
    world.scheduler.kill(world.children[0].seat, "corrupt", world.now)
    world.bury()
    world.children[1].step()
    world.turn()
    wait(world, START_TIMEOUT)
    assert world.scheduler.next_timer() is None


def test_looks_are_told_of_while_nobody_is_dying() -> None:
    world = World(2)
    world.submit()
    start(world)
    begun = len(world.looks)
    assert begun > 0
    wait(world, LEASE_TTL)
    assert len(world.looks) == begun + 4
    world.die(world.children[1])
    world.notice(world.children[1])
    world.turn()
    world.now += LEASE_TTL / 4
    world.turn()
    assert len(world.looks) == begun + 4


def test_an_idle_child_that_owes_a_word_holds_a_lease() -> None:
    world = World(1)
    child = world.children[0]
    wait(world, 1.0)
    child.frozen = True
    wait(world, 3 * LEASE_TTL)
    assert kills(world) == []  # nobody waits for it
    world.scheduler.asked(child.seat, world.now)
    wait(world, 2 * LEASE_TTL)
    assert kills(world) == ["lease"]


def test_a_child_that_has_said_what_it_owed_holds_none() -> None:
    world = World(1)
    child = world.children[0]
    world.scheduler.asked(child.seat, world.now)
    wait(world, LEASE_TTL / 2)
    world.scheduler.answered(child.seat)
    wait(world, LEASE_TTL / 2)
    child.frozen = True
    wait(world, 3 * LEASE_TTL)
    assert kills(world) == []
    assert world.scheduler.next_timer() is None  # nor is it looked at
