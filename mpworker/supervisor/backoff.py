"""How long a task waits for its next attempt."""


class Backoff:
    """Pauses that grow; see `mpworker.retry.RetryPolicy`, whose names these are."""

    __slots__ = ("base", "cap", "factor", "jitter")

    def __init__(self, base: float, factor: float, cap: float, jitter: str) -> None:
        self.base = base
        self.factor = factor
        self.cap = cap
        self.jitter = jitter

    def pause(self, attempts: int, uniform: float) -> float:
        """Seconds before the attempt that follows so many.

        Args:
            attempts: Attempts that have ended, from 1.
            uniform: A random number from 0 to 1.
        """
        try:
            longest = min(self.cap, self.base * self.factor ** (attempts - 1))
        except OverflowError:
            longest = self.cap
        if self.jitter == "full":
            return longest * uniform
        if self.jitter == "equal":
            return longest * (1 + uniform) / 2
        return longest
