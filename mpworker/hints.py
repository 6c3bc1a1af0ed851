"""What was probably meant by an option that does not exist: loaded when there is one to complain of."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

# What other pools call it: concurrent.futures, multiprocessing, joblib and loky, pathos, dask.
_NAMES_ELSEWHERE: Final = {
    **dict.fromkeys(
        ("max_workers", "processes", "n_jobs", "nodes", "num_workers", "n_workers", "workers", "ncpus"), "n"
    ),
    **dict.fromkeys(("max_retries", "retry", "attempts"), "retries"),
    **dict.fromkeys(("imports", "preload_modules", "set_forkserver_preload"), "preload"),
}
_FORKED: Final = "there is one way to start children, a fork of a process without threads"
_OF_MAP: Final = "it is an argument of map()"
_NOT_HERE: Final = {
    **dict.fromkeys(("mp_context", "context", "start_method", "backend"), _FORKED),
    **dict.fromkeys(("maxtasksperchild", "max_tasks_per_child"), "a child lives as long as its worker"),
    **dict.fromkeys(("chunksize", "buffersize", "return_exceptions"), _OF_MAP),
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
