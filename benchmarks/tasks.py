"""What the pools are asked to do. Importable, so that every pool sends it by name."""

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
    """How fast this machine does `work`: the best of a few tries, for a preempted one says nothing."""
    turns = 100_000
    best = float("inf")
    for _ in range(9):
        begun = time.perf_counter()
        work(turns)
        best = min(best, time.perf_counter() - begun)
    return turns / best


def measure_array(array: "NDArray[Any]") -> int:
    """Receive an array, and answer with something small."""
    return int(array.nbytes)


def echo(array: "NDArray[Any]") -> "NDArray[Any]":
    """Receive an array and send it back."""
    return array
