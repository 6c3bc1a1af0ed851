"""What the scheduler and the world around it say to each other: the words of the wire, and what each can be asked."""

from __future__ import annotations

from mpworker.supervisor.history import Ended
from mpworker.supervisor.lifecycle import CANCEL, COMPLETE, FAIL, TIME_OUT
from mpworker.supervisor.registry import Attempt, Seat, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol, TypeAlias
else:
    Protocol = object

# What an answer or an outcome says. The numbers are the wire's: mpworker.ipc.codec; a test compares the two.
OK: Final = 0
ERROR: Final = 1
UNSERIALIZABLE: Final = 2
EXITED: Final = 3
INTERRUPTED: Final = 4
CRASHED: Final = 5
TIMED_OUT: Final = 6
CANCELLED: Final = 7

# A child's answer as it comes: kind, flags, started_ns, generation, slot | duration_ns << SLOT_BITS, payload.
Answer: TypeAlias = tuple[int, int, int, int, int, bytes]
WELL: Final = 13  # the kind of one that a task has ended, and has no flags if all is well
SLOT_BITS: Final = 8
SLOT_MAX: Final = (1 << SLOT_BITS) - 1

# What a last attempt with this status does to the task.
END_BY: Final = {
    OK: COMPLETE,
    ERROR: FAIL,
    UNSERIALIZABLE: FAIL,
    EXITED: FAIL,
    INTERRUPTED: CANCEL,  # it was asked to stop, and nobody here has decided why
    CRASHED: FAIL,
    TIMED_OUT: TIME_OUT,
    CANCELLED: CANCEL,
}

# The state of a claim word, likewise: mpworker.ipc.claims.h.
CLAIM_OFFERED: Final = 1
CLAIM_CLAIMED: Final = 2
CLAIM_REVOKED: Final = 3


class Effects(Protocol):
    """What the scheduler can do to the world. A child is named by its seat's number."""

    def offer(self, seat: Seat, task: Task) -> None:
        """Open `task.slot` at `task.generation` and send the task."""

    def revoke(self, seat: Seat, slot: int, generation: int) -> bool:
        """Take an offer back. False: the child has claimed it."""

    def peek(self, seat: Seat, slot: int) -> tuple[int, int, float, int]:
        """A slot's generation, claim state, start of the running item and cursor (the running item + 1)."""

    def halt(self, seat: Seat, slot: int, generation: int) -> int:
        """No further item in this slot (generation 0: take that back); the cursor since."""

    def interrupt(self, seat: Seat) -> None:
        """Signal the child to look at its halt word."""

    def ask_stack(self, seat: Seat) -> None:
        """Have the child write where it is, whatever it runs."""

    def stack(self, seat: Seat) -> bytes:
        """What it has written since it was asked."""

    def kill(self, seat: Seat) -> None:
        """SIGKILL the child."""

    def dismiss(self, seat: Seat) -> None:
        """Have the child exit, which has no offer."""

    def memory(self, seat: Seat) -> int:
        """Bytes that the child has of its own."""

    def beat(self, seat: Seat) -> float:
        """When the child last beat."""

    def looked(self) -> None:
        """The children were looked at, and none of them is dying."""

    def emit(self, task: Task, status: int, payload: bytes) -> None:
        """Tell the client how a task ended."""

    def emit_items(self, task: Task, start: int, stop: int, status: int, payload: bytes, duration_ns: int) -> None:
        """Tell the client how a run of a chunk's items ended."""

    def emit_report(self, task: Task, start: int, stop: int, status: int, report: dict[str, object]) -> None:
        """Either of the two, with an outcome that was decided here."""

    def split(self, task: Task, start: int, stop: int) -> None:
        """Ask the client to send these items one by one: they cannot be unpickled together."""


class Watcher(Protocol):
    """Who looks on. Of most tasks it hears nothing, unless `Scheduler.watch` says that somebody wants that."""

    def accepted(self, task: Task) -> None:
        """A task has come."""

    def begun(self, task: Task, pid: int, started_at: float) -> None:
        """A child has claimed it then."""

    def noted(self, task: Task, attempt: Attempt) -> None:
        """An attempt has ended, and its outcome was decided here, or is not the last one."""

    def late(self, task: Task) -> None:
        """An attempt was ended because it took too long."""

    def retried(self, task: Task, pause: float) -> None:
        """Another attempt follows, after so many seconds."""

    def ended(self, entry: Ended) -> None:
        """A task has ended, and nobody has been told yet."""


class ProtocolViolation(Exception):
    """A child answered something that no child of ours would; it is killed."""
