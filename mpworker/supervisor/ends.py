"""How attempts and tasks end: another attempt or an outcome, who hears of it, and what is remembered."""

from __future__ import annotations

from mpworker.containers import Tally
from mpworker.supervisor.effects import CANCELLED, END_BY, TIMED_OUT, Effects, Watcher
from mpworker.supervisor.history import Ended, History
from mpworker.supervisor.interrupts import Interrupts
from mpworker.supervisor.lifecycle import BACK_OFF, RETRY, SETTLE
from mpworker.supervisor.registry import Attempt, Seat, Task, Times

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

HISTORY_MAX: Final = 1000
HISTORY_BYTES_MAX: Final = 1 << 26
ATTEMPTS_MAX: Final = 100
REPORTS_MAX: Final = 3
REPORT_BYTES_MAX: Final = 1 << 14


class Ends(Interrupts):
    """Tasks that are tried again, or end.

    Args:
        effects: What carries out the decisions.
        times: How long it waits for children.
        uniform: Called for a random number from 0 to 1.
    """

    __slots__ = (
        "_clean_at",
        "_clean_every",
        "_keep",
        "_traced",
        "_uniform",
        "_watched",
        "ended",
        "history",
        "retries",
        "watcher",
    )

    def __init__(self, effects: Effects, times: Times, uniform: Callable[[], float]) -> None:
        super().__init__(effects, times)
        self._uniform = uniform
        self.history = History(HISTORY_MAX, HISTORY_BYTES_MAX, None, False)
        self.watcher: Watcher | None = None
        self._watched = False  # it hears of every task
        self._traced: Callable[[Ended], None] | None = None
        self._keep: Callable[[Ended], None] = self.history.append
        self._clean_every = 0.0
        self._clean_at: float | None = None
        self.retries = 0
        self.ended = Tally()  # tasks by their final state, but for those that were completed

    # ------------------------------------------------------------ who looks on, and what is remembered

    def watch(self, on: bool) -> None:
        """Tell the watcher of each task that is accepted or ends, or no longer.

        Where nobody watches no task pays for the question: what each task comes by is replaced. For those that are
        accepted the caller does that, by `submitted_watched`.
        """
        self._watched = on and self.watcher is not None
        self._keep_and_tell()

    def trace(self, ended: Callable[[Ended], None] | None) -> None:
        """Tell this one of each task that ends, too, just before its outcome is emitted; None for nobody."""
        self._traced = ended
        self._keep_and_tell()

    def _keep_and_tell(self) -> None:
        self._keep = append = self.history.append
        watcher = self.watcher.ended if self._watched and self.watcher is not None else None
        told = [each for each in (watcher, self._traced) if each is not None]
        if not told:
            return

        def keep(entry: Ended) -> None:
            append(entry)
            for each in told:
                each(entry)

        self._keep = keep

    def retain(
        self, max_entries: int, max_bytes: int, ttl: float | None, results: bool, interval: float, now: float
    ) -> None:
        """What is remembered of tasks that have ended; what is too old is looked for every `interval` seconds."""
        self.history.change(max_entries, max_bytes, ttl, results)
        self.watch(self._watched)
        self._clean_every = interval
        self._clean_at = now if ttl is not None else None

    # ------------------------------------------------------------ an attempt is over

    def _note_attempt(self, task: Task, attempt: Attempt) -> None:
        if self.watcher is not None and not task.items:
            self.watcher.noted(task, attempt)
        self.note_attempt(task, attempt)

    @staticmethod
    def note_attempt(task: Task, attempt: Attempt) -> None:
        """An attempt that has not ended the task is over."""
        if not task.items:
            past = task.set_back().past
            if len(attempt.report) > REPORT_BYTES_MAX:
                attempt = attempt.without_report()
            past.append(attempt)
            if len(past) > REPORTS_MAX:
                past[-REPORTS_MAX - 1] = past[-REPORTS_MAX - 1].without_report()
            if len(past) > ATTEMPTS_MAX:
                del past[1]  # the first one and the last ones tell most

    def _retry(self, task: Task, asked: float | None = None) -> None:
        """Another attempt, after the pause that the task has asked for, or else its policy."""
        pause = asked
        if pause is None:
            backoff = task.options.backoff
            pause = backoff.pause(task.attempts, self._uniform()) if backoff is not None else 0.0
        task.decided = 0
        task.order = 0  # it goes to the end of the line
        self.retries += 1
        if self.watcher is not None:
            self.watcher.retried(task, pause)
        if pause > 0.0:
            task.state = BACK_OFF[task.state]
            self.scheduled += not task.items
            self._pausing.append((pause, task))
        else:
            task.state = RETRY[task.state]
            self._put(task)

    def _decided(self, task: Task, stack: bytes = b"", died_in: Seat | None = None) -> None:
        """The attempt whose outcome was decided is over: interrupted, with this stack, or dead with its child."""
        task.attempts += 1
        if task.decided == TIMED_OUT and self.watcher is not None:
            self.watcher.late(task)
        if task.decided == CANCELLED:
            self._end(task, CANCELLED)
        elif task.retries_left():
            task.set_back().failures += 1
            self._retry(task)
        else:
            report: dict[str, object] = {
                "timeout": None if task.setbacks.expired else task.options.timeout,
                "deadline": task.deadline_at,
                "attempt": task.attempts,
                "attempts": task.attempts,
                "killed": died_in is not None,
                "interrupted": stack.decode(errors="replace"),
                # Not of a child that lives: what it wrote may be of its next task.
                "dumped": self._effects.stack(died_in).decode(errors="replace") if died_in is not None else "",
            }
            self._end(task, TIMED_OUT, report)

    # ------------------------------------------------------------ a task is over

    def _end(self, task: Task, status: int, report: dict[str, object] | None = None) -> None:
        """An outcome that was decided here: emit it and forget the task."""
        self._leave_line(task, END_BY[status])
        if task.items:
            if task.key in self._pieces:
                self._effects.emit_report(task, task.start, task.stop, status, report or {})
            self._forget_piece(task)
        else:
            del self._tasks[task.key]
            self.ended[task.state] += 1
            self._keep((task, status, 0, 0, 0))
            self.history.keep(task, report or {})
            self._effects.emit_report(task, 0, 0, status, report or {})
        task.forget_call()

    def _piece_over(self, piece: Task) -> None:
        piece.state = SETTLE[piece.state]
        self._forget_piece(piece)

    def _forget_piece(self, piece: Task) -> None:
        pieces = self._pieces.get(piece.key)
        if pieces is not None:
            pieces.pop(piece, None)
            if not pieces:
                del self._pieces[piece.key]
