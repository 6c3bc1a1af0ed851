"""What became of a task, as the exception that its caller gets; one table from the outcomes to their makers."""

from __future__ import annotations

import time
from collections.abc import Callable

from mpworker.errors import (
    ConfigurationError,
    RemoteTraceback,
    SerializationError,
    StartFailed,
    SupervisorLost,
    TaskCancelled,
    TaskExited,
    TaskTimeout,
    WorkerCrashed,
)
from mpworker.ipc import codec, json, payload, raised
from mpworker.ipc.failures import brief

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Outcomes that the client decides; the others are codec's.
LOST = 100
BROKEN = 101


# What became of a task, in a word; everything else is "failed".
_WORDS = {
    codec.OK: "completed",
    codec.INTERRUPTED: "cancelled",
    codec.TIMED_OUT: "timed_out",
    codec.CANCELLED: "cancelled",
}
FINAL_STATUSES = ("completed", "failed", "cancelled", "timed_out")


def final_status(status: int) -> str:
    """The word, one of FINAL_STATUSES, for a status of `mpworker.ipc.codec`, or LOST or BROKEN."""
    return _WORDS.get(status, "failed")


def make_error(status: int, data: bytes, subject: str) -> BaseException:
    """The exception for an outcome that is no value.

    Args:
        status: A status of `mpworker.ipc.codec`, or LOST or BROKEN.
        data: Its payload.
        subject: What failed, for the message, such as 'task 4f-3 ("score")'.
    """
    if status == codec.ERROR:
        return _raised(raised.loads_report(data), subject)
    report: dict[str, Any] = json.loads(data) if data else {}
    return _DECIDED[status](report, subject)


def describe_error(status: int, data: bytes) -> str:
    """What an attempt's report says, in a line; no code of the user's takes part."""
    if status == codec.ERROR:
        report = raised.loads_report(data)
        message = " ".join(report.message.split())
        return f"{report.type_name}: {message}" if message else report.type_name
    return " ".join(str(make_error(status, data, "the task")).split())


def _raised(report: raised.Raised, subject: str) -> BaseException:
    why_not = f"sent back: {report.why_not}"
    error: BaseException | None = None
    if report.pickled:
        try:
            error = raised.checked(payload.loads_known(report.pickled))
        except (Exception, SystemExit) as broken:  # noqa: BLE001  # an exception's class may do anything
            why_not = f"unpickled here: {brief(broken)}"
    if error is None:
        message = " ".join(report.message.split())
        what = f"{report.type_name}: {message}" if message else report.type_name
        error = SerializationError(f"{subject} raised {what}; the exception cannot be {why_not}")
        error.raised_type, error.raised_message = report.type_name, report.message
    # Not by the attribute, which a frozen dataclass refuses to set.
    cause = RemoteTraceback(f"{subject}:\n{report.traceback}")
    BaseException.__cause__.__set__(error, cause)  # type: ignore[union-attr]
    return error


_ASYNCHRONOUS = "; give a function that runs it, such as lambda x: asyncio.run(f(x))"
# What to do about a result that cannot be sent back, by its type.
_HINTS = {
    "coroutine": _ASYNCHRONOUS,
    "async_generator": _ASYNCHRONOUS,
    "generator": "; return a list of what it yields",
}


def _unserializable(report: dict[str, Any], subject: str) -> BaseException:
    type_name, message = report["type"], report["message"]
    if report["what"] == "item":
        text = f"{subject} cannot be sent: {message}"
    elif report["what"] == "call":
        text = f"{subject}: the function or its arguments cannot be unpickled in the child: {message}"
    else:
        text = f"{subject}: the result of type {type_name} cannot be sent back: {message}{_HINTS.get(type_name, '')}"
    error = SerializationError(text)
    if report["traceback"]:
        error.__cause__ = RemoteTraceback(report["traceback"])
    return error


def _exited(report: dict[str, Any], subject: str) -> BaseException:
    error = TaskExited(f"{subject} raised {report['type']}({report['code']})", report["code"])
    error.__cause__ = RemoteTraceback(report["traceback"])
    return error


_CAUSES = {
    "oom": "it was killed because memory ran out",
    "memory": "it had more memory than memory_limit_hard and was killed",
    "lease": "it gave no heartbeat within lease_ttl and was killed",
    "grace": "it was interrupted, did not end within grace and was killed",
    "corrupt": "it wrote nonsense into the memory it shares with the supervisor and was killed",
    "nursery": "the process that forks the children died",
    "lost": "the item had ended, but its result was lost with the child: crash_retries=1 runs it again",
    "unkillable": "it survives SIGKILL",
}


def _crashed(report: dict[str, Any], subject: str) -> BaseException:
    pid, number, code = report["pid"], report["signal"], report["exit_code"]
    if report["cause"] == "supervisor":
        message = (
            f"{subject}: the supervisor died while it ran, or before its outcome could be told {_attempt(report)}: "
            "crash_retries=1 would have had it run once more"
        )
        return WorkerCrashed(message, pid, number, code, report["cause"], report["attempt"])
    if number:
        import signal

        try:
            how = f"died by {signal.Signals(number).name}"
        except ValueError:
            how = f"died by signal {number}"
    else:
        how = f"ended with exit code {code}"
    why = _CAUSES.get(report["cause"])
    detail = f" ({why})" if why else ""
    deaths = report["unclaimed_deaths"]
    who = f"{deaths} children died before they could begin it, the last of which, {pid}," if deaths else f"child {pid}"
    message = f"{subject}: {who} {how}{detail} {_attempt(report)}"
    return WorkerCrashed(message, pid, number, code, report["cause"], report["attempt"])


def _timed_out(report: dict[str, Any], subject: str) -> BaseException:
    stack = ""
    if report["interrupted"]:
        stack = json.loads(report["interrupted"])["stack"]
    elif report["dumped"]:
        from mpworker import stacks

        stack = stacks.of_task(report["dumped"])
    how = "; it did not react to the interrupt and its child was killed" if report["killed"] else ""
    if report["timeout"] is None:
        began = f" {_attempt(report)}" if "attempt" in report else ""
        return TaskTimeout(
            f"{subject} had not ended at its deadline{_wall_time(report['deadline'])}{began}{how}", stack
        )
    return TaskTimeout(f"{subject} ran for over {report['timeout']:g} s {_attempt(report)}{how}", stack)


def _wall_time(at: float) -> str:
    """A moment on the monotonic clock as the part of a sentence; "" if no calendar has it."""
    from datetime import datetime

    try:
        moment = datetime.fromtimestamp(round(time.time() + at - time.monotonic(), 3)).astimezone()
    except (ValueError, OverflowError, OSError):
        return ""
    return f" {moment.isoformat(' ', 'milliseconds')}"


def _attempt(report: dict[str, Any]) -> str:
    return f"on attempt {report['attempt']} of {report['attempts']}"


def start_failed(report: dict[str, Any], subject: str = "") -> StartFailed | ConfigurationError:
    """The error of a pool that cannot start; the subject is a task or item that it takes along."""
    of = f"{subject}: " if subject else ""
    if report["what"] == "python":
        return ConfigurationError(of + report["why"])
    error = StartFailed(f"{of}{report['what']} cannot start: {report['why']}", cause="start")
    if report["traceback"]:
        error.__cause__ = RemoteTraceback(report["traceback"])
    return error


_DECIDED: dict[int, Callable[[dict[str, Any], str], BaseException]] = {
    codec.UNSERIALIZABLE: _unserializable,
    codec.EXITED: _exited,
    codec.INTERRUPTED: lambda _, subject: TaskCancelled(f"{subject} was interrupted"),
    codec.CRASHED: _crashed,
    codec.TIMED_OUT: _timed_out,
    codec.CANCELLED: lambda _, subject: TaskCancelled(f"{subject} was cancelled"),
    LOST: lambda _, subject: SupervisorLost(f"{subject}: the supervisor died before it had ended"),
    BROKEN: start_failed,
}
