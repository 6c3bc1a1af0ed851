"""How long tasks take from their acceptance to their outcome: a histogram with a bucket for each power of two."""

_BUCKETS = 64  # bits of nanoseconds: more than two centuries
_FEW = 4  # so often to go through the times of a batch costs no more than to count each of them by hand


class Latency:
    """Counts of tasks that have ended.

    Attributes:
        count: How many.
        total_ns: Nanoseconds of all together.
        max_ns: Of the one that took longest.
        buckets: How many took less than 2 to the power of the index, and not less than half of that.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total_ns = 0
        self.max_ns = 0
        self.buckets = [0] * _BUCKETS

    def take(self, begun_ns: list[int], now_ns: int) -> None:
        """Tasks that were accepted at these times have ended by now.

        Those that come in one batch have one time, so there are few different ones: a task costs no more than being
        counted by C, and this no more than one of them where it is called for each few tasks.
        """
        times = set(begun_ns)
        if len(times) > _FEW:
            counts: dict[int, int] = {}
            for at_ns in begun_ns:
                counts[at_ns] = counts.get(at_ns, 0) + 1
        else:
            counts = {at_ns: begun_ns.count(at_ns) for at_ns in times}
        for at_ns, count in counts.items():
            took_ns = max(0, now_ns - at_ns)
            self.buckets[took_ns.bit_length()] += count
            self.total_ns += took_ns * count
            self.max_ns = max(self.max_ns, took_ns)
        self.count += len(begun_ns)

    def told(self) -> dict[str, object]:
        """For JSON, in seconds."""
        return {
            "count": self.count,
            "total": self.total_ns / 1e9,
            "max": self.max_ns / 1e9,
            "buckets": [[2**bits / 1e9, count] for bits, count in enumerate(self.buckets) if count],
        }
