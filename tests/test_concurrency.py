"""Many threads, forks, signals and full rings on one client."""

import ast
import contextlib
import dis
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
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, as_completed, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import campaign_tasks as tasks
import psutil
import pytest
from concurrently import GUARD, eventually, together
from points import CHECKS, AtPoint, sweep

from mpworker import ProcessWorker, TaskFuture
from mpworker.client import Client
from mpworker.errors import TaskCancelled, WorkerStopped
from mpworker.ipc import codec
from mpworker.mapping import _Chunk
from mpworker.reader import Reader

SCRIPTS = Path(__file__).with_name("campaign_scripts.py")


@pytest.fixture
def hasty() -> Iterator[None]:
    """The GIL changes hands as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def a_function(value: int) -> Callable[[int], int]:
    return lambda x: x * 1000 + value


# ------------------------------------------------------------ threads


class Mixed:
    """One thread's share of everything that a client can do, each answer checked."""

    def __init__(self, pool: ProcessWorker, seed: int, rounds: int) -> None:
        self.pool, self.rng, self.rounds = pool, random.Random(seed), rounds
        self.called: list[int] = []
        self.expected_calls = 0

    def __call__(self) -> None:
        verbs = [self.result, self.wait, self.as_completed, self.map, self.cancel, self.callback, self.poll, self.new]
        for _ in range(self.rounds):
            self.rng.choice(verbs)()
        eventually(lambda: len(self.called) >= self.expected_calls)
        assert len(self.called) == self.expected_calls, "a callback for each, once"

    def some(self) -> dict[Any, int]:
        values = [self.rng.randrange(1000) for _ in range(self.rng.randrange(1, 6))]
        return {self.pool.submit(tasks.square, value): value * value for value in values}

    def result(self) -> None:
        for future, right in self.some().items():
            assert future.result(GUARD) == right

    def wait(self) -> None:
        futures = self.some()
        if self.rng.random() < 0.5:
            assert wait(futures, GUARD, FIRST_COMPLETED).done
        assert wait(futures, GUARD).not_done == set()
        assert all(future.result(0) == right for future, right in futures.items())

    def as_completed(self) -> None:
        futures = self.some()
        seen = list(as_completed(futures, GUARD))
        assert len(seen) == len(futures)
        assert all(future.result(0) == futures[future] for future in seen)

    def map(self) -> None:
        count = self.rng.randrange(1, 60)
        results = self.pool.map(tasks.square, range(count), chunksize=self.rng.choice([None, 1, 7]))
        if self.rng.random() < 0.2:
            next(results)
            results.close()  # type: ignore[attr-defined]
        else:
            assert list(results) == [number**2 for number in range(count)]

    def cancel(self) -> None:
        for future, right in self.some().items():
            if future.cancel():
                with pytest.raises(TaskCancelled):
                    future.result(GUARD)
            else:
                assert future.result(GUARD) == right

    def callback(self) -> None:
        def then(future: Any, right: int) -> None:
            # Callbacks may submit and wait themselves, and what they submit may have callbacks.
            assert future.result(0) == right
            inner = self.pool.submit(tasks.square, 7)
            inner.add_done_callback(lambda _: self.called.append(1))
            assert inner.result(GUARD) == 49
            self.called.append(1)

        for future, right in self.some().items():
            self.expected_calls += 2
            future.add_done_callback(lambda future, right=right: then(future, right))

    def poll(self) -> None:
        for future, right in self.some().items():
            eventually(future.done)
            assert future.result(0) == right

    def new(self) -> None:
        value = self.rng.randrange(1000)
        function = a_function(value)
        assert [self.pool.submit(function, each).result(GUARD) for each in range(2)] == [value, 1000 + value]


@pytest.mark.parametrize("ring", [4096, 1 << 20], ids=["small ring", "large ring"])
def test_eight_threads_on_one_client(hasty: None, ring: int) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    with ProcessWorker(n=2, client_ring_bytes=ring) as pool:
        together(*(Mixed(pool, seed + number, 60) for number in range(8)))
        assert len(pool._client.pending) == 0


def test_new_functions_of_many_threads_are_not_mixed_up(hasty: None) -> None:
    def run(base: int) -> None:
        for number in range(base, base + 100):
            function = a_function(number)
            assert [pool.submit(function, each).result(GUARD) for each in range(2)] == [number, 1000 + number]

    with ProcessWorker(n=2) as pool:
        together(*(lambda base=base: run(base) for base in range(0, 800, 100)))


def test_a_function_that_is_dropped_while_others_use_it(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The table is full all the time: every look-up drops a function that another thread may be about to name, a map of
    # its own may be using, or a large task is on its way with.
    monkeypatch.setattr("mpworker.functions._CACHED_MAX", 2)
    functions = [a_function(value) for value in range(5)]

    def submit() -> None:
        for number in range(150):
            value = number % 5
            assert pool.submit(functions[value], number).result(GUARD) == number * 1000 + value

    def submit_large() -> None:
        for number in range(40):
            data = bytes([number]) * 20_000
            assert pool.submit(tasks.size_of, data).result(GUARD) == (20_000, 20_000 * number)

    def map_() -> None:
        for value in range(5):
            results = pool.map(functions[value], range(200), chunksize=3)
            assert list(results) == [number * 1000 + value for number in range(200)]

    with ProcessWorker(n=2, client_ring_bytes=8192) as pool:
        together(submit, submit, submit_large, submit_large, map_, map_)


def test_a_function_that_is_dropped_between_look_and_push(monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessWorker(n=1, client_ring_bytes=8192) as pool:
        table = pool._client.functions
        look_up = table.key
        dropped: list[int] = []

        def key(function: Any) -> int:
            found = look_up(function)
            if len(dropped) < 4 and found not in dropped:
                dropped.append(found)
                with table.lock:
                    table._drop(id(function))  # as another thread would that needs the place
            return found

        monkeypatch.setattr(table, "key", key)
        for number in range(4):
            assert pool.submit(tasks.size_of, bytes(number)).result(GUARD)[0] == number
            assert pool.submit(tasks.size_of, bytes(9000 + number)).result(GUARD)[0] == 9000 + number
        assert len(dropped) == 4


def test_a_chunk_that_is_abandoned_while_it_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    settle_items = _Chunk.settle_items

    def settle(chunk: Any, *arguments: Any) -> bool:
        last = settle_items(chunk, *arguments)
        if last:
            pool._client.pending.pop(chunk.key)  # as `abandon` does in another thread
        return last

    monkeypatch.setattr(_Chunk, "settle_items", settle)
    with ProcessWorker(n=1) as pool:
        assert list(pool.map(tasks.square, range(20), chunksize=5)) == [number**2 for number in range(20)]


@pytest.mark.parametrize(
    ("function", "look", "act"),
    [
        (Reader._lead_or_follow, "_leader", "STORE_ATTR _leader"),
        (Reader.poll, "_leader", "STORE_ATTR _leader"),
        (Client.submit, "_closed", "_push"),
        (Client.submit, "live", "_push"),
        (Client._send_forgotten, "_slow_sends", "_push"),
        (TaskFuture._watch, "STORE_ATTR _watched", "STORE_ATTR watched"),
        (TaskFuture.settle, "STORE_ATTR _watched", "STORE_ATTR watched"),
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


@pytest.mark.parametrize("name", ["client", "functions", "future", "launch", "mapping", "reader", "waiting", "worker"])
def test_no_turn_of_a_loop_escapes_a_finally(name: str) -> None:
    # Why: `mpworker.reader`. Whether one does depends on the version of Python, and on when a signal comes.
    module = importlib.import_module(f"mpworker.{name}")
    # The background thread is never the main one, which alone handles signals.
    exempt = inspect.getsourcelines(Reader._read_in_background)[1] if name == "reader" else 0
    found = [line for line in loops_in_a_try(ast.parse(inspect.getsource(module))) if not 0 < line - exempt < 10]
    assert not found, f"loops in mpworker.{name} at lines {found}"


def test_payloads_in_parts_are_not_mixed_with_those_of_callbacks(hasty: None) -> None:
    called: list[tuple[int, int]] = []

    def more(_: object) -> None:
        called.append(pool.submit(tasks.size_of, bytes([3]) * 30_000).result(GUARD))

    def run(value: int) -> None:
        for _ in range(30):
            future = pool.submit(tasks.size_of, bytes([value]) * 30_000)
            future.add_done_callback(more)
            assert future.result(GUARD) == (30_000, 30_000 * value)

    with ProcessWorker(n=2, client_ring_bytes=4096) as pool:
        together(*(lambda value=value: run(value) for value in (1, 2)))
        eventually(lambda: len(called) == 60)
        assert set(called) == {(30_000, 90_000)}


def test_a_submit_that_waits_for_room_while_another_thread_reads(tmp_path: Path) -> None:
    # No event comes for as long as the task runs, so only the room itself can wake the submitter.
    gate = tmp_path / "gate"
    with ProcessWorker(n=1, client_ring_bytes=4096) as pool:
        held = pool.submit(tasks.hold, str(tmp_path / "begun"), str(gate))
        reader = threading.Thread(target=held.result, args=(GUARD,))
        reader.start()
        eventually(lambda: pool._client._leader == reader.ident)
        futures: list[Any] = []

        def submit() -> None:
            for number in range(3000):
                futures.append(pool.submit(tasks.square, number))  # noqa: PERF401

        submitter = threading.Thread(target=submit)
        submitter.start()
        submitter.join(GUARD)
        assert not submitter.is_alive()
        assert not held.done(), "it was the room that woke it, not an outcome"
        gate.touch()
        reader.join(GUARD)
        assert [future.result(GUARD) for future in futures] == [number**2 for number in range(3000)]


def test_threads_that_wait_leave_each_other_asleep(tmp_path: Path) -> None:
    # A follower that is woken for its own future must not wake the next one, who would wake the next.
    gate = tmp_path / "gate"
    with ProcessWorker(n=4) as pool:
        held = [pool.submit(tasks.hold, str(tmp_path / f"begun-{number}"), str(gate)) for number in range(3)]
        threads = [threading.Thread(target=future.result, args=(GUARD,)) for future in held]
        for thread in threads:
            thread.start()
        eventually(lambda: len(pool._client._followers) == 2)
        for number in range(20):
            follower = threading.Thread(target=pool.submit(tasks.square, number).result, args=(GUARD,))
            follower.start()
            follower.join(GUARD)
        began, cpu = time.monotonic(), time.process_time()
        eventually(lambda: time.monotonic() - began > 0.5)
        used = time.process_time() - cpu
        gate.touch()
        for thread in threads:
            thread.join(GUARD)
        assert used < 0.25, "they were busy waking each other"


def test_a_callback_may_wait_for_a_thread_that_waits_for_the_pool() -> None:
    # The callback blocks on a lock that is held by a thread that needs somebody to read.
    lock = threading.RLock()  # a callback on a task that has ended is called at once
    called = threading.Event()

    def take_lock(_: object) -> None:
        with lock:
            called.set()

    with ProcessWorker(n=2) as pool:

        def hold_lock() -> None:
            for number in range(100):
                with lock:
                    pool.submit(tasks.square, number).add_done_callback(take_lock)
                    assert pool.submit(tasks.square, number).result(GUARD) == number**2

        together(hold_lock, hold_lock)
        assert called.wait(GUARD)


def test_the_end_of_a_drain_waits_for_the_callbacks() -> None:
    called: list[int] = []

    def call(future: Any) -> None:
        if not called:
            threading.Event().wait(0.3)  # it has much to do
        called.append(future.result())

    with ProcessWorker(n=2) as pool:
        for number in range(300):
            pool.submit(tasks.square, number).add_done_callback(call)
    assert sorted(called) == sorted(number**2 for number in range(300))


# ------------------------------------------------------------ interrupts


@contextmanager
def script(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A program of campaign_scripts, which must end with "fine"."""
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(SCRIPTS), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(2 * GUARD - 20, process.send_signal, (signal.SIGABRT,))  # prints every stack
    timer.start()
    try:
        with process:
            yield process
            assert process.stdout is not None
            rest = process.stdout.read()
            assert rest.rpartition("fine")[1], rest
        assert process.returncode == 0
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()


def lines(process: "subprocess.Popen[str]") -> Iterator[list[str]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield line.split()


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
            for lock in (client.mutex, client._submit_lock, client.functions.lock):
                assert lock.acquire(timeout=GUARD / 2), f"{lock} stays locked"
                lock.release()
            for future, right in futures:
                assert future.result(GUARD / 2) == right
            futures.clear()
            before = answers
            eventually(lambda: alone or answers > before + 1)
            eventually(lambda: client.watched == 0)
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


def test_a_map_that_is_given_up_lets_a_submit_go_on_that_waits_for_max_pending(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ProcessWorker(n=1, max_pending=8) as pool:
        results = pool.map(tasks.hold, [str(tmp_path / "begun")] * 40, [str(gate)] * 40, chunksize=1)
        futures: list[Any] = []
        submitter = threading.Thread(target=lambda: futures.append(pool.submit(tasks.square, 3)))
        submitter.start()
        eventually(lambda: pool._client._leader == submitter.ident)
        results.close()  # type: ignore[attr-defined]
        submitter.join(GUARD)
        assert futures, "it was woken though the task that runs tells nothing yet"
        gate.touch()
        assert futures[0].result(GUARD) == 9


# ------------------------------------------------------------ a machine that pauses


def test_a_pause_of_client_and_pool_loses_and_retries_nothing(tmp_path: Path) -> None:
    with script("paused", str(tmp_path)) as process:
        answer = next(lines(process))
        supervisor = psutil.Process(int(answer[1]))
        everyone = [process.pid, supervisor.pid, *(child.pid for child in supervisor.children(recursive=True))]
        for pid in everyone:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 5)
        for pid in everyone:
            os.kill(pid, signal.SIGCONT)
        (tmp_path / "gate").touch()


# ------------------------------------------------------------ forks


@pytest.mark.parametrize("how", ["_exit", "exit", "new pool at exit"])
def test_a_fork_of_the_client(how: str) -> None:
    with script("forked", how):
        pass


# ------------------------------------------------------------ full rings


def test_results_larger_than_every_ring() -> None:
    with ProcessWorker(n=2, client_ring_bytes=4096, child_ring_bytes=4096) as pool:
        futures = [pool.submit(tasks.grow, number, 10_000 + number % 7 * 4) for number in range(2000)]
        for number, future in enumerate(futures):
            assert future.result(GUARD) == tasks.grow(number, 10_000 + number % 7 * 4)
        sizes = pool.map(tasks.size_of, (bytes([number % 256]) * 9000 for number in range(300)))
        assert list(sizes) == [(9000, 9000 * (number % 256)) for number in range(300)]


def test_a_client_that_reads_nothing_and_is_stopped_for_a_while() -> None:
    with script("backlog", "100000") as process:
        assert next(lines(process)) == ["ready"]
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 0.5)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


# ------------------------------------------------------------ start and stop


@pytest.mark.parametrize("stops", [["stop_now"], ["stop_graceful"], ["stop_graceful", "stop_now", "stop_now"]])
@pytest.mark.parametrize("delay_ns", [0, 60_000_000, 200_000_000])
def test_stop_races_with_submit(hasty: None, stops: list[str], delay_ns: int) -> None:
    # From a pool that is still starting to one that is busy.
    pool = ProcessWorker(n=2)
    pids = {pool._client.supervisor.pid}
    futures: list[Any] = []

    def submit() -> None:
        try:
            for number in range(20_000):
                futures.append((pool.submit(tasks.square, number), number))  # noqa: PERF401
        except WorkerStopped:
            pass

    def map_() -> None:
        results: list[int] = []
        with contextlib.suppress(WorkerStopped, TaskCancelled):
            results.extend(pool.map(tasks.square, range(20_000), chunksize=3))
            assert len(results) == 20_000
        assert results == [number * number for number in range(len(results))]

    def stop(verb: str) -> None:
        until = time.monotonic_ns() + delay_ns
        while time.monotonic_ns() < until:
            pass
        getattr(pool, verb)()

    together(submit, submit, map_, *(lambda verb=verb: stop(verb) for verb in stops))
    for future, number in futures:
        assert future._state != "PENDING", "every future is settled"
        if future.cancelled():
            assert "stop_now" in stops, "what a drain had accepted it runs"
        else:
            assert future.result(0) == number * number
    assert pool.stop_graceful(1) is not None
    pool.stop_now()
    pool.shutdown()
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("verb", ["submit", "map"])
def test_a_submit_that_passes_the_end_of_the_pool_is_settled(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ProcessWorker(n=1)
    push = pool._client._push

    def late(kind: int, *rest: Any) -> bool:
        if kind not in (codec.SUBMIT, codec.CHUNK):
            return push(kind, *rest)
        stopper = threading.Thread(target=pool.stop_now)  # the submit has looked, and not pushed yet
        stopper.start()
        stopper.join(GUARD)
        return True

    pool.submit(tasks.square, 1).result(GUARD)
    monkeypatch.setattr(pool._client, "_push", late)
    calls = {"submit": lambda: pool.submit(tasks.square, 2).result(GUARD), "map": lambda: next(pool.map(abs, [2]))}
    with pytest.raises(TaskCancelled):
        calls[verb]()


def test_pools_made_and_stopped_by_many_threads(hasty: None) -> None:
    def run(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(3):
            pool = ProcessWorker(n=rng.choice([1, 2]))
            futures = [pool.submit(tasks.square, number) for number in range(rng.choice([0, 1, 100]))]
            if rng.random() < 0.5:
                assert pool.stop_graceful()
                assert [future.result(0) for future in futures] == [number**2 for number in range(len(futures))]
            else:
                pool.stop_now()
                assert all(future.done() for future in futures)

    together(*(lambda seed=seed: run(seed) for seed in range(4)))
