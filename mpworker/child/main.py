"""The life of a child, from the fork to its exit.

It pops offers from its ring and, one at a time, claims, runs and answers each. A claim that fails was revoked: the task
runs elsewhere or not at all, and the record is dropped. The child never decides anything: retries, timeouts and
cancellation are the supervisor's.
"""

from __future__ import annotations

import io
import os
import sys

from mpworker import context
from mpworker.child import machine
from mpworker.child.answers import EXIT_CHANNEL_LOST, Answers
from mpworker.child.arenas import Arenas
from mpworker.child.attempt import Attempt
from mpworker.child.calls import Calls
from mpworker.child.chunk import ChunkRunner
from mpworker.child.loop import Loop, flush_streams
from mpworker.child.outcomes import Outcomes
from mpworker.child.shares import Shares
from mpworker.child.task import TaskRunner
from mpworker.ipc import codec, json, ownpath, payload, shares, tracebacks
from mpworker.ipc._native import Claims, MadeBeforeFork, to_main_thread
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import INTERRUPT_SIGNAL, STACK_SIGNAL
from mpworker.ipc.failures import brief, cut, full
from mpworker.ipc.limits import explained
from mpworker.ipc.signals import signal
from mpworker.ipc.stacks import StackFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["EXIT_CHANNEL_LOST", "Child", "run"]


class Child:
    """The parts of one child.

    Args:
        channel: Its channel to the supervisor.
        claims: Its claim page.
        settings: What the supervisor sent.
        arenas: The descriptors of the arenas, if there are any.
    """

    def __init__(self, channel: Channel, claims: Claims, settings: dict[str, Any], arenas: list[int]) -> None:
        self._channel = channel
        self._claims = claims
        self._settings = settings
        max_bytes = settings["max_payload_bytes"]
        self.answers = answers = Answers(channel)
        self.calls = calls = Calls()
        self.attempt = attempt = Attempt(claims, settings["task_prefix"], calls.contexts)
        self._loop = Loop(channel, answers, attempt, calls, max_bytes, settings["spin_ns"])
        self._arenas: Arenas | None = None
        if arenas:
            shares.opener = opener = Shares(arenas[0], settings["task_prefix"], lambda: calls.unpickle, answers.push)
            self._arenas = Arenas(arenas[0], arenas[1], self._loop.ask, answers.push, opener)
        self.outcomes = outcomes = Outcomes(answers, attempt, calls, claims, max_bytes, self._arenas)
        self.tasks = TaskRunner(claims, attempt, calls, outcomes, answers, self._arenas)
        self._chunks = ChunkRunner(claims, attempt, calls, outcomes, answers, self._arenas)

    def serve(self) -> None:
        """Run tasks until the end."""
        self.calls.unpickle = payload.loader_in_child()
        self.tasks.takes_from(self._channel, self._settings["max_payload_bytes"], self._settings["puts_off"])
        taken_away = self._arenas.taken_away if self._arenas is not None else _nothing
        let_go = self._arenas.shares.let_go if self._arenas is not None else _nothing
        self._loop.serve(self.tasks, self._chunks.run_range, taken_away, let_go)

    def initialize(self, initializer: bytes) -> bool:
        """Settle, start the heartbeat, run the user's initializer, and say whether this child is ready."""
        settings = self._settings
        try:
            machine.settle(settings)
        except OSError as error:
            self._refuse(f"a child cannot have the cores or the priority that were asked for: {error}")
            return False
        try:
            self._claims.start_heartbeat(settings["heartbeat_interval"])
        except OSError as error:  # no thread is left
            self._refuse(str(explained(error, "a child cannot start its heartbeat")))
            return False
        if initializer:
            what = "the initializer or its initargs cannot be unpickled in the child:"
            try:
                call, args = payload.loads(initializer)
                what = "the initializer raised"
                payload.call_initializer(call, args)
            except BaseException as error:  # noqa: BLE001
                self._refuse(f"{what} {brief(error)}", cut(full(error)))
                return False
        if settings["middleware"]:
            try:
                layers = payload.loads_in_child(settings["middleware"])
            except BaseException as error:  # noqa: BLE001
                why = f"the execute_middleware cannot be unpickled in the child: {brief(error)}"
                self._refuse(why, cut(full(error)))
                return False
            from mpworker.child.middleware import Middleware  # not before: no start shall wait for it

            self.calls.middleware = Middleware(layers, self.attempt.context, self.outcomes.middleware_failed)
        self.answers.push(codec.READY, 0, 0, 0, 0, b"")
        return True

    def _refuse(self, why: str, traceback: str = "") -> None:
        self.answers.push(codec.REFUSED, 0, 0, 0, 0, json.dumps({"why": why, "traceback": traceback}).encode())


def _reseed() -> None:
    """Seed NumPy anew: children of one image would draw the same numbers. `random` reseeds itself after a fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _settle_streams() -> None:
    # Each line by one write: whole, in order, and not lost with a killed child; also where PYTHONUNBUFFERED is set,
    # with which `print` writes each of its pieces alone, and the lines of two children would mix.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)


def _allow_forks() -> None:
    """CPython 3.12 and later warn when a process with threads forks.

    Ours has one that holds no lock and runs no Python; the warning would come for every task that uses multiprocessing.
    """
    if sys.version_info >= (3, 12):
        os.register_at_fork(before=_ignore_fork_warning)


def _ignore_fork_warning() -> None:
    # Not before a task forks: no start shall wait for what `warnings` needs for a pattern. And at each fork: the first
    # may be inside a `warnings.catch_warnings`, whose end takes the filter away.
    ownpath.imported("re")
    warnings = ownpath.imported("warnings")
    warnings.filterwarnings("ignore", r".*use of fork\(\) may lead to deadlocks", DeprecationWarning)


def _nothing(_: int) -> None:
    """A child without arenas is lent nothing and opens nothing, and so nothing is taken from it."""


def run(
    channel: Channel,
    claims: Claims,
    stack_file: StackFile,
    settings: dict[str, Any],
    initializer: bytes,
    arenas: list[int],
) -> None:
    """Be a child until told to exit; never returns."""
    status = 1
    try:
        child = Child(channel, claims, settings, arenas)
        context._source = child.attempt.context
        context._loading = child.attempt.is_loading
        context._orphaned = child.attempt.leave_orphans
        signal.signal(INTERRUPT_SIGNAL, child.attempt.on_interrupt)
        stack_file.dump_at(STACK_SIGNAL)
        to_main_thread(INTERRUPT_SIGNAL)  # a task may load a library that has threads of its own
        _settle_streams()
        _reseed()
        _allow_forks()
        if child.initialize(initializer):
            child.serve()
            import atexit

            atexit._run_exitfuncs()
        status = 0
    except MadeBeforeFork:
        status = 0  # a task forked and its fork returned from the task too: that process ends here
    except BaseException as error:  # noqa: BLE001
        tracebacks.show(error)
    finally:
        flush_streams()
        os._exit(status)
