"""Lines and bars as SVG.

Each series differs by colour, by the pattern of its line and by the shape of its points, so that neither a printer nor
eyes that do not tell colours apart lose one. The colours are those of Okabe and Ito, "Color Universal Design" (2008),
and wine of Tol, "Colour Schemes" (2021), so that as many pools as the benchmarks know have one each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from mpworker.report.scales import Scale, name, scale

_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#f0e442", "#882255")
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4")
_SHAPES: Final = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M-3 -3h6v6h-6z",
    "M0 -4l4 7h-8z",
    "M0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
    "M0 4l4 -7h-8z",
)
_POINTS_MARKED_MAX: Final = 40  # of one line; more would hide it
_LABELS_MAX: Final = 24  # below bars

_WIDTH: Final = 760.0
_HEIGHT: Final = 360.0
_LEFT: Final = 76.0
_RIGHT: Final = 16.0
_TOP: Final = 14.0
_BOTTOM: Final = 52.0
_LEGEND_LINE: Final = 20.0
_LETTER: Final = 7.0  # about how wide one is


@dataclass(frozen=True)
class Series:
    """A line of a `LinePlot`.

    Attributes:
        name: What it shows.
        points: Its points (x, y), in the order in which they are joined. One that is no number, or not above 0 on a
            logarithmic axis, is left out.
        steps: Is y as it is until the next x?
    """

    name: str
    points: Sequence[tuple[float, float]]
    steps: bool = False


@dataclass(frozen=True)
class LinePlot:
    """Series over a common x.

    Attributes:
        title: What is seen.
        x: What the x axis shows, with its unit.
        y: What the y axis shows, with its unit.
        series: The lines.
        log_x: Does each decade of x have the same length?
        log_y: And of y?
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False

    def svg(self) -> str:
        """The plot."""
        shown = [_shown(each, self.log_x, self.log_y) for each in self.series]
        across = scale((x for points in shown for x, _ in points), self.log_x)
        up = scale((y for points in shown for _, y in points), self.log_y, from_zero=not self.log_y)
        frame = _Frame(self.title, self.x, self.y, up, [each.name for each in self.series])
        for tick in across.ticks:
            frame.tick_below(frame.x(across.place(tick)), name(tick))
        for number, (each, points) in enumerate(zip(self.series, shown, strict=True)):
            placed = [(frame.x(across.place(x)), frame.y(up.place(y))) for x, y in points]
            frame.line(number, _stairs(placed) if each.steps else placed, marked=not each.steps)
        return frame.svg()

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The same as headings and rows."""
        found: dict[float, dict[int, float]] = {}
        for number, each in enumerate(self.series):
            for x, y in each.points:
                found.setdefault(x, {})[number] = y
        rows = [
            [name(x), *(name(found[x][number]) if number in found[x] else "" for number in range(len(self.series)))]
            for x in sorted(found)
        ]
        return [self.x, *(f"{each.name} ({self.y})" for each in self.series)], rows


@dataclass(frozen=True)
class BarPlot:
    """Bars, a group of them for each category.

    Attributes:
        title: What is seen.
        x: What the categories are.
        y: What the y axis shows, with its unit.
        categories: The names of the groups.
        series: By name, a value for each category; one that is no number is left out.
        log_y: Does each decade of y have the same length? Bars then begin at the lowest decade, and their lengths are
            not to be compared.
    """

    title: str
    x: str
    y: str
    categories: Sequence[str]
    series: "dict[str, Sequence[float]]" = field(default_factory=dict)
    log_y: bool = False

    def __post_init__(self) -> None:
        for key, values in self.series.items():
            if len(values) != len(self.categories):
                raise ValueError(f"{key!r} has {len(values)} values for {len(self.categories)} categories")

    def svg(self) -> str:
        """The plot."""
        up = scale((value for values in self.series.values() for value in values), self.log_y, from_zero=True)
        frame = _Frame(self.title, self.x, self.y, up, list(self.series))
        floor = frame.y(up.place(up.low if self.log_y else 0.0))
        group = 1.0 / max(1, len(self.categories))
        width = 0.8 * group / max(1, len(self.series))
        every = math.ceil(len(self.categories) / _LABELS_MAX)
        for place, category in enumerate(self.categories):
            if place % every == 0:
                frame.tick_below(frame.x((place + 0.5) * group), category, line=False)
            for number, values in enumerate(self.series.values()):
                value = values[place]
                if math.isfinite(value) and (value > 0 or not self.log_y):
                    left = frame.x((place + 0.1) * group + number * width)
                    right = frame.x((place + 0.1) * group + (number + 1) * width)
                    frame.bar(number, left, right, frame.y(up.place(value)), floor)
        return frame.svg()

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The same as headings and rows."""
        rows = [
            [category, *(name(values[place]) for values in self.series.values())]
            for place, category in enumerate(self.categories)
        ]
        return [self.x, *(f"{key} ({self.y})" for key in self.series)], rows


def _shown(series: Series, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in series.points
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]


def _stairs(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stairs = points[:1]
    for x, y in points[1:]:
        stairs += [(x, stairs[-1][1]), (x, y)]
    return stairs


class _Frame:
    """Axes, labels and the legend, and in them what is drawn."""

    def __init__(self, title: str, x: str, y: str, up: Scale, names: list[str]) -> None:
        self._title = title
        self._names = names
        self._bottom = _HEIGHT - _BOTTOM
        self._parts: list[str] = []
        for tick in up.ticks:
            at = self.y(up.place(tick))
            self._parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
            self._parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(name(tick))}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        self._parts.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x)}</text>')
        height = (_TOP + self._bottom) / 2
        self._parts.append(
            f'<text transform="translate(14 {height}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
        )
        self._parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{self._bottom}H{_WIDTH - _RIGHT}"/>')

    def x(self, place: float) -> float:
        return _LEFT + place * (_WIDTH - _RIGHT - _LEFT)

    def y(self, place: float) -> float:
        return self._bottom - place * (self._bottom - _TOP)

    def tick_below(self, x: float, label: str, line: bool = True) -> None:
        if line:
            self._parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{self._bottom}"/>')
        at = self._bottom + 17
        self._parts.append(f'<text x="{x:.1f}" y="{at}" text-anchor="middle">{escape(label)}</text>')

    def line(self, number: int, points: list[tuple[float, float]], marked: bool) -> None:
        if not points:
            return
        colour = _COLOURS[number % len(_COLOURS)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._parts.append(f'<path fill="none" {_stroke(number)} d="M{path}"/>')
        if marked and len(points) <= _POINTS_MARKED_MAX:
            shape = _SHAPES[number % len(_SHAPES)]
            self._parts += [
                f'<path fill="{colour}" transform="translate({x:.1f} {y:.1f})" d="{shape}"/>' for x, y in points
            ]

    def bar(self, number: int, left: float, right: float, end: float, floor: float) -> None:
        colour = _COLOURS[number % len(_COLOURS)]
        top, height = min(end, floor), max(abs(end - floor), 0.5)
        self._parts.append(
            f'<rect fill="{colour}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 1):.1f}" '
            f'height="{height:.1f}"/>'
        )

    def _legend(self) -> tuple[list[str], float]:
        """What belongs to which name, and how high that is."""
        if len(self._names) < 2:  # the axis says it
            return [], 0.0
        parts = []
        x, y = _LEFT, _HEIGHT + 4
        for number, each in enumerate(self._names):
            width = 44 + _LETTER * len(each)
            if x > _LEFT and x + width > _WIDTH:
                x, y = _LEFT, y + _LEGEND_LINE
            shape = _SHAPES[number % len(_SHAPES)]
            parts.append(f'<path fill="none" {_stroke(number)} d="M{x} {y}h26"/>')
            parts.append(
                f'<path fill="{_COLOURS[number % len(_COLOURS)]}" transform="translate({x + 13} {y})" d="{shape}"/>'
            )
            parts.append(f'<text x="{x + 32}" y="{y + 4}">{escape(each)}</text>')
            x += width
        return parts, y + _LEGEND_LINE - _HEIGHT

    def svg(self) -> str:
        legend, height = self._legend()
        label = escape(self._title, quote=True)
        box = f'viewBox="0 0 {_WIDTH:g} {_HEIGHT + height:g}" xmlns="http://www.w3.org/2000/svg"'
        return "\n".join([f'<svg {box} role="img" aria-label="{label}">', *self._parts, *legend, "</svg>"])


def _stroke(number: int) -> str:
    dash = _DASHES[number % len(_DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="2"{dashed}'
