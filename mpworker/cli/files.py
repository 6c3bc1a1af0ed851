"""The files that a command reads and writes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mpworker.cli.errors import CommandError

__all__ = ["check_distinct"]


def check_distinct(files: Mapping[str, str | None]) -> None:
    """No two of these are one file: what is written would take the place of what is read, or of what was written.

    Args:
        files: By how the user names each: an argument or an option. None and "-" are no files.

    Raises:
        CommandError: Two are.
    """
    seen: dict[str, str] = {}
    for name, path in files.items():
        if path is None or path == "-":
            continue
        other = seen.setdefault(os.path.realpath(path), name)
        if other != name:
            raise CommandError(f"{other} and {name} are the same file: {path}")
