"""Every error that mpworker raises, grouped by whose fault it is.

============ ========================================================================================
whose fault  errors
============ ========================================================================================
the caller's `ConfigurationError`, `TaskNotFound`, `DuplicateTask`, `QueueFull`, `WorkerStopped`, `WrongEventLoop`,
             `ShareError`
the task's   `SerializationError`, `TaskTimeout`, `TaskCancelled`, `TaskExited`
a child's    `WorkerCrashed`
ours         `SupervisorLost`
the system's `ConnectError`
============ ========================================================================================
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mpworker.executorerrors import StartFailed as StartFailed
    from mpworker.executorerrors import SupervisorLost as SupervisorLost
    from mpworker.executorerrors import TaskCancelled as TaskCancelled
    from mpworker.executorerrors import WorkerCrashed as WorkerCrashed

# They are errors of `concurrent.futures`, too, which no start and no child shall wait for.
_LOADED_LATER = frozenset({"StartFailed", "SupervisorLost", "TaskCancelled", "WorkerCrashed"})


if not TYPE_CHECKING:  # which would take any name then

    def __getattr__(name: str) -> object:
        if name not in _LOADED_LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mpworker import executorerrors

        globals().update({each: getattr(executorerrors, each) for each in _LOADED_LATER})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted(set(globals()) | _LOADED_LATER)


class MPWorkerError(Exception):
    """The root of all errors of this package."""


class ConfigurationError(MPWorkerError, ValueError):
    """An option or argument is out of its bounds; the message names the value and the bound."""


class InvalidArgument(ConfigurationError, TypeError):
    """An argument has the wrong type, such as a task that is not callable, or there is none of its name."""


class TaskNotFound(MPWorkerError, KeyError):
    """No task has this id."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # a KeyError's own would quote the message


class DuplicateTask(MPWorkerError, ValueError):
    """There is a task with this id, or another call with this idempotency key: unfinished, or still remembered."""


class QueueFull(MPWorkerError):
    """`max_pending` tasks are unfinished, and `submit_timeout` is over."""


class WorkerStopped(MPWorkerError, RuntimeError):
    """The worker takes no more tasks: it was stopped, or it was made before this process was forked."""


class WrongEventLoop(MPWorkerError, RuntimeError):
    """An `AsyncProcessWorker` belongs to the event loop, and the thread, that used it first; this is not that one."""


class ConnectError(MPWorkerError, ConnectionError):
    """No supervisor can be attached to: none listens there, it refuses this program, or it says nothing in time.

    Attributes:
        for_good: It has refused this program, and will whenever it is asked.
        hung_up: It has ended the connection, as it has died perhaps.
    """

    for_good = hung_up = False


class ShareError(MPWorkerError):
    """An object cannot be shared, or not be had by its handle: it was closed, or is of another worker or task."""


class SerializationError(MPWorkerError):
    """A function, argument, result or exception cannot be sent from one process to the other.

    Attributes:
        raised_type: Of an exception that the task raised and that cannot be sent: its type. Else empty.
        raised_message: And what it says.
    """

    raised_type = ""
    raised_message = ""


class TaskTimeout(MPWorkerError, TimeoutError):
    """An attempt of a task ran for longer than its timeout.

    Attributes:
        stack: The Python stack of the task when it was interrupted, or had to be killed because it took no interrupt,
            from its function on; "" if it had no Python frame.
    """

    def __init__(self, message: str = "", stack: str = "") -> None:
        super().__init__(message)
        self.stack = stack

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.stack)


class TaskExited(MPWorkerError):
    """The task raised SystemExit (as `sys.exit` does) or KeyboardInterrupt.

    Those must not be raised again in the process that waits for the result: they would end it.

    Attributes:
        code: The code of the SystemExit, as text.
    """

    def __init__(self, message: str = "", code: str = "") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.code)


class Retry(MPWorkerError):
    """Raised by a task that wants to be tried again later.

    It counts against `retries` like any other exception; with none left it is what the future raises.

    Attributes:
        after: Seconds until then; None for the pause of the `RetryPolicy`.
    """

    def __init__(self, after: float | None = None) -> None:
        from mpworker.checks import check_seconds

        super().__init__("the task asked to be tried again")
        self.after = check_seconds("after", after, optional=True, zero=True)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.after,)


class RemoteTraceback(Exception):
    """The traceback of an exception as the child printed it; the `__cause__` of what a result raises."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
