"""What was measured on."""

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import psutil

import mpworker
from mpworker.bench.peers import PEERS
from mpworker.cgroups import available_cores


def describe(contenders: Iterable[str] = ()) -> dict[str, Any]:
    """The machine, its load and the interpreter, and the versions of peers that take part."""
    return {
        "cores": available_cores(),
        "cpu": _cpu(),
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "mpworker": mpworker.__version__,
        "peers": {
            name: metadata.version(PEERS[name].version_of)
            for name in contenders
            if name in PEERS and PEERS[name].version_of
        },
        "load": round(os.getloadavg()[0], 2),
    }


def in_words(machine: dict[str, Any]) -> str:
    """The same in a line."""
    peers = "".join(f", {name} {version}" for name, version in machine["peers"].items())
    return (
        f"{machine['cores']} cores ({machine['cpu']}, {machine['architecture']}), {machine['memory']}, "
        f"{machine['kernel']}, {machine['python']}, mpworker {machine['mpworker']}{peers}; "
        f"load {machine['load']} at the start"
    )


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return "unknown"
