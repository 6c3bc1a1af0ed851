"""Children that are replaced on purpose, under virtual time and with real processes."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pooljobs
import pytest
from leaks import alive, wait_until
from pooljobs import Gate
from scheduler_world import World
from test_places import dismissed
from test_scheduler import function, kills, offered, outcome, outcomes, start, wait

from mpworker import ProcessWorker
from mpworker.errors import WorkerCrashed
from mpworker.supervisor import scheduler as rules
from mpworker.supervisor.registry import LEAVING, READY

LIMIT = 60.0  # seconds: a guard against a hang, never a measure


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.close()


# ------------------------------------------------------------ so many tasks: who leaves when


def test_a_child_leaves_after_its_last_task_and_another_is_there_before_it_has_gone() -> None:
    world = World(1, max_tasks=2)
    tasks = [world.submit() for _ in range(3)]
    child = start(world)
    for _ in range(2):
        assert dismissed(world) == []
        child.step()
        world.turn()
        child.step()
    assert dismissed(world) == [0]
    assert [outcome(world, task) for task in tasks] == [rules.OK, rules.OK, None]
    assert list(world.children) == [0, 1]
    world.children[1].step()
    world.turn()
    assert offered(world, 1) == [tasks[2].key]
    assert kills(world) == []


def test_no_more_is_offered_ahead_than_a_child_may_still_run() -> None:
    world = World(1, slots=8, max_tasks=3)
    for _ in range(6):
        world.submit(function(1_000))
    child = start(world)
    assert len(child.seat.offers) == 3
    child.step()
    world.turn()
    assert len(child.seat.offers) == 2
    world.finish()
    assert max(world.children) == 2
    assert world.children[2].tasks_begun == 0, "two have done three each"


def test_what_is_taken_back_was_not_run() -> None:
    world = World(1, slots=8, max_tasks=3)
    tasks = [world.submit(function(1_000)) for _ in range(3)]
    child = start(world)
    world.cancel(tasks[2].key)
    for _ in range(2):
        world.submit(function(1_000))
    world.turn()
    assert len(child.seat.offers) == 3


def test_no_idle_child_takes_more_from_another_than_it_may_run() -> None:
    world = World(1, slots=8, max_tasks=6)
    for _ in range(5):
        world.submit(function(1_000))
    start(world)
    thief = world.spawn()
    thief.step()
    thief.seat.ran = 5
    world.scheduler._limit(thief.seat)
    world.turn()
    wait(world, rules.STEAL_AFTER)
    assert len(offered(world, 1)) == 1
    world.finish()


def test_the_items_of_a_chunk_count_and_it_is_cut() -> None:
    world = World(1, max_tasks=2)
    chunk = world.submit(function(1_000_000), items=5)
    child = start(world, steps=2)
    child.step()
    child.step()
    world.turn()
    assert child.seat.state == READY
    child.step()  # the second one is answered
    child.step()  # and the third runs before anybody has heard of it
    world.turn()
    assert child.seat.state == LEAVING
    child.step()
    child.step()  # cut
    world.turn()
    assert dismissed(world) == [0]
    assert outcomes(world, chunk) == [rules.OK] * 3 + [None] * 2
    world.finish()
    assert outcomes(world, chunk) == [rules.OK] * 5
    assert all(len(world.attempts[chunk.key, item]) == 1 for item in range(5))


def test_a_task_that_fails_or_is_late_counts_as_one() -> None:
    world = World(1, max_tasks=2)
    world.submit(retries=1)
    child = start(world)
    child.step(rules.ERROR)
    world.turn()
    assert dismissed(world) == []
    child.step()
    child.step(rules.ERROR)
    world.turn()
    assert dismissed(world) == [0]


def test_a_stale_answer_does_not_count() -> None:
    world = World(1, max_tasks=1)
    task = world.submit()
    world.turn()
    world.scheduler.done(world.children[0].seat, task.slot, task.generation + 1, rules.OK, 0, b"")
    world.scheduler.items(world.children[0].seat, task.slot, task.generation, 0, 0, rules.OK, True, 0, b"")
    assert world.children[0].seat.ran == 0


def test_who_has_done_its_part_is_not_called_back() -> None:
    world = World(2, max_tasks=1)
    world.submit(function(10_000_000), items=3)
    world.submit(function(10_000_000), items=3)
    for number in (0, 1):
        start(world, number, steps=2)
    world.resize(1)
    leaving = next(child for child in world.children.values() if child.seat.state == LEAVING)
    leaving.step()
    leaving.index, answered = leaving.index, leaving.seat.ran
    world.turn()
    assert leaving.seat.ran == answered + 1
    assert leaving.seat.offers
    world.resize(2)
    assert leaving.seat.state == LEAVING
    assert len(world.children) == 3


def test_the_death_of_a_child_that_has_still_something_to_run_is_as_ever() -> None:
    world = World(1, max_tasks=2)
    task = world.submit()
    child = start(world)
    world.die(child)
    world.reap(child)
    assert outcome(world, task) == rules.CRASHED


# ------------------------------------------------------------ so many tasks: with processes


def who(_: object = None) -> int:
    return os.getpid()


@pytest.mark.parametrize("most", [1, 3])
def test_each_child_runs_so_many_tasks(most: int) -> None:
    with ProcessWorker(n=2, max_tasks_per_child=most) as w:
        ran = Counter(future.result(LIMIT) for future in [w.submit(who) for _ in range(40)])
        assert sum(ran.values()) == 40
        assert max(ran.values()) == most
        assert len(ran) <= -(-40 // most) + 2


def test_each_child_runs_so_many_items() -> None:
    with ProcessWorker(n=2, max_tasks_per_child=10) as w:
        ran = Counter(w.map(who, range(100), chunksize=5))
        assert sum(ran.values()) == 100
        assert max(ran.values()) < 10 + 5
        assert list(w.map(pooljobs.square, range(5000))) == [number * number for number in range(5000)]


def test_another_child_works_while_the_old_one_exits(gate: Gate) -> None:
    with ProcessWorker(n=1, max_tasks_per_child=1) as w:
        old = w.submit(exit_when_told, gate.folder).result(LIMIT)
        new = w.submit(who).result(LIMIT)
        assert alive(old)
        assert new != old
        gate.wait_begun()
        gate.release()
        assert wait_until(lambda: not alive(old), LIMIT)


def exit_when_told(folder: str) -> int:
    import atexit

    atexit.register(pooljobs.hold, folder)
    return os.getpid()


def test_children_that_do_not_exit_are_no_more_than_a_few(gate: Gate) -> None:
    with ProcessWorker(n=1, max_tasks_per_child=1, grace=LIMIT) as w:
        pids = [w.submit(exit_when_told, gate.folder).result(LIMIT) for _ in range(9)]
        gate.wait_begun(9)
        waits = w.submit(who)
        assert sum(map(alive, pids)) == 9
        assert len(w.processes()["children"]) == 9
        gate.release()
        assert waits.result(LIMIT) not in pids
        gate.release(8)


def test_a_child_that_is_replaced_on_purpose_is_no_failed_start_and_no_crash() -> None:
    with ProcessWorker(n=2, max_tasks_per_child=1) as w:
        assert sorted(future.result(LIMIT) for future in [w.submit(abs, -x) for x in range(100)]) == list(range(100))
        assert isinstance(w.submit(os._exit, 3).exception(LIMIT), WorkerCrashed)
        assert w.submit(abs, -1).result(LIMIT) == 1


def test_a_pool_whose_children_are_replaced_can_be_resized() -> None:
    with ProcessWorker(n=1, max_tasks_per_child=2) as w:
        futures = []
        for number in range(60):
            futures.append(w.submit(abs, -number))
            if number % 7 == 0:
                w.set_max_workers(1 + number % 3)
        assert [future.result(LIMIT) for future in futures] == list(range(60))


def test_descriptors_for_children_that_exit_are_counted() -> None:
    from mpworker import launch
    from mpworker.options import WorkerOptions

    assert launch.overlap(WorkerOptions(1)) == 0
    assert launch.overlap(WorkerOptions(1, max_tasks_per_child=5)) == launch._OVERLAP_MAX
