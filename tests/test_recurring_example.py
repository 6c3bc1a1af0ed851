"""The example of recurring tasks, run as its docstring says."""

import re
from pathlib import Path

import programs

EXAMPLE = Path(__file__).parents[1] / "examples" / "recurring.py"


def test_it_tells_what_it_did() -> None:
    done = programs.run("-W", "error", EXAMPLE, "--seconds", "1.5")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"the nightly report of process \d+", lines[0])
    found = dict(re.findall(r"^(\w+) \(.*\): (\d+) runs, ", done.stdout, re.MULTILINE))
    assert found["nightly"] == "1"
    assert 1 <= int(found["beat"]) <= 8
    assert 1 <= int(found["fragile"]) <= 6
    assert lines[-1] == "the next nightly report is due at 02:30 in Berlin"
    assert done.stderr == ""
