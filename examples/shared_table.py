"""A table is placed once in shared memory, and every task reads it there: nothing is copied to it.

What is looked for is the point of a cloud that is nearest to each of some queries. The cloud takes 32 MB and is placed
once; a call takes along its handle, some 130 bytes. Run it: python examples/shared_table.py (it needs NumPy)
"""

import sys

import numpy as np
from numpy.typing import NDArray

from mpworker import ProcessWorker, Shared

POINTS, DIMENSIONS = 500_000, 8
QUERIES, BATCH = 60, 5

Floats = NDArray[np.float64]


def nearest(cloud: Shared[Floats], queries: Floats) -> list[int]:
    """The number of the nearest point for each of these."""
    points = cloud.value  # opened once in each child
    assert not points.flags.writeable
    return [int(((points - query) ** 2).sum(axis=1).argmin()) for query in queries]


def main() -> int:
    """Place the cloud, ask for each batch, and look whether what was found is right."""
    rng = np.random.default_rng(1)
    points = rng.random((POINTS, DIMENSIONS))
    wanted = rng.integers(0, POINTS, QUERIES)
    queries = points[wanted] + 1e-9  # so the nearest one is known
    with ProcessWorker() as w:
        with w.share(points) as cloud:
            batches = [w.submit(nearest, cloud, queries[at : at + BATCH]) for at in range(0, QUERIES, BATCH)]
            room = w.metrics().arena_bytes["calls"]
        found = [number for batch in batches for number in batch.result()]
    right = sum(number == int(expected) for number, expected in zip(found, wanted, strict=True))
    print(f"{len(batches)} tasks read {cloud.nbytes / 1e6:.0f} MB each, and all of them took {room / 1e6:.0f} MB")
    print(f"{right} of {QUERIES} points found")
    return right != QUERIES


if __name__ == "__main__":
    sys.exit(main())
