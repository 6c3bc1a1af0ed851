"""Children that are replaced on purpose, under virtual time and with real processes."""

import os
from collections import Counter
from pathlib import Path

import pooljobs
import pytest
from leaks import alive, wait_until
from pooljobs import Gate
from scheduler_steps import dismissed, function, kills, offered, outcome, outcomes, start, wait
from scheduler_world import World

from mpworker import ProcessWorker
from mpworker.errors import WorkerCrashed
from mpworker.supervisor import dispatch
from mpworker.supervisor import effects as rules
from mpworker.supervisor.memory import anonymous_bytes
from mpworker.supervisor.recycling import LOOK_SECONDS
from mpworker.supervisor.registry import LEAVING, READY

LIMIT = 60.0  # seconds: a guard against a hang, never a measure


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
    wait(world, dispatch.STEAL_AFTER)
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


# ------------------------------------------------------------ memory: who leaves and who is killed


def test_a_child_that_keeps_too_much_leaves_after_its_task() -> None:
    world = World(1, soft=10)
    first, second = world.submit(), world.submit()
    child = start(world)
    child.memory = 11
    wait(world, LOOK_SECONDS)
    assert child.seat.state == LEAVING
    assert kills(world) == []
    child.step()
    world.turn()
    assert outcome(world, first) == rules.OK
    assert dismissed(world) == [0]
    world.children[1].step()
    world.turn()
    assert offered(world, 1) == [second.key]


def test_a_child_that_had_too_much_for_a_while_stays() -> None:
    world = World(1, soft=10)
    world.submit(function(1_000))
    behind = world.submit(function(1_000))
    child = start(world)
    child.memory = 11
    wait(world, LOOK_SECONDS)
    assert child.seat.state == LEAVING
    assert not child.in_line(), "it is looked at before it begins another"
    child.memory = 10
    child.step()
    world.turn()
    assert child.seat.state == READY
    assert offered(world) == [behind.key, behind.key]
    assert len(world.children) == 1
    child.memory = 11
    wait(world, 1.0)
    child.step()
    child.step()
    child.step()
    world.turn()
    assert dismissed(world) == [0]


def test_a_child_whose_offers_can_all_be_taken_back_is_looked_at_at_once() -> None:
    world = World(1, soft=10)
    world.submit()
    world.turn()
    child = world.children[0]
    child.memory = 11
    wait(world, LOOK_SECONDS)
    assert dismissed(world) == [0]


def test_a_child_that_was_done_before_anybody_looked_is_looked_at_once_more() -> None:
    world = World(1, soft=10)
    world.submit()
    start(world).step()
    world.turn()
    world.children[0].memory = 11
    wait(world, LOOK_SECONDS)
    assert dismissed(world) == [0]


def test_an_idle_pool_is_not_looked_at() -> None:
    world = World(1, soft=10)
    world.submit()
    start(world).step()
    world.turn()
    wait(world, 4.0)
    assert world.scheduler._memory_at is None


def test_a_pool_without_limits_is_not_looked_at() -> None:
    world = World(1, max_tasks=5)
    world.submit()
    start(world).memory = 1000
    wait(world, 1.0)
    assert kills(world) == dismissed(world) == []
    assert world.scheduler._memory_at is None


@pytest.mark.parametrize("crash_retries", [0, 1])
def test_a_child_that_has_too_much_by_far_is_killed_and_its_task_is_blamed(crash_retries: int) -> None:
    world = World(1, hard=20)
    task, behind = world.submit(function(1_000), crash_retries=crash_retries), world.submit(function(1_000))
    child = start(world)
    child.memory = 20
    wait(world, 1.0)
    assert kills(world) == []
    child.memory = 21
    wait(world, LOOK_SECONDS)
    assert kills(world) == ["memory"]
    world.bury()
    assert task.setbacks.crashes == 1
    assert outcome(world, task) == (None if crash_retries else rules.CRASHED)
    assert behind.setbacks.crashes == 0
    world.finish()
    assert outcome(world, behind) == rules.OK


def test_a_child_that_is_to_go_has_the_hard_limit_still() -> None:
    world = World(1, soft=10, hard=20)
    world.submit()
    child = start(world)
    child.memory = 11
    wait(world, LOOK_SECONDS)
    child.memory = 21
    wait(world, LOOK_SECONDS)
    assert kills(world) == ["memory"]


def test_who_is_under_suspicion_and_whose_place_is_gone_goes() -> None:
    world = World(2, soft=10)
    world.submit()
    child = start(world)
    child.memory = 11
    wait(world, LOOK_SECONDS)
    child.memory = 0
    world.resize(1)
    assert child.seat.vacated
    child.step()
    world.turn()
    assert dismissed(world) == [0]


def test_who_is_under_suspicion_and_has_done_its_part_goes() -> None:
    world = World(1, max_tasks=1, soft=10)
    chunk = world.submit(function(1_000_000), items=2)
    child = start(world, steps=2)
    child.memory = 11
    wait(world, LOOK_SECONDS)
    assert child.seat.state == LEAVING
    child.memory = 0
    while child.in_line() or child.run is not None:
        child.step()
        world.turn()
    assert dismissed(world) == [0]
    world.finish()
    assert outcomes(world, chunk) == [rules.OK] * 2


# ------------------------------------------------------------ memory: with processes

MIB = 1 << 20
kept: list[bytearray] = []


def keep(size: int) -> int:
    kept.append(bytearray(b"x") * size)
    return os.getpid()


def keep_for_a_while(folder: str, size: int) -> int:
    needed = bytearray(b"x") * size
    pooljobs.hold(folder)
    del needed
    return os.getpid()


def pids(w: ProcessWorker) -> list[int]:
    return [child["pid"] for child in w.processes()["children"] if child["ready"]]


def test_a_child_that_leaks_is_replaced() -> None:
    with ProcessWorker(n=1, memory_limit=48 * MIB) as w:
        first = w.submit(keep, 0).result(LIMIT)
        assert wait_until(lambda: w.submit(keep, 4 * MIB).result(LIMIT) != first, LIMIT)
        assert w.submit(keep, 0).exception(LIMIT) is None


def test_a_child_that_idles_with_too_much_is_replaced() -> None:
    with ProcessWorker(n=1, memory_limit=48 * MIB) as w:
        first = w.submit(keep, 64 * MIB).result(LIMIT)
        assert wait_until(lambda: len(pids(w)) == 1 and pids(w) != [first], LIMIT)
        assert wait_until(lambda: not alive(first), LIMIT)


def test_a_child_that_needs_much_for_a_while_stays(gate: Gate) -> None:
    with ProcessWorker(n=1, memory_limit=48 * MIB) as w:
        future = w.submit(keep_for_a_while, gate.folder, 64 * MIB)
        gate.wait_begun()
        assert wait_until(lambda: pids(w) == [], LIMIT)  # it is seen, and gets no more
        gate.release()
        first = future.result(LIMIT)
        assert w.submit(keep, 0).result(LIMIT) == first


def test_a_task_that_needs_too_much_by_far_crashes(gate: Gate) -> None:
    with ProcessWorker(n=1, memory_limit_hard=48 * MIB) as w:
        error = w.submit(keep_for_a_while, gate.folder, 64 * MIB).exception(LIMIT)
        assert isinstance(error, WorkerCrashed)
        assert (error.cause, error.signal, error.attempt) == ("memory", 9, 1)
        assert "it had more memory than memory_limit_hard and was killed" in str(error)
        again = w.options(crash_retries=1).submit(keep_for_a_while, gate.folder, 64 * MIB).exception(LIMIT)
        assert isinstance(again, WorkerCrashed)
        assert again.attempt == 2
        assert w.submit(abs, -1).result(LIMIT) == 1


def test_what_is_preloaded_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    (tmp_path / "large_preload.py").write_text("DATA = bytearray(b'x') * (64 << 20)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ProcessWorker(n=2, preload=["large_preload"], memory_limit_hard=48 * MIB) as w:
        small = w.submit(keep_for_a_while, gate.folder, 16 * MIB)
        gate.wait_begun()
        large = w.submit(keep_for_a_while, gate.folder, 64 * MIB)
        assert isinstance(large.exception(LIMIT), WorkerCrashed)  # so all have been looked at
        gate.release()
        assert small.exception(LIMIT) is None


def test_the_memory_of_who_is_not_there_is_none() -> None:
    assert anonymous_bytes(1 << 30) == 0
    assert anonymous_bytes(os.getpid()) > MIB
