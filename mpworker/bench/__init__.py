"""The benchmarks that users run: `mpworker bench`. This pool against others that are installed, on this machine.

A benchmark (`measure.Benchmark`) is a module of its own with a `BENCHMARK`; `suite.py` names them. What takes part is
a *contender*: this pool and its *peers* (`peers.py`, a table of adapters), or variants of this pool. A *turn* is one
contender in an interpreter of its own (`turn.py`), a *round* is a turn of each, and `rounds.py` takes them in turns.

    suite.py -> rounds.py -> turn.py -> submit.py, map.py, ...
                   |
                 run.py (all that was measured) -> tables.py, page.py, comparing.py

It is built on the public face alone. Nothing of it is loaded by `import mpworker`, and it loads the libraries of
peers, and NumPy, only in turns.
"""
