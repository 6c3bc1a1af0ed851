"""Tasks with shared objects."""

import os
import pickle
import resource
import threading
from typing import Any

import pooljobs

from mpworker import Shared
from mpworker.errors import ShareError

kept: list[Any] = []


def echo(value: Any) -> Any:
    return value


def total(shared: Shared[Any]) -> float:
    return float(shared.value.sum())


def total_of_all(shares: list[Shared[Any]]) -> float:
    return sum(map(total, shares))


def checked(shared: Shared[Any], number: int) -> int:
    """Does the array have this number everywhere, whatever else goes on?"""
    value = shared.value
    assert int(value.min()) == int(value.max()) == number, (value.min(), value.max(), number)
    return number


def hold_and_total(folder: str, shared: Shared[Any]) -> float:
    """Opened only when the test lets it go on."""
    pooljobs.hold(folder)
    return total(shared)


def total_and_hold(folder: str, shared: Shared[Any]) -> float:
    found = total(shared)
    pooljobs.hold(folder)
    return found


def write(shared: Shared[Any]) -> None:
    shared.value[0] = 1


def look_up(shared: Shared[dict[str, Any]], key: str) -> Any:
    return shared.value[key]


def identity(shared: Shared[Any]) -> tuple[int, int]:
    return os.getpid(), id(shared.value)


def keep_value(shared: Shared[Any]) -> int:
    kept.append(shared.value[10:])
    return os.getpid()


def keep_handle(shared: Shared[Any], opened: bool) -> None:
    kept.append(shared)
    if opened:
        total(shared)


def total_of_kept() -> list[float]:
    return [total(each) if isinstance(each, Shared) else float(each.sum()) for each in kept]


def forget_kept() -> None:
    kept.clear()


def _crash_once(folder: str) -> None:
    mark = f"{folder}/crashed"
    if not os.path.exists(mark):
        open(mark, "w").close()
        os._exit(3)


def crash_once_then_total(shared: Shared[Any], folder: str) -> float:
    found = total(shared)
    _crash_once(folder)
    return found


def fail(shared: Shared[Any], folder: str) -> float:
    if not os.path.exists(f"{folder}/well"):
        raise OSError("not yet")
    return total(shared)


def record(shared: Shared[Any], path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{total(shared)}\n")


def mapped_with_little_room(shared: Shared[Any]) -> str:
    """What is said where there is no address space for it; the limit is this child's for ever."""
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (4 << 20), limit[1]))
    try:
        total(shared)
    except ShareError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    return "mapped"


def in_fork(shared: Shared[Any], opened: bool) -> str:
    """What a fork of the task sees."""
    if opened:
        total(shared)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            found = str(total(shared))
        except ShareError as error:
            found = f"{type(error).__name__}: {error}"
        os.write(writer, found.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as told:
        found = told.read()
    os.waitpid(pid, 0)
    return found


def in_threads(shared: Shared[Any]) -> int:
    """How many objects threads see that open it at the same time."""
    barrier = threading.Barrier(8)
    found = []

    def look() -> None:
        barrier.wait()
        found.append(id(shared.value))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(set(found))


def pickled(shared: Shared[Any]) -> bytes:
    return pickle.dumps(shared)


def closed(shared: Shared[Any]) -> None:
    shared.close()


def value_of(shared: Shared[Any]) -> Any:
    return shared.value


def total_of_pickled(data: bytes) -> float:
    return total(pickle.loads(data))


def hold_and_return(folder: str) -> None:
    pooljobs.hold(folder)


def hold_with(folder: str, _: Any) -> None:
    pooljobs.hold(folder)


def checked_and_kept(shared: Shared[Any], number: int) -> int:
    """What earlier tasks have kept is what it was, too."""
    for value, expected in kept:
        assert int(value.min()) == int(value.max()) == expected
    kept.append((shared.value, number))
    del kept[:-3]
    return checked(shared, number)


class Unpickled:
    """Writes a line to a file each time that it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        with open(self.path, "a") as file:
            file.write("loaded\n")


def opened(shared: Shared[Unpickled]) -> bool:
    return isinstance(shared.value, Unpickled)


def opened_after_a_crash(shared: Shared[Unpickled], folder: str) -> bool:
    """The first attempt ends its process with the object open."""
    found = opened(shared)
    _crash_once(folder)
    return found
