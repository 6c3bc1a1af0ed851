"""Every point of the client's code at which a signal handler can run, one after the other.

Python looks for signals after a call of C code, at the start of a Python function and at a turn of a loop (ceval's eval
breaker). A trace function sees each instruction, and runs the handler at the one after such a point.
"""

import dis
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

CHECKS = frozenset(
    (
        *("CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD"),
        *(f"POP_JUMP_BACKWARD_IF_{what}" for what in ("TRUE", "FALSE", "NONE", "NOT_NONE")),  # 3.11
    )
)

CLIENT = "/mpworker/"
LIBRARY = "/concurrent/futures/_base.py"
EVERYTHING = (CLIENT, LIBRARY, "/threading.py")


@functools.cache
def handlers(code: Any) -> list[tuple[int, int, int]]:
    return [(entry.start, entry.end, entry.target) for entry in dis._parse_exception_table(code)]  # type: ignore[attr-defined]


def handler(code: Any, offset: int) -> int:
    """Where an exception of the instruction goes, -1 for the caller."""
    return next((target for start, end, target in handlers(code) if start <= offset < end), -1)


def interrupt() -> None:
    raise KeyboardInterrupt


class AtPoint:
    """Calls `handle` at the n-th point of the client's code at which Python would call a signal handler.

    A trace function can only raise at the instruction after the point, so one is left out if that instruction is not in
    the same `try`.

    Args:
        at: Which point, from 0.
        handle: What is called there.
        parts: A file is looked at if its path has one of these in it.
    """

    def __init__(self, at: int, handle: Callable[[], object], parts: Sequence[str] = EVERYTHING) -> None:
        self.left = at
        self.handle = handle
        self.parts = parts
        self.done = False
        self.where = ""
        self.last: dict[Any, int] = {}  # frame: offset of what it has executed just now

    def trace(self, frame: Any, event: str, _: object) -> Any:
        if event == "call":
            self.last.pop(frame.f_back, None)  # it calls Python code, and no look follows its return
            if not any(part in frame.f_code.co_filename for part in self.parts):
                return None
            frame.f_trace = self.trace  # CPython 3.13 traces instructions only of a frame that has one by then
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            self.last[frame] = frame.f_lasti  # its RESUME, which is executed already
        elif event == "opcode":
            code, at = frame.f_code, frame.f_lasti
            before = self.last.get(frame)
            self.last[frame] = at
            if before is None or self.done or dis.opname[code.co_code[before]] not in CHECKS:
                return self.trace
            if handler(code, before) == handler(code, at):
                self.left -= 1
                if self.left < 0:
                    self.done = True
                    self.where = f"{code.co_qualname}, line {frame.f_lineno}"
                    self.handle()
        else:  # an exception, which comes after the call that raised it and before any look for signals; or a return
            self.last.pop(frame, None)
        return self.trace

    def __enter__(self) -> Self:
        sys._getframe().f_trace_opcodes = True  # CPython 3.12 traces instructions only if asked before settrace
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self.last.clear()


def sweep(
    scenario: Callable[[], object],
    check: Callable[[], object],
    handle: Callable[[], object] = interrupt,
    parts: Sequence[str] = EVERYTHING,
) -> int:
    """Call `handle` at every point of the scenario, one a run; after each the check must hold. How many there were."""
    for at in itertools.count():
        point = AtPoint(at, handle, parts)
        try:
            try:
                with point:
                    scenario()
            except KeyboardInterrupt:
                pass
            check()
        except BaseException as error:
            error.add_note(f"handled at point {at}: {point.where}")
            raise
        if not point.done:
            return at
    raise AssertionError("not reached")
