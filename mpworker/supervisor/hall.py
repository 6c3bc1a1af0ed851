"""The world of a supervisor that has several clients: its children, and a port for each of them.

What is of a task goes to the client whose number stands in the task's. Functions come with numbers that each client has
chosen for itself, and are given others here, for the children know those of all clients; so are contexts, of which
each client has at least one: it says what the ids of its tasks begin with.
"""

from __future__ import annotations

import os

from mpworker.containers import deque
from mpworker.ipc import codec, details, json
from mpworker.ipc.ledger import TRIED_AGAIN, Ledger
from mpworker.ipc.ring import RingCorrupt
from mpworker.supervisor.children import Children
from mpworker.supervisor.fair import client_of
from mpworker.supervisor.fanout import ClientPort
from mpworker.supervisor.registry import CONTEXT_SHIFT, Context, Function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final

    from mpworker.ipc.channel import Channel
    from mpworker.supervisor.children import Child
    from mpworker.supervisor.history import History
    from mpworker.supervisor.registry import DetailedTask, Task, TaskOptions


_OPTIONS: Final = {
    "timeout": (int, float, type(None)),
    "retries": int,
    "crash_retries": int,
    "queue": str,
    "priority": int,
    "weight": int,
}
_BEFORE: Final = 5  # start, stop, attempts, failures, crashes
_DETAILS: Final = {
    "concurrency_key": str,
    "concurrency": int,
    "deadline_at": (int, float, type(None)),
    "run_at": (int, float, type(None)),
}


def _check(made: object, kinds: Mapping[str, Any]) -> None:
    """See that values are what the scheduler will take them for, when it is too late to say whose they were.

    Raises:
        TypeError: One is not.
    """
    for name, kind in kinds.items():
        if not isinstance(getattr(made, name), kind):
            raise TypeError(f"{name} is of a type that no client of ours would send")


class Numbers:
    """Numbers for functions and contexts, each of which is nobody else's at the same time.

    Attributes:
        released: Those that nobody has any more, but for the children, which are to be told first; of contexts less
            than 0.
    """

    def __init__(self) -> None:
        self._next = 1
        self._free: deque[int] = deque()
        self.released: list[int] = []

    def take(self) -> int:
        """One that is free.

        Raises:
            ValueError: There is none.
        """
        if self._free:
            return self._free.popleft()
        if self._next > codec.MAX_FUNCTIONS:
            raise ValueError(f"more than {codec.MAX_FUNCTIONS} functions")
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """It is nobody's any more, and no child knows it."""
        self._free.append(number)


class NumberedFunction(Function):
    """A function whose number is free again when no task has it any more.

    Args:
        numbers: Where its number is from.
        blob: Its pickle.
        name: Its name.
    """

    __slots__ = ("_numbers",)

    def __init__(self, numbers: Numbers, blob: bytes, name: str) -> None:
        self._numbers = numbers
        super().__init__(numbers.take(), blob, name)

    def __del__(self) -> None:
        self._numbers.released.append(self.key)


class NumberedContext(Context):
    """The same for a context.

    Args:
        numbers: Where its number is from.
        judge: As for `Context`, here and below.
        said: See there.
        base: See there.
    """

    __slots__ = ("_numbers",)

    def __init__(self, numbers: Numbers, judge: Function | None, said: bytes, base: int) -> None:
        self._numbers = numbers
        super().__init__(numbers.take(), judge, said, base)

    def __del__(self) -> None:
        self._numbers.released.append(-self.key)


class Port(ClientPort):
    """One client of several.

    Args:
        hall: Where it is.
        number: Its number.
        prefix: What the ids of its tasks begin with.
        channel: As for `ClientPort`.
        max_payload_bytes: As there.

    Attributes:
        prefix: What the ids of its tasks begin with.
        broken: Its ring cannot be written to.
        admits: Says of the name of a queue whether a client may put tasks in there, and whether it may make one.
        ledger: What outlives this process of its tasks; None for a client that has no use for that.
        is_unfinished: Says of the number of a task or chunk whether it has no outcome.
    """

    def __init__(self, hall: Hall, number: int, prefix: str, channel: Channel, max_payload_bytes: int) -> None:
        super().__init__(channel, max_payload_bytes)
        self.number = number
        self.base = number << CONTEXT_SHIFT
        self.broken = False
        self.admits: Callable[[str, bool], bool] = lambda *_: True
        self._priority_min: int | None = 1 << 62
        self._makes_queues = False
        self.ledger: Ledger | None = None
        self.is_unfinished: Callable[[int], bool] = lambda _: True
        self.prefix = prefix
        self._hall = hall
        self._said = json.dumps({"prefix": prefix}).encode()
        self._contexts: dict[int, Context] = {}  # by the client's number of their judge
        hall.ports[number] = self

    def allow(self, priority_min: int | None, makes_queues: bool) -> None:
        """It may do this as well from now on.

        Args:
            priority_min: Ask for a priority that is no lower; None for any.
            makes_queues: Put tasks into a queue that is not there yet.
        """
        before = self._priority_min
        self._priority_min = None if before is None or priority_min is None else min(before, priority_min)
        self._makes_queues = self._makes_queues or makes_queues

    # ------------------------------------------------------------ in

    def task(self, flags: int, key: int, function: int, c: int, payload: bytes) -> Task:
        return super().task(flags, self.base | key, function, c, payload)

    def chunk(self, flags: int, key: int, function: int, c: int, payload: bytes) -> Task:
        return super().chunk(flags, self.base | key, function, c, payload)

    def detailed(self, kind: int, flags: int, key: int, function: int, c: int, payload: bytes) -> DetailedTask:
        task = super().detailed(kind, flags, self.base | key, function, c, payload)
        _check(task, _DETAILS)
        return task

    def before(self, payload: bytes) -> list[list[int]]:
        """What a client knows of a task that another supervisor had accepted: see `mpworker.service.estate`.

        Raises:
            ValueError: That is none that a client of ours would send; so is TypeError.
        """
        parts = details.read(payload)["before"]
        if not parts or not all(len(part) == _BEFORE and all(0 <= each < 1 << 32 for each in part) for part in parts):
            raise ValueError("nothing that a client of ours would know of a task")
        return parts  # type: ignore[no-any-return]

    def again(self, history: History, key: int, new_key: int) -> DetailedTask | None:
        return super().again(history, key, self.base | new_key)

    def _function(self, key: int, blob: bytes, name: str) -> Function:
        return NumberedFunction(self._hall.numbers, blob, name)

    def _task_options(self, judge: int = 0, backoff: list[Any] | None = None, **plain: Any) -> TaskOptions:
        options = super()._task_options(judge, backoff, **plain)
        _check(options, _OPTIONS)
        if self._priority_min is not None and options.priority < self._priority_min:
            raise ValueError("a priority that no client of ours would ask for here")
        if not self.admits(options.queue, self._makes_queues):
            raise ValueError("a queue that no client of ours would name here")
        return options

    def _context(self, judge: int) -> Context:
        context = self._contexts.get(judge)
        if context is None:
            function = self.functions[judge] if judge else None
            context = self._contexts[judge] = NumberedContext(self._hall.numbers, function, self._said, self.base)
        return context

    # ------------------------------------------------------------ out

    def send(self, kind: int, flags: int, a: int, b: int, c: int, payload: bytes) -> None:
        if not self.broken:
            self._hall.told_ports[self.number] = None
            try:
                super().send(kind, flags, a, b, c, payload)
            except RingCorrupt:
                self.broken = True

    def flush_client(self) -> None:
        if not self.broken:
            try:
                super().flush_client()
            except RingCorrupt:
                self.broken = True
                self._hall.told_ports[self.number] = None

    def emit(self, task: Task, status: int, payload: bytes) -> None:
        if self.broken:
            return
        self.ended_ns.append(task.accepted_ns)
        self.emit_again(task.key & codec.TASK_MASK, status, payload)
        if self.outbox.waiting:
            self.enter(task, 0, 0, status)

    def emit_items(self, task: Task, start: int, stop: int, status: int, payload: bytes, duration_ns: int) -> None:
        if payload.__class__ is not bytes:
            status, payload = self._delivered(status, payload)
        self.send(codec.RESULTS, status, task.key & codec.TASK_MASK, start | stop << 32, duration_ns, payload)
        if self.outbox.waiting:
            self.enter(task, start, stop, status)

    def enter(self, task: Task, start: int, stop: int, status: int) -> None:
        """Note what the client is to know of a task, or of items, should this process die before it can be told."""
        if self.ledger is not None:
            setbacks, key = task.setbacks, task.key & codec.TASK_MASK
            counts = task.attempts, setbacks.failures, setbacks.crashes
            self.ledger.note((key, getattr(task, "generation", 0), start, stop, *counts, status & codec.LOW))
            self._hall.unwritten[self.number] = None

    def write_ledger(self) -> None:
        """Write what was noted.

        Raises:
            OSError: See `Ledger.write`.
        """
        if self.ledger is not None:
            self.ledger.write(self._is_needed)

    def _is_needed(self, entry: tuple[int, ...]) -> bool:
        """Does this say what the client cannot know otherwise?"""
        key, status = entry[0], entry[-1]
        return self.is_unfinished(key) if status == TRIED_AGAIN else bool(self.outbox.waiting)

    def divert(self, first_key: int, sink: Callable[[Task, int, bytes], None]) -> None:
        super().divert(self.base | first_key, sink)

    def split(self, task: Task, start: int, stop: int) -> None:
        key = task.key & codec.TASK_MASK
        self.splits.setdefault(key, set()).add(start)
        self.send(codec.SPLIT, 0, key, start | stop << 32, 0, b"")

    def close(self) -> None:
        """The client is gone: nothing more is sent. Its children's memory of it goes when its last task has ended."""
        self.broken = True
        self.outbox.waiting.clear()
        self._hall.unwritten.pop(self.number, None)
        if self.ledger is not None:
            self.ledger.close()
            self.ledger = None

    def leave(self) -> None:
        """No task of it is left: what the children know of it is forgotten with what is let go of here."""
        del self._hall.ports[self.number]
        self.__dict__.pop("emit", None)  # see `divert`
        self.functions.clear()
        self.options.clear()
        self._contexts.clear()


class Hall(Children):
    """All children, and the port of each client.

    Attributes:
        ports: By their numbers.
        told_ports: The numbers of those that were sent something in this turn.
        unwritten: The numbers of those whose ledgers are to be written before anything more is offered.
        life: A descriptor that ends (poll) when this process, every nursery and every child are dead: each of them has
            the other end of that pipe.
        numbers: Of functions and contexts.
    """

    def __init__(self, config: dict[str, Any], fds: list[int]) -> None:
        self.life, held = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        super().__init__(config | {"holds_life": True}, [*fds, held])
        self.ports: dict[int, Port] = {}
        self.told_ports: dict[int, None] = {}
        self.unwritten: dict[int, None] = {}
        self.numbers = Numbers()

    def tried_again(self, task: Task) -> None:
        """Another attempt of a task, or of items, follows one that is over."""
        self.ports[client_of(task.key)].enter(task, task.start, task.stop, TRIED_AGAIN)

    def write_ledgers(self) -> None:
        """Write what clients are to know if this process dies, before nothing else tells of it."""
        for number in tuple(self.unwritten):
            try:
                self.ports[number].write_ledger()
            except OSError:
                continue  # no memory: it is tried again in the next turn; or the client forbids it, which is its loss
            self.unwritten.pop(number, None)

    def spawn(self) -> Child:
        """See `Children`: the new child's slots may have been another's."""
        self.write_ledgers()
        return super().spawn()

    def forget_released(self) -> None:
        """What no task has any more, no child is to know: only then its number may be another's."""
        released, self.numbers.released = self.numbers.released, []
        for number in released:
            for child in self.by_number.values():
                if number in child.known:
                    child.known.discard(number)
                    kind = codec.FORGET if number > 0 else codec.CONTEXT
                    self.tell(child, kind, 0, abs(number), 0, 0, b"")
            self.numbers.give(abs(number))

    def emit(self, task: Task, status: int, payload: bytes) -> None:
        """See `mpworker.supervisor.effects.Effects`, here and below."""
        self.ports[client_of(task.key)].emit(task, status, payload)

    def emit_items(self, task: Task, start: int, stop: int, status: int, payload: bytes, duration_ns: int) -> None:
        self.ports[client_of(task.key)].emit_items(task, start, stop, status, payload, duration_ns)

    def emit_report(self, task: Task, start: int, stop: int, status: int, report: dict[str, object]) -> None:
        self.ports[client_of(task.key)].emit_report(task, start, stop, status, report)

    def split(self, task: Task, start: int, stop: int) -> None:
        self.ports[client_of(task.key)].split(task, start, stop)
