"""Named queues: what `queues=` takes, and what `ProcessWorker.queues` tells."""

from dataclasses import dataclass
from typing import Any, Final

from mpworker.checks import check_int, check_number, check_text
from mpworker.errors import ConfigurationError, InvalidArgument
from mpworker.options import QUEUES_MAX

QUEUE_WEIGHT_MAX: Final = 100
RATE_MIN, RATE_MAX = 1e-6, 1e9
BURST_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """One named queue: its share of the starts, and its limits.

    Attributes:
        weight: Its share, 1 to 100: with W the sum of all queues' weights, a queue that has work waits for at most
            ceil(W / weight) starts of other queues between two of its own, and gets `weight` of W starts.
        max_running: How many of its tasks run at once; None for as many as there are children.
        rate: Starts per second, such as 0.1 for one every ten seconds; None for no limit.
        burst: How many may start at once when none has for long; None for as many as there are children at any time, or
            `max_pending` if that is less.

    Raises:
        InvalidArgument: An attribute has a wrong type.
        ConfigurationError: One is out of its bounds.

    Example:
        >>> from mpworker import ProcessWorker, QueueOptions
        >>> with ProcessWorker(n=2, queues={"mail": QueueOptions(rate=50.0), "default": 5}) as w:
        ...     w.options(queue="mail").submit(len, "four").result()
        4
    """

    weight: int = 1
    max_running: int | None = None
    rate: float | None = None
    burst: int | None = None

    def __post_init__(self) -> None:
        plain = object.__setattr__  # the class is frozen, and what JSON cannot write must not stay in it
        plain(self, "weight", check_int("weight", self.weight, 1, QUEUE_WEIGHT_MAX))
        if self.max_running is not None:
            plain(self, "max_running", check_int("max_running", self.max_running, 1, 1 << 40))
        plain(self, "rate", check_rate(self.rate))
        plain(self, "burst", check_burst(self.burst))


@dataclass(frozen=True, slots=True)
class QueueState:
    """How a queue is just now.

    Attributes:
        weight: As in `QueueOptions`.
        max_running: As there.
        rate: As there.
        burst: As there; None where there is no rate.
        paused: Nothing of it starts.
        draining: Nothing of it starts that came since `drain`.
        queued: Tasks and parts of a map that wait in it.
        running: Those that are with a child, a few of which may not have begun.
    """

    weight: int
    max_running: int | None
    rate: float | None
    burst: int | None
    paused: bool
    draining: bool
    queued: int
    running: int


def check_rate(value: Any) -> float | None:
    """Starts per second, None for no limit."""
    return None if value is None else check_number("rate", value, RATE_MIN, RATE_MAX)


def check_burst(value: Any) -> int | None:
    """Starts at once, None for the default."""
    return None if value is None else check_int("burst", value, 1, BURST_MAX)


def check_limit(rate: Any, burst: Any) -> tuple[float | None, int | None]:
    """The limit of all queues together. Of one queue it is no mistake to say the burst first, which stays.

    Raises:
        ConfigurationError: There is a burst without a rate, or one is out of its bounds.
    """
    rate, burst = check_rate(rate), check_burst(burst)
    if burst is not None and rate is None:
        raise ConfigurationError(f"burst={burst} is for a rate, which is not given")
    return rate, burst


def check_queue_name(value: Any) -> str:
    """The name of a queue."""
    return check_text("a queue's name", value, 1)


def check_queues(value: Any) -> dict[str, QueueOptions]:
    """What `queues=` was given: names, and for each a weight or a `QueueOptions`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidArgument(f"queues must be a dict of names and weights (or QueueOptions), not {value!r}")
    if len({"default", *value}) > QUEUES_MAX:
        raise ConfigurationError(
            f"a worker has at most {QUEUES_MAX} queues, and there is 'default', too: not {len(value)}"
        )
    return {
        check_queue_name(name): each
        if isinstance(each, QueueOptions)
        else QueueOptions(weight=_check_weight(name, each))
        for name, each in value.items()
    }


def _check_weight(name: str, value: Any) -> int:
    return check_int(f"the weight of queue {name!r}", value, 1, QUEUE_WEIGHT_MAX)
