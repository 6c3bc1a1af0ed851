"""What a service tells the service manager that has started it: sd_notify(3), a datagram for each message.

The protocol is systemd's; without NOTIFY_SOCKET in the environment nothing is sent.
"""

from __future__ import annotations

import _socket
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PER_WATCHDOG: Final = 3  # so often in the time that the manager waits: one may be late, and one be lost


class Manager:
    """The service manager, if there is one.

    Attributes:
        alive_every: Seconds between the signs of life that it expects; None if it expects none.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")  # not for the children: they are not this service
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sock: _socket.socket | None = None
        self._status = ""
        if address:
            kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
            self._sock = _socket.socket(_socket.AF_UNIX, kind)
        expects = os.environ.pop("WATCHDOG_USEC", "")
        for_us = os.environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.alive_every = int(expects) / 1e6 / _PER_WATCHDOG if expects.isdigit() and for_us and address else None

    def tell(self, *lines: str) -> None:
        """Say this now. What cannot be said, as the manager does not read, is lost: it never waits."""
        if self._sock is not None:
            try:
                self._sock.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                pass

    def is_ready(self) -> None:
        """The service is, or is again."""
        self.tell("READY=1", f"MAINPID={os.getpid()}")

    def reloads(self) -> None:
        """It reads its configuration, until `is_ready`."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """A line for people, if it is another one than before."""
        if text != self._status:
            self._status = text
            self.tell(f"STATUS={text}")
