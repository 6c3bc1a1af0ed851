"""What a child asks of the machine for itself: its cores, its priority, and the threads of its BLAS."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def settle(settings: dict[str, Any]) -> None:
    """Before any thread is started: each inherits this.

    Args:
        settings: What the supervisor sent: "cores", "nice", "blas_threads"; empty or 0 leaves each as it is.

    Raises:
        OSError: The kernel refuses, as it does when none of the cores is there any more.
    """
    if settings["cores"]:
        os.sched_setaffinity(0, settings["cores"])
    if settings["nice"] > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, settings["nice"])
    if settings["blas_threads"]:
        import threadpoolctl  # imported by the nursery, which looks whether it is there

        threadpoolctl.threadpool_limits(settings["blas_threads"])
