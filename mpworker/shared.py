"""`Shared`: the handle of an object that was placed once for many tasks.

It is the same class in the program that shares, where `mpworker.sharing` is behind it, and in a child, where
`mpworker.child.shares` is. It is pickled as the pool and a number.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar
from weakref import WeakValueDictionary

from mpworker.errors import ShareError
from mpworker.ipc import shares

if TYPE_CHECKING:
    from mpworker.ipc.shares import Opener

T = TypeVar("T")


class Place(Protocol):
    """Where the object of a handle is, as this process has it."""

    def value(self) -> Any:
        """The object."""

    def travels(self) -> None:
        """The handle is pickled; raise if it must not be."""

    def close(self) -> None:
        """Nobody needs the object here any more."""

    def state(self) -> str:
        """Whether it can be had, in a word or two."""


class Shared(Generic[T]):
    """The handle of an object that `ProcessWorker.share` has placed in shared memory.

    Hand it to tasks, wherever in their arguments: it is a few bytes, and each child that opens it maps the object,
    once, and read-only. A task that returns it returns this very handle.

    The object is kept until the handle is closed, or nobody in the program that has shared it holds it any more; and
    beyond that as long as a task needs it that was submitted before.

    Example:
        >>> from mpworker import ProcessWorker
        >>> with ProcessWorker(n=2) as w, w.share({"a": 1, "b": 2}) as table:
        ...     list(w.map(lambda key: table.value[key], "ab"))
        [1, 2]
    """

    __slots__ = ("__weakref__", "_nbytes", "_number", "_place", "_pool")

    def __init__(self, pool: str, number: int, nbytes: int, place: Place) -> None:
        self._pool = pool
        self._number = number
        self._nbytes = nbytes
        self._place = place
        _living[pool, number] = self

    @property
    def value(self) -> T:
        """The object, as tasks see it: opened when it is asked for first in this process, and the same one each time.

        NumPy arrays in it, and what else pickle takes out of band, are views of the shared memory, and read-only: a
        write raises ValueError. All else is unpickled, once for each child, so that a dictionary that a task changes is
        changed for the later tasks of that child: do not.

        A task opens what was handed to it. In the program it may be kept longer than the handle, and longer than the
        pool. What a task keeps of it for later ones becomes a copy before its memory is used for anything else.

        Raises:
            ShareError: The handle was closed, is of another worker, or was not handed to the task that runs; or no
                memory or address space is left to map the object.
            WorkerStopped: The worker has ended, or was made before this process was forked.
        """
        value: T = self._place.value()
        return value

    @property
    def nbytes(self) -> int:
        """Bytes of the object: its pickle, and what is beside it."""
        return self._nbytes

    def close(self) -> None:
        """Give back the memory, as soon as no task that was submitted before needs it; a second call does nothing.

        What `value` has given stays good, and keeps the memory for so long.

        Raises:
            ShareError: This is a task: who has shared the object closes it.
        """
        self._place.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a protocol is looked for
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(f"a Shared has no {name!r}: the object is its `value`, so write handle.value.{name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    def __copy__(self) -> Self:
        return self  # it refers to what it refers to

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        self._place.travels()
        return _opened, (self._pool, self._number, self._nbytes)

    def __repr__(self) -> str:
        return f"<Shared nbytes={self._nbytes} {self._place.state()}>"


# One handle for each object, so that it is opened once, and one that comes back is the one that went.
_living: WeakValueDictionary[tuple[str, int], Shared[Any]] = WeakValueDictionary()


def _opened(pool: str, number: int, nbytes: int) -> Shared[Any]:
    """The handle that a pickle means."""
    known = _living.get((pool, number))
    if known is not None:
        return known
    opener = shares.opener
    mine = opener is not None and opener.pool == pool
    return Shared(pool, number, nbytes, _InChild(opener, number) if opener is not None and mine else _Nowhere())


class _InChild:
    """An object of the pool that this child is of."""

    def __init__(self, opener: Opener, number: int) -> None:
        self._opener = opener
        self._number = number

    def value(self) -> Any:
        return self._opener.value(self._number)

    def travels(self) -> None:
        """Back to where it came from."""

    def close(self) -> None:
        raise ShareError("a task does not close a shared object: who has shared it does")

    def state(self) -> str:
        return "in a task"


class _Nowhere:
    """An object that this process cannot have."""

    def value(self) -> Any:
        raise ShareError("this shared object is of another worker, or its handle was closed or dropped")

    def travels(self) -> None:
        self.value()

    def close(self) -> None:
        pass  # it is

    def state(self) -> str:
        return "not here"
