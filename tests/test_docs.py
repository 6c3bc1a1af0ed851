"""Every Python block in README.md and docs/ runs. A page is one script, so a later block may build on an earlier one.

A block that cannot run is fenced as ```python no-run.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Spellings that highlight the same and would slip past.
UNRUN_LANGUAGES = {"py", "python3", "pycon", "{code-block} python", "{code-block}python"}


def _script(page: Path) -> str:
    """The page's runnable blocks, each line on the number it has in the page, so that a traceback points there."""
    lines: list[str] = []
    block: list[str] = []
    fence = info = ""
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        stripped = line.strip()
        if not fence and stripped.startswith("```"):
            info = stripped.lstrip("`").strip()
            fence = stripped[: len(stripped) - len(stripped.lstrip("`"))]
            assert info not in UNRUN_LANGUAGES, f"{page}:{number}: fence it as ```python, so that it is run"
            assert not info.startswith("python ") or info == "python no-run", f"{page}:{number}: unknown: {info}"
            block = []
        elif fence and stripped == fence:
            if info == "python":
                lines += [""] * (number - 1 - len(block) - len(lines))
                lines += textwrap.dedent("\n".join(block)).split("\n")
            fence = ""
        elif fence:
            block.append(line)
    assert not fence, f"{page}: a block is not closed"
    return "\n".join(lines)


PAGES = {
    str(page.relative_to(ROOT)): script
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in page.parts and (script := _script(page))
}


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page: str, tmp_path: Path) -> None:
    script = tmp_path / Path(page).with_suffix(".py").name
    script.write_text(PAGES[page])
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, f"{page} (line numbers are the page's)\n{run.stdout}{run.stderr}"


def test_the_readme_shows_something_that_runs() -> None:
    assert "README.md" in PAGES
