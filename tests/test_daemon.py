"""A supervisor that programs attach to: each has what a worker of its own has, and nobody is in another one's way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import pooljobs
import psutil
import pytest
from leaks import wait_until
from pooljobs import Gate
from services import GUARD, TESTS, Service, serving

import mpworker
from mpworker import AsyncProcessWorker, ProcessWorker, RetryPolicy, Task
from mpworker.errors import ConfigurationError, ConnectError, SupervisorLost, WorkerStopped
from mpworker.ipc import codec
from mpworker.ipc.build import build
from mpworker.supervisor import gate as gates

_HEADER = struct.Struct("<II")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One with two children, which all tests of this file may use that leave it as it was."""
    with serving(tmp_path_factory.mktemp("service"), "n = 2\n[queues]\nmail = 2\n") as service:
        service.connect().stop_graceful()  # it listens
        yield service


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Service]:
    """One of the test's own, with one child."""
    with serving(tmp_path, 'n = 1\nlog_level = "debug"\n') as service:
        yield service


def children_of(service: Service) -> list[int]:
    """The process ids, once there are some that are ready."""
    with service.connect() as w:
        w.submit(abs, -1).result(GUARD)
        return [child["pid"] for child in w.processes()["children"]]


# ------------------------------------------------------------ it is a worker


def test_it_is_a_worker(two: Service) -> None:
    with two.connect() as w:
        assert isinstance(w, ProcessWorker)
        assert w.submit(pooljobs.add, 2, right=3).result(GUARD) == 5
        assert list(w.map(pooljobs.square, range(1_000))) == [each * each for each in range(1_000)]
        assert [future.result(GUARD) for future in w.submit_many(abs, range(-50, 0))] == list(range(50, 0, -1))
        assert w.submit(lambda: [1, "two"]).result(GUARD) == [1, "two"]
        large = bytes(range(256)) * 40_000
        assert w.submit(bytes.upper, large).result(GUARD) == large.upper()
        with pytest.raises(ValueError, match="no"):
            w.submit(pooljobs.fail, "no").result(GUARD)
        assert {future.result(GUARD) for future in as_completed(w.submit_many(pooljobs.square, range(9)))} == {
            each * each for each in range(9)
        }
    assert repr(w).startswith(f"<ConnectedWorker {two.socket} supervisor=")


def test_the_ids_of_tasks_are_those_that_they_see(two: Service) -> None:
    with two.connect() as w, two.connect() as other:
        futures = [each.submit(lambda: mpworker.current().task_id) for each in (w, other, w)]
        assert [future.result(GUARD) for future in futures] == [future.task_id for future in futures]
        assert w.get_task(futures[0].task_id).status == "completed"
        with pytest.raises(mpworker.errors.TaskNotFound):
            other.get_task(futures[0].task_id)


def test_retries_and_who_judges_them(two: Service, tmp_path: Path) -> None:
    with two.connect() as w, two.connect() as other:
        first = RetryPolicy(give_up_on=[ValueError], base=0.0)
        second = RetryPolicy(give_up_on=[KeyError], base=0.0)
        for each, policy, tries in ((w, first, 1), (other, second, 3)):
            path = tmp_path / str(tries)
            view = each.options(retries=2, retry_policy=policy)
            assert isinstance(view.submit(note_and_fail, str(path)).exception(GUARD), ValueError)
            assert path.read_text().count("\n") == tries
        assert w.metrics().retries == 0
        assert other.metrics().retries == 2


def note_and_fail(path: str) -> None:
    pooljobs.note(path, "tried")
    raise ValueError("no")


def test_each_client_has_functions_of_its_own(two: Service) -> None:
    """Each counts its functions from one, and the children know those of all."""
    workers = [two.connect() for _ in range(4)]
    calls = [lambda: "first", lambda: "second", lambda: "third", lambda: "fourth"]
    for _ in range(3):
        futures = [w.submit(call) for w, call in zip(workers, calls, strict=True) for _ in range(5)]
        assert [future.result(GUARD) for future in futures] == [call() for call in calls for _ in range(5)]
    for w in workers:
        w.stop_graceful()


def test_a_function_of_one_that_has_left_is_nobodys(one: Service) -> None:
    """Its number is another's from then on, and the child knows no more what it was."""
    for round_ in range(4):
        with one.connect() as w:
            calls = [lambda round_=round_, number=number: (round_, number) for number in range(4)]
            assert [w.submit(call).result(GUARD) for call in calls] == [(round_, number) for number in range(4)]
        one.wait_for("client_left", round_ + 1)


def test_what_runs_and_waits_can_be_looked_up(gate: Gate, one: Service) -> None:
    with one.connect() as w, one.connect() as other:
        running = w.submit(pooljobs.hold, gate.folder)
        gate.wait_begun()
        queued = w.submit(pooljobs.square, 2)
        assert [w.get_task(each.task_id).status for each in (running, queued)] == ["running", "queued"]
        assert [each.task_id for each in w.get_tasks(status="running")] == [running.task_id]
        assert other.get_tasks() == []
        assert (w.metrics().running, w.metrics().queued, other.metrics().queued) == (1, 1, 0)
        assert running.running()
        gate.release()


def test_tasks_with_ids_times_and_queues(two: Service) -> None:
    with two.connect() as w:
        future = w.register_task(
            Task(pooljobs.square, (4,), id="order-1", queue="mail", priority=3, metadata={"a": "b"})
        )
        later = w.register_task_after(0.05, Task(pooljobs.square, (5,)))
        assert (future.result(GUARD), later.result(GUARD)) == (16, 25)
        info = w.get_task("order-1")
        assert (info.queue, info.priority, info.metadata, info.status) == ("mail", 3, {"a": "b"}, "completed")
        assert {each.task_id for each in w.get_tasks()} == {"order-1", later.task_id}
        with pytest.raises(mpworker.errors.DuplicateTask):
            w.register_task(Task(pooljobs.square, (4,), id="order-1"))
        assert w.metrics().completed == 2


def test_recurring_tasks_and_their_results(two: Service) -> None:
    with two.connect() as w:
        with w.subscribe_results() as results:
            w.register_cron_task("every", "@every 0.05s", partial_of_square)
            w.run_cron_task("every")
            assert next(results).name == "every"
        assert w.cron_tasks()[0].name == "every"
        w.remove_cron_task("every")
    with two.connect() as w:
        assert w.cron_tasks() == []


def partial_of_square() -> int:
    return pooljobs.square(3)


def test_hooks_hear_of_ones_own_tasks_alone(two: Service) -> None:
    heard: list[str] = []
    hooks = mpworker.Hooks(on_finish=lambda event: heard.append(event.task_id))
    with two.connect(hooks=hooks) as w, two.connect() as other:
        own = [w.submit(pooljobs.square, each) for each in range(3)]
        foreign = [other.submit(pooljobs.square, each) for each in range(3)]
        for future in (*own, *foreign):
            future.result(GUARD)
        wait_until(lambda: len(heard) >= 3, GUARD)
    assert sorted(heard) == sorted(future.task_id for future in own)


def test_what_one_cancels_is_its_own(gate: Gate, one: Service) -> None:
    with one.connect() as w, one.connect() as other:
        holder = other.submit(pooljobs.hold, gate.folder, "held")
        gate.wait_begun()
        mine = w.submit_many(pooljobs.square, range(5))
        theirs = other.submit_many(pooljobs.square, range(5))
        chunk = other.map(pooljobs.square, range(100))
        assert w.cancel_all() == 5
        assert all(future.cancelled() for future in mine)
        assert not any(future.done() for future in theirs)
        gate.release()
        assert holder.result(GUARD) == "held"
        assert [future.result(GUARD) for future in theirs] == [0, 1, 4, 9, 16]
        assert sum(chunk) == sum(each * each for each in range(100))
        assert (w.metrics().cancelled, other.metrics().cancelled) == (5, 0)


def test_a_task_that_kills_its_child_is_its_own_clients(two: Service) -> None:
    with two.connect() as w, two.connect() as other:
        assert isinstance(w.submit(os._exit, 3).exception(GUARD), mpworker.errors.WorkerCrashed)
        assert [future.result(GUARD) for future in other.submit_many(pooljobs.square, range(20))] == [
            each * each for each in range(20)
        ]
        assert (w.metrics().crashes, other.metrics().crashes) == ({"exit": 1}, {})


def test_in_an_event_loop(two: Service) -> None:
    async def main() -> None:
        async with await AsyncProcessWorker.connect(two.socket, connect_timeout=GUARD) as w:
            assert await asyncio.gather(*w.submit_many(pooljobs.square, range(20))) == [
                each * each for each in range(20)
            ]
            assert [each async for each in w.map(pooljobs.square, range(100))] == [each * each for each in range(100)]
            assert await w.options(queue="mail").submit(pooljobs.add, 1, 2) == 3
            assert (await w.metrics()).completed == 21
        with pytest.raises(WorkerStopped):
            w.submit(pooljobs.square, 1)

    asyncio.run(main())


# ------------------------------------------------------------ clients come and go


def test_a_client_that_leaves_leaves_the_rest_as_it_was(two: Service) -> None:
    before = children_of(two)
    w = two.connect()
    future = w.submit(pooljobs.square, 3)
    assert w.stop_graceful().tasks == 0
    assert future.result(GUARD) == 9
    with pytest.raises(WorkerStopped):
        w.submit(pooljobs.square, 3)
    assert w.metrics().completed == 1
    w = two.connect()
    w.stop_now()
    assert set(before) & set(children_of(two))


def test_leaving_waits_for_what_was_submitted(gate: Gate, one: Service) -> None:
    with one.connect() as w:
        future = w.submit(pooljobs.hold, gate.folder, "held")
        gate.wait_begun()
        threading.Timer(0.05, gate.release).start()
    assert future.result(GUARD) == "held"


def test_who_leaves_at_once_has_its_tasks_cancelled(gate: Gate, one: Service) -> None:
    w = one.connect()
    futures = [w.submit(pooljobs.hold, gate.folder), w.submit(pooljobs.square, 2)]
    gate.wait_begun()
    w.stop_now()
    assert all(future.cancelled() for future in futures)
    with one.connect() as other:
        assert other.submit(pooljobs.square, 3).result(GUARD) == 9  # the child that held was interrupted


CLIENT = """
    import os, signal, sys, time
    import mpworker, pooljobs
    w = mpworker.connect(sys.argv[1], when_gone=sys.argv[2], connect_timeout=60.0)
    futures = [w.submit(pooljobs.hold_and_note, sys.argv[3], each) for each in range(3)]
    print("submitted", flush=True)
    time.sleep(600)
"""


def dead_client(service: Service, when_gone: str, gate: Gate) -> None:
    """A program that submits three tasks and is killed when the first of them runs."""
    command = [sys.executable, "-c", textwrap.dedent(CLIENT), service.socket, when_gone, gate.folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": TESTS}) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"submitted\n"
        gate.wait_begun()
        program.kill()


def test_a_dead_clients_tasks_are_cancelled(gate: Gate, one: Service) -> None:
    dead_client(one, "cancel", gate)
    assert one.wait_for("client_lost")[-1]["finishes"] is False
    with one.connect() as w:
        assert w.submit(pooljobs.square, 3).result(GUARD) == 9
    assert not (Path(gate.folder) / "noted").exists()


def test_a_dead_clients_tasks_are_finished_if_it_has_asked_for_that(gate: Gate, one: Service) -> None:
    dead_client(one, "finish", gate)
    one.wait_for("client_lost")
    gate.release(3)
    noted = Path(gate.folder) / "noted"
    wait_until(lambda: noted.exists() and noted.read_text() == "0\n1\n2\n", GUARD)


def test_a_client_whose_supervisor_is_killed_knows(gate: Gate, one: Service) -> None:
    w = one.connect(reconnect_timeout=0)
    future = w.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    children = [child["pid"] for child in w.processes()["children"]]
    one.process.kill()
    assert isinstance(future.exception(GUARD), SupervisorLost)
    with pytest.raises(SupervisorLost):
        w.submit(pooljobs.square, 1)
    wait_until(lambda: not any(map(psutil.pid_exists, children)), GUARD)


def test_many_clients_at_once(two: Service) -> None:
    def work(number: int) -> None:
        with two.connect(name=f"client {number}") as w:
            for round_ in range(3):
                futures = [w.submit(pooljobs.add, number * 1_000, each) for each in range(50)]
                found.setdefault(number, []).append([future.result(GUARD) for future in futures])
                assert sum(w.map(pooljobs.add, range(100), [round_] * 100)) == 4950 + 100 * round_

    found: dict[int, list[list[int]]] = {}
    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    assert found == {number: [[number * 1_000 + each for each in range(50)]] * 3 for number in range(16)}


def test_a_fork_of_a_client_is_none(two: Service) -> None:
    with two.connect() as w:
        pid = os.fork()
        if pid == 0:
            try:
                w.submit(pooljobs.square, 2)
            except WorkerStopped:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert w.submit(pooljobs.square, 2).result(GUARD) == 4


def test_clients_that_come_and_go_leave_nothing_in_the_supervisor(one: Service) -> None:
    def some() -> int:
        for _ in range(60):
            with one.connect() as w:
                w.submit(lambda: 1).result(GUARD)
                w.subscribe_results().close()
        taken: int = psutil.Process(one.process.pid).memory_info().rss
        return taken

    some()
    before, fds = some(), psutil.Process(one.process.pid).num_fds()
    assert some() - before < 1 << 19, "it keeps more than 8 KiB of each"
    wait_until(lambda: psutil.Process(one.process.pid).num_fds() == fds, GUARD)


# ------------------------------------------------------------ fairness


def test_a_flood_of_one_client_does_not_hold_up_another(two: Service) -> None:
    with two.connect() as flood, two.connect() as w:
        futures = flood.submit_many(time.sleep, [0.002] * 20_000)
        w.submit(time.sleep, 0.002).result(GUARD)
        assert w.submit(time.sleep, 0.002).result(GUARD) is None
        left = sum(not future.done() for future in futures)
        assert left > 10_000, "its tasks went behind all of those that were there before"
        flood.stop_now()


def test_results_that_nobody_takes_hold_up_their_own_client_alone(two: Service) -> None:
    with two.connect() as w, two.connect() as other, w.subscribe_results(buffer=1, policy="block") as results:
        futures = w.submit_many(pooljobs.square, range(100))
        assert other.submit(pooljobs.square, 5).result(GUARD) == 25
        assert sorted(next(results).result() for _ in futures) == sorted(each * each for each in range(100))


def test_a_frozen_client_holds_up_nobody(gate: Gate, one: Service) -> None:
    """It reads nothing, and so its ring and more than that is full."""
    script = """
        import os, signal, sys
        import mpworker
        w = mpworker.connect(sys.argv[1], connect_timeout=60.0)
        w.submit_many(bytes, [20_000] * 2_000)
        os.kill(os.getpid(), signal.SIGSTOP)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), one.socket]) as program:
        try:
            os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
            with one.connect() as w:
                for each in range(20):
                    assert w.submit(pooljobs.square, each).result(GUARD) == each * each
        finally:
            program.kill()
    one.wait_for("client_lost")


# ------------------------------------------------------------ who may attach, and what is no client


@contextlib.contextmanager
def raw(service: Service) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(GUARD)
        sock.connect(service.socket)
        yield sock


def framed(message: Any) -> bytes:
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body), 0) + body


def heard(sock: socket.socket) -> dict[str, Any]:
    size, _ = _HEADER.unpack(sock.recv(8))
    answer: dict[str, Any] = json.loads(sock.recv(size))
    return answer


HELLO = {
    "op": "attach",
    "build": build(),
    "python": list(sys.version_info[:2]),
    "name": "",
    "when_gone": "cancel",
    "log_level": 30,
    "prefix": None,
    "recovers": False,
}


@pytest.mark.parametrize(
    ("hello", "complaint"),
    [
        (HELLO | {"build": "0.0.1+00000000"}, "runs mpworker"),
        (HELLO | {"python": [3, 8]}, "functions travel as byte code"),
        (HELLO | {"when_gone": "perhaps"}, "no hello"),
        (HELLO | {"log_level": "loud"}, "no hello"),
        (HELLO | {"prefix": "x"}, "no hello"),
        (HELLO | {"prefix": ""}, "no hello"),
        (HELLO | {"prefix": 5}, "no hello"),
        (HELLO | {"prefix": "0011-"}, "no hello"),
        ({"op": "attach"}, "no hello"),
        ([1, 2], "no hello"),
    ],
)
def test_a_hello_that_is_not_understood_is_refused(two: Service, hello: Any, complaint: str) -> None:
    with raw(two) as sock:
        sock.sendall(framed(hello))
        assert complaint in heard(sock)["refused"]
        assert sock.recv(1) == b""


GARBAGE = {
    "zeros": b"\0" * 8,
    "ones": b"\xff" * 64,
    "too long": _HEADER.pack(1 << 20, 0) + b"x" * 100,
    "no JSON": framed("x")[:-1] + b"\0",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_hung_up_on(two: Service, garbage: bytes) -> None:
    with raw(two) as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    with two.connect() as w:
        assert w.submit(pooljobs.square, 2).result(GUARD) == 4


STRANGER = """
    import os, socket, sys
    path, hello, *groups = sys.argv[1:]
    os.setgroups([int(each) for each in groups])
    os.setresgid(65_534, 65_534, 65_534)
    os.setresuid(65_534, 65_534, 65_534)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        try:
            sock.sendall(bytes.fromhex(hello))
        except BrokenPipeError:
            pass  # it is refused before it has said anything
        print(sock.recv(4096)[8:].decode())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(
    ("groups", "answer"),
    [([], "user 65534 may not attach"), ([1234], "user 65534 may not attach"), ([4321], "come in")],
)
def test_who_may_attach_is_asked_of_the_kernel(groups: list[int], answer: str) -> None:
    """A user that is not named, and in a group that is: looked at by the loop's own gate, in this process."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o711)
        sock = gates.listen(str(folder / "gate.sock"), 0o666)
        (folder / "gate.sock").chmod(0o666)
        attached: list[gates.Peer] = []
        handlers: dict[int, Callable[[], None]] = {}

        def enter(peer: gates.Peer, _hello: dict[str, Any]) -> None:
            attached.append(peer)
            raise gates.Refused("come in")

        gate = gates.Gate(sock, [0], [4321], handlers.__setitem__, handlers.pop, enter)
        told = [str(folder / "gate.sock"), framed(HELLO).hex(), *map(str, groups)]
        words = [sys.executable, "-c", textwrap.dedent(STRANGER), *told]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program:
            while program.poll() is None:
                ready, _, _ = select.select(list(handlers), [], [], 0.05)
                for fd in ready:
                    handlers[fd]()
            assert program.stdout is not None
            assert answer in program.stdout.read()
        assert bool(attached) == (answer == "come in")
        gate.close()
    finally:
        shutil.rmtree(folder)


def test_a_client_that_goes_on_talking_is_served_no_more(two: Service) -> None:
    with raw(two) as sock:
        sock.sendall(framed(HELLO))
        assert "prefix" in heard(sock)
        sock.sendall(b"more")
        with contextlib.suppress(ConnectionResetError):  # there were descriptors that nobody has taken
            assert sock.recv(9) == codec.DISMISSED


def test_a_corrupt_ring_ends_the_service_of_its_client_alone(one: Service) -> None:
    with one.connect() as w, one.connect() as other:
        assert w.submit(pooljobs.square, 2).result(GUARD) == 4
        push = w._client.supervisor.channel.outbound.push
        assert push(5, 0, 1, 99, 99, b"")  # a task of a function and options that nobody has
        w._client._ring()
        one.wait_for("client_condemned")
        with pytest.raises(SupervisorLost):
            w.submit(pooljobs.square, 2).result(GUARD)
        assert other.submit(pooljobs.square, 3).result(GUARD) == 9


TOO_MANY = {"max_entries": 1 << 80, "max_bytes": 1, "ttl": None, "results": False, "interval": 1.0}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (codec.OPTIONS, {"priority": -1}),
        (codec.OPTIONS, {"queue": "other"}),
        (codec.OPTIONS, {"weight": "1"}),
        (codec.OPTIONS, {"timeout": "soon"}),
        (codec.REQUEST, ["stop"]),
        (codec.REQUEST, {"verb": "retention", "options": TOO_MANY}),
        (codec.REQUEST, {"verb": "set_max_workers", "n": 3, "descriptors": 0}),
        (codec.REQUEST, {"verb": "pause", "names": None}),
        (codec.REQUEST, {"verb": "rate", "rate": 1.0, "burst": 1}),
        (codec.REQUEST, {"verb": "service", "op": "stop", "now": True}),
        (codec.REQUEST, {"verb": "record", "path": "/tmp/trace"}),
        (codec.REQUEST, {"verb": "queue", "name": "mail", "options": {}}),
    ],
    ids=lambda value: value.get("verb", str(value)) if isinstance(value, dict) else str(value),
)
def test_who_does_not_ask_as_our_clients_do_is_served_no_more(tmp_path: Path, kind: int, said: Any) -> None:
    config = "n = 1\n[clients]\nsteering_uids = []\n"
    with serving(tmp_path, config) as service, service.connect() as w, service.connect() as other:
        w._client.sending.send(kind, 0, 99, 0, 0, json.dumps(said).encode())
        service.wait_for("client_condemned")
        with pytest.raises(SupervisorLost):
            w.submit(pooljobs.square, 2).result(GUARD)
        assert other.submit(pooljobs.square, 3).result(GUARD) == 9


def test_where_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="mpworker serve"):
        mpworker.connect(tmp_path / "nobody.sock", connect_timeout=0.1)
    assert issubclass(ConnectError, ConnectionError)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"when_gone": "perhaps"}, "when_gone must be 'cancel' or 'finish', not 'perhaps'"),
        ({"connect_timeout": 0}, "connect_timeout must be greater than 0 s"),
        ({"max_pending": 0}, "max_pending must be at least 1"),
        ({"name": 3}, "name must be a str"),
    ],
)
def test_bad_options(two: Service, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        mpworker.connect(two.socket, **{"connect_timeout": GUARD} | options)
    with pytest.raises(ConfigurationError, match="path must be"):
        mpworker.connect(3)  # type: ignore[arg-type]


def test_a_queue_and_a_priority_that_are_not_for_all(two: Service) -> None:
    with two.connect() as w:
        with pytest.raises(ConfigurationError, match="there is no queue 'other'"):
            w.options(queue="other")
        with pytest.raises(ConfigurationError, match="priority must be at least 0 with this supervisor"):
            w.options(priority=-1)
        assert w.options(queue="mail", priority=1).submit(pooljobs.square, 2).result(GUARD) == 4


def test_what_concerns_all_is_for_those_who_may(tmp_path: Path) -> None:
    with serving(tmp_path, "n = 1\n[clients]\nsteering_uids = []\n") as service, service.connect() as w:
        for verb in (
            partial(w.set_max_workers, 2),
            w.pause,
            w.resume,
            w.drain,
            partial(w.set_rate, 1.0),
            partial(w.set_queue, "mail", weight=2),
        ):
            with pytest.raises(ConfigurationError, match=r"clients\.steering_uids"):
                verb()
        assert w.submit(pooljobs.square, 2).result(GUARD) == 4


def test_who_may_steer_does(one: Service) -> None:
    with one.connect() as w, one.connect() as other:
        w.set_max_workers(2)
        wait_until(lambda: len(w.processes()["children"]) == 2, GUARD)
        w.pause()
        future = other.submit(pooljobs.square, 2)
        assert not future.running()
        w.resume()
        assert future.result(GUARD) == 4
        w.set_queue("mail", weight=3)
        assert w.queues()["mail"].weight == 3


def test_no_more_clients_than_there_may_be(tmp_path: Path) -> None:
    with serving(tmp_path, "n = 1\n[clients]\nmax = 2\n") as service, service.connect() as w, service.connect():
        with pytest.raises(ConnectError, match="2 clients are attached"):
            service.connect()
        w.stop_graceful()
        service.wait_for("client_left")
        service.connect().stop_graceful()


def test_who_says_nothing_is_let_go(two: Service) -> None:
    with raw(two) as sock:
        assert "no hello came in time" in heard(sock)["refused"]


def test_a_second_supervisor_is_told_of_the_first(one: Service, tmp_path: Path) -> None:
    with one.connect():
        pass
    again = subprocess.run(
        [sys.executable, "-m", "mpworker.cli", "serve", "--socket", one.socket, "-n", "1"],
        capture_output=True,
        text=True,
        timeout=GUARD,
        check=False,
    )
    assert (again.returncode, again.stderr) == (
        69,
        f"mpworker serve: [Errno 98] a supervisor listens at {one.socket} already\n",
    )
    with one.connect() as w:
        assert w.submit(pooljobs.square, 2).result(GUARD) == 4


# ------------------------------------------------------------ its end, and signals


def test_it_finishes_what_it_has_accepted_and_takes_no_more(gate: Gate, one: Service) -> None:
    w = one.connect()
    futures = [w.submit(pooljobs.hold, gate.folder, each) for each in range(3)]
    gate.wait_begun()
    one.process.send_signal(signal.SIGTERM)
    one.wait_for("stopping")

    def is_closed() -> bool:
        w._client.poll()
        return w._client.is_closed()

    wait_until(is_closed, GUARD)
    with pytest.raises(WorkerStopped):
        w.submit(pooljobs.square, 1)
    with pytest.raises(ConnectError):
        mpworker.connect(one.socket, connect_timeout=0.1)
    gate.release(3)
    assert [future.result(GUARD) for future in futures] == [0, 1, 2]
    assert one.ended() == 0
    assert one.records()[-1] | {"at": 0} == {"at": 0, "level": "INFO", "event": "stopped", "unfinished": 0}
    assert not Path(one.socket).exists()


def test_after_its_time_the_rest_is_cancelled(gate: Gate, tmp_path: Path) -> None:
    with serving(tmp_path, "n = 1\nstop_timeout = 0.2\n") as service:
        w = service.connect()
        futures = [w.submit(pooljobs.hold, gate.folder), w.submit(pooljobs.square, 2)]
        gate.wait_begun()
        assert service.stop() == 0
        for future in futures:
            with pytest.raises(CancelledError):
                future.result(GUARD)


def test_a_second_signal_stops_it_now(gate: Gate, one: Service) -> None:
    w = one.connect()
    future = w.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    one.process.send_signal(signal.SIGINT)
    one.wait_for("stopping")
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 0
    with pytest.raises(CancelledError):
        future.result(GUARD)


def test_signals_add_and_remove_a_child(one: Service) -> None:
    with one.connect() as w:
        for number, count in ((signal.SIGTTIN, 2), (signal.SIGTTIN, 3), (signal.SIGTTOU, 2)):
            one.process.send_signal(number)
            wait_until(lambda count=count: len(w.processes()["children"]) == count, GUARD)
        for count in (4, 5):  # no fewer than one
            one.process.send_signal(signal.SIGTTOU)
            assert one.wait_for("pool_resized", count)[-1]["n"] == 1
        wait_until(lambda: len(w.processes()["children"]) == 1, GUARD)


def test_no_process_is_left(one: Service) -> None:
    processes = psutil.Process(one.process.pid).children(recursive=True)
    wait_until(lambda: len(psutil.Process(one.process.pid).children(recursive=True)) >= 2, GUARD)
    processes = psutil.Process(one.process.pid).children(recursive=True)
    one.process.kill()
    wait_until(lambda: not any(each.is_running() for each in processes), GUARD)


def test_children_that_cannot_be_are_told_to_all(tmp_path: Path) -> None:
    with serving(tmp_path, 'n = 1\n[children]\npreload = ["no_such_module"]\n') as service:
        assert service.ended() == 70
        assert "no_such_module" in service.records("children_fail")[0]["why"]


# ------------------------------------------------------------ what it never does


def test_it_unpickles_nothing(tmp_path: Path) -> None:
    """It serves where there is no pickle to be had."""
    bootstrap = (
        "import sys\nfor name in ('pickle', '_pickle', 'cloudpickle', 'pickletools'): sys.modules[name] = None\n"
    )
    launcher = textwrap.dedent(
        f"""
        import os, sys
        from mpworker import programs
        from mpworker.service import launch
        from mpworker.service.config import read
        made = programs.service_command
        def command(python, fd):
            words = made(python, fd)
            words[-1] = {bootstrap!r} + words[-1]
            return words
        programs.service_command = command
        launch.become_supervisor(read(None, {{}}, {{"socket": sys.argv[1], "n": 1}}), [])
        """
    )
    path = str(tmp_path / "pool.sock")
    log = tmp_path / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", launcher, path], stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": TESTS}
        )
    try:
        with mpworker.connect(path, connect_timeout=GUARD) as w:
            assert w.submit(pooljobs.add, [1], [2]).result(GUARD) == [1, 2]
            assert sum(w.map(pooljobs.square, range(10))) == 285
            policy = RetryPolicy(give_up_on=[KeyError], base=0.0)
            assert isinstance(
                w.options(retries=1, retry_policy=policy).submit(pooljobs.fail, 1).exception(GUARD), ValueError
            )
            w.register_cron_task("every", "@every 1h", partial_of_square)
            w.run_cron_task("every")
            wait_until(lambda: w.cron_history("every")[0].outcome == "completed", GUARD)
    finally:
        process.terminate()
        assert process.wait(GUARD) == 0, log.read_text()


def test_nothing_of_a_call_is_in_the_log(one: Service) -> None:
    secret = "payload-that-nobody-shall-read"
    with one.connect() as w:
        assert w.submit(str.upper, secret).result(GUARD) == secret.upper()
        assert isinstance(w.options(retries=1).submit(pooljobs.fail, secret).exception(GUARD), ValueError)
        assert isinstance(w.options(timeout=0.05).submit(pooljobs.sleep_with, secret).exception(GUARD), TimeoutError)
        assert isinstance(w.submit(pooljobs.die_with, secret).exception(GUARD), mpworker.errors.WorkerCrashed)
    assert one.stop() == 0
    text = one.log.read_text()
    assert secret not in text
    assert secret.upper() not in text
    assert {"serving", "client_attached", "task_retried", "attempt_timed_out", "child_crashed", "stopped"} <= {
        record["event"] for record in one.records()
    }
    names = {record["event"]: record["name"] for record in one.records() if "name" in record and "task" in record}
    assert names["task_retried"] == "fail", "what it is of is told, by the name of its function"
    assert (names["attempt_timed_out"], names["child_crashed"]) == ("sleep_with", "die_with")


def test_a_crash_in_a_map_is_told_with_the_name_of_its_function(one: Service) -> None:
    with one.connect() as w, pytest.raises(mpworker.errors.WorkerCrashed):
        list(w.map(pooljobs.die_with, ["x"]))
    assert one.wait_for("child_crashed")[0]["name"] == "die_with"


def test_a_service_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(GUARD)
        service = Service(tmp_path, "n = 1\n")
        service.close()
        service.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="300000")
        try:
            said: list[str] = []

            def hears(word: str) -> None:
                del said[:]
                while not any(line.startswith(word) for line in said):
                    said.extend(manager.recv(4096).decode().splitlines())

            hears("READY=1")
            assert f"MAINPID={service.process.pid}" in said
            for _ in range(3):
                hears("WATCHDOG=1")
            with service.connect():
                hears("STATUS=1 clients, 0 tasks, 1 of 1 children")
            os.kill(service.process.pid, signal.SIGSTOP)
            wait_until(lambda: psutil.Process(service.process.pid).status() == psutil.STATUS_STOPPED, GUARD)
            manager.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # what was said before it stood still
                while True:
                    manager.recv(4096)
            assert not select.select([manager], [], [], 0.5)[0], "it says that it is alive, and stands still"
            manager.settimeout(GUARD)
            os.kill(service.process.pid, signal.SIGCONT)
            hears("WATCHDOG=1")
            service.process.send_signal(signal.SIGTERM)
            hears("STOPPING=1")
            assert service.ended() == 0
        finally:
            service.close()


def test_a_socket_that_is_passed_on(tmp_path: Path) -> None:
    path = str(tmp_path / "given.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        launcher = """
            import os, sys
            os.dup2(int(sys.argv[1]), 3, inheritable=True)
            os.environ["LISTEN_PID"] = str(os.getpid())
            words = [sys.executable, "-m", "mpworker.cli", "serve", "-n", "1", "--config", sys.argv[2]]
            os.execv(sys.executable, words)
        """
        (tmp_path / "empty.toml").touch()
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(launcher), str(sock.fileno()), str(tmp_path / "empty.toml")],
            pass_fds=[sock.fileno()],
            env={**os.environ, "LISTEN_FDS": "1", "PYTHONPATH": TESTS},
            stderr=subprocess.DEVNULL,
        )
    try:
        with mpworker.connect(path, connect_timeout=GUARD) as w:
            assert w.submit(os.environ.get, "LISTEN_FDS").result(GUARD) is None
    finally:
        process.terminate()
        assert process.wait(GUARD) == 0
    assert Path(path).exists(), "it is the service manager's"
