"""Programs that a test runs as a user would: in an interpreter of their own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

GUARD_SECONDS = 90  # nothing here takes seconds on an idle machine; a hang shall end


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment with some variables set, or removed (None)."""
    merged: dict[str, str | None] = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def python_path(*folders: Path | str) -> str:
    """A PYTHONPATH that begins with `folders` and keeps what was there."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def write(path: Path, source: str) -> Path:
    path.write_text(dedent(source))
    return path


def run(
    *arguments: Path | str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` to its end; with `check`, a failure shows its stderr."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=GUARD_SECONDS,
        check=False,
    )
    assert not check or done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run_source(source: str, folder: Path, *flags: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script that stands in `folder`, from there."""
    return run(*flags, write(folder / "script.py", source), cwd=folder, check=check)
