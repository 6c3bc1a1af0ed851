"""What a supervisor that runs as a service is to be: one TOML file, over it `MPWORKER_*` variables, over these flags.

Each setting stands once, in `SETTINGS`: its name, how it is read and checked, what it is without anybody's word, and
what it means. All is checked before anything starts; an error names the setting, the value, the bound, and where the
value came from.
"""

from __future__ import annotations

import importlib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from mpworker.cgroups import available_cores
from mpworker.checks import check_int, check_seconds
from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.ipc import levels
from mpworker.options import MEMORY_LIMIT_MIN, N_MAX
from mpworker.queues import QueueOptions, check_burst, check_queue_name, check_rate
from mpworker.service import paths

PREFIX: Final = "MPWORKER_"
_LEVELS: Final = {name.lower(): number for number, name in levels.NAMES.items()}
CLIENTS_MAX: Final = 4096


class BadSetting(ConfigurationError):
    """A setting is wrong; the message says which one, what it is, what it may be, and where it came from."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        name: Its name in the file; a dot stands for a table.
        check: Returns a value as it is meant, or raises ConfigurationError; it is called with the name and the value.
        default: Makes what it is if nobody says so.
        what: What it means.
        live: Is it in force as soon as the configuration is read again? Else from the next start on.
    """

    name: str
    check: Callable[[str, Any], Any]
    default: Callable[[], Any]
    what: str
    live: bool = False

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.name.replace(".", "_").upper()


@dataclass(frozen=True, slots=True)
class Effective:
    """All settings.

    Attributes:
        values: By name.
        origins: Where each came from: a file, a variable, a flag, or "default".
        queues: The queues, by name.
    """

    values: dict[str, Any]
    origins: dict[str, str]
    queues: dict[str, QueueOptions] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


# ------------------------------------------------------------ how values are checked


def _int(low: int, high: int, optional: bool = False) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        return None if optional and value is None else check_int(name, value, low, high)

    return check


def _seconds(optional: bool = False) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        return check_seconds(name, value, optional=True) if optional else check_seconds(name, value)

    return check


def _one_of(*words: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value not in words:
            raise ConfigurationError(f"{name} must be {' or '.join(map(repr, words))}, not {value!r}")
        return value

    return check


def _list_of(item: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, list):
            raise InvalidArgument(f"{name} must be a list, not {value!r}")
        return [item(f"an item of {name}", each) for each in value]

    return check


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{name} must be a text that is not empty, not {value!r}")
    return value


def _mode(name: str, value: Any) -> int:
    """Who may connect, as `chmod` has it: "0660", or in TOML 0o660."""
    if isinstance(value, str):
        try:
            value = int(value, 8)
        except ValueError:
            raise ConfigurationError(f'{name} must be octal, such as "0600", not {value!r}') from None
    return check_int(name, value, 0, 0o777)


def _memory(name: str, value: Any) -> int | None:
    return None if value is None else check_int(name, value, MEMORY_LIMIT_MIN, 1 << 50)


def _rate(_name: str, value: Any) -> Any:
    return check_rate(value)


def _burst(_name: str, value: Any) -> Any:
    return check_burst(value)


def _id_of(database: str, entry: str, field_: str) -> Callable[[str, Any], int]:
    """A user or group: its number, or its name in the system's database."""

    def check(name: str, value: Any) -> int:
        if not isinstance(value, str):
            return check_int(name, value, 0, (1 << 32) - 2)
        try:
            found = getattr(importlib.import_module(database), entry)(value)
        except KeyError:
            raise ConfigurationError(f"{name} must be one that this system knows, not {value!r}") from None
        return int(getattr(found, field_))

    return check


_UID: Final = _id_of("pwd", "getpwnam", "pw_uid")
_GID: Final = _id_of("grp", "getgrnam", "gr_gid")


def _ours() -> list[int]:
    return [os.getuid()]


SETTINGS: Final = (
    Setting("socket", _text, paths.to_listen_at, "Where it listens. A socket that is passed on (systemd) goes first."),
    Setting("n", _int(1, N_MAX), lambda: min(available_cores(), N_MAX), "Children.", live=True),
    Setting("n_max", _int(1, N_MAX), lambda: N_MAX // 4,
            "The most children that `scale` and SIGTTIN lead to.", live=True),
    Setting("log_level", _one_of(*_LEVELS), lambda: "info", "The least level of what is logged.", live=True),
    Setting("stop_timeout", _seconds(optional=True), lambda: 60.0,
            "Seconds that SIGTERM lets tasks have until the rest is cancelled; none waits for all.", live=True),
    Setting("unknown_queues", _one_of("create", "refuse"), lambda: "refuse",
            "What a queue is that is not configured here: made with weight 1, or an error.", live=True),
    Setting("rate", _rate, lambda: None, "Starts per second of all queues together; none for no limit.", live=True),
    Setting("burst", _burst, lambda: None, "How many may start at once when none has for long; none for n.", live=True),
    Setting("clients.socket_mode", _mode, lambda: 0o600, "Who may connect to the socket, as for chmod."),
    Setting("clients.uids", _list_of(_UID), _ours, "Users that may attach; their code runs as this user.", live=True),
    Setting("clients.gids", _list_of(_GID), list, "Groups that may attach.", live=True),
    Setting("clients.steering_uids", _list_of(_UID), _ours,
            "Users that may do what concerns all: queues, limits, the number of children.", live=True),
    Setting("clients.max", _int(1, CLIENTS_MAX), lambda: 256, "How many are attached at once.", live=True),
    Setting("clients.max_pending", _int(1, 1 << 40), lambda: 1_000_000, "Unfinished tasks of each of them.", live=True),
    Setting("clients.priority_min", _int(-(1 << 31), 1 << 31, optional=True), lambda: 0,
            "The most urgent priority that one may ask for; none for any.", live=True),
    Setting("clients.ring_bytes", _int(1 << 12, 1 << 30), lambda: 1 << 20, "Each of the two rings of a client."),
    Setting("children.preload", _list_of(_text), list, "Modules that are imported once, before the first fork."),
    Setting("children.path", _list_of(_text), list, "Folders in front of the path on which they import."),
    Setting("children.grace", _seconds(), lambda: 5.0, "Seconds from an interrupt to the kill.", live=True),
    Setting("children.lease_ttl", _seconds(), lambda: 10.0, "Seconds without a heartbeat until one counts as frozen."),
    Setting("children.start_timeout", _seconds(), lambda: 60.0,
            "Seconds that one may take until it is ready.", live=True),
    Setting("children.kill_timeout", _seconds(), lambda: 10.0,
            "Seconds after SIGKILL until it counts as unkillable.", live=True),
    Setting("children.max_tasks", _int(1, 1 << 40, optional=True), lambda: None, "Tasks after which one is replaced."),
    Setting("children.memory_limit", _memory, lambda: None, "Bytes with which one is replaced after a task."),
    Setting("children.memory_limit_hard", _memory, lambda: None, "Bytes with which one is killed."),
    Setting("children.nice", _int(0, 19), lambda: 0, "Their niceness."),
    Setting("children.blas_threads", _int(1, 4096, optional=True), lambda: None,
            "Threads of BLAS in each; none for the cores divided by n."),
    Setting("children.max_payload_bytes", _int(1 << 12, 1 << 40), lambda: 1 << 32, "The largest call or result."),
    Setting("children.ring_bytes", _int(1 << 12, 1 << 30), lambda: 1 << 18, "Each of the two rings of a child."),
    Setting("children.slots", _int(1, 256), lambda: 126, "Tasks that one can be offered at once."),
)  # fmt: skip
_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_TABLES: Final = {name.partition(".")[0] for name in _BY_NAME if "." in name}
_QUEUE_KEYS: Final = tuple(QueueOptions.__dataclass_fields__)


# ------------------------------------------------------------ where values come from


def read(path: str | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Effective:
    """All settings.

    Args:
        path: The file; None for none.
        environment: The environment variables.
        flags: What the command line says, by name; None for nothing.

    Raises:
        BadSetting: One is wrong.
    """
    found: dict[str, tuple[Any, str]] = {}
    queues: dict[str, QueueOptions] = {}
    if path is not None:
        told, queues = _from_file(path)
        found |= {name: (value, path) for name, value in told.items()}
    for name, setting in _BY_NAME.items():
        text = environment.get(setting.variable)
        if text is not None:
            found[name] = (_from_text(text), setting.variable)
    for name, value in flags.items():
        if value is not None:
            found[name] = (value, f"--{name.rpartition('.')[2].replace('_', '-')}")
    values, origins = {}, {}
    for name, setting in _BY_NAME.items():
        value, origin = found.get(name, (None, "default"))
        if name not in found:
            value = setting.default()
        values[name] = _checked(setting.check, name, value, origin)
        origins[name] = origin
    _check_together(values, origins)
    return Effective(values, origins, queues)


def _checked(check: Callable[[str, Any], Any], name: str, value: Any, origin: str) -> Any:
    try:
        return check(name, value)
    except ConfigurationError as error:
        raise BadSetting(f"{origin}: {error}") from None


def _check_together(values: dict[str, Any], origins: dict[str, str]) -> None:
    """What is wrong only beside another one."""
    if values["n"] > values["n_max"]:
        if origins["n_max"] != "default":
            raise BadSetting(f"{origins['n']}: n must be at most n_max={values['n_max']}, not {values['n']}")
        values["n_max"] = values["n"]
    if values["burst"] is not None and values["rate"] is None:
        raise BadSetting(f"{origins['burst']}: burst={values['burst']} is for a rate, which is not given")
    for name in ("clients.ring_bytes", "children.ring_bytes"):
        if values[name] & (values[name] - 1):
            raise BadSetting(f"{origins[name]}: {name} must be a power of two, not {values[name]}")
    soft, hard = values["children.memory_limit"], values["children.memory_limit_hard"]
    if soft is not None and hard is not None and hard < soft:
        origin = origins["children.memory_limit_hard"]
        raise BadSetting(
            f"{origin}: children.memory_limit_hard must be at least children.memory_limit={soft}, not {hard}"
        )
    others = [uid for uid in values["clients.uids"] if uid]
    if os.getuid() == 0 and (others or values["clients.gids"]):
        raise BadSetting(
            f"{origins['clients.uids']}: a supervisor that runs as root takes no clients of other users, whose code "
            f"would run as root: not {others or values['clients.gids']}"
        )


def _from_text(text: str) -> Any:
    """A value of an environment variable: as in TOML where it is that, with "none" for none, else a text."""
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _from_file(path: str) -> tuple[dict[str, Any], dict[str, QueueOptions]]:
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise BadSetting(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"{path}: it is no TOML: {error}") from error
    told: dict[str, Any] = {}
    queues: dict[str, QueueOptions] = {}
    for name, value in document.items():
        if name == "queues":
            queues = _queues(path, value)
        elif name in _TABLES:
            if not isinstance(value, dict):
                raise BadSetting(f"{path}: {name} must be a table, not {value!r}")
            told |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            told[name] = value
    for name, value in told.items():
        if name not in _BY_NAME:
            raise BadSetting(f"{path}: there is no setting {name!r}{_meant(name)}")
        if value == "none":
            told[name] = None
    return told, queues


def _meant(name: str) -> str:
    near = get_close_matches(name, [*_BY_NAME, "queues"], n=1)
    return f": did you mean {near[0]!r}?" if near else f"; there are {', '.join(_BY_NAME)} and queues"


def _queues(path: str, tables: Any) -> dict[str, QueueOptions]:
    if not isinstance(tables, dict):
        raise BadSetting(f"{path}: queues must be a table of tables, not {tables!r}")
    found = {}
    for name, table in tables.items():
        _checked(lambda _, value: check_queue_name(value), "queues", name, path)
        options = table if isinstance(table, dict) else {"weight": table}
        for key in options:
            if key not in _QUEUE_KEYS:
                raise BadSetting(f"{path}: there is no setting queues.{name}.{key}; there are {', '.join(_QUEUE_KEYS)}")
        try:
            found[name] = QueueOptions(**options)
        except ConfigurationError as error:
            raise BadSetting(f"{path}: queues.{name}: {error}") from None
    return found


def level_of(name: str) -> int:
    """The number of a log level."""
    return _LEVELS[name]
