"""How many children there are, under virtual time: who goes, what becomes of what they were given, and who follows."""

import pytest
from scheduler_steps import dismissed, function, interrupts, kills, offered, outcome, outcomes, start, wait
from scheduler_world import GRACE, START_TIMEOUT, Child, World

from mpworker.supervisor import dispatch
from mpworker.supervisor import effects as rules
from mpworker.supervisor.registry import DYING, LEAVING, READY

BRIEF = 1_000  # nanoseconds: many such are offered ahead


def exits(world: World, *children: Child) -> None:
    for child in children:
        child.step()
        assert child.exited
        world.reap(child)


def ready(world: World) -> int:
    return sum(child.seat.state == READY for child in world.children.values())


# ------------------------------------------------------------ fewer


def test_idle_children_exit_at_once_and_the_last_made_first() -> None:
    world = World(4)
    world.resize(2)
    assert dismissed(world) == [3, 2]
    exits(world, world.children[3], world.children[2])
    assert ready(world) == 2
    assert kills(world) == []


def test_who_has_nothing_to_do_goes_first_and_then_who_has_the_least() -> None:
    world = World(4)
    for number in (3, 2, 1, 0):
        world.submit(function(1_000_000 * (4 - number)), items=number + 1)
    world.turn()
    loads = [child.seat.load_ns for child in world.children.values()]
    assert loads == [4_000_000, 6_000_000, 6_000_000, 4_000_000]
    idle = start(world, 1, steps=10)
    world.turn()
    assert not idle.seat.offers
    world.resize(3)
    assert dismissed(world) == [1]
    world.resize(1)
    assert {child.seat.number for child in world.children.values() if child.seat.state == READY} == {2}


def test_who_works_ends_its_task_and_begins_no_other() -> None:
    world = World(2)
    tasks = [world.submit(function(BRIEF)) for _ in range(6)]
    start(world, 0)
    start(world, 1)
    world.resize(1)
    assert dismissed(world) == []
    leaving = next(child for child in world.children.values() if child.seat.state == LEAVING)
    assert leaving.run is not None
    running = leaving.run.key
    assert not leaving.in_line(), "what it had not claimed is for others"
    world.turn()
    assert not leaving.in_line()
    leaving.step()
    world.turn()
    assert world.accepted[running].outcomes == {None: rules.OK}
    assert dismissed(world) == [leaving.seat.number]
    world.finish()
    assert [outcome(world, task) for task in tasks] == [rules.OK] * 6
    assert all(len(world.attempts[task.key, None]) == 1 for task in tasks)


def test_what_is_taken_back_goes_to_the_head_of_the_queue_in_its_order() -> None:
    world = World(2)
    brief = function(BRIEF)
    for _ in range(2):  # one for each, so that what follows is offered to both
        world.submit(function(dispatch.WAKE_NS))
    start(world)
    first = [world.submit(brief).key for _ in range(4)]
    world.turn()
    leaving = max(world.children.values(), key=lambda child: child.seat.number)
    taken = offered(world, leaving.seat.number)
    world.scheduler.kill(world.children[0].seat, "corrupt", world.now)
    last = world.submit(brief)
    world.wanted = 1
    world.scheduler.retire(leaving.seat)
    queued = [task.key for task in world.scheduler._queue]
    assert queued == [*taken, last.key]
    assert set(first) & set(queued)


def test_a_chunk_goes_on_elsewhere_after_the_item_that_runs() -> None:
    world = World(2)
    chunk = world.submit(function(10_000_000), items=4)
    child = start(world, 1, steps=2)
    world.resize(1)  # the idle one
    world.scheduler.retire(child.seat)
    assert child.inside
    assert interrupts(world) == 0
    child.step()
    child.step()  # the next item does not begin
    world.turn()
    assert dismissed(world) == [0, 1]
    world.finish()
    assert outcomes(world, chunk) == [rules.OK] * 4
    assert [len(world.attempts[chunk.key, item]) for item in range(4)] == [1] * 4


def test_what_runs_in_a_child_that_leaves_keeps_its_timeout() -> None:
    world = World(1)
    task = world.submit(timeout=1.0)
    child = start(world)
    world.scheduler.retire(child.seat)
    wait(world, 1.0)
    assert child.take_signal()
    world.turn()
    assert outcome(world, task) == rules.TIMED_OUT
    assert dismissed(world) == [0]


def test_a_child_that_leaves_has_its_lease() -> None:
    world = World(1)
    world.submit()
    child = start(world)
    world.scheduler.retire(child.seat)
    child.frozen = True
    wait(world, 32.0)
    assert kills(world) == ["lease"]


def test_a_death_on_the_way_out_is_blamed_as_ever() -> None:
    world = World(2)
    task = world.submit()
    child = start(world, 1)
    world.resize(1)
    world.scheduler.retire(child.seat)
    world.die(child)
    world.reap(child)
    assert outcome(world, task) == rules.CRASHED


def test_a_child_that_does_not_exit_is_killed_after_the_grace() -> None:
    world = World(2)
    world.resize(1)
    wait(world, GRACE - 0.0625)
    assert kills(world) == []
    wait(world, 0.0625)
    assert kills(world) == ["retired"]


def test_a_child_that_starts_may_go_too_and_has_its_deadline() -> None:
    world = World(2, start=False)
    world.resize(1)
    assert dismissed(world) == [1]
    wait(world, START_TIMEOUT)
    assert sorted(kills(world), key=str) == ["retired", "start"]

    world = World(2, start=False)
    world.resize(1)
    child = world.children[1]
    child.step()  # ready, after all
    world.turn()
    exits(world, child)


def test_who_dies_anyway_goes_first() -> None:
    world = World(2)
    world.scheduler.kill(world.children[0].seat, "corrupt", world.now)
    world.resize(1)
    assert world.children[0].seat.state == DYING
    assert world.children[1].seat.state == READY
    world.bury()
    assert list(world.children) == [1], "nobody follows"


# ------------------------------------------------------------ more


def test_children_that_are_missing_are_made_at_once() -> None:
    world = World(1)
    world.resize(3)
    assert len(world.children) == 3
    assert world.scheduler.serving() == 3


def test_a_child_that_was_to_leave_and_still_works_stays() -> None:
    world = World(2)
    world.submit()
    world.submit()
    start(world, 0)
    child = start(world, 1)
    world.resize(1)
    assert child.seat.state == LEAVING
    world.resize(2)
    assert child.seat.state == READY
    assert len(world.children) == 2, "nobody was made in its place"
    child.step()
    world.turn()
    world.submit()
    world.turn()
    assert offered(world, 1)


def test_a_child_that_stays_is_offered_tasks_ahead_again() -> None:
    world = World(2, slots=16)
    for _ in range(2):
        world.submit(function(dispatch.WAKE_NS))
    start(world, 0)
    child = start(world, 1)
    world.resize(1)
    assert child.seat.state == LEAVING
    world.scheduler._roomy.pop(child.seat)  # as a turn forgets it in which something waits
    world.resize(2)
    for _ in range(8):
        world.submit(function(BRIEF))
    world.turn()
    assert [len(offered(world, number)) for number in range(2)] == [5, 3]


def test_no_more_stay_than_there_are_places() -> None:
    world = World(3)
    for _ in range(3):
        world.submit()
    for number in range(3):
        start(world, number)
    world.resize(1)
    world.resize(2)
    states = [child.seat.state for child in world.children.values()]
    assert sorted(states) == [READY, READY, LEAVING]


def test_who_was_told_to_exit_does_not_stay() -> None:
    world = World(2)
    world.resize(1)
    world.resize(2)
    assert world.children[1].seat.state == LEAVING
    assert len(world.children) == 3


def test_the_place_of_a_child_that_works_on_is_not_waited_for() -> None:
    world = World(2)
    world.submit()
    world.submit()
    start(world, 0)
    start(world, 1)
    world.resize(1)
    stays = next(child for child in world.children.values() if child.seat.state == READY)
    world.die(stays)
    world.reap(stays)
    assert len(world.children) == 2, "it is replaced though another one has still to go"


# ------------------------------------------------------------ another in its place


def test_a_retired_child_is_replaced_when_its_work_is_done_and_not_before() -> None:
    world = World(1)
    world.submit()
    child = start(world)
    world.scheduler.retire(child.seat)
    world.turn()
    assert len(world.children) == 1, "two would run at once"
    child.step()
    world.turn()
    assert len(world.children) == 2, "nobody waits for its exit"
    assert not child.dead


@pytest.mark.parametrize("told", [False, True])
def test_a_retired_child_that_dies_is_replaced_once(told: bool) -> None:
    world = World(1)
    world.submit()
    child = start(world)
    world.scheduler.retire(child.seat)
    if told:
        child.step()
        world.turn()
    world.die(child)
    world.reap(child)
    assert len(world.children) == 1
