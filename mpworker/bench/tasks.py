"""What the pools are asked to do. Importable, so that every pool sends it by name."""

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def noop(_: object = None) -> None:
    """Nothing: what is left is the cost of the pool."""


def work(turns: int) -> None:
    """A fixed amount of work. Not a time: a clock would count as work what a preempted process loses."""
    for _ in range(turns):
        pass


def turns_per_second() -> float:
    """How fast a core does `work`, by CPU time: where others want it too, each try is preempted.

    The best of a few tries, for whoever shares a core's caches and units slows it.
    """
    turns = 100_000
    best = float("inf")
    for _ in range(9):
        begun = time.thread_time()
        work(turns)
        best = min(best, time.thread_time() - begun)
    return turns / best


def gate(fifo: str) -> None:
    """Wait until somebody has that named pipe open for writing."""
    os.close(os.open(fifo, os.O_RDONLY))


def meet(folder: str, workers: int, seconds: float) -> None:
    """Wait until so many workers have begun this, or for so long: a pool may give it to one of them twice."""
    end = time.monotonic() + seconds
    with open(os.path.join(folder, str(os.getpid())), "w"):
        pass
    while len(os.listdir(folder)) < workers and time.monotonic() < end:
        time.sleep(0.001)


def arrived(value: Any) -> int:
    """Receive something, and answer with something small."""
    return int(getattr(value, "nbytes", 0)) or len(value)


def summed(array: "NDArray[Any]") -> float:
    """Receive an array and read all of it."""
    return float(array.sum())


def opened(shared: Any) -> float:
    """Open what is shared, and look at it."""
    return float(shared.value[-1])


def made(items: int) -> "NDArray[Any]":
    """Make an array and send it back."""
    import numpy

    return numpy.full(items, 1.0)


def echo(value: Any) -> Any:
    """Receive something and send it back."""
    return value
