"""The containers of `collections` that are written in C, without the rest of that module.

That one imports `keyword`, `operator` and `reprlib`, and takes a twentieth of what a supervisor loads.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import OrderedDict, deque
else:
    from _collections import OrderedDict, deque

__all__ = ["OrderedDict", "Tally", "deque"]


class Tally(dict[object, int]):
    """How many there were of each; of what was never counted, none. It is all that is needed of a `Counter`."""

    __slots__ = ()

    def __missing__(self, key: object) -> int:
        return 0
