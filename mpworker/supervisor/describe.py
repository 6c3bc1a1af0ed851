"""What the supervisor tells of its tasks: plain data for JSON."""

from __future__ import annotations

import binascii
from itertools import islice

from mpworker.ipc import codec, details
from mpworker.supervisor.effects import END_BY, OK
from mpworker.supervisor.ends import REPORT_BYTES_MAX
from mpworker.supervisor.history import Ended
from mpworker.supervisor.ids import Ids
from mpworker.supervisor.lifecycle import CANCELLED, FAILED, FIRST_FINAL, OFFERED, SCHEDULED, STATES, TIMED_OUT
from mpworker.supervisor.registry import DetailedTask, Task
from mpworker.supervisor.scheduler import Scheduler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Final, TypeAlias

    Report: TypeAlias = dict[str, Any]

_NEVER: Final = (0, 0, 0)
_FINAL: Final = frozenset(name.lower() for state, name in STATES.items() if state >= FIRST_FINAL)


def final_status(status: int) -> str:
    """The name of the final state that an attempt with this status would lead to, of the wire's number."""
    return STATES[END_BY[status][OFFERED]].lower()


def _attempt(status: int, pid: int, started_at: float, ended_at: float, cause: str, report: bytes) -> list[Any]:
    return [
        final_status(status),
        pid,
        started_at,
        ended_at,
        cause,
        status,
        binascii.b2a_base64(report, newline=False).decode(),
    ]


class Describer:
    """Reads a scheduler and changes nothing.

    Args:
        scheduler: The scheduler.
        ids: Those of the user's own.
    """

    def __init__(self, scheduler: Scheduler, ids: Ids) -> None:
        self._scheduler = scheduler
        self._ids = ids

    def task(self, key: int) -> Report | None:
        """One task, None if it is neither there nor remembered."""
        task = self._scheduler.task(key)
        if task is not None:
            return self._living(task)
        entry = self._scheduler.history.find(key)
        return self._ended(entry) if entry is not None else None

    def named(self, task_id: str) -> Report | None:
        """One task by an id of the user's own."""
        key = self._ids.find(task_id)
        return self.task(key) if key is not None else None

    def tasks(
        self, status: str | None, queue: str | None, limit: int, also: Callable[[Task], bool] | None = None
    ) -> list[Report]:
        """Tasks that there are, those that have not ended first, and then the newest of the rest.

        Args:
            status: Of this status; None for any, here and below.
            queue: In this queue.
            limit: So many at the most.
            also: Of which this is true.
        """
        reports = (
            report_of(what)
            for report_of, task, what in self._that_may_be(status)
            if (queue is None or task.options.queue == queue)
            and (also is None or also(task))
            and (status is None or self._status(what) == status)
        )
        # Asked once more: one that has begun between the two looks at its claim is no longer queued.
        found = (report for report in reports if status is None or report["status"] == status)
        return list(islice(found, limit))

    def _that_may_be(self, status: str | None) -> Iterator[tuple[Any, Task, Any]]:
        """Tasks that may have this status: no look at a million of them for the few that run or have ended."""
        if status == "running":
            living: Iterable[Task] = sorted(self._scheduler.offered(), key=lambda task: task.key)
        else:
            living = self._scheduler.tasks() if status not in _FINAL else ()
        for task in living:
            yield self._living, task, task
        for entry in reversed(self._scheduler.history.remembered()) if status is None or status in _FINAL else ():
            yield self._ended, entry[0], entry

    def _status(self, what: Task | Ended) -> str:
        return final_status(what[1]) if isinstance(what, tuple) else self._status_since(what, self._began(what))

    @staticmethod
    def _status_since(task: Task, began: float | None) -> str:
        if task.state == SCHEDULED:
            return "scheduled"
        return "running" if task.state == OFFERED and began is not None else "queued"

    def _began(self, task: Task) -> float | None:
        """When the attempt that runs was claimed; None if none runs."""
        if task.seat is None:
            return None
        return self._scheduler.claimed_at(task.seat, task)

    def _living(self, task: Task) -> Report:
        report = self._common(task)
        began = self._began(task)  # by one look: it may begin at any moment
        report["status"] = self._status_since(task, began)
        if began is not None and task.seat is not None:
            report["attempts"].append(["running", task.seat.pid, began, None, "", 0, ""])
        return report

    def _ended(self, entry: Ended) -> Report:
        task, status, pid, started_ns, duration_ns = entry
        report = self._common(task)
        report["status"] = final_status(status)
        report["code"] = status
        kept = self._scheduler.history.payloads(task.key)
        if (pid, started_ns, duration_ns) != _NEVER:
            ended_at = (started_ns + duration_ns) / 1e9
            out = kept[1] if kept is not None and status != OK else b""
            told = out if isinstance(out, bytes) and len(out) <= REPORT_BYTES_MAX else b""
            report["attempts"].append(_attempt(status, pid, started_ns / 1e9, ended_at, "", told))
        report["kept"] = kept is not None
        return report

    def _common(self, task: Task) -> Report:
        report: Report = {
            "key": task.key & codec.TASK_MASK,
            "function": task.function.key if task.function is not None else 0,
            "queue": task.options.queue,
            "priority": task.options.priority,
            "weight": task.options.weight,
            "attempts": [
                _attempt(each.status, each.pid, each.started_at, each.ended_at, each.cause, each.report)
                for each in task.setbacks.past
            ],
            "deadline_at": task.deadline_at,
        }
        if isinstance(task, DetailedTask):
            said = details.read(task.payload)
            report |= {name: said[name] for name in ("id", "name", "metadata", "retry_of") if name in said}
            report["run_at"] = task.run_at
        return report

    def metrics(self) -> Report:
        """Counts; each task is in exactly one of those from `scheduled` to `timed_out`, and `accepted` is their sum."""
        scheduler = self._scheduler
        running = sum(self._began(task) is not None for task in scheduler.offered())
        unfinished = scheduler.unfinished_tasks()
        scheduled = scheduler.scheduled
        failed, cancelled, timed_out = (scheduler.ended[state] for state in (FAILED, CANCELLED, TIMED_OUT))
        return {
            "accepted": scheduler.accepted,
            "scheduled": scheduled,
            "queued": unfinished - scheduled - running,
            "running": running,
            "completed": scheduler.accepted - unfinished - failed - cancelled - timed_out,
            "failed": failed,
            "cancelled": cancelled,
            "timed_out": timed_out,
            "retries": scheduler.retries,
            "crashes": dict(scheduler.crashes),
            "limiter_waits": scheduler.limiter_waits(),
            "remembered": len(scheduler.history.entries),
            "queues": {name: state["queued"] for name, state in scheduler.queue_states().items()},
        }
