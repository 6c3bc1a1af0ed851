"""The life of a child, from the fork to its exit.

It pops offers from its ring and, one at a time, claims, runs and answers each. A claim that fails was revoked: the task
runs elsewhere or not at all, and the record is dropped. The child never decides anything: retries, timeouts and
cancellation are the supervisor's.

Interrupts. To stop a running task the supervisor writes the slot's generation into the slot's `halt` word and sends
INTERRUPT_SIGNAL. The handler raises only while the task of that very generation runs, so a signal that comes too late
hits nobody. `running` is set around the user's function alone: an interrupt cannot land in this file's own work.
"""

import io
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from itertools import takewhile
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from mpworker import context
from mpworker.child import machine
from mpworker.errors import Retry
from mpworker.ipc import codec, details, payload, raised
from mpworker.ipc._native import Claims, MadeBeforeFork
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import INTERRUPT_SIGNAL, STACK_SIGNAL, Record
from mpworker.ipc.failures import brief, cut, full, said
from mpworker.ipc.limits import explained
from mpworker.ipc.ring import Assembler, split
from mpworker.ipc.stacks import StackFile

if TYPE_CHECKING:
    from mpworker.child.middleware import Middleware

_BATCH = 128
_FLUSH_NS = 1_000_000  # a chunk's results wait at most this long for the next item to begin
_FOREVER = -1.0
_UNUSUAL: Final = codec.DETAILED | codec.WATCHED
EXIT_CHANNEL_LOST: Final = 70  # the task closed our descriptors: the answer is in the ring, this process cannot go on


class TaskInterrupted(BaseException):
    """Raised in a task that timed out or was cancelled; no Exception, so that `except Exception` does not eat it."""


class Child:
    """One child's state.

    Args:
        channel: Its channel to the supervisor.
        claims: Its claim page.
        stack_file: Where the stack of a late task goes.
        settings: What the supervisor sent: "max_payload_bytes", "task_prefix".
    """

    def __init__(self, channel: Channel, claims: Claims, stack_file: StackFile, settings: dict[str, Any]) -> None:
        self._channel = channel
        self._claims = claims
        self._stack_file = stack_file
        self._task_prefix: str = settings["task_prefix"]
        self._max_payload_bytes: int = settings["max_payload_bytes"]
        self._assembler = Assembler(self._max_payload_bytes)
        self._functions: dict[int, bytes | MemoryError | Callable[..., Any]] = {}
        self._judges: dict[int, Callable[..., Any]] = {}
        self._middleware: Middleware | None = None
        self._spin_ns: int = settings["spin_ns"]
        # The task that may be interrupted now. A generation is never 0.
        self._running = 0
        self._running_slot = 0
        self._running_task = 0
        self._attempt = 0
        self._early = False  # an interrupt has come while nothing ran
        self._details = b""  # of the task that runs, and its call: read when somebody asks
        self._stack: str | None = None  # of the task that was interrupted, until that is told

    # ------------------------------------------------------------ answers

    def _answer(self, kind: int, flags: int, a: int, b: int, c: int, data: bytes) -> None:
        """Push one record, waiting for room: the supervisor always drains."""
        ring = self._channel.outbound
        if len(data) <= ring.max_payload:
            while not ring.push(kind, flags, a, b, c, data):
                self._wait_for_room(len(data))
        else:
            for part in split((kind, flags, a, b, c, data), ring.max_payload // 2):
                while not ring.push(*part):
                    self._wait_for_room(len(part[5]))
        self._ring_supervisor()

    def _wait_for_room(self, need: int) -> None:
        self._ring_supervisor()
        self._channel.bell.wait(None, self._channel.outbound, need, _FOREVER, -1, 0)

    def _ring_supervisor(self) -> None:
        try:
            self._channel.peer_bell.ring()
        except OSError:
            # The task has closed our descriptors. What was pushed is in shared memory: the supervisor reads the ring to
            # its end when it sees this process die.
            os._exit(EXIT_CHANNEL_LOST)

    # ------------------------------------------------------------ interrupts

    def on_interrupt(self, _signal: int, frame: FrameType | None) -> None:
        """The handler of INTERRUPT_SIGNAL."""
        self._stack_file.rewind()
        generation = self._running
        if generation and self._claims.peek(self._running_slot)[4] == generation:
            self._running = 0  # once: not again while the exception unwinds
            self._stack = _stack_of_task(frame)
            raise TaskInterrupted
        self._early = not generation

    def context(self) -> context.TaskContext | None:
        """The context of the task that runs now."""
        if not self._attempt:
            return None
        task_id = f"{self._task_prefix}{self._running_task & codec.TASK_MASK}"
        if not self._details:
            return context.TaskContext(task_id, self._attempt)
        said = details.read(self._details)
        return context.TaskContext(
            said.get("id", task_id), self._attempt, said.get("deadline"), said.get("metadata", {})
        )

    def _detailed(self, flags: int, started_ns: int, data: bytes | MemoryError) -> tuple[bytes | MemoryError, bool]:
        """The call of a task that may have details; and was it claimed after its deadline?"""
        if not flags & codec.DETAILED:
            return data, False
        data = self._take_details(data)
        deadline = details.read(self._details).get("deadline")
        return data, deadline is not None and started_ns / 1e9 >= deadline

    def _take_details(self, data: bytes | MemoryError) -> bytes | MemoryError:
        """Keep what a task says beyond its call, for who asks; the call."""
        if isinstance(data, MemoryError):
            return data
        self._details = data
        return details.after(data)

    # ------------------------------------------------------------ outcomes

    def _dumps(self, value: object, dumps: Callable[[Any], bytes] = payload.dumps) -> bytes:
        data = dumps(value)
        if len(data) > self._max_payload_bytes:
            bound = f"a pickle of {len(data)} bytes exceeds max_payload_bytes={self._max_payload_bytes}"
            raise payload.Unserializable(value, ValueError(bound))
        return data

    def _failure(self, error: BaseException) -> tuple[int, bytes]:
        """The status and payload that tell of what a task raised."""
        if self._stack is not None:  # whatever it made of the interrupt
            return self._interrupted()
        try:
            status, out = self._told(error)
            if isinstance(error, Retry):
                self._ask_for_pause(error)
            elif self._gives_up(error):
                status |= codec.FINAL
            return status, out
        except BaseException as broken:  # noqa: BLE001  # a metaclass can do that
            why_not = f"what it is cannot be told: {type(broken).__name__}"
            return codec.ERROR, raised.dumps_report(raised.Raised("an exception", "", "", b"", why_not))

    def _ask_for_pause(self, error: Retry) -> None:
        if error.after is not None:
            generation = self._claims.peek(self._running_slot)[0]
            self._answer(codec.AFTER, 0, int(error.after * 1e6), generation, self._running_slot, b"")

    def _gives_up(self, error: BaseException) -> bool:
        """Does the retry policy want no further attempt after this exception?"""
        judge = self._running_task >> codec.JUDGE_SHIFT
        if not judge:
            return False
        try:
            return bool(self._judge(judge)(error))
        except Exception:  # noqa: BLE001  # a class that cannot be imported here was not raised here either
            return False

    def _told(self, error: BaseException) -> tuple[int, bytes]:
        text = cut(full(error))
        if isinstance(error, SystemExit | KeyboardInterrupt):
            code = said(error.code) if isinstance(error, SystemExit) else ""
            exited = {"type": type(error).__name__, "code": cut(code), "traceback": text}
            return codec.EXITED, json.dumps(exited).encode()
        type_name, message = payload.name_of_type(error), cut(said(error), codec.MESSAGE_TEXT_MAX)
        why_not = ""
        try:
            data = self._dumps(BaseException.with_traceback(error, None), raised.dumps)
            # Some cannot be made again, or end the process that tries: that shall not be the client.
            raised.checked(payload.loads_known(data))
        except BaseException as cause:  # noqa: BLE001  # their code may raise anything, and this child lives on
            why_not, data = _reason(cause), b""
        return codec.ERROR, raised.dumps_report(raised.Raised(type_name, message, text, data, why_not))

    def _interrupted(self) -> tuple[int, bytes]:
        stack, self._stack = self._stack, None
        return codec.INTERRUPTED, json.dumps({"stack": stack}).encode()

    def _outcome(self, value: Any, dumps: Callable[[Any], bytes] = payload.dumps) -> tuple[int, bytes]:
        try:
            return codec.OK, self._dumps(value, dumps)
        except payload.Unserializable as error:
            return _unserializable("result", error.type_name, error, "")
        except BaseException as error:  # noqa: BLE001  # KeyboardInterrupt and the like, from a __reduce__
            return _unserializable("result", payload.name_of_type(value), error, "")

    def _function(self, function: int) -> Callable[..., Any]:
        found = self._functions[function]
        if isinstance(found, bytes | MemoryError):
            call = self._loads(found)
            if self._middleware is not None:  # once for each function: where there is none, no task is asked
                call = self._middleware.around(call)
            found = self._functions[function] = call
        return found

    def _loaded(self, data: bytes | MemoryError) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """A call whose function comes along."""
        call, args, kwargs = self._loads(data)
        return call if self._middleware is None else self._middleware.around(call), args, kwargs

    def _judge(self, function: int) -> Callable[..., Any]:
        """A function that is no task's."""
        judge = self._judges.get(function)
        if judge is None:
            found = self._functions[function]
            judge = self._judges[function] = self._loads(found) if isinstance(found, bytes | MemoryError) else found
        return judge

    def _middleware_failed(self, name: str, trace: str) -> None:
        """Tell of a middleware that raised. No interrupt comes in between: a part of a record would be left."""
        generation, self._running = self._running, 0
        said = json.dumps({"middleware": name, "traceback": trace}).encode()
        self._answer(codec.NOTE, 0, 0, generation, self._running_slot, said)
        self._running = generation
        if generation and self._early:
            self.on_interrupt(0, sys._getframe())

    def _loads(self, data: bytes | MemoryError) -> Any:
        """Unpickle what came, or raise why it did not."""
        if isinstance(data, MemoryError):
            raise data
        return payload.loads_in_child(data)

    def is_loading(self) -> bool:
        """Is a task claimed whose call has not begun, or is over?"""
        return bool(self._attempt) and not self._running

    # ------------------------------------------------------------ tasks

    def _run_task(self, flags: int, task: int, generation: int, c: int, data: bytes | MemoryError) -> None:
        slot = c & 0xFF
        started = self._claims.claim(slot, generation)
        if not started:
            return
        self._attempt = flags & codec.LOW
        self._running_task = task
        self._details = b""
        late = False
        try:
            if flags & _UNUSUAL:
                if flags & codec.WATCHED:
                    self._answer(codec.BEGUN, 0, started, generation, slot, b"")
                data, late = self._detailed(flags, started, data)
            function = c >> 8
            if function:
                call = self._function(function)
                args, kwargs = self._loads(data)
            else:
                call, args, kwargs = self._loaded(data)
        except BaseException as error:  # noqa: BLE001
            status, out = _unserializable("call", "arguments", error, full(error))
        else:
            self._running_slot = slot
            try:
                try:
                    if late:
                        self._stack = ""
                        raise TaskInterrupted
                    self._running = generation
                    if self._early:  # it came while the call was unpickled, perhaps: no time to raise anything
                        self.on_interrupt(0, sys._getframe())
                    value = call(*args, **kwargs)
                finally:
                    self._running = 0
            except BaseException as error:  # noqa: BLE001
                status, out = self._failure(error)
            else:
                status, out = self._outcome(value) if self._stack is None else self._interrupted()
                value = None  # not kept until the next task
            args = kwargs = None
        self._attempt = 0
        duration = time.monotonic_ns() - started
        self._answer(codec.DONE, status, started, generation, slot | duration << 8, out)

    def _run_range(  # noqa: PLR0915  # one loop that is hot: a call per item would double its cost
        self, flags: int, task: int, generation: int, c: int, data: bytes | MemoryError
    ) -> None:
        slot, start, stop = c & 0xFF, c >> 32 & 0xFFFF, c >> 48
        if not self._claims.claim(slot, generation):
            return
        self._attempt = flags & codec.LOW
        self._running_task = task
        self._running_slot = slot
        begun_at = time.monotonic_ns()
        try:
            call = self._function(c >> 8 & 0xFFFFFF)
            self._details = b""
            if flags & codec.DETAILED:
                data = self._take_details(data)
            items = self._loads(data)
        except BaseException as error:  # noqa: BLE001
            self._attempt = 0
            status, out = _unserializable("call", "arguments", error, full(error))
            self._answer(codec.ITEMS, status | codec.LAST, start | stop << 32, generation, slot, out)
            return
        spread = flags & codec.SPREAD
        step = self._claims.step
        clock = time.monotonic_ns
        values: list[Any] = []
        flushed_at = begun_at
        first = index = start

        def flush(last: int) -> None:
            nonlocal first, flushed_at
            now = clock()
            if len(values) > 1 and self._claims.peek(slot)[4] == generation:
                # Halted, and perhaps for the last one: then its value comes too late, and the others' must not.
                late = values.pop()
                self._flush_values(values, first, generation, slot, now - flushed_at, 0)
                values.append(late)
                first = index - 1
                flushed_at = now
            self._flush_values(values, first, generation, slot, now - flushed_at, last)
            first = index
            flushed_at = now

        def drop_late() -> None:
            # The last item swallowed its interrupt: its value came too late.
            nonlocal index, first
            values.pop()
            index -= 1
            if values:
                flush(0)
            status, out = self._interrupted()
            index += 1
            self._answer(codec.ITEMS, status, first | index << 32, generation, slot, out)
            first = index

        while index < stop:
            if not step(slot, generation, index + 1):
                break
            try:
                try:
                    self._running = generation
                    value = call(*items[index]) if spread else call(items[index])
                finally:
                    self._running = 0
            except BaseException as error:  # noqa: BLE001
                status, out = self._failure(error)
                if values:
                    flush(0)
                index += 1
                duration = clock() - flushed_at
                self._answer(codec.ITEMS, status, first | index << 32, generation, slot | duration << 8, out)
                first = index
                flushed_at = clock()
                continue
            values.append(value)
            index += 1
            if clock() - flushed_at > _FLUSH_NS:
                if self._stack is not None:
                    drop_late()
                elif index < stop:
                    flush(0)
        if self._stack is not None:
            drop_late()
        self._attempt = 0
        flush(codec.LAST)

    def _flush_values(
        self, values: list[Any], first: int, generation: int, slot: int, duration: int, last: int
    ) -> None:
        """Answer a run of values from item `first` on; one by one if they do not pickle together."""
        stop = first + len(values)
        try:
            out = self._dumps(values, payload.dumps_tried)
        except BaseException:  # noqa: BLE001  # said below, of the value whose fault it is
            for offset, value in enumerate(values):
                status, one = self._outcome([value], payload.dumps_tried)
                end = last if offset == len(values) - 1 else 0
                if status == codec.UNSERIALIZABLE:
                    again, named = self._outcome(
                        value, payload.dumps_tried
                    )  # this message names the value's type, not the list's
                    one = named if again == status else one
                at = first + offset
                self._answer(codec.ITEMS, status | end, at | at + 1 << 32, generation, slot | duration << 8, one)
        else:
            self._answer(codec.ITEMS, codec.OK | last, first | stop << 32, generation, slot | duration << 8, out)
        values.clear()

    # ------------------------------------------------------------ the loop

    def serve(self) -> None:
        """Run tasks until EXIT, or until a task has left what only the end of this process can clear away."""
        inbound, bell = self._channel.inbound, self._channel.bell
        peer_bell = self._channel.peer_bell
        batch: list[Record] = []
        while True:
            if not self._pop(batch):
                _flush_streams()
                bell.wait(inbound, None, 0, _FOREVER, -1, self._spin_ns)
                continue
            peer_bell.ring_room()
            for kind, flags, a, b, c, part in batch:
                data = self._whole(flags, part) if flags & codec.FRAGMENTED else part
                if kind == codec.TASK:
                    self._run_task(flags, a, b, c, data)
                elif kind == codec.RANGE:
                    self._run_range(flags, a, b, c, data)
                elif kind == codec.FRAGMENT:
                    self._assembler.add(flags, part)
                elif kind == codec.FUNCTION:
                    self._functions[a] = data
                elif kind == codec.FORGET:
                    self._functions.pop(a, None)
                elif kind == codec.EXIT:
                    return
                if context._orphans:
                    return  # they die with this process; what it has not begun goes elsewhere
            batch.clear()

    def _pop(self, batch: list[Record]) -> int:
        try:
            return self._channel.inbound.pop(batch, _BATCH)
        except MemoryError:
            if not self._assembler.give_up():
                raise
            return self._channel.inbound.pop(batch, _BATCH)

    def _whole(self, flags: int, last: bytes) -> bytes | MemoryError:
        """A payload that came in parts. Where memory is short of it, that is said of the task, once it is claimed."""
        try:
            return self._assembler.finish(flags, last)
        except MemoryError as error:
            return error

    def _refuse(self, why: str, traceback: str = "") -> None:
        self._answer(codec.REFUSED, 0, 0, 0, 0, json.dumps({"why": why, "traceback": traceback}).encode())

    def initialize(self, data: bytes, settings: dict[str, Any]) -> bool:
        """Settle, start the heartbeat, run the user's initializer, and say whether this child is ready."""
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
        if data:
            what = "the initializer or its initargs cannot be unpickled in the child:"
            try:
                call, args = payload.loads(data)
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

            self._middleware = Middleware(layers, self.context, self._middleware_failed)
        self._answer(codec.READY, 0, 0, 0, 0, b"")
        return True


def _stack_of_task(frame: FrameType | None) -> str:
    """The stack from the user's function on; "" if it has not begun, or has returned."""
    frames = list(takewhile(_is_of_task, traceback.walk_stack(frame)))
    return "".join(traceback.StackSummary.extract(reversed(frames)).format())


def _is_of_task(place: tuple[FrameType, int]) -> bool:
    return place[0].f_code not in (Child._run_task.__code__, Child._run_range.__code__)


def _reason(error: BaseException) -> str:
    return cut(str(error)) if isinstance(error, payload.Unserializable) else brief(error)


def _unserializable(what: str, type_name: str, error: BaseException, text: str) -> tuple[int, bytes]:
    report = {"what": what, "type": type_name, "message": _reason(error), "traceback": cut(text)}
    return codec.UNSERIALIZABLE, json.dumps(report).encode()


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # the task closed or replaced it: nothing of ours is in it


def _reseed() -> None:
    """Seed NumPy anew: children of one image would draw the same numbers. `random` reseeds itself after a fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def run(channel: Channel, claims: Claims, stack_file: StackFile, settings: dict[str, Any], initializer: bytes) -> None:
    """Be a child until told to exit; never returns."""
    status = 1
    try:
        child = Child(channel, claims, stack_file, settings)
        context._source = child.context
        context._loading = child.is_loading
        signal.signal(INTERRUPT_SIGNAL, child.on_interrupt)
        stack_file.dump_at(STACK_SIGNAL)
        # Each line by one write: whole, in order, and not lost with a killed child; also where PYTHONUNBUFFERED is set,
        # with which `print` writes each of its pieces alone, and the lines of two children would mix.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True, write_through=False)
        _reseed()
        # CPython 3.12 and later warn when a process with threads forks. Ours has one that holds no lock and runs no
        # Python; the warning would come for every task that uses multiprocessing.
        warnings.filterwarnings("ignore", r".*use of fork\(\) may lead to deadlocks", DeprecationWarning)
        if child.initialize(initializer, settings):
            child.serve()
            import atexit

            atexit._run_exitfuncs()
        status = 0
    except MadeBeforeFork:
        status = 0  # a task forked and its fork returned from the task too: that process ends here
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        _flush_streams()
        os._exit(status)
