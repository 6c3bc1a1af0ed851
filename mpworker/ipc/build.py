"""What this copy of the package is built from: two processes talk to each other only if it is the same."""

from __future__ import annotations

import functools
import os
import zlib

import mpworker
from mpworker.ipc import _native


@functools.cache
def build() -> str:
    """The version, and a sum over all that says how processes talk to each other.

    Raises:
        OSError: A part of the package cannot be read.
    """
    folder = os.path.dirname(os.path.abspath(__file__))
    native = os.path.abspath(_native.__file__)
    files = sorted(name for name in os.listdir(folder) if name.endswith(".py"))
    total = 0
    for path in (*(os.path.join(folder, name) for name in files), native):
        with open(path, "rb") as file:
            total = zlib.crc32(file.read(), total)
    return f"{mpworker.__version__}+{total:08x}"
