"""Where the time of a no-op task goes, step by step: everything that it passes, in one process and one thread.

The rings, the claim page, the client, the scheduler, what carries out its decisions and the child's runner are the real
ones; between them are no processes, and so no waiting, no waking and no cold caches. What a task costs in a pool beyond
the sum is that.
"""

import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mpworker import ProcessWorker
from mpworker.bench.measure import Benchmark, Measure, Round, Settings
from mpworker.bench.tasks import noop
from mpworker.child.main import Child as Runner
from mpworker.ipc import payload
from mpworker.ipc._native import loads_plain
from mpworker.ipc.channel import Channel, close_all, make_channel, map_claims
from mpworker.ipc.codec import FUNCTION, SUBMIT, Record
from mpworker.supervisor.children import Child
from mpworker.supervisor.places import Places
from mpworker.supervisor.reading import World
from mpworker.supervisor.registry import Seat, Task, TaskOptions, Times

BATCH = 100  # tasks that are at one step together, as under load
SLOTS = 128
RING = 1 << 18
BATCHES = 300
WARM_UP = 30
MAX_BYTES = 1 << 20
CONTENDERS: dict[str, tuple[object, ...]] = {"no-op": (), "1 KiB": (bytes(range(256)) * 4,)}
STEPS = {
    "submit": "the client: `submit` pickles the call, makes the future and pushes",
    "take in": "the supervisor: the record becomes a task in line",
    "offer": "the supervisor: a child is chosen, a slot opened, the record pushed",
    "run": "the child: popped, claimed, unpickled, called, answered",
    "answer": "the supervisor: the answer is judged, the outcome pushed, the task remembered",
    "settle": "the client: the outcome is popped and settles the future",
    "result": "the client: `result()` unpickles the value",
}
PARTS = {
    "pickle": "of `submit`: the pickle of the call",
    "unpickle": "of `run`: the call, unpickled",
    "ring": "a record pushed and popped by itself, of which a task has four",
    "call": "of `run`: the function",
}


@contextmanager
def channel(name: str) -> Iterator[tuple[Channel, Channel]]:
    """Both ends of one."""
    fds, near = make_channel(name, (RING, RING))
    far = Channel(fds, (RING, RING), 1)
    try:
        yield near, far
    finally:
        near.close()
        close_all(fds)


class Line:
    """What a task passes.

    Args:
        worker: Its client is used, with rings of its own. The processes have nothing to do.
        client: Both ends of the channel between client and supervisor,
        child: and between supervisor and child.

    Attributes:
        args: What each task is called with.
    """

    def __init__(self, worker: ProcessWorker, client: tuple[Channel, Channel], child: tuple[Channel, Channel]) -> None:
        self.args: tuple[object, ...] = ()
        self.worker = worker
        self.client = worker._client
        self.client._push, self.client._pop = client[1].outbound.push, client[1].inbound.pop
        self.client._fill = client[1].inbound.fill
        self.client._ring = self.client._ring_room = client[1].peer_bell.ring
        self.client.submits_to(client[1])
        config: dict[str, Any] = {"child": {"max_payload_bytes": MAX_BYTES}, "descriptors": 0, "arena_bytes": 0}
        config["slots"] = SLOTS
        self.world = World(config, [], client[0])
        times = Times(lease_ttl=1e9, grace=1.0, start_timeout=1e9, kill_timeout=1e9)
        self.scheduler = Places(self.world, times, lambda: 0.5)
        region, claims = self.world.roll.take()
        child_claims = map_claims(self.world.roll.fd, region, SLOTS)
        self.seat = Seat(0, SLOTS, pid=1)
        self.child = self.world.by_number[0] = Child(self.seat, child[0], region, claims, MAX_BYTES)
        self.scheduler.child_starting(self.seat, 0.0)
        self.scheduler.child_ready(self.seat)
        settings = {"max_payload_bytes": MAX_BYTES, "task_prefix": "", "spin_ns": 0}
        self.runner = Runner(child[1], child_claims, settings, [])
        self.runner.tasks.takes_from(child[1], MAX_BYTES)
        self.inbound = child[1].inbound
        self.options: dict[int, TaskOptions] = {}
        self.futures: list[Any] = []
        self.found: list[Record] = []

    def steps(self) -> dict[str, Callable[[], None]]:
        """What to call, one after the other, for a batch."""
        functions = (self.submit, self.take_in, self.offer, self.run, self.answer, self.settle, self.result)
        return dict(zip(STEPS, functions, strict=True))

    def submit(self) -> None:
        submit, args = self.worker.submit, self.args
        self.futures = [submit(noop, *args) for _ in range(BATCH)]

    def take_in(self) -> None:
        world, tasks = self.world, list[Task]()
        records: list[Record] = []
        world.channel.inbound.pop(records, 1 << 20)
        for kind, flags, a, b, c, data in records:
            if kind == SUBMIT and not flags:  # as the loop does
                tasks.append(Task(a, world.functions[b] if b else None, world.options[c], data, 0, 0, 1))
            else:
                self.learn(kind, flags, a, b, data)
        self.scheduler.submitted_all(tasks)

    def learn(self, kind: int, flags: int, a: int, b: int, data: bytes) -> None:
        """The first batch brings the function with it."""
        self.world.note(kind, flags, a, b, data)

    def offer(self) -> None:
        for function in self.world.functions.values():
            function.estimate_ns = 1  # so that all of a batch are offered at once
        self.scheduler.dispatch(0.0)
        assert not self.scheduler._queue, "some tasks are not offered, and nobody else would do them"
        self.world.told.clear()

    def run(self) -> None:
        tasks, received = self.runner.tasks, self.runner.calls.received
        while record := tasks.run_tasks():
            _, flags, a, b, c, data = record
            if b:
                tasks.run_task(flags, a, b, c, data)  # the first of a function
            else:
                received[a] = data

    def answer(self) -> None:
        found = self.found
        self.child.pop(found, 1 << 20)
        assert self.scheduler.well(self.seat, found, 0) == len(found)
        found.clear()
        self.world.ended_ns.clear()

    def settle(self) -> None:
        client = self.client
        client._leader = threading.get_ident()
        while client._read_some(client._leader):
            pass
        client._leader = None

    def result(self) -> None:
        for future in self.futures:
            future.result()
        self.futures.clear()


def least(functions: dict[str, Callable[[], None]], batches: int) -> dict[str, float]:
    """Seconds of each, the least of many tries: what it takes when nothing comes in between."""
    found = dict.fromkeys(functions, float("inf"))
    clock = time.perf_counter
    for _ in range(batches):
        for name, function in functions.items():
            begun = clock()
            function()
            found[name] = min(found[name], clock() - begun)
    return found


def parts(ring: tuple[Channel, Channel], args: tuple[object, ...]) -> dict[str, Callable[[], None]]:
    """Pieces of the steps by themselves."""
    call: tuple[tuple[Any, ...], dict[str, Any]] = (args, {})
    data = payload.dumps_parts(call)
    push, pop = ring[0].outbound.push, ring[1].inbound.pop
    records: list[Record] = []

    def both() -> None:
        for number in range(BATCH):
            push(SUBMIT, 0, 100_000 + number, 1, 1, data)
        pop(records, BATCH)
        records.clear()

    def repeat(function: Callable[[], object]) -> None:
        for _ in range(BATCH):
            function()

    return {
        "pickle": functools.partial(repeat, lambda: payload.dumps_parts(call)),
        "unpickle": functools.partial(repeat, lambda: loads_plain(data, payload.loads)),
        "ring": both,
        "call": functools.partial(repeat, noop),
    }


def take_round(settings: Settings) -> Round:
    batches = max(2, int(BATCHES * settings.scale))
    found: Round = {}
    with (
        channel("mpworker-hops-client") as client,
        channel("mpworker-hops-child") as child,
        channel("mpworker-hops-ring") as ring,
        ProcessWorker(1) as worker,
    ):
        worker.submit(noop).result()
        real = {name: getattr(worker._client, name) for name in ("_push", "_pop", "_fill", "_ring", "_ring_room")}
        line = Line(worker, client, child)
        key = worker._client.functions.key(noop)
        line.world.note(FUNCTION, 0, key, 0, payload.dumps(noop))
        line.world.note_options(worker._options_key, b"{}")
        gc.disable()  # as it is in the supervisor; what it costs the client depends on what else that holds
        try:
            for name, args in CONTENDERS.items():
                line.args = args
                least(line.steps(), WARM_UP)
                steps = least(line.steps(), batches) | least(parts(ring, args), batches)
                values = {step: seconds * 1e9 / BATCH for step, seconds in steps.items()}
                found[name] = {"sum": sum(values[step] for step in STEPS)} | values
        finally:
            gc.enable()
            for name, function in real.items():
                setattr(worker._client, name, function)
    return found


BENCHMARK = Benchmark(
    "a no-op task step by step, without processes: "
    + "; ".join(f"{name} is {text}" for name, text in (STEPS | PARTS).items()),
    (Measure("sum", "ns"), *(Measure(name, "ns") for name in (*STEPS, *PARTS))),
    whole=take_round,
    base=next(iter(CONTENDERS)),
)
