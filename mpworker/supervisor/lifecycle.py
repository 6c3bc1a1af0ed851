"""The life of a task, or of a range of a chunk's items: the one table of what may happen to it when.

An `Event` says where it leads from each state in which it may happen. `event[state]` is the state after it, and raises
where there is none: nothing that the scheduler does by mistake can bring a task back that has ended, or start it twice.
`docs/lifecycle.md` shows the table; a test holds the two together.

Whether an offered task has begun is written in its child's claim word, by the child. To the outside it is QUEUED until
then, and RUNNING afterwards.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


# A task is born QUEUED.
QUEUED: Final = 0  # it waits for a child
OFFERED: Final = 1  # to a child, which may have claimed it
SCHEDULED: Final = 2  # for later: it waits for no child
COMPLETED: Final = 3  # this and what follows is for ever
FAILED: Final = 4
CANCELLED: Final = 5
TIMED_OUT: Final = 6
SETTLED: Final = 7  # of a range: each of its items was told of, handed back, or is wanted no more

STATES: Final = {
    QUEUED: "QUEUED",
    OFFERED: "OFFERED",
    SCHEDULED: "SCHEDULED",
    COMPLETED: "COMPLETED",
    FAILED: "FAILED",
    CANCELLED: "CANCELLED",
    TIMED_OUT: "TIMED_OUT",
    SETTLED: "SETTLED",
}
FIRST_FINAL: Final = COMPLETED


class IllegalTransition(Exception):
    """The scheduler has a fault: it did something to a task that its table does not know."""


class Event(dict[int, int]):
    """Something that happens to a task: the state after it, by the state before.

    Args:
        name: What it is called.
        why: When it happens.
        moves: The states.
    """

    __slots__ = ("name", "why")

    def __init__(self, name: str, why: str, moves: dict[int, int]) -> None:
        super().__init__(moves)
        self.name = name
        self.why = why

    def __missing__(self, state: int) -> int:
        raise IllegalTransition(f"{self.name} of a task that is {STATES.get(state, state)}")


def _to(state: int, *before: int) -> dict[int, int]:
    return dict.fromkeys(before, state)


_UNFINISHED: Final = (QUEUED, OFFERED, SCHEDULED)

POSTPONE: Final = Event("postpone", "it is submitted for later", _to(SCHEDULED, QUEUED))
COME_DUE: Final = Event(
    "come due", "its time is here, or the pause before its next attempt over", _to(QUEUED, SCHEDULED)
)
OFFER: Final = Event("offer", "it is sent to a child that has room", _to(OFFERED, QUEUED))
RETURN: Final = Event(
    "return",
    "its offer is taken back unclaimed, its child died before it began, or the rest of its range is to begin elsewhere",
    _to(QUEUED, OFFERED),
)
RETRY: Final = Event("retry", "its attempt has failed, and another is to follow", _to(QUEUED, OFFERED))
BACK_OFF: Final = Event("back off", "its attempt has failed, and another is to follow later", _to(SCHEDULED, OFFERED))
COMPLETE: Final = Event("complete", "its child has answered with a value", _to(COMPLETED, OFFERED))
FAIL: Final = Event("fail", "its last attempt has raised, or died with its child", _to(FAILED, OFFERED))
CANCEL: Final = Event("cancel", "its client has cancelled it, and what ran has stopped", _to(CANCELLED, *_UNFINISHED))
TIME_OUT: Final = Event(
    "time out",
    "its last attempt took too long and has stopped, or its deadline came before it began",
    _to(TIMED_OUT, *_UNFINISHED),
)
SETTLE: Final = Event("settle", "nothing of a range is left to be done", _to(SETTLED, *_UNFINISHED))

EVENTS: Final = (POSTPONE, COME_DUE, OFFER, RETURN, RETRY, BACK_OFF, COMPLETE, FAIL, CANCEL, TIME_OUT, SETTLE)
