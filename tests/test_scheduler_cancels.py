"""Tasks that are cancelled, one by one or all that have not begun: the scheduler under virtual time."""

import pytest
from scheduler_steps import function, interrupts, kills, offered, outcome, outcomes, start, wait
from scheduler_world import GRACE, World

from mpworker.supervisor import dispatch
from mpworker.supervisor import effects as rules
from mpworker.supervisor.registry import Seat


def test_a_cancelled_task_that_waits_never_starts() -> None:
    world = World(1)
    world.submit()
    waiting = world.submit()
    start(world)
    assert world.cancel(waiting.key)
    assert outcome(world, waiting) == rules.CANCELLED
    world.finish()
    assert (waiting.key, None) not in world.attempts


def test_a_cancelled_task_is_not_offered_ahead_either() -> None:
    world = World(1, slots=16)
    tasks = [world.submit(function(1)) for _ in range(3)]
    world.cancel(tasks[1].key)
    world.turn()
    assert offered(world) == [tasks[0].key, tasks[2].key]


def test_a_cancelled_task_that_is_offered_never_starts() -> None:
    world = World(1, slots=16)
    world.submit(function(1))
    ahead = world.submit(function(1))
    start(world)
    assert ahead.key in offered(world)
    assert world.cancel(ahead.key)
    assert outcome(world, ahead) == rules.CANCELLED
    world.finish()
    assert (ahead.key, None) not in world.attempts


@pytest.mark.parametrize("ending", [rules.OK, rules.ERROR, rules.INTERRUPTED])
def test_a_cancelled_task_that_runs_is_interrupted_and_ends_cancelled(ending: int) -> None:
    world = World(1)
    task = world.submit(retries=5)
    child = start(world)
    assert world.cancel(task.key)
    assert world.cancel(task.key), "it will end cancelled"
    assert outcome(world, task) is None
    assert interrupts(world) == 1
    child.step(ending)
    world.turn()
    assert outcome(world, task) == rules.CANCELLED
    assert not world.cancel(task.key), "it has ended"


def test_a_cancelled_task_that_does_not_react_is_killed() -> None:
    world = World(1)
    task = world.submit(crash_retries=5)
    start(world)
    world.cancel(task.key)
    wait(world, GRACE)
    assert kills(world) == ["grace"]
    world.bury()
    assert outcome(world, task) == rules.CANCELLED


@pytest.mark.parametrize("interrupt", [False, True])
def test_the_running_item_of_a_cancelled_chunk_is_interrupted_if_asked(interrupt: bool) -> None:
    world = World(1)
    chunk, task = world.submit(items=3), world.submit()
    child = start(world, steps=2)
    assert world.cancel(chunk.key, interrupt)
    assert interrupts(world) == interrupt
    assert child.take_signal() == interrupt
    if not interrupt:
        child.step()
    child.step()  # no further item: the range is over
    wait(world, GRACE)
    assert kills(world) == [], "the child took the interrupt"
    world.finish()
    assert list(world.attempts) == [(chunk.key, 0), (task.key, None)]


def test_a_cancelled_item_that_does_not_react_is_killed_if_asked() -> None:
    world = World(1)
    chunk = world.submit(items=3, crash_retries=5)
    start(world, steps=2)
    world.cancel(chunk.key, interrupt=True)
    wait(world, GRACE)
    assert kills(world) == ["grace"]
    world.bury()
    world.finish()
    assert list(world.attempts) == [(chunk.key, 0)]


def test_a_cancel_overrides_a_timeout_that_would_be_retried() -> None:
    world = World(1)
    task = world.submit(timeout=1.0, retries=5)
    child = start(world)
    wait(world, 1.0)
    assert world.cancel(task.key)
    child.take_signal()
    world.turn()
    assert outcome(world, task) == rules.CANCELLED


def test_the_late_answer_of_a_cancelled_task_does_not_save_the_next_one_that_is_cancelled() -> None:
    world = World(1, slots=2)
    first, second = (world.submit(function(1)) for _ in range(2))
    child = start(world)
    assert world.cancel(first.key)
    child.step()  # it ends, and its answer is in the ring
    child.step()
    assert child.run is not None
    assert child.run.key == second.key
    world.now += GRACE / 2
    assert world.cancel(second.key)
    child.frozen = False
    wait(world, GRACE - 0.25)
    assert kills(world) == []
    wait(world, 0.25)
    assert kills(world) == ["grace"]
    world.finish()
    assert outcome(world, second) == rules.CANCELLED


def test_a_cancel_does_not_prolong_the_grace() -> None:
    world = World(1)
    task = world.submit(timeout=1.0)
    start(world)
    wait(world, 1.0 + GRACE / 2)
    world.cancel(task.key)
    wait(world, GRACE / 2)
    assert kills(world) == ["grace"]


def test_what_has_ended_or_never_was_cannot_be_cancelled() -> None:
    world = World(1)
    task = world.submit()
    start(world).step()
    world.turn()
    assert not world.cancel(task.key)
    assert not world.scheduler.cancel(99, world.now)
    assert outcome(world, task) == rules.OK


def test_no_further_item_of_a_cancelled_chunk_begins_and_the_running_one_ends_in_peace() -> None:
    world = World(2)
    chunk = world.submit(function(), items=4)
    child = start(world, 1, steps=2)
    child.step()
    child.step()
    assert world.cancel(chunk.key)
    assert interrupts(world) == 0
    assert world.scheduler.unfinished() == 0
    child.step()
    child.step()
    assert child.run is None
    world.finish()
    assert set(world.attempts) == {(chunk.key, 0), (chunk.key, 1)}
    assert len(world.scheduler._idle) == 2


def test_a_cancelled_chunk_that_waits_never_starts() -> None:
    world = World(1)
    world.submit(function())
    queued = world.submit(function(), items=2)
    start(world)
    assert world.cancel(queued.key)
    assert not world.cancel(queued.key)
    assert queued.payload == b"", "its memory is held until its turn"
    world.finish()
    assert (queued.key, 0) not in world.attempts


def test_the_running_item_of_a_cancelled_chunk_still_has_its_timeout() -> None:
    world = World(1)
    chunk = world.submit(function(), items=2, timeout=1.0)
    start(world, steps=2)
    world.cancel(chunk.key)
    wait(world, 1.0)
    assert interrupts(world) == 1
    wait(world, GRACE)
    assert kills(world) == ["grace"]
    world.finish()


# ------------------------------------------------------------ cancel all that has not begun


def test_what_has_not_begun_ends_cancelled_and_what_runs_goes_on() -> None:
    world = World(1, slots=3)
    tasks = [world.submit(function(1)) for _ in range(6)]
    start(world)
    world.cancel_unstarted()
    assert [outcome(world, task) for task in tasks] == [None] + [rules.CANCELLED] * 5
    assert interrupts(world) == 0
    assert not world.scheduler._queue
    world.finish()
    assert outcome(world, tasks[0]) == rules.OK
    assert set(world.attempts) == {(tasks[0].key, None)}


def test_chunks_that_have_not_begun_end_cancelled() -> None:
    world = World(1, slots=16)
    running = world.submit(function(1))
    ahead, queued = world.submit(function(1), items=3), world.submit(function(dispatch.AHEAD_NS), items=2)
    start(world)
    assert offered(world) == [ahead.key]
    world.cancel_unstarted()
    assert outcomes(world, ahead) == [rules.CANCELLED] * 3
    assert outcomes(world, queued) == [rules.CANCELLED] * 2
    assert world.scheduler.unfinished() == 1
    world.finish()
    assert outcome(world, running) == rules.OK


def test_the_running_item_of_a_chunk_keeps_its_result_and_the_rest_ends_cancelled() -> None:
    world = World(1)
    chunk = world.submit(function(), items=5)
    child = start(world, steps=2)
    child.step(flush=False)
    child.step()
    world.cancel_unstarted()
    assert outcomes(world, chunk) == [None] * 5
    child.step()
    child.step()
    world.turn()
    assert outcomes(world, chunk) == [rules.OK] * 2 + [rules.CANCELLED] * 3
    assert world.scheduler.unfinished() == 0
    assert interrupts(world) == 0


def test_a_chunk_that_is_being_unpickled_ends_cancelled() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3, timeout=1.0)
    child = start(world)
    world.cancel_unstarted()
    wait(world, 1.0)
    child.step()
    world.turn()
    assert outcomes(world, chunk) == [rules.CANCELLED] * 3


@pytest.mark.parametrize("how", ["answer", "death"])
def test_a_chunk_that_nobody_can_send_again_in_pieces_ends_cancelled(how: str) -> None:
    world = World(1)
    chunk = world.submit(function(), items=3)
    child = start(world)
    world.cancel_unstarted()
    if how == "answer":
        child.step(rules.UNSERIALIZABLE)
        world.turn()
    else:
        world.die(child)
        world.reap(child)
    assert outcomes(world, chunk) == [rules.CANCELLED] * 3
    assert world.scheduler.unfinished() == 0


def test_what_waits_for_another_attempt_ends_cancelled() -> None:
    world = World(1)
    task, chunk = world.submit(retries=1), world.submit(function(), items=2, retries=1)
    running = world.submit()
    start(world).step(rules.ERROR)
    child = start(world, steps=2)
    child.step(rules.ERROR)
    child.step()
    child.step()
    child.step()
    start(world)
    assert world.children[0].run is not None
    assert world.children[0].run.key == running.key
    world.cancel_unstarted()
    assert outcome(world, task) == rules.CANCELLED
    assert outcomes(world, chunk) == [rules.CANCELLED, rules.OK]
    world.finish()


def test_what_runs_keeps_its_retries() -> None:
    world = World(1)
    task = world.submit(retries=1)
    start(world)
    world.cancel_unstarted()
    world.children[0].step(rules.ERROR)
    world.finish()
    assert outcome(world, task) == rules.OK
    assert task.attempts == 2


@pytest.mark.parametrize("inside", [True, False], ids=["in an item", "between two"])
def test_what_a_dead_child_had_not_begun_of_a_closing_chunk_ends_cancelled(inside: bool) -> None:
    world = World(1)
    chunk = world.submit(function(), items=4, crash_retries=1)
    child = start(world, steps=2)
    child.step(flush=True)
    if inside:
        child.step()
    world.cancel_unstarted()
    world.die(child)
    world.reap(child)
    rest = [None] + [rules.CANCELLED] * 2 if inside else [rules.CANCELLED] * 3
    assert outcomes(world, chunk) == [rules.OK, *rest]
    world.finish()
    assert len(world.attempts.get((chunk.key, 1), [])) == (2 if inside else 0)


def test_a_late_look_does_not_set_a_closing_chunk_going_again() -> None:
    world = World(1)
    chunk = world.submit(function(), items=3, timeout=1.0)
    child = start(world, steps=2)
    world.cancel_unstarted()
    world.now += 1.0
    slot = child.page[chunk.slot]
    world.racing.append((child, rules.OK))
    real_peek = world.peek

    def peek(seat: Seat, number: int) -> tuple[int, int, float, int]:
        found = real_peek(seat, number)
        slot.cursor += 1  # the next step's first store, before it sees the halt
        return found

    world.peek = peek  # type: ignore[method-assign]
    world.scheduler.timer(world.now)
    assert slot.halt == chunk.generation
    assert interrupts(world) == 0
    world.peek = real_peek  # type: ignore[method-assign]
    world.finish()
    assert outcomes(world, chunk) == [rules.OK] + [rules.CANCELLED] * 2


def test_where_a_task_is() -> None:
    world = World(1)
    task, waiting = world.submit(), world.submit()
    world.turn()
    scheduler, seat = world.scheduler, world.children[0].seat
    assert scheduler.seat_of(task.key) is seat
    assert not scheduler.is_running(task.key), "nobody has claimed it"
    world.children[0].step()
    assert scheduler.is_running(task.key)
    assert scheduler.seat_of(waiting.key) is None
    assert not scheduler.is_running(waiting.key)
    world.children[0].step()
    world.turn()
    assert scheduler.seat_of(task.key) is None
    assert not scheduler.is_running(task.key)
