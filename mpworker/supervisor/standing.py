"""A supervisor from the moment that its modules are loaded: it receives its configuration, and serves."""

from __future__ import annotations

import gc
import os
import sys

from mpworker.ipc import codec, frames
from mpworker.ipc.channel import Channel, close_all, open_anew
from mpworker.ipc.levels import ERROR
from mpworker.ipc.limits import explained
from mpworker.supervisor.burying import become_subreaper
from mpworker.supervisor.loop import Loop
from mpworker.supervisor.spawning import Started, end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def own_stderr() -> None:
    """Errors of ours go to a descriptor that we opened and that never blocks; the inherited ones are the children's."""
    try:
        fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # a socket cannot be opened anew
    sys.stderr = os.fdopen(fd, "w", buffering=1, errors="backslashreplace")
    sys.stdout = sys.stderr


def _stand(fd: int, client_pid: int, nursery: Started | None) -> Loop | None:
    """All that a supervisor needs; None if the client is gone."""
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
    config, (segment, one_bell, other_bell, *fds) = hello
    pipes = (one_bell, other_bell)
    own_stderr()
    become_subreaper()
    # A client could have kept what it sent, and make it block.
    channel = Channel([segment, *map(open_anew, pipes)], config["client_ring_bytes"], 1)
    close_all([segment, *pipes])
    # Nothing here forms cycles; without a collector a million queued tasks cost no pause.
    gc.freeze()
    gc.disable()
    loop = Loop(config | {"nursery_argv": sys.argv[2:]}, client, channel, fds, client_pidfd)
    if nursery is not None:
        loop.world.adopt(nursery)
    return loop


def _say(fd: int, word: bytes) -> None:
    """Tell the client whether we stand. It looks only if we die."""
    try:
        os.write(fd, word)
    except OSError:
        pass  # it is gone, as we shall notice


def _leave(nursery: Started | None, status: int) -> NoReturn:
    """Exit before there is a loop, and leave no nursery behind."""
    if nursery is not None:
        end(nursery)
    os._exit(status)


def serve(fd: int, client_pid: int, nursery: Started | None) -> None:
    """Be a supervisor until the client is gone; never returns.

    Args:
        fd: The socket to the client.
        client_pid: The client, which is our parent as long as it lives.
        nursery: The first one; None if it could not be started.
    """
    try:
        loop = _stand(fd, client_pid, nursery)
    except ConnectionError:
        loop = None  # the client is gone
    except OSError as failed:
        _say(fd, codec.CANNOT + str(explained(failed, "a supervisor cannot start")).encode())
        _leave(nursery, 1)
    if loop is None:
        _leave(nursery, 0)
    _say(fd, codec.STANDS)
    status = 1
    try:
        loop.run()
        status = 0
    except BaseException as failed:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        trace = f"{''.join(traceback.format_tb(failed.__traceback__))}{type(failed).__qualname__}"
        loop.watch.log(ERROR, "supervisor_failed", traceback=trace)
    finally:
        loop.close()
        os._exit(status)
