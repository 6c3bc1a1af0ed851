"""What an error says of a task: its id, its function, the attempt, and what to do; nothing of our own frames."""

import functools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mpworker import ProcessWorker, TaskFuture
from mpworker.errors import (
    SerializationError,
    SupervisorLost,
    TaskCancelled,
    TaskExited,
    TaskTimeout,
    WorkerCrashed,
)

LIMIT = 60.0  # seconds; no wait of a passing test comes near it


def crash(number: int = signal.SIGSEGV) -> None:
    os.kill(os.getpid(), number)


def crash_at_two(item: int) -> int:
    if item == 2:
        crash()
    return item


class Odd:
    """Neither importable by itself nor a function."""

    def __init__(self, how: Callable[[], Any]) -> None:
        self.how = how

    def method(self) -> Any:
        return self.how()

    def __call__(self) -> Any:
        return self.how()


def said(future: TaskFuture[Any], name: str, rest: str, kind: type[Exception]) -> None:
    """The message is `task ID ("NAME")` and what matches `rest`."""
    try:
        error = future.exception(LIMIT)
    except TaskCancelled as cancelled:
        error = cancelled
    assert type(error) is kind
    subject = f'task {future.task_id} ("{name}")'
    assert str(error).startswith(subject), str(error)
    assert re.fullmatch(rest, str(error)[len(subject) :]), str(error)


def test_a_crash_names_the_task_its_function_and_the_attempt() -> None:
    with ProcessWorker(n=1) as w:
        said(w.submit(crash), "crash", r": child \d+ died by SIGSEGV on attempt 1 of 1", WorkerCrashed)
        twice = w.options(crash_retries=1).submit(crash, signal.SIGABRT)
        said(twice, "crash", r": child \d+ died by SIGABRT on attempt 2 of 2", WorkerCrashed)
        with pytest.raises(
            WorkerCrashed, match=r"^item 2 of map\(crash_at_two\): child \d+ died by SIGSEGV on attempt 1 of 1$"
        ):
            list(w.map(crash_at_two, range(4), chunksize=1))


def test_every_other_error_of_a_task_names_it_too() -> None:
    with ProcessWorker(n=1) as w:
        late = w.options(timeout=0.1, retries=1).submit(time.sleep, LIMIT)
        said(late, "sleep", r" ran for over 0\.1 s on attempt 2 of 2", TaskTimeout)
        said(w.submit(sys.exit, 3), "exit", r" raised SystemExit\(3\)", TaskExited)
        said(
            w.submit(threading.Lock),
            threading.Lock.__qualname__,
            r": the result of type _thread\.lock .*",
            SerializationError,
        )
        running = w.submit(time.sleep, LIMIT)
        with pytest.raises(TimeoutError, match=f'^task {running.task_id} \\("sleep"\\) has not ended within 0 s$'):
            running.result(0)
        assert repr(running) == f'<TaskFuture {running.task_id} ("sleep") unfinished>'
        assert running.cancel()
        said(running, "sleep", " was cancelled", TaskCancelled)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        pytest.param(lambda: crash(signal.SIGSEGV), "<lambda>", id="lambda"),
        pytest.param(functools.partial(functools.partial(crash), signal.SIGSEGV), "crash", id="partial"),
        pytest.param(Odd(crash).method, "Odd.method", id="method"),
        pytest.param(Odd(crash), "test_messages.Odd", id="instance"),
    ],
)
def test_whatever_can_be_called_has_a_name(function: Callable[[], Any], name: str) -> None:
    with ProcessWorker(n=1) as w:
        said(w.submit(function), name, r": child \d+ died by SIGSEGV on attempt 1 of 1", WorkerCrashed)


def test_a_name_outlives_the_function_that_is_forgotten() -> None:
    with ProcessWorker(n=1) as w:
        crashed = w.submit(crash)
        w._client.functions._drop(id(crash))
        said(crashed, "crash", r": child \d+ died by SIGSEGV on attempt 1 of 1", WorkerCrashed)
        assert w.submit(abs, -1).result(LIMIT) == 1


def test_what_a_lost_supervisor_takes_along_is_named() -> None:
    with ProcessWorker(n=1) as w:
        lost = w.submit(time.sleep, LIMIT)
        os.kill(w.processes()["supervisor"], signal.SIGKILL)
        said(lost, "sleep", ": the supervisor died before it had ended", SupervisorLost)


def nap() -> None:
    time.sleep(LIMIT)


def nap_for_an_item(_: int) -> None:
    nap()


def test_the_stack_of_a_timeout_begins_with_the_function_of_the_task() -> None:
    with ProcessWorker(n=1) as w:
        assert w.submit(crash_at_two, 1).result(LIMIT) == 1  # the import of this module is no part of the tasks below
        view = w.options(timeout=0.1)
        error = view.submit(nap).exception(LIMIT)
        assert isinstance(error, TaskTimeout)
        assert re.findall(r"^  File .*, in (\w+)$", error.stack, re.MULTILINE) == ["nap"]
        assert "time.sleep(LIMIT)" in error.stack
        (error,) = view.map(nap_for_an_item, [1], return_exceptions=True)
        assert isinstance(error, TaskTimeout)
        assert re.findall(r"^  File .*, in (\w+)$", error.stack, re.MULTILINE) == ["nap_for_an_item", "nap"]
        error = view.submit(time.sleep, LIMIT).exception(LIMIT)
        assert isinstance(error, TaskTimeout)
        assert error.stack == "", "no frame of Python"
        assert w.submit(abs, -1).result(LIMIT) == 1


class Holder:
    """The everyday service: an object that has its pool."""

    def __init__(self, pool: ProcessWorker) -> None:
        self.pool = pool

    def run(self) -> None:
        pass


def test_what_belongs_to_a_pool_says_that_it_stays_here() -> None:
    with ProcessWorker(n=1) as w:
        for call, what in (
            (lambda: w.submit(Holder(w).run), "a ProcessWorker cannot be sent to another process: where a method"),
            (lambda: w.submit(abs, w.options(retries=1)), "a ProcessWorker cannot be sent"),
            (lambda: w.submit(abs, w.submit(abs, -3)), r"a TaskFuture cannot be sent to another process: send its res"),
        ):
            with pytest.raises(SerializationError, match=what):
                call()
