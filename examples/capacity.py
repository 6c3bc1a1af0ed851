"""Record what a pool is asked to carry, and ask how many children it needs.

python examples/capacity.py [REPORT.html]
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mpworker import ProcessWorker


def assess(turns: int) -> int:
    return sum(number * number for number in range(turns))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.jsonl")
        chance = random.Random(1)
        with ProcessWorker(n=2, record=trace) as worker:
            urgent = worker.options(priority=-1)
            for _ in range(200):
                submit = urgent.submit if chance.random() < 0.2 else worker.submit
                submit(assess, chance.randint(10_000, 60_000))
                time.sleep(chance.expovariate(200.0))
        asked = ["--p95", "0.5", "-n", "1-4", "--replications", "2"]
        report = ["--html", sys.argv[1]] if len(sys.argv) > 1 else []
        subprocess.run([sys.executable, "-m", "mpworker.cli", "plan", trace, *asked, *report], check=False)


if __name__ == "__main__":
    main()
