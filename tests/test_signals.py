"""Signals that come at any point of the client's code: ones that raise there, and ones whose handler uses the pool."""

import ast
import contextlib
import dis
import functools
import importlib
import inspect
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, as_completed, wait
from pathlib import Path
from typing import Any

import campaign_tasks as tasks
import pytest
from concurrently import GUARD, a_function, eventually, lines, script, together
from loops import stopped
from mixed import Mixed
from points import CHECKS, CLIENT, LIBRARY, AtPoint, interrupt, sweep

from mpworker import ProcessWorker, Task, TaskFuture
from mpworker.background import Background
from mpworker.chunks import Chunk
from mpworker.client import Client
from mpworker.clientthread import ClientThread
from mpworker.ending import Ending
from mpworker.errors import TaskCancelled, WorkerStopped
from mpworker.ipc import codec
from mpworker.reader import Reader
from mpworker.results import Subscription
from mpworker.sending import Sending
from mpworker.subscribers import Fanout, subscribe
from mpworker.words import Word

# ------------------------------------------------------------ what the code rests on


@pytest.mark.parametrize(
    ("function", "look", "act"),
    [
        (Reader._lead, "_leader", "STORE_ATTR _leader"),
        (Reader._read_until, "_leader", "wait"),
        (Reader._read_some, "_leader", "_pop"),
        (Reader._follow, "waiting", "STORE_ATTR _leader"),
        (Reader.poll, "_leader", "STORE_ATTR _leader"),
        (ClientThread.start, "running", "start_new_thread"),
        (Background._work, "_due", "STORE_ATTR running"),
        (Client._submit_otherwise, "_closed", "_push"),
        (Client._submit_otherwise, "live", "_push"),
        (Sending._send_forgotten, "under_way", "_push"),
        (Sending._take_stream, "streams", "STORE_ATTR under_way"),
        (Sending._push_when_there_is_room, "live", "_push"),
        (TaskFuture.add_audience, "status", "STORE_ATTR watched"),
        (TaskFuture.settle, "_watched", "STORE_ATTR watched"),
        (TaskFuture._decode, "_payload", "STORE_ATTR _payload"),
        (Subscription.offer, "_seen", "STORE_ATTR _seen"),
        (Subscription.offer, "_came", "_append"),
        (Subscription.offer, "_closed", "STORE_ATTR full"),
        (Subscription._take, "_closed", "STORE_ATTR _taken"),
        (Subscription._take, "_closed", "STORE_ATTR full"),
        (Fanout._offer_each, "log", "STORE_ATTR published"),
        (Fanout._offer_each, "published", "DELETE_SUBSCR None"),
        (Fanout.remove, "_subscriptions", "STORE_ATTR take_out"),
        (Fanout.watch, "_watched", "STORE_ATTR watched"),
        (Fanout._unwatch, "_watched", "STORE_ATTR watched"),
        (Fanout.run_begins, "_newest_run", "STORE_SUBSCR None"),
        (Fanout.run_begins, "_newest_run", "STORE_ATTR left_out"),
        (Word.tell, "told", "_push"),
        (Word.tell, "_tells", "STORE_ATTR told"),
        (subscribe, "fanout", "STORE_ATTR fanout"),
        (Chunk.settle_items, "_ended", "STORE_ATTR left"),
    ],
    ids=lambda value: getattr(value, "__qualname__", value),
)
def test_no_thread_and_no_signal_comes_between(function: Any, look: str, act: str) -> None:
    # These looks are true when the act follows only because Python hands over the GIL, and looks for signals, at calls,
    # at the start of functions and at turns of loops, and nowhere else.
    steps = []
    for step in dis.get_instructions(function):
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)  # 3.13 loads two variables at once
        steps.append((step.opname, f"{step.opname} {step.argval}", *names))
    acts = [at for at, step in enumerate(steps) if act in step[1:]]
    assert acts
    gaps = []
    for at in acts:
        before = [index for index in range(at) if look in steps[index][1:]]
        if before:
            gaps.append([name for name, *_ in steps[before[-1] + 1 : at] if name in CHECKS])
    assert [] in gaps, gaps


LOOPS = (ast.While, ast.For, ast.ListComp, ast.SetComp, ast.DictComp)


def loops_in_a_try(tree: ast.AST, inside: bool = False) -> Iterator[int]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.GeneratorExp):
            yield from loops_in_a_try(node)
        else:
            if inside and isinstance(node, LOOPS):
                yield node.lineno
            yield from loops_in_a_try(node, inside or isinstance(node, ast.Try | ast.With))


@pytest.mark.parametrize(
    "name",
    [
        *("audience", "background", "chunks", "client", "clients", "clientthread", "control", "ending", "functions"),
        *("future", "launch", "mapping", "observer", "optiontable", "reader", "resending", "results", "sending"),
        *("subscribers", "view", "waiting", "words", "worker"),
    ],
)
def test_no_turn_of_a_loop_escapes_a_finally(name: str) -> None:
    # Why: `mpworker.reader`. Whether one does depends on the version of Python, and on when a signal comes.
    module = importlib.import_module(f"mpworker.{name}")
    found = list(loops_in_a_try(ast.parse(inspect.getsource(module))))
    assert not found, f"loops in mpworker.{name} at lines {found}"


# ------------------------------------------------------------ interrupts


@pytest.mark.parametrize("company", ["alone", "followed", "company"])
def test_a_hundred_interrupts_lose_nothing(company: str) -> None:
    count = 150
    rng = random.Random(random.randrange(1 << 32))
    with script("interrupted", str(count), company) as process:
        answers = lines(process)
        assert next(answers) == ["ready"]
        for _ in range(count):
            until = time.monotonic_ns() + rng.randrange(3_000_000)
            while time.monotonic_ns() < until:
                pass
            process.send_signal(signal.SIGINT)
            assert next(answers) == ["interrupted"]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside another thread"])
def test_an_interrupt_at_any_point_leaves_the_client_whole(alone: bool) -> None:
    # Results that the main thread reads itself, in parts and whole; calls in parts; new functions; callbacks, for which
    # the background thread leads; a map. The other thread asks for the processes all the time: it leads and follows.
    numbers = itertools.count()
    functions = [a_function(0)]
    with ProcessWorker(n=2, client_ring_bytes=8192) as pool:
        client = pool._client
        futures: list[Any] = []
        called: list[int] = []
        expected = 0
        answers = 0
        over = threading.Event()

        def submit(right: Any, function: Any, *arguments: Any) -> Any:
            future = pool.submit(function, *arguments)
            futures.append((future, right))
            return future

        def scenario() -> None:
            nonlocal expected
            submit(tasks.grow(5, 12_000), tasks.grow, 5, 12_000).result(GUARD)
            value = next(numbers)
            functions.append(a_function(value))
            submit(1000 + value, functions[-1], 1).result(GUARD)
            submit((12_000, 84_000), tasks.size_of, bytes([7]) * 12_000).result(GUARD)
            slow = submit((2, 1), tasks.pause, 0.004, 2)
            slow.add_done_callback(lambda _: called.append(1))
            expected += 1
            slow.result(GUARD)
            assert list(pool.map(tasks.square, range(5), chunksize=2)) == [0, 1, 4, 9, 16]

        def check() -> None:
            # By another thread, which would wait for ever for what this one has left locked or has not handed over.
            together(look)
            eventually(lambda: len(called) >= expected)

        def look() -> None:
            assert client.functions.lock.acquire(timeout=GUARD / 2), "it stays locked"
            client.functions.lock.release()
            assert not any(client.sending.streams)
            assert not client.sending.under_way
            for future, right in futures:
                assert future.result(GUARD / 2) == right
            futures.clear()
            before = answers
            eventually(lambda: alone or answers > before + 1)
            eventually(lambda: client.background.watched == 0)
            assert pool.submit(functions[-1], 2).result(GUARD / 2) == functions[-1](2)
            eventually(lambda: client.poll() or not client.pending)

        def ask() -> None:
            nonlocal answers
            while not over.is_set():
                assert pool.processes()["supervisor"]
                answers += 1

        asker = threading.Thread(target=ask)
        if not alone:
            asker.start()
        scenario()  # imports and the like
        check()
        try:
            points = sweep(scenario, check)
        finally:
            over.set()
        if not alone:
            asker.join(GUARD)
            assert not asker.is_alive()
        assert points > 300


def test_an_interrupt_at_any_point_of_the_librarys_waits_leaves_the_client_whole() -> None:
    # `wait` and `as_completed` lock the futures one by one, in a loop.
    with ProcessWorker(n=2) as pool:
        futures: list[Any] = []

        def scenario() -> None:
            futures.extend(pool.submit(tasks.square, number) for number in range(2))
            assert [future.result(GUARD) for future in futures[-2:]] == [0, 1]
            futures.extend(pool.submit(tasks.pause, 0.002, number) for number in range(2))
            wait(futures, GUARD, FIRST_COMPLETED)
            assert {future.result() for future in as_completed(futures[-2:], GUARD)} == {(0, 1), (1, 1)}
            futures.append(pool.submit(tasks.pause, 0.002, 2))
            assert wait(futures, GUARD).not_done == set()

        def check() -> None:
            together(look)  # by another thread, which would wait for what this one has left locked
            look()
            futures.clear()

        def look() -> None:
            assert set(as_completed(futures, GUARD)) == set(futures)
            assert wait(futures, 0).not_done == set()
            called = threading.Event()
            pool.submit(tasks.square, 3).add_done_callback(lambda _: called.set())
            assert called.wait(GUARD)
            eventually(lambda: pool._client.background.watched == 0)

        scenario()  # imports and the like
        check()
        assert sweep(scenario, check) > 300


@pytest.mark.parametrize("how", [wait, as_completed])
def test_what_ends_while_the_library_looks_is_seen_pending_and_told(how: Any) -> None:
    # The states that it counts, and the waiters that it appends, must fit together, whatever ends in between.
    at, point = 0, AtPoint(0, dict)
    with ProcessWorker(n=1) as pool:
        while not at or point.done:
            futures = [pool.submit(tasks.square, number) for number in range(3)]
            point = AtPoint(at, lambda futures=futures: [future.result(GUARD) for future in futures], (CLIENT, LIBRARY))
            with point:
                found = how(futures, GUARD)
                ended = list(found.done if how is wait else found)
            assert sorted(future.result() for future in ended) == [0, 1, 4], point.where
            at += 1
    assert at > 30


@pytest.mark.parametrize("how", ["wait", "as_completed", "callback", "done"])
def test_a_signal_handler_may_wait_in_every_way_on_top_of_the_librarys_waits(how: str, tmp_path: Path) -> None:
    # The library holds its waiter's lock for a moment, which the background thread takes to tell the waiter that `held`
    # has ended; and only then could it tell anybody else.
    gate = tmp_path / "gate"
    with ProcessWorker(n=3) as pool:

        def scenario() -> None:
            gate.unlink(missing_ok=True)
            held = pool.submit(tasks.hold, str(tmp_path / "begun"), str(gate))
            futures = {held, *(pool.submit(tasks.square, number) for number in range(2))}
            waits = as_completed(futures, GUARD)
            ended = {next(waits), next(waits)}
            gate.touch()
            assert {*ended, *waits} == futures
            assert wait(futures, GUARD).not_done == set()

        def handle() -> None:
            gate.touch()
            in_every_way(pool, how)

        assert sweep(scenario, lambda: None, handle) > 150


def test_a_signal_handler_may_stop_the_pool_on_top_of_the_librarys_waits(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    begin = at = random.randrange(4)
    point = AtPoint(0, dict)
    while at == begin or point.done:
        gate.unlink(missing_ok=True)
        with ProcessWorker(n=2) as pool:

            def handle(pool: ProcessWorker = pool) -> None:
                gate.touch()
                pool.stop_graceful()

            point = AtPoint(at, handle, (LIBRARY, "/mpworker/audience.py"))
            with point, contextlib.suppress(WorkerStopped):
                held = pool.submit(tasks.hold, str(tmp_path / "begun"), str(gate))
                futures = {held, *(pool.submit(tasks.square, number) for number in range(2))}
                waits = as_completed(futures, GUARD)
                ended = {next(waits), next(waits)}
                gate.touch()
                assert {*ended, *waits} == futures, point.where
                assert wait(futures, GUARD).not_done == set(), point.where
        at += 4
    assert at > 40


def read_much(pool: ProcessWorker) -> None:
    """Results and calls in parts and whole, and a map."""
    futures = [pool.submit(tasks.grow, number, 12_000) for number in range(2)]
    assert pool.submit(tasks.size_of, bytes([7]) * 12_000).result(GUARD) == (12_000, 84_000)
    for number, future in enumerate(futures):
        assert future.result(GUARD) == tasks.grow(number, 12_000)
    assert list(pool.map(tasks.square, range(5), chunksize=2)) == [0, 1, 4, 9, 16]


def in_every_way(pool: ProcessWorker, how: str) -> None:
    futures = [pool.submit(tasks.square, number) for number in range(2)]
    if how == "wait":
        assert wait(futures, GUARD).not_done == set()
    elif how == "as_completed":
        assert set(as_completed(futures, GUARD)) == set(futures)
    elif how == "callback":
        called = threading.Event()
        futures[0].add_done_callback(lambda _: called.set())
        assert called.wait(GUARD)
    else:
        eventually(futures[0].done)
    assert [future.result(GUARD) for future in futures] == [0, 1]


@pytest.mark.parametrize("how", ["wait", "as_completed", "callback", "done"])
def test_a_signal_handler_may_wait_in_every_way_on_top_of_any_frame_of_the_client(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For all but the last a background thread must read, while the frame below is the one that does. It need not wait
    # until the frame is seen to do nothing.
    monkeypatch.setattr("mpworker.reader.FOLLOW_SECONDS", 10 * GUARD)
    with ProcessWorker(n=2, client_ring_bytes=8192) as pool:
        scenario = functools.partial(read_much, pool)
        scenario()  # imports and the like
        in_every_way(pool, how)
        assert sweep(scenario, lambda: None, lambda: in_every_way(pool, how), (CLIENT,)) > 150


def test_other_threads_go_on_while_a_handler_holds_up_the_one_that_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpworker.reader.FOLLOW_SECONDS", 0.02)
    with ProcessWorker(n=2, client_ring_bytes=8192) as pool:
        scenario = functools.partial(read_much, pool)

        def others() -> None:
            assert pool.submit(tasks.square, 3).result(GUARD) == 9
            assert pool.submit(tasks.grow, 3, 12_000).result(GUARD) == tasks.grow(3, 12_000)

        scenario()  # imports and the like
        assert sweep(scenario, lambda: None, lambda: together(others, others), (CLIENT,)) > 150


def test_other_threads_go_on_while_a_handler_holds_up_the_one_that_sleeps(tmp_path: Path) -> None:
    results: list[int] = []
    begun = threading.Event()

    def other() -> None:
        begun.wait(GUARD)
        results.append(pool.submit(tasks.square, 3).result(GUARD))

    def handle(*_: object) -> None:
        begun.set()
        thread.join(GUARD)
        (tmp_path / "gate").touch()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with ProcessWorker(n=2) as pool:
            thread = threading.Thread(target=other)
            thread.start()
            held = pool.submit(tasks.hold, str(tmp_path / "begun"), str(tmp_path / "gate"))
            eventually(held.running)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert held.result(GUARD) == "held"
            assert results == [9]
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside another thread"])
def test_a_signal_handler_may_wait_for_results_at_any_point(alone: bool) -> None:
    # On top of any frame of the client: one that settles, that sends a payload in parts, that holds a lock.
    with ProcessWorker(n=2, client_ring_bytes=8192) as pool:
        values = itertools.count()
        called: list[int] = []
        handled: list[int] = []
        over = threading.Event()

        def scenario() -> None:
            began = time.monotonic()
            futures = [pool.submit(tasks.grow, number, 12_000) for number in range(2)]
            futures[0].add_done_callback(lambda _: called.append(1))
            value = next(values)
            assert pool.submit(a_function(value), 1).result(GUARD) == 1000 + value
            assert pool.submit(tasks.size_of, bytes([7]) * 12_000).result(GUARD) == (12_000, 84_000)
            for number, future in enumerate(futures):
                assert future.result(GUARD) == tasks.grow(number, 12_000)
            assert list(pool.map(tasks.square, range(5), chunksize=2)) == [0, 1, 4, 9, 16]
            assert time.monotonic() - began < GUARD / 2, "it slept for what the handler had read"

        def handle() -> None:
            future = pool.submit(tasks.size_of, bytes([3]) * 20_000)
            value = next(values)
            assert pool.submit(a_function(value), 2).result(GUARD) == 2000 + value
            assert future.result(GUARD) == (20_000, 60_000)
            handled.append(1)

        scenario()  # imports and the like
        eventually(lambda: called)
        called.clear()

        def ask() -> None:
            while not over.is_set():
                assert pool.processes()["supervisor"]

        asker = threading.Thread(target=ask)
        if not alone:
            asker.start()
        try:
            points = sweep(scenario, lambda: None, handle)
        finally:
            over.set()
        if not alone:
            asker.join(GUARD)
            assert not asker.is_alive()
        assert points == len(handled)
        assert points > 300
        eventually(lambda: len(called) == points + 1)  # the last run has no point left
        eventually(lambda: pool._client.poll() or not pool._client.pending)


@pytest.mark.parametrize("verb", ["stop_graceful", "stop_now"])
def test_a_signal_handler_may_stop_the_pool_at_any_point(verb: str) -> None:
    points, at = 400, random.randrange(20)
    while at < points:
        futures: list[Any] = []
        called: list[int] = []
        with ProcessWorker(n=1, client_ring_bytes=8192) as pool:
            warm = pool.submit(tasks.square, 2).result(GUARD)

            def submit(function: Any, *arguments: Any, pool: ProcessWorker = pool, futures: Any = futures) -> Any:
                futures.append(pool.submit(function, *arguments))
                return futures[-1]

            def scenario(submit: Any = submit, called: Any = called, futures: Any = futures) -> None:
                for number in range(3):
                    submit(tasks.grow, number, 12_000)
                submit(tasks.pause, 0.002, 1).add_done_callback(called.append)
                submit(a_function(3), 1).result(GUARD)
                submit(tasks.size_of, bytes([7]) * 12_000)
                for future in futures:
                    future.result(GUARD)

            point = AtPoint(at, getattr(pool, verb))
            try:
                with point, contextlib.suppress(WorkerStopped, TaskCancelled):
                    scenario()
                for future in futures:
                    assert future._state != "PENDING", "every future is settled"
                    assert verb == "stop_now" or not future.cancelled(), "what a drain had accepted it runs"
                eventually(lambda called=called, futures=futures: len(called) >= (len(futures) > 3))
            except BaseException as error:
                error.add_note(f"handled at point {at}: {point.where}")
                raise
        assert warm == 4
        points = points if point.done else at
        at += 20
    assert points > 100


@pytest.mark.parametrize("verb", ["stop_graceful", "stop_now"])
def test_a_signal_handler_may_stop_the_pool_while_its_thread_waits(verb: str, tmp_path: Path) -> None:
    gate, others = tmp_path / "gate", []

    def handle(*_: object) -> None:
        gate.touch()
        getattr(pool, verb)()
        others.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(8))  # the numbers of what was closed

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with ProcessWorker(n=1) as pool:
            task = tasks.hold if verb == "stop_graceful" else tasks.pause
            future = pool.submit(task, *((str(tmp_path / "begun"), str(gate)) if task is tasks.hold else (GUARD, 1)))
            eventually(future.running)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            if verb == "stop_graceful":
                future.result(GUARD)
            else:
                with pytest.raises(TaskCancelled):
                    future.result(GUARD)
    finally:
        signal.signal(signal.SIGALRM, before)
        for fd in others:
            os.close(fd)


@pytest.mark.parametrize("inner", ["stop_graceful", "stop_now"])
@pytest.mark.parametrize("outer", ["stop_graceful", "stop_now"])
def test_a_signal_handler_may_stop_what_is_being_stopped(outer: str, inner: str) -> None:
    begin = at = random.randrange(4)
    point = AtPoint(0, dict)
    while at == begin or point.done:
        pool = ProcessWorker(n=1)
        future = pool.submit(tasks.square, 3)
        point = AtPoint(at, getattr(pool, inner), (CLIENT,))
        with point:
            getattr(pool, outer)()
        assert future.done(), point.where
        at += 4
    assert at > 30


def test_an_interrupted_map_begins_nothing_more(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}" for number in range(3)]
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    at, point = 0, AtPoint(0, dict)
    with ProcessWorker(n=1) as pool:
        while not at or point.done:
            held = pool.submit(tasks.hold, str(begun), str(gate))
            eventually(held.running)
            point = AtPoint(at, interrupt, (CLIENT,))
            with contextlib.suppress(KeyboardInterrupt):
                with point:
                    results = pool.map(Path.touch, files, chunksize=1)
                results.close()  # type: ignore[attr-defined]
            gate.touch()
            assert held.result(GUARD) == "held"
            assert pool.submit(tasks.square, 3).result(GUARD) == 9
            assert sorted(tmp_path.iterdir()) == [begun, gate], point.where
            gate.unlink()
            at += 1
        assert not pool._client.pending
        assert not pool._client.functions._pins
    assert at > 40


def test_a_signal_handler_may_submit_while_its_thread_reads_what_needs_an_import(tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text("def make(): return lambda: 3\n")
    (tmp_path / "program.py").write_text(
        "import given, os, signal, sys\n"
        "from mpworker import ProcessWorker\n"
        "class Trip:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'cloudpickle.cloudpickle':\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGALRM)\n"
        "found = []\n"
        "signal.signal(signal.SIGALRM, lambda *_: found.append(w.submit(lambda: 5).result(30)))\n"
        "with ProcessWorker(n=1) as w:\n"
        "    future = w.submit(given.make)\n"
        "    while not future.done(): pass\n"
        "    sys.meta_path.insert(0, Trip())\n"
        "    print(future.result()(), found)\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=GUARD, check=False
    )
    assert (done.stdout, done.stderr) == ("3 [5]\n", "")


def test_a_signal_handler_may_submit_while_its_thread_imports_what_it_needs(tmp_path: Path) -> None:
    # A program that has not sent anything by value yet, and a module that takes its time to be imported.
    (tmp_path / "pause_import.py").write_text(
        "import importlib.abc, sys, threading, signal, os\n"
        "class Slow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'cloudpickle.cloudpickle' and not handled:\n"
        "            os.kill(os.getpid(), signal.SIGALRM)\n"
        "            threading.Event().wait(0.2)\n"
        "handled = []\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    (tmp_path / "program.py").write_text(
        "import pause_import, signal\n"
        "from mpworker import ProcessWorker\n"
        "def handle(*_):\n"
        "    pause_import.handled.append(w.submit(lambda: 3).result(30))\n"
        "signal.signal(signal.SIGALRM, handle)\n"
        "with ProcessWorker(n=1) as w:\n"
        "    print(w.submit(lambda: 4).result(30), pause_import.handled)\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=GUARD, check=False
    )
    assert (done.stdout, done.stderr) == ("4 [3]\n", "")


@pytest.mark.parametrize("ring", [4096, 1 << 20], ids=["small ring", "large ring"])
def test_signal_handlers_that_do_everything_at_random_moments(hasty: None, ring: int) -> None:
    # Real signals, which also come while C code runs, and on top of handlers; and other threads at work meanwhile.
    seed = random.randrange(1 << 32)
    print("seed", seed)
    depth = deepest = handled = 0
    enough = False

    def handle(*_: object) -> None:
        nonlocal depth, deepest, handled
        if enough:
            return  # and do not set the timer, on top of the line that has just stopped it
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 3e-3))
        if depth == 3:
            return
        depth += 1
        deepest = max(deepest, depth)
        in_handler.one()
        handled += 1
        depth -= 1

    rng = random.Random(seed)
    before = signal.signal(signal.SIGALRM, handle)
    try:
        with ProcessWorker(n=2, client_ring_bytes=ring) as pool:
            in_handler = Mixed(pool, seed, 0)
            others = [threading.Thread(target=Mixed(pool, seed + number, 40), daemon=True) for number in range(1, 4)]
            for thread in others:
                thread.start()
            signal.setitimer(signal.ITIMER_REAL, 1e-3)
            below = Mixed(pool, seed + 9, 1)
            while handled < 500:
                below()
            enough = True
            in_handler()  # waits for its callbacks
            for thread in others:
                thread.join(GUARD)
                assert not thread.is_alive(), "a thread hangs"
            assert not pool._client.pending
            assert not any(pool._client.sending.streams)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert deepest > 1


@pytest.mark.parametrize("said", [{}, {"who": "me"}], ids=["plain", "with details"])
def test_a_large_call_that_is_interrupted_before_it_is_sent_leaves_its_room(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with ProcessWorker(n=1, client_ring_bytes=4096) as w:
        assert w.submit(len, b"").result(GUARD) == 0
        client = w._client
        assert client.arenas is not None
        with stopped(client.supervisor.pid), monkeypatch.context() as patched:
            while client._push(codec.FREE, 0, 0, 0, 0, b""):
                pass
            patched.setattr(Ending, "wait_for_room", interrupted)
            with pytest.raises(KeyboardInterrupt):
                w.register_task(Task(len, (bytes(100_000),), metadata=said))
            assert not client.pending
            assert client.arenas.taken == 0
        assert w.submit(len, b"four").result(GUARD) == 4


def test_a_map_that_is_interrupted_again_as_it_is_abandoned_counts_for_max_pending_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with ProcessWorker(n=1, max_pending=1, submit_timeout=0) as w:
        assert w.submit(len, b"").result(GUARD) == 0
        with monkeypatch.context() as patched:
            patched.setattr(Client, "_push", interrupted)  # of the chunk,
            patched.setattr(Sending, "send", interrupted)  # and of its cancel
            with pytest.raises(KeyboardInterrupt):
                list(w.map(len, [b"four"]))
        assert not w._client.pending
        assert w.submit(len, b"four").result(GUARD) == 4
