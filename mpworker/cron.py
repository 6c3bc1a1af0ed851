"""What a recurring task is due by, and what is told of it: the client's side of `mpworker.supervisor.timetable`.

A line is read here by cronsim, and travels as the sets of numbers that it means, with the file of its time zone: a
supervisor has no path to libraries, and needs no database of time zones of its own.
"""

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, Literal

from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.ipc import codec
from mpworker.outcomes import make_error

NAME_MAX: Final = 200
SPEC_MAX: Final = 1_000
EVERY_MIN: Final = 0.01
EVERY_MAX: Final = 366 * 86_400.0
_SHORTHANDS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|[smhd])", re.ASCII)
# A range of one with a step. What it means is that one; cronsim takes it for a step without an end, such as 4/1.
_RANGE_OF_ONE: Final = re.compile(r"\b(\w+)-\1/0*[1-9]\d*\b", re.ASCII)
_FORMS: Final = (
    "5 fields (minute, hour, day of the month, month, day of the week), 6 with seconds first, "
    f"'@every 10s', or one of {', '.join(_SHORTHANDS)}"
)
# Each field by the name that cronsim gives it, in the order of a line with seconds: what it is called here, and what it
# may hold.
_FIELDS: Final = {
    "second": ("second", "0 to 59"),
    "minute": ("minute", "0 to 59"),
    "hour": ("hour", "0 to 23"),
    "day-of-month": ("day of the month", "1 to 31, L (the last one) or LW (the last Monday to Friday)"),
    "month": ("month", "1 to 12 or JAN to DEC"),
    "day-of-week": ("day of the week", "0 to 7 (0 and 7 are Sunday) or SUN to SAT, with #1 to #5, or 5L"),
}

_OUTCOMES: Final = {
    codec.OK: "completed",
    codec.ERROR: "failed",
    codec.UNSERIALIZABLE: "failed",
    codec.EXITED: "failed",
    codec.INTERRUPTED: "cancelled",
    codec.CRASHED: "crashed",
    codec.TIMED_OUT: "timed_out",
    codec.CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class CronTask:
    """A recurring task, as `ProcessWorker.cron_tasks` lists it.

    Attributes:
        name: Its name.
        spec: Its line, as it was given.
        tz: The name of the time zone.
        overlap: "skip" or "queue".
        misfire: "skip", "once" or "all".
        next_at: When it is due next, in its time zone; None while it is paused, and if it never is again.
        paused: Is it?
        running: Is a run unfinished?
        waiting: Runs that wait until that one has ended.
        runs: How many have begun.
        skipped: Times that were left out because a run was unfinished.
        missed: Times that had no run of their own because the machine was away.
    """

    name: str
    spec: str
    tz: str
    overlap: Literal["skip", "queue"]
    misfire: Literal["skip", "once", "all"]
    next_at: datetime | None
    paused: bool
    running: bool
    waiting: int
    runs: int
    skipped: int
    missed: int


@dataclass(frozen=True, slots=True)
class CronRun:
    """One run of a recurring task; its times are in the time zone of the task.

    Attributes:
        scheduled_at: When it was due; for one that makes up for several missed times, the first of them.
        started_at: When it was handed to the pool, where it may have had to wait for a child.
        ended_at: When it had its outcome, after all its attempts; None until then.
        task_id: The id that `mpworker.current()` told it.
        outcome: "running" until it has one, then "completed", "failed", "timed_out", "crashed" or "cancelled".
        error: The exception that a future would raise; None if there is none, and for an old run whose report was too
            large to be kept.
    """

    scheduled_at: datetime
    started_at: datetime
    ended_at: datetime | None
    task_id: str
    outcome: Literal["running", "completed", "failed", "timed_out", "crashed", "cancelled"]
    error: BaseException | None


# ------------------------------------------------------------ what it is due by


def read_spec(spec: object) -> dict[str, Any]:
    """What a line means, as the supervisor is told it: {"every"}, or the arguments of its `Calendar` but for the zone.

    Raises:
        InvalidArgument: It is no text.
        ConfigurationError: It is no line, or is never due.
    """
    if not isinstance(spec, str):
        raise InvalidArgument(f"a cron spec is a str: {_FORMS}; not {spec!r}")
    if len(spec) > SPEC_MAX:
        raise ConfigurationError(f"a cron spec has at most {SPEC_MAX} characters, not {len(spec)}")
    words = spec.split()
    if words and words[0].lower() == "@every":
        return {"every": _read_duration(spec, "".join(words[1:]))}
    line = spec
    if words and words[0].startswith("@"):
        line = _SHORTHANDS.get(spec.strip().lower(), "")
        if not line:
            raise ConfigurationError(f"cron spec {spec!r} is unknown: give {_FORMS}")
    return _read_line(spec, line)


def _read_duration(spec: str, text: str) -> float:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigurationError(
            f"cron spec {spec!r} needs a duration after @every, such as 500ms, 10s, 1m30s, 2h or 1d, not {text!r}"
        )
    seconds: float = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not EVERY_MIN <= seconds <= EVERY_MAX:
        bound = f"at least {EVERY_MIN} s" if seconds < EVERY_MIN else f"at most {EVERY_MAX:.0f} s"
        raise ConfigurationError(f"the duration of cron spec {spec!r} must be {bound}, not {seconds:g} s")
    return seconds


def _read_line(spec: str, line: str) -> dict[str, Any]:
    from cronsim import CronSim, CronSimError

    from mpworker.supervisor.schedule import EACH, LAST, LAST_WORKDAY, Calendar

    fields = line.split()
    if len(fields) not in (5, 6):
        raise ConfigurationError(f"cron spec {spec!r} has {len(fields)} fields: give {_FORMS}")
    start = datetime(2000, 1, 1)  # it makes no difference
    try:
        read = CronSim(_RANGE_OF_ONE.sub(r"\1", line), start)
    except CronSimError as error:
        name = str(error).removeprefix("Bad ")
        field = fields[list(_FIELDS).index(name) + len(fields) - 6]
        if name == "day-of-month" and _is_day(field):
            raise _never(spec) from None
        raise ConfigurationError(
            f"the {_FIELDS[name][0]} of cron spec {spec!r} must be {_FIELDS[name][1]}, "
            f"or a list, range or step of these, not {field!r}"
        ) from None
    numbers = {CronSim.LAST: LAST, CronSim.LAST_WEEKDAY: LAST_WORKDAY}
    weekdays = {each if isinstance(each, tuple) else (each, EACH) for each in read.weekdays}
    minute, hour = fields[-5:-3]
    message: dict[str, Any] = {
        "seconds": sorted(read.seconds),
        "minutes": sorted(read.minutes),
        "hours": sorted(read.hours),
        "days": sorted(numbers.get(day, day) for day in read.days),
        "months": sorted(read.months),
        "weekdays": sorted({(day % 7, numbers.get(number, number)) for day, number in weekdays}),
        "both": read.day_and,
        "fixed": not (minute.startswith("*") or hour.startswith("*")),
    }
    if Calendar(**message, zone=UTC).next_after(start.replace(tzinfo=UTC).timestamp()) is None:
        raise _never(spec)
    return message


def _never(spec: str) -> ConfigurationError:
    return ConfigurationError(
        f"cron spec {spec!r} is never due: no day matches its day of the month, month and weekday"
    )


def _is_day(field: str) -> bool:
    """Is this a day of the month, which only the months do not have?"""
    from cronsim import CronSim, CronSimError

    try:
        CronSim(f"* * {field} * *", datetime(2000, 1, 1))
    except CronSimError:
        return False
    return True


def read_zone(tz: object) -> dict[str, Any]:
    """A time zone, as the supervisor is told it: {"tz", "tzif"}, its name and its file, which is empty for UTC.

    Raises:
        InvalidArgument: It is none that has a name.
        ConfigurationError: There is none of this name.
    """
    from zoneinfo import ZoneInfo

    name = "UTC" if tz is UTC else tz.key if isinstance(tz, ZoneInfo) else tz
    if not isinstance(name, str):
        raise InvalidArgument(f"tz must be the name of a time zone, such as 'Europe/Berlin', or a ZoneInfo, not {tz!r}")
    return {"tz": name, "tzif": "" if name == "UTC" else base64.b64encode(_zone_file(name)).decode()}


def _zone_file(name: str) -> bytes:
    from importlib import resources
    from pathlib import Path
    from zoneinfo import TZPATH, ZoneInfo

    try:
        ZoneInfo(name)  # which looks at the name, too: it must not lead out of the database
        for folder in TZPATH:
            file = Path(folder, name)
            if file.is_file():
                return file.read_bytes()
        package, _, last = f"tzdata.zoneinfo/{name}".replace("/", ".").rpartition(".")
        return resources.files(package).joinpath(last).read_bytes()
    except (LookupError, ValueError, OSError, ImportError):
        raise ConfigurationError(
            f"tz {name!r} is not in this machine's database of time zones; "
            "if that lacks even 'Europe/Berlin', the package tzdata has one"
        ) from None


# ------------------------------------------------------------ what is told of it


def tasks_from(report: dict[str, Any]) -> list[CronTask]:
    """The supervisor's list."""
    zones: dict[str, tzinfo] = {}
    return [
        CronTask(**each | {"next_at": _moment(each["next_at"], _zone(each["tz"], zones))}) for each in report["tasks"]
    ]


def runs_from(name: str, prefix: str, report: dict[str, Any]) -> list[CronRun]:
    """The history that the supervisor tells."""
    zone = _zone(report["tz"], {})
    return [_run_from(name, prefix, zone, *each) for each in report["runs"]]


def _run_from(
    name: str,
    prefix: str,
    zone: tzinfo,
    key: int,
    times: list[float],
    ended_at: float | None,
    status: int | None,
    data: str | None,
) -> CronRun:
    task_id = f"{prefix}{key}"
    error: BaseException | None = None
    if status not in (None, codec.OK) and data is not None:
        error = make_error(status, base64.b64decode(data), f'task {task_id} (cron "{name}")')
    scheduled_at, started_at = (datetime.fromtimestamp(each, zone) for each in times[:2])
    outcome: Any = "running" if status is None else _OUTCOMES[status]
    return CronRun(scheduled_at, started_at, _moment(ended_at, zone), task_id, outcome, error)


def _moment(at: float | None, zone: tzinfo) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, zone)


def _zone(name: str, zones: dict[str, tzinfo]) -> tzinfo:
    if name not in zones:
        from zoneinfo import ZoneInfo

        zones[name] = UTC if name == "UTC" else ZoneInfo(name)
    return zones[name]
