"""The supervisor's entry point: `main(fd)` with the socket that the client made.

It is exec'd with `-I -S` and a path that ends with this package's folder, so that no file of the user's can stand in
for a module of the standard library here.
"""

import fcntl
import gc
import os
import signal
import sys

from mpworker.ipc import codec, frames
from mpworker.ipc.channel import Channel, close_all, open_anew
from mpworker.ipc.levels import ERROR
from mpworker.ipc.limits import explained
from mpworker.supervisor.loop import Loop
from mpworker.supervisor.nursery import UNHEEDED, become_subreaper

_TIOCNOTTY = 0x5422  # <asm-generic/ioctls.h>; the module that names it costs an import


def _own_stderr() -> None:
    """Errors of ours go to a descriptor that we opened and that never blocks; the inherited ones are the children's."""
    try:
        fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # a socket cannot be opened anew
    sys.stderr = os.fdopen(fd, "w", buffering=1, errors="backslashreplace")
    sys.stdout = sys.stderr


def _leave_terminal() -> None:
    """Have no controlling terminal, nor the children: a task that asks it for a password fails and is not stopped.

    A session of our own would do the same. But Linux's autogroup scheduling makes every session a group of its own, and
    groups were seen to starve each other: docs/architecture.md, under Decisions.
    """
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return  # there is none
    try:
        fcntl.ioctl(fd, _TIOCNOTTY)
    finally:
        os.close(fd)


def _ignore_signals() -> None:
    """When to stop is for the client to say; whoever signals a whole group or systemd unit has told it as well."""
    for number in UNHEEDED:
        signal.signal(number, signal.SIG_IGN)


def _open_standard_streams() -> None:
    """Where the client runs without them, their numbers must not go to what is opened or received next."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            os.set_inheritable(fd, True)


def _stand(fd: int) -> Loop | None:
    """All that a supervisor needs; None if the client is gone."""
    client_pid = os.getppid()
    _ignore_signals()
    _leave_terminal()
    _open_standard_streams()
    os.closerange(fd + 1, 1 << 20)  # what the client had marked inheritable is not ours
    client = frames.adopt(fd)
    try:
        client_pidfd = os.pidfd_open(client_pid)
    except ProcessLookupError:
        return None
    if os.getppid() != client_pid:
        return None  # it died before the line above
    hello = client.receive()
    if hello is None:
        return None
    config, (segment, *pipes, blob_fd) = hello
    _own_stderr()
    become_subreaper()
    # A client could have kept what it sent, and make it block.
    channel = Channel([segment, *map(open_anew, pipes)], config["client_ring_bytes"], 1)
    close_all([segment, *pipes])
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)  # a child must not eat the client's input
    os.close(null)
    # Nothing here forms cycles; without a collector a million queued tasks cost no pause.
    gc.freeze()
    gc.disable()
    return Loop(config, client, channel, blob_fd, client_pidfd)


def _say(fd: int, word: bytes) -> None:
    """Tell the client whether we stand. It looks only if we die."""
    try:
        os.write(fd, word)
    except OSError:
        pass  # it is gone, as we shall notice


def main(fd: int) -> None:
    """Be a supervisor until the client is gone; never returns."""
    try:
        loop = _stand(fd)
    except ConnectionError:
        loop = None  # the client is gone
    except OSError as error:
        _say(fd, codec.CANNOT + str(explained(error, "a supervisor cannot start")).encode())
        os._exit(1)
    if loop is None:
        os._exit(0)
    _say(fd, codec.STANDS)
    status = 1
    try:
        loop.run()
        status = 0
    except BaseException as error:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        trace = f"{''.join(traceback.format_tb(error.__traceback__))}{type(error).__qualname__}"
        loop.watch.log(ERROR, "supervisor_failed", traceback=trace)
    finally:
        loop.close()
        os._exit(status)
