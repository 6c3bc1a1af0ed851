"""A supervisor that dies and is started again: its clients attach by themselves, and nothing accepted is lost, or run
twice behind anybody's back."""

import contextlib
import json
import os
import pickle
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pooljobs
import pytest
from leaks import alive, wait_until
from pooljobs import Gate
from services import GUARD, Service, serving

import mpworker
from mpworker import ConnectedWorker, RetryPolicy, Task
from mpworker.errors import SupervisorLost, TaskCancelled, WorkerCrashed, WorkerStopped
from mpworker.hooks import Hooks, TaskEvent
from mpworker.ipc import codec, details
from mpworker.kept import Pending
from mpworker.service.recovery import StandIn, Telling

KILLS = 10
CONFIG = "n = 1\n[clients]\nring_bytes = 65536\n[queues.mail]\nweight = 2\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, CONFIG) as service:
        service.connect().stop_graceful()
        yield service


def processes_of(w: ConnectedWorker) -> list[int]:
    found = w.processes()
    return [found["nursery"], *(child["pid"] for child in found["children"])]


# ------------------------------------------------------------ what becomes of tasks


def test_what_had_not_begun_begins_and_what_ran_is_run_once_more_if_it_may_be(service: Service, gate: Gate) -> None:
    noted = Path(gate.folder) / "noted"
    with service.connect() as w:
        running = w.options(crash_retries=1).submit(pooljobs.hold_and_note, gate.folder, 7)
        waiting = [w.submit(pooljobs.note, str(noted), number) for number in range(50)]
        by_value = w.submit(lambda: 42)
        gate.wait_begun()
        service.replace()
        gate.wait_begun()
        gate.release()
        assert running.result(GUARD) is None
        assert [future.result(GUARD) for future in waiting] == list(range(50))
        assert by_value.result(GUARD) == 42
        assert w.submit(pooljobs.square, 3).result(GUARD) == 9
    assert sorted(map(int, pooljobs.notes(noted))) == sorted([7, *range(50)])


def test_what_ran_and_may_not_be_run_again_has_crashed(service: Service, gate: Gate) -> None:
    with service.connect() as w:
        running = w.submit(pooljobs.hold_and_note, gate.folder, 7)
        waiting = w.submit(pooljobs.square, 3)
        gate.wait_begun()
        service.replace()
        with pytest.raises(WorkerCrashed, match="the supervisor died while it ran") as crash:
            running.result(GUARD)
        assert (crash.value.cause, crash.value.attempt) == ("supervisor", 1)
        assert waiting.result(GUARD) == 9
    assert not gate.begun()


def test_what_has_ended_is_not_run_again(service: Service, tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    with service.connect() as w:
        futures = [w.submit(pooljobs.note, str(noted), number) for number in range(30)]
        assert wait_until(lambda: len(pooljobs.notes(noted)) == 30, GUARD)
        time.sleep(0.05)  # the last answer is on its way from the child; it may be lost, and is not told twice
        service.replace()
        ended = [future.exception(GUARD) for future in futures]
        assert w.submit(pooljobs.square, 3).result(GUARD) == 9
    assert Counter(pooljobs.notes(noted)) == Counter(map(str, range(30)))
    assert all(error is None or isinstance(error, WorkerCrashed) for error in ended)


@pytest.mark.parametrize("crash_retries", [0, 1])
def test_an_outcome_that_had_no_room_in_the_ring(service: Service, tmp_path: Path, crash_retries: int) -> None:
    noted = tmp_path / "noted"
    with service.connect() as w, service.connect() as operator:
        view = w.options(crash_retries=crash_retries)
        futures = [view.submit(note_and_return, str(noted), number) for number in range(100)]  # 400 KB of results
        assert wait_until(lambda: operator._operate({"op": "describe"})["clients"][0]["completed"] == 100, GUARD)
        service.replace()
        outcomes = [future.exception(GUARD) for future in futures]
    lost = [number for number, error in enumerate(outcomes) if error is not None]
    ran = Counter(map(int, pooljobs.notes(noted)))
    if crash_retries:
        assert not lost
        again = [number for number in range(100) if ran[number] == 2]
        assert 50 < len(again) < 99, "what the ring had room for was read"
        assert all(ran[number] in (1, 2) for number in range(100))
        assert [len(future.result()) for future in futures] == [4000] * 100
    else:
        assert 50 < len(lost) < 99
        assert ran == Counter(range(100)), "none ran a second time behind anybody's back"
        assert {error.cause for error in outcomes if isinstance(error, WorkerCrashed)} == {"supervisor"}


def note_and_return(path: str, number: int) -> bytes:
    pooljobs.note(path, number)
    return bytes(4000)


def test_retries_that_were_used_are_used(service: Service, tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    policy = RetryPolicy(base=3600, cap=3600)
    with service.connect() as w:
        waits = w.options(retries=1, retry_policy=policy).submit(note_and_fail, str(noted))
        assert wait_until(lambda: w.get_task(waits.task_id).status == "scheduled", GUARD)
        service.replace()
        with pytest.raises(ValueError, match="wrong"):
            waits.result(GUARD)
    assert len(pooljobs.notes(noted)) == 2


def note_and_fail(path: str) -> None:
    pooljobs.note(path, "ran")
    raise ValueError("wrong")


def test_crashes_before_count(service: Service, gate: Gate) -> None:
    with service.connect() as w:
        future = w.options(crash_retries=2).submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        os.kill(w.processes()["children"][0]["pid"], signal.SIGKILL)
        for _ in range(2):
            gate.wait_begun()
            service.replace()
        with pytest.raises(WorkerCrashed) as crash:
            future.result(GUARD)
        assert (crash.value.cause, crash.value.attempt) == ("supervisor", 3)
        assert not gate.begun()


def test_what_was_cancelled_and_not_begun_never_begins(service: Service, gate: Gate) -> None:
    with service.connect() as w:
        running = w.options(crash_retries=1).submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        waiting = w.submit(pooljobs.hold_and_note, gate.folder, 1)
        service.kill()
        asked = threading.Thread(target=waiting.cancel)
        asked.start()
        service.start()
        asked.join(GUARD)
        gate.wait_begun()
        gate.release()
        assert running.result(GUARD) is None
        with pytest.raises(TaskCancelled):
            waiting.result(GUARD)


def test_a_map_goes_on(service: Service, gate: Gate) -> None:
    with service.connect() as w:
        results = w.options(crash_retries=3).map(hold_the_first_of_many, [gate.folder] * 500, range(500), chunksize=50)
        assert next(results) == 0
        gate.wait_begun()  # item 120
        service.replace()
        gate.wait_begun()
        gate.release()
        assert list(results) == list(range(1, 500))


def hold_the_first_of_many(folder: str, number: int) -> int:
    return pooljobs.hold(folder, number) if number == 120 else number  # type: ignore[no-any-return]


def test_items_of_a_map_run_once_or_are_blamed(service: Service, gate: Gate, tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    arguments = [gate.folder] * 300, [str(noted)] * 300, range(300)
    with service.connect() as w:
        results = w.map(note_and_hold, *arguments, chunksize=100, return_exceptions=True)
        gate.wait_begun()
        service.replace()
        found = list(results)
    crashed = [number for number, value in enumerate(found) if isinstance(value, WorkerCrashed)]
    assert 150 in crashed
    assert set(crashed) <= set(range(100, 151)), "what had ended before the one that ran may be lost with it"
    assert [value for number, value in enumerate(found) if number not in crashed] == [
        number for number in range(300) if number not in crashed
    ]
    assert max(Counter(pooljobs.notes(noted)).values()) == 1


def note_and_hold(folder: str, path: str, number: int) -> int:
    pooljobs.note(path, number)
    return pooljobs.hold(folder, number) if number == 150 else number  # type: ignore[no-any-return]


def test_large_calls_and_details_go_again(service: Service, gate: Gate) -> None:
    large = bytes(300_000)
    with service.connect() as w:
        running = w.options(crash_retries=1).submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        parts = w.submit(len, large)
        told = w.register_task(Task(describe, id="mine", name="told", metadata={"a": 1}, queue="mail", priority=3))
        timed = w.register_task(Task(pooljobs.square, (3,), run_at=0.2))
        late = w.register_task(Task(pooljobs.square, (3,), deadline=0.1))
        judged = w.options(retries=2, retry_policy=RetryPolicy(give_up_on=(ValueError,))).submit(pooljobs.fail, "final")
        service.replace()
        gate.wait_begun()
        gate.release()
        assert running.result(GUARD) is None
        assert parts.result(GUARD) == 300_000
        assert told.result(GUARD) == ("mine", {"a": 1})
        assert timed.result(GUARD) == 9
        assert isinstance(late.exception(GUARD), mpworker.errors.TaskTimeout)
        with pytest.raises(ValueError, match="final"):
            judged.result(GUARD)
        assert len(w.get_task(judged.task_id).attempts) == 1


def describe() -> tuple[str, dict[str, Any]]:
    context = mpworker.current()
    return context.task_id, dict(context.metadata)


def test_one_live_attempt_at_any_time(service: Service, tmp_path: Path) -> None:
    with service.connect() as w:
        future = w.options(crash_retries=5).submit(alone, str(tmp_path / "lock"), str(tmp_path / "begun"))
        for number in range(5):
            assert wait_until(lambda count=number: len(pooljobs.notes(tmp_path / "begun")) > count, GUARD)  # type: ignore[misc]
            service.replace()
        assert wait_until(lambda: len(pooljobs.notes(tmp_path / "begun")) == 6, GUARD)
        (tmp_path / "go").touch()
        assert future.result(GUARD) == "alone"


def alone(lock: str, begun: str) -> str:
    """No other attempt may live: it would have the lock."""
    import fcntl

    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if another one has it
        pooljobs.note(begun, "begun")
        pooljobs.wait_for_file(str(Path(begun).with_name("go")))
    return "alone"


def test_the_next_one_is_told_nothing_before_all_of_the_old_one_are_dead(service: Service) -> None:
    with service.connect() as w:
        assert w.submit(abs, -1).result(GUARD) == 1
        recovery = w._client.recovery
        assert recovery is not None
        living = os.open(f"/proc/self/fd/{recovery._left[1]}", os.O_WRONLY)  # as a process that is not dead yet has it
        try:
            service.replace()
            with service.connect() as other:
                assert other.submit(abs, -2).result(GUARD) == 2
                time.sleep(0.3)  # in which it would have attached
                assert len(service.records("client_attached")) == 3
        finally:
            os.close(living)
        assert w.submit(abs, -3).result(GUARD) == 3
        service.wait_for("client_attached", 4)


@pytest.mark.parametrize("crash_retries", [0, 100])
def test_kills_at_any_moment(service: Service, tmp_path: Path, crash_retries: int) -> None:
    rng = random.Random(seed := random.randrange(2**32))
    noted = tmp_path / "noted"
    done = threading.Event()

    def unrest() -> None:
        for _ in range(KILLS):
            if done.wait(rng.uniform(0.0, 0.6)):
                return
            service.replace()

    unruly = threading.Thread(target=unrest)
    with service.connect() as w:
        view = w.options(crash_retries=crash_retries)
        unruly.start()
        try:
            futures = [view.submit(pooljobs.note_and_rest, str(noted), number) for number in range(400)]
            mapped = list(view.map(pooljobs.square, range(5_000), chunksize=100, return_exceptions=True))
            outcomes = [future.exception(GUARD) for future in futures]
        finally:
            done.set()
            unruly.join(GUARD)
        assert w.submit(pooljobs.square, 3).result(GUARD) == 9
    ran = Counter(map(int, pooljobs.notes(noted)))
    assert all(error is None or isinstance(error, WorkerCrashed) for error in outcomes), f"seed {seed}: {outcomes}"
    for number, error in enumerate(outcomes):
        if crash_retries:
            assert error is None, f"seed {seed}, task {number}"
            assert ran[number] >= 1, f"seed {seed}, task {number}"
        else:
            assert ran[number] <= 1, f"seed {seed}, task {number} ran twice behind everybody's back"
            assert error is not None or ran[number] == 1, f"seed {seed}, task {number}"
    wrong = [
        number for number, value in enumerate(mapped) if value != number**2 and not isinstance(value, WorkerCrashed)
    ]
    assert not wrong, f"seed {seed}"
    if crash_retries:
        assert mapped == [number**2 for number in range(5_000)], f"seed {seed}"


# ------------------------------------------------------------ what else goes on


def test_what_is_called_meanwhile_waits(service: Service) -> None:
    with service.connect() as w:
        w.submit(abs, 1).result(GUARD)
        service.kill()
        made: list[Any] = []
        calls: list[Callable[[], Any]] = [
            lambda: w.submit(pooljobs.square, 3).result(GUARD),
            lambda: [future.result(GUARD) for future in w.submit_many(pooljobs.square, range(4))],
            lambda: sum(w.map(pooljobs.square, range(100))),
            lambda: w.queues()["mail"].weight,
            lambda: w.submit(len, bytes(200_000)).result(GUARD),
            lambda: w.options(retries=3).submit(lambda: 5).result(GUARD),
        ]
        threads = [threading.Thread(target=lambda call=call: made.append(call())) for call in calls]  # type: ignore[misc]
        for thread in threads:
            thread.start()
        assert not made
        service.start()
        for thread in threads:
            thread.join(GUARD)
        assert sorted(map(repr, made)) == sorted(map(repr, [9, [0, 1, 4, 9], 328350, 2, 200_000, 5]))


def test_what_is_asked_meanwhile_is_done_once(service: Service) -> None:
    with service.connect() as w:
        w.register_cron_task("gone", "@every 1h", abs_of_one)
        waiting = [w.submit(time.sleep, 600) for _ in range(4)]
        assert wait_until(waiting[0].running, GUARD)
        service.kill()
        found: dict[str, Any] = {}
        calls = {
            "register": lambda: w.register_cron_task("new", "@every 1h", abs_of_one),
            "remove": lambda: w.remove_cron_task("gone"),
            "cancel": w.cancel_all,
        }
        threads = [
            threading.Thread(target=lambda name=name, call=call: found.update({name: call()}))  # type: ignore[misc]
            for name, call in calls.items()
        ]
        for thread in threads:
            thread.start()
        service.start()
        for thread in threads:
            thread.join(GUARD)
        assert found == {"register": None, "remove": None, "cancel": 3}, "the first one has crashed"
        service.replace()
        assert [task.name for task in w.cron_tasks()] == ["new"]


def test_a_map_that_nobody_wants_any_more_is_let_go_of_at_once(service: Service, gate: Gate) -> None:
    with service.connect() as w:
        results = w.map(note_and_hold, [gate.folder] * 400, [f"{gate.folder}/noted"] * 400, range(400), chunksize=50)
        assert next(results) == 0
        gate.wait_begun()  # item 150
        service.kill()
        assert wait_until(lambda: isinstance(w._client.supervisor, StandIn), GUARD)
        results.close()
        service.start()
        assert w.submit(abs, -1).result(GUARD) == 1
    assert len(pooljobs.notes(Path(gate.folder) / "noted")) <= 151, "nothing more of it has begun"


def test_a_map_that_nobody_wants_any_more_when_the_next_one_knows_of_it(
    service: Service, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, closed = threading.Event(), threading.Event()
    tell_all = Telling.tell_all

    def tell_and_wait(telling: Telling, terms: dict[str, Any]) -> None:
        tell_all(telling, terms)
        told.set()
        assert closed.wait(GUARD)

    monkeypatch.setattr(Telling, "tell_all", tell_and_wait)
    with service.connect() as w:
        results = w.map(hold_from_the_fifth, [gate.folder] * 20, range(20), chunksize=5)
        assert next(results) == 0
        gate.wait_begun()
        service.replace()
        assert told.wait(GUARD)
        gate.wait_begun()  # the one behind that which was blamed
        results.close()
        assert w._client.unwanted
        closed.set()
        assert wait_until(lambda: not w._client.unwanted, GUARD)
        w.metrics()  # whose answer comes after what was said before
        gate.release()
        assert w.submit(abs, -1).result(GUARD) == 1, "nothing more of it has begun"


def hold_from_the_fifth(folder: str, number: int) -> int:
    return pooljobs.hold(folder, number) if number >= 5 else number  # type: ignore[no-any-return]


def test_a_nursery_that_imports_is_not_waited_for(service: Service, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'imports')!r}, 'w').close()\ntime.sleep(600)\n"
    )
    with service.connect() as w:
        service.kill()
        waiting = w.submit  # what is called waits, so it is called in a thread
        found: list[Any] = []
        asked = threading.Thread(target=lambda: found.append(waiting(pooljobs.square, 3).result(GUARD)))
        asked.start()
        service.config.write_text(f"{CONFIG}[children]\npath = [{str(tmp_path)!r}]\npreload = ['slow']\n")
        service.start()
        assert wait_until((tmp_path / "imports").exists, GUARD)
        service.config.write_text(CONFIG)
        service.replace()
        asked.join(GUARD / 2)
        assert found == [9]


def test_who_says_hello_to_one_that_dies_says_it_to_the_next(service: Service) -> None:
    os.kill(service.process.pid, signal.SIGSTOP)
    made: list[ConnectedWorker] = []
    hello = threading.Thread(target=lambda: made.append(service.connect()))
    hello.start()
    time.sleep(0.2)  # so that it has connected; if it has not yet, it is none the worse
    service.replace()
    hello.join(GUARD)
    with made[0] as w:
        assert w.submit(abs, -1).result(GUARD) == 1


def test_leaving_the_block_meanwhile_waits_for_what_was_submitted(service: Service, gate: Gate) -> None:
    with service.connect() as w:
        running = w.options(crash_retries=1).submit(pooljobs.hold, gate.folder, 1)
        waiting = [w.submit(pooljobs.square, number) for number in range(10)]
        gate.wait_begun()
        service.kill()
        back = threading.Thread(target=lambda: (service.start(), gate.wait_begun(), gate.release()))
        back.start()
    back.join(GUARD)
    assert running.result() == 1
    assert [future.result() for future in waiting] == [number**2 for number in range(10)]


def test_a_drain_that_was_asked_for_before_goes_on(service: Service, gate: Gate) -> None:
    w = service.connect()
    running = w.options(crash_retries=1).submit(pooljobs.hold, gate.folder, 1)
    gate.wait_begun()
    stopped = threading.Thread(target=w.stop_graceful)
    stopped.start()
    assert wait_until(lambda: w._client.ending.asked, GUARD)
    service.replace()
    gate.wait_begun()
    gate.release()
    stopped.join(GUARD)
    assert running.result(0) == 1
    service.wait_for("client_left", 2)


@pytest.mark.parametrize("how", ["now", "timeout"])
def test_a_stop_does_not_wait_for_another_supervisor(service: Service, gate: Gate, how: str) -> None:
    w = service.connect()
    running = w.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    service.kill()
    assert wait_until(lambda: isinstance(w._client.supervisor, StandIn), GUARD)
    begun = time.monotonic()
    w.stop_now() if how == "now" else w.stop_graceful(timeout=0.2)
    assert time.monotonic() - begun < 5
    assert running.done()
    with pytest.raises((SupervisorLost, WorkerStopped)):
        w.submit(abs, 1)


def test_too_late(service: Service, gate: Gate) -> None:
    w = service.connect(reconnect_timeout=0.3)
    running = w.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    left = processes_of(w)
    service.kill()
    with pytest.raises(SupervisorLost):
        running.result(GUARD)
    with pytest.raises(SupervisorLost):
        w.submit(abs, 1)
    assert not any(map(alive, left))


def test_one_that_refuses_is_not_waited_for(service: Service, gate: Gate) -> None:
    w = service.connect()
    running = w.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    service.kill()
    os.unlink(service.socket)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(service.socket)
        listener.listen()
        listener.settimeout(GUARD)
        theirs, _ = listener.accept()
        answer = json.dumps({"refused": "another version", "for_good": True}).encode()
        theirs.sendall(struct.pack("<II", len(answer), 0) + answer)
        with pytest.raises(SupervisorLost):
            running.result(GUARD)
        theirs.close()


def test_a_supervisor_that_is_stopped_is_not_waited_for(service: Service) -> None:
    w = service.connect()
    assert w.submit(abs, -1).result(GUARD) == 1
    assert service.stop() == 0
    assert wait_until(w._client.is_over, GUARD), "though nobody asks"
    with pytest.raises(WorkerStopped):
        w.submit(abs, 1)


def test_hooks_subscriptions_and_what_recurs_go_on(service: Service) -> None:
    events: list[tuple[str, str]] = []

    def note(event: TaskEvent) -> None:
        events.append((event.task_id, event.kind))

    with service.connect(hooks=Hooks(on_finish=note, on_start=note)) as w:
        subscription = w.subscribe_results()
        first = w.submit(pooljobs.square, 2)
        assert first.result(GUARD) == 4
        w.register_cron_task("beat", "@every 50ms", abs_of_one)
        w.register_cron_task("still", "@every 50ms", abs_of_one)
        w.pause_cron_task("still")
        service.replace()
        second = w.submit(pooljobs.square, 3)
        assert second.result(GUARD) == 9
        assert wait_until(lambda: w.cron_tasks()[0].runs > 2, GUARD)
        assert [(task.name, task.paused) for task in w.cron_tasks()] == [("beat", False), ("still", True)]
        seen = {next(subscription).task_id for _ in range(4)}
        assert {first.task_id, second.task_id} <= seen
        assert wait_until(lambda: (second.task_id, "finish") in events, GUARD)
        assert events.index((second.task_id, "start")) > events.index((first.task_id, "finish"))


def abs_of_one() -> int:
    return 1


def test_the_log_tells_of_it(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    caplog.set_level(logging.INFO, "mpworker")
    with service.connect() as w:
        assert w.submit(abs, -1).result(GUARD) == 1
        service.replace()
        assert w.submit(abs, -1).result(GUARD) == 1
        assert wait_until(lambda: any("reconnected" in each.getMessage() for each in caplog.records), GUARD)
    assert any("supervisor_lost" in each.getMessage() for each in caplog.records)


def test_many_programs_at_once(service: Service, tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(service.connect()) for _ in range(8)]
        futures = [
            w.submit(pooljobs.note_and_rest, str(noted), 100 * index + number)
            for number in range(20)
            for index, w in enumerate(workers)
        ]
        futures[0].exception(GUARD)
        service.replace()
        outcomes = [future.exception(GUARD) for future in futures]
    assert max(Counter(pooljobs.notes(noted)).values()) == 1
    assert sum(error is not None for error in outcomes) <= 8, "what one child had begun, and what was not told"


def test_nothing_is_left_of_the_way(service: Service) -> None:
    with service.connect() as w:
        w.submit(abs, -1).result(GUARD)
        service.replace()
        w.submit(abs, -1).result(GUARD)
        before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(3):
            service.replace()
            assert w.submit(abs, -1).result(GUARD) == 1
        assert wait_until(lambda: len(os.listdir("/proc/self/fd")) == before, GUARD)
        assert wait_until(lambda: threading.active_count() <= threads, GUARD)


@pytest.mark.parametrize(
    ("kind", "items", "before"),
    [
        (codec.SUBMIT, 0, []),
        (codec.SUBMIT, 0, [[0, 0, 0, 0]]),
        (codec.SUBMIT, 0, [[0, 0, 0, 0, -1]]),
        (codec.SUBMIT, 0, [[0, 0, 0, 0, "1"]]),
        (codec.SUBMIT, 0, [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
        (codec.SUBMIT, 0, [[0, 1, 0, 0, 0]]),
        (codec.CHUNK, 9, [[0, 10, 0, 0, 0]]),
        (codec.CHUNK, 9, [[3, 3, 0, 0, 0]]),
        (codec.CHUNK, 9, [[3, 5, 0, 0, 0], [4, 6, 0, 0, 0]]),
        (codec.CHUNK, 9, [[0, 0, 0, 0, 0]]),
        (codec.CHUNK, 9, 5),
    ],
)
def test_who_knows_of_a_task_what_no_client_of_ours_would_is_served_no_more(
    service: Service, kind: int, items: int, before: Any
) -> None:
    with service.connect() as w, service.connect() as other:
        assert w.submit(abs, -1).result(GUARD) == 1
        payload = details.pack({"before": before}) + pickle.dumps(((1,), {}))
        w._client.sending.send(kind, codec.DETAILED | codec.AGAIN, 99, 1, 1 | items << 32, payload)
        service.wait_for("client_condemned")
        with pytest.raises(SupervisorLost):
            w.submit(abs, -1).result(GUARD)
        assert other.submit(abs, -2).result(GUARD) == 2


def test_what_has_ended_is_kept_no_longer(service: Service) -> None:
    with service.connect() as w:
        pending = w._client.pending
        assert isinstance(pending, Pending)
        for _ in range(2):
            assert [w.submit(lambda each=each: each).result(GUARD) for each in range(200)] == list(range(200))  # type: ignore[misc]
            assert list(w.map(pooljobs.square, range(100), chunksize=10)) == [each**2 for each in range(100)]
            service.replace()
            assert w.submit(pooljobs.square, 3).result(GUARD) == 9
        assert not any((pending, pending.kept, pending.known, pending.recalled, pending.cancelled))


def test_a_function_is_kept_as_long_as_a_task_may_have_to_be_sent_again() -> None:
    pending = Pending()
    pending.functions.update((key, (codec.FUNCTION, 0, key, 0, 0, b"")) for key in range(200))
    pending.kept[1] = (codec.SUBMIT, 0, 1, 7, 0, b"")
    for key in range(128):
        pending.forget_function(key)
    assert set(pending.functions) == {7, *range(127, 200)} | set(pending.forgotten())
    assert 7 in pending.forgotten()
    del pending.kept[1]
    for key in range(128, 192):
        pending.forget_function(key)
    assert 7 not in pending.functions
