"""Messages with descriptors over a unix stream socket: the handshakes, and what supervisor and nursery tell each other.

A frame is a little-endian (length, number of descriptors) and a JSON text. Not for tasks: those use rings.

`_socket` is used directly: `socket` imports `selectors`, `select` and `enum`, a tenth of the time to a first result,
and a user's own `select.py` beside the script would be imported in their place.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from mpworker.ipc import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HEADER = struct.Struct("<II")
_MAX_FDS = 16
_MAX_FRAME_BYTES = 64 << 20
_READ_BYTES = 65536
_FD = struct.Struct("i")  # not of `array`, which imports `collections`
_CMSG_BYTES = _socket.CMSG_SPACE(_MAX_FDS * _FD.size)


class DescriptorsLost(OSError):
    """A message came without its descriptors: this process may open no more.

    Attributes:
        message: The message.
    """

    def __init__(self, message: dict[str, Any]) -> None:
        super().__init__(errno.EMFILE, "no descriptor is left for what another process sends")
        self.message = message


class Frames:
    """One end of a socket that carries frames.

    Args:
        sock: A connected unix stream socket; owned by this object from now on.
        max_bytes: What is longer is no frame.
    """

    def __init__(self, sock: _socket.socket, max_bytes: int = _MAX_FRAME_BYTES) -> None:
        self._sock = sock
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._fds: list[int] = []

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop to watch."""
        return self._sock.fileno()

    def send(self, message: dict[str, Any], fds: tuple[int, ...] | list[int] = ()) -> None:
        """Send one message and copies of the descriptors.

        Raises:
            OSError: The peer is gone (BrokenPipeError), or the socket is non-blocking and full.
        """
        body = json.dumps(message).encode()
        data = memoryview(_HEADER.pack(len(body), len(fds)) + body)
        control = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, b"".join(map(_FD.pack, fds)))] if fds else []
        sent = self._sock.sendmsg([data], control, _socket.MSG_NOSIGNAL)
        while sent < len(data):
            sent += self._sock.send(data[sent:], _socket.MSG_NOSIGNAL)

    def receive(self, wait: bool = True) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors (close-on-exec), or None when the peer has closed its end.

        Args:
            wait: False raises BlockingIOError when no whole message has arrived yet.

        Raises:
            BlockingIOError: See `wait`.
            DescriptorsLost: The limit of open files is reached. None of the message's descriptors is open.
            ValueError: The peer sent something that is no frame.
        """
        while True:
            frame = self._take()
            if frame is not None:
                return frame
            flags = _socket.MSG_CMSG_CLOEXEC | (0 if wait else _socket.MSG_DONTWAIT)
            data, control, message_flags, _ = self._sock.recvmsg(_READ_BYTES, _CMSG_BYTES, flags)
            received: list[int] = []
            for level, kind, payload in control:
                if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                    received += [fd for (fd,) in _FD.iter_unpack(payload[: len(payload) - len(payload) % _FD.size])]
            if message_flags & _socket.MSG_CTRUNC:
                # Those of the message that ends what was read: Linux returns before the next one that has any.
                for fd in received:
                    os.close(fd)
            else:
                self._fds += received
            if not data:
                return None
            self._buffer += data

    def _take(self) -> tuple[dict[str, Any], list[int]] | None:
        buffer = self._buffer
        if len(buffer) < _HEADER.size:
            return None
        length, count = _HEADER.unpack_from(buffer)
        if length > self._max_bytes or count > _MAX_FDS:
            raise ValueError(f"no frame begins with ({length}, {count})")
        end = _HEADER.size + length
        if len(buffer) < end:
            return None
        message = json.loads(bytes(buffer[_HEADER.size : end]))
        del buffer[:end]
        if len(self._fds) < count:
            raise DescriptorsLost(message)
        fds, self._fds = self._fds[:count], self._fds[count:]
        return message, fds

    def say(self, words: bytes) -> None:
        """Send something that is no frame, if there is room for it; it does not wait."""
        try:
            self._sock.send(words, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError:
            pass  # nobody is there to hear it

    def peek(self) -> bytes | None:
        """What has come, which stays there: b"" for the end, None for nothing. It does not wait."""
        try:
            return self._sock.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def words(self) -> bytes:
        """What has come that is no frame, such as a process says that cannot make one; it does not wait."""
        found = b""
        try:
            while data := self._sock.recv(_READ_BYTES, _socket.MSG_DONTWAIT):
                found += data
        except OSError:
            pass  # there is no more, or the socket is closed
        return found

    def hang_up(self) -> None:
        """End the connection, for whoever has a descriptor of this end as well as for the peer."""
        try:
            self._sock.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended

    def close(self) -> None:
        """Close the socket and any descriptor that was not taken."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._sock.close()


def pair() -> tuple[Frames, _socket.socket]:
    """Two connected ends: ours, and the raw socket of the process that is about to be started."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    return Frames(ours), theirs


def adopt(fd: int) -> Frames:
    """Frames over a socket that this process was started with."""
    os.set_inheritable(fd, False)
    return Frames(_socket.socket(fileno=fd))
