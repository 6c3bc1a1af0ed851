"""What a child calls: functions that came once, and those that come along with a task."""

from __future__ import annotations

from collections.abc import Callable

from mpworker.ipc import payload
from mpworker.ipc.arena import Parcel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.child.middleware import Middleware


class Context:
    """What a child knows of many tasks beside their functions.

    Attributes:
        judge: The number of the function that says whether an exception is final; 0 if none is.
        prefix: What their ids begin with; None for that of all tasks.
    """

    __slots__ = ("judge", "prefix")

    def __init__(self, judge: int, prefix: str | None = None) -> None:
        self.judge = judge
        self.prefix = prefix


UNREAD: Final = (bytes, MemoryError)  # what a function is until it is called first: its pickle, or why there is none


class Calls:
    """The functions of one child.

    Attributes:
        received: By its number each that may be called: its pickle, or why there is none, until it is called first.
        contexts: By its number what is known of many tasks.
        middleware: What is around each of them.
        unpickle: Reads a call; whoever has run an initializer sets another one.
    """

    def __init__(self) -> None:
        self.received: dict[int, bytes | MemoryError | Callable[..., Any]] = {}
        self.contexts: dict[int, Context] = {}
        self._judges: dict[int, Callable[..., Any]] = {}
        self.middleware: Middleware | None = None
        self.unpickle: Callable[..., Any] = payload.loads

    def function(self, number: int) -> Callable[..., Any]:
        """The one with this number."""
        found = self.received[number]
        if isinstance(found, UNREAD):
            call = self.loads(found)
            if self.middleware is not None:  # once for each function: where there is none, no task is asked
                call = self.middleware.around(call)
            found = self.received[number] = call
        return found

    def loaded(self, data: bytes | Parcel | MemoryError) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """A call whose function comes along."""
        call, args, kwargs = self.loads(data)
        return call if self.middleware is None else self.middleware.around(call), args, kwargs

    def judge(self, context: int) -> Callable[..., Any] | None:
        """What says of the exceptions of these tasks whether they are final; None if none is."""
        number = self.contexts[context].judge
        return self._judge(number) if number else None

    def _judge(self, number: int) -> Callable[..., Any]:
        judge = self._judges.get(number)
        if judge is None:
            found = self.received[number]
            judge = self._judges[number] = self.loads(found) if isinstance(found, UNREAD) else found
        return judge

    def loads(self, data: bytes | Parcel | MemoryError) -> Any:
        """Unpickle what came, or raise why it did not."""
        if isinstance(data, Parcel):
            return data.loads(self.unpickle)
        if isinstance(data, MemoryError):
            raise data
        return self.unpickle(data)
