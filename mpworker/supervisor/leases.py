"""Leases: when silence means that a child is frozen, and when it means that we were.

Every child with offers holds a lease, which its heartbeat renews. The scheduler looks at the heartbeats four times
per lease. If it could not look for longer than that (a paused machine, SIGSTOP, swap), then the children could not
beat either: every lease then counts from now.

The looks go on while a child starts or dies, so that a pause is noticed then too, and is not taken from its deadline.
"""


class Leases:
    """The lease of every child.

    Args:
        ttl: Seconds of silence after which a child counts as frozen.
    """

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        self.interval = ttl / 4
        self._looked_at: float | None = None
        self._counts_from = 0.0
        self.next_at: float | None = None

    def watch(self, now: float) -> None:
        """There is something to wait for: look from now on."""
        if self.next_at is None:
            self.next_at = now + self.interval
            self._looked_at = now
            self._counts_from = now

    def begin_look(self, now: float, busy: bool) -> float:
        """A look at all children begins; `busy` says whether another will be needed.

        Returns:
            Seconds since the last look if we could not look in time, else 0: nothing that happened then counts.
        """
        away = 0.0
        if self._looked_at is not None and now - self._looked_at > 2 * self.interval:
            away = now - self._looked_at
            self._counts_from = now
        self._looked_at = now
        self.next_at = now + self.interval if busy else None
        return away

    def expired(self, now: float, beat_at: float) -> bool:
        """Has a child that last beat then lost its lease?"""
        return now - max(beat_at, self._counts_from) > self.ttl
