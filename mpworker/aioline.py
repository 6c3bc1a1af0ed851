"""What is told of tasks that an event loop's client still holds back, for which `max_pending` leaves no room.

The supervisor does not know them. Its answers to questions about tasks are completed here, in its own words; while such
a question is open nothing leaves the line, so that no task is in both or in neither.
"""

import time
from typing import TYPE_CHECKING, Any, Final

from mpworker.ipc import codec, details
from mpworker.ipc.codec import Record
from mpworker.steps import Answer, Message

if TYPE_CHECKING:
    from mpworker.loopline import LineClient

# Questions about tasks.
ABOUT_TASKS: Final = ("task", "tasks", "metrics", "queues")
_NEW_QUEUE: Final = dict.fromkeys(("max_running", "rate", "burst")) | {
    "weight": 1,
    "paused": False,
    "draining": False,
    "queued": 0,
    "running": 0,
}
_FINAL: Final = ("completed", "failed", "cancelled", "timed_out")


def complete(client: "LineClient", message: Message, answer: Answer) -> Answer:
    """The supervisor's answer, with what waits in line.

    Args:
        client: Whose line it is.
        message: The question.
        answer: The answer; None stays None.
    """
    line = client.tasks_in_line()
    if answer is None or not line:
        return answer
    reports = [_report(client, record) for record in line]
    amend = {"task": _task, "tasks": _tasks, "metrics": _metrics, "queues": _queues}[message["verb"]]
    return amend(message, answer, reports)


def _report(client: "LineClient", record: Record) -> dict[str, Any]:
    _, flags, key, function, number, data = record
    said = details.read(data) if flags & codec.DETAILED else {}
    options = said.get("options") or client.option_table.said(number)
    run_at = said.get("run_at")
    report = {
        "key": key,
        "function": function,
        "status": "scheduled" if run_at is not None and run_at > time.monotonic() else "queued",
        "queue": options.get("queue", "default"),
        "priority": options.get("priority", 0),
        "weight": options.get("weight", 1),
        "attempts": [],
        "deadline_at": said.get("deadline"),
        "run_at": run_at,
    }
    return report | {name: said[name] for name in ("id", "name", "metadata") if name in said}


def _task(message: Message, answer: Message, reports: list[Message]) -> Message:
    if answer["task"] is not None:
        return answer
    field, value = ("id", message["id"]) if "id" in message else ("key", message["task"])
    return {"task": next((report for report in reports if report.get(field) == value), None)}


def _tasks(message: Message, answer: Message, reports: list[Message]) -> Message:
    status, queue = message["status"], message["queue"]
    ours = [
        report
        for report in reports
        if (status is None or report["status"] == status) and (queue is None or report["queue"] == queue)
    ]
    theirs = answer["tasks"]
    unfinished = [report for report in theirs if report["status"] not in _FINAL]
    return {"tasks": (unfinished + ours + theirs[len(unfinished) :])[: message["limit"]]}


def _metrics(_: Message, answer: Message, reports: list[Message]) -> Message:
    for report in reports:
        answer["accepted"] += 1
        answer[report["status"]] += 1
        if report["status"] == "queued":
            answer["queues"][report["queue"]] = answer["queues"].get(report["queue"], 0) + 1
    return answer


def _queues(_: Message, answer: Message, reports: list[Message]) -> Message:
    for report in reports:
        if report["status"] == "queued":
            answer.setdefault(report["queue"], dict(_NEW_QUEUE))["queued"] += 1
    return answer
