"""Who may attach to a supervisor that has several clients, and how one does.

A client connects to the socket, says hello in one frame, and is answered by one: why not, or what it is to know, with
the descriptors of its channel. The channel is made here, so that no client has ours. Whoever says nothing, too much, or
what is no hello, is let go of, and has cost the others nothing.
"""

from __future__ import annotations

import _socket
import os
import struct
import sys
import time

from mpworker.ipc import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

_PEER: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
# Not in the `socket` module of 3.11.
_SO_PEERGROUPS: Final = 59
_SO_PEERPIDFD: Final = 77  # Linux 6.5
_GROUPS_BYTES_MAX: Final = 1024  # that Python asks for, 256 groups; of who has more, the first one alone is known
_HELLO_BYTES_MAX: Final = 1 << 16
_HELLO_SECONDS: Final = 5.0
WAITING_MAX: Final = 64  # that have not said hello; the kernel has others wait
_BACKLOG: Final = 128
_AGAIN_AFTER: Final = 0.1  # seconds, until it is looked whether there is a descriptor for another client


class Refused(Exception):
    """A client may not attach; the text is for its user.

    Args:
        why: The text.
        for_good: It need not try again.
    """

    def __init__(self, why: str, for_good: bool = False) -> None:
        super().__init__(why)
        self.for_good = for_good


class Peer:
    """Somebody who has connected.

    Attributes:
        frames: The socket.
        pid: The process, 0 where that is of another pid namespace.
        uid: Its user,
        gids: and groups.
        pidfd: Readable when it is dead; -1 where there is none.
        by: When it must have said hello.
    """

    __slots__ = ("by", "frames", "gids", "pid", "pidfd", "uid")

    def __init__(self, sock: _socket.socket) -> None:
        sock.setblocking(False)
        self.frames = frames.Frames(sock, _HELLO_BYTES_MAX)
        credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEER.size)
        self.pid, self.uid, gid = _PEER.unpack(credentials)
        self.gids = {gid, *_groups_of(sock)}
        self.pidfd = _pidfd_of(sock, self.pid)
        self.by = time.monotonic() + _HELLO_SECONDS

    def close(self) -> None:
        """Let go of it."""
        self.frames.close()
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)


def _groups_of(sock: _socket.socket) -> list[int]:
    """The supplementary groups of the process at the other end."""
    try:
        groups = sock.getsockopt(_socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES_MAX)
    except OSError:
        return []
    return [group for (group,) in struct.iter_unpack("I", groups)]


def _pidfd_of(sock: _socket.socket, pid: int) -> int:
    """A descriptor of the process at the other end; -1 if none can be had."""
    try:
        return sock.getsockopt(_socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        pass  # an older kernel: by its number, which is another's only if it has died since it connected
    try:
        return os.pidfd_open(pid) if pid else -1
    except OSError:
        return -1


class Gate:
    """The socket, and those who have connected to it and not said hello.

    Args:
        sock: It listens.
        uids: Users that may attach,
        gids: and groups.
        watch: Has a descriptor watched,
        unwatch: and no longer.
        enter: Takes in who has said hello; raises `Refused`.
    """

    def __init__(
        self,
        sock: _socket.socket,
        uids: list[int],
        gids: list[int],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        enter: Callable[[Peer, dict[str, Any]], None],
    ) -> None:
        self._sock = sock
        self.admit(uids, gids)
        self._watch, self._unwatch, self._enter = watch, unwatch, enter
        self._waiting: dict[Peer, None] = {}  # in the order of their times
        self._listens = False
        self._again_at: float | None = None
        self._listen(True)

    def admit(self, uids: list[int], gids: list[int]) -> None:
        """These may attach from now on."""
        self._uids, self._gids = frozenset(uids), frozenset(gids)

    def _listen(self, on: bool) -> None:
        if on and not self._listens:
            self._watch(self._sock.fileno(), self._accept)
        elif self._listens and not on:
            self._unwatch(self._sock.fileno())
        self._listens = on

    @property
    def next_at(self) -> float | None:
        """When to call `look`."""
        by = next(iter(self._waiting)).by if self._waiting else None
        times = [at for at in (by, self._again_at) if at is not None]
        return min(times) if times else None

    def look(self, now: float) -> None:
        """Let go of who has said nothing for too long."""
        while self._waiting and (peer := next(iter(self._waiting))).by <= now:
            self._dismiss(peer, "no hello came in time")
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._listen(True)

    def _accept(self) -> None:
        try:
            fd, _ = self._sock._accept()  # type: ignore[attr-defined]  # what `accept` of the `socket` module calls
        except (BlockingIOError, ConnectionError):
            return  # it is gone
        except OSError:
            # No descriptor is left. Whoever waits goes on waiting, and would wake us all the time.
            self._again_at = time.monotonic() + _AGAIN_AFTER
            self._listen(False)
            return
        try:
            peer = Peer(_socket.socket(fileno=fd))
        except OSError:
            os.close(fd)
            return
        if peer.uid not in self._uids and self._gids.isdisjoint(peer.gids):
            why = f"user {peer.uid} may not attach to this supervisor"
            self._answer(peer, {"refused": why, "for_good": True})
            peer.close()
            return
        self._waiting[peer] = None
        self._watch(peer.frames.fileno(), lambda: self._hear(peer))
        if len(self._waiting) >= WAITING_MAX:
            self._listen(False)

    def _hear(self, peer: Peer) -> None:
        try:
            frame = peer.frames.receive(wait=False)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            frame = None
        if frame is None:
            self._dismiss(peer, "")
            return
        hello, fds = frame
        for fd in fds:
            os.close(fd)
        self._let_go(peer)
        try:
            self._enter(peer, hello)
        except Refused as why:
            self._answer(peer, {"refused": str(why), "for_good": why.for_good})
            peer.close()
        except (KeyError, TypeError, ValueError):
            self._answer(peer, {"refused": "that is no hello that this supervisor knows"})
            peer.close()
        except OSError as error:
            self._answer(peer, {"refused": f"the supervisor has no room for another client: {error}"})
            peer.close()

    def _let_go(self, peer: Peer) -> None:
        """It is not waited for any more."""
        del self._waiting[peer]
        self._unwatch(peer.frames.fileno())
        if self._again_at is None:
            self._listen(True)

    def _dismiss(self, peer: Peer, why: str) -> None:
        self._let_go(peer)
        if why:
            self._answer(peer, {"refused": why})
        peer.close()

    @staticmethod
    def _answer(peer: Peer, answer: dict[str, Any]) -> None:
        try:
            peer.frames.send(answer)
        except OSError:
            pass  # it is gone, or does not read

    def close(self) -> None:
        """Nobody attaches any more."""
        for peer in list(self._waiting):
            self._dismiss(peer, "the supervisor is stopping")
        self._listen(False)
        self._sock.close()


def check_hello(hello: dict[str, Any], build: str) -> None:
    """Refuse a client that would not understand us, or whose functions would not be understood.

    Args:
        hello: What it has said.
        build: What we are built from.

    Raises:
        Refused: It is of another version.
        KeyError: It is no hello.
    """
    if hello["build"] != build:
        raise Refused(
            f"the supervisor runs mpworker {build} and this program {hello['build']}: restart the older one",
            for_good=True,
        )
    python = list(sys.version_info[:2])
    if hello["python"] != python:
        ours, theirs = (".".join(map(str, each)) for each in (python, hello["python"]))
        raise Refused(
            f"the supervisor's children run Python {ours} and this program {theirs}: functions travel as byte code",
            for_good=True,
        )


def listen(path: str, mode: int) -> _socket.socket:
    """A socket that listens at a path; a file that is left there by one that is dead is replaced.

    Args:
        path: Where.
        mode: Who may connect, as for `chmod`.

    Raises:
        OSError: There is a supervisor already, or something that is no socket, or the folder cannot be written to.
    """
    import errno
    import stat

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    try:
        try:
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(errno.EEXIST, f"{path} is there, and is no socket")
            probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            try:
                probe.connect(path)
                raise OSError(errno.EADDRINUSE, f"a supervisor listens at {path} already")
            except ConnectionRefusedError:
                os.unlink(path)
            finally:
                probe.close()
        except FileNotFoundError:
            pass
        before = os.umask(0o777 & ~mode)  # nobody may connect between the bind and a chmod
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
