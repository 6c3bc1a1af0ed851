"""Reports as one HTML file: headings, paragraphs, tables and plots, with no script and nothing from elsewhere.

What it is used by are the capacity planner and the benchmarks. Plots are drawn here, as SVG within the page: each
plotting library for Python either draws by a script of its own that comes along or brings NumPy and a font engine, and
what is needed is a handful of lines and bars. It uses nothing of mpworker.

Example:
    >>> from mpworker.report import Document, LinePlot, Series
    >>> page = Document("Waiting")
    >>> page.paragraph("More children, less waiting.")
    >>> page.plot(LinePlot("Wait by children", "children", "wait, s", [Series("p95", [(1, 2.5), (2, 0.4), (4, 0.1)])]))
    >>> page.html().startswith("<!DOCTYPE html>")
    True
"""

from mpworker.report.document import Document
from mpworker.report.plots import BarPlot, LinePlot, Series

__all__ = ["BarPlot", "Document", "LinePlot", "Series"]
