"""Every client of this process whose supervisor runs: what becomes of them in a fork, and when the interpreter ends."""

from __future__ import annotations

import atexit
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mpworker.client import Client

# Strong references: a worker that is dropped with tasks under way finishes them.
living: set[Client] = set()


def sweep() -> None:
    """Reap the supervisors of workers that were dropped and have finished."""
    for client in list(living):
        client.ending.reap()


def _after_fork() -> None:
    for client in list(living):
        client.forked()
    living.clear()


def _at_exit() -> None:
    """An interpreter that ends without a stop drains, as the standard library's pool does; Ctrl-C stops now."""
    clients = list(living)
    try:
        _drain_all(clients)
    except KeyboardInterrupt:
        _stop_all(clients)


def _drain_all(clients: list[Client]) -> None:
    for client in clients:
        client.ending.finish(None)


def _stop_all(clients: list[Client]) -> None:
    for client in clients:
        client.ending.stop_now()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
