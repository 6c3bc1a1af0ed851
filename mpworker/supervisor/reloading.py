"""A supervisor's configuration, read again while it serves.

A process of its own reads and checks it, by the same code as at the start (`mpworker config told`): what is in a file
is no reason for a supervisor to stand still, or to fail. What comes of that is applied between two turns of the loop,
all of it or nothing. What needs a restart is told, and left as it is.
"""

from __future__ import annotations

import os
import time

from mpworker.ipc import json
from mpworker.ipc.levels import INFO, WARNING
from mpworker.ipc.signals import signal
from mpworker.supervisor.burying import ends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, TypeAlias

    from mpworker.supervisor.daemon import Daemon

    Settings: TypeAlias = dict[str, Any]

READ_SECONDS: Final = 30.0  # that reading and checking may take
_SAID_BYTES_MAX: Final = 1 << 24
_WHY_MAX: Final = 2000  # characters of a reason that are told
# Of what concerns the service as a whole: what is looked at anew each time that it is needed.
_OF_SERVICE: Final = (
    *("uids", "gids", "steering_uids", "clients_max", "max_pending", "priority_min", "unknown_queues"),
    *("queues", "rate", "burst", "stop_timeout", "n_max", "descriptors_of_n_max"),
)
_OF_CHILDREN: Final = ("grace", "start_timeout", "kill_timeout")


def differences(old: Settings, new: Settings) -> list[str]:
    """The names of the settings that are not the same in both, in order."""
    nothing = object()
    return sorted(name for name in {**old, **new} if old.get(name, nothing) != new.get(name, nothing))


class Reader:
    """A process that reads and checks the configuration.

    Args:
        argv: Its command line.
        environment: Its environment.

    Attributes:
        pidfd: Readable when it has ended.
        by: When it must have ended.

    Raises:
        OSError: No memory, descriptor or process is left.
    """

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self._said = os.memfd_create("mpworker-reload", os.MFD_CLOEXEC)
        self._complaint = self._pid = self.pidfd = -1
        try:
            self._complaint = os.memfd_create("mpworker-reload", os.MFD_CLOEXEC)
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, self._said, 1),
                (os.POSIX_SPAWN_DUP2, self._complaint, 2),
            ]
            self._pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
            self.pidfd = os.pidfd_open(self._pid)
        except BaseException:
            self.close()
            raise
        self.by = time.monotonic() + READ_SECONDS

    def has_ended(self) -> bool:
        """Is it dead?"""
        return ends(self.pidfd, 0.0)

    def result(self) -> tuple[dict[str, Any] | None, str]:
        """What it has read, or None and why that is not to be had; once it has ended."""
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        except ChildProcessError:
            status = -signal.SIGKILL  # with the nursery, as whatever else is found then
        self._pid = -1
        if status == 0:
            try:
                told: dict[str, Any] = json.loads(os.pread(self._said, _SAID_BYTES_MAX, 0).strip())
                return told, ""
            except ValueError:
                return None, "what reads the configuration has said nothing that can be understood"
        text = os.pread(self._complaint, 4 * _WHY_MAX, 0).decode("utf-8", "replace").strip()
        if status < 0 or not text:
            how = f"signal {-status}" if status < 0 else f"exit code {status}"
            return None, f"what reads the configuration ended by {how}"
        return None, text.rpartition("\n")[2].removeprefix("mpworker: ")[:_WHY_MAX]

    def close(self) -> None:
        """End it, if it is there, and let go of it."""
        if self._pid > 0:
            os.kill(self._pid, signal.SIGKILL)  # ours to reap, so the number is its own
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass
        for fd in (self._said, self._complaint, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self._said = self._complaint = self._pid = self.pidfd = -1


class Reloading:
    """Reads the configuration of a supervisor again, when that is asked for, and applies it.

    Who asks while it is read has it read once more: the file may have changed in between.

    Args:
        daemon: The supervisor.
        service: What it was told of the service at its start; what is otherwise from then on is changed here.
        watch: Has a descriptor watched,
        unwatch: and no longer.
    """

    def __init__(
        self,
        daemon: Daemon,
        service: dict[str, Any],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self._daemon = daemon
        self._service = service
        self._watch, self._unwatch = watch, unwatch
        self._reader: Reader | None = None
        self._asked = 0  # how often
        self._reads = 0  # of these, those that the present one is for
        self._done = 0  # and those that were answered
        self._outcome: dict[str, Any] = {}  # of the last one

    @property
    def next_at(self) -> float | None:
        """When to call `look`."""
        return self._reader.by if self._reader is not None else None

    def look(self, now: float) -> None:
        """End what takes too long; its end is told as any other."""
        if self._reader is not None and now >= self._reader.by:
            self._refused(f"the configuration was not read in {READ_SECONDS:g} s")

    def ask(self) -> int:
        """Read it again; by this number it can be asked what came of it."""
        self._asked += 1
        if self._daemon.stopping:
            self._reads = self._asked
            self._refused("the supervisor is stopping")
        elif self._reader is None:
            self._begin()
        return self._asked

    def outcome(self, number: int) -> dict[str, Any] | None:
        """{"changed", "at_restart"}, names of settings, or {"refused"}, why; None as long as it is not over."""
        return self._outcome if self._done >= number else None

    def _begin(self) -> None:
        self._reads = self._asked
        self._daemon.manager.reloads()
        try:
            self._reader = Reader(self._service["reread"]["argv"], self._service["reread"]["environment"])
            self._watch(self._reader.pidfd, self._ended)
        except OSError as error:
            self._refused(f"no process can be started that reads the configuration: {error.strerror or error}")

    def _ended(self) -> None:
        reader = self._reader
        if reader is None or not reader.has_ended():
            return  # the event was for another that had the same number
        told, why = reader.result()
        if told is not None:
            why = self._apply(told)
        if why:
            self._refused(why)

    def _refused(self, why: str) -> None:
        self._daemon.watch.log(WARNING, "reload_refused", reason=why)
        self._over({"refused": why})

    def _over(self, outcome: dict[str, Any]) -> None:
        self.close()
        self._outcome, self._done = outcome, self._reads
        self._daemon.manager.is_ready()
        if self._asked > self._reads:
            self._begin()

    def close(self) -> None:
        """Nothing is read any more."""
        reader, self._reader = self._reader, None
        if reader is not None:
            if reader.pidfd >= 0:
                self._unwatch(reader.pidfd)
            reader.close()

    # ------------------------------------------------------------ what has changed

    def _apply(self, told: dict[str, Any]) -> str:
        """Have it so from now on; or why not, and then nothing has changed."""
        daemon, new = self._daemon, told["service"]
        changed = differences(self._service["settings"], new["settings"])
        live = self._service["live"]
        applied = [name for name in changed if name in live or name.startswith("queues.")]
        if "n" in changed:
            # First of all, for it is what the system may refuse.
            hard = daemon.set_max_workers(told["n"], new["descriptors_of_n_max"])
            if hard:
                return f"{told['n']} children need {new['descriptors_of_n_max']} descriptors, and {hard} are allowed"
        now = time.monotonic()
        self._apply_queues(new, now)
        if (new["rate"], new["burst"]) != (self._service["rate"], self._service["burst"]):
            daemon.scheduler.limit_rate(new["rate"], new["burst"], now)
        self._service.update((name, new[name]) for name in _OF_SERVICE)
        self._service["settings"].update({name: new["settings"][name] for name in applied if name in new["settings"]})
        for name in applied:
            if name not in new["settings"]:
                del self._service["settings"][name]  # a queue that is configured no more
        daemon.scheduler.change_times(**{name: told[name] for name in _OF_CHILDREN})
        daemon.take_on(told)
        at_restart = [name for name in changed if name not in applied]
        daemon.watch.log(INFO, "reloaded", changed=applied, at_restart=at_restart)
        self._over({"changed": applied, "at_restart": at_restart})
        return ""

    def _apply_queues(self, new: dict[str, Any], now: float) -> None:
        """Weights and limits; a queue that is in the file no more is as one that was never configured."""
        old = self._service["queues"]
        plain = {"weight": 1, "max_running": None, "rate": None, "burst": 1}
        for name in {**old, **new["queues"]}:
            options = new["queues"].get(name, plain)
            if options != old.get(name):
                self._daemon.scheduler.configure_queue(name, **options, now=now)
