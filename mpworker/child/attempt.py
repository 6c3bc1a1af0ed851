"""The attempt that a child runs now: what interrupts it, and what it can ask of itself.

To stop a running task the supervisor writes the slot's generation into the slot's `halt` word and sends
INTERRUPT_SIGNAL. The handler raises only while the task of that very generation runs, so a signal that comes too late
hits nobody. `running` is set around the user's function alone: an interrupt cannot land in this package's own work.
"""

from __future__ import annotations

from types import CodeType, FrameType

from mpworker.context import TaskContext
from mpworker.ipc import codec, details, tracebacks
from mpworker.ipc._native import AttemptState, Claims

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from mpworker.child.calls import Context

_OURS: Final[list[CodeType]] = []  # what calls the users' functions


def is_ours(code: CodeType) -> None:
    """Have the stack of a task begin above the frame of this code, which calls its function."""
    _OURS.append(code)


class TaskInterrupted(BaseException):
    """Raised in a task that timed out or was cancelled; no Exception, so that `except Exception` does not eat it."""


class Attempt(AttemptState):
    """What the claimed task, or chunk, is; one object, for one after the other.

    Its fields are those of `AttemptState`, where what runs most tasks sets them without Python.

    Args:
        claims: The child's claim page.
        task_prefix: Of the ids of tasks that have none of the user's own,
        contexts: unless it is another one for many tasks, of which this is known.
    """

    __slots__ = ("_claims", "_contexts", "_task_prefix")

    def __init__(self, claims: Claims, task_prefix: str, contexts: Mapping[int, Context]) -> None:
        self._claims = claims
        self._task_prefix = task_prefix
        self._contexts = contexts

    def on_interrupt(self, _signal: int, frame: FrameType | None) -> None:
        """The handler of INTERRUPT_SIGNAL."""
        generation = self.running
        if self.itemwise and not self._claims.inside:
            generation = 0  # between two items
        if generation and self._claims.peek(self.slot)[4] == generation:
            self.running = 0  # once: not again while the exception unwinds
            self.stack = _stack_of_task(frame)
            raise TaskInterrupted
        self.early = not generation

    def context(self) -> TaskContext | None:
        """The context of the task that runs now."""
        if not self.number:
            return None
        context = self._contexts.get(self.task >> codec.CONTEXT_SHIFT)
        own = context.prefix if context is not None else None
        task_id = f"{self._task_prefix if own is None else own}{self.task & codec.TASK_MASK}"
        if not self.details:
            return TaskContext(task_id, self.number)
        said = details.read(self.details)
        return TaskContext(said.get("id", task_id), self.number, said.get("deadline"), said.get("metadata", {}))

    def is_loading(self) -> bool:
        """Is a task claimed whose call has not begun, or is over?"""
        return bool(self.number) and not self.running

    def leave_orphans(self) -> None:
        """A pool that a task of this process had opened was lost; see `mpworker.context`."""
        self.orphans = True

    def take_details(self, data: bytes | MemoryError) -> bytes | MemoryError:
        """Keep what a task says beyond its call, for who asks; the call."""
        if isinstance(data, MemoryError):
            return data
        self.details = data
        return details.after(data)

    def detailed(self, flags: int, started_ns: int, data: bytes | MemoryError) -> tuple[bytes | MemoryError, bool]:
        """The call of a task that may have details; and was it claimed after its deadline?"""
        if not flags & codec.DETAILED:
            return data, False
        data = self.take_details(data)
        deadline = details.read(self.details).get("deadline")
        return data, deadline is not None and started_ns / 1e9 >= deadline


def _stack_of_task(frame: FrameType | None) -> str:
    """The stack from the user's function on; "" if it has not begun, or has returned."""
    places = []
    while frame is not None and frame.f_code not in _OURS:
        places.append((frame, frame.f_lineno))
        frame = frame.f_back
    return tracebacks.of_stack(reversed(places))
