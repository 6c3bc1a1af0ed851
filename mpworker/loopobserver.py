"""Who tells hooks, tracers and loggers where an event loop reads: the loop itself, in a call of its own."""

from typing import TYPE_CHECKING

from mpworker.observer import Observer

if TYPE_CHECKING:
    from mpworker.loopclient import LoopClient


class LoopObserver(Observer):
    """The observers of one `LoopClient`; the arguments are those of `Observer`."""

    _client: "LoopClient"

    def read_in_time(self, wanted: bool) -> None:
        """Nothing: the loop reads whatever comes."""

    def need(self) -> None:
        """Have the loop tell, once for all that has come before it does."""
        self._client.call_soon(self._tell_what_has_come)

    def wake(self) -> None:
        """The worker is over: its loop tells the last of it."""
        self.need()
