"""How a process becomes a supervisor that clients attach to: its configuration, and the exec."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict

from mpworker import programs
from mpworker.cgroups import available_cores
from mpworker.ipc import json
from mpworker.ipc.signals import SERVICE_SIGNALS, signal
from mpworker.launch import blob_of, config_of, descriptors_of, overlap
from mpworker.options import QUEUES_MAX, WorkerOptions
from mpworker.service.config import SETTINGS, level_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from mpworker.service.config import Effective

_FDS_OF_A_CLIENT: Final = 6  # the connection, the process, a description of either bell, and two files of a ledger
_FDS_OF_THE_SERVICE: Final = 96  # who has connected and not said hello, and what is opened now and then
_FIRST_GIVEN: Final = 3  # sd_listen_fds(3)
# What systemd says to the service's process alone.
_NOT_THE_CHILDRENS: Final = frozenset(
    ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
)


def options_of(config: Effective) -> WorkerOptions:
    """The settings that a worker of its own has as options, too."""
    return WorkerOptions(
        n=config["n"],
        grace=config["children.grace"],
        lease_ttl=config["children.lease_ttl"],
        start_timeout=config["children.start_timeout"],
        kill_timeout=config["children.kill_timeout"],
        max_pending=config["clients.max_pending"],
        preload=tuple(config["children.preload"]),
        child_ring_bytes=config["children.ring_bytes"],
        client_ring_bytes=config["clients.ring_bytes"],
        slots=config["children.slots"],
        max_payload_bytes=config["children.max_payload_bytes"],
        arena_max_bytes=0,
        max_tasks_per_child=config["children.max_tasks"],
        memory_limit=config["children.memory_limit"],
        memory_limit_hard=config["children.memory_limit_hard"],
        nice=config["children.nice"],
        blas_threads=config["children.blas_threads"],
    )


def given_socket() -> int | None:
    """The socket that systemd has opened for this process; None if it has not."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return _FIRST_GIVEN


def _settings(config: Effective) -> dict[str, Any]:
    """What every setting is, by its name; of queues, what was said of each."""
    queues = {f"queues.{name}": asdict(each) for name, each in config.queues.items()}
    return {**config.values, **queues}


def told(config: Effective) -> dict[str, Any]:
    """All that the supervisor is told, at its start and when its configuration is read again."""
    options = options_of(config)
    n_max: int = config["n_max"]
    descriptors = (
        descriptors_of(n_max + overlap(options)) + _FDS_OF_A_CLIENT * config["clients.max"] + _FDS_OF_THE_SERVICE
    )
    queues = {
        name: {
            "weight": each.weight,
            "max_running": each.max_running,
            "rate": each.rate,
            "burst": config["n"] if each.burst is None else each.burst,
        }
        for name, each in config.queues.items()
    }
    service = {
        "socket": config["socket"],
        "socket_mode": config["clients.socket_mode"],
        "listen_fd": given_socket(),
        "uids": config["clients.uids"],
        "gids": config["clients.gids"],
        "steering_uids": config["clients.steering_uids"],
        "clients_max": config["clients.max"],
        "client_ring_bytes": config["clients.ring_bytes"],
        "max_pending": config["clients.max_pending"],
        "max_payload_bytes": config["children.max_payload_bytes"],
        "priority_min": config["clients.priority_min"],
        "unknown_queues": config["unknown_queues"],
        "queues": queues,
        "queues_max": QUEUES_MAX,
        "rate": config["rate"],
        "burst": config["n"] if config["burst"] is None else config["burst"],
        "stop_timeout": config["stop_timeout"],
        "n_max": n_max,
        "descriptors_of_n_max": descriptors,
        "settings": _settings(config),
        "live": [setting.name for setting in SETTINGS if setting.live],
    }
    blob: dict[str, Any] = json.loads(blob_of(options, b"", b""))
    blob["path"] = [*config["children.path"], *blob["path"]]
    blob["argv"] = [""]
    blob["environment"] = _environment()
    made = config_of(options, "", level_of(config["log_level"]), descriptors, available_cores(), 0)
    _, nursery = programs.commands(sys.executable)
    return made | {"service": service, "blob": blob, "nursery_argv": nursery, "apart": True}


def _environment() -> dict[str, str]:
    """This process's, but for what is between it and the service manager."""
    return {name: each for name, each in os.environ.items() if name not in _NOT_THE_CHILDRENS}


def become_supervisor(config: Effective, arguments: list[str]) -> NoReturn:
    """Exec the supervisor, in this very process.

    Args:
        config: What it is to be.
        arguments: Of `mpworker config told`, which says the same of the configuration as it is later.

    Raises:
        OSError: There is no memory or descriptor left, or the folder of the socket cannot be made.
    """
    if given_socket() is None:
        os.makedirs(os.path.dirname(config["socket"]) or ".", mode=0o755, exist_ok=True)
    all_of_it = told(config)
    reread = programs.own_command("mpworker.cli", ["config", "told", *arguments])
    all_of_it["service"]["reread"] = {"argv": reread, "environment": _environment()}
    data = json.dumps(all_of_it).encode()
    fd = os.memfd_create("mpworker-service", 0)
    os.write(fd, data)
    os.set_inheritable(fd, True)
    sys.stdout.flush()
    sys.stderr.flush()
    argv = programs.service_command(sys.executable, fd)
    environment = programs.environment() | {name: os.environ[name] for name in _NOT_THE_CHILDRENS if name in os.environ}
    signal.pthread_sigmask(signal.SIG_BLOCK, SERVICE_SIGNALS)
    os.execve(argv[0], argv, environment)
