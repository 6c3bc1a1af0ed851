"""mpworker: a process pool that keeps its promises when processes die.

The names below are loaded when they are first used: the supervisor and the children import this package too, and
neither they nor a command line that prints its version should pay for the client.
"""

import sys

# Known to type checkers by its name. `typing` is not imported: the supervisor and the nursery import this package on a
# path of nothing but its folder.
TYPE_CHECKING = False

__version__ = "0.1.0"

if sys.platform != "linux":
    raise ImportError(f"mpworker needs Linux (memfd, pidfd, /proc); this is {sys.platform}")
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError("mpworker needs a CPython with the GIL; this is a free-threaded build")

if TYPE_CHECKING:
    from mpworker import errors as errors
    from mpworker.aio import AsyncProcessWorker as AsyncProcessWorker
    from mpworker.aio import AsyncTaskView as AsyncTaskView
    from mpworker.aiofuture import AsyncTaskFuture as AsyncTaskFuture
    from mpworker.aioresults import AsyncSubscription as AsyncSubscription
    from mpworker.aiotasks import AsyncTaskInfo as AsyncTaskInfo
    from mpworker.connected import ConnectedWorker as ConnectedWorker
    from mpworker.connected import connect as connect
    from mpworker.context import TaskContext as TaskContext
    from mpworker.context import current as current
    from mpworker.cron import CronRun as CronRun
    from mpworker.cron import CronTask as CronTask
    from mpworker.future import TaskFuture as TaskFuture
    from mpworker.hooks import Hooks as Hooks
    from mpworker.hooks import TaskEvent as TaskEvent
    from mpworker.hooks import Tracer as Tracer
    from mpworker.logger import Logger as Logger
    from mpworker.logs import StandardLogger as StandardLogger
    from mpworker.metrics import Latency as Latency
    from mpworker.metrics import Metrics as Metrics
    from mpworker.queues import QueueOptions as QueueOptions
    from mpworker.queues import QueueState as QueueState
    from mpworker.results import Subscription as Subscription
    from mpworker.results import TaskResult as TaskResult
    from mpworker.retention import Retention as Retention
    from mpworker.retry import RetryPolicy as RetryPolicy
    from mpworker.shared import Shared as Shared
    from mpworker.stopping import StopReport as StopReport
    from mpworker.task import AttemptInfo as AttemptInfo
    from mpworker.task import Task as Task
    from mpworker.task import TaskInfo as TaskInfo
    from mpworker.task import TaskStatus as TaskStatus
    from mpworker.view import TaskView as TaskView
    from mpworker.worker import ProcessWorker as ProcessWorker

_HOMES = {
    "AsyncProcessWorker": "mpworker.aio",
    "AsyncSubscription": "mpworker.aioresults",
    "AsyncTaskFuture": "mpworker.aiofuture",
    "AsyncTaskInfo": "mpworker.aiotasks",
    "AsyncTaskView": "mpworker.aio",
    "AttemptInfo": "mpworker.task",
    "ConnectedWorker": "mpworker.connected",
    "CronRun": "mpworker.cron",
    "CronTask": "mpworker.cron",
    "Hooks": "mpworker.hooks",
    "Logger": "mpworker.logger",
    "Latency": "mpworker.metrics",
    "Metrics": "mpworker.metrics",
    "ProcessWorker": "mpworker.worker",
    "QueueOptions": "mpworker.queues",
    "QueueState": "mpworker.queues",
    "Retention": "mpworker.retention",
    "RetryPolicy": "mpworker.retry",
    "Subscription": "mpworker.results",
    "Shared": "mpworker.shared",
    "StandardLogger": "mpworker.logs",
    "TaskEvent": "mpworker.hooks",
    "Tracer": "mpworker.hooks",
    "TaskContext": "mpworker.context",
    "TaskFuture": "mpworker.future",
    "TaskResult": "mpworker.results",
    "StopReport": "mpworker.stopping",
    "Task": "mpworker.task",
    "TaskInfo": "mpworker.task",
    "TaskStatus": "mpworker.task",
    "TaskView": "mpworker.view",
    "connect": "mpworker.connected",
    "current": "mpworker.context",
}

__all__ = [
    "AsyncProcessWorker",
    "AsyncSubscription",
    "AsyncTaskFuture",
    "AsyncTaskInfo",
    "AsyncTaskView",
    "AttemptInfo",
    "ConnectedWorker",
    "CronRun",
    "CronTask",
    "Hooks",
    "Latency",
    "Logger",
    "Metrics",
    "ProcessWorker",
    "QueueOptions",
    "QueueState",
    "Retention",
    "RetryPolicy",
    "Shared",
    "StandardLogger",
    "StopReport",
    "Subscription",
    "Task",
    "TaskContext",
    "TaskEvent",
    "TaskFuture",
    "TaskInfo",
    "TaskResult",
    "TaskStatus",
    "TaskView",
    "Tracer",
    "__version__",
    "connect",
    "current",
    "errors",
]


def __getattr__(name: str) -> object:
    home = "mpworker.errors" if name == "errors" else _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mpworker' has no attribute {name!r}")
    from mpworker import uncollected  # not before: `from mpworker import context`, in a child, asks first

    uncollected.load(home)
    if name == "errors":
        return sys.modules[home]
    value: object = getattr(sys.modules[home], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
