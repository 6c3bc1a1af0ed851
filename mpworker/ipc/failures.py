"""What a process tells of an exception that it cannot hand on as such: a line, and the traceback as text.

An exception's own code may raise anything, and none of that leaves this file.
"""

from types import TracebackType

from mpworker.ipc import codec, tracebacks

_PACKAGE = __name__.partition(".")[0]


def brief(error: BaseException) -> str:
    """The type of an exception and its message, on one line."""
    name = type(error).__name__
    try:
        message = " ".join(str(error).split())
    except BaseException:  # noqa: BLE001
        message = ""
    return cut(f"{name}: {message}" if message else name)


def said(value: object) -> str:
    """What a value says as text; that it says nothing, if so."""
    try:
        return "".join(("", str(value)))  # which may be of a class of its own
    except BaseException as broken:  # noqa: BLE001
        return f"<its __str__ raised {type(broken).__name__}>"


def outer_frames_cut(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of this package that it begins with."""
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] == _PACKAGE:
        trace = trace.tb_next
    return trace


def full(error: BaseException) -> str:
    """The traceback of an exception, which loses the frames of this package that it begins with."""
    trace = outer_frames_cut(error.__traceback__)
    try:
        return tracebacks.of_exception(BaseException.with_traceback(error, trace))
    except BaseException as broken:  # noqa: BLE001
        return f"{type(error).__qualname__} (its traceback cannot be printed: {type(broken).__qualname__})\n"


def cut(text: str, most: int = codec.REPORT_TEXT_MAX) -> str:
    """A text without its middle, where it is longer than a report may be."""
    half = most // 2
    if len(text) <= 2 * half:
        return text
    return f"{text[:half]}\n... {len(text) - 2 * half} characters ...\n{text[-half:]}"
