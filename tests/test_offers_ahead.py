"""What the order of starts costs nobody who does not use it, and what limits leave of the offers ahead of need."""

from typing import Any

import pytest
from scheduler_steps import wait
from scheduler_world import World

from mpworker.supervisor import dispatch
from mpworker.supervisor.queues import DEFAULT_QUEUE
from mpworker.supervisor.registry import Function

BOUND = 8


def known(world: World) -> Function:
    """A function of which it is known that its calls are short."""
    function = Function(1, b"function")
    function.observe(1)
    return function


def offers(world: World) -> list[int]:
    return [len(child.seat.offers) for child in world.children.values()]


def test_queues_that_nothing_has_come_to_leave_the_line_as_it_is() -> None:
    world = World(2)
    world.configure_queue("mail", 5, 3)
    world.configure_queue(DEFAULT_QUEUE, 2, None)
    assert world.scheduler._queues is None
    states = world.scheduler.queue_states()
    assert (states["mail"]["weight"], states["mail"]["max_running"]) == (5, 3)
    assert states[DEFAULT_QUEUE]["weight"] == 2
    world.submit(queue="mail")
    assert world.scheduler._queues is not None
    assert world.scheduler.queue_states()["mail"] == states["mail"] | {"queued": 1}


def test_what_was_said_of_a_queue_before_its_first_task_holds() -> None:
    world = World(2)
    world.configure_queue("mail", 5, 1)
    for _ in range(4):
        world.submit(queue="mail")
    world.turn()
    assert sum(offers(world)) == 1


@pytest.mark.parametrize(("limit", "queue"), [(3, "mail"), (3, DEFAULT_QUEUE)])
def test_a_limit_of_the_default_queue_holds_at_once(limit: int, queue: str) -> None:
    world = World(1, slots=16)
    for _ in range(9):
        world.submit(known(world), queue=queue)
    world.turn()
    assert offers(world) == [9]
    world.configure_queue(queue, 1, limit)
    world.turn()
    assert sum(offers(world)) <= limit


@pytest.mark.parametrize(
    ("limited", "of"),
    [({"queue": "mail"}, "max_running"), ({"concurrency_key": "one"}, "concurrency")],
    ids=["max_running", "concurrency_key"],
)
def test_what_waits_behind_another_leaves_each_child_room_to_begin_one(limited: dict[str, Any], of: str) -> None:
    world = World(2, slots=16)
    if of == "max_running":
        world.configure_queue("mail", 1, BOUND)
    for _ in range(20):
        world.submit(known(world), **limited, **({"concurrency": BOUND} if of == "concurrency" else {}))
    world.turn()
    ahead = sum(offers(world)) - 2
    assert ahead > 0, "a limit that is far away costs the children their next tasks"
    assert sum(offers(world)) <= BOUND - 2


# ------------------------------------------------------------ what is more urgent


def keys_in_line(world: World, number: int = 0) -> list[int]:
    """Tasks that a child has not begun, in their order."""
    return [offer.key for offer in world.children[number].in_line()]


def test_what_is_more_urgent_overtakes_what_no_child_has_begun() -> None:
    world = World(1, slots=16)
    tasks = [world.submit(known(world), queue="mail") for _ in range(4)]
    other = world.submit(known(world), queue="other", priority=5)
    world.turn()
    world.children[0].step()  # the first one is claimed
    generation = other.generation
    urgent = world.submit(known(world), queue="mail", priority=-1)
    world.turn()
    line = keys_in_line(world)
    assert [key for key in line if key != other.key] == [urgent.key, *(task.key for task in tasks[1:])]
    assert other.generation == generation, "of its own queue alone"
    assert not any(task.attempts for task in tasks), "an offer that comes back has cost nothing"


@pytest.mark.parametrize("later", [{"priority": 1}, {"priority": 0}, {"priority": -1, "queue": "other"}], ids=str)
def test_nothing_else_is_taken_back(later: dict[str, Any]) -> None:
    world = World(1, slots=16)
    for _ in range(4):
        world.submit(known(world), **{"queue": "mail"} | {"weight": 2})
    world.turn()
    before = [task.generation for task in world.children[0].seat.offers.values()]
    world.submit(known(world), **{"queue": "mail", "weight": 2} | later)
    world.turn()
    assert [task.generation for task in world.children[0].seat.offers.values()][:4] == before


def test_what_is_more_urgent_overtakes_also_where_offers_have_used_up_the_limit() -> None:
    world = World(1, slots=16)
    world.configure_queue("mail", 1, 2)
    for _ in range(4):
        world.submit(known(world), queue="mail")
    world.turn()
    urgent = world.submit(known(world), queue="mail", weight=9)
    world.turn()
    assert keys_in_line(world)[0] == urgent.key


def test_of_several_ranks_only_what_comes_after_is_taken_back() -> None:
    world = World(1, slots=16)
    tasks = [world.submit(known(world), priority=priority) for priority in (1, 3, 5)]
    world.turn()
    first = tasks[0].generation
    between = world.submit(known(world), priority=1)
    world.turn()
    assert keys_in_line(world) == [tasks[0].key, between.key, tasks[1].key, tasks[2].key]
    assert tasks[0].generation == first


def test_what_was_left_is_overtaken_in_its_turn() -> None:
    world = World(1, slots=16)
    left, back = [world.submit(known(world), priority=priority) for priority in (1, 3)]
    world.turn()
    long = world.submit(priority=2)  # of unknown duration, so it waits in line
    world.turn()
    assert keys_in_line(world) == [left.key]
    urgent = world.submit(known(world), priority=0)
    world.turn()
    assert keys_in_line(world) == [urgent.key, left.key]
    assert {task.seat for task in (long, back)} == {None}


def test_what_an_overtaken_task_had_kept_from_starting_overtakes_in_its_turn() -> None:
    world = World(2)
    held = world.submit(priority=1, concurrency_key="x")
    parked = world.submit(queue="other", weight=2, concurrency_key="x")
    behind = world.submit(queue="other")
    world.turn()
    assert [keys_in_line(world, number) for number in (1, 0)] == [[held.key], [behind.key]]
    urgent = world.submit(priority=0)
    world.turn()
    assert {*keys_in_line(world, 0), *keys_in_line(world, 1)} == {urgent.key, parked.key}


def test_one_key_with_two_limits_keeps_each_to_its_own() -> None:
    world = World(1, slots=16)
    long = world.submit(known(world), concurrency_key="k", concurrency=5, priority=5)
    world.turn()
    world.children[0].step()
    one = world.submit(known(world), concurrency_key="k", concurrency=1)
    world.turn()
    other = world.submit(known(world), concurrency_key="k", concurrency=5, priority=5)
    world.turn()  # and this has an end
    assert keys_in_line(world) == [other.key], "more of the key may run than of the other one's limit"
    assert long.seat is not None
    world.finish()
    assert all(world.accepted[task.key].outcomes for task in (long, one, other))


@pytest.mark.parametrize("limits", [(1, 3), (3, 1)])
def test_the_least_limit_of_what_runs_holds_for_all_of_its_key(limits: tuple[int, int]) -> None:
    world = World(3)
    first, second = [world.submit(concurrency_key="k", concurrency=limit) for limit in limits]
    world.turn()
    assert (first.seat is None, second.seat is None) == (False, True)
    for child in world.children.values():
        child.step()
        child.step()
    world.turn()
    assert second.seat is not None
    third = world.submit(concurrency_key="k", concurrency=2)
    world.turn()
    assert (third.seat is None) == (limits[1] == 1)
    world.finish()


# ------------------------------------------------------------ behind a long task


@pytest.mark.parametrize("queue", ["default", "mail"])
def test_what_is_offered_behind_a_long_task_goes_before_what_came_later(queue: str) -> None:
    world = World(2, slots=4)
    first = [world.submit(known(world), queue=queue) for _ in range(8)]
    world.turn()
    busy, other = world.children.values()
    busy.step()  # it claims what takes long
    behind = [offer.key for offer in busy.in_line()]
    later = [world.submit(known(world), queue=queue) for _ in range(3)]
    for _ in range(len(other.in_line())):
        other.step()
        other.step()
    world.advance(2 * dispatch.RELIEVE_AFTER)
    world.turn()
    assert not busy.in_line()
    assert [offer.key for offer in other.in_line()][: len(behind)] == behind
    assert not any(task.attempts for task in (*first, *later) if task.seat is not None), "it has cost nothing"
    for _ in range(len(other.in_line())):
        other.step()
        other.step()
    world.advance(2 * dispatch.RELIEVE_AFTER)
    world.turn()
    assert not busy.in_line(), "nothing more is put behind it"


def test_an_idle_child_begins_what_is_most_urgent_of_what_waits_behind_a_long_task() -> None:
    world = World(2, slots=8)
    for number in range(1, 9):
        world.submit(known(world), priority=number)
    world.turn()
    busy, idle = world.children.values()
    busy.step()  # it claims what takes long
    behind = [offer.key for offer in busy.in_line()]
    while idle.in_line():
        idle.step()
        idle.step()
    world.turn()
    wait(world, 2 * dispatch.STEAL_AFTER)
    assert next(offer.key for offer in idle.in_line()) == min(behind)
    assert [offer.key for offer in idle.in_line()] == sorted(offer.key for offer in idle.in_line())


def test_a_child_that_may_put_off_an_answer_is_looked_at_also_if_it_is_the_only_one_that_is_left() -> None:
    world = World(2, slots=16)
    world.scheduler.resize(1)
    world.turn()
    for _ in range(3):
        world.submit(known(world))
    world.turn()
    assert max(offers(world)) > 1
    at = world.scheduler.relief_at()
    assert at is not None
    assert at - world.now <= dispatch.RELIEVE_AFTER


def test_the_only_child_of_a_pool_puts_nothing_off_and_is_looked_at_by_no_timer() -> None:
    world = World(1, slots=16)
    for _ in range(3):
        world.submit(known(world))
    world.turn()
    assert offers(world) == [3]
    assert world.scheduler.relief_at() is None


def test_what_is_stolen_goes_to_the_child_that_became_idle_last() -> None:
    """Else every delay would bring in another child, whose caches are cold, until all of them take turns."""
    world = World(4, slots=16)
    for _ in range(4):
        world.submit()
    world.turn()
    assert offers(world) == [1, 1, 1, 1]
    for number in (0, 2, 1, 3):
        world.children[number].step()
        world.children[number].step()
        world.turn()
    for _ in range(2):
        world.submit(known(world))
    world.turn()
    assert offers(world) == [0, 0, 0, 2], "what it will have ended before another could begin"
    world.children[3].step()  # it claims what takes long
    wait(world, 2 * dispatch.STEAL_AFTER)
    assert offers(world) == [0, 1, 0, 1]
