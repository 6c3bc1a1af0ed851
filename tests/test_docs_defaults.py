"""The table of defaults says what the code does."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from mpworker import ProcessWorker
from mpworker.options import TaskDefaults, WorkerOptions

PAGE = (Path(__file__).parent.parent / "docs" / "defaults.md").read_text()
ROW = re.compile(r"^\| `([\w.]+)` \| `([^`]*)` \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


def section(title: str) -> dict[str, object]:
    """The names and values of one table."""
    text = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    found = {name: ast.literal_eval(value) for name, value, *_ in ROW.findall(text)}
    rows = sum(line.startswith("| `") for line in text.splitlines())
    assert len(found) == rows, f"a row of {title!r} cannot be read, or is there twice"
    return found


TASK = section("Options of tasks")
CRON = section("Options of recurring tasks")
WORKER = section("Options of the worker")
SUBSCRIPTION = section("Options of a subscription")
INSIDE = section("Bounds and measures inside")


def defaults_of(options: type) -> dict[str, object]:
    return {name: each.default for name, each in inspect.signature(options).parameters.items()}


def test_the_options_of_tasks() -> None:
    assert defaults_of(TaskDefaults) == TASK


def test_the_options_of_recurring_tasks() -> None:
    parameters = inspect.signature(ProcessWorker.register_cron_task).parameters.values()
    assert {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY} == CRON


def test_the_options_of_the_worker() -> None:
    in_code = defaults_of(WorkerOptions)
    in_code |= {
        name: parameter.default
        for name, parameter in inspect.signature(ProcessWorker).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in TASK
    }
    assert in_code == WORKER


def test_the_options_of_a_subscription() -> None:
    parameters = inspect.signature(ProcessWorker.subscribe_results).parameters
    assert {name: each.default for name, each in parameters.items() if name != "self"} == SUBSCRIPTION


def test_the_signature_and_the_options_agree() -> None:
    signature = inspect.signature(ProcessWorker).parameters
    for name, default in (defaults_of(TaskDefaults) | defaults_of(WorkerOptions)).items():
        # `n` and `python` are None for "find out".
        if name in signature and name not in ("n", "python"):
            assert signature[name].default == default, name


@pytest.mark.parametrize("name", INSIDE)
def test_a_bound_inside(name: str) -> None:
    module, _, constant = name.rpartition(".")
    assert getattr(importlib.import_module(module), constant) == INSIDE[name]


def test_a_page_of_claims_is_one_page() -> None:
    from mpworker.ipc.channel import claims_bytes

    slots = WORKER["slots"]
    assert isinstance(slots, int)
    assert claims_bytes(slots) == 4096 < claims_bytes(slots + 1)


def test_every_default_has_its_reason() -> None:
    for name, _, _, reason in ROW.findall(PAGE):
        assert reason.strip() or name in ("initializer", "initargs"), name
