"""BLAS and OpenMP in the nursery: one thread while modules are preloaded, and as many as a child is to have afterwards.

These libraries start their threads when they are loaded, and a process with threads cannot be forked safely. What was
loaded with one thread stays at one, until somebody tells the library itself: `threadpoolctl` does, in each child.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
)
_LIBRARIES: Final = ("openblas", "libblis", "mkl_rt", "libgomp", "libiomp", "libomp", "flexiblas")


@contextmanager
def one_thread(*, asked: bool) -> Iterator[None]:
    """What is loaded in here has one thread, or what the environment says where nobody has `asked` for a number."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update({name: "1" for name, value in before.items() if asked or value is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def threads_to_set(threads: int, *, asked: bool) -> int:
    """How many a child has to tell the libraries that are loaded now; 0 if there is nothing to tell.

    Args:
        threads: How many a child is to have.
        asked: The user has asked for that number, so that what is loaded later shall have it too.

    Raises:
        ImportError: The user has asked for more than one, and there is nobody to tell the libraries.
    """
    if asked:
        os.environ.update(dict.fromkeys(_VARIABLES, str(threads)))
    elif any(name in os.environ for name in _VARIABLES):
        return 0  # the environment says how many, and they were loaded with that
    if threads == 1 or not _is_loaded():
        return 0
    try:
        import threadpoolctl
    except ImportError:
        if asked:
            raise
        return 0
    del threadpoolctl
    return threads


def _is_loaded() -> bool:
    with open("/proc/self/maps") as file:
        return any(library in line for line in file for library in _LIBRARIES)
