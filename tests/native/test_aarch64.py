"""The same code on aarch64: compiled for it, and run by an emulator.

An emulator on x86 shows that it builds and works; it orders memory as x86 does. The models hold what aarch64 reorders.
"""

import sysconfig

import pytest
from test_drivers import SEED
from toolchain import FLAGS, IPC, run

pytestmark = pytest.mark.deep

COMPILER = "aarch64-linux-gnu-gcc"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("stream", (500_000, 65536, SEED)),
        ("kill", (100, SEED)),
        ("pingpong", (5, SEED)),
        ("claims_race", (200_000, SEED)),
        ("fuzz", (10, SEED)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_driver_runs(build, install, name: str, arguments: tuple[int, ...]) -> None:
    install(COMPILER, "qemu-aarch64")
    binary = build(name, "-static", compiler=COMPILER)
    done = run(["qemu-aarch64", binary, *map(str, arguments)], timeout=600)
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout}\n{done.stderr}"


def test_the_module_compiles(install, tmp_path) -> None:
    install(COMPILER)
    include = sysconfig.get_paths()["include"]  # the limited API is the same text on both, and so are the sizes
    command = [COMPILER, *FLAGS, "-DPy_LIMITED_API=0x030B0000", f"-I{include}", "-fPIC", "-c", IPC / "_native.c"]
    done = run([*command, "-o", tmp_path / "native.o"])
    assert done.returncode == 0, done.stderr
