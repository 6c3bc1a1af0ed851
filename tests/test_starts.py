"""Starts that fail, and stops in the middle of a start: one clear error, nothing printed, nothing left behind."""

import random
from pathlib import Path

import programs
import pytest


# ------------------------------------------------------------ nothing is printed

STOPPED_WHILE_IT_STARTS = """
import os, signal, sys, time
from mpworker import ProcessWorker

how, *moments = sys.argv[1:]
for number, moment in enumerate(moments):
    w = ProcessWorker(n=2, preload=["nosuch"] if number % 2 else [])
    stop_at = time.monotonic() + float(moment)
    while time.monotonic() < stop_at:
        pass
    if how == "lost":
        os.kill(w._client.supervisor.pid, signal.SIGKILL)
    getattr(w, "stop_graceful" if how == "stop_graceful" else "stop_now")()
"""


@pytest.mark.parametrize("how", ["stop_now", "stop_graceful", "lost"])
def test_a_stop_at_any_moment_of_the_start_prints_nothing(tmp_path: Path, how: str) -> None:
    script = programs.write(tmp_path / "script.py", STOPPED_WHILE_IT_STARTS)
    moments = [f"{random.uniform(0.0, 0.3):.4f}" for _ in range(40)]  # seconds: until after it is up
    done = programs.run("-W", "error", script, how, *moments)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    "source",
    [
        """
        from mpworker import ProcessWorker
        from mpworker.errors import StartFailed
        w = ProcessWorker(n=1, preload=["nosuch"])
        try:
            w.submit(abs, -1).result()
        except StartFailed:
            print("told")
        """,
        """
        import os
        from mpworker import ProcessWorker
        with ProcessWorker(n=1) as w:
            w.submit(abs, -1).result()
            if os.fork():
                os.wait()
                print("told")
        """,
    ],
    ids=["preload", "fork"],
)
def test_a_program_whose_warnings_are_errors_sees_none(tmp_path: Path, source: str) -> None:
    done = programs.run_source(source, tmp_path, "-W", "error")
    assert (done.stdout, done.stderr) == ("told\n", "")


def test_what_a_preload_prints_is_printed_once(tmp_path: Path) -> None:
    (tmp_path / "printing_preload.py").write_text("print('imported')")
    script = programs.write(
        tmp_path / "script.py",
        """
        from mpworker import ProcessWorker
        with ProcessWorker(n=2, preload=["printing_preload"]) as w:
            while [child["ready"] for child in w.processes()["children"]] != [True, True]:
                pass
        """,
    )
    done = programs.run(script, cwd=tmp_path, env=programs.environment(PYTHONUNBUFFERED=None))
    assert done.stdout == "imported\n"
