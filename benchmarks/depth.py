"""What it costs to start a task while few wait, and while very many do.

A child carries out the queue in slices, each of which ends with a task that sleeps until it is cancelled. So a slice
of a long queue and one of a short queue are the same work, and they can take turns.
"""

import statistics
import time
from collections import deque
from contextlib import ExitStack

from mpworker import ProcessWorker, TaskFuture
from mpworker.bench.measure import Benchmark, Measure, Round, Settings, Target
from mpworker.bench.processes import usage_of
from mpworker.bench.tasks import noop

FEW, MANY = 1_000, 1_000_000
SLICE = 1_000  # tasks
SLICES = 41  # the first one is to warm up
SLICES_OF_A_PRIORITY = 8


class Line:
    """A pool of one child, and a queue before it.

    Args:
        waiting: How many tasks wait before each slice.
        in_order: Use a queue and priorities, and not the plain FIFO.
        stack: Stops the pool.
        slice_size: Tasks of a slice.
    """

    def __init__(self, waiting: int, in_order: bool, stack: ExitStack, slice_size: int) -> None:
        self._waiting = waiting
        self._in_order = in_order
        self._slice_size = slice_size
        self._worker = ProcessWorker(1, max_pending=2 * waiting + 2 * slice_size)
        stack.callback(self._worker.stop_now)
        self._supervisor: int = self._worker.processes()["supervisor"]
        self._slices: deque[tuple[TaskFuture[None], TaskFuture[None]]] = deque()  # its last task, and its end
        self._added = 0
        self._gate = self._view().submit(time.sleep, 3_600.0)
        self.fill()

    def _view(self) -> ProcessWorker:
        if not self._in_order:
            return self._worker
        view: ProcessWorker = self._worker.options(queue="other", priority=self._added // SLICES_OF_A_PRIORITY)
        return view

    def fill(self) -> None:
        """Have as many tasks wait as there should."""
        while len(self._slices) * self._slice_size < self._waiting:
            view = self._view()
            self._added += 1
            for _ in range(self._slice_size):
                last = view.submit(noop)
            self._slices.append((last, view.submit(time.sleep, 3_600.0)))

    def run_slice(self) -> tuple[float, float]:
        """Microseconds for a task: CPU time of the supervisor, and time."""
        last, gate = self._slices.popleft()
        before = usage_of(self._supervisor)
        begun = time.perf_counter()
        self._gate.cancel()
        last.result()
        seconds = time.perf_counter() - begun
        self._worker.processes()  # it has an end, and the supervisor's time is up to date
        used = usage_of(self._supervisor) - before
        self._gate = gate
        return used.cpu_ns / 1e3 / self._slice_size, seconds * 1e6 / self._slice_size


def take_round(settings: Settings) -> Round:
    """All queues are there at the same time, and take turns slice by slice."""
    size = settings.count(SLICE)
    with ExitStack() as stack:
        lines = {
            f"{order}{waiting:,} wait": Line(max(size, settings.count(waiting)), bool(order), stack, size)
            for order in ("", "in order, ")
            for waiting in (FEW, MANY)
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
        for _ in range(max(3, int(SLICES * min(1.0, settings.scale)))):
            for name, line in lines.items():
                line.fill()
                found[name].append(line.run_slice())
    return {
        name: {
            "supervisor": statistics.median(cpu for cpu, _ in slices[1:]),
            "time": statistics.median(took for _, took in slices[1:]),
        }
        for name, slices in found.items()
    }


_TARGETS = (
    Target(f"{MANY:,} wait", 1.5, f"{FEW:,} wait"),
    Target(f"in order, {MANY:,} wait", 1.5, f"in order, {FEW:,} wait"),
)
BENCHMARK = Benchmark(
    "a start while few and while very many tasks wait, CPU of the supervisor and time",
    (Measure("supervisor", "us", targets=_TARGETS), Measure("time", "us", targets=_TARGETS)),
    whole=take_round,
    base=f"{FEW:,} wait",
    rounds_max=1,
)
