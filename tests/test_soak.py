"""The soak: `make soak` runs it for ten minutes, and the suite for some seconds. See `soak.py` for what it does."""

import os
import random
from pathlib import Path

import pytest
import soak_checks
from soak import Soak

SECONDS = float(os.environ.get("SOAK_SECONDS") or 600)
SEED = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(1 << 32))


def soak(folder: Path, seconds: float, rests: int) -> Soak:
    print(f"seed {SEED}; to repeat: make soak SOAK_SEED={SEED} SOAK_SECONDS={seconds:g}", flush=True)
    run = Soak(folder, SEED, seconds, rests)
    try:
        run.run()
    finally:
        run.ledger.close()
    problems = []
    for each in (folder, *(other.folder for other in run.elsewhere)):
        records = soak_checks.read(each)
        events = len(records.of("event"))
        print(f"{each.name}: {len(records.tasks)} tasks, {len(records.attempts)} attempts, {events} events")
        problems += [f"{each.name}: {problem}" for problem in soak_checks.check(records)]
    print(", ".join(f"{count} {what}" for what, count in sorted(run.counts.items())))
    for name in run.samples[0]:
        print(f"{name}: {[sample[name] for sample in run.samples]}")
    assert not problems, "\n".join([f"{len(problems)} problems", *problems])
    return run


def test_soak_for_some_seconds(tmp_path: Path) -> None:
    run = soak(tmp_path, 12.0, 3)
    assert run.counts["kills"]
    assert run.counts["ok"] > 100
    for each in (run, *run.elsewhere):
        assert each.observers.told["finish"]


@pytest.mark.soak
def test_soak(tmp_path: Path) -> None:
    run = soak(tmp_path, SECONDS, max(6, int(SECONDS / 20)))
    grown = soak_checks.growth(run.samples)
    assert not grown, "\n".join(grown)
