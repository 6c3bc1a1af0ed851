"""The client's side of the supervisor: what it sends comes in here, and outcomes go out."""

from __future__ import annotations

import sys

from mpworker.ipc import codec, details, json
from mpworker.ipc.channel import Channel
from mpworker.ipc.codec import RESULT, Record
from mpworker.ipc.ring import Assembler, Outbox
from mpworker.supervisor.backoff import Backoff
from mpworker.supervisor.held import Blocks, Held, Lending, nobody
from mpworker.supervisor.history import History
from mpworker.supervisor.ids import Ids
from mpworker.supervisor.registry import Context, DetailedTask, Function, Task, TaskOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

TOLD_MAX: Final = 1024
# One number for all tasks with the same flags: 32 bytes each.
_FLAGS: Final = {flags: flags | codec.DETAILED for flags in (0, codec.SPREAD, codec.ARENA, codec.SPREAD | codec.ARENA)}
_OF_TASK: Final = codec.SPREAD | codec.ARENA
_SAID_AGAIN: Final = ("name", "metadata", "concurrency", "options")  # not what was of the old one: a child goes by it


class ClientPort:
    """One client: its channel, its functions and its options.

    Args:
        channel: The channel; the supervisor never blocks on it.
        max_payload_bytes: The largest payload that is put together from fragments.
        blocks: Those of its arenas; None where it has none.

    Attributes:
        functions: Those that were sent once, by their numbers.
        options: Those of tasks, by their numbers.
        now_ns: When what is taken in now has come.
        ids: Those of the user's own; whoever knows what is remembered sets another one.
        ended_ns: When each task was accepted that has ended since this was counted last.
    """

    base = 0  # what is added to its numbers of tasks, where there are others beside it

    def __init__(self, channel: Channel, max_payload_bytes: int, blocks: Blocks | None = None) -> None:
        self.channel = channel
        self.outbox = Outbox(channel.outbound)
        self.splits: dict[
            int, set[int]
        ] = {}  # where the runs of a chunk's items begin that the client has to send again
        self.sent = False  # something that the client's bell must be rung for
        self._push = channel.outbound.push
        self._max_payload = channel.outbound.max_payload
        self._assembler = Assembler(max_payload_bytes)
        self.functions: dict[int, Function] = {}
        self.options: dict[int, TaskOptions] = {}
        self.now_ns = 0
        self.ended_ns: list[int] = []
        self.ids = Ids(tuple)
        self.blocks = Blocks(Lending(0, nobody)) if blocks is None else blocks
        self._told: dict[str, TaskOptions] = {}  # with single tasks, those used last at the end

    # ------------------------------------------------------------ in

    def whole(self, record: Record) -> bytes:
        """The payload of a record whose beginning came in fragments."""
        return self._assembler.finish(record[1], record[5])

    def task(self, flags: int, key: int, function: int, c: int, payload: bytes) -> Task:
        """The task that a SUBMIT record asks for."""
        called = self.functions[function] if function else None
        return Task(key, called, self.options[c], payload, 0, flags, self.now_ns)

    def chunk(self, flags: int, key: int, function: int, c: int, payload: bytes) -> Task:
        """The chunk that a CHUNK record asks for."""
        options = self.options[c & 0xFFFFFFFF]
        return Task(key, self.functions[function], options, payload, c >> 32, flags & _OF_TASK)

    def detailed(self, kind: int, flags: int, key: int, function: int, c: int, payload: bytes) -> DetailedTask:
        """The task or chunk of a record that says more than its options."""
        said = details.read(payload)
        options = self.options[c & 0xFFFFFFFF]
        own = said.get("options")
        if own is not None:
            options = self._own_options(json.dumps(own), own)
        items = c >> 32 if kind == codec.CHUNK else 0
        flags = _FLAGS[flags & _OF_TASK]
        task = DetailedTask(key, self.functions[function] if function else None, options, payload, items, flags)
        task.call_at = details.end(payload)
        concurrency_key, task.concurrency = said.get("concurrency", ("", 1))
        task.concurrency_key = sys.intern(concurrency_key)  # many have the same, and each came with one of its own
        task.deadline_at = said.get("deadline")
        task.run_at = said.get("run_at")
        task.keyed = said.get("keyed", False)
        task.accepted_ns = self.now_ns
        if "id" in said:
            self.ids.add(said["id"], key)
        return task

    def again(self, history: History, key: int, new_key: int) -> DetailedTask | None:
        """A task that has ended, and not well, as a new one; None if it, or something shared in it, is forgotten."""
        entry, kept = history.find(key), history.payloads(key)
        if entry is None or kept is None or not entry[1]:
            return None
        old, call = entry[0], kept[0]
        said: dict[str, Any] = {}
        if old.flags & codec.DETAILED:
            said, call = details.read(call), details.after(call)
        retry_of = said.get("id", key)  # as the user knows it
        said = {name: said[name] for name in _SAID_AGAIN if name in said} | {"retry_of": retry_of}
        payload = details.pack(said) + call
        if isinstance(kept[0], Held):
            again = self.blocks.again(payload, kept[0])
            if again is None:
                return None
            payload = again
        task = DetailedTask(new_key, old.function, old.options, payload, 0, old.flags | codec.DETAILED)
        task.call_at = len(payload) - len(call)
        task.concurrency_key, task.concurrency = old.concurrency_key, old.concurrency
        task.accepted_ns = self.now_ns
        return task

    def _own_options(self, text: str, own: dict[str, Any]) -> TaskOptions:
        """Options that were told with a task: tasks with the same ones share them, as long as these are used."""
        options = self._told.pop(text, None)
        if options is None:
            options = self._task_options(**own)
            if len(self._told) >= TOLD_MAX:
                del self._told[next(iter(self._told))]
        self._told[text] = options
        return options

    def note(self, kind: int, flags: int, a: int, b: int, payload: bytes) -> Function | None:
        """Keep a FUNCTION or a FRAGMENT; for FORGET, the function that is forgotten."""
        if kind == codec.FUNCTION:
            self.functions[a] = self._function(a, payload[b:], payload[:b].decode(errors="replace"))
        elif kind == codec.FRAGMENT:
            self._assembler.add(flags, payload)
        elif kind == codec.FORGET:
            return self.functions.pop(a, None)
        return None

    def _function(self, key: int, blob: bytes, name: str) -> Function:
        return Function(key, blob, name)

    def note_options(self, key: int, payload: bytes) -> TaskOptions:
        """Keep what an OPTIONS record says."""
        options = self.options[key] = self._task_options(**json.loads(payload))
        return options

    def _task_options(self, judge: int = 0, backoff: list[Any] | None = None, **plain: Any) -> TaskOptions:
        return TaskOptions(
            context=self._context(judge),
            backoff=Backoff(*backoff) if backoff is not None else None,
            **plain,
        )

    def _context(self, judge: int) -> Context | None:
        """What a child is to know of tasks with this judge."""
        return Context(judge, self.functions[judge]) if judge else None

    def resent(self, key: int, start: int | None) -> None:
        """Items of a chunk have been sent one by one, which may be said twice; None: no more of them will be."""
        left = self.splits.get(key, set())
        left.discard(start if start is not None else -1)
        if not left or start is None:
            self.splits.pop(key, None)

    # ------------------------------------------------------------ out

    def send(self, kind: int, flags: int, a: int, b: int, c: int, payload: bytes) -> None:
        """Send a record now, or as soon as the client has made room."""
        self.sent = True
        if self.outbox.waiting or len(payload) > self._max_payload or not self._push(kind, flags, a, b, c, payload):
            self._send_later(kind, flags, a, b, c, payload)

    def _send_later(self, kind: int, flags: int, a: int, b: int, c: int, payload: bytes) -> None:
        self.outbox.send(kind, flags, a, b, c, payload)
        self.channel.bell.want_room(True)

    def forget_block(self, number: int, quietly: bool) -> None:
        """A FREE of the client's; that of no block says that from now on somebody waits there for room."""
        self.blocks.forget(number, quietly)
        if not number:
            self.sent = True  # for what was sent without ringing the bell

    def flush_client(self) -> None:
        """Give back what is free of the arena, and send what waits for room, as far as there is some by now."""
        freed, wanted = self.blocks.take_freed()
        rings = self.sent or wanted or bool(self.outbox.waiting)
        for number in freed:
            self.send(codec.FREE, 0, number, 0, 0, b"")
        self.sent = rings
        if self.outbox.flush():
            self.channel.bell.want_room(False)

    def reply(self, request: int, answer: dict[str, Any]) -> None:
        """Answer a REQUEST."""
        self.send(codec.REPLY, 0, request, 0, 0, json.dumps(answer).encode())

    def emit(self, task: Task, status: int, payload: bytes) -> None:
        """A task ended."""
        self.ended_ns.append(task.accepted_ns)
        if payload.__class__ is not bytes:
            status, payload = self._delivered(status, payload)
        # As `send` does, without a call more for each task.
        self.sent = True
        full = self.outbox.waiting or len(payload) > self._max_payload
        if full or not self._push(RESULT, status, task.key, 0, 0, payload):
            self._send_later(RESULT, status, task.key, 0, 0, payload)

    def divert(self, first_key: int, sink: Callable[[Task, int, bytes], None]) -> None:
        """From this key on, outcomes of tasks are not the client's: they go to `sink`."""
        emit = self.emit

        def either(task: Task, status: int, payload: bytes) -> None:
            if task.key < first_key:
                emit(task, status, payload)
            else:
                self.ended_ns.append(task.accepted_ns)
                sink(task, status, payload)

        self.emit = either  # type: ignore[method-assign]  # where nothing is diverted, no task pays for the question

    def emit_items(self, task: Task, start: int, stop: int, status: int, payload: bytes, duration_ns: int) -> None:
        """A run of a chunk's items ended."""
        if payload.__class__ is not bytes:
            status, payload = self._delivered(status, payload)
        self.send(codec.RESULTS, status, task.key, start | stop << 32, duration_ns, payload)

    def emit_report(self, task: Task, start: int, stop: int, status: int, report: dict[str, object]) -> None:
        """A task, or a run of items, ended by a decision of the scheduler."""
        payload = json.dumps(report).encode() if report else b""
        if task.items:
            self.emit_items(task, start, stop, status, payload, 0)
        else:
            self.emit(task, status, payload)

    def emit_again(self, key: int, status: int, outcome: bytes | dict[str, object]) -> None:
        """How a task ended, told once more, to whom it has under another number."""
        payload = outcome if isinstance(outcome, bytes) else json.dumps(outcome).encode() if outcome else b""
        if payload.__class__ is not bytes:
            status, payload = self._delivered(status, payload)
        self.send(codec.RESULT, status, key, 0, 0, payload)

    def _delivered(self, status: int, payload: bytes) -> tuple[int, bytes]:
        """The status and payload of a result that the client gets with its blocks."""
        assert isinstance(payload, Held)
        return status | codec.ARENA, self.blocks.deliver(payload)

    def split(self, task: Task, start: int, stop: int) -> None:
        """The client shall send these items one by one, and then say so: a drain waits for it."""
        self.splits.setdefault(task.key, set()).add(start)
        self.send(codec.SPLIT, 0, task.key, start | stop << 32, 0, b"")
