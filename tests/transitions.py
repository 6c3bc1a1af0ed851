"""Counts how often the scheduler made each transition of its table, and prints that as a table."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from mpworker.supervisor import effects
from mpworker.supervisor.lifecycle import EVENTS, STATES, Event
from mpworker.supervisor.recycling import Recycling

Seen = Counter[tuple[str, int]]

LEGAL = [(event.name, state) for event in EVENTS for state in event]


class _Counting(Event):
    __slots__ = ("_seen",)

    def __init__(self, event: Event, seen: Seen) -> None:
        super().__init__(event.name, event.why, dict(event))
        self._seen = seen

    def __getitem__(self, state: int) -> int:
        self._seen[self.name, state] += 1
        return super().__getitem__(state)


@contextmanager
def counted() -> Iterator[Seen]:
    """The transitions of all schedulers, by event and state before."""
    seen: Seen = Counter()
    counting = {id(event): _Counting(event, seen) for event in EVENTS}
    layers = [sys.modules[layer.__module__] for layer in Recycling.__mro__[:-1]]
    used = [(layer, name, event) for layer in layers for name, event in vars(layer).items() if isinstance(event, Event)]
    end_by = dict(effects.END_BY)
    try:
        for layer, name, event in used:
            setattr(layer, name, counting[id(event)])
        effects.END_BY.update({status: counting[id(event)] for status, event in end_by.items()})
        yield seen
    finally:
        for layer, name, event in used:
            setattr(layer, name, event)
        effects.END_BY.update(end_by)


def table(seen: Seen) -> str:
    """A row for each event and state in which it may happen."""
    rows = [(name, STATES[state], f"{seen[name, state]:,}") for name, state in LEGAL]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)
