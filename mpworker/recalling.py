"""Futures of what has ended before, whose outcome the supervisor keeps."""

from typing import Any

from mpworker.client import Client
from mpworker.future import TaskFuture, in_queue
from mpworker.kept import Pending
from mpworker.steps import Steps


def recalling(client: Client, report: dict[str, Any]) -> Steps[TaskFuture[Any] | None]:
    """The steps to a future of what the supervisor has kept; None if it has let that go meanwhile."""
    future = awaiting(client, report)
    future.take_id(report.get("id") or f"{client.prefix}{report['key']}", retold=True)
    return future if (yield from getting(client, future, report, "outcome", "known")) else None


def awaiting(client: Client, report: dict[str, Any]) -> TaskFuture[Any]:
    """A future of what the supervisor will be asked for."""
    key = client.new_key()
    future = client.pending[key] = in_queue(report["queue"], client, key, name_in(client, report))
    if isinstance(client.pending, Pending):
        client.pending.recalled.add(key)
    return future


def getting(client: Client, future: TaskFuture[Any], report: dict[str, Any], verb: str, granted: str) -> Steps[bool]:
    """The steps to ask for what the future awaits; whether it is on its way."""
    comes = False
    try:
        answer = yield {"verb": verb, "task": report["key"], "as": future._key}
        comes = bool(answer and answer[granted])
    finally:
        if not comes:
            client.pending.pop(future._key, None)
    return comes


def name_in(client: Client, report: dict[str, Any]) -> str:
    """The name that the task was given, or that of its function."""
    name: str = report.get("name") or client.functions.live.get(report["function"], "")
    return name
