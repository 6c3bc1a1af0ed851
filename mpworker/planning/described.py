"""A load from a description: how tasks arrive, how long a call takes, what becomes of it."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from mpworker.checks import check_int, check_number, check_seconds
from mpworker.errors import ConfigurationError
from mpworker.planning.load import Attempt, Job, Load
from mpworker.supervisor.effects import ERROR, OK
from mpworker.supervisor.registry import TaskOptions

JOBS_MAX: Final = 1_000_000
RATE_MAX: Final = 1e6
_SECONDS_MAX: Final = 1e6
_Z95: Final = 1.6448536269514722  # of the normal distribution
_SHAPES: Final = "constant:SECONDS, exponential:MEAN, lognormal:MEAN,P95, uniform:LOW,HIGH or file:PATH"

Sampler: TypeAlias = Callable[[random.Random], float]


@dataclass(frozen=True)
class Service:
    """How long a call computes on a core of its own.

    Attributes:
        text: As it was described.
        mean: Seconds.
        draw: One of them.
    """

    text: str
    mean: float
    draw: Sampler


def service(text: str) -> Service:
    """Read a description of service times.

    Args:
        text: `constant:SECONDS`, `exponential:MEAN`, `lognormal:MEAN,P95`, `uniform:LOW,HIGH`, or `file:PATH`, a file
            with a number of seconds on each line, of which each call takes one by chance.

    Raises:
        ConfigurationError: It is none of these, or a figure is out of its bounds.
    """
    kind, _, rest = text.partition(":")
    if kind == "file" and rest:
        return _sampled(text, Path(rest))
    counts = {"constant": 1, "exponential": 1, "lognormal": 2, "uniform": 2}
    if len(figures := rest.split(",")) != counts.get(kind):
        raise ConfigurationError(f"service {text!r} must be {_SHAPES}")
    values = [_seconds(f"service {text!r}", each) for each in figures]
    if kind == "constant":
        return Service(text, values[0], lambda _random: values[0])
    if kind == "exponential":
        return Service(text, values[0], lambda chance: chance.expovariate(1.0 / values[0]))
    low, high = values
    if kind == "uniform":
        if high < low:
            raise ConfigurationError(f"service {text!r}: the high end {high:g} is below the low end {low:g}")
        return Service(text, (low + high) / 2, lambda chance: chance.uniform(low, high))
    sigma = _sigma(text, *values)
    mu = math.log(low) - sigma**2 / 2
    return Service(text, low, lambda chance: chance.lognormvariate(mu, sigma))


def _seconds(what: str, text: str) -> float:
    try:
        return check_number(f"{what}: a time", float(text), 1e-9, _SECONDS_MAX)
    except ValueError as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{what}: {text.strip()!r} is no number of seconds") from None


def _sigma(text: str, mean: float, p95: float) -> float:
    """Of a lognormal distribution: ln(p95 / mean) = Z95 sigma - sigma^2 / 2, of which the smaller root is meant."""
    most = math.exp(_Z95**2 / 2)
    if not mean <= p95 <= most * mean:
        raise ConfigurationError(
            f"service {text!r}: the p95 of a lognormal distribution is 1 to {most:.2f} times its mean, "
            f"not {p95 / mean:.2f}"
        )
    return _Z95 - math.sqrt(max(0.0, _Z95**2 - 2 * math.log(p95 / mean)))


def _sampled(text: str, path: Path) -> Service:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"service {text!r}: cannot be read: {error}") from error
    values = [_seconds(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not values:
        raise ConfigurationError(f"service {text!r}: there is no number in it")
    return Service(text, sum(values) / len(values), lambda chance: chance.choice(values))


@dataclass(frozen=True)
class Description:
    """A load in a few figures.

    Attributes:
        service: How long a call computes.
        rate: Arrivals per second, at random times (a Poisson process); None for a batch.
        batch: Tasks that come all at once; None for a rate.
        tasks: How many arrive at that rate.
        failures: The part of the attempts that fail.
        retries: Further attempts after one that failed or was late.
        timeout: Seconds that an attempt may run, None for no limit.
        deadline: Seconds from its arrival after which a task has missed its deadline, None for none.
        size: Bytes of a call.

    Raises:
        ConfigurationError: A figure is out of its bounds.
    """

    service: Service
    rate: float | None = None
    batch: int | None = None
    tasks: int = 10_000
    failures: float = 0.0
    retries: int = 0
    timeout: float | None = None
    deadline: float | None = None
    size: int = 0

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.batch is None):
            raise ConfigurationError("a load has either an arrival rate or a batch size")
        if self.rate is not None:
            check_number("the arrival rate", self.rate, 1e-6, RATE_MAX)
            check_int("tasks", self.tasks, 100, JOBS_MAX)
        else:
            check_int("the batch size", self.batch, 1, JOBS_MAX)
        check_number("the part of failures", self.failures, 0.0, 1.0)
        check_int("retries", self.retries, 0, 1000)
        check_seconds("timeout", self.timeout, optional=True)
        check_seconds("deadline", self.deadline, optional=True)
        check_int("the size of a call", self.size, 0, 1 << 40)

    def load(self, seed: int) -> Load:
        """Such a load; the same for the same seed."""
        chance = random.Random(seed)
        options = TaskOptions(timeout=self.timeout, retries=self.retries, crash_retries=self.retries)
        at = 0.0
        jobs = []
        for _ in range(self.batch or self.tasks):
            jobs.append(Job(at, self._attempts(chance), options, size=self.size, deadline=self.deadline))
            if self.rate is not None:
                at += chance.expovariate(self.rate)
        return Load(jobs, steady=self.rate is not None)

    def _attempts(self, chance: random.Random) -> tuple[Attempt, ...]:
        seconds = self.service.draw(chance)
        if not self.failures:
            return (Attempt(seconds),)
        attempts = []
        for _ in range(self.retries + 1):
            failed = chance.random() < self.failures
            attempts.append(Attempt(seconds, ERROR if failed else OK))
            if not failed:
                break
        return tuple(attempts)


def looks_like_a_description(text: str) -> bool:
    """Is this a description of service times, as opposed to the name of a file?"""
    return re.match(r"(constant|exponential|lognormal|uniform|file):", text) is not None
