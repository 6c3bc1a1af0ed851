"""The start of a nursery by a supervisor that is there, with little but what is built into the interpreter.

That is each one that replaces another. The first one is started together with the supervisor (mpworker/ipc/start.h).
Where that runs on another interpreter than the client, it starts the first one by these lines as well, before it has
loaded its own modules: `os` alone would hold it up.
"""

import _socket
import posix

from mpworker.ipc.signals import signal

# What a supervisor ignores from its start on (mpworker/ipc/start.h), and passes on ignored: the nursery does too, and a
# child does not.
UNHEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Started = tuple[_socket.socket, int]  # our end of its socket, and its process id


def start(argv: list[str], apart: bool = False) -> Started:
    """Exec a nursery, which has the environment of this process.

    Args:
        argv: Its interpreter and the arguments of that.
        apart: In a session of its own, where no key of a terminal reaches it.

    Raises:
        OSError: No memory, descriptor or process is left. Nothing is left behind.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        actions = [(posix.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        return ours, posix.posix_spawn(argv[0], argv, posix.environ, file_actions=actions, setsid=apart)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()


def end(nursery: Started) -> None:
    """Kill a nursery that has forked nothing, and reap it."""
    ours, pid = nursery
    posix.kill(pid, signal.SIGKILL)
    posix.waitpid(pid, 0)
    ours.close()
