"""Idempotency keys: which task each is of, for how long, and what of it is kept; and ids, which are looked for, too."""

import asyncio
import functools
import gc
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import pooljobs
import pytest
from concurrently import GUARD, eventually, together
from loops import client_of, run
from pooljobs import Gate

from mpworker import AsyncProcessWorker, ProcessWorker, Retention, Task, TaskFuture
from mpworker.errors import DuplicateTask, QueueFull, SerializationError, TaskNotFound, WorkerStopped
from mpworker.idempotency import Idempotency
from mpworker.registering import Look, LookAgain, Registration, accept, registration


@pytest.fixture(params=[False, True], ids=["pool", "debug"])
def debug(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.close()


class Values(list[int]):
    """A list that can be pointed to weakly."""


class Meter:
    def __init__(self, unit: str) -> None:
        self.unit = unit

    def read(self) -> str:
        return self.unit


def closure(value: object) -> Callable[[], object]:
    return lambda: value


def keyed(fn: Callable[..., Any], *args: Any, key: str = "k", **options: Any) -> Task[Any]:
    return Task(fn, args, idempotency_key=key, **options)


def is_forgotten(w: ProcessWorker, task_id: str) -> bool:
    try:
        w.get_task(task_id)
    except TaskNotFound:
        return True
    return False


# ------------------------------------------------------------ the same call


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (keyed(json.dumps, 1), keyed(pickle.dumps, 1)),
        (keyed(lambda: 1), keyed(lambda: 2)),
        (keyed(closure(1)), keyed(closure(2))),
        (keyed(functools.partial(abs, 1)), keyed(functools.partial(abs, 2))),
        (keyed(Meter("A").read), keyed(Meter("V").read)),
        (keyed(abs, 1), keyed(abs, True)),
        (keyed(abs, 1), keyed(abs, 1.0)),
        (keyed(len, [1]), keyed(len, (1,))),
    ],
    ids=["functions", "lambdas", "closures", "partials", "methods", "bool", "float", "tuple"],
)
def test_no_key_gives_the_result_of_another_call(debug: bool, one: Task[Any], other: Task[Any]) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        first = w.register_task(one)
        for _ in range(2):
            assert w.register_task(one) is first
            with pytest.raises(
                DuplicateTask, match=f"^idempotency_key 'k' belongs to task {first.task_id}, which is an"
            ):
                w.register_task(other)
            first.result(GUARD)  # and so after its end


def test_an_argument_counts_as_it_was_when_it_was_registered(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        values = [1]
        first = w.register_task(keyed(sum, values))
        values.append(41)
        with pytest.raises(DuplicateTask):
            w.register_task(keyed(sum, values))
        assert w.register_task(keyed(sum, [1])) is first
        assert first.result(GUARD) == 1


def test_equal_arguments_are_the_same_and_options_do_not_count(debug: bool) -> None:
    one = "".join(list("one"))
    with ProcessWorker(n=1, debug=debug) as w:
        first = w.register_task(keyed(len, {"a": ("one", "one"), one: {2, 1}}))
        other = keyed(len, {"one": {1, 2}, "a": (one, "".join(one))}, queue="q", timeout=5.0, retries=3, id="mine")
        assert w.register_task(other) is first
        assert first.result(GUARD) == 2
        assert w.metrics().accepted == 1


def test_what_cannot_be_sent_is_refused_and_its_key_stays_free(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        with pytest.raises(SerializationError, match="the call of 'len' cannot be pickled"):
            w.register_task(keyed(len, pooljobs.Unpicklable()))
        assert w.execute_task(keyed(len, "four"), GUARD) == 4
        with pytest.raises(SerializationError, match="the call of 'len' cannot be pickled"):
            w.register_task(keyed(len, pooljobs.Unpicklable()))


# ------------------------------------------------------------ as long as it is remembered


def test_a_key_is_free_when_its_task_is_too_old(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug, retention=Retention(ttl=0.2, cleanup_interval=0.05)) as w:
        first = w.register_task(keyed(abs, -1))
        assert first.result(GUARD) == 1
        eventually(lambda: is_forgotten(w, first.task_id))
        second = w.register_task(keyed(abs, -2))
        assert second is not first
        assert second.result(GUARD) == 2


def test_a_key_is_free_when_others_have_taken_the_place_of_its_task(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug, retention=Retention(max_entries=3)) as w:
        first = w.register_task(keyed(abs, -1))
        first.result(GUARD)
        for _ in range(2):
            w.submit(abs, -1).result(GUARD)
        assert w.register_task(keyed(abs, -1)) is first
        w.submit(abs, -1).result(GUARD)
        assert is_forgotten(w, first.task_id)
        assert w.register_task(keyed(abs, -1)) is not first


def test_a_key_of_what_ended_last_is_known_though_it_came_first(gate: Gate) -> None:
    with ProcessWorker(n=2, retention=Retention(max_entries=2)) as w:
        slow = w.register_task(keyed(pooljobs.hold, gate.folder, "slow", key="slow"))
        for number in range(200):
            w.register_task(keyed(abs, number, key=f"k{number}")).result(GUARD)
            assert w.register_task(keyed(pooljobs.hold, gate.folder, "slow", key="slow")) is slow
        gate.release()
        assert slow.result(GUARD) == "slow"
        assert w.register_task(keyed(pooljobs.hold, gate.folder, "slow", key="slow")) is slow


def test_what_ended_unseen_and_was_forgotten_has_no_key(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug, retention=Retention(max_entries=0)) as w:
        first = w.register_task(keyed(abs, -1))
        eventually(lambda: w.metrics().completed == 1)
        assert w.register_task(keyed(abs, -1)) is not first


def test_what_ended_and_was_not_read_is_read_first() -> None:
    with ProcessWorker(n=1, retention=Retention(max_entries=0)) as w:
        first = w.register_task(keyed(abs, -1))
        eventually(lambda: w.register_task(keyed(abs, -1)) is not first)  # and nobody else reads


def test_a_future_that_nobody_holds_is_made_again(debug: bool, tmp_path: Path) -> None:
    with ProcessWorker(n=1, debug=debug) as w:  # where results are not kept
        task = keyed(pooljobs.note, str(tmp_path / "calls"), "once", id="mine")
        assert w.execute_task(task, GUARD) == "once"
        again = w.register_task(task)
        assert (again.result(GUARD), again.task_id) == ("once", "mine")
        assert w.register_task(task) is again
        with pytest.raises(DuplicateTask, match="belongs to task mine,"):
            w.register_task(keyed(abs, -1))
        failing = keyed(pooljobs.fail, "no", key="failing")
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^no$"):
                w.execute_task(failing, GUARD)
        assert w.metrics().accepted == 2
        assert (tmp_path / "calls").read_text() == "once\n"


def test_only_results_of_tasks_with_a_key_are_kept_unasked(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        with_key, without = w.register_task(keyed(abs, -1)), w.submit(abs, -2)
        assert (with_key.result(GUARD), without.result(GUARD)) == (1, 2)
        kept = w.get_task(with_key.task_id).future
        assert kept is not None
        assert kept.result(GUARD) == 1
        assert w.get_task(without.task_id).future is None


def test_what_let_go_of_its_result_is_not_run_twice(debug: bool, tmp_path: Path) -> None:
    with ProcessWorker(n=1, debug=debug, retention=Retention(max_bytes=0)) as w:
        task = keyed(pooljobs.note, str(tmp_path / "calls"), "once")
        held = w.register_task(task)
        held.result(GUARD)
        assert w.register_task(task) is held
        task_id = held.task_id
        del held
        with pytest.raises(
            TaskNotFound, match=f"^task {task_id}, to which idempotency_key 'k' belongs, has ended, and its"
        ):
            w.register_task(task)
        assert (tmp_path / "calls").read_text() == "once\n"


# ------------------------------------------------------------ what is kept


def test_neither_arguments_nor_futures_are_held(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        values = Values([1, 2])
        future = w.register_task(keyed(sum, values))
        assert future.result(GUARD) == 3
        pointers = [ref(values), ref(future)]
        del values, future
        gc.collect()
        assert [pointer() for pointer in pointers] == [None, None]


def test_keys_that_are_forgotten_go_out_in_bulk(debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessWorker(n=1, debug=debug, retention=Retention(max_entries=5), max_payload_bytes=4096) as w:
        asked: list[str] = []
        kind = type(w._client)
        request = kind.request
        monkeypatch.setattr(kind, "request", lambda self, told: (asked.append(told["verb"]), request(self, told))[1])
        known, most = registration(w._client).idempotency._known, 0
        for number in range(1000):
            w.register_task(keyed(abs, number, key=f"k{number}")).result(GUARD)
            most = max(most, len(known))
        assert most < 100
        assert set(asked) == {"remembered"}
        assert len(asked) < 25
        asked.clear()
        held = [w.register_task(keyed(abs, number, key=f"h{number}", run_at=1000.0)) for number in range(200)]
        assert len(asked) < 5  # though there are more than the first time
        w.register_task(keyed(abs, 0, key="one more")).result(GUARD)
        assert {f"h{number}" for number in range(200)} <= known.keys()  # what is to run is not forgotten
        assert w.register_task(keyed(abs, 7, key="h7")) is held[7]
        w.cancel_all()


def test_the_question_what_is_remembered_goes_in_parts(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug, retention=Retention(max_entries=2000), max_payload_bytes=4096) as w:
        for number in range(1000):
            w.register_task(keyed(abs, number, key=f"k{number}"))
            w.submit(abs, -1).result(GUARD)
        assert len(registration(w._client).idempotency._known) == 1000


class OneByOne(dict[str, Any]):
    """A dictionary that nobody reads through."""

    def __iter__(self) -> Any:
        raise AssertionError

    items = values = keys = __iter__  # type: ignore[assignment]


def test_a_key_that_comes_again_costs_the_same_however_many_there_are(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        futures = [w.register_task(keyed(abs, number, key=f"k{number}")) for number in range(20)]
        w.wait(GUARD)
        keys = registration(w._client).idempotency
        keys._known = OneByOne(keys._known)
        for _ in range(100):
            assert w.register_task(keyed(abs, 3, key="k3")) is futures[3]


# ------------------------------------------------------------ threads


def test_a_key_waits_for_no_other_one(gate: Gate) -> None:
    with ProcessWorker(n=1, max_pending=1) as w:
        done = w.register_task(keyed(abs, -1, key="done"))
        assert done.result(GUARD) == 1
        held = w.submit(pooljobs.hold, gate.folder, "held")
        late: list[Any] = []
        threads = [
            threading.Thread(
                target=lambda n=n: late.append(w.register_task(keyed(abs, n, key=f"late {n}"))), daemon=True
            )
            for n in range(3)
        ]
        for thread in threads:
            thread.start()
        known = registration(w._client).idempotency._known
        eventually(lambda: len(known) == 4)  # each of them has begun, and waits for room
        together(lambda: late.append(w.register_task(keyed(abs, -1, key="done"))))
        assert late == [done]
        gate.release()
        assert held.result(GUARD) == "held"
        for thread in threads:
            thread.join(GUARD)
        assert sorted(each.result(GUARD) for each in late) == [0, 1, 1, 2]


def test_two_threads_with_one_key_have_one_task(gate: Gate, tmp_path: Path) -> None:
    with ProcessWorker(n=1, max_pending=1) as w:
        held = w.submit(pooljobs.hold, gate.folder, "held")
        futures: list[TaskFuture[Any]] = []
        task = keyed(pooljobs.note, str(tmp_path / "calls"), "once", id="mine")

        def register() -> None:
            futures.append(w.register_task(task))

        def let_go() -> None:
            eventually(lambda: bool(registration(w._client).idempotency._known))
            gate.release()

        together(register, register, register, let_go)
        assert held.result(GUARD) == "held"
        assert len(set(futures)) == 1
        assert futures[0].result(GUARD) == "once"
        assert (tmp_path / "calls").read_text() == "once\n"


class BothFindNothing(dict[str, Any]):
    """Two threads look before either stores anything."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)
        self._looked: set[int] = set()

    def get(self, key: str, default: Any = None) -> Any:
        found = super().get(key, default)
        if threading.get_ident() not in self._looked:
            self._looked.add(threading.get_ident())
            self._barrier.wait(GUARD)
        return found


def test_two_threads_that_find_a_key_new_have_one_task() -> None:
    with ProcessWorker(n=1) as w:
        keys, futures = registration(w._client).idempotency, []
        keys._known = BothFindNothing()
        task = keyed(abs, -1, run_at=1000.0)

        def register() -> None:
            futures.append(
                keys.register(w._client, task, Look(), lambda: w.register_task(replace(task, idempotency_key=None)))
            )

        together(register, register)
        assert futures[0] is futures[1]
        assert w.metrics().accepted == 1
        w.cancel_all()


def test_threads_that_register_first_share_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2)

    class Slow(Registration):
        def __init__(self) -> None:
            super().__init__()
            barrier.wait(GUARD)

    monkeypatch.setattr("mpworker.registering.Registration", Slow)
    with ProcessWorker(n=1) as w:
        made: list[Registration] = []
        together(*[lambda: made.append(registration(w._client))] * 2)
        assert made[0] is made[1] is registration(w._client)


def let_go_on_when_waited_for(keys: Idempotency, begun: threading.Event, go_on: threading.Event) -> None:
    """Whoever sends the task of the key goes on when another thread waits for that."""
    assert begun.wait(GUARD)
    sending = keys._known["k"].sending
    assert sending is not None
    wait = sending.wait
    sending.wait = lambda timeout=None: (go_on.set(), wait(timeout))[1]  # type: ignore[method-assign]


def test_who_waits_for_a_key_whose_task_was_not_sent_sends_it_himself() -> None:
    with ProcessWorker(n=1) as w:
        client, keys = w._client, registration(w._client).idempotency
        task, begun, go_on = keyed(abs, -1), threading.Event(), threading.Event()
        futures: list[TaskFuture[Any]] = []

        def fail() -> Any:
            begun.set()
            assert go_on.wait(GUARD)
            raise QueueFull("there was no room")

        def first() -> None:
            with pytest.raises(QueueFull, match="there was no room"):
                keys.register(client, task, Look(), fail)

        def second() -> None:
            let_go_on_when_waited_for(keys, begun, go_on)
            futures.append(w.register_task(task))

        together(first, second)
        assert futures[0].result(GUARD) == 1
        assert w.register_task(task) is futures[0]


@pytest.mark.parametrize("timeout", [0.0, 0.05])
def test_who_waits_for_a_key_waits_no_longer_than_he_may(gate: Gate, timeout: float) -> None:
    with ProcessWorker(n=1, max_pending=1, submit_timeout=timeout) as w:
        client, keys, task, begun, tried = w._client, registration(w._client).idempotency, keyed(abs, -1), *events(2)
        held = w.submit(pooljobs.hold, gate.folder, "held")

        def sends() -> Any:
            begun.set()
            assert tried.wait(GUARD)  # for longer than anybody may wait
            raise QueueFull("there was no room")

        def first() -> None:
            with pytest.raises(QueueFull, match="there was no room"):
                keys.register(client, task, Look(), sends)

        def second() -> None:
            assert begun.wait(GUARD)
            try:
                with pytest.raises(QueueFull, match=f"^max_pending=1 .*, and submit_timeout={timeout:g} s is over"):
                    w.register_task(task)
            finally:
                tried.set()

        together(first, second)
        assert keys._known == {}
        gate.release()
        assert held.result(GUARD) == "held"
        assert w.execute_task(task, GUARD) == 1


def test_who_has_waited_for_a_key_waits_for_room_for_the_rest_of_his_time(gate: Gate) -> None:
    with ProcessWorker(n=1, max_pending=1, submit_timeout=0.5) as w:
        client, keys, task, begun, go_on = w._client, registration(w._client).idempotency, keyed(abs, -1), *events(2)
        held, sent = w.submit(pooljobs.hold, gate.folder, "held"), []

        def fail() -> Any:
            begun.set()
            assert go_on.wait(GUARD)
            raise QueueFull("there was no room")

        def first() -> None:
            with pytest.raises(QueueFull, match="there was no room"):
                keys.register(client, task, Look(), fail)

        def second() -> None:
            let_go_on_when_waited_for(keys, begun, go_on)
            with pytest.raises(QueueFull, match=r"and submit_timeout=0.5 s is over"):
                keys.register(client, task, Look(), lambda: sent.append(task) or held)

        together(first, second)
        assert sent == []  # which would have waited from the beginning
        gate.release()
        assert held.result(GUARD) == "held"


def events(count: int) -> list[threading.Event]:
    return [threading.Event() for _ in range(count)]


def test_a_handler_does_not_wait_for_the_registration_that_it_interrupts() -> None:
    with ProcessWorker(n=1) as w:
        client, keys, task = w._client, registration(w._client).idempotency, keyed(abs, -1)

        def interrupted() -> Any:
            with pytest.raises(DuplicateTask, match="belongs to a task that this signal handler has interrupted"):
                w.register_task(task)
            return w.submit(abs, -1)

        keys.register(client, task, Look(), interrupted)


def test_after_the_stop_a_key_is_known_by_its_future_alone() -> None:
    with ProcessWorker(n=1) as w:
        held = w.register_task(keyed(abs, -1))
        w.execute_task(keyed(abs, -2, key="gone"), GUARD)
    assert w.register_task(keyed(abs, -1)) is held
    for key in ("gone", "new"):
        with pytest.raises(WorkerStopped):
            w.register_task(keyed(abs, -2, key=key))


# ------------------------------------------------------------ in an event loop


def test_in_an_event_loop_a_key_lives_as_long_and_keeps_as_little() -> None:
    async def main() -> None:
        async with AsyncProcessWorker(n=1, retention=Retention(max_entries=2)) as w:
            first = await w.register_task(keyed(abs, -1))
            assert await first == 1
            assert await w.register_task(keyed(abs, -1)) is first
            with pytest.raises(DuplicateTask, match="belongs to task"):
                await w.register_task(keyed(abs, -2))
            pointer = ref(first)
            del first
            gc.collect()
            assert pointer() is None
            assert await (await w.register_task(keyed(abs, -1))) == 1  # of what was kept
            assert (await w.metrics()).accepted == 1
            for number in range(500):
                await w.execute_task(keyed(abs, number, key=f"k{number}"))
            assert len(registration(client_of(w)).idempotency._known) < 100
            assert await w.execute_task(keyed(abs, -2)) == 2  # forgotten

    run(main)


def test_in_an_event_loop_a_middleware_may_give_the_key() -> None:
    def give_key(call_next: Any, task: Task[Any]) -> Any:
        return call_next(replace(task, idempotency_key=f"key of {task.args}"))

    async def main() -> None:
        async with AsyncProcessWorker(n=1, submit_middleware=[give_key], retention=Retention(max_entries=2)) as w:
            first = await w.register_task(Task(abs, (-1,)))
            assert await first == 1
            gc.collect()
            assert await w.register_task(Task(abs, (-1,))) is first
            del first
            gc.collect()
            assert await (await w.register_task(Task(abs, (-1,)))) == 1
            metrics = await w.metrics()
            assert (metrics.accepted, metrics.observer_errors["middleware"]) == (1, 0)
            for number in range(500):
                await w.execute_task(Task(abs, (number,)))
            assert len(registration(client_of(w)).idempotency._known) < 100

    run(main)


def test_a_submit_in_an_event_loop_asks_nothing_though_a_middleware_gives_it_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def give_key(call_next: Any, task: Task[Any]) -> Any:
        return call_next(replace(task, idempotency_key=f"key of {task.args}", id=f"id of {task.args}"))

    async def main() -> None:
        async with AsyncProcessWorker(n=1, submit_middleware=[give_key]) as w:
            for verb in ("request", "carry_out"):
                monkeypatch.setattr(type(client_of(w)), verb, None)
            first = w.submit(abs, -1)
            assert w.submit(abs, -1) is first
            assert await first == 1
            gc.collect()
            assert w.submit(abs, -1) is first
            del first
            await asyncio.sleep(0)  # the loop holds what has just woken this
            gc.collect()
            with pytest.raises(TaskNotFound):
                w.submit(abs, -1)
            monkeypatch.undo()

    run(main)


# ------------------------------------------------------------ ids


def test_an_id_that_the_worker_gives_is_nobodys_own(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        number = int(w.submit(abs, -1).task_id.removeprefix(w._client.prefix))
        for own in (number, number + 3, 10**30, 1 << 62):
            with pytest.raises(
                DuplicateTask, match=r"^the id '.*' is one of those that the worker gives to tasks without"
            ):
                w.register_task(Task(abs, (-1,), id=f"{w._client.prefix}{own}"))
        assert w.execute_task(Task(abs, (-1,), id=f"{w._client.prefix}{number}-b"), GUARD) == 1


def test_an_id_that_is_forgotten_is_free_though_its_future_is_held(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug, retention=Retention(max_entries=1)) as w:
        held = w.register_task(Task(abs, (-1,), id="mine"))
        assert held.result(GUARD) == 1
        with pytest.raises(DuplicateTask, match="there is a task with the id 'mine', which is"):
            w.register_task(Task(abs, (-2,), id="mine"))
        w.submit(abs, -1).result(GUARD)
        assert is_forgotten(w, "mine")
        assert w.execute_task(Task(abs, (-2,), id="mine"), GUARD) == 2
        with pytest.raises(DuplicateTask, match="there is a task with the id 'mine', which is"):
            w.register_task(Task(abs, (-2,), id="mine"))
        assert held.task_id == "mine"


def test_an_id_is_free_again_when_its_task_could_not_be_sent(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug, max_payload_bytes=4096) as w:
        with pytest.raises(SerializationError, match="exceeds max_payload_bytes") as held:
            w.register_task(Task(len, ("x" * 5000,), id="mine"))
        assert w.execute_task(Task(len, ("x",), id="mine"), GUARD) == 1
        del held


def test_of_two_that_have_found_an_id_free_one_gets_it(debug: bool) -> None:
    with ProcessWorker(n=1, debug=debug) as w:
        client, task = w._client, Task(abs, (-1,), id="mine")
        looks = [client.carry_out(registration(client).looking(client, task)) for _ in range(2)]
        accept(client, w._defaults, task, looks[0]).result(GUARD)  # and nobody holds its future
        with pytest.raises(LookAgain):
            accept(client, w._defaults, task, looks[1])
        with pytest.raises(DuplicateTask, match="there is a task with the id 'mine', which is"):
            w.register_task(task)
        assert w.metrics().accepted == 1
