"""The fan-out of results against a plain model, and at the edges that real processes seldom reach."""

import gc
import json
import threading
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from concurrently import GUARD, eventually
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mpworker.future import TaskFuture, in_queue
from mpworker.ipc import codec
from mpworker.outcomes import BROKEN, LOST, final_status
from mpworker.results import POLICIES, Subscription
from mpworker.subscribers import Fanout, subscribe

CODES = {codec.OK: "completed", codec.ERROR: "failed", codec.CANCELLED: "cancelled", codec.TIMED_OUT: "timed_out"}
QUEUES = ("default", "mail")


class Client:
    """What the fan-out needs of a client."""

    prefix = "c-"

    make_future = TaskFuture
    recurs = False
    may_wait = True

    def __init__(self) -> None:
        self.pending: dict[int, Any] = {}
        self.take_out: Any = self.pending.pop
        self.fanout: Fanout | None = None
        self.over = False
        self.room = threading.Event()
        self.room.set()
        self.told: list[str] = []  # of holds
        self.listens = False
        self.queues = SimpleNamespace(look_for=lambda name: None)
        self.background = SimpleNamespace(watched=0, need=lambda: None, look=lambda: None)

    def _push(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> bool:
        assert kind == codec.REQUEST
        if self.room.is_set():
            said = json.loads(data)
            if said["verb"] == "listen":
                self.listens = said["on"]
            else:
                self.told.append(said["verb"])
        return self.room.is_set()

    def request(self, message: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        self.told.append("asked" if self.listens else "asked too early")
        return {}

    def _fits(self, size: int) -> bool:
        return self.room.is_set()

    def when(self, test: Any) -> Any:
        return test

    def wait_for(self, target: Any, timeout: float | None, need: int | None = None) -> bool:
        if isinstance(target, Subscription):
            return target.ready
        assert self.room.wait(GUARD)
        return True

    def is_over(self) -> bool:
        return self.over

    def is_fork(self) -> bool:
        return False

    def _ring(self) -> None: ...
    def wake_everybody(self) -> None: ...
    def refuse_if_closed(self) -> None: ...
    def refuse_if_forked(self) -> None: ...

    def settle(self, key: int, queue: str = "default", status: int = codec.OK, times: int = 1) -> None:
        """A task ends; its record is looked at more than once if the reader is interrupted."""
        future = self.pending[key] = in_queue(queue, self, key, "f")  # type: ignore[arg-type]
        future.settle(status, b"")
        for _ in range(times):
            self.take_out(key, None)

    def subscribe(self, buffer: int = 4, policy: str = "drop_newest", queues: Any = None, statuses: Any = None) -> Any:
        return subscribe(self, buffer, policy, queues, statuses)  # type: ignore[arg-type]


def keys_of(subscription: Subscription) -> list[int]:
    found = []
    while True:
        try:
            result = subscription.get(0)
        except TimeoutError:
            return found
        if result is None:
            return found
        found.append(int(result.task_id.removeprefix("c-")))


@dataclass
class Model:
    """A subscription as anybody would write it."""

    size: int
    policy: str
    queues: list[str] | None
    statuses: list[str] | None
    waiting: deque[int] = field(default_factory=deque)
    dropped: int = 0
    full: bool = False

    def offer(self, key: int, queue: str, status: str) -> None:
        if queue not in (self.queues or QUEUES) or status not in (self.statuses or CODES.values()):
            return
        if len(self.waiting) < self.size or self.policy == "block":
            self.waiting.append(key)
            self.full = self.full or (self.policy == "block" and len(self.waiting) >= self.size)
        else:
            self.dropped += 1
            if self.policy == "drop_oldest":
                self.waiting.popleft()
                self.waiting.append(key)

    def take(self) -> int | None:
        key = self.waiting.popleft() if self.waiting else None
        if len(self.waiting) <= self.size // 2:
            self.full = False
        return key


class AnySubscriptions(RuleBasedStateMachine):
    """Subscriptions come, take, close and are dropped while tasks end."""

    @initialize()
    def begin(self) -> None:
        self.client = Client()
        self.keys = 0
        self.pairs: list[tuple[Subscription, Model]] = []

    @rule(
        size=st.integers(1, 5),
        policy=st.sampled_from(POLICIES),
        queues=st.sampled_from([None, None, ["mail"]]),
        statuses=st.sampled_from([None, None, ["failed"], ["completed", "cancelled"]]),
    )
    def subscribe(self, size: int, policy: str, queues: Any, statuses: Any) -> None:
        subscription = self.client.subscribe(size, policy, queues, statuses)
        self.pairs.append((subscription, Model(size, policy, queues, statuses)))

    @rule(
        count=st.integers(1, 7),
        queue=st.sampled_from(QUEUES),
        status=st.sampled_from(sorted(CODES)),
        times=st.integers(1, 2),
    )
    def tasks_end(self, count: int, queue: str, status: int, times: int) -> None:
        for _ in range(count):
            self.keys += 1
            self.client.settle(self.keys, queue, status, times)
            for _, model in self.pairs:
                model.offer(self.keys, queue, CODES[status])

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 9), count=st.integers(1, 4))
    def take(self, which: int, count: int) -> None:
        subscription, model = self.pairs[which % len(self.pairs)]
        for _ in range(count):
            key = model.take()
            if key is None:
                with pytest.raises(TimeoutError):
                    subscription.get(0)
            else:
                result = subscription.get(0)
                assert result is not None
                assert result.task_id == f"c-{key}"

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 9), closes=st.booleans())
    def leave(self, which: int, closes: bool) -> None:
        subscription, _ = self.pairs.pop(which % len(self.pairs))
        if closes:
            subscription.close()
            assert subscription.get() is None
            self.client.settle(0)  # and it takes in no more
            assert not subscription._buffer
            for _, model in self.pairs:
                model.offer(0, "default", "completed")

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "client"):
            return
        client = self.client
        assert not client.pending
        for subscription, model in self.pairs:
            assert subscription.dropped == model.dropped
            assert [int(each.task_id[2:]) for each in subscription._buffer] == list(model.waiting)
        wanted = any(model.full for _, model in self.pairs)
        assert (client.told[-1:] == ["hold"]) == wanted
        assert client.listens == bool(self.pairs)
        assert client.background.watched == sum(model.policy == "block" for _, model in self.pairs)
        assert (client.take_out == client.pending.pop) == (not self.pairs)


def test_every_subscription_sees_what_a_list_says() -> None:
    run_state_machine_as_test(
        AnySubscriptions, settings=settings(max_examples=200, stateful_step_count=50, deadline=None)
    )


def test_every_outcome_has_a_word() -> None:
    assert {code: final_status(code) for code in CODES} == CODES
    others = (codec.UNSERIALIZABLE, codec.EXITED, codec.CRASHED, LOST, BROKEN)
    assert {final_status(code) for code in others} == {"failed"}


def test_what_is_no_task_is_not_shown() -> None:
    client = Client()
    subscription = client.subscribe()
    client.pending[1] = object()  # a part of a map
    client.take_out(1, None)
    client.settle(2)
    assert keys_of(subscription) == [2]
    assert not client.pending


def test_one_thread_alone_gets_a_result(hasty: None) -> None:
    # Both settle the same records, as a leader does from whom the lead was taken.
    client = Client()
    subscriptions = [client.subscribe(100_000), client.subscribe(100_000, "drop_oldest")]
    count = 3000
    for key in range(1, count):
        future: Any = TaskFuture(client, key, "f")  # type: ignore[arg-type]
        future.settle(codec.OK, b"")
        client.pending[key] = future
    threads = [
        threading.Thread(target=lambda: [client.take_out(key, None) for key in range(1, count)]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    first, second = map(keys_of, subscriptions)
    assert sorted(first) == list(range(1, count))
    assert first == second


def announce(client: Client, key: int, left_out: int = 0) -> None:
    assert client.fanout is not None
    client.fanout.run_begins(key, left_out, json.dumps({"name": "it", "queue": "default"}).encode())


def test_one_thread_alone_gets_a_run_however_late_another_is(hasty: None) -> None:
    client = Client()
    subscriptions = [client.subscribe(100_000), client.subscribe(100_000, "drop_oldest")]
    fanout: Any = client.fanout
    count = 2000

    def settle_each() -> None:
        for key in range(1, count):
            announce(client, key)
            fanout.run_ends(key, codec.OK, b"")

    threads = [threading.Thread(target=settle_each) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    announce(client, 1)  # so late is who was interrupted in it
    fanout.all_runs_end(codec.CANCELLED, b"")
    first, second = map(keys_of, subscriptions)
    assert sorted(first) == list(range(1, count))
    assert first == second


def test_what_was_not_told_of_counts_as_dropped_once_for_each() -> None:
    client = Client()
    first = client.subscribe(2)
    announce(client, 5, 4)
    second = client.subscribe(2)
    announce(client, 9, 7)
    announce(client, 9, 7)  # an interrupt
    announce(client, 5, 4)
    third = client.subscribe(2)
    assert client.fanout is not None
    assert [each.dropped for each in (first, second, third)] == [7, 3, 0]
    assert client.fanout.dropped == 7
    assert "7 dropped" in repr(first)


def test_where_tasks_recur_the_supervisor_knows_who_listens_and_somebody_reads() -> None:
    client = Client()
    client.recurs = True
    stream = client.subscribe()
    assert client.told == ["asked"]  # an answer comes after what was said before it is heard
    assert client.background.watched == 1
    client.may_wait = False  # an event loop
    other = client.subscribe()
    assert client.told == ["asked"]
    stream.close()
    assert client.listens
    other.close()
    assert not client.listens
    assert client.background.watched == 0


def test_the_end_ends_runs_too() -> None:
    client = Client()
    stream = client.subscribe(10)
    for key in (1, 2, 3):
        announce(client, key)
    fanout: Any = client.fanout
    fanout.run_ends(2, codec.OK, b"")
    fanout.all_runs_end(LOST, b"")
    fanout.run_ends(1, codec.OK, b"")
    found = [stream.get(0) for _ in range(3)]
    assert [(each.task_id, each.status) for each in found if each] == [
        ("c-2", "completed"),
        ("c-1", "failed"),
        ("c-3", "failed"),
    ]
    assert keys_of(stream) == []


def test_who_takes_gets_each_result_once(hasty: None) -> None:
    client = Client()
    subscription = client.subscribe(100_000)
    count, found = 3000, []

    def take() -> None:
        while (result := subscription.get(0) if subscription._buffer or not client.over else None) is not None:
            found.append(result.task_id)

    def take_all() -> None:
        while not client.over:
            try:
                take()
            except TimeoutError:
                continue
        take()

    threads = [threading.Thread(target=take_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for key in range(count):
        client.settle(key)
    client.over = True
    for thread in threads:
        thread.join(GUARD)
    assert sorted(found) == sorted(f"c-{key}" for key in range(count))
    assert subscription._came == subscription._taken == count


def test_a_word_for_which_there_is_no_room_is_said_later() -> None:
    client = Client()
    subscription = client.subscribe(2, "block")
    client.room.clear()
    client.settle(1)
    client.settle(2)
    assert subscription.full
    assert client.told == []
    client.room.set()
    client.settle(3)  # whoever fills it tries again
    assert client.told == ["hold"]
    client.room.clear()
    assert keys_of(subscription) == [1, 2, 3]
    assert client.told == ["hold"]
    client.room.set()  # a thread has waited for that
    eventually(lambda: client.told == ["hold", "go_on"])
    eventually(lambda: not any(thread.name == "mpworker-go-on" for thread in threading.enumerate()))


def test_a_full_one_that_is_dropped_where_there_is_no_room_holds_up_nobody() -> None:
    client = Client()
    subscription = client.subscribe(1, "block")
    client.settle(1)
    assert client.told == ["hold"]
    client.room.clear()
    del subscription
    gc.collect()
    client.room.set()
    eventually(lambda: client.told == ["hold", "go_on"])
    eventually(lambda: not any(thread.name == "mpworker-go-on" for thread in threading.enumerate()))


def test_a_word_that_was_cut_short_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    subscription = client.subscribe(1, "block")
    client.settle(1)
    assert client.told == ["hold"]

    def cut_short(*record: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "_push", cut_short)
        with pytest.raises(KeyboardInterrupt):
            subscription.get(0)
    assert keys_of(subscription) == []
    assert client.told == ["hold", "go_on"]
    client.settle(2)
    assert client.told == ["hold", "go_on", "hold"]
