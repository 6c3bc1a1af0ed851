"""The rules of the house that a reviewer would otherwise have to remember."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The extras, the libraries of the command line and of recurring tasks, and NumPy, which is the user's own affair.
HEAVY = ["click", "cronsim", "grpc", "numpy", "opentelemetry", "prometheus_client", "redis", "rich", "zoneinfo"]


# The names of mpworker load when first used, so the second form reaches what users write.
@pytest.mark.parametrize("statement", ["import mpworker", "from mpworker import *"])
def test_importing_mpworker_loads_nothing_heavy(statement: str, tmp_path: Path) -> None:
    # Empty stand-ins, so that a guarded import of an extra that is not installed here shows all the same.
    for name in HEAVY:
        (tmp_path / f"{name}.py").touch()
    script = f"{statement}\nimport json, sys; print(json.dumps(list(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert "mpworker" in loaded
    assert loaded.isdisjoint(HEAVY), f"`{statement}` loads {sorted(loaded.intersection(HEAVY))}"


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:1] == ["Unreleased"]
