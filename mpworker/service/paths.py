"""Where a supervisor listens if nobody says otherwise."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

NAME: Final = "mpworker/mpworker.sock"
SYSTEM_SOCKET: Final = f"/run/{NAME}"
VARIABLE: Final = "MPWORKER_SOCKET"


def to_listen_at() -> str:
    """The user's own: under XDG_RUNTIME_DIR; for root, and where there is no such folder, the system's."""
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"{folder}/{NAME}" if folder and os.getuid() else SYSTEM_SOCKET


def to_connect_to() -> str:
    """What MPWORKER_SOCKET says, or else the user's own supervisor if it is there, or else the system's."""
    said = os.environ.get(VARIABLE)
    if said:
        return said
    own = to_listen_at()
    return own if os.path.exists(own) else SYSTEM_SOCKET
