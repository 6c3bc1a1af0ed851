"""The scheduler under virtual time: a machine that searches for a broken promise, then each rule by example."""

from typing import Any

import pytest
import transitions
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scheduler_world import GRACE, KILL_TIMEOUT, LEASE_TTL, QUEUES, SPLIT, START_TIMEOUT, Child, World

from mpworker.child.main import EXIT_CHANNEL_LOST
from mpworker.ipc import _native, codec
from mpworker.options import WorkerOptions
from mpworker.supervisor import deaths, dispatch
from mpworker.supervisor import effects as rules
from mpworker.supervisor.backoff import Backoff
from mpworker.supervisor.effects import ProtocolViolation
from mpworker.supervisor.lifecycle import EVENTS, FIRST_FINAL, STATES, Event, IllegalTransition
from mpworker.supervisor.registry import DYING, Death, Function, Seat, Task
from mpworker.supervisor.timers import DEAD_MAX

# ------------------------------------------------------------ any history

WHO = st.integers(0, 7)
OPTIONS = st.fixed_dictionaries(
    {
        "timeout": st.sampled_from([None, None, 0.25, 1.0]),
        "retries": st.integers(0, 2),
        "crash_retries": st.integers(0, 2),
        "backoff": st.sampled_from([None, None, Backoff(0.25, 4.0, 2.0, "none"), Backoff(1.0, 2.0, 8.0, "equal")]),
    }
)
ORDERED = st.fixed_dictionaries(
    {
        "queue": st.sampled_from(QUEUES),
        "priority": st.integers(-1, 1),
        "weight": st.integers(1, 2),
        "concurrency_key": st.sampled_from(["", "", "x", "y"]),
    }
)
ENDINGS = st.sampled_from([rules.OK] * 5 + [rules.ERROR, rules.EXITED, rules.UNSERIALIZABLE])
RACING = st.lists(st.tuples(WHO, ENDINGS), max_size=4)
LIMITS = st.sampled_from([(None, None), (None, None), (10, None), (None, 20), (10, 20)])
ESTIMATES_NS = (0, 1_000, 60_000, 10_000_000)


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens, in whatever order. The world asserts the promises."""

    @initialize(
        n=st.integers(1, 3),
        slots=st.integers(1, 5),
        ordered=st.booleans(),
        max_tasks=st.sampled_from([None, None, 1, 2, 3, 7]),
        limits=LIMITS,
    )
    def begin(
        self, n: int, slots: int, ordered: bool, max_tasks: int | None, limits: tuple[int | None, int | None]
    ) -> None:
        self.ordered = ordered  # else all of it happens to one FIFO
        self.world = World(n, slots, max_tasks=max_tasks, soft=limits[0], hard=limits[1])
        self.functions: list[Function | None] = [None]
        for key, estimate in enumerate(ESTIMATES_NS, start=1):
            function = Function(key, b"function")
            function.estimate_ns = estimate
            self.functions.append(function)

    def child(self, who: int) -> Child:
        children = list(self.world.children.values())
        return children[who % len(children)]

    @rule(options=OPTIONS, function=st.integers(0, len(ESTIMATES_NS)), count=st.integers(1, 4))
    def submit(self, options: dict[str, Any], function: int, count: int) -> None:
        for _ in range(count):
            self.world.submit(self.functions[function], **options)

    @rule(options=OPTIONS, function=st.integers(1, len(ESTIMATES_NS)), items=st.integers(1, 6))
    def submit_chunk(self, options: dict[str, Any], function: int, items: int) -> None:
        self.world.submit(self.functions[function], items, **options)

    @rule(items=st.integers(2, 4), pause=st.booleans(), cancelled=st.booleans())
    def items_fail_and_wait(self, items: int, pause: bool, cancelled: bool) -> None:
        """And the rest of it may be wanted no more."""
        backoff = Backoff(4.0, 1.0, 4.0, "none") if pause else None
        chunk = self.world.submit(self.functions[1], items, retries=1, backoff=backoff)
        self.world.turn()
        for child in list(self.world.children.values()):
            child.final, child.asked = False, None
            for _ in range(4):
                child.step(rules.ERROR)
            self.world.read(child)
        if cancelled:
            self.world.cancel(chunk.key)

    @precondition(lambda self: self.ordered)
    @rule(
        options=OPTIONS,
        order=ORDERED,
        function=st.integers(1, len(ESTIMATES_NS)),
        items=st.sampled_from([0, 0, 1, 4]),
        count=st.integers(1, 3),
    )
    def submit_in_order(
        self, options: dict[str, Any], order: dict[str, Any], function: int, items: int, count: int
    ) -> None:
        for _ in range(count):
            self.world.submit(self.functions[function], items, **options, **order)

    @precondition(lambda self: self.ordered)
    @rule(names=st.sampled_from([None, ["a"], ["default", "b"]]), paused=st.booleans(), racing=RACING)
    def pause(self, names: list[str] | None, paused: bool, racing: list[tuple[int, int]]) -> None:
        self.world.racing.extend((self.child(who), ending) for who, ending in racing)
        self.world.pause_queues(names, paused)
        self.world.racing.clear()

    @precondition(lambda self: self.ordered)
    @rule(held=st.booleans(), racing=RACING)
    def hold(self, held: bool, racing: list[tuple[int, int]]) -> None:
        self.world.racing.extend((self.child(who), ending) for who, ending in racing)
        self.world.hold(held)
        self.world.racing.clear()

    @rule(names=st.sampled_from([None, ["a"], ["default", "b"]]))
    def drain(self, names: list[str] | None) -> None:
        self.world.drain_queues(names)

    @precondition(lambda self: self.ordered)
    @rule(name=st.sampled_from(QUEUES), weight=st.integers(1, 3), limit=st.sampled_from([None, 1, 2]))
    def configure_queue(self, name: str, weight: int, limit: int | None) -> None:
        self.world.configure_queue(name, weight, limit)

    @precondition(lambda self: self.ordered)
    @rule(rate=st.sampled_from([None, (0.5, 1), (4.0, 2)]))
    def limit_rate(self, rate: tuple[float, int] | None) -> None:
        self.world.limit_rate(rate)

    @rule(
        options=OPTIONS,
        deadline=st.sampled_from([None, 0.25, 1.0, 6.0]),
        delay=st.sampled_from([None, 0.25, 4.0]),
    )
    def submit_for_later(self, options: dict[str, Any], deadline: float | None, delay: float | None) -> None:
        self.world.submit(self.functions[2], 0, deadline=deadline, delay=delay, **options)

    @rule(racing=RACING)
    def cancel_all(self, racing: list[tuple[int, int]]) -> None:
        self.world.racing.extend((self.child(who), ending) for who, ending in racing)
        self.world.cancel_all()
        self.world.racing.clear()

    @rule(racing=RACING)
    def turn(self, racing: list[tuple[int, int]]) -> None:
        self.world.racing.extend((self.child(who), ending) for who, ending in racing)
        self.world.turn()

    @rule(
        who=WHO,
        ending=ENDINGS,
        times=st.integers(1, 4),
        ns=st.sampled_from([0, 900, 2_000_000]),
        flush=st.booleans(),
        final=st.booleans(),
        asked=st.sampled_from([None, None, 0.0, 2.0]),
    )
    def child_moves(
        self, who: int, ending: int, times: int, ns: int, flush: bool, final: bool, asked: float | None
    ) -> None:
        child = self.child(who)
        child.final, child.asked = final and asked is None, asked
        for _ in range(times):
            child.step(ending, ns, flush)

    @rule(who=WHO, limit=st.integers(1, 3))
    def read_some(self, who: int, limit: int) -> None:
        self.world.read(self.child(who), limit)

    @rule(who=WHO)
    def signal_arrives(self, who: int) -> None:
        self.child(who).take_signal()

    @rule(who=WHO)
    def child_dies(self, who: int) -> None:
        self.world.die(self.child(who))

    @rule(times=st.integers(1, 6))
    def children_die_before_they_claim(self, times: int) -> None:
        for _ in range(times):
            for child in list(self.world.children.values()):
                if child.run is None and child.ready:
                    self.world.die(child)
                    self.world.reap(child)
            for child in self.world.children.values():
                if not child.ready:
                    child.step()
            self.world.turn()

    @rule()
    def deaths_are_noticed(self) -> None:
        for child in list(self.world.children.values()):
            if child.dead and not child.noticed:
                self.world.notice(child)

    @rule()
    def reap(self) -> None:
        for child in list(self.world.children.values()):
            if child.dead:
                self.world.reap(child)

    @rule()
    def bury(self) -> None:
        self.world.bury()

    @rule(who=WHO, frozen=st.booleans())
    def freeze(self, who: int, frozen: bool) -> None:
        self.child(who).frozen = frozen

    @rule(who=WHO)
    def child_spoils_its_ring(self, who: int) -> None:
        self.world.scheduler.kill(self.child(who).seat, "corrupt", self.world.now)

    @rule(n=st.integers(1, 4), racing=st.lists(st.tuples(WHO, ENDINGS), max_size=4))
    def resize(self, n: int, racing: list[tuple[int, int]]) -> None:
        self.world.racing.extend((self.child(who), ending) for who, ending in racing)
        self.world.raced = False
        self.world.resize(n)
        self.world.racing.clear()

    @rule(who=WHO, memory=st.sampled_from([0, 10, 11, 15, 21]))
    def child_has_memory(self, who: int, memory: int) -> None:
        self.child(who).memory = memory

    @rule(who=WHO)
    def becomes_unkillable(self, who: int) -> None:
        self.child(who).unkillable = True

    @precondition(lambda self: self.world.accepted)
    @rule(which=st.integers(0, 63), read_first=st.booleans(), interrupt=st.booleans())
    def cancel(self, which: int, read_first: bool, interrupt: bool) -> None:
        if read_first:
            for child in self.world.children.values():
                self.world.read(child)
        self.world.cancel(1 + which % len(self.world.accepted), interrupt)

    @rule(racing=RACING)
    def cancel_unstarted(self, racing: list[tuple[int, int]]) -> None:
        self.world.racing.extend((self.child(who), ending) for who, ending in racing)
        self.world.cancel_unstarted()
        self.world.racing.clear()

    @rule(seconds=st.sampled_from([0.0009765625, 0.25, 0.25, 1.0, GRACE, KILL_TIMEOUT, START_TIMEOUT]))
    def time_passes(self, seconds: float) -> None:
        """A supervisor that is on time: no timer is missed by more than a turn."""
        world = self.world
        end = world.now + seconds
        while (at := world.next_timer()) is not None and at <= end:
            world.advance(max(0.0, at - world.now))
            world.turn()
            assert world.scheduler.next_timer() != at or at > world.now, "a timer does nothing"
        world.advance(max(0.0, end - world.now))

    @rule(seconds=st.sampled_from([LEASE_TTL, 3 * LEASE_TTL]))
    def machine_pauses(self, seconds: float) -> None:
        self.world.pause(seconds)
        self.world.turn()

    @invariant()
    def promises(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


def _search(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        AnyHistory,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_history_breaks_a_promise() -> None:
    _search(400, 40)


@pytest.mark.deep
def test_no_history_breaks_a_promise_in_a_long_search(capsys: pytest.CaptureFixture[str]) -> None:
    with transitions.counted() as seen:
        _search(20_000, 80)
    with capsys.disabled():
        print(f"\n{transitions.table(seen)}")
    assert {pair: seen[pair] for pair in transitions.LEGAL if seen[pair] < 1_000} == {}


# ------------------------------------------------------------ the table of transitions


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
@pytest.mark.parametrize("state", STATES, ids=STATES.get)
def test_what_the_table_does_not_know_is_refused(event: Event, state: int) -> None:
    if (event.name, state) in transitions.LEGAL:
        assert event[state] in STATES
    else:
        with pytest.raises(IllegalTransition, match=f"{event.name} of a task that is {STATES[state]}"):
            event[state]


def test_what_is_final_is_for_ever() -> None:
    assert all(state < FIRST_FINAL for _, state in transitions.LEGAL)
    assert {event[state] for event in EVENTS for state in event} == set(STATES)


def test_a_fault_of_the_scheduler_cannot_end_a_task_twice() -> None:
    world = World(1)
    task = world.submit()
    start(world).step()
    world.turn()
    world.scheduler._tasks[task.key] = task
    with pytest.raises(IllegalTransition, match="cancel of a task that is COMPLETED"):
        world.scheduler.cancel(task.key, world.now)


# ------------------------------------------------------------ examples


def function(estimate_ns: int = 0) -> Function:
    made = Function(1, b"function")
    made.estimate_ns = estimate_ns
    return made


def outcome(world: World, task: Task, item: int | None = None) -> object:
    return world.accepted[task.key].outcomes.get(item)


def outcomes(world: World, task: Task) -> list[object]:
    found = world.accepted[task.key].outcomes
    return [found.get(item) for item in range(task.items)]


def offered(world: World, number: int = 0) -> list[int]:
    """The keys of what a child was offered, in order."""
    return [offer.key for offer in world.children[number].inbox]


def start(world: World, number: int = 0, steps: int = 1) -> Child:
    """Dispatch, and have a child claim its first offer; a chunk's first item begins with the second step."""
    world.turn()
    child = world.children[number]
    for _ in range(steps):
        child.step()
    return child


def wait(world: World, seconds: float) -> None:
    """Time goes by; the supervisor does each timer when it is due."""
    end = world.now + seconds
    while (at := world.scheduler.next_timer()) is not None and at <= end:
        world.advance(max(0.0, at - world.now))
        world.turn()
        assert world.scheduler.next_timer() != at or at > world.now, "a timer does nothing"
    world.advance(end - world.now)


def kills(world: World) -> list[object]:
    return [entry[2] for entry in world.log if entry[0] == "kill"]


def interrupts(world: World) -> int:
    return sum(entry[0] == "interrupt" for entry in world.log)


def last_report(world: World) -> dict[str, object]:
    return world.reports[-1][4]


# Dispatch.


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
    short = function(dispatch.BUDGET_NS // 4)
    for _ in range(8):
        world.submit(short)
    world.turn()
    assert len(offered(world)) == 4


def test_a_chunk_costs_what_all_its_items_cost() -> None:
    world = World(1, slots=16)
    short = function(dispatch.BUDGET_NS // 4)
    world.submit(short, items=3)
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
    for _ in range(8):
        world.submit(function(1))
    world.turn()
    assert min(len(offered(world, number)) for number in range(2)) >= 3


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
    world.submit(function(dispatch.BUDGET_NS))
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
    made.estimate_ns = dispatch.BUDGET_NS // 2  # it was measured since
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
    assert offered(world, 1) == [tasks[6].key, tasks[8].key]
    assert offered(world, 2) == [tasks[5].key, tasks[7].key]
    world.finish()


def test_an_idle_pool_needs_no_timer() -> None:
    world = World(2)
    task = world.submit(timeout=1.0)
    start(world).step()
    wait(world, 100.0)
    assert outcome(world, task) == rules.OK
    assert world.scheduler.next_timer() is None


# Answers.


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


# Deaths.


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
    assert [(task.attempts, task.crashes) for task in (*ahead, later)] == [(1, 0)] * 5


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
    assert (poison.attempts, poison.crashes) == (1, 1)
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
    assert task.crashes == 1
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
    assert (task.attempts, task.crashes) == (1, 1)
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


# Timeouts.


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
    assert (task.attempts, task.crashes) == (1, 0)


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


# The grace is the interrupted task's own.


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
    assert (second.attempts, second.crashes) == (1, 0)
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


# Cancel.


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
    child = start(world, steps=2)
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


# Cancel all that has not begun.


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
    ahead, queued = world.submit(function(1), items=3), world.submit(function(dispatch.BUDGET_NS), items=2)
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


# Children.


def test_a_child_that_takes_too_long_to_start_is_killed() -> None:
    world = World(1, start=False)
    wait(world, START_TIMEOUT - 0.0625)
    assert kills(world) == []
    wait(world, 0.0625)
    assert kills(world) == ["start"]


def test_each_child_has_its_own_deadline_to_start() -> None:
    world = World(1, start=False)
    wait(world, 1.0)
    world.spawn()
    wait(world, START_TIMEOUT - 1.0)
    assert kills(world) == ["start"]
    wait(world, 1.0)
    assert kills(world) == ["start", "start"]


def test_an_idle_child_that_is_killed_gets_no_more_offers() -> None:
    world = World(1)
    world.scheduler.kill(world.children[0].seat, "corrupt", world.now)
    world.submit()
    world.turn()
    assert not offered(world)


def test_a_child_that_is_ready_in_time_has_no_deadline_any_more() -> None:
    world = World(1)
    wait(world, 10 * START_TIMEOUT)
    assert kills(world) == []


def test_a_child_is_killed_once() -> None:
    world = World(1)
    seat = world.children[0].seat
    world.scheduler.kill(seat, "lease" if world.children[0].frozen else "corrupt", world.now)
    world.scheduler.kill(seat, "grace", world.now)
    assert kills(world) == ["corrupt"]
    assert (seat.state, seat.kill_cause) == (DYING, "corrupt")


def test_an_unkillable_child_is_given_up_and_its_task_never_retried() -> None:
    world = World(1, slots=16)
    stuck = world.submit(function(1), timeout=1.0, crash_retries=9)
    other = world.submit(function(1))
    child = start(world)
    child.unkillable = child.frozen = True
    wait(world, 2 * LEASE_TTL)
    assert len(kills(world)) == 1
    wait(world, KILL_TIMEOUT)
    assert child.seat.number not in world.children
    assert outcome(world, stuck) in (rules.CRASHED, rules.TIMED_OUT)
    world.scheduler.child_died(child.seat, Death(1, 9, None, "signal"))  # when the file system comes back
    world.finish()
    assert outcome(world, other) == rules.OK
    assert stuck.attempts == 1


def test_a_task_in_an_unkillable_child_crashes_for_that_reason() -> None:
    world = World(1)
    task = world.submit(crash_retries=9)
    child = start(world)
    child.unkillable = child.frozen = True
    wait(world, 2 * LEASE_TTL + KILL_TIMEOUT)
    assert outcome(world, task) == rules.CRASHED
    how = {"pid": 4000, "signal": 9, "exit_code": None, "cause": "unkillable"}
    assert last_report(world) == {**how, "attempt": 1, "attempts": 10, "unclaimed_deaths": 0}


def test_a_dead_child_gets_no_offer_and_waits_to_be_reaped() -> None:
    world = World(2, slots=16)
    running = world.submit(function(1))
    child = start(world)
    world.die(child)
    world.notice(child)
    others = [world.submit(function(1)) for _ in range(8)]
    world.turn()
    assert not offered(world, 0)
    wait(world, 10 * (LEASE_TTL + KILL_TIMEOUT))
    assert kills(world) == []
    assert outcome(world, running) is None, "only the report says how it died"
    world.reap(child, signal=11)
    assert outcome(world, running) == rules.CRASHED
    world.finish()
    assert [outcome(world, task) for task in others] == [rules.OK] * 8


def test_an_idle_child_that_is_dead_gets_no_offer() -> None:
    world = World(1)
    world.die(world.children[0])
    world.notice(world.children[0])
    world.submit()
    world.turn()
    assert not offered(world)
    world.check()


@pytest.mark.parametrize("ready", [True, False])
def test_a_killed_child_that_is_dead_is_not_given_up(ready: bool) -> None:
    world = World(1, start=ready)
    child = world.children[0]
    world.scheduler.kill(child.seat, "corrupt", world.now)
    world.die(child)
    world.notice(child)
    for _ in range(100):
        world.now += LEASE_TTL / 4  # not `advance`, which would reap it
        world.turn()
    assert child.seat.number in world.children


def test_a_cancel_in_a_child_that_dies_needs_no_grace() -> None:
    world = World(1)
    task = world.submit()
    child = start(world)
    child.unkillable = True
    world.scheduler.kill(child.seat, "corrupt", world.now)
    assert world.cancel(task.key)
    wait(world, KILL_TIMEOUT)  # which sees that no timer comes again and again
    assert outcome(world, task) == rules.CANCELLED


# Pauses of the machine.


@pytest.mark.parametrize("before", [0.0, 1.0, KILL_TIMEOUT - 0.25])
def test_a_pause_is_not_taken_from_the_time_that_a_killed_child_has(before: float) -> None:
    world = World(1)
    child = world.children[0]
    child.unkillable = True
    world.scheduler.kill(child.seat, "corrupt", world.now)
    wait(world, before)
    world.pause(3 * KILL_TIMEOUT)
    world.turn()
    assert child.seat.number in world.children
    wait(world, KILL_TIMEOUT - before - 0.125)
    assert child.seat.number in world.children
    wait(world, 0.125 + LEASE_TTL / 4)
    assert child.seat.number not in world.children


def test_a_pause_is_not_taken_from_the_time_that_a_child_has_to_start() -> None:
    world = World(1, start=False)
    wait(world, START_TIMEOUT / 2)
    world.pause(3 * START_TIMEOUT)
    world.turn()
    wait(world, START_TIMEOUT / 2 - 0.125)
    assert kills(world) == []
    wait(world, 0.125 + LEASE_TTL / 4)
    assert kills(world) == ["start"]


def test_a_pause_that_ends_just_after_a_deadline_is_noticed() -> None:
    world = World(1)
    child = world.children[0]
    world.scheduler.kill(child.seat, "corrupt", world.now)
    world.pause(KILL_TIMEOUT + 0.125)
    world.turn()
    assert child.seat.number in world.children


def test_nobody_looks_once_nobody_starts_or_dies_or_works() -> None:
    world = World(1)
    world.scheduler.kill(world.children[0].seat, "corrupt", world.now)
    world.bury()
    world.children[1].step()
    world.turn()
    wait(world, START_TIMEOUT)
    assert world.scheduler.next_timer() is None


def test_looks_are_told_of_while_nobody_is_dying() -> None:
    world = World(2)
    world.submit()
    start(world)
    begun = len(world.looks)
    assert begun > 0
    wait(world, LEASE_TTL)
    assert len(world.looks) == begun + 4
    world.die(world.children[1])
    world.notice(world.children[1])
    world.turn()
    world.now += LEASE_TTL / 4
    world.turn()
    assert len(world.looks) == begun + 4


# What is known of a function.


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


# What the scheduler and others must agree on.


def test_the_statuses_are_those_of_the_wire() -> None:
    names = ["OK", "ERROR", "UNSERIALIZABLE", "EXITED", "INTERRUPTED", "CRASHED", "TIMED_OUT", "CANCELLED"]
    assert [getattr(rules, name) for name in names] == [getattr(codec, name) for name in names]


def test_a_child_can_say_the_first_five_statuses_and_no_others() -> None:
    assert {rules.OK, rules.ERROR, rules.UNSERIALIZABLE, rules.EXITED, rules.INTERRUPTED} == set(
        range(rules.INTERRUPTED + 1)
    )
    assert min(rules.CRASHED, rules.TIMED_OUT, rules.CANCELLED) > rules.INTERRUPTED


def test_the_claim_states_are_those_of_the_page() -> None:
    assert (rules.CLAIM_OFFERED, rules.CLAIM_CLAIMED, rules.CLAIM_REVOKED) == (
        _native.OFFERED,
        _native.CLAIMED,
        _native.REVOKED,
    )


def test_the_orderly_exits_are_those_of_the_child() -> None:
    assert deaths.ORDERLY_EXITS == (0, EXIT_CHANNEL_LOST)


def test_a_slot_fits_the_byte_it_travels_in() -> None:
    assert WorkerOptions(n=1).slots <= codec.MAX_SLOTS == 256
