"""From ``package.module:function`` to the function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mpworker.cli.errors import CommandError, one_line

__all__ = ["check_importable", "make_current_directory_importable", "resolve"]


def make_current_directory_importable() -> None:
    """Put the current directory first on ``sys.path``, as ``python -m`` does.

    The console script has its own directory there instead. ``python -P`` and ``PYTHONSAFEPATH`` are respected.
    """
    here = os.getcwd()
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def resolve(spec: str) -> Callable[..., object]:
    """Import what ``package.module:function`` names.

    Args:
        spec: A module's dotted name, a colon, and the name of a callable in it; dots after the colon reach into
            classes and objects.

    Returns:
        The callable.

    Raises:
        CommandError: It has another form, can't be imported, isn't there, or can't be mapped over items.
    """
    module_name, colon, attribute_path = spec.partition(":")
    if not (colon and module_name and attribute_path):
        raise CommandError(f"target {spec!r} names no function: write {_corrected(module_name, attribute_path)}")
    if _is_path(module_name):
        raise CommandError(f"target {spec!r} names a file: write {_corrected(module_name, attribute_path)}")
    target: object = _import(module_name)
    for attribute in attribute_path.split("."):
        try:
            target = getattr(target, attribute)
        except AttributeError:
            owner = f"module {module_name!r}" if inspect.ismodule(target) else f"{target!r}"
            raise CommandError(f"target {spec!r}: {owner} has no attribute {attribute!r}") from None
    if not callable(target):
        raise CommandError(f"target {spec!r} is not callable: it is of type {type(target).__name__}")
    if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
        raise CommandError(f"target {spec!r} is asynchronous; a function that returns its result is needed")
    return target


def _is_path(module_name: str) -> bool:
    return "/" in module_name or module_name.endswith(".py")


def _corrected(module_name: str, attribute_path: str) -> str:
    """The target that was probably meant by one that names a file, or no function."""
    where = ""
    if _is_path(module_name):
        path = Path(module_name.removesuffix(".py"))
        if path.is_absolute() or ".." in path.parts:
            where = f", in the directory {path.parent}"
            path = Path(path.name)
        module_name = ".".join(path.parts)
    owner, _, last = module_name.rpartition(".")
    if owner and not attribute_path and not _is_there(module_name) and _is_there(owner):
        module_name, attribute_path = owner, last
    return f"{module_name or 'MODULE'}:{attribute_path or 'FUNCTION'}{where}"


def check_importable(module_name: str) -> None:
    """Check that a module to preload can be found, without running it.

    Raises:
        CommandError: There is none of that name.
    """
    try:
        found = importlib.util.find_spec(module_name) is not None
    except (ImportError, ValueError):  # a parent package is missing; a name such as "" or ".x"
        found = False
    except (Exception, SystemExit) as error:  # a parent package is imported for it, and may raise anything
        raise CommandError(f"--preload {module_name}: {type(error).__name__}: {one_line(error)}") from error
    if not found:
        raise CommandError(f"--preload {module_name}: there is no module of that name on sys.path")


def _is_there(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except (Exception, SystemExit):  # noqa: BLE001  # as in check_importable
        return False


def _import(module_name: str) -> object:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may raise anything, or be a script that exits
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise CommandError(f"cannot import {module_name!r}: there is no module {missing!r} on sys.path") from None
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = "" if last.filename.startswith("<frozen") else f" (at {last.filename}:{last.lineno})"
        raise CommandError(f"cannot import {module_name!r}: {type(error).__name__}: {one_line(error)}{at}") from error
