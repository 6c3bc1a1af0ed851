"""`python -m mpworker.bench.turn`: one contender's turn, in an interpreter of its own.

What a contender imports, leaves behind in threads, or breaks is then no other one's. Standard input has one JSON
object: where the benchmark is, the contender (null for all of it) and the settings. The answer is one JSON
object too, on the descriptor that standard output was: what is printed meanwhile goes to standard error.
"""

import json
import os
import sys

from mpworker.bench.measure import NotOffered, Settings, located


def main() -> None:
    """Take the turn that standard input asks for."""
    asked = json.load(sys.stdin)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answer:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        benchmark = located(asked["place"])
        try:
            found: dict[str, object] = {"values": benchmark.turn(asked["contender"], Settings(**asked["settings"]))}
        except NotOffered as error:
            found = {"not_offered": str(error)}
        json.dump(found, answer)


if __name__ == "__main__":
    main()
