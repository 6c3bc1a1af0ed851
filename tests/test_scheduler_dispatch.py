"""Who is offered what, and how far ahead: the scheduler under virtual time."""

from collections.abc import Iterator

import pytest
from scheduler_steps import function, offered, outcome, start, wait
from scheduler_world import World

from mpworker.supervisor import dispatch, offers
from mpworker.supervisor import effects as rules
from mpworker.supervisor.registry import Seat


def test_idle_children_get_what_waits_in_the_order_of_its_submission() -> None:
    world = World(3)
    tasks = [world.submit() for _ in range(2)]
    world.turn()
    assert [entry[2] for entry in world.log] == [task.key for task in tasks]
    assert sorted(len(offered(world, number)) for number in range(3)) == [0, 1, 1]


def test_a_task_of_unknown_duration_is_offered_alone() -> None:
    world = World(1)
    world.submit(function())
    world.submit(function())
    world.turn()
    assert len(offered(world)) == 1


def test_short_tasks_are_offered_ahead_up_to_the_budget() -> None:
    world = World(1, slots=16)
    short = function(offers.BUDGET_NS // 4)
    for _ in range(8):
        world.submit(short)
    world.turn()
    assert len(offered(world)) == 4


@pytest.mark.parametrize(("cost_ns", "ahead"), [(dispatch.AHEAD_NS, 2), (dispatch.AHEAD_NS + 1, 1)])
def test_a_child_has_its_next_task_unless_that_could_be_stuck_for_long(cost_ns: int, ahead: int) -> None:
    world = World(1, slots=16)
    for _ in range(8):
        world.submit(function(cost_ns))
    world.turn()
    assert len(offered(world)) == ahead
    world.children[0].step()
    world.children[0].step()
    world.turn()
    assert len(offered(world)) == ahead


def test_a_chunk_costs_what_all_its_items_cost() -> None:
    world = World(1, slots=16)
    short = function(dispatch.AHEAD_NS // 4)
    world.submit(short, items=5)
    world.submit(short, items=2)
    world.submit(short)
    world.turn()
    assert len(offered(world)) == 1


def test_no_more_is_offered_than_there_are_slots() -> None:
    world = World(1, slots=3)
    for _ in range(8):
        world.submit(function(1))
    world.turn()
    assert len(offered(world)) == 3


def test_what_is_offered_ahead_is_shared_among_the_children() -> None:
    world = World(2, slots=16)
    for _ in range(2):
        world.submit(function(dispatch.WAKE_NS))
    for _ in range(6):
        world.submit(function(1))
    world.turn()
    assert min(len(offered(world, number)) for number in range(2)) >= 3


def test_the_child_that_has_been_idle_for_the_shortest_time_comes_first() -> None:
    world = World(3)
    for number in (1, 0, 2, 0, 2, 1):
        busy = [world.submit() for _ in range(3)]
        world.turn()
        for each in (*(other for other in range(3) if other != number), number):
            world.children[each].step()
            world.children[each].step()
            world.turn()
        assert [outcome(world, task) for task in busy] == [rules.OK] * 3
        task = world.submit()
        world.turn()
        assert offered(world, number) == [task.key]
        world.children[number].step()
        world.children[number].step()
        world.turn()


def test_what_one_child_ends_before_another_could_begin_wakes_no_other() -> None:
    world = World(4, slots=16)
    short = function(dispatch.WAKE_NS // 4)
    tasks = [world.submit(short) for _ in range(5)]
    world.turn()
    assert sorted(len(offered(world, number)) for number in range(4)) == [0, 0, 1, 4]
    assert offered(world, 3) == [task.key for task in tasks[:4]]


@pytest.mark.parametrize("queue", ["default", "other"])
def test_a_turn_looks_at_no_child_that_has_enough_to_do(queue: str) -> None:
    world = World(64)
    tasks = [world.submit(function(2 * dispatch.AHEAD_NS), queue=queue) for _ in range(200)]
    world.turn()
    assert not world.scheduler._roomy
    for number in (7, 40):
        world.children[number].step()
        world.children[number].step()
    looked: list[int] = []

    class Looked(dict[Seat, None]):
        def __iter__(self) -> Iterator[Seat]:
            for seat in super().__iter__():
                looked.append(seat.number)
                yield seat

    world.scheduler._roomy = Looked()
    world.turn()
    assert looked == [7, 40]
    assert not world.scheduler._roomy
    assert len([task for number in (7, 40) for task in offered(world, number)]) == 2
    assert [outcome(world, task) for task in tasks].count(rules.OK) == 2


def test_a_child_that_works_is_given_nothing_more_while_another_is_idle() -> None:
    world = World(2, slots=16)
    world.submit(function(1))
    start(world, 1)
    world.submit(function(1))
    world.turn()
    assert len(offered(world, 0)) == 1, "what it runs may be long, whatever it was expected to be"


def test_what_a_child_is_given_at_once_is_what_it_may_still_run() -> None:
    world = World(2, slots=2)
    for _ in range(5):
        world.submit(function(1))
    world.turn()
    assert [len(offered(world, number)) for number in range(2)] == [2, 2]


def test_a_child_that_starts_or_dies_gets_no_offer() -> None:
    world = World(2, start=False)
    world.submit()
    world.turn()
    assert not any(offered(world, number) for number in range(2))
    world.children[1].step()
    world.turn()
    assert len(offered(world, 1)) == 1
    world.scheduler.kill(world.children[0].seat, "corrupt", world.now)
    world.submit()
    world.children[0].step()
    world.turn()
    assert not offered(world, 0)


def test_what_an_idle_child_takes_from_another_counts_in_its_queue() -> None:
    world = World(1, slots=16)
    for _ in range(7):
        world.submit(function(1), queue="mail")
    start(world)
    world.spawn().step()
    world.turn()
    wait(world, 0.0009765625)
    assert offered(world, 1)
    offers = sum(len(child.seat.offers) for child in world.children.values())
    assert world.scheduler.queue_states()["mail"]["running"] == offers


def test_an_idle_child_takes_what_waits_behind_a_long_task() -> None:
    world = World(1, slots=16)
    long = world.submit(function(1))
    rest = [world.submit(function(1)) for _ in range(6)]
    start(world)
    world.spawn().step()
    world.turn()
    assert not offered(world, 1)
    at = world.scheduler.next_timer()
    assert at is not None
    assert at <= world.now + dispatch.STEAL_AFTER
    wait(world, 0.0009765625)
    assert offered(world, 1)[0] == rest[3].key, "the later half is taken"
    for _ in range(64):
        world.children[1].step()
        world.turn()
        wait(world, 0.0009765625)
    assert [outcome(world, task) for task in rest] == [rules.OK] * 6
    assert [task.attempts for task in rest] == [1] * 6
    assert world.children[0].run is not None
    assert world.children[0].run.key == long.key
    world.finish()


def test_what_is_claimed_is_not_taken() -> None:
    world = World(1, slots=16)
    tasks = [world.submit(function(1)) for _ in range(2)]
    child = start(world)
    child.step()
    child.step()  # the second is claimed; the first one's answer is in the ring
    other = world.spawn()
    other.ready = True
    world.scheduler.child_ready(other.seat)
    world.scheduler.dispatch(world.now)
    world.now += 1.0
    world.scheduler.timer(world.now)
    assert not other.inbox
    world.finish()
    assert [task.attempts for task in tasks] == [1, 1]


def test_what_is_taken_goes_to_idle_children_alone_and_no_more_than_they_have_room_for() -> None:
    world = World(1, slots=4)
    for _ in range(4):
        world.submit(function(1))
    victim, full, thief = start(world), world.spawn(), world.spawn()
    world.submit(function(2 * dispatch.AHEAD_NS))
    full.step()
    start(world, 1)
    thief.step()
    world.turn()
    world.log.clear()
    wait(world, 0.0009765625)
    given = [entry[1] for entry in world.log if entry[0] == "offer"]
    assert given == [thief.seat.number] * 2
    assert [entry[1] for entry in world.log if entry[0] == "revoke"] == [victim.seat.number] * 2
    world.finish()


def test_no_more_is_taken_than_an_idle_child_has_the_budget_for() -> None:
    world = World(1, slots=16)
    made = function(1)
    tasks = [world.submit(made) for _ in range(9)]
    start(world)
    made.estimate_ns = offers.BUDGET_NS // 2  # it was measured since
    world.spawn().step()
    world.turn()
    world.log.clear()
    wait(world, 0.0009765625)
    assert [entry[2] for entry in world.log if entry[0] == "offer"] == [task.key for task in tasks[-2:]]
    assert sum(entry[0] == "revoke" for entry in world.log) == 2
    world.finish()


def test_what_is_taken_is_shared_among_the_idle_children_in_its_order() -> None:
    world = World(1, slots=16)
    tasks = [world.submit(function(1)) for _ in range(9)]
    start(world)
    for _ in range(2):
        child = world.spawn()
        child.step()
    world.turn()
    wait(world, 0.0009765625)
    assert offered(world, 2) == [tasks[6].key, tasks[8].key], "it became idle last"
    assert offered(world, 1) == [tasks[5].key, tasks[7].key]
    world.finish()


def test_an_idle_pool_needs_no_timer() -> None:
    world = World(2)
    task = world.submit(timeout=1.0)
    start(world, 1).step()
    wait(world, 100.0)
    assert outcome(world, task) == rules.OK
    assert world.scheduler.next_timer() is None


# ------------------------------------------------------------ what is known of a function


def test_the_first_call_is_the_estimate() -> None:
    made = function()
    made.observe(12_345)
    assert made.estimate_ns == 12_345


def test_an_estimate_is_never_zero_again() -> None:
    made = function()
    for _ in range(100):
        made.observe(0)
        assert made.estimate_ns > 0


def test_an_estimate_rises_by_bounded_steps_and_falls_fast() -> None:
    made = function(1_000)
    made.observe(10**12)
    assert 1_000 < made.estimate_ns <= 1_500
    made = function(1_000)
    made.observe(0)
    assert made.estimate_ns == 750


@pytest.mark.parametrize("duration", [200, 1_000, 5_000])
def test_an_estimate_comes_close_to_a_steady_duration(duration: int) -> None:
    made = function(1_000)
    for _ in range(100):
        made.observe(duration)
    assert abs(made.estimate_ns - duration) <= duration // 20


def test_every_answer_is_observed_a_chunks_per_item() -> None:
    world = World(1)
    made = function()
    world.submit(made)
    start(world).step(rules.OK, 5_000)
    world.turn()
    assert made.estimate_ns == 5_000
    made.estimate_ns = 0
    world.submit(made, items=2)
    child = start(world, steps=2)
    child.step(flush=False)
    child.step()
    child.step(rules.OK, 8_000, flush=True)
    world.turn()
    assert made.estimate_ns == 4_000
