"""Tasks that recur: a beat, a report by the calendar, and one that fails now and then.

    python examples/recurring.py --seconds 2

Leaving the block ends the schedule and finishes what has begun.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections import Counter

from mpworker import ProcessWorker, current


def beat() -> None:
    """So short that nothing of it overlaps."""


def report(kind: str) -> None:
    """A line for the log; what it returned would be dropped."""
    print(f"the {kind} report of process {os.getpid()}", flush=True)


def fragile() -> None:
    """Fails in its first attempt, and is tried again."""
    if current().attempt == 1:
        raise ConnectionError("not there yet")


def main() -> None:
    """Run the schedule for a while, and tell what it did."""
    parser = argparse.ArgumentParser(description="Run tasks that recur.")
    parser.add_argument("--seconds", type=float, default=5.0, help="for how long")
    options = parser.parse_args()
    with ProcessWorker(n=2) as worker:
        worker.register_cron_task("beat", "@every 0.2s", beat)
        worker.register_cron_task("nightly", "30 2 * * *", functools.partial(report, "nightly"), tz="Europe/Berlin")
        worker.options(retries=2, timeout=1.0).register_cron_task("fragile", "@every 300ms", fragile, overlap="queue")
        worker.run_cron_task("nightly")  # once now, besides 2:30
        time.sleep(options.seconds)

        for task in worker.cron_tasks():
            outcomes = Counter(run.outcome for run in worker.cron_history(task.name))
            print(f"{task.name} ({task.spec}): {task.runs} runs, {outcomes['completed']} completed")
        nightly = worker.cron_tasks()[1].next_at
        assert nightly is not None
        print(f"the next nightly report is due at {nightly:%H:%M} in Berlin")


if __name__ == "__main__":
    main()
