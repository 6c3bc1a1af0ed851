"""What running a task and running a chunk have in common."""

from mpworker.child.answers import Answers
from mpworker.child.attempt import Attempt
from mpworker.child.calls import Calls
from mpworker.child.outcomes import Outcomes
from mpworker.ipc._native import Claims


class Runs:
    """Runs what a child is offered.

    Args:
        claims: The claim page.
        attempt: What the running one is.
        calls: Where the functions are.
        outcomes: How it ends.
        answers: Takes that.
    """

    def __init__(self, claims: Claims, attempt: Attempt, calls: Calls, outcomes: Outcomes, answers: Answers) -> None:
        self._claims = claims
        self._attempt = attempt
        self._calls = calls
        self._outcomes = outcomes
        self._answers = answers
