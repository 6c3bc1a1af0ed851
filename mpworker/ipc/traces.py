"""Where a trace goes: what the client checks, and the supervisor writes; see `mpworker.supervisor.tracing`."""

import os
import stat
from typing import Final

VERSION: Final = 1
TRACE_BYTES_MAX: Final = 1 << 30
FLUSH_EVERY: Final = 0.25  # seconds


def open_trace(path: str) -> int:
    """Open a trace to write to its end; the descriptor.

    Raises:
        OSError: It cannot be written, or is no regular file: a pipe could make its writer wait.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path!r} is no regular file")
    return fd
