"""What a client can ask with `debug=True`: as in `mpworker.supervisor.requests`, whose code answers some of it."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from mpworker.ipc import codec
from mpworker.steps import Message
from mpworker.supervisor import requests
from mpworker.supervisor.lifecycle import OFFERED

if TYPE_CHECKING:
    from mpworker.inline.supervisor import InlineSupervisor
    from mpworker.supervisor.session import Session

# These are answered as by a supervisor, by the same code.
_SHARED: Final = ("task", "tasks", "remembered", "outcome", "metrics", "queues", "retention", "watch")


def answered(supervisor: "InlineSupervisor", message: Message) -> Message:
    """What is asked is done; the answer."""
    supervisor.scheduler.clean()
    verb = message["verb"]
    if verb in _SHARED:
        return requests.VERBS[verb](cast("Session", supervisor), message)
    return _VERBS[verb](supervisor, message) or {}


def _cancel(supervisor: "InlineSupervisor", message: Message) -> Message:
    chunk = supervisor.chunks.pop(message["task"], None)
    return {"cancelled": chunk is not None or supervisor.cancel_later(message["task"])}


def _cancel_all(supervisor: "InlineSupervisor", _: Message) -> Message:
    for key in list(supervisor.chunks):
        supervisor.chunks.pop(key, None)
        supervisor.events.append((codec.RESULTS, codec.CANCELLED, key, 1 << 32, 0, b""))
    return {"cancelled": sum(map(supervisor.cancel_later, list(supervisor.later)))}


def _running(supervisor: "InlineSupervisor", message: Message) -> Message:
    task = supervisor.scheduler.task(message["task"])
    return {"running": task is not None and task.state == OFFERED}


def _again(supervisor: "InlineSupervisor", message: Message) -> Message:
    task = supervisor.port.again(supervisor.scheduler.history, message["task"], message["as"])
    if task is not None:
        supervisor.enter(task)
    return {"again": task is not None}


def _queue(supervisor: "InlineSupervisor", message: Message) -> None:
    options = message["options"]
    supervisor.scheduler.queues[message["name"]] = options | ({} if options["rate"] is not None else {"burst": None})


def _drain(supervisor: "InlineSupervisor", _: Message) -> Message:
    for key in list(supervisor.chunks):
        supervisor.run_chunk(key)
    return {"drained": not set(supervisor.running) - {threading.get_ident()}}


def _cron(_: "InlineSupervisor", message: Message) -> Message:
    """Nobody keeps the time, so there are no recurring tasks."""
    told: dict[str, Message] = {
        "register": {"error": "nobody"},
        "list": {"tasks": []},
        "unfinished": {"unfinished": False},
    }
    return told.get(message["op"], {"error": "unknown", "names": [], "more": False})


def _stop(supervisor: "InlineSupervisor", message: Message) -> None:
    supervisor.draining = True
    if message["now"]:
        supervisor.end()


def _nothing(*_: object) -> None:
    """It makes no difference here."""


_VERBS: Final[dict[str, Callable[["InlineSupervisor", Any], Message | None]]] = {
    "cancel": _cancel,
    "resent": _nothing,
    "cancel_unstarted": _cancel_all,
    "stop": _stop,
    "running": _running,
    "children": lambda *_: {"supervisor": None, "nursery": None, "children": []},
    "set_max_workers": lambda *_: {"most": codec.CHILDREN_MAX, "hard": 0},
    "queue": _queue,
    "rate": _nothing,
    "pause": _nothing,
    "drain": _drain,
    "resume": _nothing,
    "hold": _nothing,
    "go_on": _nothing,
    "cron": _cron,
    "listen": _nothing,
    "again": _again,
    "cancel_all": _cancel_all,
}
