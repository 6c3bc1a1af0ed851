"""What the supervisor is told once of options and queues, and knows from then on by a number or a name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from mpworker.errors import ConfigurationError, SerializationError
from mpworker.ipc import codec, json, payload
from mpworker.options import QUEUES_MAX, TaskDefaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from mpworker.client import Client
    from mpworker.queues import QueueOptions
    from mpworker.retry import Judge, RetryPolicy

_ORDER: Final = ("queue", "priority", "weight")  # what is told only where it differs
_PLAIN: Final = TaskDefaults()
OPTIONS_MAX: Final = 1024


class QueueTable:
    """The queues of one client's worker.

    Args:
        client: Whose.
        n: How many children there are.
        most: A default burst is no larger.

    Attributes:
        configured: The options of those that have some.
        refuses: Is a name that nobody has configured an error?
    """

    def __init__(self, client: Client, n: int, most: int) -> None:
        self._client = client
        self._n = n
        self._burst_max = most
        self._rate: float | None = None  # of all queues together, if its burst was left to the default
        self._names = {"default"}
        self.configured: dict[str, QueueOptions] = {}
        self.refuses = False

    def use(self, name: str, made: bool = False) -> None:
        """One is named: where something is to wait in it, or (made) by who makes it.

        Raises:
            ConfigurationError: There is none of this name, nor may there be.
        """
        if name in self._names:
            return
        if not made:
            self.look_for(name)
        if len(self._names) >= QUEUES_MAX:
            raise ConfigurationError(f"a worker has at most {QUEUES_MAX} queues: there is no room for {name!r}")
        self._names.add(name)

    def look_for(self, name: str) -> None:
        """One is named by who only asks for what is in it, which makes none.

        Raises:
            ConfigurationError: There is none of this name, and that is refused.
        """
        if self.refuses and name not in self._names:
            known = ", ".join(map(repr, sorted(self._names)))
            raise ConfigurationError(f"there is no queue {name!r}, and unknown_queues is 'refuse'; there are {known}")

    def know(self, names: Iterable[str], refuses: bool) -> None:
        """These are there already; may no other be named?"""
        self._names.update(names)
        self.refuses = refuses

    def configure(self, name: str, options: QueueOptions) -> None:
        """Make a queue, or change one."""
        self.use(name, made=True)
        told: dict[str, Any] = {"weight": options.weight, "max_running": options.max_running, "rate": options.rate}
        told["burst"] = self._burst(options.burst)
        self._client.tell({"verb": "queue", "name": name, "options": told})
        self.configured[name] = options

    def configure_all(self, queues: Mapping[str, QueueOptions]) -> None:
        """Make several queues, or change them."""
        for name, options in queues.items():
            self.configure(name, options)

    def limit_rate(self, rate: float | None, burst: int | None) -> None:
        """Limit the starts of all queues together."""
        self._rate = rate if burst is None else None
        self._client.tell({"verb": "rate", "rate": rate, "burst": self._burst(burst)})

    def _burst(self, burst: int | None) -> int:
        return min(self._n, self._burst_max) if burst is None else burst

    def children_are(self, n: int) -> None:
        """There are n children from now on: each burst that was left to the default follows."""
        self._n = n
        if self._rate is not None:
            self.limit_rate(self._rate, None)
        for name, options in list(self.configured.items()):
            if options.rate is not None and options.burst is None:
                self.configure(name, options)


class OptionTable:
    """The sets of options that the supervisor knows by a number.

    Args:
        client: Of which client.

    Attributes:
        priority_min: The lowest number that may be asked for, where others have tasks there, too; None for any.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys: dict[TaskDefaults, int] = {}
        self._sets: dict[int, TaskDefaults] = {}
        self._numbers = itertools.count(1)
        self._judges: dict[Judge, int] = {}  # one for all policies that are equal in this
        self.priority_min: int | None = None  # None for any

    def say(self, options: TaskDefaults) -> tuple[int, dict[str, Any] | None]:
        """The number under which the supervisor knows these options, and what of them goes along with each task.

        Raises:
            ConfigurationError: They limit what has no concurrency key, or the queue or the priority is refused.
        """
        self._client.refuse_if_closed()
        if self.priority_min is not None and options.priority < self.priority_min:
            raise ConfigurationError(
                f"priority must be at least {self.priority_min} with this supervisor, which others use as well, "
                f"not {options.priority}"
            )
        said: dict[str, Any] = {}
        if options.concurrency_key:
            said["concurrency"] = [options.concurrency_key, options.concurrency]
        shared = options
        if options.concurrency_key or options.concurrency != 1:
            options.refuse_limit_of_nothing()
            shared = options.but(concurrency_key="", concurrency=1)
        key = self._keys.get(shared)
        if key is None and len(self._keys) >= OPTIONS_MAX:
            key = 1  # any
            said["options"] = self._report(shared)
        elif key is None:
            key = next(self._numbers)
            report = self._report(shared)
            self._sets[key] = shared  # first: another supervisor is sent all that are here
            self._client.sending.send(codec.OPTIONS, 0, key, 0, 0, json.dumps(report).encode())
            self._keys[shared] = key  # another thread may have sent the same ones: either number will do
        return key, said or None

    def reports(self) -> list[tuple[int, bytes]]:
        """All that the supervisor was told, by number."""
        return [(key, json.dumps(self._report(shared)).encode()) for key, shared in list(self._sets.items())]

    def said(self, number: int) -> dict[str, Any]:
        """The queue, priority and weight that the supervisor knows by this number."""
        options = self._sets.get(number)
        return {} if options is None else {name: getattr(options, name) for name in _ORDER}

    def _report(self, options: TaskDefaults) -> dict[str, Any]:
        crash_retries = options.retries if options.crash_retries is None else options.crash_retries
        report: dict[str, Any] = {
            "timeout": options.timeout,
            "retries": options.retries,
            "crash_retries": crash_retries,
        }
        if options.retry_policy is not None:
            report |= self._retry_report(options.retry_policy)
        self._client.queues.use(options.queue)
        return report | {name: each for name in _ORDER if (each := getattr(options, name)) != getattr(_PLAIN, name)}

    def _retry_report(self, policy: RetryPolicy) -> dict[str, Any]:
        judge = policy.judge()
        key = self._judges.get(judge, 0) if judge is not None else 0
        try:
            if judge is not None and not key:
                # Kept as long as the worker, as the options are: a view may hold what was said of it.
                pinned: list[int] = []
                self._client.functions.always(judge, pinned)
                key = self._judges[judge] = pinned[0]
        except payload.Unserializable as error:
            raise SerializationError(f"an exception of the retry_policy cannot be pickled: {error}") from error
        return {"judge": key, "backoff": [policy.base, policy.factor, policy.cap, policy.jitter]}
