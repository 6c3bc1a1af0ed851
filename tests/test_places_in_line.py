"""What was offered and comes back takes its place in line, whoever took it back and whatever says the order by then."""

from collections.abc import Callable

import pytest
from scheduler_steps import function, wait
from scheduler_world import Child, World

from mpworker.supervisor import dispatch
from mpworker.supervisor import effects as rules


def starts(world: World, child: Child, count: int) -> list[int]:
    """The next tasks that a child begins, by their numbers."""
    keys: list[int] = []
    for _ in range(4 * count):
        world.turn()
        child.step()
        if child.run is not None and child.run.key not in keys[-1:]:
            keys.append(child.run.key)
    return keys[:count]


def at_work(children: int, slots: int, tasks: int, retries: int = 0) -> World:
    """Each child runs a task, and has others behind that: in the order of the line, which is a FIFO."""
    world = World(children, slots=slots)
    for _ in range(children):
        world.submit(function(dispatch.WAKE_NS))  # too long for two of them to be one child's
    world.turn()
    for child in world.children.values():
        child.step()
    for _ in range(tasks):
        world.submit(function(1), retries=retries)
    world.turn()
    assert world.scheduler._queues is None
    assert not world.scheduler._queue
    return world


ASK_FOR_AN_ORDER: dict[str, Callable[[World], object]] = {
    "pause": lambda world: (world.pause_queues(None, True), world.pause_queues(None, False)),
    "hold": lambda world: (world.hold(True), world.hold(False)),
    "rate": lambda world: (world.limit_rate((1e6, 1000)), world.limit_rate(None)),
    "max_running": lambda world: world.configure_queue("default", 1, 50),
    "urgent": lambda world: world.cancel(world.submit(priority=-1).key),
}


@pytest.mark.parametrize("asked", ASK_FOR_AN_ORDER)
def test_what_a_fifo_has_offered_keeps_its_order_when_another_is_asked_for(asked: str) -> None:
    world = at_work(1, slots=16, tasks=10)
    world.turn()
    ASK_FOR_AN_ORDER[asked](world)
    (child,) = world.children.values()
    child.step()
    assert starts(world, child, 10) == list(range(2, 12))


def test_what_waits_behind_several_long_tasks_comes_back_in_one_order() -> None:
    world = at_work(3, slots=16, tasks=9)
    *_, free = world.children.values()
    wait(world, 2 * dispatch.RELIEVE_AFTER)
    assert [task.key for task in world.scheduler._queue] == list(range(4, 13))
    free.step()
    assert starts(world, free, 9) == list(range(4, 13))


def test_what_comes_back_later_goes_between() -> None:
    world = at_work(2, slots=8, tasks=6)
    one, other = world.children.values()
    shares = [{offer.key for offer in child.in_line()} for child in (one, other)]
    assert all(shares)
    world.scheduler.retire(one.seat)
    world.scheduler.retire(other.seat)
    assert [task.key for task in world.scheduler._queue] == list(range(3, 9))


def test_what_dead_children_had_not_begun_comes_back_in_one_order() -> None:
    world = at_work(3, slots=16, tasks=9)
    for child in list(world.children.values())[:2]:
        child.killed = child.dead = True
        world.reap(child)
    world.turn()
    assert [task.key for task in world.scheduler._queue] == sorted(task.key for task in world.scheduler._queue)


def test_what_had_come_back_before_another_order_was_asked_for_keeps_its_place() -> None:
    world = at_work(2, slots=8, tasks=6)
    one, other = world.children.values()
    assert max(offer.key for offer in one.in_line()) < min(offer.key for offer in other.in_line())
    world.scheduler.retire(one.seat)  # its offers are in the FIFO
    world.scheduler.pause(None)  # and now those of the other one come back
    world.scheduler.resume(None)
    other.step()
    assert starts(world, other, 6) == list(range(3, 9))


def test_what_was_taken_for_an_idle_child_keeps_its_place() -> None:
    world = at_work(3, slots=16, tasks=12)
    *busy, idle = world.children.values()
    while idle.in_line() or idle.run is not None:
        idle.step()
    world.turn()
    wait(world, dispatch.STEAL_AFTER)
    taken = [offer.key for offer in idle.in_line()]
    left = [offer.key for child in busy for offer in child.in_line()]
    assert min(taken) < max(left)
    for child in (idle, *busy):
        world.scheduler.retire(child.seat)
    assert [task.key for task in world.scheduler._queue] == sorted(taken + left)


def test_what_is_tried_again_goes_to_the_end_though_it_had_come_back() -> None:
    world = at_work(2, slots=8, tasks=5, retries=1)
    wait(world, 2 * dispatch.RELIEVE_AFTER)
    assert [task.key for task in world.scheduler._queue] == list(range(3, 8))
    one, _ = world.children.values()
    one.seat.free = one.seat.free[:3]
    one.step()
    world.turn()
    while one.run is None:
        one.step()
    one.step(rules.ERROR)
    world.turn()
    assert [offer.key for offer in one.in_line()] == [4, 5, 6, 7]
    world.scheduler.retire(one.seat)
    assert [task.key for task in world.scheduler._queue] == [4, 5, 6, 7, 3]
