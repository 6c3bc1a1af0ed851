"""Which option was probably meant, and what of a call is at fault: loaded when there is something to complain of."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import FunctionType
from typing import Any, Final

from mpworker.ipc import payload

# What other pools call it: concurrent.futures, multiprocessing, joblib and loky, pathos, dask.
_NAMES_ELSEWHERE: Final = {
    **dict.fromkeys(
        ("max_workers", "processes", "n_jobs", "nodes", "num_workers", "n_workers", "workers", "ncpus"), "n"
    ),
    **dict.fromkeys(("max_retries", "retry", "attempts"), "retries"),
    **dict.fromkeys(("imports", "preload_modules", "set_forkserver_preload"), "preload"),
    "maxtasksperchild": "max_tasks_per_child",
}
_FORKED: Final = "there is one way to start children, a fork of a process without threads"
_OF_MAP: Final = "it is an argument of map()"
_OF_TASK: Final = "it belongs to a Task: write register_task(Task(f, (x,), {}=...))"
_SAID_BY_TASK: Final = ("id", "name", "deadline", "run_at", "idempotency_key", "fingerprint", "metadata")
_NOT_HERE: Final = {
    **dict.fromkeys(("mp_context", "context", "start_method", "backend"), _FORKED),
    **dict.fromkeys(("chunksize", "buffersize", "return_exceptions", "progress"), _OF_MAP),
    **{name: _OF_TASK.format(name) for name in _SAID_BY_TASK},
}


def unknown_option(name: str, call: str, takes: Sequence[str], others: Sequence[str] = ()) -> str:
    """The message for an option that a call does not take.

    Args:
        name: The option.
        call: What it was given to.
        takes: The options that this takes.
        others: Those that `ProcessWorker` takes and this does not.
    """
    rest = f"{call} takes {', '.join(takes)}"
    if name in others:
        return f"option {name!r} concerns the whole worker: give it to ProcessWorker; {rest}"
    if name in _NOT_HERE:
        return f"unknown option {name!r}: {_NOT_HERE[name]}; {rest}"
    near = get_close_matches(name, (*takes, *others), n=1)
    meant = _NAMES_ELSEWHERE.get(name) or (near[0] if near else "")
    if not meant:
        return f"unknown option {name!r}; {rest}"
    of = " of ProcessWorker" if meant in others else ""
    return f"unknown option {name!r}: did you mean {meant!r}{of}? {rest}"


def culprit(function: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None) -> str:
    """Which part of a call cannot be pickled, as the end of a message; "" if none alone is at fault.

    Args:
        function: What is called.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    for name, value in [*enumerate(args), *(kwargs or {}).items()]:
        if not _can_be_pickled(value):
            which = f"the argument {name!r}" if isinstance(name, str) else f"argument {name}"
            return f"; it is {which}"
    found = _captured_culprit(function, set())
    return f"; it is {found}: make it in the initializer or in the task" if found else ""


def _captured_culprit(function: object, seen: set[int]) -> str:
    """What a function by value brings along and cannot be pickled: a name, and who uses it."""
    inner = payload.innermost(function)
    if not isinstance(inner, FunctionType) or id(inner) in seen:
        return ""
    seen.add(id(inner))
    for what, name, value in _captured(inner):
        if not _can_be_pickled(value):
            return _captured_culprit(value, seen) or f"the {what} {name!r} that {inner.__qualname__!r} uses"
    return ""


def _captured(function: FunctionType) -> Iterator[tuple[str, str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield "variable", name, cell.cell_contents
        except ValueError:
            pass  # it has none yet
    for name in payload.names_of_globals(function):
        if name in function.__globals__:
            yield "global", name, function.__globals__[name]


def _can_be_pickled(value: Any) -> bool:
    try:
        payload.dumps_sharing(value)
    except payload.Unserializable:
        return False
    return True
