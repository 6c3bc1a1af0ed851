"""What running a task and running a chunk have in common."""

from mpworker.child.answers import Answers
from mpworker.child.arenas import Arenas
from mpworker.child.attempt import Attempt
from mpworker.child.calls import Calls
from mpworker.child.outcomes import Outcomes
from mpworker.ipc._native import Claims
from mpworker.ipc.arena import Parcel


class Runs:
    """Runs what a child is offered.

    Args:
        claims: The claim page.
        attempt: What the running one is.
        calls: Where the functions are.
        outcomes: How it ends.
        answers: Takes that.
        arenas: Where large calls lie; None for nowhere.
    """

    def __init__(
        self,
        claims: Claims,
        attempt: Attempt,
        calls: Calls,
        outcomes: Outcomes,
        answers: Answers,
        arenas: Arenas | None = None,
    ) -> None:
        self._claims = claims
        self._attempt = attempt
        self._calls = calls
        self._outcomes = outcomes
        self._answers = answers
        self._arenas = arenas

    def _received(self, data: bytes | MemoryError) -> Parcel | MemoryError:
        """A call of which a part lies in an arena.

        Raises:
            OSError: That cannot be mapped.
        """
        assert self._arenas is not None  # else nothing would come by them
        return data if isinstance(data, MemoryError) else self._arenas.received(data)

    def _call_is_over(self) -> None:
        if self._arenas is not None:
            self._arenas.call_is_over()
