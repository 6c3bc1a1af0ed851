"""The benchmarks of `mpworker bench`, by name: the module of each, which has a `BENCHMARK`."""

from typing import Final

SUITE: Final[dict[str, str]] = {
    name: f"mpworker.bench.{name}"
    for name in (
        "submit",
        "roundtrip",
        "map",
        "payload",
        "start",
        "idle",
        "metg",
        "arrivals",
        "backlog",
        "length",
        "children",
        "spare",
    )
}
