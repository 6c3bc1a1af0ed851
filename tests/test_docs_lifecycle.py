"""The page on the life of a task says what the table says."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_written_from_the_table() -> None:
    spec = importlib.util.spec_from_file_location("lifecycle_table", DOCS / "lifecycle_table.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    text = (DOCS / "lifecycle.md").read_text()
    assert writer.rendered() in text, "run docs/lifecycle_table.py"
    assert writer.page(text) == text
