"""A real load, recorded and run again, comes to what the planner says: `python -m benchmarks.plan`, in small.

A machine that others use at the same time gives and takes cores while this runs. So there are several rounds, of which
one has to agree: a model that is wrong is wrong in each. What is said from the trace of another run is asked only where
the machine was the same: calls took as long, and there were two cores to be had for two children.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.plan import Comparison, take_round
from mpworker.cgroups import available_cores

TASKS = 200
ROUNDS = 4
LAST_AT = 40.0  # seconds; no round begins later, for each takes up to half a minute where little is to be had
THROUGHPUT, P95 = 0.10, 0.20  # what a plan may be off by
SLACK = 2.5  # times that, where service times are those of another run


def agrees(each: Comparison) -> dict[str, bool]:
    """Which of the two predictions are good enough."""
    found = {}
    for kind, slack in (("replayed", 1.0), ("planned", SLACK)):
        throughput, p95 = getattr(each, kind).errors(each.measured)
        found[f"{kind}, n={each.n}"] = abs(throughput) <= slack * THROUGHPUT and abs(p95) <= slack * P95
    other_cores = each.n > 1 and not 0.85 * each.n <= each.cores <= 1.15 * each.n
    if other_cores or not 0.9 <= each.slower <= 1.1:
        found[f"planned, n={each.n}"] = True  # nobody could know
    return found


@pytest.mark.alone
@pytest.mark.skipif(available_cores() < 2, reason="two children on one core show nothing of two")
def test_throughput_and_latency_are_as_predicted(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    open_: set[str] = set()
    said: list[Comparison] = []
    last_at = time.monotonic() + LAST_AT
    for seed in range(ROUNDS):
        taken = take_round(TASKS, seed, str(tmp_path))
        said += taken
        results = {name: good for each in taken for name, good in agrees(each).items()}
        open_ = {name for name in (open_ or results) if not results[name]}
        if not open_ or time.monotonic() > last_at:
            break
    record_property("rounds", str(said))
    assert not open_, f"{sorted(open_)}: {said}"
