"""Reports: one HTML file that needs nothing else, whatever is put into it."""

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from mpworker.report import BarPlot, Document, LinePlot, Series
from mpworker.report.scales import name, scale

NASTY = "<script>alert('&\"')</script>"
SVG = "{http://www.w3.org/2000/svg}"


class Tags(HTMLParser):
    """What a browser would find."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.links += [value or "" for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _attributes: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def everything() -> str:
    page = Document(NASTY)
    page.heading(NASTY)
    page.heading(NASTY, level=3)
    page.paragraph(NASTY)
    page.items([NASTY])
    page.code(NASTY)
    page.table([NASTY], [[NASTY]], caption=NASTY)
    page.plot(LinePlot(NASTY, NASTY, NASTY, [Series(NASTY, [(1, 2), (2, 3)]), Series("b", [(1, 1)], steps=True)]))
    page.plot(BarPlot(NASTY, NASTY, NASTY, [NASTY, "b"], {NASTY: [1, 2], "c": [2, math.nan]}))
    return page.html()


def test_nothing_comes_from_elsewhere_and_nothing_runs() -> None:
    page = everything()
    tags = Tags(page)
    assert not tags.open
    assert "script" not in tags.found
    assert tags.links == []
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert tags.text.count(NASTY) > 15, "each text is there as it was given"


def test_a_plot_is_named_for_those_who_do_not_see_it() -> None:
    svg = drawn(LinePlot(NASTY, "x", "y", []))
    assert (svg.get("role"), svg.get("aria-label")) == ("img", NASTY)


def test_a_page_is_written(tmp_path) -> None:
    page = Document("grüße")
    page.write(tmp_path / "page.html")
    assert "grüße" in (tmp_path / "page.html").read_text(encoding="utf-8")


def drawn(plot: LinePlot | BarPlot) -> ElementTree.Element:
    return ElementTree.fromstring(plot.svg())


def places(svg: ElementTree.Element) -> list[tuple[float, float]]:
    """Where the points of lines are marked."""
    moves = [each.get("transform", "") for each in svg.iter(f"{SVG}path")]
    found = [re.fullmatch(r"translate\(([\d.]+) ([\d.]+)\)", each) for each in moves]
    return [(float(each[1]), float(each[2])) for each in found if each]


def test_a_line_goes_through_its_points() -> None:
    points = places(drawn(LinePlot("t", "x", "y", [Series("a", [(0, 0), (1, 5), (2, 10)])])))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2
    assert y0 > y1 > y2, "up is more"
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)


def test_decades_have_one_length_on_a_logarithmic_axis() -> None:
    plot = LinePlot("t", "x", "y", [Series("a", [(1, 1), (10, 10), (100, 100)])], log_x=True, log_y=True)
    (x0, y0), (x1, y1), (x2, y2) = places(drawn(plot))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


def test_what_has_no_place_is_left_out() -> None:
    series = Series("a", [(1, math.nan), (2, math.inf), (0, 3), (4, -1), (5, 2)])
    assert len(places(drawn(LinePlot("t", "x", "y", [series], log_x=True, log_y=True)))) == 1
    drawn(LinePlot("t", "x", "y", []))
    drawn(LinePlot("t", "x", "y", [Series("a", [])], log_y=True))


def test_steps_hold_until_the_next_point() -> None:
    svg = LinePlot("t", "x", "y", [Series("a", [(0, 1), (1, 2)], steps=True)]).svg()
    (line,) = re.findall(r'stroke-width="2" d="M([^"]+)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, each.split())) for each in line.split("L")]
    assert (y0, x1) == (y1, x2)
    assert x0 < x1
    assert y2 < y1


def test_bars_stand_on_zero_and_their_lengths_compare() -> None:
    svg = drawn(BarPlot("t", "x", "y", ["a", "b", "c"], {"one": [5, 10, -5]}))
    five, ten, minus = [{key: float(each.get(key, 0)) for key in ("y", "height")} for each in svg.iter(f"{SVG}rect")]
    assert ten["height"] == pytest.approx(2 * five["height"], abs=0.2)
    assert minus["height"] == pytest.approx(five["height"], abs=0.2)
    assert five["y"] + five["height"] == pytest.approx(minus["y"], abs=0.2)


def test_bars_and_categories_agree() -> None:
    with pytest.raises(ValueError, match="'one' has 1 values for 2 categories"):
        BarPlot("t", "x", "y", ["a", "b"], {"one": [5]})


def test_series_are_named_and_told_apart_without_colours() -> None:
    many = [Series(f"series {number}", [(0, number), (1, number)]) for number in range(9)]
    svg = LinePlot("t", "x", "y", many).svg()
    assert all(f">series {number}<" in svg for number in range(9))
    assert len(set(re.findall(r'stroke-dasharray="([^"]+)"', svg))) >= 5
    assert "series 0" not in LinePlot("t", "x", "y", many[:1]).svg().replace("aria-label", ""), "the axis says it"


def test_the_figures_of_a_plot_can_be_read() -> None:
    plot = LinePlot("t", "n", "s", [Series("a", [(1, 0.5), (2, 0.25)]), Series("b", [(2, 7)])])
    assert plot.table() == (["n", "a (s)", "b (s)"], [["1", "0.5", ""], ["2", "0.25", "7"]])
    page = Document("t")
    page.plot(plot)
    assert "<td>0.25</td>" in page.html()


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.0, 1.0], False),
        ([3.0], False),
        ([0.0], False),
        ([-2.0, 7.5], False),
        ([1e-9, 2e-9], False),
        ([1e12, 5e12], False),
        ([], False),
        ([1.0], True),
        ([1e-6, 1e6], True),
        ([0.02, 0.3], True),
        ([1e-150, 1e150], True),
        ([], True),
    ],
)
def test_all_values_have_a_place_between_few_ticks(values: list[float], log: bool) -> None:
    axis = scale(values, log)
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)
    assert 2 <= len(axis.ticks) <= 15
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert len(set(map(name, axis.ticks))) == len(axis.ticks)


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0"), (0.25, "0.25"), (1e-5, "1e-05"), (1500.0, "1500"), (250_000.0, "250k"), (3e9, "3G")]
)
def test_numbers_are_short(value: float, said: str) -> None:
    assert name(value) == said
