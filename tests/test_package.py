"""What users install: the sdist and the wheel, not the checkout."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mpworker

ROOT = Path(__file__).parent.parent
SDIST_FILES = ["pyproject.toml", "setup.py", "README.md", "LICENSE"]


def _build(kind: str, source: Path, out: Path) -> Path:
    script = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", script, str(out)], cwd=source, capture_output=True, text=True, timeout=110, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (made,) = [path for path in out.iterdir() if path.name.endswith({"sdist": ".tar.gz", "wheel": ".whl"}[kind])]
    return made


def _wheel_from_sdist(tmp_path: Path) -> tuple[Path, Path]:
    # Built from a copy, because setuptools writes into the tree it builds from.
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "mpworker", tree / "mpworker", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in SDIST_FILES:
        shutil.copy(ROOT / name, tree / name)
    sdist = _build("sdist", tree, tmp_path)
    # Not by tarfile: 3.11.3 and earlier do not know the filter that later ones warn about when it is missing.
    subprocess.run(["tar", "-xzf", sdist, "-C", tmp_path], timeout=60, check=True)
    return _build("wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path), tree


def test_a_wheel_built_from_the_sdist_is_complete(tmp_path: Path) -> None:
    wheel, tree = _wheel_from_sdist(tmp_path)

    # The version is the one in mpworker/__init__.py, and one wheel serves every CPython from 3.11 on.
    assert wheel.name == f"mpworker-{mpworker.__version__}-cp311-abi3-linux_{platform.machine()}.whl"

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    wanted = {
        str(path.relative_to(tree))
        for path in (tree / "mpworker").rglob("*")
        if path.is_file() and path.suffix not in {".c", ".h"}
    }
    packed = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site" / "mpworker").rglob("*")}
    assert wanted <= packed, f"the wheel lacks {sorted(wanted - packed)}"
    assert not [name for name in packed if name.endswith((".c", ".h"))]

    script = "import mpworker, mpworker.ipc._native; print(mpworker.ipc._native.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout.strip() == str(tmp_path / "site/mpworker/ipc/_native.abi3.so"), run.stderr


@pytest.mark.deep
def test_the_wheel_installs_on_every_python_found(tmp_path: Path) -> None:
    wheel, _ = _wheel_from_sdist(tmp_path)
    found = subprocess.run([ROOT / "scripts/pythons"], capture_output=True, text=True, timeout=60, check=True)
    pythons = dict(line.split(maxsplit=1) for line in found.stdout.splitlines())
    assert pythons
    for version, python in pythons.items():
        venv = tmp_path / f"venv-{version}"
        for command in (
            [python, "-m", "venv", venv],
            [venv / "bin/python", "-m", "pip", "install", "-qq", "-c", ROOT / "constraints.txt", wheel],
            [venv / "bin/python", "-c", "import mpworker.ipc._native"],
            [venv / "bin/mpworker", "--help"],
        ):
            run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
            assert run.returncode == 0, f"Python {version}: {command}\n{run.stdout}{run.stderr}"


def test_a_checkout_that_is_not_built_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "mpworker", tmp_path / "mpworker", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    script = "from mpworker import ProcessWorker"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stderr.splitlines()[-1].endswith("is not built: run `make` in the checkout, or `pip install .`")
