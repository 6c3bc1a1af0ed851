"""The systemd units of a supervisor, for the interpreter that runs this.

Three units: `mpworker.service`, `mpworker.socket`, which has it started by the first program that attaches, and the
template `mpworker@.service`, of which each instance has a configuration of its own, `/etc/mpworker/NAME.toml`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final

import mpworker

FOLDER: Final = "/etc/systemd/system"
# Systemd's own words for what a service may do: what it cannot do, nobody who gets into it can.
# Not MemoryDenyWriteExecute: what compiles at run time (numba, cffi) needs that. Nor PrivateUsers: whoever attaches
# would be nobody.
_HARDENING: Final = """\
DynamicUser=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome={home}
PrivateTmp=yes
PrivateDevices=yes
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077"""
_SERVICE: Final = """\
[Unit]
Description=mpworker supervisor{of}
Documentation=man:mpworker(1)
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} serve{arguments}
# By a signal, and not by `mpworker reload`: the service's own user need not be one that may steer.
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=0.5
# A wrong configuration, or another supervisor at its socket, is no better after a restart.
RestartPreventExitStatus=69 78
# SIGTERM goes to the supervisor alone, which lets tasks finish for `stop_timeout` (60 s); what is left then is killed.
KillMode=mixed
TimeoutStopSec=90
WatchdogSec=10
RuntimeDirectory={runtime}
Environment=PYTHONUNBUFFERED=1

{hardening}

[Install]
WantedBy=multi-user.target
"""
_SOCKET: Final = """\
[Unit]
Description=mpworker: where programs attach

[Socket]
ListenStream=/run/mpworker/mpworker.sock
# Who may attach besides root: name a group of yours as SocketGroup, and under clients.gids in the configuration,
# /etc/mpworker/mpworker.toml.
SocketMode=0660

[Install]
WantedBy=sockets.target
"""


def _program() -> str:
    """The command that starts this package with this interpreter, whatever is on anybody's path."""
    return f"{sys.executable} -P -m mpworker.cli"


def _home() -> str:
    """What the unit may see of home directories: nothing, unless the interpreter or the package is in one."""
    ours = [os.path.realpath(each) for each in (sys.prefix, sys.base_prefix, mpworker.__file__)]
    return "read-only" if any(each.startswith(("/home/", "/root/")) for each in ours) else "yes"


def units() -> Mapping[str, str]:
    """The text of each unit, by the name of its file."""
    hardening = _HARDENING.format(home=_home())
    one = _SERVICE.format(of="", program=_program(), arguments="", runtime="mpworker", hardening=hardening)
    each = _SERVICE.format(
        of=" %i",
        program=_program(),
        arguments=" --config /etc/mpworker/%i.toml --socket /run/mpworker-%i/mpworker.sock",
        runtime="mpworker-%i",
        hardening=hardening,
    )
    return {"mpworker.service": one, "mpworker.socket": _SOCKET, "mpworker@.service": each}


def install(folder: str) -> list[str]:
    """Write the units; which files have changed.

    Args:
        folder: Where systemd looks for units.

    Raises:
        OSError: It cannot be written to.
    """
    changed = []
    for name, text in units().items():
        path = os.path.join(folder, name)
        try:
            with open(path) as file:
                if file.read() == text:
                    continue
        except FileNotFoundError:
            pass
        temporary = f"{path}.new"
        with open(temporary, "w") as file:
            file.write(text)
        os.replace(temporary, path)
        changed.append(path)
    return changed
