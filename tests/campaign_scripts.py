"""Programs that the campaigns run in a process of their own, to be interrupted, stopped and forked from outside.

Each is `python campaign_scripts.py NAME ARGUMENTS`; it prints what the test reads.
"""

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import as_completed, wait
from pathlib import Path
from typing import Any

import campaign_tasks as tasks

from mpworker import ProcessWorker
from mpworker.errors import WorkerStopped

GUARD = 60.0


def say(*words: object) -> None:
    print(*words, flush=True)


def interrupted(wanted: int, company: str) -> None:
    """Submit and read while SIGINT comes at any moment; each result must come once, and right.

    Who reads differs: "alone" the main thread does, and has many results to settle; "followed" it waits for long, and
    another thread for it; in "company" callbacks have a background thread read, and the main one follows.
    """
    burst = {"alone": 300, "followed": 1, "company": 6}[company]
    helpers = {"alone": (), "followed": (1,), "company": (0, 1)}[company]
    sys.setswitchinterval(1e-4)  # else a helper that never sleeps has the GIL most of the time
    main = threading.get_ident()
    done = interrupts = 0
    armed = missed = False

    def on_sigint(*_: object) -> None:
        nonlocal missed
        if armed:
            raise KeyboardInterrupt
        missed = True

    signal.signal(signal.SIGINT, on_sigint)
    helpers_done = [0, 0]
    stop = threading.Event()
    with ProcessWorker(n=2, client_ring_bytes=1 << 14) as pool:

        def help_(me: int) -> None:
            # A thread that the main one leads, follows and hands over to. It is never interrupted, so never fails.
            number = 0
            while not stop.is_set():
                number += 1
                if me:
                    future = pool.submit(tasks.square, number)
                    until = time.monotonic() + 0.01
                    while company == "followed" and pool._client._leader != main and time.monotonic() < until:
                        time.sleep(0.0002)  # let the main thread be the one that reads
                    assert future.result(GUARD) == number * number
                else:
                    futures = [pool.submit(tasks.square, number + more) for more in range(3)]
                    assert sorted(each.result() for each in as_completed(futures, GUARD)) == [
                        (number + more) ** 2 for more in range(3)
                    ]
                helpers_done[me] += 1

        threads = [threading.Thread(target=help_, args=(me,), daemon=True) for me in helpers]
        for thread in threads:
            thread.start()
        held: list[tuple[int, object]] = []
        called: list[int] = []

        def work() -> None:
            nonlocal done
            while len(held) < burst:
                number = done
                if number % 7 == 6:
                    future = pool.submit(tasks.grow, number, 40_000)  # in parts
                else:
                    future = pool.submit(tasks.late_square if company == "followed" else tasks.square, number)
                held.append((number, future))
                if company == "company":
                    future.add_done_callback(lambda _: called.append(1))
                done += 1
            while held:
                number, future = held[-1]
                right = tasks.grow(number, 40_000) if number % 7 == 6 else number * number
                assert future.result(GUARD) == right, number
                held.pop()

        say("ready")
        while interrupts < wanted:
            try:
                armed = True
                if missed:
                    missed = False
                    raise KeyboardInterrupt
                work()  # a function: an interrupt at the jump of a loop passes over its `try` in CPython 3.13
                armed = False
            except KeyboardInterrupt:
                armed = False
                interrupts += 1
                say("interrupted")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while held:
            number, future = held.pop()
            assert future.result(GUARD) == (tasks.grow(number, 40_000) if number % 7 == 6 else number * number)
        enough = [count + 10 for count in helpers_done]
        until = time.monotonic() + GUARD
        while any(helpers_done[me] < enough[me] for me in helpers):  # without this thread, which reads no more
            assert time.monotonic() < until, "a thread waits for ever"
            time.sleep(0.002)
        stop.set()
        for thread in threads:
            thread.join(GUARD)
            assert not thread.is_alive(), "a thread waits for ever"
        assert pool.submit(tasks.square, 5).result(GUARD) == 25
        pending = len(pool._client.pending)
        assert pending == 0, pending
    say("fine", done, interrupts)


def paused(folder: str) -> None:
    """Hold tasks while the whole tree, this process included, is stopped for a while."""
    with ProcessWorker(n=2, lease_ttl=0.5, crash_retries=5, retries=5) as pool:
        begun = [str(Path(folder, f"begun-{number}")) for number in range(2)]
        running = [pool.submit(tasks.hold, each, str(Path(folder, "gate"))) for each in begun]
        waiting = [pool.submit(tasks.attempt_of, number) for number in range(1000)]
        while not all(os.path.exists(each) for each in begun):
            time.sleep(0.002)
        pids = pool.processes()
        say("ready", pids["supervisor"])
        assert [future.result(GUARD) for future in running] == ["held", "held"]
        assert [future.result(GUARD) for future in waiting] == [(number, 1) for number in range(1000)]
        after = pool.processes()
        assert {child["pid"] for child in after["children"]} == {child["pid"] for child in pids["children"]}
    say("fine")


def forked(how: str) -> None:
    """Fork with a pool; try every verb in the fork, end it in one of several ways, and go on in the parent."""
    pool = ProcessWorker(n=2)
    held = pool.submit(tasks.pause, 0.5, 1)
    ended = pool.submit(tasks.square, 3)
    assert ended.result(GUARD) == 9
    watched = pool.submit(tasks.pause, 0.5, 2)
    watched.add_done_callback(lambda _: None)  # a thread of the client's is at work when the process forks
    mapped = pool.map(tasks.pause, [0.5], [3])
    pid = os.fork()
    if pid == 0:
        in_fork(pool, held, ended, mapped, how)
        raise AssertionError("not reached")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    assert held.result(GUARD) == (1, 1)
    assert watched.result(GUARD) == (2, 1)
    assert list(mapped) == [(3, 1)]
    assert pool.submit(tasks.square, 4).result(GUARD) == 16
    assert len(pool.processes()["children"]) == 2
    assert list(pool.map(tasks.square, range(100))) == [number**2 for number in range(100)]
    assert pool.stop_graceful(GUARD)
    say("fine")


def refuses(call: Callable[..., object], *arguments: object) -> None:
    try:
        call(*arguments)
    except WorkerStopped as error:
        if "made before fork" in str(error):
            return
        raise
    raise AssertionError("it should have refused")


def in_fork(pool: ProcessWorker, held: Any, ended: Any, mapped: Any, how: str) -> None:
    try:
        refuses(pool.submit, tasks.square, 1)
        refuses(lambda: pool.submit(lambda: 1))
        refuses(lambda: list(pool.map(tasks.square, range(3))))
        refuses(lambda: list(pool.map(lambda x: x, range(3))))
        refuses(held.result)
        refuses(held.result, 0.01)
        refuses(held.exception)
        refuses(held.cancel)
        refuses(held.running)
        refuses(held.add_done_callback, print)
        refuses(lambda: wait([held], timeout=5))
        refuses(lambda: pool.options(retries=3))
        refuses(pool.processes)
        refuses(pool.cancel_task, held.task_id)
        refuses(next, mapped)
        mapped.close()
        assert not held.done()
        assert not held.cancelled()
        assert ended.result() == 9
        assert ended.done()
        pool.stop_graceful()
        pool.stop_now()
        pool.shutdown()
        with pool:
            pass
        with contextlib.suppress(KeyError), pool:
            raise KeyError
        with ProcessWorker(n=1) as mine:
            assert mine.submit(tasks.square, 6).result(GUARD) == 36
            # What lies at the old pool's addresses now may be the new one's.
            client, pool = pool._client, None  # type: ignore[assignment]
            held = ended = None
            del client
            gc.collect()
            assert list(mine.map(tasks.square, range(50))) == [number**2 for number in range(50)]
        if how == "new pool at exit":
            another = ProcessWorker(n=1)
            another.submit(tasks.square, 2)
            sys.exit(0)
        if how == "exit":
            sys.exit(0)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def backlog(count: int) -> None:
    """Submit very much, read nothing, be stopped for a while; then everything is there."""
    with ProcessWorker(n=2, client_ring_bytes=1 << 12, child_ring_bytes=1 << 12) as pool:
        futures = [pool.submit(tasks.square, number) for number in range(count)]
        say("ready")
        sys.stdin.readline()
        for number, future in enumerate(futures):
            assert future.result(GUARD) == number * number
    say("fine")


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    {
        "interrupted": lambda count, company: interrupted(int(count), company),
        "paused": paused,
        "forked": forked,
        "backlog": lambda count: backlog(int(count)),
    }[name](*arguments)
