"""When a task that failed is tried again: what `retry_policy` takes."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from mpworker.checks import check_number, check_seconds
from mpworker.errors import ConfigurationError, InvalidArgument

JITTERS: Final = ("full", "equal", "none")
_FACTOR_MAX: Final = 1e6


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """After what pause a further attempt begins, and after which exceptions there is none.

    How many further attempts there are at all is said by `retries` and `crash_retries`. The pause before the one that
    follows attempt k is `base * factor ** (k - 1)` seconds, at most `cap`, less what `jitter` takes off so that tasks
    that failed together do not come back together: "full" takes a random part of all of it, "equal" of half of it
    ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015). A task that waits holds no child, and one that is
    cancelled meanwhile does not come back.

    A task says itself when it wants to be tried again by raising `mpworker.errors.Retry`.

    Attributes:
        base: Seconds before the second attempt; 0 for at once.
        factor: By how much each pause is longer than the last one, at least 1.
        cap: The longest pause in seconds.
        jitter: "full", "equal" or "none".
        retry_on: Exceptions after which the task is tried again. Timeouts, which no exception of the task is, always
            count, as do deaths of the child.
        give_up_on: Those of them after which it is not.

    Raises:
        InvalidArgument: An attribute has a wrong type.
        ConfigurationError: One is out of its bounds.

    Example:
        >>> from mpworker import ProcessWorker, RetryPolicy
        >>> policy = RetryPolicy(base=0.5, cap=30.0, give_up_on=(ValueError,))
        >>> with ProcessWorker(n=1, retries=3, retry_policy=policy) as w:
        ...     w.submit(int, "many").exception()
        ValueError("invalid literal for int() with base 10: 'many'")
    """

    base: float = 0.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: Literal["full", "equal", "none"] = "full"
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        plain = object.__setattr__  # the class is frozen, and what JSON cannot write must not stay in it
        plain(self, "base", check_seconds("base", self.base, zero=True))
        plain(self, "cap", check_seconds("cap", self.cap, zero=True))
        plain(self, "factor", check_number("factor", self.factor, 1.0, _FACTOR_MAX))
        if self.jitter not in JITTERS:
            raise ConfigurationError(f"jitter must be one of {', '.join(map(repr, JITTERS))}, not {self.jitter!r}")
        for name in ("retry_on", "give_up_on"):
            plain(self, name, _exceptions(name, getattr(self, name)))

    def judge(self) -> "Judge | None":
        """What tells in a child whether an exception ends the task; None if each is tried again."""
        if self.give_up_on or BaseException not in self.retry_on:
            return Judge(self.retry_on, self.give_up_on)
        return None


def _exceptions(name: str, value: Any) -> tuple[type[BaseException], ...]:
    found = (value,) if isinstance(value, type) else value
    if not isinstance(found, tuple | list) or not all(
        isinstance(each, type) and issubclass(each, BaseException) for each in found
    ):
        raise InvalidArgument(f"{name} must be a tuple of exception classes, not {value!r}")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Judge:
    """The part of a policy that needs the exceptions themselves, and so goes to where they are raised."""

    retry_on: tuple[type[BaseException], ...]
    give_up_on: tuple[type[BaseException], ...]

    def __call__(self, error: BaseException) -> bool:
        """Is there to be no further attempt?"""
        return isinstance(error, self.give_up_on) or not isinstance(error, self.retry_on)
