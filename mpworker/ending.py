"""How a client comes to its end: it is stopped or dropped, or its supervisor dies."""

from __future__ import annotations

import threading
import time
from functools import partial

from mpworker.future import TaskFuture
from mpworker.ipc import codec, json
from mpworker.ipc.levels import ERROR, INFO
from mpworker.outcomes import BROKEN, LOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.client import Client
    from mpworker.stopping import StopReport
    from mpworker.waiting import Waitable

_EXIT_SECONDS: Final = 10.0  # how long stop_now lets the supervisor clean up before it is killed
_CALLBACK_SECONDS: Final = 1.0  # how long stop_now waits for the callbacks of what it cancelled
# A stop whose time is over has this much more: to hear of recurring tasks, until the supervisor is killed, and in all.
_ANSWER_SECONDS: Final = 0.1
_ORDERLY_SECONDS: Final = 0.15
_OVERTIME_SECONDS: Final = 0.25
DRAIN: Final = json.dumps({"verb": "stop", "now": False}).encode()
RUNS: Final = {"verb": "cron", "op": "unfinished"}
_NOW: Final = json.dumps({"verb": "stop", "now": True}).encode()
_OVER: Final = {LOST: "supervisor_lost", BROKEN: "pool_broken"}


def _age(future: TaskFuture[Any]) -> int:
    return future._key


class Ending:
    """The end of one client, or the way there.

    Args:
        client: The client.

    Attributes:
        asked: The supervisor was asked to end, when it has finished or at once.
        cancels: What has not begun shall not.
        cancelled_items: Of maps.
        outcome: What became of all that was pending at the end; None before it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.asked = False
        self._at_once = False
        self.cancels = False
        self.cancelled_items = 0
        self.outcome: tuple[int, bytes] | None = None
        self._cut_short = False  # the stop cancelled something
        self._ended_well = False  # the supervisor is dead, with its work done
        self._told = False  # to the log
        self._reaping = False
        self._by: float | None = None  # the time that a stop was given, which later ones without have, too
        self._left: tuple[list[TaskFuture[Any]], int] = ([], 0)  # tasks, and how many items, that the end has cut off
        self._runs_left: list[int] = []  # of recurring tasks, that a stop has cut short
        self._unwanted: list[Any] = []  # what may not have begun when a stop cancelled all that had not
        self._cancelled_before = 0  # that stop

    # ------------------------------------------------------------ stop

    def close_submit(self) -> None:
        """Accept nothing more."""
        if not self._client._closed:
            self._client._closed = "stopped"

    def is_asked_for(self) -> None:
        """The supervisor is to stop, and finishes what it has accepted."""
        self.close_submit()
        self.asked = True

    def cancel_unstarted(self, timeout: float | None = None) -> None:
        """Accept nothing more, and cancel what no child has begun."""
        self.close_submit()
        self.cancels = True
        if not self._client._forked:
            self._client.request({"verb": "cancel_unstarted"}, timeout)

    def stop_graceful(self, timeout: float | None, cancel_queued: bool = False) -> StopReport:
        """Finish what was accepted, then end everything; when the time is over first the rest is cancelled."""
        self.finish(timeout, cancel_queued)
        return self._report(self._client._forked or self._all_finished())

    def finish(self, timeout: float | None, cancel_queued: bool = False) -> None:
        """`stop_graceful`, but for its report: importing that would make CPython forget that it ends by Ctrl-C."""
        client = self._client
        if client._forked:
            return
        self._stop_within(timeout)
        if client._over:
            self._join_background(self._time_left())
            return
        if cancel_queued and not self.cancels:
            self._note_unwanted()
            self.cancel_unstarted(self._time_left())
        if not self._say_drain():
            self._say_drain_when_there_is_room(self._time_left())
        resending = client.resending
        resending.give_up_below()
        told = client.when(lambda: client._over or bool(resending.chunks))
        while client.wait_for(told, self._time_left()) and not client.is_over():
            resending.send_all()
        if client.is_over():
            self._join_background(self._time_left())
        else:
            self._note_runs(client.request(RUNS, _ANSWER_SECONDS) if client.recurs else None)
            self._end_now(_ORDERLY_SECONDS, _OVERTIME_SECONDS)

    def begin_to_stop(self, timeout: float | None, cancel_queued: bool = False) -> StopReport:
        """`stop_graceful` in a thread of its own, if it has a time; what is left now."""
        if not (self._client._forked or self._client._over):
            if timeout is None and not cancel_queued:
                self.ask_drain()
            else:
                self.close_submit()
                self._stop_within(timeout)
                stop = partial(self.stop_graceful, timeout, cancel_queued)
                try:
                    threading.Thread(target=stop, name="mpworker-stop", daemon=True).start()
                except RuntimeError:
                    pass  # the interpreter is at its end and starts no thread; the exit handler stops, in the same time
        self._client.poll()
        return self._report(not self._client.pending)

    def _stop_within(self, timeout: float | None) -> None:
        """No stop takes longer than the shortest time that one was given: the interpreter may end meanwhile."""
        if timeout is not None:
            by = time.monotonic() + timeout
            self._by = by if self._by is None else min(by, self._by)

    def _time_left(self, more: float = 0.0) -> float | None:
        """How long until a stop's time has been over for `more` seconds; None without a stop or time."""
        return None if self._by is None else max(0.0, self._by + more - time.monotonic())

    def wait_for_room(self, room: Waitable, size: int) -> None:
        """Wait for so much room in the ring to the supervisor, but no longer than a stop may take."""
        client = self._client
        ready = client.wait_for(room, self._time_left(_ORDERLY_SECONDS), size)
        if not ready and self._time_left(_ORDERLY_SECONDS) == 0.0:
            self.asked = self._at_once = True
            client.supervisor.kill()  # it reads nothing
            client.wait_for(client.when(client.is_over), _OVERTIME_SECONDS)

    def stop_now(self) -> None:
        """End everything at once; what is pending ends cancelled."""
        self._end_now(None, None)

    def _end_now(self, orderly: float | None, overtime: float | None) -> None:
        """End everything; if given, within so many seconds of a stop's time for an orderly end, and for all of it."""
        client = self._client
        if client._forked or client._over:
            return
        self.close_submit()
        self.asked = self._at_once = True
        # The ring may be full and its reader stopped: the closed socket says the same.
        if client._push(codec.REQUEST, 0, 0, 0, 0, _NOW):
            client._ring()
        else:
            client.supervisor.hang_up()
        gone = client.when(client.is_over)
        if not client.wait_for(gone, _EXIT_SECONDS if orderly is None else self._time_left(orderly)):
            client.supervisor.kill()
            client.wait_for(gone, _EXIT_SECONDS if overtime is None else self._time_left(overtime))
        self._join_background(_CALLBACK_SECONDS if overtime is None else self._time_left(overtime))

    def _join_background(self, timeout: float | None) -> None:
        """Wait until all callbacks have been called, if none of them can be waiting for this thread."""
        lock: Any = self._client.functions.lock
        if not lock._is_owned():  # else this is a handler, on top of a frame that holds what a callback may want
            deadline = None if timeout is None else time.monotonic() + timeout
            self._client.background.join(timeout)
            self._client.observer.join(None if deadline is None else deadline - time.monotonic())

    # ------------------------------------------------------------ drain

    def ask_drain(self) -> None:
        """Finish what was accepted and end, without waiting for it."""
        client = self._client
        if client._forked or client._over:
            return
        if not self._say_drain():  # the ring is full: waiting for room is for somebody else to do
            try:
                threading.Thread(target=self._say_drain_when_there_is_room, name="mpworker-drain", daemon=True).start()
            except RuntimeError:
                return  # the interpreter is at its end and starts no thread; the exit handler waits
        if not self._reaping and not client._over:
            # Somebody must reap the supervisor, though nobody may ask for a result again.
            self._reaping = True
            client.background.watched += 1
            try:
                client.background.need()
            except RuntimeError:
                pass  # the interpreter is at its end and starts no thread; the exit handler waits

    def _say_drain(self) -> bool:
        """Say that nothing more comes; False if there is no room to say it."""
        self.close_submit()
        self.asked = True
        said = self._client._push(codec.REQUEST, 0, 0, 0, 0, DRAIN)
        self._client._ring()
        return said

    def _say_drain_when_there_is_room(self, timeout: float | None = None) -> None:
        client = self._client
        room = client.when(lambda: client._fits(len(DRAIN)) or client._over)
        deadline = None if timeout is None else time.monotonic() + timeout
        while client.wait_for(room, None if deadline is None else deadline - time.monotonic(), len(DRAIN)):
            if client._over or self._say_drain():
                return

    def reap(self) -> None:
        """If a dropped worker's supervisor has ended, take note."""
        client = self._client
        if self.asked and not client._over:
            client.wait_for(client.when(client.is_over), 0.0)

    # ------------------------------------------------------------ what is left

    def _note_unwanted(self) -> None:
        """All that has not begun is about to be cancelled."""
        self._unwanted, self._cancelled_before = list(self._client.pending.values()), self.cancelled_items

    def _report(self, finished: bool) -> StopReport:
        from mpworker.stopping import report_on

        tasks, items = self._left if self._client._over else self._what_is_left()
        runs = [f"{self._client.prefix}{key}" for key in self._runs_left]
        return report_on(finished, tasks, items, runs)

    def _what_is_left(self) -> tuple[list[TaskFuture[Any]], int]:
        """Tasks, and how many items, that have no outcome or that a stop has cancelled."""
        pending = list(self._client.pending.values())
        unwanted = [each for each in self._unwanted if isinstance(each, TaskFuture)]
        cancelled = [each for each in unwanted if each.status == codec.CANCELLED]  # not `cancelled()`, which reads more
        tasks = sorted({*cancelled, *(each for each in pending if isinstance(each, TaskFuture))}, key=_age)
        items = sum(each.left for each in pending if not isinstance(each, TaskFuture))
        return tasks, items + (self.cancelled_items - self._cancelled_before if self._unwanted else 0)

    def _note_runs(self, answer: dict[str, Any] | None) -> None:
        """What the supervisor has said of runs of recurring tasks, which have no future; None for nothing in time."""
        if answer is not None:
            self._runs_left = answer["unfinished"]
        unknown = answer is None and self._client.recurs and not self._client.is_over()
        self._cut_short = self._cut_short or unknown or bool(self._runs_left)

    def _all_finished(self) -> bool:
        """Of what was accepted; it may have been though the time was over before all processes had gone."""
        return self._client._over and self._client._closed == "stopped" and not self._cut_short

    # ------------------------------------------------------------ the supervisor is dead

    def wants_no_other(self) -> bool:
        """Is it of no use to wait for another supervisor?"""
        done = self.asked and not (self._client.pending or self._client.resending.chunks)
        return self._at_once or done or self._client._broken is not None

    def drains(self) -> bool:
        """Has the supervisor been asked to end when it has finished all?"""
        return self.asked and not self._at_once

    def note_failure_to_start(self) -> None:
        """If it has never stood, keep why."""
        client = self._client
        if not self._at_once:
            client._broken = client._broken or client.supervisor.start_failure()
            if client._broken is not None:
                client._closed = "broken"

    def verdict(self) -> tuple[int, bytes]:
        """What becomes of what is pending: a status and a report."""
        client = self._client
        if client._broken is not None:
            return BROKEN, json.dumps(client._broken).encode()
        asked = self._at_once or (self.asked and (self._ended_well or client.supervisor.ended_well()))
        if client._closed == "lost" or not asked:
            client._closed = "lost"
            return LOST, b""
        self._ended_well = True
        client._closed = "stopped"
        self._cut_short = self._cut_short or bool(client.pending)
        return codec.CANCELLED, b""

    def note(self, outcome: tuple[int, bytes]) -> None:
        """All that is pending is about to end like this."""
        self.outcome = outcome
        self._left = self._what_is_left()

    def log(self, status: int) -> None:
        """It is over, with this status."""
        observer, pid = self._client.observer, self._client.supervisor.pid
        told, self._told = self._told, True  # no call since the look
        if not told and status == codec.CANCELLED:
            observer.post(INFO, "pool_stopped", supervisor=pid, unfinished=self._cut_short)
        elif not told:
            observer.post(ERROR, _OVER[status], supervisor=pid)
