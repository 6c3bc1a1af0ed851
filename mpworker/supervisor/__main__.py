"""The supervisor's entry point: `main(fd)` with the socket that the client made.

It is exec'd with `-I -S` and a path that ends with this package's folder, so that no file of the user's can stand in
for a module of the standard library here. Its arguments are those of the nursery, which it starts before it loads what
it needs itself: see `mpworker.supervisor.spawning`. What every process below shall inherit is settled before that.
"""

import posix
import sys

from mpworker.ipc.signals import signal
from mpworker.supervisor import spawning

_TIOCNOTTY = 0x5422  # <asm-generic/ioctls.h>; the module that names it costs an import


def _leave_terminal() -> None:
    """Have no controlling terminal, nor the children: a task that asks it for a password fails and is not stopped.

    A session of our own would do the same. But Linux's autogroup scheduling makes every session a group of its own, and
    groups were seen to starve each other: docs/architecture.md, under Decisions.
    """
    try:
        fd = posix.open("/dev/tty", posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)
    except OSError:
        return  # there is none
    try:
        import fcntl  # not before: few supervisors of a service have one

        fcntl.ioctl(fd, _TIOCNOTTY)
    finally:
        posix.close(fd)


def _settle_streams() -> None:
    """Have three of them, and no input.

    Where the client runs without them, their numbers must not go to what is opened or received next.
    """
    for fd in (0, 1, 2):
        try:
            posix.fstat(fd)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)  # the lowest free number is this one
            posix.set_inheritable(fd, True)
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    posix.dup2(null, 0)  # a child must not eat the client's input
    posix.close(null)


def _settle(fd: int) -> None:
    # When to stop is for the client to say; whoever signals a whole group or systemd unit has told it as well.
    for number in spawning.UNHEEDED:
        signal.signal(number, signal.SIG_IGN)
    _leave_terminal()
    posix.closerange(fd + 1, 1 << 20)  # what the client had marked inheritable is not ours
    posix.set_inheritable(fd, False)
    _settle_streams()


def _first_nursery() -> spawning.Started | None:
    try:
        return spawning.start(sys.argv[1:])
    except OSError:
        return None  # the loop tries it again, and counts from there on


def main(fd: int) -> None:
    """Be a supervisor until the client is gone; never returns.

    Raises:
        Exception: What it consists of cannot be loaded; no nursery is left behind.
    """
    client_pid = posix.getppid()
    error: OSError | None = None
    try:
        _settle(fd)
    except OSError as failed:
        error = failed
    nursery = None if error else _first_nursery()
    try:
        from mpworker.supervisor import standing
    except BaseException:
        if nursery is not None:
            spawning.end(nursery)
        raise
    standing.serve(fd, client_pid, nursery, error)
