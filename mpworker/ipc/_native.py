"""Stands where the native module is not built, which is imported in place of this file wherever it is."""

raise ImportError(
    "mpworker's native module (mpworker/ipc/_native.c) is not built: run `make` in the checkout, or `pip install .`"
)
