"""What a pool was asked to carry, as a file that the capacity planner reads: `ProcessWorker(record=...)`.

A line of JSON for each task that has ended, and none of what it was called with or returned but how many bytes that
was. Names of queues are in it; concurrency keys are numbered, for they may name a customer.

Where nothing is recorded this file is not loaded, and no task pays for it. Where something is, two methods of the world
are replaced by ones that also note what passes, as `ClientPort.divert` does. Lines are written when a turn of the loop
has ended no task, which is so before each sleep, or some time has passed since; so what is lost when this process is
killed is less than FLUSH_EVERY of a busy pool. It is written straight into the file: to a disk that stands still, this
process would wait for. A file that cannot be written, or is full, ends the recording and nothing else.
"""

import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from mpworker.ipc.levels import WARNING
from mpworker.ipc.traces import FLUSH_EVERY, TRACE_BYTES_MAX, VERSION, open_trace
from mpworker.supervisor import effects
from mpworker.supervisor.history import Ended
from mpworker.supervisor.registry import READY, Task, TaskOptions

if TYPE_CHECKING:
    from mpworker.supervisor.loop import Loop

_BUFFER_MAX: Final = 1 << 16
_KNOWN_MAX: Final = 4096  # sets of options, and concurrency keys, that are written or numbered once
_LOOK_EVERY: Final = 1.0  # seconds between looks at what else is told: the pool and its memory
_GROWN: Final = 1.05  # memory is told again when it has grown by so much
_CUT: Final = "cancelled"
_NAMES: Final = {
    effects.OK: "ok",
    effects.ERROR: "error",
    effects.UNSERIALIZABLE: "unserializable",
    effects.EXITED: "exited",
    effects.INTERRUPTED: _CUT,
    effects.CRASHED: "crashed",
    effects.TIMED_OUT: "timed_out",
    effects.CANCELLED: _CUT,
}


class Trace:
    """The trace of one pool.

    Args:
        loop: The supervisor.
        path: The file; lines go to its end.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, loop: "Loop", path: str) -> None:
        self._loop = loop
        self._fd = open_trace(path)
        self._room = TRACE_BYTES_MAX - os.fstat(self._fd).st_size
        self._began_ns = loop.world.now_ns  # no task has come before
        self._written_at = 0.0
        self._look_at = 0.0
        self._buffer: list[str] = []
        self._bytes = 0
        self._noted = False  # a task has ended since the last turn
        self._entry: tuple[Ended, int] | None = None
        self._ran = False
        self._said: dict[TaskOptions, str] = {}
        self._keys: dict[str, int] = {}
        self._pool: dict[str, Any] = {}
        self._memory = 0
        if self._room < TRACE_BYTES_MAX:  # whoever wrote there last may have been killed in the middle of a line
            self._add("\n\n")
        self._say(trace=VERSION, epoch=round(time.time(), 3), cores=_cores())

    # ------------------------------------------------------------ what passes

    def install(self) -> None:
        """Note what passes from now on."""
        loop = self._loop
        world, requests = loop.world, loop.session.requests
        emit, emit_items = world.emit, world.emit_items
        end_turn, close = requests.answer_later_ones, loop.close

        def noted(task: Task, status: int, payload: bytes) -> None:
            entry, self._entry = self._entry, None
            if entry is not None:
                self._task(*entry, len(payload))
            emit(task, status, payload)

        def noted_items(task: Task, start: int, stop: int, status: int, payload: bytes, duration_ns: int) -> None:
            if duration_ns and self._fd >= 0:
                self._items(task, stop - start, status, len(payload), duration_ns)
            emit_items(task, start, stop, status, payload, duration_ns)

        def look_and_end_turn() -> None:
            end_turn()
            if self._buffer:
                self._look()

        def flush_and_close() -> None:
            self._flush()
            close()

        world.emit = noted  # type: ignore[method-assign]
        world.emit_items = noted_items  # type: ignore[method-assign]
        requests.answer_later_ones = look_and_end_turn  # type: ignore[method-assign]
        loop.close = flush_and_close  # type: ignore[method-assign]
        loop.scheduler.trace(self._ended)

    def _ended(self, entry: Ended) -> None:
        task = entry[0]
        self._entry = (entry, len(task.payload) - task.call_at)  # until it is emitted, without its call

    def _task(self, entry: Ended, size: int, result: int) -> None:
        """A task has ended."""
        self._noted = self._ran = True
        task, status, _, started_ns, duration_ns = entry
        past = task.setbacks.past
        attempts = [[_seconds(each.ended_at - each.started_at), _NAMES[each.status]] for each in past]
        if started_ns:
            attempts.append([_seconds(duration_ns / 1e9), _NAMES[status]])
        took = time.monotonic_ns() - task.accepted_ns
        line = [
            f'{{"at":{(task.accepted_ns - self._began_ns) / 1e9:.6f},"took":{took / 1e9:.6f}',
            f'"function":{task.function.key if task.function is not None else 0}',
            self._options(task.options),
            f'"size":{size},"result":{result}',
        ]
        first_ns = int(past[0].started_at * 1e9) if past else started_ns
        if first_ns:
            line.append(f'"waited":{max(0, first_ns - task.accepted_ns) / 1e9:.6f}')
        if task.deadline_at is not None:
            line.append(f'"deadline":{task.deadline_at - task.accepted_ns / 1e9:.6f}')
        if task.concurrency_key:
            line.append(f'"key":{self._number(task.concurrency_key)},"concurrency":{task.concurrency}')
        if _NAMES[status] == _CUT:
            line.append(f'"cancelled":{took / 1e9:.6f}')
        line.append(f'"attempts":{json.dumps(attempts, separators=(",", ":"))}}}\n')
        self._add(",".join(line))

    def _items(self, task: Task, items: int, status: int, result: int, duration_ns: int) -> None:
        """Some items of a map have ended: together they count as one task, which came when they began."""
        self._noted = self._ran = True
        at = time.monotonic_ns() - duration_ns - self._began_ns
        self._add(
            f'{{"at":{at / 1e9:.6f},"took":{duration_ns / 1e9:.6f},'
            f'"function":{task.function.key if task.function is not None else 0},{self._options(task.options)},'
            f'"size":{len(task.payload) * items // (task.items or 1)},"result":{result},"waited":0,"items":{items},'
            f'"attempts":[[{_seconds(duration_ns / 1e9)},"{_NAMES[status]}"]]}}\n'
        )

    def _options(self, options: TaskOptions) -> str:
        """What is to be said of these options, without braces."""
        said = self._said.get(options)
        if said is None:
            if len(self._said) >= _KNOWN_MAX:
                self._said.clear()
            told: dict[str, Any] = {"queue": options.queue, "priority": options.priority}
            for name in ("weight", "timeout", "retries", "crash_retries"):
                if getattr(options, name) != getattr(_PLAIN, name):
                    told[name] = getattr(options, name)
            backoff = options.backoff
            if backoff is not None:
                told["backoff"] = [backoff.base, backoff.factor, backoff.cap, backoff.jitter]
            said = self._said[options] = json.dumps(told, separators=(",", ":"))[1:-1]
        return said

    def _number(self, key: str) -> int:
        if key not in self._keys and len(self._keys) >= _KNOWN_MAX:
            self._keys.clear()  # numbers are then given out again: of so many keys few meet
        return self._keys.setdefault(key, len(self._keys) + 1)

    # ------------------------------------------------------------ lines

    def _say(self, **fields: Any) -> None:
        self._add(json.dumps(fields, separators=(",", ":")) + "\n")

    def _add(self, line: str) -> None:
        self._buffer.append(line)
        self._bytes += len(line)

    def _look(self) -> None:
        """The end of a turn: write what is there, unless more is about to come."""
        now = time.monotonic()
        if not self._noted or self._bytes > _BUFFER_MAX or now - self._written_at > FLUSH_EVERY:
            if self._ran and now >= self._look_at:
                self._look_at = now + _LOOK_EVERY
                self._tell_pool()
            self._flush()
            self._written_at = now
        self._noted = False

    def _tell_pool(self) -> None:
        """How many children there are, what limits hold, and how much memory a child has, where that is new."""
        scheduler, world = self._loop.scheduler, self._loop.world
        queues = {
            name: {key: state[key] for key in ("weight", "max_running", "rate", "burst")}
            for name, state in scheduler.queue_states().items()
        }
        rate, burst = scheduler.limit()
        pool = {"n": self._loop.children_wanted, "rate": rate, "burst": burst, "queues": queues}
        if pool != self._pool:
            self._pool = pool
            self._say(pool=pool)
        seats = [child.seat for child in world.everyone if child.seat.state == READY]
        memory = max((world.memory(seat) for seat in seats), default=0)
        if memory > _GROWN * self._memory:
            self._memory = memory
            self._say(memory=memory)

    def _flush(self) -> None:
        if self._fd < 0:
            return
        data = memoryview("".join(self._buffer).encode())
        self._buffer.clear()
        self._bytes = 0
        if len(data) > self._room:
            self._end("trace_full", bytes=TRACE_BYTES_MAX)
            return
        self._room -= len(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self._end("trace_failed", error=str(error))

    def _end(self, event: str, **fields: Any) -> None:
        """There is no more of it."""
        os.close(self._fd)
        self._fd = -1
        self._buffer.clear()
        self._loop.scheduler.trace(None)
        self._loop.watch.log(WARNING, event, **fields)


_PLAIN: Final = TaskOptions()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _seconds(value: float) -> float:
    return round(max(0.0, value), 9)
