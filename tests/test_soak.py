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
    records = soak_checks.read(folder)
    print(f"{len(records.tasks)} tasks, {len(records.attempts)} attempts")
    print(", ".join(f"{count} {what}" for what, count in sorted(run.counts.items())))
    for name in run.samples[0]:
        print(f"{name}: {[sample[name] for sample in run.samples]}")
    problems = soak_checks.check(records)
    assert not problems, "\n".join([f"{len(problems)} problems", *problems])
    return run


def test_soak_for_some_seconds(tmp_path: Path) -> None:
    run = soak(tmp_path, 12.0, 3)
    assert run.counts["kills"]
    assert run.counts["ok"] > 100


@pytest.mark.soak
def test_soak(tmp_path: Path) -> None:
    run = soak(tmp_path, SECONDS, max(6, int(SECONDS / 20)))
    grown = soak_checks.growth(run.samples)
    assert not grown, "\n".join(grown)
