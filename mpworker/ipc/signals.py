"""Signals as the processes of a pool import them: `from mpworker.ipc.signals import signal`.

The standard library's `signal` is the face of the built-in `_signal`, whose numbers it makes members of an `enum`. That
module costs some milliseconds of every start, for names that nobody here reads: the numbers are enough.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal

__all__ = ["SERVICE_SIGNALS", "signal"]

# What a supervisor that clients attach to is told by: blocked until it heeds them, so that none ends it, or is lost.
SERVICE_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
