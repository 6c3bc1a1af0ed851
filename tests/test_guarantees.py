"""Every test that the page of guarantees names is there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "guarantees.md").read_text()


def test_every_promise_has_tests_and_every_one_of_them_is_there() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) >= 30
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, name in named:
            tree = ast.parse((TESTS / file).read_text())
            assert any(isinstance(each, ast.FunctionDef) and each.name == name for each in tree.body), f"{file}::{name}"
