"""How many tasks may start: a token bucket whose tokens are spent by starts, and not by offers.

A task starts when a child claims it, and the supervisor learns of that later, or never if the offer is taken back. So
an offer spends nothing: while it is out it is counted as a start that may come at any moment from now on, and once it
is known to be claimed the start is entered at the time that the child has noted. A bucket that never falls below zero
in this way lets at most `burst + rate * T` tasks start in any T seconds (the usual argument for a token bucket: what
is spent in a window was there at its beginning, at most `burst`, or was filled in during it).
"""

import math


class Bucket:
    """One token bucket.

    Args:
        rate: Starts per second.
        burst: The most tokens it holds, and the number that it begins with.
        now: The time.

    Attributes:
        unclaimed: Offers that are out and may be claimed at any moment.
    """

    __slots__ = ("_at", "_level", "burst", "rate", "unclaimed")

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.unclaimed = 0
        self._level = float(burst)
        self._at = now

    def _fill(self, now: float) -> None:
        if now > self._at:  # a claim that is learned of late counts from the last one: never too early
            self._level = min(float(self.burst), self._level + (now - self._at) * self.rate)
            self._at = now

    def started(self, at: float) -> None:
        """A task has started then. Starts are to be told in the order of their times, if several are known."""
        self._fill(at)
        self._level -= 1.0

    def free_at(self, now: float) -> float:
        """From when on one more task may be offered: `now` or before for at once.

        While more offers are out than it has tokens at all, the answer is when it could be at the earliest, if all of
        them were claimed now.
        """
        needed = self.unclaimed + 1.0
        if needed > self.burst:
            return max(now, self._at) + (needed - self.burst) / self.rate
        if self._level >= needed:
            return -math.inf
        return self._at + (needed - self._level) / self.rate

    def change(self, rate: float, burst: int, now: float) -> None:
        """Other figures from now on; what has been saved up beyond a smaller burst is lost."""
        self._fill(now)
        self.rate = rate
        self.burst = burst
        self._level = min(self._level, float(burst))
