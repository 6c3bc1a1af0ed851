"""The stack of a late task that takes no interrupt: written in C by its child, read from memory by the supervisor."""

import contextlib
import itertools
import os
import re
import signal
from typing import Any

import pytest

from mpworker import ProcessWorker, Task, stacks
from mpworker.errors import TaskTimeout
from mpworker.ipc import codec
from mpworker.ipc.channel import channel_bytes, close_all, make_channel
from mpworker.ipc.stacks import STACK_BYTES, StackView

LIMIT = 60.0  # seconds: a guard against a hang, never a measure
GRACE = 0.1


def names(stack: str) -> list[str]:
    return re.findall(r"^  File .*, in (.*)$", stack, re.MULTILINE)


def late(w: ProcessWorker, *call: Any) -> TaskTimeout:
    assert w.submit(names, "").result(LIMIT) == []  # the child's import of this module is no part of what is late
    error = w.options(timeout=0.2).submit(*call).exception(LIMIT)
    assert isinstance(error, TaskTimeout)
    return error


def count_for_ever() -> None:
    sum(itertools.repeat(1))  # polls no signal


def outer(_: object = None) -> None:
    count_for_ever()


def another() -> None:
    count_for_ever()


def deep(depth: int) -> None:
    if depth:
        deep(depth - 1)
    else:
        count_for_ever()


def swallow() -> None:
    while True:
        with contextlib.suppress(BaseException):
            count_down()


def count_down() -> None:
    for _ in range(10**6):
        pass


class SlowToLoad:
    def __reduce__(self) -> Any:
        return outer, ()


# ------------------------------------------------------------ of real tasks


def test_a_task_in_c_code_says_where_it_was() -> None:
    with ProcessWorker(n=1, grace=GRACE) as w:
        error = late(w, outer)
        assert names(error.stack) == ["outer", "count_for_ever"]
        assert f'File "{__file__}"' in error.stack
        assert "    sum(itertools.repeat(1))  # polls no signal" in error.stack
        assert "its child was killed" in str(error)
        assert names(late(w, another).stack) == ["another", "count_for_ever"]


def test_an_item_in_c_code_says_where_it_was() -> None:
    with ProcessWorker(n=1, grace=GRACE) as w:
        assert w.submit(names, "").result(LIMIT) == []
        (error,) = w.options(timeout=0.2).map(outer, [1], return_exceptions=True)
        assert isinstance(error, TaskTimeout)
        assert names(error.stack) == ["outer", "count_for_ever"]


def test_a_task_that_swallows_its_interrupt_says_where_it_was() -> None:
    with ProcessWorker(n=1, grace=GRACE) as w:
        found = names(late(w, swallow).stack)
        assert found[:1] == ["swallow"]
        assert set(found) <= {"swallow", "count_down", "__enter__", "__exit__", "__init__", "suppress"}


def test_a_deadline_that_ends_in_a_kill_says_where_the_task_was() -> None:
    with ProcessWorker(n=1, grace=GRACE) as w:
        assert w.submit(names, "").result(LIMIT) == []
        error = w.register_task(Task(outer, deadline=0.3)).exception(LIMIT)
    assert isinstance(error, TaskTimeout)
    assert names(error.stack) == ["outer", "count_for_ever"]


def test_c_code_alone_has_no_stack() -> None:
    with ProcessWorker(n=1, grace=GRACE) as w:
        assert late(w, sum, range(10**12)).stack == ""


def test_a_stack_is_that_of_its_task_in_a_child_that_has_written_another() -> None:
    with ProcessWorker(n=1, grace=LIMIT) as patient:
        pid = patient.submit(os.getpid).result(LIMIT)
        for _ in range(3):  # it is interrupted each time, and lives
            assert names(late(patient, count_down_for_ever).stack)[:1] == ["count_down_for_ever"]
        assert patient.submit(os.getpid).result(LIMIT) == pid
        assert patient.submit(stack_now).result(LIMIT) == ["stack_now", "run_task"]


def count_down_for_ever() -> None:
    while True:
        count_down()


def page() -> tuple[int, int]:
    """In a child: a descriptor of the channel, and where in it the stack begins. All such share one offset."""
    for name in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{name}") and "mpworker-child" in os.readlink(f"/proc/self/fd/{name}"):
            return int(name), os.fstat(int(name)).st_size - STACK_BYTES
    raise AssertionError("a child has its channel")


def stack_now() -> list[str]:
    """The frames that this process writes to its page, up to ours."""
    fd, start = page()
    os.kill(os.getpid(), codec.STACK_SIGNAL)
    text = os.pread(fd, os.lseek(fd, 0, os.SEEK_CUR) - start, start).decode()
    assert text.count("Stack (most recent call first)") == 1, "what was written before is still there"
    found = re.findall(r"in (.*)", text)
    return found[: found.index("run_task") + 1]


def deep_and_polite(depth: int) -> None:
    if depth:
        deep_and_polite(depth - 1)
    else:
        count_down_for_ever()


def test_nothing_is_left_of_a_longer_stack() -> None:
    with ProcessWorker(n=1, grace=1.0) as w:
        assert len(names(late(w, deep_and_polite, 30).stack)) > 3
        assert names(late(w, outer).stack) == ["outer", "count_for_ever"]


def test_a_call_that_is_unpickled_for_too_long_says_so() -> None:
    with ProcessWorker(n=1, grace=GRACE) as w:
        found = names(late(w, len, SlowToLoad()).stack)
        assert found[-2:] == ["outer", "count_for_ever"]
        assert "serve" not in found


def test_the_latest_calls_of_a_deep_stack_are_told() -> None:
    with ProcessWorker(n=1, grace=GRACE) as w:
        stack = late(w, deep, 500).stack
        found = names(stack)
        assert found[-1] == "count_for_ever"
        assert set(found[:-1]) == {"deep"}
        (more,) = re.findall(r"Previous line repeated (\d+) more times", stack)
        assert 20 < len(found) + int(more) <= 100


def fill_the_page(garbage: bytes) -> None:
    signal.signal(codec.STACK_SIGNAL, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [codec.INTERRUPT_SIGNAL])
    fd, start = page()
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 4096)
    while True:  # while the supervisor clears it, and reads it
        os.pwrite(fd, garbage * (STACK_BYTES // len(garbage)), start)


@pytest.mark.parametrize(
    "garbage", [b"\xff", b'  File "\xc3", line 99999999999999 in x\n', b'  File "a", line ??? in b\n']
)
def test_whatever_a_child_writes_there_hurts_nobody(garbage: bytes) -> None:
    with ProcessWorker(n=1, grace=GRACE) as w:
        error = late(w, fill_the_page, garbage)
        assert "its child was killed" in str(error)
        assert len(error.stack) < 8 * STACK_BYTES
        assert w.submit(abs, -3).result(LIMIT) == 3


# ------------------------------------------------------------ the page


def test_a_stack_ends_where_its_page_does() -> None:
    capacities = (256, 256)
    (theirs, *bells), channel = make_channel("test", capacities, STACK_BYTES)
    view = StackView(channel.more)
    try:
        os.lseek(theirs, channel_bytes(capacities), os.SEEK_SET)
        for _ in range(STACK_BYTES // 1024):
            os.write(theirs, b"x" * 1024)
        with pytest.raises(PermissionError):
            os.write(theirs, b"x")
        assert view.read() == b"x" * STACK_BYTES
        view.clear()
        assert view.read() == b""
    finally:
        close_all([theirs, *bells])
        channel.close()


# ------------------------------------------------------------ the text

DUMP = """Stack (most recent call first):
  File "/work/inner.py", line 7 in last
  File "/work/mpworker/child/task.py", line 3 in last
  File "/work/task.py", line 5 in run_task
  File "/a \\xe9 place/child/task.py", line ??? in <lambda>
  File "/site/mpworker/child/task.py", line 50 in run_task
  File "/site/mpworker/child/loop.py", line 50 in serve
  File "/site/loop.py", line 9 in run_task
  ...
"""


def test_frames_of_ours_are_cut_off_and_the_rest_is_turned_round() -> None:
    found = stacks.of_task(DUMP)
    assert re.findall(r'File "(.*)", line \d+, in (.*)', found) == [
        (r"/a \xe9 place/child/task.py", "<lambda>"),
        ("/work/task.py", "run_task"),
        ("/work/mpworker/child/task.py", "last"),
        ("/work/inner.py", "last"),
    ]


@pytest.mark.parametrize("text", ["", "Stack (most recent call first):\n", "nonsense\n  File", "\0" * 10])
def test_what_is_no_stack_has_no_frames(text: str) -> None:
    assert stacks.of_task(text) == ""


def use_numpy() -> int:
    numpy = pytest.importorskip("numpy")  # whose BLAS has threads that block no signal
    return int(numpy.ones(3).sum())


def test_a_late_task_is_interrupted_where_a_library_has_threads() -> None:
    pytest.importorskip("numpy")
    with ProcessWorker(n=1, grace=LIMIT) as w:
        assert w.submit(use_numpy).result(LIMIT) == 3
        for _ in range(5):
            assert names(late(w, count_down_for_ever).stack)[:1] == ["count_down_for_ever"]
    assert not w.metrics().crashes
