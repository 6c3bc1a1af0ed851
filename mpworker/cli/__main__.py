"""``python -m mpworker.cli``: the same as the ``mpworker`` command."""

from mpworker.cli import main

if __name__ == "__main__":
    main()
