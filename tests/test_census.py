"""The example that shows the product: its measures on small sources, and its output on real files."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "code_census.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("code_census_under_test", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=cwd,
        env={**plain, "PYTHONIOENCODING": "utf-8"},
    )


@pytest.mark.parametrize(
    ("body", "complexity", "nesting"),
    [
        pytest.param("pass", 1, 0, id="straight"),
        pytest.param("if a: pass", 2, 1, id="if"),
        pytest.param("if a: pass\nelse: pass", 2, 1, id="else"),
        pytest.param("if a: pass\nelif b: pass\nelif c: pass\nelse: pass", 4, 1, id="elif"),
        pytest.param("if a: pass\nelse:\n    if b: pass", 3, 2, id="if-in-else"),
        pytest.param("return a if b else c", 2, 0, id="conditional-expression"),
        pytest.param("for x in a: pass\nelse: pass", 2, 1, id="for-else"),
        pytest.param("while a:\n    if b: break", 3, 2, id="if-in-while"),
        pytest.param("try: a\nexcept B: b\nexcept C: c\nelse: d\nfinally: e", 3, 1, id="try"),
        pytest.param("try: a\nexcept* B: b", 2, 1, id="try-star"),
        pytest.param("with a: b", 1, 1, id="with"),
        pytest.param("assert a", 2, 0, id="assert"),
        pytest.param("return a and b and c", 3, 0, id="and-and"),
        pytest.param("return a and (b or c)", 3, 0, id="and-or"),
        pytest.param("return [x for x in a if x if b]", 4, 0, id="comprehension"),
        pytest.param("return {x: y for x in a for y in b}", 3, 0, id="two-loop-comprehension"),
        pytest.param("match a:\n    case 1: pass\n    case 2: pass\n    case _: pass", 3, 1, id="match"),
        pytest.param(
            "match a:\n    case 1 if b: pass\n    case x if c: pass\n    case x: pass", 3, 1, id="match-guards"
        ),
        pytest.param("return lambda: a or b", 2, 0, id="lambda"),
        pytest.param("def g():\n    if a: pass\nclass C:\n    if b: pass", 1, 0, id="inner-definitions"),
        pytest.param("for x in a:\n  with b:\n    try: c\n    except D:\n      if e: f", 4, 4, id="deep"),
    ],
)
@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_measures(example: ModuleType, keyword: str, body: str, complexity: int, nesting: int) -> None:
    tree = ast.parse(f"{keyword} f():\n{textwrap.indent(body, '    ')}")
    assert example.measure(tree.body[0]) == (complexity, nesting, len(body.splitlines()) + 1, "f", 1)


def test_a_file_counts_each_function_once_and_keeps_the_most_complex(example: ModuleType, tmp_path: Path) -> None:
    source = "class C:\n    def small(self):\n        def inner(): return a if b else c\n        return inner\n"
    source += "".join(f"def f{n}():\n    return {' or '.join('x' * (n + 1))}\n" for n in range(12))
    file = tmp_path / "some.py"
    file.write_text(source)
    census = example.census(file)
    assert census[:3] == (len(source), 28, 14)
    assert [(f.complexity, f.name) for f in census.top] == [(n + 1, f"f{n}") for n in range(11, 1, -1)]


def test_a_file_is_read_in_its_own_encoding(example: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "latin.py"
    file.write_bytes("# coding: latin-1\ndef größe(): pass\n".encode("latin-1"))
    assert [function.name for function in example.census(file).top] == ["größe"]


def test_what_cannot_be_parsed_is_reported_and_the_rest_counted(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("def fine():\n    if a: return '\\d'\n")  # elsewhere a warning
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "coding.py").write_text("# coding: no-such\n")
    (tmp_path / "deep.py").write_text("x = " + "+".join("1" * 100_000))
    (tmp_path / "null.py").write_bytes(b"x = 1\0\n")
    done = run("-n", 2, ".", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ +2 +1 +2 +fine +good\.py:1 *$", done.stdout, re.MULTILINE)
    failed = dict(re.findall(r"^failed: (\w+)\.py: (\w+): .+$", done.stdout, re.MULTILINE))
    assert failed.pop("null") in ("SyntaxError", "ValueError")  # by version
    assert failed == {"broken": "SyntaxError", "coding": "SyntaxError", "deep": "RecursionError"}
    size = (tmp_path / "good.py").stat().st_size
    assert f"\n5 files (4 failed), 1 functions, 2 lines, {size} bytes in " in done.stdout


def test_files_that_all_fail_are_a_census_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    done = run("-n", 2, "broken.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n1 files (1 failed), 0 functions, 0 lines, 0 bytes in " in done.stdout


def test_the_installed_files_are_surveyed_in_plain_text_off_a_terminal() -> None:
    done = run("-n", 2, "--limit", 40)
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    rows = re.findall(r"^ +(\d+) +(\d+) +(\d+) +\S+ +\S+\.py:\d+ *$", done.stdout, re.MULTILINE)
    complexities = [int(row[0]) for row in rows]
    assert len(rows) == 10
    assert complexities == sorted(complexities, reverse=True)
    assert re.search(r"^40 files \(0 failed\), [\d,]+ functions, .* [\d,]+ tasks a second$", done.stdout, re.MULTILINE)
    assert re.search(r"^speed-up: \d+\.\d\d times one process \(40 files, all files: .*\)$", done.stdout, re.MULTILINE)


def test_paths_without_python_files_are_an_error_of_usage(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("error: there are no Python files in the given paths\n")


def test_the_files_of_the_interpreter_are_each_listed_once(example: ModuleType) -> None:
    files = example.installed_files()
    assert Path(ast.__file__) in files
    assert any("site-packages" in path.parts for path in files)
    assert len(files) == len({path.resolve() for path in files})
