"""Whose turn it is: an endless order in which queues of different weights get their starts.

What is promised: with w the weight of a queue and W the sum of all weights, a queue that has work waits for at most
ceil(W / w) starts of others between two of its own, and over a whole turn of W starts it gets w of them.

The usual rules do not keep that. Weighted round robin by credit and every divisor method ("most behind goes next") put
two starts of a queue up to twice as far apart; going by the earliest due time alone paints itself into a corner where
two are due at once. So the two are joined: the queue that is most behind by a divisor method goes next, provided that
afterwards all could still be served in time by earliest due time first, looking `horizon` slots ahead; else the next
one. Which method, and how far to look, is tried out, each until the order repeats itself: the first rule that keeps the
promise is taken.

For some weights none does: for 1 of 20,000 random sets of two to eight queues with weights up to 20, for 1 of 20,000
with weights up to 50, and for most of a dozen queues or more whose weights are large and all different. There the queue
that is most behind goes next, and no more is promised: the longest wait was twice ceil(W / w). `python -m
benchmarks.turns --sets 20000` measures both.

Queues of the same weight are a class that takes turns, so the work for a slot grows with the number of different
weights. The order is worked out slot by slot and kept once it repeats itself. A slot whose queue has no work is
skipped, which only brings the others' turns nearer.
"""

from __future__ import annotations

import math
from itertools import islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
    from typing import Final, Generic, TypeAlias, TypeVar

    K = TypeVar("K", bound=Hashable)
    Turns: TypeAlias = "Wheel[K] | MostBehind[K]"
else:
    K = None

    class Generic:
        """What it is to a type checker."""

        def __class_getitem__(cls, _):
            return cls


_KEPT_MAX: Final = 1 << 14  # slots; a longer turn is not kept until it repeats
_TRIAL_STEPS_MAX: Final = 1 << 15  # some 20 ms, once for each set of weights
_BIASES: Final = (0.5, 0.25, 0.75, 0.0, 1.0)  # of a divisor method; the first one is Webster's


_RULES_MAX: Final = 256
_rules: dict[tuple[int, ...], tuple[int, float] | None] = {}  # that were found, by the weights


class _Class(Generic[K]):
    """The queues of one weight."""

    __slots__ = ("dues", "gap", "members", "next", "served", "share")

    def __init__(self, members: list[K], share: int, gap: int, dues: list[int]) -> None:
        self.members = members
        self.share = share  # of W, all members together
        self.gap = gap  # slots from one start of a member to the next, at most
        self.dues = dues  # the slot in which each is to be served at the latest, soonest first from `next` on
        self.next = 0
        self.served = 0


def _classes(weights: Mapping[K, int], ages: Mapping[K, int]) -> list[_Class[K]]:
    divisor = math.gcd(*weights.values())
    whole = sum(weights.values())
    members: dict[int, list[K]] = {}
    for key, weight in weights.items():
        members.setdefault(weight, []).append(key)
    found = []
    for weight in sorted(members, reverse=True):
        gap = -(-whole // weight) + 1
        line = sorted(members[weight], key=lambda key: -ages.get(key, 0))
        # Were all members due at once, looking ahead by due times would put the others before them until then.
        spread = [at * gap // len(line) - 1 for at in range(1, len(line) + 1)]
        dues = [max(0, min(due, gap - 1 - ages.get(key, 0))) for due, key in zip(spread, line, strict=True)]
        found.append(_Class(line, len(line) * weight // divisor, gap, dues))
    return found


def _can_be_met(classes: list[_Class[K]], slot: int, horizon: int) -> bool:
    """Is nobody late in the next slots if each goes to who is due first?"""
    dues = [each.dues for each in classes]
    places = [each.next for each in classes]
    firsts = [line[place] for line, place in zip(dues, places, strict=True)]
    served: dict[tuple[int, int], int] = {}
    for at in range(slot, slot + horizon):
        due = min(firsts)
        if due < at:
            return False
        which = firsts.index(due)
        line, place = dues[which], places[which]
        served[which, place] = at + classes[which].gap
        place = places[which] = (place + 1) % len(line)
        firsts[which] = served.get((which, place), line[place])
    return True


def _order(classes: list[_Class[K]], horizon: int, bias: float) -> Iterator[K]:
    """The slots, for ever; it moves the classes on."""
    slot = 0
    alone = len(classes) == 1  # equal weights take turns, and nobody is ever late
    while True:
        chosen = min(classes, key=lambda each: each.dues[each.next])
        for each in sorted(classes, key=lambda each: ((each.served + bias) / each.share, -each.share)):
            place = each.next
            due = each.dues[place]
            each.dues[place] = slot + each.gap
            each.next = (place + 1) % len(each.dues)
            fits = alone or _can_be_met(classes, slot + 1, horizon)
            each.dues[place], each.next = due, place
            if fits:
                chosen = each
                break
        place = chosen.next
        chosen.dues[place] = slot + chosen.gap
        chosen.next = (place + 1) % len(chosen.dues)
        chosen.served += 1
        slot += 1
        yield chosen.members[place]


def _state(classes: list[_Class[K]], turns: int, turn: int) -> list[object]:
    """All that the next slots depend on, seen from the end of so many turns of W slots."""
    state: list[object] = []
    for each in classes:
        line = each.dues[each.next :] + each.dues[: each.next]
        state.append(([due - turns * turn for due in line], each.served - turns * each.share))
        state.append(each.members[each.next])
    return state


def _keeps_for(weights: Mapping[K, int], horizon: int, bias: float, turn: int, slots: int) -> float:
    """For how many slots does the order of this rule hold the promise? For ever, once it repeats itself."""
    classes = _classes(weights, {})
    whole = sum(weights.values())
    gaps = {key: -(-whole // weight) + 1 for key, weight in weights.items()}
    last: dict[K, int] = {}
    seen: list[list[object]] = []
    for slot, key in enumerate(islice(_order(classes, horizon, bias), slots)):
        if slot - last.get(key, slot) > gaps[key]:
            return slot
        last[key] = slot
        if (slot + 1) % turn == 0:
            state = _state(classes, (slot + 1) // turn, turn)
            if state in seen:
                return math.inf
            seen.append(state)
    return slots


def _rule(weights: tuple[int, ...]) -> tuple[int, float] | None:
    """How far to look ahead, and with which bias, so that the promise is kept; None if nothing is found."""
    if weights not in _rules:
        if len(_rules) == _RULES_MAX:
            _rules.clear()
        _rules[weights] = _found_rule(weights)
    return _rules[weights]


def _found_rule(weights: tuple[int, ...]) -> tuple[int, float] | None:
    count = len(weights)
    turn = sum(weights) // math.gcd(*weights)
    if len(set(weights)) == 1:
        return count, _BIASES[0]  # they take turns, and nobody is ever late
    left = _TRIAL_STEPS_MAX
    named = dict(enumerate(weights))
    for horizon in range(count, 2 * count + 1):
        for bias in _BIASES:
            if 2 * turn * horizon > left:
                return None
            kept = _keeps_for(named, horizon, bias, turn, left // horizon)
            if kept == math.inf:
                return horizon, bias
            left -= int(kept) * horizon
    return None


class _Turns(Generic[K]):
    """What both orders keep of one set of weights.

    Args:
        weights: Of each queue, from 1 on.
        ages: As for `turns`.
    """

    def __init__(self, weights: Mapping[K, int], ages: Mapping[K, int]) -> None:
        self._ages = {key: ages.get(key, 0) for key in weights}
        self._last: dict[K, int] = {}
        self._starts = 0

    def _started(self, key: K) -> None:
        self._last[key] = self._starts
        self._starts += 1

    def ages(self) -> dict[K, int]:
        """How many starts ago each had its last one, or came."""
        ages = {key: age + self._starts for key, age in self._ages.items()}
        return ages | {key: self._starts - 1 - at for key, at in self._last.items()}


class MostBehind(_Turns[K]):
    """Webster's method among those that have work: for weights for which nothing better is found.

    A look costs as much as there are queues with work. Two starts of a queue are at most about twice as far apart as
    they should be. The time is virtual: in W starts it passes by 1.
    """

    _found: K  # by `peek`

    def __init__(self, weights: Mapping[K, int], ages: Mapping[K, int]) -> None:
        super().__init__(weights, ages)
        whole = sum(weights.values())
        self._weights = dict(weights)
        self._due = {key: (0.5 / weight) - ages.get(key, 0) / whole for key, weight in weights.items()}
        self._now = 0.0

    def _due_at(self, key: K) -> tuple[float, int]:
        # Who had nothing to do for long has no claim to more than the start that is next.
        weight = self._weights[key]
        return max(self._due[key], self._now - 1.0 / weight), -weight

    def peek(self, ready: Iterable[K]) -> K:
        """Whose turn it is among those that have work; there must be one."""
        self._found = min(ready, key=self._due_at)
        return self._found

    def take(self) -> None:
        """Who was told by `peek` has started something."""
        key = self._found
        due = self._due_at(key)[0]
        self._now = max(self._now, due)
        self._due[key] = due + 1.0 / self._weights[key]
        self._started(key)


class Wheel(_Turns[K]):
    """An order that keeps the promise, slot by slot.

    As long as one queue alone has work it stands still.

    Args:
        weights: Of each queue, from 1 on.
        ages: As for `turns`.
        rule: How far to look ahead, and with which bias.
    """

    _key: K  # that `peek` has found, in this slot

    def __init__(self, weights: Mapping[K, int], ages: Mapping[K, int], rule: tuple[int, float]) -> None:
        super().__init__(weights, ages)
        self._classes = _classes(weights, ages)
        self._source = _order(self._classes, *rule)
        self._turn = sum(each.share for each in self._classes)  # slots
        self._slots: list[K] = []  # from number `_first` on; the whole turn once it repeats
        self._state = _state(self._classes, 0, self._turn)
        self._turns = 0
        self._repeats = False
        self._at = 0
        self._found: int | None = 0

    def _slot(self, at: int) -> K:
        while not self._repeats and at >= len(self._slots):
            self._slots.append(next(self._source))
            if len(self._slots) == self._turn and self._turn <= _KEPT_MAX:
                self._turn_ends()
        return self._slots[at % self._turn if self._repeats else at]

    def _turn_ends(self) -> None:
        self._turns += 1
        state = _state(self._classes, self._turns, self._turn)
        self._repeats = state == self._state
        self._state = state

    def peek(self, ready: Collection[K]) -> K:
        """Whose turn it is among those that have work; there must be one."""
        if len(ready) == 1:  # who is alone needs no slot, and it may be far to his own
            self._found = None
            (self._key,) = ready
            return self._key
        at = self._at
        while (key := self._slot(at)) not in ready:
            at += 1
        self._found, self._key = at, key
        return key

    def take(self) -> None:
        """Who was told by `peek` has started something."""
        self._started(self._key)
        if self._found is None:
            return
        self._at = self._found + 1
        if self._repeats:
            self._at %= self._turn
        elif self._at >= self._turn:
            del self._slots[: self._turn]
            self._at -= self._turn


def turns(weights: Mapping[K, int], ages: Mapping[K, int]) -> Turns[K]:
    """The best order there is for these weights.

    Args:
        weights: Of each queue, from 1 on.
        ages: How many starts ago each had its last one, or came: who has waited under other weights goes on waiting
            from there. 0 for who is not named.
    """
    rule = _rule(tuple(sorted(weights.values())))
    return MostBehind(weights, ages) if rule is None else Wheel(weights, ages, rule)
