"""`connect`: a worker whose supervisor is there already, for this program and others."""

from __future__ import annotations

import os

from mpworker.checks import check_int, check_seconds, check_text
from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.observing import Observing
from mpworker.options import TaskDefaults, WorkerOptions
from mpworker.service import paths
from mpworker.service.attaching import Attached, terms_as_options
from mpworker.steps import answered
from mpworker.view import TaskView, be_executors
from mpworker.worker import ProcessWorker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence
    from typing import Any, Final, Literal

    from mpworker.client import Client
    from mpworker.hooks import Hooks, Tracer
    from mpworker.logger import Logger
    from mpworker.retention import Retention
    from mpworker.retry import RetryPolicy
    from mpworker.steps import Steps

_WHEN_GONE: Final = ("cancel", "finish")


class ConnectedWorker(ProcessWorker):
    """A `ProcessWorker` whose processes are another program's; made by `connect`.

    It has the same verbs. Leaving the block, or a stop, waits for what was submitted here (or cancels it), and then
    detaches: the supervisor and its children go on. What concerns all who use them, the number of children, queues and
    limits, is for those whom the supervisor's configuration names.

    Args:
        path: The supervisor's socket; None for the usual places: see `connect`.
        name: What the operator sees of this program; 0 to 200 characters, of which 64 are kept.
        timeout: As for `ProcessWorker`, here and below.
        retries: See there.
        crash_retries: See there.
        retry_policy: See there.
        max_pending: As there, but no more than the supervisor allows; None for as many as that.
        submit_timeout: See there.
        retention: See there.
        hooks: See there.
        tracer: See there.
        logger: See there.
        submit_middleware: See there.
        when_gone: What becomes of the tasks if this program dies: "cancel" cancels them, those that run too; with
            "finish" they come to their end, and nobody is told.
        connect_timeout: Seconds to wait for a supervisor that is not there yet, or says nothing.
        reconnect_timeout: Seconds to wait for another supervisor when the one that this program is attached to dies:
            what it had accepted and has no outcome is submitted again, and an attempt that was running counts as one
            whose child has died. What is called meanwhile waits. 0: all that is pending ends `SupervisorLost` at once.

    Raises:
        InvalidArgument: An option has a wrong type.
        ConfigurationError: One is out of its bounds.
        ConnectError: No supervisor listens there in time, or it refuses this program.
        SerializationError: An exception of the retry policy cannot be pickled.
        OSError: No memory or descriptor is left.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = "",
        timeout: float | None = None,
        retries: int = 0,
        crash_retries: int | None = None,
        retry_policy: RetryPolicy | None = None,
        max_pending: int | None = None,
        submit_timeout: float | None = None,
        retention: Retention | None = None,
        hooks: Hooks | None = None,
        tracer: Tracer | None = None,
        logger: Logger | logging.Logger | None = None,
        submit_middleware: Sequence[Callable[..., Any]] = (),
        when_gone: Literal["cancel", "finish"] = "cancel",
        connect_timeout: float = 5.0,
        reconnect_timeout: float = 60.0,
    ) -> None:
        if not isinstance(path, str | os.PathLike | None):
            raise InvalidArgument(f"path must be that of a supervisor's socket, not {path!r}")
        if path == "":
            raise ConfigurationError("path must be that of a supervisor's socket, not empty")
        self._path = paths.to_connect_to() if path is None else os.fspath(path)
        if when_gone not in _WHEN_GONE:
            raise ConfigurationError(f"when_gone must be 'cancel' or 'finish', not {when_gone!r}")
        check_text("name", name, 0)
        wait = check_seconds("connect_timeout", connect_timeout)
        waits = (wait, check_seconds("reconnect_timeout", reconnect_timeout, zero=True))
        most = None if max_pending is None else check_int("max_pending", max_pending, 1, 1 << 40)
        defaults = TaskDefaults(timeout, retries, crash_retries, retry_policy)
        observing = Observing(hooks, tracer, logger, submit_middleware)
        client, n = self._attach(observing, name, when_gone, waits, most, submit_timeout)
        try:
            be_executors()
            TaskView.__init__(self, client, defaults, n)
            if retention is not None:
                self.set_retention(retention)
        except BaseException:
            client.ending.stop_now()
            raise

    def _attach(
        self,
        observing: Observing,
        name: str,
        when_gone: str,
        waits: tuple[float, float],
        max_pending: int | None,
        submit_timeout: float | None,
    ) -> tuple[Client, int]:
        with Attached(self._path, observing, name, when_gone, *waits) as attached:
            terms = attached.terms
            self._steers: bool = terms["steers"]
            options = WorkerOptions(submit_timeout=submit_timeout, **terms_as_options(terms, max_pending))
            client = self._client_kind()(options, observing, attached)
            client.agree(terms)
            return client, options.n

    def _client_kind(self) -> type[Client]:
        from mpworker.client import Client

        return Client

    def __repr__(self) -> str:
        return f"<ConnectedWorker {self._path} supervisor={self._client.supervisor.pid}>"

    def _must_steer(self, verb: str) -> None:
        if not self._steers:
            raise ConfigurationError(
                f"{verb}() concerns all who use the supervisor at {self._path}, and user {os.getuid()} is not one of "
                "those who may: see clients.steering_uids in its configuration"
            )

    def _operate(self, what: dict[str, Any]) -> dict[str, Any]:
        """Ask what an operator asks: `mpworker status` and its like."""
        self._must_steer("operate")
        return self._client.carry_out(answered(self._client, {"verb": "service"} | what))

    def _reload(self) -> dict[str, Any]:
        """Have the configuration read again; what came of it: `mpworker.supervisor.reloading.Reloading.outcome`."""
        self._must_steer("reload")
        return self._client.carry_out(answered(self._client, {"verb": "reload"}))

    def _stacks(self) -> list[dict[str, Any]]:
        """Where the children are now: `mpworker.supervisor.stacktaking.StackTaking.outcome`."""
        self._must_steer("stacks")
        children: list[dict[str, Any]] = self._client.carry_out(answered(self._client, {"verb": "stacks"}))["children"]
        return children

    def set_queue(self, name: str, **options: Any) -> None:
        """See `ProcessWorker`, here and below; ConfigurationError for who may not."""
        self._must_steer("set_queue")
        super().set_queue(name, **options)

    def set_rate(self, rate: float | None, burst: int | None = None) -> None:
        """See there."""
        self._must_steer("set_rate")
        super().set_rate(rate, burst)

    def drain(self, *queues: str, timeout: float | None = None) -> bool:
        """See there."""
        self._must_steer("drain")
        return super().drain(*queues, timeout=timeout)

    def _steering(self, verb: str, queues: tuple[str, ...]) -> Steps[None]:
        self._must_steer(verb)
        return super()._steering(verb, queues)

    def _resizing(self, n: int) -> Steps[None]:
        self._must_steer("set_max_workers")
        return super()._resizing(n)


def connect(path: str | os.PathLike[str] | None = None, **options: Any) -> ConnectedWorker:
    """Attach to a supervisor that runs as a service: `mpworker serve`.

    Args:
        path: Its socket. None for what MPWORKER_SOCKET says, or else this user's own supervisor
            (`$XDG_RUNTIME_DIR/mpworker/mpworker.sock`) if there is one, or else that of the system
            (`/run/mpworker/mpworker.sock`).
        **options: Those of `ConnectedWorker`.

    Raises:
        InvalidArgument: There is no such option, or one has a wrong type.
        ConfigurationError: One is out of its bounds.
        ConnectError: No supervisor listens there, or it refuses this program.
        OSError: No memory or descriptor is left.
    """
    return ConnectedWorker(path, **options)
