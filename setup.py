"""Declares the one C module, which pyproject.toml cannot express; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

# Relative, because setuptools refuses absolute paths in an sdist's manifest.
IPC = Path("mpworker/ipc")

setup(
    ext_modules=[
        Extension(
            "mpworker.ipc._native",
            sources=[str(IPC / "_native.c")],
            # _native.c may include sibling .c files; any of them changing means a rebuild.
            depends=sorted(str(path) for path in (*IPC.glob("*.c"), *IPC.glob("*.h"))),
            # The stable ABI of 3.11: one module serves every later CPython, so a pool and a child on another one agree.
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-pthread"],
            extra_link_args=["-pthread"],
        )
    ],
    # The wheel's tag has no key in pyproject.toml that also covers `pip install` from the checkout.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
