"""The supervisor's entry point: `main(fd, nursery_fd)` with the socket that the client made, and that to the nursery.

It is exec'd with `-I -S` and a path that ends with this package's folder, so that no file of the user's can stand in
for a module of the standard library here. Its arguments are the process id of its first nursery, which was started with
it, and the command line of the next. With 0 there is none yet: then it starts one before it loads what it needs itself.
What every process below shall inherit was settled before the exec: mpworker/ipc/start.h.
"""

import _socket
import posix
import sys

from mpworker.supervisor import spawning


def _first_nursery(fd: int) -> spawning.Started | None:
    pid = int(sys.argv[1])
    try:
        if pid:
            posix.set_inheritable(fd, False)
            return _socket.socket(fileno=fd), pid
        return spawning.start(sys.argv[2:])
    except OSError:
        return None  # the loop tries it again, and counts from there on


def main(fd: int, nursery_fd: int) -> None:
    """Be a supervisor until the client is gone; never returns.

    Args:
        fd: The socket to the client.
        nursery_fd: The one to the first nursery, if that was started with us.

    Raises:
        Exception: What it consists of cannot be loaded; no nursery is left behind.
    """
    client_pid = posix.getppid()
    posix.set_inheritable(fd, False)
    nursery = _first_nursery(nursery_fd)
    try:
        from mpworker.supervisor import standing
    except BaseException:
        if nursery is not None:
            spawning.end(nursery)
        raise
    standing.serve(fd, client_pid, nursery)
