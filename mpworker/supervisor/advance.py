"""What cloudpickle needs, imported in advance of the children that unpickle by it.

A function that is sent by value (a lambda, a closure, what a notebook defines) is unpickled by cloudpickle, which each
child imports when the first one comes. That takes 16 ms, most of it for modules of the standard library. No start waits
for these: the children of the first generation import them when they need them. Once the start is over and the nursery
has nothing to do, it imports them itself, and those that it forks from then on (in place of one that has died, or done
its `max_tasks_per_child`) have them.

They are imported on the nursery's own path, in the nursery and in a child. On the user's path, on which all else is
found there, a `typing.py` or `uuid.py` of the user's would stand in for one of them. Cloudpickle itself is found on the
user's, as in the client.
"""

from __future__ import annotations

import gc
import sys
import time

from mpworker.ipc import ownpath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Of cloudpickle 3.0 and later: tests/test_start_imports.py sees that no child imports anything else for it.
_NEEDED: Final = ("dataclasses", "dis", "enum", "logging", "pickle", "platform", "typing", "uuid", "weakref")
_DELAY: Final = 0.05  # seconds from the first fork, in which a start is over, on any core that it needs


class InAdvance:
    """Imports it, once: a finder of `sys.meta_path`, which is asked when cloudpickle itself is imported."""

    def __init__(self) -> None:
        self._due_at: float | None = None
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """Find nothing, and see that cloudpickle finds what it needs."""
        if name == "cloudpickle":
            self.load()

    def forked(self) -> None:
        """A child was forked."""
        if self._due_at is None:
            self._due_at = time.monotonic() + _DELAY

    def wait_ms(self) -> float | None:
        """How long the nursery shall wait for something to do before it calls `load`; None for ever."""
        if self._due_at is None or self not in sys.meta_path:
            return None
        return max(0.0, self._due_at - time.monotonic()) * 1000

    def load(self) -> None:
        """Import it here."""
        try:
            for name in _NEEDED:
                ownpath.imported(name)
        except (ImportError, OSError):
            pass  # no such module, or no descriptor is left: cloudpickle's own import says so, where somebody hears it
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def load_and_freeze(self) -> None:
        """Import it for the children to come, whose collector shall not touch, and so copy, its pages."""
        self.load()
        gc.freeze()
