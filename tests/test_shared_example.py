"""The example that shares an object does what it says."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "shared_table.py"


def test_it_finds_all_points_and_takes_room_once() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "12 tasks read 32 MB each, and all of them took 32 MB",
        "60 of 60 points found",
    ]
