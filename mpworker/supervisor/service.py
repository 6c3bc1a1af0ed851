"""The entry point of a supervisor that clients attach to: `main(fd)`, with the configuration in the file `fd`.

It is exec'd with `-I -S`, as one of a single client is, by `mpworker serve`, which has read and checked what the
operator wants (`mpworker.service`). The file is JSON, of which the nursery gets the children's part, unread.
"""

from __future__ import annotations

import _socket
import errno
import gc
import os
import stat
import sys

from mpworker.ipc import json
from mpworker.ipc.channel import make_segment
from mpworker.ipc.limits import explained
from mpworker.supervisor.burying import become_subreaper
from mpworker.supervisor.daemon import Daemon
from mpworker.supervisor.gate import listen
from mpworker.supervisor.lookout import Log
from mpworker.supervisor.standing import own_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn

EXIT_CRASHED: Final = 70  # EX_SOFTWARE of sysexits.h: worth a restart
EXIT_UNABLE: Final = 71  # EX_OSERR: something of the system's cannot be had
EXIT_IN_USE: Final = 69  # EX_UNAVAILABLE: another supervisor listens there


def _line_writer() -> Callable[[bytes], int]:
    """Writes to the standard error that this process began with, and never waits: see `Log`."""
    if stat.S_ISSOCK(
        os.fstat(2).st_mode
    ):  # the journal's: it cannot be opened anew, and our own flags would be its, too
        sock = _socket.socket(fileno=os.dup(2))
        os.set_inheritable(sock.fileno(), False)
        return lambda line: sock.send(line, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
    own_stderr()
    fd = sys.stderr.fileno()
    return lambda line: os.write(fd, line)


def _read(fd: int) -> dict[str, Any]:
    with open(fd, "rb") as file:
        file.seek(0)
        config: dict[str, Any] = json.loads(file.read())
    return config


def _listening(service: dict[str, Any]) -> _socket.socket:
    """The socket: the one that the service manager has passed on, or one of our own."""
    given = service["listen_fd"]
    if given is None:
        return listen(service["socket"], service["socket_mode"])
    os.set_inheritable(given, False)
    sock = _socket.socket(fileno=given)
    sock.setblocking(False)
    return sock


def _die(why: str, status: int) -> NoReturn:
    os.write(2, f"mpworker serve: {why}\n".encode())
    os._exit(status)


def main(fd: int) -> None:
    """Be a supervisor until it is stopped; never returns.

    Args:
        fd: The file with the configuration.
    """
    config = _read(fd)
    service = config["service"]
    try:
        sock = _listening(service)
    except OSError as error:
        _die(str(error), EXIT_IN_USE if error.errno == errno.EADDRINUSE else EXIT_UNABLE)
    log = Log(_line_writer())
    become_subreaper()
    gc.freeze()  # as for a supervisor of one client: nothing here forms cycles
    gc.disable()
    status = EXIT_CRASHED
    daemon: Daemon | None = None
    try:
        blob = json.dumps(config.pop("blob")).encode()
        blob_fd = make_segment("mpworker-config", len(blob))
        os.pwrite(blob_fd, blob, 0)
        daemon = Daemon(config, sock, [blob_fd], log)
        daemon.run()
        status = EXIT_CRASHED if daemon.failed else 0
    except OSError as error:
        log.write(40, "unable", {"error": str(explained(error, "the supervisor cannot go on"))})
        status = EXIT_UNABLE
    except BaseException:  # noqa: BLE001
        import traceback

        log.write(40, "supervisor_failed", {"traceback": traceback.format_exc()})
    finally:
        if daemon is not None:
            daemon.close()
        if service["listen_fd"] is None:
            _remove(service["socket"])
        os._exit(status)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
