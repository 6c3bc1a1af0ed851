"""Every way to stop, and every way not to: it ends, in time, and leaves nothing. (The check after each test looks.)"""

import concurrent.futures as cf
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import leaks
import pooljobs
import programs
import pytest
from pooljobs import Gate

from mpworker import ProcessWorker
from mpworker.client import Client
from mpworker.errors import SupervisorLost, TaskCancelled, WorkerStopped
from mpworker.ipc import codec
from mpworker.supervisor.nursing import _NURSERY_SILENT_MAX

GUARD = 60.0  # seconds; only a bound for what would hang
SOON = 20.0  # seconds; what is promised "at once" takes a small part of this on a busy machine


def gone(processes: dict[str, Any]) -> bool:
    pids = [processes["supervisor"], processes["nursery"], *(child["pid"] for child in processes["children"])]
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def ends_by_itself(client: Client) -> None:
    """Wait until all is over, and do nothing that would help it."""
    assert leaks.wait_until(lambda: client._over, GUARD)
    assert leaks.wait_until(lambda: not client.background.running, GUARD)


def running(pool: ProcessWorker) -> dict[str, Any]:
    """The processes of a pool that is up."""
    assert leaks.wait_until(
        lambda: all(child["ready"] for child in pool.processes()["children"] or [{"ready": 0}]), GUARD
    )
    return pool.processes()


# ------------------------------------------------------------ the verbs


def test_stop_graceful_finishes_what_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "done"
    pool = ProcessWorker(n=2)
    futures = [pool.submit(pooljobs.note, str(path), number) for number in range(300)]
    mapped = pool.map(pooljobs.square, range(20))
    assert pool.stop_graceful()
    assert all(future.done() for future in futures)
    assert [future.result(0) for future in futures] == list(range(300))
    assert list(mapped) == [number**2 for number in range(20)]
    assert sorted(map(int, path.read_text().split())) == list(range(300))


def test_stop_graceful_with_a_timeout_cancels_the_rest(gate: Gate) -> None:
    pool = ProcessWorker(n=1)
    done = pool.submit(pooljobs.square, 3)
    held = pool.submit(pooljobs.hold, gate.folder)
    queued = [pool.submit(pooljobs.square, number) for number in range(10)]
    gate.wait_begun()
    processes = running(pool)
    began_at = time.monotonic()
    assert not pool.stop_graceful(timeout=0.2)
    assert 0.2 <= time.monotonic() - began_at < SOON
    assert done.result(0) == 9
    for future in (held, *queued):
        assert future.cancelled()
        with pytest.raises(TaskCancelled):
            future.result(0)
    assert gone(processes)


def test_stop_now_ends_what_runs(gate: Gate) -> None:
    pool = ProcessWorker(n=2, grace=1000.0)
    held = [pool.submit(pooljobs.hold, gate.folder) for _ in range(2)]
    queued = pool.submit(pooljobs.square, 3)
    mapped = pool.map(pooljobs.square, range(3))
    gate.wait_begun(2)
    processes = running(pool)
    began_at = time.monotonic()
    pool.stop_now()
    assert time.monotonic() - began_at < SOON
    assert gone(processes)
    assert all(future.cancelled() for future in (*held, queued))
    with pytest.raises(TaskCancelled):
        next(mapped)


def test_stop_now_ends_what_takes_no_interrupt() -> None:
    def stubborn(path: str) -> None:
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
        pooljobs.note(path, 1)
        while True:
            signal.pause()

    pool = ProcessWorker(n=1)
    future = pool.submit(stubborn, os.devnull)
    assert leaks.wait_until(future.running, GUARD)
    pool.stop_now()
    assert future.cancelled()


def test_shutdown_waits(gate: Gate) -> None:
    pool = ProcessWorker(n=1)
    held = pool.submit(pooljobs.hold, gate.folder, "held")
    gate.wait_begun()
    stopper = threading.Thread(target=pool.shutdown)
    stopper.start()
    assert leaks.wait_until(lambda: bool(pool._client._closed), GUARD)
    with pytest.raises(WorkerStopped):
        pool.submit(pooljobs.square, 1)
    assert not held.done()
    gate.release()
    stopper.join(GUARD)
    assert not stopper.is_alive()
    assert held.result(0) == "held"


def test_shutdown_without_waiting_finishes_and_leaves_nothing(gate: Gate) -> None:
    pool = ProcessWorker(n=1)
    held = pool.submit(pooljobs.hold, gate.folder, "held")
    queued = pool.submit(pooljobs.square, 3)
    gate.wait_begun()
    pool.shutdown(wait=False)
    with pytest.raises(WorkerStopped):
        pool.submit(pooljobs.square, 1)
    gate.release()
    assert held.result(GUARD) == "held"
    assert queued.result(GUARD) == 9
    ends_by_itself(pool._client)


def test_shutdown_that_cancels_leaves_what_runs(gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "noted"
    pool = ProcessWorker(n=1)
    held = pool.submit(pooljobs.hold, gate.folder, "held")
    gate.wait_begun()
    queued = [pool.submit(pooljobs.note, str(path), number) for number in range(200)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    assert not held.done()
    gate.release()
    assert held.result(GUARD) == "held"
    pool.shutdown(wait=True, cancel_futures=True)
    assert not path.exists()


def test_shutdown_that_cancels_is_one_request_however_much_waits(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 100_000
    pool = ProcessWorker(n=2)
    held = [pool.submit(pooljobs.hold, gate.folder, "held") for _ in range(2)]
    gate.wait_begun(2)
    queued = [pool.submit(pooljobs.square, number) for number in range(count)]
    asked: list[dict[str, Any]] = []
    request = Client.request

    def count_requests(client: Client, message: dict[str, Any], timeout: float | None = None) -> dict[str, Any] | None:
        asked.append(message)
        return request(client, message, timeout)

    monkeypatch.setattr(Client, "request", count_requests)
    began_at = time.monotonic()
    pool.shutdown(wait=False, cancel_futures=True)
    assert time.monotonic() - began_at < SOON
    assert len(asked) == 1
    assert all(future.cancelled() for future in queued)
    gate.release(2)
    assert [future.result(GUARD) for future in held] == ["held"] * 2
    ends_by_itself(pool._client)


@pytest.mark.parametrize("return_exceptions", [False, True])
def test_shutdown_that_cancels_ends_a_map_after_the_item_that_runs(gate: Gate, return_exceptions: bool) -> None:
    def item(number: int) -> int:
        return int(pooljobs.hold(folder, number)) if number in (2, 101) else number

    folder = gate.folder
    pool = ProcessWorker(n=2)
    mapped = pool.map(item, range(200), chunksize=50, return_exceptions=return_exceptions)
    gate.wait_begun(2)  # the third item of one chunk, the second of another
    pool.shutdown(wait=False, cancel_futures=True)
    gate.release(2)
    found: list[object] = []
    if return_exceptions:
        found = list(mapped)
    else:
        with pytest.raises(TaskCancelled):
            found.extend(mapped)
    assert found[:3] == [0, 1, 2]
    if return_exceptions:
        assert len(found) == 200
        values = [each for each in found if isinstance(each, int)]
        assert values == [*range(3), *range(50, 100), 100, 101]
        assert all(isinstance(each, TaskCancelled) for each in found if not isinstance(each, int))
    ends_by_itself(pool._client)


def test_shutdown_that_cancels_interrupts_nothing_that_starts_meanwhile(tmp_path: Path) -> None:
    log = tmp_path / "log"
    left = 0
    for seed in range(10):
        log.write_bytes(b"")
        pool = ProcessWorker(n=2)
        futures = [pool.submit(pooljobs.note_both, str(log), number) for number in range(3000)]
        futures[20 * seed].result(GUARD)
        pool.shutdown(cancel_futures=True)
        lines = log.read_text().split()
        begun = {int(line[1:]) for line in lines if line[0] == "+"}
        ended = {int(line[1:]) for line in lines if line[0] == "-"}
        assert begun == ended, "a task was interrupted"
        assert begun == {number for number, future in enumerate(futures) if not future.cancelled()}
        assert all(futures[number].result(0) == number for number in begun)
        left += len(futures) - len(begun)
    assert left, (
        "nothing was left to cancel: a busy machine may keep this process from asking in time, but not each time"
    )


STOPS: dict[str, Callable[[ProcessWorker], object]] = {
    "stop_now": lambda pool: pool.stop_now(),
    "stop_graceful": lambda pool: pool.stop_graceful(),
    "stop_graceful, timeout": lambda pool: pool.stop_graceful(timeout=GUARD),
    "shutdown": lambda pool: pool.shutdown(),
    "shutdown, no wait": lambda pool: pool.shutdown(wait=False),
    "shutdown, cancel": lambda pool: pool.shutdown(cancel_futures=True),
    "with": lambda pool: pool.__exit__(None, None, None),
}


@pytest.mark.parametrize("first", STOPS)
def test_a_stop_may_come_after_any_other_and_again(first: str) -> None:
    pool = ProcessWorker(n=1)
    future = pool.submit(pooljobs.square, 3)
    assert future.result() == 9
    STOPS[first](pool)
    for stop in STOPS.values():
        stop(pool)
        stop(pool)
    assert future.result() == 9
    assert pool.stop_graceful()
    with pytest.raises(WorkerStopped):
        pool.submit(pooljobs.square, 3)
    assert not future.cancel()
    assert future.done()
    assert not future.running()


def test_a_stop_before_the_pool_is_up() -> None:
    for stop in STOPS.values():
        pool = ProcessWorker(n=2)
        stop(pool)
        pool.stop_now()
    pool = ProcessWorker(n=2)
    future = pool.submit(pooljobs.square, 3)
    pool.stop_now()
    assert future.cancelled() or future.result() == 9


def test_stops_from_many_threads_at_once() -> None:
    for now in (False, True):
        pool = ProcessWorker(n=2)
        stops_at_once(pool, now)


def stops_at_once(pool: ProcessWorker, now: bool) -> None:
    futures = [pool.submit(pooljobs.square, number) for number in range(100)]
    calls = (
        [*STOPS.values()]
        if now
        else [stop for name, stop in STOPS.items() if name not in ("stop_now", "shutdown, cancel")]
    )
    start = threading.Barrier(len(calls) + 1)
    failed: list[BaseException] = []

    def run(stop: Callable[[ProcessWorker], object]) -> None:
        start.wait(GUARD)
        try:
            stop(pool)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=run, args=(stop,)) for stop in calls]
    for thread in threads:
        thread.start()
    start.wait(GUARD)
    for thread in threads:
        thread.join(GUARD)
    assert not any(thread.is_alive() for thread in threads)
    assert failed == []
    assert all(future.done() for future in futures)
    if not now:
        assert [future.result(0) for future in futures] == [number**2 for number in range(100)]


def test_a_stop_by_another_thread_wakes_who_waits(gate: Gate) -> None:
    pool = ProcessWorker(n=1)
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    found: list[object] = []

    def wait(call: Callable[[], object]) -> None:
        try:
            found.append(call())
        except TaskCancelled:
            found.append("cancelled")

    calls: list[Callable[[], object]] = [
        held.result,
        held.result,
        lambda: held.exception(GUARD),
        lambda: len(cf.wait([held]).done),
        lambda: len(list(cf.as_completed([held]))),
        lambda: next(pool_map),
        lambda: bool(pool.stop_graceful()),
    ]
    pool_map = pool.map(pooljobs.square, [1])
    threads = [threading.Thread(target=wait, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    called = threading.Event()
    held.add_done_callback(lambda _: called.set())
    pool.stop_now()
    for thread in threads:
        thread.join(GUARD)
    assert not any(thread.is_alive() for thread in threads)
    assert called.wait(GUARD)
    assert sorted(map(str, found)) == sorted(["1", "1", "False", *["cancelled"] * 4])


def test_submits_during_a_stop_end_or_are_refused() -> None:
    pool = ProcessWorker(n=2)
    pool.submit(pooljobs.square, 1).result()
    accepted: list[list[cf.Future[int]]] = [[], []]
    refused = [threading.Event(), threading.Event()]

    def submit(which: int) -> None:
        try:
            while True:
                accepted[which].append(pool.submit(pooljobs.square, 2))
        except WorkerStopped:
            refused[which].set()

    threads = [threading.Thread(target=submit, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    assert leaks.wait_until(lambda: all(len(each) > 100 for each in accepted), GUARD)
    assert pool.stop_graceful()
    for thread in threads:
        thread.join(GUARD)
    assert all(event.is_set() for event in refused)
    assert {future.result(0) for each in accepted for future in each} == {4}, "what was accepted was done"


@pytest.mark.parametrize("how", STOPS)
def test_a_callback_may_stop_the_pool(how: str) -> None:
    pool = ProcessWorker(n=1)
    stopped = threading.Event()

    def callback(_: object) -> None:
        STOPS[how](pool)
        stopped.set()

    pool.submit(pooljobs.square, 2).add_done_callback(callback)
    assert stopped.wait(GUARD)
    pool.stop_now()


# ------------------------------------------------------------ the with block


def test_leaving_the_block_drains(tmp_path: Path) -> None:
    path = tmp_path / "done"
    with ProcessWorker(n=2) as pool:
        futures = [pool.submit(pooljobs.note, str(path), number) for number in range(100)]
    assert all(future.done() for future in futures)
    assert len(path.read_text().split()) == 100


def test_leaving_the_block_by_an_exception_stops_at_once(gate: Gate) -> None:
    with pytest.raises(LookupError, match="mine"), ProcessWorker(n=1) as pool:  # noqa: PT012
        held = pool.submit(pooljobs.hold, gate.folder)
        queued = pool.submit(pooljobs.square, 3)
        gate.wait_begun()
        raise LookupError("mine")
    assert held.cancelled()
    assert queued.cancelled()


def test_an_interrupt_while_the_block_drains_stops_at_once(gate: Gate) -> None:
    pool = ProcessWorker(n=1)
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()

    def interrupt() -> None:
        assert leaks.wait_until(lambda: bool(pool._client._closed), GUARD)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt), pool:
        pass
    assert held.cancelled()


# ------------------------------------------------------------ no stop at all


def test_a_pool_that_is_dropped_ends_by_itself(gate: Gate) -> None:
    pool = ProcessWorker(n=1)
    held = pool.submit(pooljobs.hold, gate.folder, "held")
    queued = pool.submit(pooljobs.square, 3)
    gate.wait_begun()
    del pool
    gc.collect()
    gate.release()
    assert held.result(GUARD) == "held", "what was accepted is finished"
    assert queued.result(GUARD) == 9
    ends_by_itself(queued._client)


def test_a_pool_that_is_dropped_idle_ends_by_itself() -> None:
    pool = ProcessWorker(n=2)
    assert pool.submit(pooljobs.square, 2).result() == 4
    processes, client = running(pool), pool._client
    del pool
    gc.collect()
    ends_by_itself(client)
    assert gone(processes)


def test_a_pool_that_is_dropped_with_a_view_of_it_in_use() -> None:
    view = ProcessWorker(n=1).options(retries=1)
    gc.collect()
    with pytest.raises(WorkerStopped):
        view.submit(pooljobs.square, 2)
    ends_by_itself(view._client)


# ------------------------------------------------------------ programs

PREAMBLE = """
import os, signal, sys, threading, time
from mpworker import ProcessWorker
def note(n):
    with open("done", "a") as file:
        file.write(f"{n}\\n")
def hold(n):
    note(f"begun {n}")
    with open("fifo") as fifo:
        fifo.read()
    note(f"held {n}")
"""


def start(source: str, folder: Path) -> subprocess.Popen[str]:
    os.mkfifo(folder / "fifo")
    (folder / "done").touch()
    programs.write(folder / "script.py", PREAMBLE + source)
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_lines(folder: Path, count: int) -> None:
    assert leaks.wait_until(lambda: len((folder / "done").read_text().splitlines()) >= count, GUARD)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=GUARD)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize("last", ["", "sys.exit(7)", "raise LookupError('mine')", "del w", "w = None"])
def test_an_interpreter_that_ends_without_a_stop_drains(tmp_path: Path, last: str) -> None:
    process = start(
        f"w = ProcessWorker(n=2)\nfutures = [w.submit(note, n) for n in range(50)]\n"
        f"futures[0].add_done_callback(lambda f: None)\n{last}\n",
        tmp_path,
    )
    code, _, err = end(process)
    assert sorted(map(int, (tmp_path / "done").read_text().split())) == list(range(50))
    assert code == {"sys.exit(7)": 7, "raise LookupError('mine')": 1}.get(last, 0)
    assert err == "" or "LookupError: mine" in err


def test_two_pools_and_a_stop_in_an_exit_handler(tmp_path: Path) -> None:
    process = start(
        "import atexit\nv, w = ProcessWorker(n=1), ProcessWorker(n=1)\natexit.register(v.shutdown)\n"
        "for n in range(10):\n    v.submit(note, n), w.submit(note, n)\n",
        tmp_path,
    )
    assert end(process) == (0, "", "")
    assert len((tmp_path / "done").read_text().split()) == 20


def test_ctrl_c_in_a_script_with_a_block(tmp_path: Path) -> None:
    process = start("with ProcessWorker(n=2) as w:\n    list(w.map(hold, range(100), chunksize=1))\n", tmp_path)
    wait_for_lines(tmp_path, 2)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = end(process)
    assert code == -signal.SIGINT
    assert err.count("Traceback") == 1, "the client's own, and no child's"
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert (tmp_path / "done").read_text().count("begun") == 2


def test_ctrl_c_of_a_terminal_reaches_the_client_alone(tmp_path: Path) -> None:
    # A terminal sends it to the whole foreground group: supervisor and children are in groups of their own.
    process = start("with ProcessWorker(n=2) as w:\n    w.submit(hold, 1).result()\n", tmp_path)
    wait_for_lines(tmp_path, 1)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = end(process)
    assert code == -signal.SIGINT
    assert err.count("Traceback") == 1


def test_ctrl_c_without_a_block_drains_and_a_second_one_stops(tmp_path: Path) -> None:
    process = start(
        "w = ProcessWorker(n=1)\nfutures = [w.submit(hold, n) for n in range(5)]\n"
        "import atexit\natexit.register(note, 'exiting')\nfutures[0].result()\n",
        tmp_path,
    )
    wait_for_lines(tmp_path, 1)
    os.kill(process.pid, signal.SIGINT)
    wait_for_lines(tmp_path, 2)  # its exit handlers run; the next one drains
    assert leaks.wait_until(lambda: process.poll() is not None or _waits(process.pid), GUARD)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    code, _, err = end(process)
    assert code == -signal.SIGINT
    assert (tmp_path / "done").read_text().count("begun") == 1
    assert "KeyboardInterrupt" in err


@pytest.mark.parametrize(
    "made", ["", "w.submit(abs, -1)", "w.subscribe_results()", "w.set_hooks(Hooks(on_finish=print))"]
)
def test_ctrl_c_without_a_block_ends_as_any_ctrl_c(tmp_path: Path, made: str) -> None:
    # A shell goes on with its next command unless the signal itself has ended this one.
    code, _, err = end(
        start(
            f"from mpworker import Hooks\nw = ProcessWorker(n=1)\n{made}\nos.kill(os.getpid(), 2)\ntime.sleep(60)\n",
            tmp_path,
        )
    )
    assert code == -signal.SIGINT
    assert err.splitlines()[-1] == "KeyboardInterrupt"


def _waits(pid: int) -> bool:
    """Is the process asleep, and was it a moment ago?"""
    return all(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S" for _ in range(20))


def test_a_second_ctrl_c_while_a_block_drains_ends_it(tmp_path: Path) -> None:
    process = start(
        "try:\n    with ProcessWorker(n=1) as w:\n        w.submit(hold, 1)\n        note('leaving')\n"
        "except KeyboardInterrupt:\n    note('caught')\n",
        tmp_path,
    )
    wait_for_lines(tmp_path, 2)
    assert leaks.wait_until(lambda: _waits(process.pid), GUARD)
    os.kill(process.pid, signal.SIGINT)
    assert end(process) == (0, "", "")
    assert "caught" in (tmp_path / "done").read_text()
    assert "held" not in (tmp_path / "done").read_text()


def test_a_program_in_the_middle_of_submitting_is_interrupted(tmp_path: Path) -> None:
    process = start(
        "with ProcessWorker(n=1) as w:\n    w.submit(hold, 1)\n    while True:\n        w.submit(len, b'x' * 1000)\n",
        tmp_path,
    )
    wait_for_lines(tmp_path, 1)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = end(process)
    assert code == -signal.SIGINT
    assert err.splitlines()[-1] == "KeyboardInterrupt"


def test_sigterm_ends_the_client_and_all_that_is_its(tmp_path: Path) -> None:
    process = start("with ProcessWorker(n=2) as w:\n    list(w.map(hold, range(100), chunksize=1))\n", tmp_path)
    wait_for_lines(tmp_path, 2)
    process.terminate()
    code, _, err = end(process)
    assert code == -signal.SIGTERM
    assert err == ""  # and the check after this test finds that nothing is left


def test_a_supervisor_that_is_lost_is_told_and_can_be_stopped(gate: Gate) -> None:
    pool = ProcessWorker(n=1)
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    os.kill(pool.processes()["supervisor"], signal.SIGKILL)
    with pytest.raises(SupervisorLost):
        held.result(GUARD)
    for stop in STOPS.values():
        stop(pool)
    with pytest.raises(SupervisorLost):
        pool.submit(pooljobs.square, 1)
    assert pool.processes() == {}


def test_a_supervisor_that_does_not_answer_is_killed_by_stop_now(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    import mpworker.ending

    monkeypatch.setattr(mpworker.ending, "_EXIT_SECONDS", 0.3)
    pool = ProcessWorker(n=1)
    held = pool.submit(pooljobs.hold, gate.folder)
    gate.wait_begun()
    processes = running(pool)
    os.kill(processes["supervisor"], signal.SIGSTOP)
    began_at = time.monotonic()
    assert not pool.stop_graceful(timeout=0.1)
    assert time.monotonic() - began_at < SOON
    assert held.cancelled()
    assert leaks.wait_until(lambda: gone(processes), GUARD)


def fill(client: Client) -> None:
    """Leave no room for any record to the supervisor, which is stopped."""
    while client._push(codec.FORGET, 0, 1 << 20, 0, 0, b""):  # a function that it does not know
        pass


@pytest.mark.parametrize("how", ["stop_graceful", "shutdown", "drop"])
def test_a_stop_is_bounded_though_the_supervisor_reads_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mpworker.ending

    monkeypatch.setattr(mpworker.ending, "_EXIT_SECONDS", 0.3)
    pool = ProcessWorker(n=1, client_ring_bytes=4096)
    client, processes = pool._client, running(pool)
    os.kill(processes["supervisor"], signal.SIGSTOP)
    fill(client)
    began = time.monotonic()
    if how == "stop_graceful":
        assert pool.stop_graceful(0.2), "nothing had been accepted that was not finished"
    elif how == "shutdown":
        pool.shutdown(wait=False)
    else:
        pool.__del__()
    assert time.monotonic() - began < GUARD / 2
    pool.stop_now()
    assert leaks.wait_until(lambda: gone(processes), GUARD)


def test_a_drain_that_could_not_be_said_at_once_is_said_later() -> None:
    pool = ProcessWorker(n=1, client_ring_bytes=4096)
    client, processes = pool._client, running(pool)
    os.kill(processes["supervisor"], signal.SIGSTOP)
    futures = [pool.submit(abs, -number) for number in range(10)]
    fill(client)
    pool.shutdown(wait=False)
    os.kill(processes["supervisor"], signal.SIGCONT)
    assert leaks.wait_until(lambda: gone(processes), GUARD)
    assert [future.result(0) for future in futures] == list(range(len(futures)))


def test_what_is_kept_after_the_stop_keeps_no_shared_memory() -> None:
    pool = ProcessWorker(n=1)
    kept = [pool.submit(pooljobs.square, 3), pool.options(retries=1), pool.map(abs, [-1]), pool]
    assert pool.stop_graceful()
    assert kept[0].result() == 9
    assert "mpworker-" not in Path("/proc/self/maps").read_text()
    assert not any(
        "memfd:mpworker" in os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()
    )
    assert next(kept[2]) == 1


def test_a_frozen_nursery_delays_no_stop_and_nothing_stays() -> None:
    # What it owes is waited for elsewhere for 5 s, and the children's end for the grace.
    for how in ("stop_graceful", "stop_now"):
        pool = ProcessWorker(n=2, grace=600.0, start_timeout=600.0)
        futures = [pool.submit(pooljobs.square, number) for number in range(20)]
        # Of each child the nursery has told; the end of one that it still owes is known only once it is given up.
        assert leaks.wait_until(lambda pool=pool: len(pool.processes()["children"]) == 2, GUARD)
        processes = running(pool)
        os.kill(processes["nursery"], signal.SIGSTOP)
        began_at = time.monotonic()
        if how == "stop_graceful":
            assert pool.stop_graceful(timeout=GUARD)
            assert [future.result(0) for future in futures] == [number**2 for number in range(20)]
        else:
            pool.stop_now()
        assert time.monotonic() - began_at < _NURSERY_SILENT_MAX
        assert gone(processes)


def test_a_stop_whose_time_is_over_when_all_is_finished_says_so() -> None:
    pool = ProcessWorker(n=1)
    future = pool.submit(pooljobs.square, 3)
    assert future.result() == 9
    assert pool.stop_graceful(timeout=1e-6), "only the processes had still to go"
