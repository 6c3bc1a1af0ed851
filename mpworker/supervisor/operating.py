"""What an operator is told of a supervisor that has several clients: one look at all of it."""

from __future__ import annotations

import os
import time

from mpworker.ipc import codec
from mpworker.supervisor.fair import client_of
from mpworker.supervisor.registry import STATES_OF_SEATS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mpworker.supervisor.children import Child
    from mpworker.supervisor.daemon import Daemon


def described(daemon: Daemon) -> dict[str, Any]:
    """All of it: see `mpworker status --json`."""
    now = time.monotonic()
    return {
        "pid": os.getpid(),
        "nursery": daemon.world.nursery_pid,
        "n": daemon.children_wanted,
        "stopping": daemon.stopping,
        "uptime": now - daemon.began_at,
        "clients": [guest.described(now) for guest in daemon.guests.values()],
        "children": [_child(daemon, child, now) for child in daemon.world.everyone if child.pid],
        "queues": daemon.scheduler.queue_states(),
    }


def _child(daemon: Daemon, child: Child, now: float) -> dict[str, Any]:
    """One child, and what it runs."""
    seat = child.seat
    told: dict[str, Any] = {"pid": child.pid, "state": STATES_OF_SEATS[seat.state], "client": None, "task": None}
    for task in seat.offers.values():
        began = daemon.scheduler.claimed_at(seat, task)
        if began is not None:
            client = client_of(task.key)
            prefix = daemon.hall.ports[client].prefix
            told |= {"client": client, "task": f"{prefix}{task.key & codec.TASK_MASK}", "for": now - began}
            break
    return told
