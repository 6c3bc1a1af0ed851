"""What becomes of the tasks of a child that dies, and who is blamed: the scheduler under virtual time."""

from typing import Any

import pytest
from scheduler_steps import function, last_report, offered, outcome, outcomes, start
from scheduler_world import SPLIT, World

from mpworker.supervisor import deaths
from mpworker.supervisor import effects as rules
from mpworker.supervisor.registry import Death, Task


def test_what_a_dead_child_had_not_claimed_goes_first_and_costs_nothing() -> None:
    world = World(1, slots=16)
    ahead = [world.submit(function(1)) for _ in range(4)]
    world.turn()
    later = world.submit()
    child = world.children[0]
    world.die(child)
    world.reap(child)
    world.children[1].step()
    world.turn()
    assert offered(world, 1)[: len(ahead)] == [task.key for task in ahead]
    world.finish()
    assert [(task.attempts, task.setbacks.crashes) for task in (*ahead, later)] == [(1, 0)] * 5


def test_a_death_ends_the_claimed_task_and_says_how() -> None:
    world = World(1, slots=16)
    tasks = [world.submit(function(1)) for _ in range(3)]
    child = start(world)
    world.die(child)
    world.reap(child, signal=11, cause="signal")
    assert [outcome(world, task) for task in tasks] == [rules.CRASHED, None, None]
    how = {"pid": 4000, "signal": 11, "exit_code": None, "cause": "signal"}
    assert last_report(world) == {**how, "attempt": 1, "attempts": 1, "unclaimed_deaths": 0}
    world.finish()


def test_a_poisonous_task_kills_one_child_more_than_its_crash_retries() -> None:
    world = World(1)
    task = world.submit(crash_retries=2, retries=7)
    deaths = 0
    while outcome(world, task) is None:
        child = start(world, deaths)
        world.die(child)
        world.reap(child)
        deaths += 1
        world.children[deaths].step()
    assert deaths == 3
    assert outcome(world, task) == rules.CRASHED
    assert (last_report(world)["attempt"], last_report(world)["attempts"]) == (3, 3)
    assert world.scheduler.unfinished() == 0


def die_unclaimed(world: World, times: int, **how: Any) -> None:
    """Children, one after the other, that die before they have claimed anything."""
    for _ in range(times):
        [child] = world.children.values()
        world.turn()
        world.die(child)
        world.reap(child, **how)
        [child] = world.children.values()
        child.step()
        world.turn()


def test_what_kills_whoever_takes_it_in_is_blamed_at_last() -> None:
    world = World(1, slots=16)
    poison, innocent = world.submit(function(1), crash_retries=1), world.submit(function(1))
    die_unclaimed(world, deaths.UNCLAIMED_DEATHS - 1, cause="oom")
    assert (poison.attempts, innocent.attempts) == (0, 0)
    die_unclaimed(world, 1)
    assert (poison.attempts, poison.setbacks.crashes) == (1, 1)
    assert outcome(world, poison) is None, "a death of the child, like any other"
    world.children[deaths.UNCLAIMED_DEATHS].step()
    world.children[deaths.UNCLAIMED_DEATHS].step()
    world.turn()
    assert outcome(world, innocent) == rules.OK, "it goes before what may do it again"
    die_unclaimed(world, deaths.UNCLAIMED_DEATHS)
    assert outcome(world, poison) == rules.CRASHED
    report = last_report(world)
    assert (report["attempt"], report["attempts"], report["unclaimed_deaths"]) == (2, 2, deaths.UNCLAIMED_DEATHS)


def test_a_chunk_that_kills_whoever_takes_it_in_is_handed_back_or_blamed() -> None:
    world = World(1)
    chunk, one = world.submit(function(), items=3), world.submit(function(), items=1)
    die_unclaimed(world, deaths.UNCLAIMED_DEATHS)
    assert outcomes(world, chunk) == [SPLIT] * 3
    die_unclaimed(world, deaths.UNCLAIMED_DEATHS)
    assert outcomes(world, one) == [rules.CRASHED]
    assert world.scheduler.unfinished() == 0


@pytest.mark.parametrize(
    "how",
    [{"signal": 0, "exit_code": code, "cause": "exit"} for code in deaths.ORDERLY_EXITS] + [{"cause": "nursery"}],
)
def test_a_death_that_had_another_reason_is_nobodys_fault(how: dict[str, Any]) -> None:
    world = World(1)
    task = world.submit()
    die_unclaimed(world, 2 * deaths.UNCLAIMED_DEATHS, **how)
    world.finish()
    assert task.attempts == 1
    assert outcome(world, task) == rules.OK


def test_a_kill_of_ours_is_not_the_fault_of_what_was_offered() -> None:
    world = World(1)
    task = world.submit()
    for _ in range(2 * deaths.UNCLAIMED_DEATHS):
        world.turn()
        [child] = world.children.values()
        world.scheduler.kill(child.seat, "corrupt", world.now)
        world.bury()
        [child] = world.children.values()
        child.step()
    world.turn()
    world.finish()
    assert outcome(world, task) == rules.OK


def test_a_death_that_a_claimed_task_pays_for_says_nothing_of_those_behind_it() -> None:
    world = World(1, slots=16)
    claimed, behind = world.submit(function(1)), world.submit(function(1))
    world.die(start(world))
    world.reap(world.children[0])
    assert outcome(world, claimed) == rules.CRASHED
    world.children[1].step()
    die_unclaimed(world, deaths.UNCLAIMED_DEATHS - 1)
    world.finish()
    assert outcome(world, behind) == rules.OK


def test_a_claim_clears_a_task_of_the_deaths_before_it() -> None:
    world = World(1)
    task = world.submit(crash_retries=1)
    die_unclaimed(world, deaths.UNCLAIMED_DEATHS - 1)
    [number] = world.children
    world.die(start(world, number))
    world.reap(world.children[number])
    assert task.setbacks.crashes == 1
    world.children[number + 1].step()
    die_unclaimed(world, deaths.UNCLAIMED_DEATHS - 1)
    world.finish()
    assert outcome(world, task) == rules.OK


def test_an_answer_that_a_dead_child_gave_counts() -> None:
    world = World(1)
    task = world.submit()
    child = start(world)
    child.step()
    world.die(child)
    world.reap(child)
    assert outcome(world, task) == rules.OK


def test_a_death_is_taken_in_once() -> None:
    world = World(1)
    task = world.submit(crash_retries=5)
    child = start(world)
    world.die(child)
    world.reap(child)
    world.scheduler.child_died(child.seat, Death(1, 9, None, "signal"))
    assert (task.attempts, task.setbacks.crashes) == (1, 1)
    world.check()


def chunk_died(crash_retries: int) -> tuple[World, Task]:
    """Of six items the first ended and was answered, two ended unanswered, the fourth kills the child."""
    world = World(1)
    chunk = world.submit(function(), items=6, crash_retries=crash_retries)
    child = start(world, steps=2)
    child.step(flush=True)
    for _ in range(2):
        child.step()
        child.step(flush=False)
    child.step()
    assert (child.first, child.index, child.inside) == (1, 3, True)
    world.die(child)
    world.reap(child)
    return world, chunk


def test_a_death_blames_the_running_item_and_reports_the_lost_ones() -> None:
    world, chunk = chunk_died(crash_retries=0)
    assert outcomes(world, chunk) == [rules.OK, rules.CRASHED, rules.CRASHED, rules.CRASHED, None, None]
    assert [report[4]["cause"] for report in world.reports] == ["lost", "signal"]
    assert [report[1:3] for report in world.reports] == [(1, 3), (3, 4)]
    world.finish()
    assert outcomes(world, chunk)[4:] == [rules.OK] * 2
    assert [len(world.attempts[chunk.key, index]) for index in range(6)] == [1] * 6


def test_lost_items_and_the_blamed_one_run_again_if_crash_retries_allow() -> None:
    world, chunk = chunk_died(crash_retries=1)
    assert outcomes(world, chunk) == [rules.OK] + [None] * 5
    world.finish()
    assert outcomes(world, chunk) == [rules.OK] * 6
    assert [len(world.attempts[chunk.key, index]) for index in range(6)] == [1, 2, 2, 2, 1, 1]


def test_a_chunk_that_kills_its_child_while_it_is_unpickled_is_handed_back() -> None:
    world = World(1)
    chunk = world.submit(function(), items=2, crash_retries=9)
    child = start(world)
    world.die(child)
    world.reap(child)
    assert outcomes(world, chunk) == [SPLIT] * 2
    assert world.scheduler.unfinished() == 0


def test_one_item_that_kills_its_child_while_it_is_unpickled_is_blamed() -> None:
    world = World(1)
    chunk = world.submit(function(), items=1)
    child = start(world)
    world.die(child)
    world.reap(child)
    assert outcomes(world, chunk) == [rules.CRASHED]


def test_a_poisonous_item_kills_one_child_more_than_its_crash_retries() -> None:
    world = World(1)
    chunk = world.submit(function(), items=1, crash_retries=2)
    deaths = 0
    while outcomes(world, chunk) == [None]:
        child = start(world, deaths, steps=2)
        world.die(child)
        world.reap(child)
        deaths += 1
        assert deaths < 5
        world.children[deaths].step()
    assert deaths == 3
    assert last_report(world)["attempt"] == 3


def test_an_item_is_retried_as_often_as_asked() -> None:
    world = World(1)
    chunk = world.submit(function(), items=1, retries=2)
    while outcomes(world, chunk) == [None]:
        child = start(world, steps=2)
        child.step(rules.ERROR)
        child.step()
        world.turn()
    assert outcomes(world, chunk) == [rules.ERROR]
    assert len(world.attempts[chunk.key, 0]) == 3


def test_a_death_between_two_items_blames_nobody() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3)
    child = start(world, steps=2)
    child.step(flush=True)
    world.die(child)
    world.reap(child)
    assert outcomes(world, chunk) == [rules.OK, None, None]
    world.finish()
    assert outcomes(world, chunk) == [rules.OK] * 3


def test_a_chunk_whose_every_item_was_answered_is_not_sent_again() -> None:
    world = World(1)
    chunk = world.submit(function(), items=1)
    child = start(world, steps=2)
    child.step(rules.ERROR)
    world.die(child)
    world.reap(child)
    assert outcomes(world, chunk) == [rules.ERROR]
    assert world.scheduler.unfinished() == 0
    start(world, 1)
    assert not offered(world, 1)
