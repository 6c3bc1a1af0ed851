"""The command line: ``mpworker`` and ``python -m mpworker.cli``.

This package's ``__init__`` stays empty of click and rich: the children of ``mpworker map`` import
`mpworker.cli.item`, and with it this file, and have no use for either.

To add a command: write it in a file of its own and name it in `mpworker.cli.app`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave the interpreter with its exit code.

    Args:
        argv: The arguments after the program's name; by default those of the process.

    Raises:
        SystemExit: Always, with one of the codes of `mpworker.cli.errors.ExitCode`.
    """
    try:
        from mpworker.cli.app import run

        code = run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # before the command line could take care of it: while it was being imported
        code = 130
    sys.exit(code)
