"""How a program attaches to a supervisor that is there, and what it then has in place of one of its own."""

from __future__ import annotations

import _socket
import os
import sys
import time
from contextlib import suppress

from mpworker import clients
from mpworker.cgroups import available_cores
from mpworker.errors import ConnectError
from mpworker.ipc import codec, frames
from mpworker.ipc.build import build
from mpworker.ipc.channel import Channel, close_all
from mpworker.ipc.levels import WARNING
from mpworker.launch import CLIENT_SPIN_NS, Supervisor
from mpworker.starting import Beginning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.client import Client
    from mpworker.observing import Observing
    from mpworker.service.recovery import Recovery

_FDS_OF_A_CHANNEL: Final = 3
_AGAIN_AFTER: Final = 0.02  # seconds; a supervisor that is being started is there in some 100 ms


class Attachment(Supervisor):
    """A supervisor that is there for others, too: the client's end of the connection stands for its life.

    Args:
        sock: The connection.
        channel: The channel.
        pid: The process.
    """

    def __init__(self, sock: frames.Frames, channel: Channel, pid: int) -> None:
        cores = available_cores()
        spin_ns = CLIENT_SPIN_NS if cores > 1 else 0
        # Readable at the end of the connection, as a pidfd is at that of a process.
        super().__init__("", channel, sock, pid, os.dup(sock.fileno()), spin_ns, cores, None)

    def hang_up(self) -> None:
        """End the connection: the supervisor cancels what is unfinished."""
        self._sock.hang_up()

    def kill(self) -> None:
        """Nobody kills what others use: the connection ends."""
        self._sock.hang_up()

    def last_words(self) -> bytes:
        """What the supervisor has said before the connection ended: `codec.LEFT`, `codec.DISMISSED`, or nothing."""
        if self._words is None:
            self._words = self._sock.words()
        return self._words

    def ended_well(self) -> bool:
        """Has it said that all is well?"""
        return self.last_words() == codec.LEFT

    def start_failure(self) -> dict[str, str] | None:
        """Nothing: see `Supervisor`."""
        return None  # it was there

    def close(self) -> None:
        """Close everything. It may be interrupted and called again, also by two threads."""
        self.ended_well()  # while it can be heard
        self._sock.close()
        self.channel.close()
        fd, self.pidfd = self.pidfd, -1
        if fd >= 0:
            os.close(fd)


class Attached(Beginning):
    """What a client begins with that attaches; in the place of `mpworker.starting.Start`.

    Args:
        path: The socket.
        observing: What is beside and around the tasks.
        name: What it calls itself.
        when_gone: What becomes of its tasks when it dies.
        timeout: Seconds that all of this may take; a supervisor that is not there yet is waited for as long.
        reconnect_timeout: Seconds that another supervisor is waited for when this one dies; 0 for none.

    Attributes:
        prefix: Of the ids of its tasks.
        supervisor: The supervisor, as its client holds it.
        terms: What else the supervisor has said.

    Raises:
        ConnectError: No supervisor listens there, or it refuses.
        OSError: No memory or descriptor is left.
    """

    def __init__(
        self, path: str, observing: Observing, name: str, when_gone: str, timeout: float, reconnect_timeout: float
    ) -> None:
        clients.sweep()
        self._logger = None
        level = WARNING
        if observing.logger is not None or "logging" in sys.modules:
            from mpworker.logs import as_logger, level_of

            self._logger = as_logger(observing.logger)
            level = level_of(self._logger)
        self._hello = {
            "op": "attach",
            "build": build(),
            "python": list(sys.version_info[:2]),
            "name": name,
            "when_gone": when_gone,
            "log_level": level,
            "prefix": None,
            "recovers": reconnect_timeout > 0,
        }
        self._path = path
        self._reconnect_timeout = reconnect_timeout
        self.supervisor, self.terms, self._left = _attach_in_time(path, self._hello, timeout)
        self.prefix = self.terms["prefix"]

    def recovery_of(self, client: Client) -> Recovery | None:
        """See `Beginning`."""
        if not self._hello["recovers"]:
            return None
        from mpworker.service.recovery import Recovery

        hello = self._hello | {"prefix": self.prefix}
        return Recovery(client, self._path, hello, self.terms, self._left, self._reconnect_timeout)


def _attach_in_time(path: str, hello: dict[str, Any], timeout: float) -> tuple[Attachment, dict[str, Any], list[int]]:
    """See `attach`. A supervisor that dies meanwhile may be followed by another one."""
    by = time.monotonic() + timeout
    while True:
        try:
            return attach(path, hello, by, timeout)
        except ConnectError as error:
            if not error.hung_up or time.monotonic() + _AGAIN_AFTER >= by:
                raise
        time.sleep(_AGAIN_AFTER)


def attach(path: str, hello: dict[str, Any], by: float, timeout: float) -> tuple[Attachment, dict[str, Any], list[int]]:
    """Attach to a supervisor.

    Args:
        path: Its socket.
        hello: What it is told.
        by: When it must have been done, on the monotonic clock.
        timeout: Seconds that are told of when it was not.

    Returns:
        The supervisor, what it has said, and the descriptors of what it leaves if it dies, if it was asked for these.

    Raises:
        ConnectError: No supervisor listens there, or it refuses.
        OSError: No memory or descriptor is left.
    """
    sock = _connected(path, by)
    try:
        sock.settimeout(max(0.001, by - time.monotonic()))
        connection = frames.Frames(sock)
        with suppress(BrokenPipeError):  # it has refused us already, and has said so
            connection.send(hello)
        answer = connection.receive()
        sock.settimeout(None)
    except TimeoutError:
        sock.close()
        raise ConnectError(f"the supervisor at {path} said nothing in {timeout:g} s") from None
    except ConnectionError as error:
        sock.close()
        raise _hung_up(path, error) from error
    except BaseException:
        sock.close()
        raise
    if answer is None:
        connection.close()
        raise _hung_up(path)
    terms, fds = answer
    if "refused" in terms:
        close_all(fds)
        connection.close()
        refusal = ConnectError(f"the supervisor at {path} refuses this program: {terms['refused']}")
        refusal.for_good = bool(terms.get("for_good"))
        raise refusal
    ours, left = fds[:_FDS_OF_A_CHANNEL], fds[_FDS_OF_A_CHANNEL:]
    try:
        channel = Channel(ours, terms["capacities"], 1)
        os.close(ours[0])
        return Attachment(connection, channel, terms["pid"]), terms, left
    except BaseException:
        connection.close()
        close_all(left)
        raise


def _hung_up(path: str, why: object = "") -> ConnectError:
    error = ConnectError(f"the supervisor at {path} has hung up{f': {why}' if why else ''}")
    error.hung_up = True
    return error


def _connected(path: str, by: float) -> _socket.socket:
    """A connection to a socket, which may not be there yet.

    Raises:
        ConnectError: There is none in time.
    """
    while True:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(max(0.001, by - time.monotonic()))
            sock.connect(path)
            return sock
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError, TimeoutError) as error:
            sock.close()
            if time.monotonic() + _AGAIN_AFTER >= by:
                raise ConnectError(
                    f"no supervisor listens at {path} ({error.strerror or error}): start one with `mpworker serve`, or "
                    "name its socket"
                ) from error
            time.sleep(_AGAIN_AFTER)
        except OSError as error:
            sock.close()
            raise ConnectError(f"the supervisor at {path} cannot be reached: {error.strerror or error}") from error
        except BaseException:
            sock.close()
            raise


def terms_as_options(terms: dict[str, Any], max_pending: int | None) -> dict[str, Any]:
    """Those options of a worker that the supervisor says.

    Args:
        terms: What it has said.
        max_pending: What the program wants; None for as many as it may have.
    """
    most: int = terms["max_pending"]
    return {
        "n": terms["n"],
        "max_pending": most if max_pending is None else min(most, max_pending),
        "client_ring_bytes": terms["capacities"][1],
        "max_payload_bytes": terms["max_payload_bytes"],
        "arena_max_bytes": 0,
    }
