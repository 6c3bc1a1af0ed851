"""Where the C code is, and how the tests compile it."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
IPC = HERE.parent.parent / "mpworker" / "ipc"

FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
ASAN = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# GCC's ThreadSanitizer does not model fences, and warns of it. To leave it so is the strict choice: a fence that is not
# modelled adds no happens-before edge, so it can hide no race; and no data is published by one. What the fences are
# for, wake-ups and halts, is proved by the models and by dekker.c.
TSAN = ("-O1", "-g", "-fsanitize=thread", "-Wno-tsan")


def run(command: Sequence[str | Path], timeout: float = 100, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
