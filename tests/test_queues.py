"""The order of starts: whose turn it is, what is next in a queue, and how many may start."""

import math
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mpworker.supervisor import wheel
from mpworker.supervisor.lifecycle import CANCELLED, OFFERED, QUEUED
from mpworker.supervisor.limiter import Bucket
from mpworker.supervisor.queues import DEAD_MAX, LANES_MAX, Queues
from mpworker.supervisor.registry import DetailedTask, Task, TaskOptions
from mpworker.supervisor.wheel import MostBehind, turns

# ------------------------------------------------------------ whose turn it is

WEIGHTS = st.lists(st.integers(1, 20), min_size=1, max_size=8)
# The same sets each time: one in 23,000 is known to miss the bound, see the wheel.
unhurried = settings(deadline=None, max_examples=200, derandomize=True)


def test_so_many_rules_are_kept_and_no_more() -> None:
    for weight in range(1, wheel._RULES_MAX + 10):
        turns({"a": 1, "b": weight}, {})
        assert 0 < len(wheel._rules) <= wheel._RULES_MAX
    known = len(wheel._rules)
    turns({"a": weight, "b": 1}, {})
    assert len(wheel._rules) == known  # the same weights, whoever has them


def bounds(weights: dict[int, int]) -> dict[int, int]:
    """Starts of others that each may have to wait for."""
    whole = sum(weights.values())
    return {key: math.ceil(whole / weight) for key, weight in weights.items()}


@example([3, 5, 8, 1, 8, 10, 3, 2])
@unhurried
@given(WEIGHTS)
def test_between_two_starts_of_a_queue_there_are_at_most_its_share_of_others(sizes: list[int]) -> None:
    weights = dict(enumerate(sizes))
    wheel = turns(weights, {})
    last: dict[int, int] = {}
    for slot in range(5 * sum(sizes)):
        key = wheel.peek(weights)
        wheel.take()
        assert slot - last.get(key, slot) - 1 <= bounds(weights)[key]
        last[key] = slot


@unhurried
@given(WEIGHTS)
def test_over_many_turns_each_queue_gets_its_weight(sizes: list[int]) -> None:
    weights = dict(enumerate(sizes))
    wheel = turns(weights, {})
    starts: Counter[int] = Counter()
    for _ in range(10 * sum(sizes)):
        starts[wheel.peek(weights)] += 1
        wheel.take()
    assert all(abs(starts[key] - 10 * weight) <= 3 for key, weight in weights.items())


@unhurried
@given(WEIGHTS, st.data())
def test_a_queue_with_work_keeps_its_turns_though_others_come_and_go(sizes: list[int], data: st.DataObject) -> None:
    weights = dict(enumerate(sizes))
    wheel = turns(weights, {})
    others = 0
    for _ in range(3 * sum(sizes)):
        ready = {0} | data.draw(st.sets(st.sampled_from(sorted(weights))))
        key = wheel.peek(ready)
        wheel.take()
        assert key in ready
        others = 0 if key == 0 else others + 1
        assert others <= bounds(weights)[0]


@unhurried
@given(WEIGHTS, WEIGHTS, st.integers(0, 60))
def test_who_has_waited_goes_on_waiting_from_there_when_weights_change(
    before: list[int], after: list[int], slots: int
) -> None:
    after = (after * len(before))[: len(before)]
    wheel = turns(dict(enumerate(before)), {})
    for _ in range(slots):
        wheel.peek(range(len(before)))
        wheel.take()
    ages = wheel.ages()
    wheel = turns(dict(enumerate(after)), ages)
    firsts: dict[int, int] = {}
    for slot in range(3 * sum(after)):
        firsts.setdefault(wheel.peek(range(len(after))), slot)
        wheel.take()
    assert set(firsts) == set(range(len(after)))  # none is lost
    assert all(firsts[key] <= bounds(dict(enumerate(after)))[key] + len(after) for key in firsts)


def test_a_wheel_that_is_made_anew_at_each_start_starves_nobody() -> None:
    weights = {"heavy": 5, "light": 1}
    ages: dict[str, int] = {}
    starts: Counter[str] = Counter()
    for _ in range(60):
        wheel = turns(weights, ages)
        starts[wheel.peek(weights)] += 1
        wheel.take()
        ages = wheel.ages()
    assert starts["light"] >= 60 // 7


# ------------------------------------------------------------ how many may start


@given(
    rate=st.sampled_from([0.1, 0.5, 1.0, 3.0, 250.0]),
    burst=st.integers(1, 6),
    moves=st.lists(st.tuples(st.sampled_from(["wait", "offer", "claim", "revoke"]), st.floats(0, 2)), max_size=80),
)
def test_no_window_has_more_starts_than_the_bucket_allows(
    rate: float, burst: int, moves: list[tuple[str, float]]
) -> None:
    bucket = Bucket(rate, burst, 0.0)
    now = 0.0
    starts: list[float] = []
    for move, amount in moves:
        if move == "wait":
            now += amount / rate
        elif move == "offer" and bucket.free_at(now) <= now:
            bucket.unclaimed += 1
        elif move == "claim" and bucket.unclaimed:
            bucket.unclaimed -= 1
            bucket.started(now)
            starts.append(now)
        elif move == "revoke" and bucket.unclaimed:
            bucket.unclaimed -= 1
    for index, begin in enumerate(starts):
        for count, end in enumerate(starts[index:], start=1):
            assert count <= burst + rate * (end - begin) + 1e-6


@given(rate=st.floats(0.05, 1000), burst=st.integers(1, 10), steps=st.lists(st.floats(0.01, 30), max_size=30))
def test_with_work_waiting_it_starts_no_fewer_than_that_less_one(rate: float, burst: int, steps: list[float]) -> None:
    bucket = Bucket(rate, burst, 0.0)
    now, starts = 0.0, 0
    for step in [0.0, *steps]:
        end = now + step / rate
        while (now := max(now, bucket.free_at(now))) <= end:  # whoever waits is woken when there is a token
            bucket.started(now)
            starts += 1
        now = end
        assert starts >= burst + math.floor(rate * now * (1 - 1e-9)) - 1


def test_a_bucket_says_when_it_has_the_next_token() -> None:
    bucket = Bucket(0.1, 1, 100.0)
    assert bucket.free_at(100.0) <= 100.0
    bucket.started(100.0)
    assert bucket.free_at(100.0) == 110.0
    bucket.change(1.0, 1, 105.0)  # half a token was there by then
    assert bucket.free_at(105.0) == 105.5


def test_while_all_tokens_are_out_it_says_when_one_may_be_back_at_the_earliest() -> None:
    bucket = Bucket(2.0, 1, 0.0)
    bucket.unclaimed = 1
    assert bucket.free_at(7.0) == 7.5
    bucket.unclaimed = 0
    bucket.started(7.25)
    assert bucket.free_at(7.25) == 7.75


# ------------------------------------------------------------ what is next


class Model:
    """The same by brute force: a list, looked through from end to end."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Task, tuple[int, ...]]] = []
        self.running: list[Task] = []
        self.paused: set[str] = set()
        self.max_running: dict[str, int | None] = {}

    def may_start(self, task: Task) -> bool:
        name = task.options.queue
        of_queue = sum(each.options.queue == name for each in self.running)
        of_key = sum(each.concurrency_key == task.concurrency_key for each in self.running)
        limit = self.max_running.get(name)
        return (
            name not in self.paused
            and (limit is None or of_queue < limit)
            and (not task.concurrency_key or of_key < task.concurrency)
        )

    def firsts(self) -> dict[str, Task]:
        """What each queue would start next."""
        found: dict[str, Task] = {}
        for task, _ in sorted(self.waiting, key=lambda each: each[1]):
            if self.may_start(task):
                found.setdefault(task.options.queue, task)
        return found


NAMES = ("default", "a", "b")
OPTIONS = [
    TaskOptions(queue=queue, priority=priority, weight=weight)
    for queue in NAMES
    for priority in (-1, 0)
    for weight in (1, 4)
]


class AnyOrder(RuleBasedStateMachine):
    """Tasks of all kinds come, are offered, come back and end; the model says each time what is next."""

    @initialize(adopted=st.integers(0, 3))
    def begin(self, adopted: int) -> None:
        self.model = Model()
        self.keys = 0
        plain = next(each for each in OPTIONS if each.queue == "default" and not each.priority and each.weight == 1)
        fifo = deque(self.make(plain, None) for _ in range(adopted))
        self.queues = Queues()
        self.queues.adopt(fifo, 0)
        self.offers: list[tuple[Task, tuple[int, ...]]] = []

    def make(self, options: TaskOptions, key: tuple[str, int] | None) -> Task:
        self.keys += 1
        if key is None:
            task = Task(self.keys, None, options, b"")
        else:
            task = DetailedTask(self.keys, None, options, b"")
            task.concurrency_key, task.concurrency = key
        self.model.waiting.append((task, (options.priority, -options.weight, self.keys)))
        return task

    @rule(
        options=st.sampled_from(OPTIONS), key=st.sampled_from([None, None, ("x", 1), ("y", 2)]), count=st.integers(1, 4)
    )
    def submit(self, options: TaskOptions, key: tuple[str, int] | None, count: int) -> None:
        for _ in range(count):
            self.queues.append(self.make(options, key))

    @rule(times=st.integers(1, 5))
    def offer(self, times: int) -> None:
        for _ in range(times):
            task = self.queues.first(0.0)
            firsts = self.model.firsts()
            if task is None:
                assert not firsts
                return
            assert firsts[task.options.queue] is task
            self.queues.take()
            task.state = OFFERED
            self.queues.offered(task)
            entry = next(each for each in self.model.waiting if each[0] is task)
            self.model.waiting.remove(entry)
            self.model.running.append(task)
            self.offers.append(entry)

    @precondition(lambda self: self.offers)
    @rule(which=st.integers(0, 20), back=st.booleans())
    def offer_ends(self, which: int, back: bool) -> None:
        entry = self.offers.pop(which % len(self.offers))
        task = entry[0]
        self.model.running.remove(task)
        self.queues.over(task)
        if back:
            task.state = QUEUED
            self.queues.put_back(task)
            self.model.waiting.append(entry)
        else:
            task.state = CANCELLED

    @precondition(lambda self: self.model.waiting)
    @rule(which=st.integers(0, 200))
    def cancel(self, which: int) -> None:
        task, _ = self.model.waiting.pop(which % len(self.model.waiting))
        task.state = CANCELLED
        self.queues.dropped(task)

    @rule(name=st.sampled_from(NAMES), paused=st.booleans())
    def pause(self, name: str, paused: bool) -> None:
        self.queues.pause([name], paused)
        (self.model.paused.add if paused else self.model.paused.discard)(name)

    @rule(
        name=st.sampled_from(NAMES),
        weight=st.integers(1, 5),
        limit=st.sampled_from([None, None, 1, 3]),
    )
    def configure(self, name: str, weight: int, limit: int | None) -> None:
        self.queues.configure(name, weight, limit, None, 1, 0.0)
        self.model.max_running[name] = limit

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "model"):
            assert len(self.queues) == len(self.model.waiting)
            states: dict[str, dict[str, Any]] = self.queues.states()
            for name, state in states.items():
                assert state["queued"] == sum(task.options.queue == name for task, _ in self.model.waiting)
                assert state["running"] == sum(task.options.queue == name for task in self.model.running)

    def teardown(self) -> None:
        """Whatever waits is started in the end, and nothing is left of it."""
        if not hasattr(self, "model"):
            return
        for name in NAMES:
            self.queues.configure(name, 1, None, None, 1, 0.0)
            self.queues.pause([name], False)
            self.model.max_running[name] = None
        self.model.paused.clear()
        while self.model.waiting or self.offers:
            before = len(self.model.waiting)
            self.offer(10)
            assert self.offers or len(self.model.waiting) < before
            while self.offers:
                self.offer_ends(0, False)
        assert self.queues.first(0.0) is None
        assert not self.queues._keys
        assert not self.queues._ready


def test_what_is_next_is_what_a_list_says() -> None:
    run_state_machine_as_test(AnyOrder, settings=settings(max_examples=50, stateful_step_count=40, deadline=None))


def test_an_offer_that_comes_back_costs_its_queue_no_turn() -> None:
    a, b = (TaskOptions(queue=name) for name in "ab")
    queues = Queues()
    for key in range(6):
        queues.append(Task(key, None, a if key % 2 else b, b""))
    order = []
    for step in range(6):
        task = queues.first(0.0)
        assert task is not None
        queues.take()
        queues.offered(task)
        if step == 0:
            queues.over(task)
            queues.put_back(task)
            again = queues.first(0.0)
            assert again is task
            queues.take()
            queues.offered(task)
        order.append(task.options.queue)
    assert sorted(order[:2]) == sorted(order[2:4]) == sorted(order[4:]) == ["a", "b"]


def test_who_waits_for_a_key_is_not_forgotten_when_who_was_let_in_is_cancelled() -> None:
    options = TaskOptions(queue="a")
    queues = Queues()
    tasks = [DetailedTask(key, None, options, b"") for key in range(3)]
    for task in tasks:
        task.concurrency_key, task.concurrency = "x", 1
        queues.append(task)
    assert queues.first(0.0) is tasks[0]
    queues.take()
    queues.offered(tasks[0])
    assert queues.first(0.0) is None
    queues.over(tasks[0])
    tasks[1].state = CANCELLED
    queues.dropped(tasks[1])
    assert queues.first(0.0) is tasks[2]
    queues.take()
    assert not queues._keys


def test_tasks_that_end_in_line_do_not_stay_in_it() -> None:
    queues = Queues()
    queues.pause(["a"], True)
    options = TaskOptions(queue="a")
    for key in range(20 * DEAD_MAX):
        task = Task(key, None, options, b"")
        queues.append(task)
        task.state = CANCELLED
        queues.dropped(task)
    assert len(queues._queues["a"].lanes[0, -1]) <= 2 * DEAD_MAX


def test_priorities_that_are_used_once_are_not_kept() -> None:
    queues = Queues()
    for key in range(5 * LANES_MAX):
        queues.append(Task(key, None, TaskOptions(queue="a", priority=key), b""))
        if key % 7:
            assert queues.first(0.0) is not None
            queues.take()
    waiting = len(queues)
    assert len(queues._lanes) <= LANES_MAX
    assert len(queues._queues["a"].lanes) <= waiting + LANES_MAX
    order = []
    while (task := queues.first(0.0)) is not None:
        queues.take()
        order.append(task.key)
    assert len(order) == waiting
    assert order == sorted(order)


def test_an_offer_comes_back_to_its_place_though_its_line_was_forgotten() -> None:
    queues = Queues()
    options = TaskOptions(queue="a", priority=5)
    first, second, third = (Task(key, None, options, b"") for key in range(3))
    for task in (first, second, third):
        queues.append(task)
    for _ in range(2):
        queues.first(0.0)
        queues.take()
    queues.first(0.0)
    queues.take()
    queues._forget_lanes(queues._queues["a"])
    queues.put_back(second)
    queues.append(Task(3, None, options, b""))
    queues.put_back(first)
    order = []
    while (task := queues.first(0.0)) is not None:
        queues.take()
        order.append(task.key)
    assert order == [0, 1, 3]


def test_who_has_waited_under_other_weights_goes_on_waiting_from_there() -> None:
    queues = Queues()
    for name, weight in (("often", 9), ("seldom", 1)):
        queues.configure(name, weight, None, None, 1, 0.0)
        for number in range(60):
            queues.append(Task(number, None, TaskOptions(queue=name), b""))
    started = []
    for number in range(40):
        queues.configure("other", 1 + number % 2, None, None, 1, 0.0)  # which nothing comes to
        task = queues.first(0.0)
        assert task is not None
        queues.take()
        queues.offered(task)
        started.append(task.options.queue)
    assert started.count("seldom") >= 40 // 13


# ------------------------------------------------------------ weights for which no order is found

UNKNOWN = {number: 1 + (number * 37) % 100 for number in range(50)}


def test_where_no_order_is_found_who_is_most_behind_goes_next() -> None:
    order = turns(UNKNOWN, {})
    assert isinstance(order, MostBehind)
    last: dict[int, int] = {}
    starts: Counter[int] = Counter()
    whole = sum(UNKNOWN.values())
    for slot in range(4 * whole):
        key = order.peek(UNKNOWN)
        order.take()
        starts[key] += 1
        assert slot - last.get(key, slot) - 1 <= 2 * bounds(UNKNOWN)[key]
        last[key] = slot
    assert all(abs(starts[key] - 4 * weight) <= 1 for key, weight in UNKNOWN.items())


def test_who_had_nothing_to_do_has_no_claim_to_what_others_had() -> None:
    order = MostBehind(UNKNOWN, {})
    busy = [key for key in UNKNOWN if key]
    for _ in range(2000):
        order.peek(busy)
        order.take()
    found = []
    for _ in range(100):
        found.append(order.peek(UNKNOWN))
        order.take()
    assert found.count(0) == 1, "the queue of weight 1 has work again"
    assert order.ages()[0] < 100


def test_who_alone_has_work_need_not_wait_for_a_far_slot_of_his_own() -> None:
    weights = {"light": 1, "heavy": 3}
    wheel, other = turns(weights, {}), turns(weights, {})
    for _ in range(7):
        assert wheel.peek(["light"]) == "light"
        wheel.take()
    for _ in range(12):
        assert wheel.peek(weights) == other.peek(weights), "meanwhile it stood still"
        wheel.take()
        other.take()
    assert wheel.ages()["heavy"] <= 1


# ------------------------------------------------------------ claims that a rate waits for


@pytest.mark.parametrize("rate_of", ["all", "default"])
def test_a_claim_that_does_not_come_is_looked_for_less_and_less_often(rate_of: str) -> None:
    queues = Queues()
    if rate_of == "all":
        queues.limit_rate(1_000_000.0, 1, 0.0)
    else:
        queues.configure(rate_of, 1, None, 1_000_000.0, 1, 0.0)
    tasks = [Task(number, None, TaskOptions(), b"") for number in range(3)]
    for task in tasks:
        queues.append(task)

    def look(now: float) -> float:
        queues.wake_at = None
        for _ in range(5):  # as for each child, in one turn
            assert queues.first(now) is None
        assert queues.wake_at is not None
        return queues.wake_at

    assert queues.first(0.0) is tasks[0]
    queues.take()
    queues.offered(tasks[0])
    assert look(0.0) <= 0.0002
    looks = [0.0]
    while looks[-1] < 1.0:
        looks.append(look(looks[-1]))
    assert sum(at < 0.01 for at in looks) >= 6, "often at first, however many children are asked for in a turn"
    assert len(looks) < 200
    now = looks[-1]
    queues.claimed(tasks[0], now)
    assert queues.first(now + 0.001) is tasks[1]
    queues.take()
    queues.offered(tasks[1])
    assert look(now + 0.001) <= now + 0.0012, "another one is looked for soon"
