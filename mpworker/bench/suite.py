"""The benchmarks of `mpworker bench`, by name, and where each is: `module:name`."""

from typing import Final

SUITE: Final[dict[str, str]] = {
    name: f"mpworker.bench.{name}:BENCHMARK"
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
