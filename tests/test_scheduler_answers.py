"""What becomes of a task by what its child answers, retries among it: the scheduler under virtual time."""

from typing import Any

import pytest
from scheduler_steps import dismissed, function, offered, outcome, outcomes, start, wait
from scheduler_world import SPLIT, START_TIMEOUT, Child, World

from mpworker.supervisor import effects as rules
from mpworker.supervisor.backoff import Backoff
from mpworker.supervisor.effects import ProtocolViolation
from mpworker.supervisor.registry import LEAVING, Seat, Task, TaskOptions
from mpworker.supervisor.timers import DEAD_MAX


@pytest.mark.parametrize("status", [rules.OK, rules.ERROR, rules.UNSERIALIZABLE, rules.EXITED])
def test_an_answer_is_the_outcome(status: int) -> None:
    world = World(1)
    task = world.submit()
    start(world).step(status)
    world.turn()
    assert outcome(world, task) == status
    assert world.scheduler.unfinished() == 0


def test_an_answer_of_another_generation_or_kind_is_dropped() -> None:
    world = World(1)
    task = world.submit()
    start(world)
    seat, answer = world.children[0].seat, (rules.OK, 0, b"")
    world.scheduler.done(seat, task.slot, task.generation + 1, *answer)
    world.scheduler.done(seat, task.slot + 1, task.generation, *answer)
    world.scheduler.items(seat, task.slot, task.generation, 0, 0, rules.OK, True, 0, b"")
    world.check()
    assert outcome(world, task) is None


def test_an_answer_to_an_offer_that_was_taken_back_is_dropped() -> None:
    world = World(1)
    task = world.submit()
    world.turn()
    slot, generation = task.slot, task.generation
    assert world.cancel(task.key)
    world.scheduler.done(world.children[0].seat, slot, generation, rules.OK, 0, b"")
    assert outcome(world, task) == rules.CANCELLED


def test_a_task_answer_to_a_chunk_is_dropped() -> None:
    world = World(1)
    chunk = world.submit(function(), items=2)
    start(world)
    world.scheduler.done(world.children[0].seat, chunk.slot, chunk.generation, rules.OK, 0, b"")
    world.check()
    world.finish()
    assert outcomes(world, chunk) == [rules.OK] * 2


@pytest.mark.parametrize(
    ("first", "stop", "status"),
    [(1, 2, rules.OK), (0, 4, rules.OK), (0, 1, rules.CRASHED), (0, 1, 255)],
    ids=["a gap", "too many", "an outcome that is ours to say", "no status at all"],
)
def test_an_impossible_answer_condemns_the_child_and_changes_nothing(first: int, stop: int, status: int) -> None:
    world = World(1)
    chunk = world.submit(function(), items=3)
    start(world)
    with pytest.raises(ProtocolViolation):
        world.scheduler.items(world.children[0].seat, chunk.slot, chunk.generation, first, stop, status, False, 0, b"")
    world.check()
    assert outcomes(world, chunk) == [None] * 3


def test_items_cannot_be_answered_backwards() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3)
    child = start(world, steps=2)
    child.step(flush=True)
    world.read(child)
    assert outcomes(world, chunk) == [rules.OK, None, None]
    with pytest.raises(ProtocolViolation):
        world.scheduler.items(child.seat, chunk.slot, chunk.generation, 1, 0, rules.OK, False, 0, b"")


def test_a_status_that_is_not_the_childs_to_say_condemns_it() -> None:
    world = World(1)
    task = world.submit()
    start(world)
    with pytest.raises(ProtocolViolation):
        world.scheduler.done(world.children[0].seat, task.slot, task.generation, rules.CANCELLED, 0, b"")
    assert outcome(world, task) is None


@pytest.mark.parametrize("status", [rules.ERROR, rules.EXITED])
def test_what_raises_is_retried_as_often_as_asked(status: int) -> None:
    world = World(1)
    task = world.submit(retries=2, crash_retries=5)
    for _ in range(3):
        assert outcome(world, task) is None
        start(world).step(status)
        world.turn()
    assert outcome(world, task) == status
    assert task.attempts == 3


def test_a_call_or_a_result_that_does_not_pickle_is_not_retried() -> None:
    world = World(1)
    task = world.submit(retries=5)
    start(world).step(rules.UNSERIALIZABLE)
    world.turn()
    assert outcome(world, task) == rules.UNSERIALIZABLE


def test_a_retry_waits_behind_what_was_submitted_before_it() -> None:
    world = World(1)
    tasks = [world.submit(retries=1) for _ in range(3)]
    start(world).step(rules.ERROR)
    world.turn()
    world.finish()
    order = [entry[2] for entry in world.log if entry[0] == "offer"]
    assert order == [1, 2, 3, 1]
    assert [outcome(world, task) for task in tasks] == [rules.OK] * 3


def fails(world: World, task: Task) -> None:
    """Its next attempt raises."""
    child = start(world)
    child.step(rules.ERROR)
    world.turn()
    assert outcome(world, task) is None


def test_a_retry_waits_for_its_pause_and_then_for_its_turn() -> None:
    world = World(1)
    task = world.submit(retries=2, backoff=Backoff(1.0, 4.0, 9.0, "equal"))
    for pause in (0.75, 3.0):  # the random number is 0.5
        fails(world, task)
        wait(world, pause - 0.25)
        assert offered(world) == []
        wait(world, 0.25)
        assert offered(world) == [task.key]
    start(world).step()
    world.turn()
    assert outcome(world, task) == rules.OK


def test_what_waits_for_its_time_costs_idle_children_no_look() -> None:
    world = World(1)
    due = world.now + 512.0
    fails(world, world.submit(retries=1, backoff=Backoff(512.0, 1.0, 512.0, "none")))
    wait(world, 2 * START_TIMEOUT)
    assert world.scheduler.next_timer() == due


def test_of_two_retries_at_one_time_the_first_goes_first() -> None:
    world = World(1)
    tasks = [world.submit(retries=1, backoff=Backoff(1.0, 1.0, 1.0, "none")) for _ in range(3)]
    for _ in tasks:
        start(world).step(rules.ERROR)
        world.read(world.children[0])
        world.scheduler.dispatch(world.now)
    wait(world, 1.0)
    order = []
    while world.scheduler.unfinished():
        order += offered(world)
        start(world).step()
        world.turn()
    assert order == [task.key for task in tasks]


def test_a_task_is_tried_again_when_it_asked_to_be_and_no_other() -> None:
    world = World(1, slots=16)
    first, second = (world.submit(function(1), retries=1) for _ in range(2))
    child = start(world)
    child.asked = 2.0
    child.step(rules.ERROR)
    child.asked = None
    child.step()
    child.step(rules.ERROR)
    world.turn()
    assert offered(world) == [second.key]
    wait(world, 2.0)
    assert first.key in offered(world)
    world.finish()
    assert [outcome(world, task) for task in (first, second)] == [rules.OK] * 2


def test_an_item_is_tried_again_when_it_asked_to_be() -> None:
    world = World(1)
    chunk = world.submit(function(), items=2, retries=1)
    child = start(world, steps=2)
    child.asked = 2.0
    child.step(rules.ERROR)
    for _ in range(4):
        child.step()
    world.turn()
    assert offered(world) == []
    wait(world, 2.0)
    assert offered(world) == [chunk.key]


def test_what_a_late_attempt_asked_for_is_no_other_ones_pause() -> None:
    world = World(1)
    late = world.submit(timeout=1.0)
    child = start(world)
    wait(world, 1.0)
    child.asked = 512.0
    child.step(rules.ERROR)
    world.turn()
    assert outcome(world, late) == rules.TIMED_OUT
    child.asked = None
    fails(world, task := world.submit(retries=1))
    assert offered(world) == [task.key]


def test_a_final_exception_is_the_outcome() -> None:
    world = World(1)
    task, chunk = world.submit(retries=5), world.submit(function(), items=3, retries=5)
    child = start(world)
    child.final = True
    child.step(rules.ERROR)
    child = start(world, steps=2)
    child.step(rules.ERROR)
    world.turn()
    assert outcome(world, task) == rules.ERROR
    assert outcomes(world, chunk) == [rules.ERROR, None, None]
    child.final = False
    world.finish()


def test_what_is_cancelled_before_its_time_does_not_wait_for_it() -> None:
    world = World(1)
    for items in (0, 2):
        for _ in range(500):
            task = world.submit(function(), items, retries=1, backoff=Backoff(512.0, 1.0, 512.0, "none"))
            child = start(world, steps=2 if items else 1)
            child.step(rules.ERROR)
            child.step()
            child.step()
            child.step()
            world.turn()
            world.cancel(task.key)
            world.turn()
            assert len(list(world.scheduler._scheduled)) <= 2 * DEAD_MAX
    assert world.scheduler.unfinished() == 0


def test_an_item_that_raises_is_retried_alone() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3, retries=1)
    child = start(world, steps=2)
    child.step()
    child.step()
    child.step(rules.ERROR)
    world.turn()
    assert outcomes(world, chunk) == [rules.OK, None, None]
    world.finish()
    assert outcomes(world, chunk) == [rules.OK] * 3
    assert [len(world.attempts[chunk.key, index]) for index in range(3)] == [1, 2, 1]


def test_a_chunk_that_cannot_be_unpickled_is_handed_back() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3)
    start(world).step(rules.UNSERIALIZABLE)
    world.turn()
    assert outcomes(world, chunk) == [SPLIT] * 3
    single = world.submit(function(), items=1)
    start(world).step(rules.UNSERIALIZABLE)
    world.turn()
    assert outcomes(world, single) == [rules.UNSERIALIZABLE]
    assert world.scheduler.unfinished() == 0


def answers_of(child: Child, count: int) -> list[rules.Answer]:
    """A child does so many of its offers, and its answers are here and not in its ring."""
    for number in range(count):
        child.step()
        child.step(duration_ns=900 + number)
    answers = []
    while child.ring:
        _, slot, generation, status, duration_ns, payload, _ = child.ring.popleft()
        answers.append((rules.WELL, status, 5, generation, slot | duration_ns << 8, payload))
    return answers


def state(world: World, seat: Seat) -> list[Any]:
    """What is left of answers, as far as it is the same however they are told."""
    scheduler = world.scheduler
    ended = [(task.key, task.state, task.attempts, task.payload, *rest) for task, *rest in scheduler.history.entries]
    places = [seat.load_ns, list(seat.free), list(seat.offers), seat in scheduler._crowded, seat in scheduler._idle]
    return [*places, seat in scheduler._roomy, sorted(scheduler._tasks), ended, scheduler.ended]


@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize("held", [0, 1, 3])
@pytest.mark.parametrize("leaves", [False, True])
def test_many_answers_that_are_well_come_to_what_each_does(count: int, held: int, leaves: bool) -> None:
    found = []
    for together in (False, True):
        world = World(1, slots=64)
        functions = [function(1_000), function(2_000)]
        for number in range(count + held):
            world.submit(functions[number // 3 % 2])
        world.turn()
        child = world.children[0]
        assert len(child.seat.offers) == count + held
        answers = answers_of(child, count)
        if leaves:
            child.seat.state = LEAVING
        if together:
            assert world.scheduler.well(child.seat, answers, 0) == count
        else:
            for _, status, started_ns, generation, c, payload in answers:
                world.scheduler.done(child.seat, c & 0xFF, generation, status, c >> 8, payload, False, started_ns)
        estimates = [each.estimate_ns for each in functions]
        others = [entry for entry in world.log if entry[0] != "dismiss"]  # which comes a little earlier or later
        found.append([state(world, child.seat), estimates, dismissed(world), others])
    assert found[0] == found[1]


def test_what_is_not_well_or_not_expected_is_left_to_who_looks_closer() -> None:
    world = World(1, slots=8)
    tasks = [world.submit(function(1_000)) for _ in range(5)]
    world.turn()
    child = world.children[0]
    first, second, third, fourth, fifth = answers_of(child, 5)
    seat, well = child.seat, world.scheduler.well
    assert well(seat, [(rules.WELL + 1, *first[1:]), first], 0) == 0, "another kind"
    assert well(seat, [(rules.WELL, 1, *first[2:])], 0) == 0, "a status, or another flag"
    assert well(seat, [(*first[:3], tasks[0].generation + 1, *first[4:])], 0) == 0, "another generation"
    assert well(seat, [(*first[:4], 77, b"")], 0) == 0, "another slot"
    tasks[1].decided = rules.CANCELLED
    assert well(seat, [first, second, third], 0) == 1, "a task that was decided on"
    assert well(seat, [first, second, third], 2) == 3
    tasks[3].items = 1
    assert well(seat, [fourth], 0) == 0, "a chunk"
    world.scheduler.history.any_results = True
    assert well(seat, [fifth], 0) == 0, "whose result may be kept"
    world.scheduler.history.any_results = False
    world.scheduler.options_known(TaskOptions(priority=1))
    assert well(seat, [fifth], 0) == 0, "that queues are to hear of"
    assert [outcome(world, task) for task in tasks] == [rules.OK, None, rules.OK, None, None]


def test_each_task_of_a_child_that_may_do_so_many_counts() -> None:
    world = World(1, slots=8, max_tasks=3)
    for _ in range(5):
        world.submit(function(1_000))
    world.turn()
    child = world.children[0]
    assert world.scheduler.well(child.seat, answers_of(child, 2), 0) == 0
