"""Options by their names and types, for type checkers: what is read where the code runs is in `mpworker.options`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from mpworker.retry import RetryPolicy


class TaskOptions(TypedDict, total=False):
    """What `ProcessWorker.options` takes, for type checkers."""

    timeout: float | None
    retries: int
    crash_retries: int | None
    retry_policy: RetryPolicy | None
    queue: str
    priority: int
    weight: int
    concurrency_key: str
    concurrency: int


class SizeOptions(TypedDict, total=False):
    """What `ProcessWorker` takes beside what its signature names, for type checkers."""

    child_ring_bytes: int
    client_ring_bytes: int
    slots: int
    max_payload_bytes: int
    arena_max_bytes: int | None
