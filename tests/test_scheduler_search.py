"""The scheduler under virtual time: a machine that searches all histories for a broken promise."""

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
from scheduler_world import GRACE, KEYS, KILL_TIMEOUT, LEASE_TTL, QUEUES, START_TIMEOUT, Child, World

from mpworker.supervisor import effects as rules
from mpworker.supervisor.backoff import Backoff
from mpworker.supervisor.registry import Function

WHO = st.integers(0, 7)
OPTIONS = st.fixed_dictionaries(
    {
        "timeout": st.sampled_from([None, 0.25, 1.0]),
        "retries": st.sampled_from([0, 0, 1, 2]),
        "crash_retries": st.integers(0, 2),
        "backoff": st.sampled_from([None, None, Backoff(0.25, 4.0, 2.0, "none"), Backoff(1.0, 2.0, 8.0, "equal")]),
    }
)
ORDERED = st.fixed_dictionaries(
    {
        "queue": st.sampled_from(QUEUES),
        "priority": st.integers(-1, 1),
        "weight": st.integers(1, 2),
        "concurrency_key": st.sampled_from(["", "", *KEYS]),
        "concurrency": st.sampled_from([None, None, 2]),
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

    @rule(retries=st.integers(0, 1), steps=st.integers(1, 6), takes_it=st.booleans())
    def a_task_is_late(self, retries: int, steps: int, takes_it: bool) -> None:
        """And takes its interrupt, or not yet."""
        self.world.submit(self.functions[1], timeout=0.25, retries=retries)
        self.world.turn()
        for child in list(self.world.children.values()):
            for _ in range(steps):
                if not child.inside:
                    child.step()
        self.world.advance(0.25)
        self.world.turn()
        if takes_it:
            for child in list(self.world.children.values()):
                child.take_signal()
        self.world.turn()

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
