"""Tasks with large arguments and results."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pooljobs

Array = np.ndarray[Any, Any]

kept: list[Any] = []


def echo(value: Any) -> Any:
    return value


def double(values: Array) -> Array:
    values *= 2
    return values


def write_one(values: Array) -> tuple[Array, Array]:
    """Two parts of the input: one that was written, and one that was not."""
    values[0] = -1
    half = len(values) // 2
    return values[:half], values[half:]


def part(values: Array, start: int, stop: int) -> Array:
    return values[start:stop]


def total(values: Array) -> float:
    return float(values.sum())


def make(size: int, value: int) -> Array:
    return np.full(size, value, dtype="u1")


def make_held(folder: str | None, size: int, value: int) -> Array:
    """The same, when the gate in that folder lets it."""
    if folder is not None:
        pooljobs.hold(folder)
    return make(size, value)


def keep(values: Array) -> int:
    kept.append(values)
    return os.getpid()


def of_kept() -> list[float]:
    return [float(each.sum()) for each in kept]


def spoil_and_die(values: Array, path: Path) -> float:
    """Write into the input and die, the first time."""
    found = float(values.sum())
    values[:] = 0
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def spoil_and_raise(values: Array, path: Path) -> float:
    found = float(values.sum())
    values[:] = 0
    if not path.exists():
        path.touch()
        raise OSError("once")
    return found


def fail(values: Array) -> None:
    raise ValueError(len(values))


def many(count: int, size: int) -> list[Array]:
    return [np.full(size, number % 251, dtype="u1") for number in range(count)]


def seen_in_fork(values: Array, reader: str, writer: str) -> int:
    """A fork that looks at the input after the task has ended; its pid."""
    pid = os.fork()
    if pid == 0:
        with open(reader, "rb") as gate:
            gate.read(1)
        with open(writer, "w") as out:
            out.write(str(float(values.sum())))
        os._exit(0)
    return pid


def hold_and_count(folder: str, values: Array) -> int:
    pooljobs.hold(folder)
    return len(values)
