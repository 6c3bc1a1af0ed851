"""One page: what is put into it comes out as one HTML file that needs nothing else."""

from collections.abc import Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Final

from mpworker.report.plots import BarPlot, LinePlot

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 0.4em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.8em 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 0.3em; }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #8888; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.2em 0; }
figcaption { font-weight: 600; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: currentColor; }
svg .grid { stroke: #8884; }
svg .axis { stroke: currentColor; fill: none; }
pre { padding: 0.8em; overflow-x: auto; border: 1px solid #8888; }
"""
# Even a name that finds a way past the escapes can load and run nothing.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


class Document:
    """A report, from its title to its end.

    Args:
        title: What it is about.

    Example:
        >>> from mpworker.report import Document
        >>> page = Document("Load")
        >>> page.heading("By hour")
        >>> page.table(["hour", "tasks"], [["12", 40], ["13", 37]])
        >>> "<td>40</td>" in page.html()
        True
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str, level: int = 2) -> None:
        """A heading.

        Args:
            text: Its words.
            level: 2 for one below the title, 3 for one below such a one.
        """
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def items(self, texts: Sequence[str]) -> None:
        """A list."""
        self._parts.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>")

    def code(self, text: str) -> None:
        """Text that is kept as it is, such as a piece of a program."""
        self._parts.append(f"<pre><code>{escape(text)}</code></pre>")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        """A table.

        Args:
            headings: Those of its columns.
            rows: Its rows, each with as many values; the first one names the row.
            caption: What it shows.
        """
        self._parts.append(_table(headings, rows, caption))

    def plot(self, plot: LinePlot | BarPlot) -> None:
        """A plot, with its figures below it for those who read rather than look."""
        headings, rows = plot.table()
        self._parts.append(
            f"<figure><figcaption>{escape(plot.title)}</figcaption>\n{plot.svg()}\n"
            f"<details><summary>The figures</summary>{_table(headings, rows)}</details></figure>"
        )

    def html(self) -> str:
        """The whole page."""
        return "\n".join(
            [
                "<!DOCTYPE html>",
                '<html lang="en"><head><meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape(self._title)}</title><style>{_STYLE}</style></head><body>",
                *self._parts,
                "</body></html>",
                "",
            ]
        )

    def write(self, path: "str | PathLike[str]") -> None:
        """Write the page to a file.

        Raises:
            OSError: It cannot be written.
        """
        Path(path).write_text(self.html(), encoding="utf-8")


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{said}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
