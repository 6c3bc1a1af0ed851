"""Those errors of `mpworker.errors` that are errors of `concurrent.futures`, too; there they are found and belong."""

from concurrent.futures import BrokenExecutor, CancelledError

from mpworker import errors
from mpworker.errors import MPWorkerError


class TaskCancelled(MPWorkerError, CancelledError):
    """The task was cancelled before it ended."""


class WorkerCrashed(MPWorkerError, BrokenExecutor):
    """A child process died while it ran the task. The pool goes on.

    Attributes:
        pid: The child's process id.
        signal: The number of the signal that killed it, or 0.
        exit_code: Its exit code, or None if a signal killed it.
        cause: "signal", "exit", "oom" (the kernel's out-of-memory kill), "memory" (more than `memory_limit_hard`),
            "lease" (no heartbeat), "grace" (it was interrupted, for a timeout or a cancel, and did not end within
            `grace`), "nursery" (the process that forks the children died), "corrupt" (it wrote nonsense into the
            memory it shares with the supervisor), "lost" (a chunk's item ended, its result died with the child),
            "unkillable" (the child survived SIGKILL) or "supervisor" (that died, of a worker that has attached: `pid`
            and `signal` are 0).
        attempt: The attempt that this death ended, from 1.
    """

    def __init__(
        self,
        message: str = "",
        pid: int = 0,
        signal: int = 0,
        exit_code: int | None = None,
        cause: str = "",
        attempt: int = 0,
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.signal = signal
        self.exit_code = exit_code
        self.cause = cause
        self.attempt = attempt

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.pid, self.signal, self.exit_code, self.cause, self.attempt)


class StartFailed(WorkerCrashed):
    """The children die before they can run anything: a bad preload or initializer, or a start that takes too long.

    If a preload or the initializer raised, the cause is a `RemoteTraceback` that shows where.
    """


class SupervisorLost(MPWorkerError, BrokenExecutor):
    """The supervisor process died; what was pending is unknown to this client."""


for _each in (TaskCancelled, WorkerCrashed, StartFailed, SupervisorLost):
    _each.__module__ = errors.__name__  # for a traceback, a pickle and the reference
