"""Tracebacks as text, by the standard library's `traceback`, which is imported when the first one is written.

It brings `re`, `enum` and `tokenize`, which together took a tenth of the time to a first result. Where it cannot be
imported any more (the task has opened all the files that it may, or has left for another root), a text is made without
it: the same frames and the message, without the lines of source and without the exceptions that came before.
"""

from __future__ import annotations

import sys

from mpworker.ipc import ownpath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType, TracebackType

_HEAD = "Traceback (most recent call last):\n"


def of_exception(error: BaseException) -> str:
    """All of an exception, with those that came before.

    Raises:
        BaseException: Whatever its own code raises.
    """
    try:
        form = ownpath.imported("traceback").format_exception
    except (ImportError, OSError, AttributeError, MemoryError):
        return f"{_HEAD}{_bare(_places(error.__traceback__))}{type(error).__qualname__}: {error}\n"
    return "".join(form(error))


def of_trace(trace: TracebackType | None) -> str:
    """The frames of a traceback, from the outermost on."""
    try:
        form = ownpath.imported("traceback").format_tb
    except (ImportError, OSError, AttributeError, MemoryError):
        return _bare(_places(trace))
    return "".join(form(trace))


def of_stack(places: Iterable[tuple[FrameType, int]]) -> str:
    """Frames, from the outermost on, with the lines that they are at.

    It may be called by a signal handler, on top of an import of `traceback` that has come half way: AttributeError.
    """
    try:
        extract = ownpath.imported("traceback").StackSummary.extract
    except (ImportError, OSError, AttributeError, MemoryError):
        return _bare(places)
    return "".join(extract(places).format())


def show(error: BaseException) -> None:
    """Write all of an exception to stderr."""
    sys.stderr.write(of_exception(error))


def _places(trace: TracebackType | None) -> Iterable[tuple[FrameType, int]]:
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _bare(places: Iterable[tuple[FrameType, int]]) -> str:
    return "".join(
        f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}\n' for frame, line in places
    )
