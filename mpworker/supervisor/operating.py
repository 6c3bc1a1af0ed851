"""What an operator sees of a supervisor that has several clients, and does to their tasks."""

from __future__ import annotations

import os
import time

from mpworker.ipc import codec, details
from mpworker.ipc.levels import INFO
from mpworker.supervisor.describe import Describer
from mpworker.supervisor.fair import client_of
from mpworker.supervisor.ids import Ids
from mpworker.supervisor.registry import CONTEXT_SHIFT, STATES_OF_SEATS, DetailedTask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.supervisor.children import Child
    from mpworker.supervisor.daemon import Daemon
    from mpworker.supervisor.describe import Report
    from mpworker.supervisor.history import Ended
    from mpworker.supervisor.registry import Task

_GONE: Final = "gone-"  # what the ids of a program begin with that has left
_DIGITS_MAX: Final = len(str(codec.TASK_MASK))  # of the number of a task
_STEERS_CRON: Final = ("pause", "resume", "run")


class Overview(Describer):
    """Tells of the tasks of all clients: nothing of what they were called with, of what came of it, or of metadata.

    Args:
        daemon: The supervisor.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        super().__init__(daemon.shared, Ids(tuple))
        self._now = 0.0

    # ------------------------------------------------------------ all of it

    def described(self) -> dict[str, Any]:
        """One look at everything: see `mpworker status --json`."""
        daemon, now = self._daemon, time.monotonic()
        return {
            "pid": os.getpid(),
            "nursery": daemon.world.nursery_pid,
            "n": daemon.children_wanted,
            "stopping": daemon.stopping,
            "uptime": now - daemon.began_at,
            "clients": [guest.described(now) for guest in daemon.guests.values()],
            "children": [self.child(child, now) for child in daemon.world.everyone if child.pid],
            "queues": daemon.scheduler.queue_states(),
        }

    def runs(self, child: Child) -> tuple[Task, float] | None:
        """What a child runs, and since when; None if that is nothing."""
        for task in child.seat.offers.values():
            began = self._daemon.scheduler.claimed_at(child.seat, task)
            if began is not None:
                return task, began
        return None

    def child(self, child: Child, now: float) -> dict[str, Any]:
        """One child, and what it runs."""
        told: dict[str, Any] = {"pid": child.pid, "state": STATES_OF_SEATS[child.seat.state]}
        runs = self.runs(child)
        if runs is None:
            return told | {"client": None, "task": None, "name": None}
        task, began = runs
        said = {"client": client_of(task.key), "task": self._id_of(task), "name": _name_of(task)}
        return told | said | {"for": max(0.0, now - began)}

    # ------------------------------------------------------------ tasks

    def listed(self, message: dict[str, Any]) -> dict[str, Any]:
        """The tasks that there are, and those that are remembered; the items of maps are not among them.

        Args:
            message: {"status", "queue", "name", "client", "limit"}: each but the last may be None, for any.

        Raises:
            ValueError: No command of ours would ask that.
        """
        name, client, limit = message["name"], message["client"], message["limit"]
        if not 0 <= limit <= codec.LISTED_MAX:
            raise ValueError(f"{limit} tasks at once")
        self._now = time.monotonic()

        def also(task: Task) -> bool:
            return (client is None or client_of(task.key) == client) and (name is None or _name_of(task) == name)

        return {"tasks": self.tasks(message["status"], message["queue"], limit, also)}

    def found(self, message: dict[str, Any]) -> dict[str, Any]:
        """The tasks that have this id, most often one: {"id"}. Ids of their users' own may be those of several."""
        self._now = time.monotonic()
        reports = [self.task(key) for key in self._keys_of(str(message["id"]))]
        return {"tasks": [report for report in reports if report is not None]}

    def cancel(self, message: dict[str, Any]) -> dict[str, Any]:
        """Cancel the tasks that have this id: {"id"}. How many there are, and how many of them end cancelled."""
        daemon, cancelled = self._daemon, 0
        keys = [key for key in self._keys_of(str(message["id"])) if self.task(key) is not None]
        for key in keys:
            seat = daemon.shared.seat_of(key)
            if seat is not None:  # an answer that is in the ring came before this
                daemon.read_child(daemon.world.by_number[seat.number], whole=True)
            if daemon.shared.cancel(key, time.monotonic()):
                daemon.watch.log(INFO, "cancelled_by_operator", task=key)
                cancelled += 1
        return {"found": len(keys), "cancelled": cancelled}

    def name_of(self, key: int) -> str:
        """The name of a task or chunk that has no outcome; "" if there is none."""
        task = self._daemon.shared.any_of(key)
        return _name_of(task) if task is not None else ""

    def _keys_of(self, task_id: str) -> list[int]:
        """The numbers of what has this id, or had."""
        prefix, _, number = task_id.rpartition("-")
        keys = []
        for client, port in self._daemon.hall.ports.items():
            own = port.ids.find(task_id)
            if own is not None:
                keys.append(client << CONTEXT_SHIFT | own & codec.TASK_MASK)
            elif port.prefix == f"{prefix}-" and number.isdecimal() and len(number) <= _DIGITS_MAX:
                keys.append(client << CONTEXT_SHIFT | int(number) & codec.TASK_MASK)
        return keys

    def _id_of(self, task: Task) -> str:
        port = self._daemon.hall.ports.get(client_of(task.key))
        prefix = port.prefix if port is not None else _GONE  # a child has still to let go of what was cancelled
        return f"{prefix}{task.key & codec.TASK_MASK}"

    def _living(self, task: Task) -> Report:
        report = super()._living(task)
        attempts = self._told(report)
        report["for"] = attempts[-1]["began_ago"] if report["status"] == "running" else None
        return report

    def _ended(self, entry: Ended) -> Report:
        report = super()._ended(entry)
        for internal in ("code", "kept"):
            del report[internal]
        self._told(report)
        report["for"] = entry[4] / 1e9
        return report

    def _told(self, report: Report) -> list[dict[str, Any]]:
        """Put the attempts in an operator's words, without what they have raised."""
        attempts = [
            {
                "status": status,
                "pid": pid,
                "cause": cause,
                "began_ago": max(0.0, self._now - began),
                "took": None if ended is None else ended - began,
            }
            for status, pid, began, ended, cause, *_ in report["attempts"]
        ]
        report["attempts"] = attempts
        return attempts

    def _common(self, task: Task) -> Report:
        said = super()._common(task)
        deadline, due = said["deadline_at"], said.get("run_at")
        return {
            "task": said.get("id") or self._id_of(task),
            "client": client_of(task.key),
            "name": _name_of(task),
            "status": "",
            "queue": said["queue"],
            "priority": said["priority"],
            "since": self._now - task.accepted_ns / 1e9,
            "deadline_in": None if deadline is None else deadline - self._now,
            "due_in": None if due is None else due - self._now,
            "attempts": said["attempts"],
        }

    # ------------------------------------------------------------ what recurs

    def cron(self, message: dict[str, Any]) -> dict[str, Any]:
        """Tell of what recurs, or have it paused, resumed or run: {"do", "name", "client"}, the last None for any.

        Returns:
            The tasks; or how many of this name there are, and how many of these run, or wait for their last run.

        Raises:
            ValueError: No command of ours would ask that.
        """
        do, client = message["do"], message["client"]
        guests = [guest for guest in self._daemon.guests.values() if client in (None, guest.number)]
        desks = [(guest.number, guest.cron) for guest in guests if guest.cron is not None]
        if do == "list":
            told = [(number, each) for number, desk in desks for each in desk.request({"op": "list"})["tasks"]]
            return {"tasks": [{"client": number, **each} for number, each in told]}
        if do not in _STEERS_CRON:
            raise ValueError(f"{do!r} of what recurs")
        answers = [desk.request({"op": do, "name": message["name"]}) for _, desk in desks]
        found = [answer for answer in answers if "error" not in answer]
        if found:
            self._daemon.watch.log(INFO, f"cron_{do}_by_operator", name=message["name"])
        return {"found": len(found), "accepted": sum(answer.get("accepted", True) for answer in found)}


def _name_of(task: Task) -> str:
    """What its user calls it, or else its function."""
    own = details.read(task.payload).get("name") if isinstance(task, DetailedTask) else None
    return own or (task.function.name if task.function is not None else "")
