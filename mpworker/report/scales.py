"""From a value to a place on an axis: where the ticks are, and what they are called."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_TICKS: Final = 6  # about so many
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_BETWEEN: Final = (1.0, 2.0, 5.0)  # of a decade, where there are few decades
_DECADES_FEW: Final = 3


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        low: What is at its beginning.
        high: What is at its end.
        ticks: What is marked.
        log: Does each decade have the same length?
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool

    def place(self, value: float) -> float:
        """Where a value is: 0 at the beginning, 1 at the end."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return (value - low) / (high - low)


def scale(values: Iterable[float], log: bool = False, from_zero: bool = False) -> Scale:
    """An axis on which all these values have a place.

    Args:
        values: What is shown. With `log`, those that are not above 0 have no place.
        log: Does each decade have the same length?
        from_zero: Does it begin at 0, as bars must?
    """
    shown = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if log:
        return _logarithmic(shown or [1.0])
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = low - (abs(low) / 2 if low and not from_zero else 0.0), high + (abs(high) / 2 or 1.0)
    raw = (high - low) / _TICKS
    decade = 10.0 ** math.floor(math.log10(raw))
    step = next(each * decade for each in _STEPS if each * decade >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks, False)


def _logarithmic(shown: list[float]) -> Scale:
    first, last = math.floor(math.log10(min(shown)) + 1e-9), math.ceil(math.log10(max(shown)) - 1e-9)
    last = max(last, first + 1)
    between = _BETWEEN if last - first <= _DECADES_FEW else _BETWEEN[:1]
    every = math.ceil((last - first) / (2 * _TICKS))  # decades from tick to tick, where there are very many
    ticks = [each * 10.0**decade for decade in range(first, last, every) for each in between]
    return Scale(10.0**first, 10.0**last, (*ticks, 10.0**last), True)


def name(value: float) -> str:
    """A number as short as it can be read."""
    size = abs(value)
    if size >= 1e5:
        for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if size >= factor:
                return f"{value / factor:.4g}{unit}"
    if 0 < size < 1e-3:
        return f"{value:.3g}"
    return f"{value:.4g}"
