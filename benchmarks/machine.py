"""What was measured on."""

import os
import platform
from typing import Any

import mpworker
from mpworker.options import available_cores


def describe() -> dict[str, Any]:
    """The machine, its load and the interpreter."""
    return {
        "cores": available_cores(),
        "cpu": _cpu(),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "mpworker": mpworker.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return "unknown"
