"""The example that records and plans does what it says."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "capacity.py"


def test_it_records_and_plans(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, EXAMPLE, report], capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(("Replayed", "THAT IS")) for line in done.stderr.splitlines()), done.stderr
    assert "200 tasks" in done.stdout
    assert "Replayed with the recorded number of children" in done.stdout
    assert "worker = ProcessWorker(" in done.stdout
    assert "<svg" in report.read_text()
