"""A block in which the garbage collector rests: around imports of ours, which leave it nothing to find."""

import gc


class Uncollected:
    """A context in which no collection begins.

    A module makes thousands of objects that stay, and a collection for every few hundred of them takes a tenth of the
    time of an import. Where the collector is off already it stays off.
    """

    __slots__ = ("_collects",)

    def __enter__(self) -> None:
        self._collects = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._collects:
            gc.enable()
