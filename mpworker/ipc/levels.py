"""The levels of a LOG record, as the standard library has them: a supervisor does without its module."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40
NAMES: Final = {DEBUG: "DEBUG", INFO: "INFO", WARNING: "WARNING", ERROR: "ERROR"}
