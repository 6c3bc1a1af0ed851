"""What the tests of faults have the children run: each task does one bad thing to its process.

Apart from the tests, so that a child imports no test library.
"""

import ctypes
import itertools
import json
import mmap
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import mpworker

SLEEP = ["/bin/sleep", "600"]
FOREVER = 600.0  # seconds; what is tested ends it


def attempt() -> int:
    return mpworker.current().attempt


def echo(value: Any) -> Any:
    return value


def limit_memory(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def touch(path: Path | None) -> None:
    """Leave a trace. Quick without a path, and known to be."""
    if path is not None:
        path.touch()


def say(path: Path, text: object = "") -> None:
    """Make a file that is seen only once it is whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(str(text))
    part.rename(path)


def dispositions() -> tuple[list[str], list[str]]:
    """What this process, and a program that it starts, do at signals."""
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    program = f"import signal; print(*map(str, map(signal.getsignal, {[int(number) for number in numbers]})), sep='|')"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return [str(signal.getsignal(number)) for number in numbers], there.strip().split("|")


# ------------------------------------------------------------ ends of a process


def segfault() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError


def overflow_stack() -> None:
    """A C stack overflow: a thread with little of it, and C code that recurses."""
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    sys.setrecursionlimit(10**8)
    threading.stack_size(64 << 10)
    thread = threading.Thread(target=repr, args=(nested,))
    thread.start()
    thread.join()


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1) + 1


def end(how: str) -> None:
    """End this process, or do what would end another."""
    if how == "raise":
        raise ValueError("on purpose")
    if how == "sys.exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "base":
        raise Unexpected
    if how == "segv":
        segfault()
    if how == "abort":
        os.abort()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("exit "):
        os._exit(int(how.split()[1]))
    raise AssertionError(how)


class Unexpected(BaseException):
    """Neither an Exception nor one of those that everyone knows."""


def once(path: Path, how: str) -> int:
    """End the first attempt; tell which one got through."""
    if not path.exists():
        path.touch()
        end(how)
    return attempt()


def block(path: Path | None) -> int:
    """With a path: say who runs it and wait for ever. Without: a task that is quick, and known to be."""
    if path is not None:
        say(path, os.getpid())
        while True:
            signal.pause()
    return attempt()


def block_once(path: Path) -> int:
    return attempt() if path.exists() else block(path)


def quick(how: str = "") -> int:
    """A function that is known to be quick, until it is not."""
    if how:
        end(how)
    return attempt()


# ------------------------------------------------------------ time


def nap_here(_: Any = None) -> None:
    time.sleep(FOREVER)


def backtrack_here() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def count_here() -> int:
    return sum(itertools.repeat(1))


def swallow_and_go_on() -> None:
    while True:
        try:
            time.sleep(FOREVER)
        except BaseException:  # noqa: BLE001, S110  # the fault itself
            pass


def swallow_and_return(value: int = 7) -> int:
    try:
        time.sleep(FOREVER)
    except BaseException:  # noqa: BLE001, S110
        pass
    return value


def say_and(path: Path, what: str) -> Any:
    say(path, os.getpid())
    return {"nap": nap_here, "count": count_here, "swallow": swallow_and_return}[what]()


def say_id_and_nap(path: Path) -> None:
    say(path, mpworker.current().task_id)
    nap_here()


def nap_once(path: Path) -> int:
    if not path.exists():
        path.touch()
        nap_here()
    return attempt()


# ------------------------------------------------------------ what a task leaves behind


def leave_process(kind: str) -> int:
    """Start a process that outlives the task; its pid."""
    if kind == "plain":
        return os.posix_spawn(SLEEP[0], SLEEP, os.environ)
    if kind == "session":
        return os.posix_spawn(SLEEP[0], SLEEP, os.environ, setsid=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        second = os.fork()
        if second == 0:
            os.execv(SLEEP[0], SLEEP)
        os.write(write, str(second).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with open(read, "rb") as file:
        return int(file.read())


def leave_process_and_block(kind: str, path: Path) -> None:
    say(path, json.dumps([os.getpid(), leave_process(kind)]))
    while True:
        signal.pause()


# ------------------------------------------------------------ descriptors and memory


def close_all() -> str:
    os.closerange(3, 65536)
    return "closed"


def close_all_and_open(folder: Path, count: int) -> list[int]:
    """Close everything, then take every number that is free, ours too."""
    os.closerange(3, 65536)
    return [os.open(folder / str(index), os.O_CREAT | os.O_RDWR) for index in range(count)]


def _maps(name: str) -> list[tuple[int, int]]:
    found = []
    with open("/proc/self/maps") as file:
        for line in file:
            if f"/memfd:{name}" in line:  # a file's mapping, as that of our C module, may hold the name too
                low, _, high = line.split()[0].partition("-")
                found.append((int(low, 16), int(high, 16)))
    return found


# Where in the mappings of that name: see mpworker/ipc/channel.py and claims.h.
PARTS = {
    "bells": ("mpworker-child", 0, 128),
    "zero bells": ("mpworker-child", 0, 128),
    "controls": ("mpworker-child", 128, 4096),
    "sent": ("mpworker-child", 128, 136),  # how far the supervisor has written
    "head": ("mpworker-child", 192, 200),  # how far this process has read
    "tail": ("mpworker-child", 256, 264),  # how far it has written
    "rings": ("mpworker-child", 4096, None),
    "claims": ("mpworker-roll", 0, None),
    "everything": ("mpworker", 0, None),
}


def scribble(part: str) -> str:
    """Write random bytes over what this process shares with the supervisor."""
    name, start, stop = PARTS[part]
    noise = random.Random(1)
    maps = _maps(name)
    if not maps:
        return "no such mapping"
    for low, high in maps:
        size = (high if stop is None else min(high, low + stop)) - low - start
        data = bytes(size) if part == "zero bells" else noise.randbytes(size)
        ctypes.memmove(low + start, data, size)
    return "scribbled"


def maybe_scribble(part: str, gate: Path | None = None) -> str:
    """Quick without a part, and known to be."""
    if not part:
        return ""
    _wait_for(gate)
    return scribble(part)


def wait_at(gate: Path | None, running: Path | None = None) -> int:
    """Quick without a gate, and known to be."""
    if running is not None:
        say(running, os.getpid())
    _wait_for(gate)
    return attempt()


def _wait_for(gate: Path | None) -> None:
    while gate is not None and not gate.exists():
        time.sleep(0.005)


def eat_memory(limit: int) -> int:
    """Touch new pages until the kernel objects."""
    size = 0
    kept = []
    while size < limit:
        piece = mmap.mmap(-1, 8 << 20)
        for at in range(0, len(piece), mmap.PAGESIZE):
            piece[at] = 1
        kept.append(piece)
        size += len(piece)
    return size


# ------------------------------------------------------------ pickles


class OnLoad:
    """Does something where it is unpickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return end, (self.how,)


class SlowLoad:
    """Takes long where it is unpickled."""

    def __reduce__(self) -> Any:
        return time.sleep, (1.0,)


class OnLoadIn:
    """Does it in the process with that pid only."""

    def __init__(self, pid: int, how: str) -> None:
        self.pid = pid
        self.how = how

    def __reduce__(self) -> Any:
        return _end_in, (self.pid, self.how)


def _end_in(pid: int, how: str) -> str:
    if os.getpid() == pid:
        end(how)
    return "harmless"


class Wrapped:
    """Carries to the child what must not be unpickled there."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return _wrap, (self.value.pid, self.value.how)


def _wrap(pid: int, how: str) -> "OnLoadIn":
    return OnLoadIn(pid, how)


class OnDump:
    """Does something where it is pickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        end(self.how)
        raise AssertionError


def return_on_dump(how: str) -> OnDump:
    return OnDump(how)


def return_on_load_in(pid: int, how: str) -> OnLoadIn:
    return OnLoadIn(pid, how)


def return_deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


class NeedsTwoError(Exception):
    """Its constructor wants more than `args`."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class MuteError(Exception):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class MuteExitError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class UnpicklableError(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("stays here")


def fail_with(kind: str) -> None:
    if kind == "needs two":
        raise NeedsTwoError("a", "b")
    if kind == "mute":
        raise MuteError
    if kind == "mute exit":
        raise MuteExitError
    if kind == "unpicklable":
        raise UnpicklableError
    if kind == "load in client":
        raise ValueError(OnLoadIn(os.getppid(), "raise"))
    raise AssertionError(kind)


def fail_on_load_in(pid: int, how: str) -> None:
    raise ValueError(OnLoadIn(pid, how))


class SendLarge:
    """Tells when it is pickled, waits for a gate, and tells when a part of it is in the ring; large."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size

    def __reduce__(self) -> Any:
        name, start, _ = PARTS["tail"]
        (low, _) = _maps(name)[0]
        tail = ctypes.c_uint64.from_address(low + start)
        before = tail.value

        def watch() -> None:
            while tail.value == before:
                time.sleep(0.001)
            say(self.folder / "sending")

        say(self.folder / "pickling", os.getpid())
        _wait_for(self.folder / "gate")
        threading.Thread(target=watch, daemon=True).start()
        return bytes, (b"1" * self.size,)


def return_large(folder: Path, size: int) -> Any:
    """The first attempt's value differs from the second's."""
    return b"2" * size if attempt() > 1 else SendLarge(folder, size)


# ------------------------------------------------------------ items of a map


def _work() -> None:
    """Longer than a chunk keeps results back."""
    until = time.monotonic() + 0.002
    while time.monotonic() < until:
        pass


def item(value: Any) -> Any:
    """An item is a number, or what is to happen."""
    if isinstance(value, int):
        return value * 10
    if value == "nap":
        nap_here()
    if value == "count":
        count_here()
    if value == "swallow":
        return swallow_and_return()
    if value == "on dump":
        return OnDump("raise")
    if value == "mute":
        raise MuteError
    if value == "needs two":
        raise NeedsTwoError("a", "b")
    if isinstance(value, str):
        end(value)
    return value


def slow_item(value: Any) -> Any:
    _work()
    return item(value)


def deaf_item(number: int) -> int:
    """Item 2 takes a second, and no signal from then on."""
    if number == 2:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
        time.sleep(1.0)
    return number * 10


def item_once(value: tuple[Path, int]) -> int:
    path, number = value
    if path.name == "guilty" and not path.exists():
        path.touch()
        end("kill")
    return number * 10


# ------------------------------------------------------------ starts


def init_raise() -> None:
    raise ValueError("this initializer is bad")


def init_exit() -> None:
    os._exit(9)


def init_hang() -> None:
    time.sleep(FOREVER)


def init_kill_later_ones(folder: Path) -> None:
    """The first start succeeds, no other does."""
    try:
        (folder / "first").mkdir()
    except FileExistsError:
        os._exit(9)


def init_killed(folder: Path, times: int) -> None:
    """The first starts are killed as if from outside."""
    for number in range(times):
        try:
            (folder / str(number)).mkdir()
        except FileExistsError:
            continue
        end("kill")


def init_note_and_kill_later_ones(folder: Path, path: Path) -> None:
    """As `init_kill_later_ones`, and note when."""
    with path.open("a") as file:
        file.write(f"{time.monotonic()}\n")
    init_kill_later_ones(folder)


def init_wait_for(folder: Path, gate: Path) -> None:
    """Say who starts, and be ready when the gate is there."""
    say(folder / "started", os.getpid())
    _wait_for(gate)


def fork_and_return_twice() -> int:
    return os.fork() or os.getpid()


def fork_item(number: int) -> int:
    if number == 3:
        os.fork()
    return number * 10


def scribble_and_wait(part: str, gate: Path | None = None, done: Path | None = None) -> None:
    """As `scribble`, then leave everything to the supervisor. Quick without a part, and known to be."""
    if part:
        _wait_for(gate)
        scribble(part)
        if done is not None:
            say(done)
        nap_here()
