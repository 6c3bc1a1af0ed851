"""The same in a notebook: cells in a real Jupyter kernel, one pool kept across them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import programs
import pytest
from test_main_module import CELLS

SCRIPT = Path(__file__).with_name("notebook_script.py")
POOL = "from mpworker import ProcessWorker\nw = ProcessWorker(n=2)"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What a user's kernel has; its history and sockets go into the test's folder.

    A kernel that finds itself under pytest does not collect what other processes print.
    """
    return programs.environment(
        PYTEST_CURRENT_TEST=None, IPYTHONDIR=str(tmp_path / "ipython"), JUPYTER_RUNTIME_DIR=str(tmp_path / "runtime")
    )


def run_cells(
    folder: Path, environment: dict[str, str], cells: list[Any]
) -> tuple[list[dict[str, str]], subprocess.CompletedProcess[str]]:
    """What each cell showed, and what came out of the kernel's own streams."""
    done = programs.run(SCRIPT, cwd=folder, env=environment, stdin=json.dumps(cells))
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("shown "))
    shown: list[dict[str, str]] = json.loads(line.removeprefix("shown "))
    return shown, done


def test_what_cells_define_goes_to_children_and_comes_back(tmp_path: Path, environment: dict[str, str]) -> None:
    shown, _ = run_cells(tmp_path, environment, CELLS)
    assert [(cell, each["error"]) for cell, each in zip(CELLS, shown, strict=True) if each["error"]] == []
    assert shown[-1]["stdout"] == "all is well\n"


def test_what_a_task_prints_is_shown_below_the_cell_that_waits_for_it(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    cells = [
        POOL,
        "import os, sys",
        "def talk(n):\n    print(f'out-{n}')\n    print(f'err-{n}', file=sys.stderr)\n    os.system(f'echo shell-{n}')",
        *({"source": f"w.submit(talk, {n}).result()", "until": f"out-{n} err-{n} shell-{n}"} for n in (1, 2)),
        "w.shutdown()",
    ]
    shown, done = run_cells(tmp_path, environment, cells)
    assert [each["error"] for each in shown] == [""] * len(cells)
    assert [each["stdout"] for each in shown[3:5]] == ["out-1\nshell-1\n", "out-2\nshell-2\n"]
    assert [each["stderr"] for each in shown[3:5]] == ["err-1\n", "err-2\n"]
    assert set(done.stdout.split()) >= {"out-1", "shell-1", "out-2", "shell-2"}, "a copy for the server's log"
    assert set(done.stderr.split()) >= {"err-1", "err-2"}


def test_an_interrupted_cell_loses_its_map_and_keeps_its_pool(tmp_path: Path, environment: dict[str, str]) -> None:
    cells = [
        POOL,
        "import os, pathlib, time\ngate = pathlib.Path('gate')",
        "def hold(n):\n    pathlib.Path(f'begun-{n}').touch()\n    while not gate.exists(): time.sleep(0.005)",
        "def begun(): return sorted(each.name for each in pathlib.Path().glob('begun-*'))",
        "def pids(): return {child['pid'] for child in w.processes()['children']}",
        {
            "source": "results = w.map(hold, range(1000), chunksize=1)\n"
            "while len(begun()) < 2: time.sleep(0.005)\n"
            "before = pids()\n"
            "print('go')\n"
            "list(results)",
            "interrupt_at": "go",
        },
        {"source": "future = w.submit(hold, 1000)\nprint('go')\nfuture.result()", "interrupt_at": "go"},
        "gate.touch()\nfuture.result()",
        "w.submit(pow, 2, 10).result()",
        "begun()",
        "pids() == before",
        "list(w.map(abs, [-1, -2]))",
        "bool(w.stop_graceful(timeout=30))",
    ]
    shown, _ = run_cells(tmp_path, environment, cells)
    errors = {number: each["error"] for number, each in enumerate(shown) if each["error"]}
    assert errors == {5: "KeyboardInterrupt: ", 6: "KeyboardInterrupt: "}
    assert [shown[number]["result"] for number in (8, 10, 11, 12)] == ["1024", "True", "[1, 2]", "True"]
    assert shown[9]["result"] == "['begun-0', 'begun-1', 'begun-1000']", "what had not begun never did"
