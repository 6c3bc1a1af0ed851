"""Tasks that are too late, their interrupts and their grace: the scheduler under virtual time."""

import pytest
from scheduler_steps import function, interrupts, kills, last_report, outcome, outcomes, start, wait
from scheduler_world import GRACE, SPLIT, Child, World

from mpworker.supervisor import effects as rules
from mpworker.supervisor.registry import Seat, Task


def test_a_late_task_is_interrupted_and_its_answer_no_longer_matters() -> None:
    world = World(1)
    task = world.submit(timeout=1.0)
    child = start(world)
    wait(world, 0.9375)
    assert interrupts(world) == 0
    wait(world, 0.0625)
    assert interrupts(world) == 1
    child.step(rules.OK)
    world.turn()
    assert outcome(world, task) == rules.TIMED_OUT
    assert last_report(world) == {
        "timeout": 1.0,
        "deadline": None,
        "attempt": 1,
        "attempts": 1,
        "killed": False,
        "interrupted": "",
        "dumped": "",
    }


def test_a_taken_interrupt_says_where_the_task_was() -> None:
    world = World(1)
    task = world.submit(timeout=1.0)
    child = start(world)
    wait(world, 1.0)
    assert child.take_signal()
    world.turn()
    assert outcome(world, task) == rules.TIMED_OUT
    assert last_report(world)["interrupted"] == "stack"


def test_a_late_task_is_retried_as_often_as_asked() -> None:
    world = World(1)
    task = world.submit(timeout=1.0, retries=1)
    for _ in range(2):
        assert outcome(world, task) is None
        child = start(world)
        wait(world, 1.0)
        child.take_signal()
        world.turn()
    assert outcome(world, task) == rules.TIMED_OUT
    assert (last_report(world)["attempt"], last_report(world)["attempts"]) == (2, 2)


def test_the_clock_of_a_timeout_begins_at_the_claim() -> None:
    world = World(1, slots=16)
    first = world.submit(function(1))
    second = world.submit(function(1), timeout=1.0)
    child = start(world)
    wait(world, 10.5)
    child.step()
    child.step()
    wait(world, 0.9375)
    assert interrupts(world) == 0
    wait(world, 0.0625)
    assert interrupts(world) == 1
    world.finish()
    assert (outcome(world, first), outcome(world, second)) == (rules.OK, rules.TIMED_OUT)


def test_a_child_is_killed_when_the_grace_is_over_and_not_before() -> None:
    world = World(1)
    task = world.submit(timeout=1.0)
    start(world)
    wait(world, 1.0 + GRACE - 0.0625)
    assert kills(world) == []
    wait(world, 0.0625)
    assert kills(world) == ["grace"]
    world.bury()
    assert outcome(world, task) == rules.TIMED_OUT
    assert last_report(world)["killed"] is True


def test_a_kill_after_a_timeout_counts_as_a_timeout_and_not_as_a_crash() -> None:
    world = World(1)
    task = world.submit(timeout=1.0, crash_retries=5)
    start(world)
    wait(world, 1.0 + GRACE)
    world.bury()
    assert outcome(world, task) == rules.TIMED_OUT
    assert (task.attempts, task.setbacks.crashes) == (1, 0)


@pytest.mark.parametrize("items", [0, 3])
def test_a_late_task_that_is_killed_says_where_it_was_before_it_was_interrupted(items: int) -> None:
    world = World(1)
    task = world.submit(function(), items, timeout=1.0)
    start(world, steps=2 if items else 1)
    wait(world, 1.0)
    assert [entry[0] for entry in world.log[-2:]] == ["ask_stack", "interrupt"]
    wait(world, GRACE)
    world.bury()
    assert last_report(world)["dumped"] == f"stack of {task.key}"
    assert last_report(world)["interrupted"] == ""


def test_only_what_is_late_is_asked_where_it_is() -> None:
    world = World(1)
    task = world.submit(timeout=1.0)
    start(world)
    world.cancel(task.key)
    wait(world, GRACE)
    assert kills(world) == ["grace"]
    assert ("ask_stack", 0) not in world.log


def test_the_stack_of_a_child_that_lives_may_be_that_of_its_next_task() -> None:
    world = World(1)
    brief = function(1_000)
    late, _ = world.submit(brief, timeout=1.0), world.submit(brief)
    child = start(world)
    world.now += 1.0
    child.step()  # it is done, and nobody has read it
    child.step()
    world.children[0].ring, unread = type(child.ring)(), child.ring
    world.turn()
    child.ring = unread
    assert child.stack == "stack of 2"
    world.turn()
    assert outcome(world, late) == rules.TIMED_OUT
    assert last_report(world)["dumped"] == ""


def test_a_timeout_is_per_item() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3, timeout=1.0)
    child = start(world, steps=2)
    for _ in range(2):
        wait(world, 0.75)
        child.step()
        child.step()
    wait(world, 0.9375)
    assert interrupts(world) == 0
    wait(world, 0.0625)
    assert interrupts(world) == 1
    child.take_signal()
    world.turn()
    assert outcomes(world, chunk) == [rules.OK, rules.OK, rules.TIMED_OUT]


def test_the_rest_of_a_chunk_goes_on_after_a_late_item() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3, timeout=1.0)
    child = start(world, steps=2)
    wait(world, 1.0)
    child.take_signal()
    world.finish()
    assert outcomes(world, chunk) == [rules.TIMED_OUT, rules.OK, rules.OK]


def test_an_interrupt_that_hits_an_item_of_a_chunk_that_closes_is_told_as_such() -> None:
    """It was for an earlier task, and the halt word says that no further item is to begin."""
    world = World(1)
    chunk = world.submit(function(), items=2)
    child = start(world, steps=2)
    world.cancel_unstarted()
    child.signalled = True
    assert child.take_signal()
    child.step()
    world.turn()
    assert outcomes(world, chunk) == [rules.INTERRUPTED, rules.CANCELLED]
    assert world.scheduler.unfinished() == 0


def test_an_interrupt_of_one_item_never_hits_the_next() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3, timeout=1.0)
    child = start(world, steps=2)
    world.now += 1.0
    world.read(child)
    # Between the look at the cursor and the word that halts the chunk, the item ends and the next one begins.
    real_halt = world.halt

    def halt(seat: Seat, slot: int, generation: int) -> int:
        if generation and child.index == 0:
            child.step()
            child.step()
        return real_halt(seat, slot, generation)

    world.halt = halt  # type: ignore[method-assign]
    world.scheduler.timer(world.now)
    assert (child.index, child.inside) == (1, True)
    assert interrupts(world) == 0
    wait(world, 0.9375)
    child.step()
    child.step()
    assert (child.index, child.inside) == (2, True), "the chunk was stopped for nothing"
    wait(world, 0.9375)
    assert interrupts(world) == 0
    wait(world, 0.0625)
    assert interrupts(world) == 1, "the one that began meanwhile has lost its timeout"
    child.take_signal()
    world.turn()
    assert outcomes(world, chunk) == [rules.OK, rules.OK, rules.TIMED_OUT]


@pytest.mark.parametrize("items", [1, 3])
def test_a_chunk_that_is_late_before_its_first_item_is_not_begun_again_for_ever(items: int) -> None:
    world = World(1)
    chunk = world.submit(function(), items=items, timeout=1.0)
    child = start(world)
    wait(world, 1.0)
    child.step()
    world.turn()
    assert outcomes(world, chunk) == ([SPLIT] * 3 if items > 1 else [rules.TIMED_OUT])
    assert world.scheduler.unfinished() == 0


@pytest.mark.parametrize("ending", [rules.OK, rules.ERROR, rules.UNSERIALIZABLE])
def test_an_item_that_ends_before_its_interrupt_arrives_is_late_all_the_same(ending: int) -> None:
    world = World(1)
    chunk = world.submit(function(), items=4, timeout=1.0)
    child = start(world, steps=2)
    child.step(flush=False)
    child.step()
    assert (child.first, child.index, child.inside) == (0, 1, True)
    wait(world, 1.0)
    child.step(ending, flush=False)
    child.step()  # halted, and so the range is over
    assert child.run is None
    world.read(child)
    assert outcomes(world, chunk) == [rules.OK, rules.TIMED_OUT, None, None]
    assert last_report(world) == {
        "timeout": 1.0,
        "deadline": None,
        "attempt": 1,
        "attempts": 1,
        "killed": False,
        "interrupted": "",
        "dumped": "",
    }
    world.finish()
    assert outcomes(world, chunk) == [rules.OK, rules.TIMED_OUT, rules.OK, rules.OK]


def test_an_item_that_ends_before_its_interrupt_arrives_leaves_the_others_their_timeouts() -> None:
    world = World(1)
    chunk = world.submit(function(), items=2, timeout=1.0)
    child = start(world, steps=2)
    wait(world, 1.0)
    child.step(flush=False)
    child.step()  # halted, and so the range is over
    assert child.run is None
    world.read(child)
    world.check()
    start(world, steps=2)
    wait(world, 1.0)
    assert interrupts(world) == 2
    child.take_signal()
    world.finish()
    assert outcome(world, chunk, 1) == rules.TIMED_OUT


def test_a_late_item_that_does_not_react_times_out_and_the_rest_keeps_its_timeouts() -> None:
    world = World(1)
    chunk = world.submit(function(), items=2, timeout=1.0, crash_retries=5)
    start(world, steps=2)
    wait(world, 1.0 + GRACE)
    world.bury()
    assert outcomes(world, chunk) == [rules.TIMED_OUT, None]
    world.check()
    assert last_report(world)["killed"] is True
    world.children[1].step()
    child = start(world, 1, steps=2)
    assert (child.index, child.inside) == (1, True)
    wait(world, 1.0)
    assert interrupts(world) == 2
    world.finish()


def test_a_task_that_ends_within_the_grace_leaves_an_idle_child_alone() -> None:
    world = World(1)
    world.submit(timeout=1.0)
    child = start(world)
    wait(world, 1.0)
    child.take_signal()
    wait(world, 10 * GRACE)
    assert kills(world) == []


# ------------------------------------------------------------ the grace is the interrupted task's own


def test_a_task_that_ends_within_the_grace_leaves_its_successor_in_peace() -> None:
    world = World(1, slots=16)
    world.submit(function(1), timeout=1.0)
    second = world.submit(function(1))
    child = start(world)
    wait(world, 1.0)
    child.take_signal()
    child.step()
    assert child.run is not None
    assert child.run.key == second.key
    wait(world, 10 * GRACE)
    assert kills(world) == []
    child.step()
    world.turn()
    assert outcome(world, second) == rules.OK


def interrupted_with_another_behind(world: World, **options: float) -> tuple[Task, Task, Child]:
    first = world.submit(function(1), timeout=1.0)
    second = world.submit(function(1), **options)
    child = start(world)
    wait(world, 1.0)
    assert interrupts(world) == 1
    world.advance(GRACE)
    return first, second, child


def test_a_child_that_has_just_gone_on_to_the_next_task_is_not_killed() -> None:
    world = World(1, slots=16)
    first, second, child = interrupted_with_another_behind(world)
    child.step()
    child.step()  # all between the supervisor's last look at the ring and the kill
    world.scheduler.timer(world.now)
    assert child.run is not None
    assert child.run.key == second.key
    assert kills(world) == []
    world.finish()
    assert (outcome(world, first), outcome(world, second)) == (rules.TIMED_OUT, rules.OK)


def test_what_waits_behind_a_task_is_taken_back_before_the_kill() -> None:
    world = World(1, slots=16)
    _, second, child = interrupted_with_another_behind(world)
    world.turn()
    assert kills(world) == ["grace"]
    child.step()
    child.step()  # it goes on until it dies
    assert child.run is None
    world.bury()
    world.finish()
    assert (second.attempts, second.setbacks.crashes) == (1, 0)
    assert outcome(world, second) == rules.OK


def test_a_spoiled_claim_page_does_not_save_a_child_from_its_kill() -> None:
    world = World(1, slots=16)
    _, second, child = interrupted_with_another_behind(world)
    child.page[second.slot].generation = 12345
    world.turn()
    assert kills(world) == ["grace"]


def test_cancelling_what_waits_behind_an_interrupted_task_does_not_save_it() -> None:
    world = World(1, slots=16)
    world.submit(function(1), timeout=1.0)
    chunk = world.submit(function(1), items=2)
    start(world)
    wait(world, 1.0)
    world.cancel(chunk.key)
    wait(world, GRACE)
    assert kills(world) == ["grace"]


def test_an_item_that_ends_at_the_end_of_its_grace_saves_its_child() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3, timeout=1.0)
    child = start(world, steps=2)
    wait(world, 1.0)
    child.take_signal()  # answered; that the range is over is not said yet
    wait(world, 2 * GRACE)
    assert kills(world) == []
    world.finish()
    assert outcomes(world, chunk) == [rules.TIMED_OUT, rules.OK, rules.OK]
