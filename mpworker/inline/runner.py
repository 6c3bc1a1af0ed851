"""What runs a task of `debug=True`: the code of a child, in this thread."""

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Final, cast

from mpworker import context
from mpworker.child.answers import Answers
from mpworker.child.attempt import Attempt
from mpworker.child.calls import Calls, Context
from mpworker.child.chunk import ChunkRunner
from mpworker.child.middleware import Middleware
from mpworker.child.outcomes import Outcomes
from mpworker.child.task import TaskRunner
from mpworker.ipc import codec, payload
from mpworker.ipc._native import Claims
from mpworker.ipc.failures import outer_frames_cut

GENERATION: Final = 1  # of every claim


class _Here(threading.local):
    """What this thread runs.

    Attributes:
        runner: The innermost task, None for none.
        trace: Where the last one raised.
    """

    runner: "Runner | None" = None
    trace: TracebackType | None = None


here = _Here()
_source_below: Callable[[], context.TaskContext | None] | None = None


def _source() -> context.TaskContext | None:
    if here.runner is not None:
        return here.runner.context()
    return _source_below() if _source_below is not None else None


def install_source() -> None:
    """Have `current()` know the tasks that run here; in a child, beside the one that the child runs."""
    global _source_below
    if context._source is not _source:
        _source_below, context._source = context._source, _source


class _Claims:
    """A claim page on which every claim succeeds and nothing is halted."""

    def claim(self, _slot: int, _generation: int) -> int:
        return time.monotonic_ns()

    inside = False

    def run(
        self,
        _slot: int,
        _generation: int,
        call: Callable[..., object],
        items: list[Any],
        values: list[Any],
        first: int,
        stop: int,
        spread: bool,
        _flush_at_ns: int,
    ) -> bool:
        for index in range(first + len(values), stop):
            self.inside = True
            values.append(call(*items[index]) if spread else call(items[index]))
            self.inside = False
        return True

    def peek(self, _slot: int) -> tuple[int, int, int, int, int]:
        return GENERATION, 0, 0, 0, 0


class _Answers(Answers):
    """Keeps what is answered: (status with flags, payload)."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, bytes]] = []

    def push(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        # Not the pause that the task asked for: nobody waits here. Nor that a chunk is over, which has no items.
        if kind == codec.DONE or (kind == codec.ITEMS and a & 0xFFFFFFFF != a >> 32):
            self.kept.append((flags, data))


class _Calls(Calls):
    def __init__(
        self,
        functions: dict[int, Any],
        contexts: dict[int, Context],
        initialized: dict[str, Any],
        middleware: Middleware | None,
    ) -> None:
        super().__init__()
        self.received = functions
        self.contexts = contexts
        self.middleware = middleware
        self.unpickle = partial(payload.loads_here, initialized=initialized)


class _Outcomes(Outcomes):
    def of_failure(self, error: BaseException) -> tuple[int, bytes]:
        bdb = sys.modules.get("bdb")
        if isinstance(error, KeyboardInterrupt) or (bdb is not None and isinstance(error, bdb.BdbQuit)):
            raise error  # the user's, who has had enough of the program and not of the task
        here.trace = outer_frames_cut(error.__traceback__)
        return super().of_failure(error)


class Runner:
    """What a child is to one attempt of a task.

    Args:
        settings: As those of a child.
        functions: Those that are known by their numbers,
        contexts: and what is known of many tasks.
        initialized: What the initializer has set.
        middleware: What is around each call.

    Attributes:
        answers: Its answers: (status with flags, payload).
        context: Makes that of the task.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        functions: dict[int, Any],
        contexts: dict[int, Context],
        initialized: dict[str, Any],
        middleware: Middleware | None,
    ) -> None:
        claims, answers = cast(Claims, _Claims()), _Answers()
        attempt = Attempt(claims, settings["task_prefix"], contexts)
        calls = _Calls(functions, contexts, initialized, middleware)
        outcomes = _Outcomes(answers, attempt, calls, claims, settings["max_payload_bytes"])
        self.answers = answers.kept
        self.context = attempt.context
        self.run_task = TaskRunner(claims, attempt, calls, outcomes, answers).run_task
        self.run_range = ChunkRunner(claims, attempt, calls, outcomes, answers).run_range
