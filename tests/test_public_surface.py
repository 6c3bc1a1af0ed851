"""The public surface, so that no change of it is an accident. Whoever changes it on purpose changes it here, too.

What is public is what the reference shows, and the reverse.
"""

import copy
import inspect
import pickle
import re
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import mpworker
from mpworker import errors, options
from mpworker.aio import PoolOptions
from mpworker.optiontypes import SizeOptions, TaskOptions

REFERENCE = (Path(__file__).parents[1] / "docs" / "reference.md").read_text()

ASYNC_NAMES = {"AsyncProcessWorker", "AsyncSubscription", "AsyncTaskFuture", "AsyncTaskInfo", "AsyncTaskView"}
NAMES = {
    *ASYNC_NAMES,
    "AttemptInfo",
    "ConnectedWorker",
    "CronRun",
    "CronTask",
    "Hooks",
    "Logger",
    "Latency",
    "Metrics",
    "ProcessWorker",
    "QueueOptions",
    "QueueState",
    "Retention",
    "RetryPolicy",
    "Subscription",
    "Shared",
    "StandardLogger",
    "TaskContext",
    "TaskEvent",
    "TaskFuture",
    "TaskResult",
    "StopReport",
    "Task",
    "TaskInfo",
    "TaskStatus",
    "TaskView",
    "Tracer",
    "__version__",
    "connect",
    "current",
    "errors",
}

VIEW = {
    "map": (
        "(self, fn, /, *iterables, timeout=None, chunksize=None, buffersize=None, return_exceptions=False, "
        "progress=False)"
    ),
    "options": "(self, **options)",
    "register_cron_task": ("(self, name, spec, task, *, tz='UTC', overlap='skip', misfire='once', misfire_grace=60.0)"),
    "shutdown": "(self, wait=True, *, cancel_futures=False)",
    "submit": "(self, fn, /, *args, **kwargs)",
    "submit_many": "(self, fn, items, /)",
}
WORKER = VIEW | {
    "cancel_all": "(self)",
    "cancel_task": "(self, task_id)",
    "get_results": "(self)",
    "cron_history": "(self, name)",
    "cron_tasks": "(self)",
    "pause_cron_task": "(self, name)",
    "remove_cron_task": "(self, name)",
    "resume_cron_task": "(self, name)",
    "run_cron_task": "(self, name)",
    "drain": "(self, *queues, timeout=None)",
    "execute_task": "(self, task, timeout=None)",
    "get_task": "(self, task_id)",
    "get_tasks": "(self, *, status=None, queue=None, limit=100)",
    "metrics": "(self)",
    "pause": "(self, *queues)",
    "processes": "(self)",
    "queues": "(self)",
    "register_task": "(self, task)",
    "register_task_after": "(self, delay, task)",
    "register_task_at": "(self, when, task)",
    "register_tasks": "(self, *tasks)",
    "resume": "(self, *queues)",
    "retry_task": "(self, task_id)",
    "set_hooks": "(self, hooks)",
    "set_max_workers": "(self, n)",
    "set_queue": "(self, name, **options)",
    "set_rate": "(self, rate, burst=None)",
    "set_retention": "(self, retention)",
    "share": "(self, obj)",
    "wait": "(self, timeout=None)",
    "stop_graceful": "(self, timeout=None, *, cancel_queued=False, wait=True)",
    "stop_now": "(self)",
    "subscribe_results": "(self, buffer=1024, policy='drop_newest', queues=None, statuses=None)",
}
ASYNC_WORKER = {name: each for name, each in WORKER.items() if name != "get_results"}
WORKER_INIT = (
    "(self, n=None, *, timeout=None, grace=5.0, retries=0, crash_retries=None, retry_policy=None, preload=(), "
    "initializer=None, initargs=(), max_tasks_per_child=None, memory_limit=None, memory_limit_hard=None, "
    "cpu_affinity=None, nice=0, blas_threads=None, max_pending=1000000, submit_timeout=None, queues=None, "
    "unknown_queues='create', rate=None, burst=None, retention=None, hooks=None, tracer=None, logger=None, "
    "record=None, submit_middleware=(), execute_middleware=(), lease_ttl=10.0, start_timeout=60.0, kill_timeout=10.0, "
    "python=None, debug=False, **others)"
)
FUTURE = {
    "add_done_callback": "(self, fn)",
    "cancel": "(self)",
    "cancelled": "(self)",
    "done": "(self)",
    "exception": "(self, timeout=None)",
    "result": "(self, timeout=None)",
    "running": "(self)",
}
CRASH = "(self, message='', pid=0, signal=0, exit_code=None, cause='', attempt=0)"
# Each with what it is among the library's own errors, its constructor if that is not Exception's, and its attributes.
ERRORS: dict[str, tuple[str, str, set[str]]] = {
    "MPWorkerError": ("Exception", "", set()),
    "ConfigurationError": ("ValueError", "", set()),
    "InvalidArgument": ("ConfigurationError TypeError", "", set()),
    "TaskNotFound": ("KeyError", "", set()),
    "DuplicateTask": ("ValueError", "", set()),
    "QueueFull": ("MPWorkerError", "", set()),
    "WorkerStopped": ("RuntimeError", "", set()),
    "WrongEventLoop": ("RuntimeError", "", set()),
    "ConnectError": ("ConnectionError", "", set()),
    "ShareError": ("MPWorkerError", "", set()),
    "SerializationError": ("MPWorkerError", "", set()),
    "TaskTimeout": ("TimeoutError", "(self, message='', stack='')", {"stack"}),
    "TaskCancelled": ("CancelledError", "", set()),
    "Retry": ("MPWorkerError", "(self, after=None)", {"after"}),
    "TaskExited": ("MPWorkerError", "(self, message='', code='')", {"code"}),
    "WorkerCrashed": ("BrokenExecutor", CRASH, {"pid", "signal", "exit_code", "cause", "attempt"}),
    "StartFailed": ("WorkerCrashed", CRASH, {"pid", "signal", "exit_code", "cause", "attempt"}),
    "SupervisorLost": ("BrokenExecutor", "", set()),
    "RemoteTraceback": ("Exception", "(self, text)", {"text"}),
}


def signature(function: Any) -> str:
    """Names, kinds and defaults. Types may become more exact at any time."""
    found = inspect.signature(function)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in found.parameters.values()]
    return str(inspect.Signature(plain))


def methods(kind: type) -> dict[str, str]:
    """The public methods that classes of ours define."""
    ours = [vars(base) for base in kind.__mro__ if base.__module__.startswith("mpworker")]
    names = {name for each in ours for name, value in each.items() if inspect.isroutine(value) and name[0] != "_"}
    return {name: signature(getattr(kind, name)) for name in names}


def test_the_names_of_the_package() -> None:
    assert set(mpworker.__all__) == NAMES
    assert set(dir(mpworker)) >= NAMES


def test_the_worker() -> None:
    assert methods(mpworker.ProcessWorker) == WORKER
    assert signature(mpworker.ProcessWorker.__init__) == WORKER_INIT
    assert isinstance(inspect.getattr_static(mpworker.ProcessWorker, "n"), property)
    assert methods(mpworker.TaskView) == VIEW


def test_the_connected_worker() -> None:
    assert methods(mpworker.ConnectedWorker) == WORKER
    assert signature(mpworker.connect) == "(path=None, **options)"
    assert signature(mpworker.ConnectedWorker.__init__) == (
        "(self, path=None, *, name='', timeout=None, retries=0, crash_retries=None, retry_policy=None, "
        "max_pending=None, submit_timeout=None, retention=None, hooks=None, tracer=None, logger=None, "
        "submit_middleware=(), when_gone='cancel', connect_timeout=5.0, reconnect_timeout=60.0)"
    )


def test_the_asynchronous_worker() -> None:
    view = {name: signature for name, signature in VIEW.items() if name != "shutdown"}
    assert methods(mpworker.AsyncTaskView) == view
    assert methods(mpworker.AsyncProcessWorker) == ASYNC_WORKER | {"connect": "(path=None, **options)"}
    assert signature(mpworker.AsyncProcessWorker.__init__) == "(self, n=None, **options)"
    coroutines = {
        name for name in ASYNC_WORKER if inspect.iscoroutinefunction(getattr(mpworker.AsyncProcessWorker, name))
    }
    assert coroutines == ASYNC_WORKER.keys() - {"submit", "submit_many", "map", "options", "subscribe_results"}
    assert isinstance(inspect.getattr_static(mpworker.AsyncProcessWorker, "n"), property)
    assert signature(mpworker.AsyncTaskInfo) == signature(mpworker.TaskInfo)
    assert methods(mpworker.AsyncTaskFuture) == {"cancel": "(self, msg=None)"}
    assert isinstance(inspect.getattr_static(mpworker.AsyncTaskFuture, "task_id"), property)


def test_the_future() -> None:
    # What else it has is between the client and its futures.
    library = {name for name, value in vars(Future).items() if inspect.isroutine(value) and name[0] != "_"}
    settled_by_others = {"set_result", "set_exception", "set_running_or_notify_cancel"}
    assert library - settled_by_others == set(FUTURE)
    found = methods(mpworker.TaskFuture)
    assert {name: found[name] for name in FUTURE} == FUTURE
    assert isinstance(inspect.getattr_static(mpworker.TaskFuture, "task_id"), property)


def test_the_handle_of_a_shared_object() -> None:
    assert methods(mpworker.Shared) == {"close": "(self)"}
    for name in ("value", "nbytes"):
        assert isinstance(inspect.getattr_static(mpworker.Shared, name), property)


def test_what_a_task_may_ask() -> None:
    assert signature(mpworker.current) == "()"
    assert signature(mpworker.TaskContext) == "(task_id, attempt, deadline=None, metadata=None)"
    assert methods(mpworker.TaskContext) == {"remaining": "(self)"}
    context = mpworker.TaskContext("7-1", 2, metadata={"a": 1})
    assert context == pickle.loads(pickle.dumps(context)) == copy.deepcopy(context)
    assert context != mpworker.TaskContext("7-1", 1, metadata={"a": 1})
    assert repr(context) == "TaskContext(task_id='7-1', attempt=2, deadline=None, metadata={'a': 1})"
    assert mpworker.TaskContext("7-1", 2).metadata == {}
    for change in (lambda: setattr(context, "attempt", 3), lambda: delattr(context, "attempt")):
        with pytest.raises(AttributeError, match="'attempt'"):
            change()


def test_the_retry_policy() -> None:
    assert signature(mpworker.RetryPolicy) == (
        "(base=0.0, factor=2.0, cap=60.0, jitter='full', retry_on=(<class 'BaseException'>,), give_up_on=())"
    )


def test_what_is_beside_the_tasks() -> None:
    assert signature(mpworker.Hooks) == "(*, on_queued=None, on_start=None, on_retry=None, on_finish=None)"
    assert signature(mpworker.TaskEvent) == (
        "(kind, task_id, name, queue, at, attempt=0, pid=0, started_at=None, ended_at=None, status=None, cause='', "
        "pause=None, run_at=None)"
    )
    assert methods(mpworker.Tracer) == {"start": "(self, event, /)", "end": "(self, span, event, /)"}
    assert methods(mpworker.Logger) == {"log": "(self, level, event, /, **fields)"}
    assert methods(mpworker.StandardLogger) == methods(mpworker.Logger)
    assert signature(mpworker.StandardLogger) == "(logger)"


def test_the_queues() -> None:
    assert signature(mpworker.QueueOptions) == "(*, weight=1, max_running=None, rate=None, burst=None)"
    assert signature(mpworker.QueueState) == "(weight, max_running, rate, burst, paused, draining, queued, running)"


def test_what_a_stop_reports() -> None:
    assert signature(mpworker.StopReport) == "(finished, tasks=0, task_ids=(), items=0)"


def test_what_is_told_of_recurring_tasks() -> None:
    assert signature(mpworker.CronTask) == (
        "(name, spec, tz, overlap, misfire, next_at, paused, running, waiting, runs, skipped, missed)"
    )
    assert signature(mpworker.CronRun) == "(scheduled_at, started_at, ended_at, task_id, outcome, error)"


def test_tasks_as_objects() -> None:
    fields = [name for name in signature(mpworker.Task)[1:-1].split(", ") if name != "*"]
    assert fields == [
        *("fn", "args=()", "kwargs=<factory>", "id=None", "name=''", "queue='default'", "priority=0", "weight=1"),
        *("timeout=Ellipsis", "deadline=None", "retries=Ellipsis", "crash_retries=Ellipsis", "retry_policy=Ellipsis"),
        *("run_at=None", "concurrency_key=''", "concurrency=1", "idempotency_key=None", "fingerprint=None"),
        "metadata=<factory>",
    ]
    assert signature(mpworker.TaskInfo) == (
        "(task_id, name, status, queue, priority, weight, attempts, run_at, deadline, metadata, retry_of, future)"
    )
    assert signature(mpworker.AttemptInfo) == "(status, pid, started_at, ended_at, cause='', error='')"
    assert [status.value for status in mpworker.TaskStatus] == [
        *("scheduled", "queued", "running", "completed", "failed", "cancelled", "timed_out")
    ]
    assert signature(mpworker.Retention) == (
        "(*, ttl=None, max_entries=1000, max_bytes=67108864, results=False, cleanup_interval=1.0)"
    )


def test_the_results() -> None:
    subscription = methods(mpworker.Subscription)
    assert {name: subscription[name] for name in ("close", "get")} == {"close": "(self)", "get": "(self, timeout=None)"}
    assert isinstance(inspect.getattr_static(mpworker.Subscription, "dropped"), property)
    twin = methods(mpworker.AsyncSubscription)
    assert {name: twin[name] for name in ("close", "get")} == {"close": "(self)", "get": "(self, timeout=None)"}
    assert inspect.iscoroutinefunction(mpworker.AsyncSubscription.get)
    assert isinstance(inspect.getattr_static(mpworker.AsyncSubscription, "dropped"), property)
    assert methods(mpworker.TaskResult) == {"exception": "(self)", "result": "(self)"}
    shown = {name for name, value in vars(mpworker.TaskResult).items() if isinstance(value, property)}
    assert shown == {"name", "queue", "status", "task_id"}


def test_the_errors() -> None:
    named = {name: getattr(errors, name) for name in dir(errors)}
    ours = {name for name, value in named.items() if isinstance(value, type) and value.__module__ == errors.__name__}
    assert ours == set(ERRORS)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error(name: str) -> None:
    kind: type[BaseException] = getattr(errors, name)
    bases, init, attributes = ERRORS[name]
    mro = [base.__name__ for base in kind.__mro__]
    assert [base for base in bases.split() if base not in mro] == []
    assert issubclass(kind, errors.MPWorkerError) == (name != "RemoteTraceback")
    own = [base for base in kind.__mro__ if base.__module__ == errors.__name__]
    assert any("__init__" in vars(base) for base in own) == bool(init)
    if init:
        assert signature(kind.__init__) == init
    instance = kind() if name == "Retry" else kind("text")
    assert set(vars(instance)) == attributes
    assert methods(kind) == {}
    assert (kind.__doc__ or "").strip(), "an error says in the reference when it is raised"


def test_the_reference_shows_all_of_it() -> None:
    shown = dict(re.findall(r"auto(?:class|function):: mpworker\.(\w+).*\n(?:   :members: (.*)\n)?", REFERENCE))
    assert set(shown) == NAMES - {"errors", "__version__"}
    members = {name: set(filter(None, re.split(r",\s*", listed))) for name, listed in shown.items()}
    assert members["TaskView"] == {"shutdown"}
    assert members["ProcessWorker"] == {*WORKER, "n"}
    assert members["TaskFuture"] == {*FUTURE, "task_id"}
    assert members["AsyncProcessWorker"] == {*ASYNC_WORKER, "n", "connect"}
    assert members["AsyncTaskFuture"] == {"cancel", "task_id"}
    assert members["Subscription"] == {"close", "dropped", "get"}
    assert members["AsyncSubscription"] == members["Subscription"]
    assert members["TaskResult"] == {"exception", "result"}
    assert "automodule:: mpworker.errors\n   :members:\n" in REFERENCE


def test_type_checkers_know_every_option() -> None:
    named = inspect.signature(mpworker.ProcessWorker).parameters.keys() - {"others"}
    assert TaskOptions.__annotations__.keys() == set(options.TASK_OPTIONS)
    assert SizeOptions.__annotations__.keys() == set(options.WORKER_OPTIONS) - named
    assert PoolOptions.__annotations__.keys() == (named | SizeOptions.__annotations__.keys()) - {"n", "debug"}
