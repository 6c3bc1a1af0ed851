"""Modules of the standard library that are imported late, on the path that this process began with.

Nursery and children have the user's path once they have loaded themselves, as the client has. What they import of the
standard library from then on for their own needs must not be a file of the user's that happens to have its name. In the
client, which keeps no path, such an import is what it is everywhere.
"""

from __future__ import annotations

import sys
from _frozen_importlib_external import PathFinder  # by its other name, `importlib.machinery`, it costs two imports
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any


class _OwnPath:
    """A finder of `sys.meta_path`, for the threads that are in `load`.

    `sys.path` stays as it is: another thread, of the user's, may import at the same time.

    Args:
        path: Where to find.
    """

    def __init__(self, path: list[str]) -> None:
        self._path = path
        self._threads: list[int] = []

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        """Find a module that `load` imports, or that one of these imports."""
        if path is not None or get_ident() not in self._threads:
            return None
        return PathFinder.find_spec(name, self._path, target)

    def load(self, name: str) -> ModuleType:
        """Import it."""
        thread = get_ident()
        self._threads.append(thread)  # once more, where a signal handler comes on top of another import
        sys.meta_path.insert(0, self)
        try:
            return __import__(name)
        finally:
            sys.meta_path.remove(self)
            self._threads.remove(thread)


_own: _OwnPath | None = None


def keep(path: list[str]) -> None:
    """Let `imported` find on this path from now on, whatever becomes of `sys.path`."""
    global _own
    _own = _OwnPath(path)


def imported(name: str) -> Any:
    """A module of the standard library that is in no package.

    Raises:
        ImportError: There is none.
        OSError: No descriptor is left to read it by.
    """
    return __import__(name) if _own is None or name in sys.modules else _own.load(name)
