"""What a hostile peer does with the descriptors that it holds: for tasks, and for a client that has gone bad."""

import gc
import os
import time
from pathlib import Path
from typing import NoReturn

from mpworker.ipc import codec
from mpworker.ipc.channel import Channel

PIPE_BYTES = 1 << 16
FOREVER = 600.0  # seconds; what is tested ends it


def jam_descriptors() -> None:
    """Fill every pipe and every counter that this process holds, and have each further write to one block."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that listed the directory
            continue
        if fd <= 2 or not target.startswith(("pipe:", "anon_inode:[eventfd]")):
            continue
        os.set_blocking(fd, False)
        for data in (b"\xfe" + b"\xff" * 7, b"\xff"):  # the most that a counter takes, and a pipe's last bytes
            try:
                for _ in range(PIPE_BYTES):  # bounded: the supervisor drains the one that it sleeps on
                    os.write(fd, data)
            except OSError:
                pass  # full, or a counter, which takes no single byte
        os.set_blocking(fd, True)


def jam(channel: Channel) -> None:
    """The same, and have the peer ring: say that this side sleeps and wants room."""
    jam_descriptors()
    channel.bell.want_room(True)
    channel.bell.arm()


def jam_and_stay(told: Path) -> NoReturn:
    """Jam this child's channel, send what the supervisor has to ring for, and take no interrupt."""
    (channel,) = (each for each in gc.get_objects() if isinstance(each, Channel))  # a child has its own alone
    jam(channel)
    assert channel.outbound.push(codec.FRAGMENT, codec.FIRST, 0, 0, 0, b"")
    told.touch()
    while True:
        try:
            time.sleep(FOREVER)
        except BaseException:  # noqa: BLE001
            told.touch()


def wait_for(told: Path, gate: Path) -> None:
    """Until the test, or the client, opens the gate."""
    told.touch()
    while not gate.exists():
        time.sleep(0.005)
