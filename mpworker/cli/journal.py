"""The journal beside an output: two lines of JSON, what the run is and how far it is. See `mpworker.cli.output`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpworker.cli.errors import CommandError
from mpworker.cli.inputs import START, Mark

__all__ = ["VERSION", "Checkpoint", "difference", "read_journal", "write_journal"]

VERSION = 1
"""Of the journal's format; the header's ``version``."""


@dataclass(frozen=True)
class Checkpoint:
    """How far a run is.

    Attributes:
        items: Items written to either file.
        failed: How many of them to the failures.
        results_bytes: Length of the results up to there.
        failures_bytes: Length of the failures up to there.
        mark: The input's mark after these items.
        complete: Whether there are no more.
    """

    items: int = 0
    failed: int = 0
    results_bytes: int = 0
    failures_bytes: int = 0
    mark: Mark = START
    complete: bool = False


def read_journal(path: Path) -> tuple[dict[str, Any], Checkpoint] | None:
    """Return a journal's header and checkpoint; None if there is no journal.

    Raises:
        CommandError: It is a file of another kind.
    """
    try:
        header, fields = map(json.loads, path.read_text().splitlines())
        if header["version"] == VERSION:
            return header, Checkpoint(**{**fields, "mark": Mark(*fields["mark"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        pass  # said below, as for another version
    raise CommandError(f"cannot resume: {path} is not a journal that this version of mpworker reads")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Say in which way a run is not the one that the journal's header describes."""
    if old["target"] != new["target"]:
        return f"it was made by {old['target']}, not by {new['target']}"
    if old["mode"] != new["mode"]:
        return f"its items were {old['mode']}, not {new['mode']}"
    if len(old["inputs"]) != len(new["inputs"]):
        return f"it was made from {len(old['inputs'])} inputs, not from {len(new['inputs'])}"
    for number, (before, after) in enumerate(zip(old["inputs"], new["inputs"], strict=True), 1):
        if before[:2] != after[:2]:
            return f"its input {number} was {_named(before)}, not {_named(after)}"
        if before != after:
            return f"its input {before[1]} has changed since (size or modification time)"
    return None


def _named(identity: list[Any]) -> str:
    kind, path = identity[:2]
    return f"the {kind} {path}" if path else f"a {kind}"


def write_journal(path: Path, header: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Replace a journal so that after a power loss it is the old or the new one, whole."""
    new = path.with_name(f"{path.name}.tmp")
    with new.open("w") as file:
        file.write(f"{json.dumps(header)}\n{json.dumps(asdict(checkpoint))}\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
