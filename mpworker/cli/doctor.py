"""``mpworker doctor``: does this machine have what a pool needs?"""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mpworker.checks import check_int
from mpworker.cli.checkup import Finding, checkup
from mpworker.cli.errors import ExitCode
from mpworker.options import N_MAX

__all__ = ["doctor_command"]

_STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}


@click.command("doctor")
@click.option("-n", "--processes", "count", type=int, help="Children that a pool is to have. [one for each core]")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def doctor_command(count: int | None, as_json: bool) -> ExitCode:
    """Look at the machine, and start a pool to see whether it works.

    Each line is something that a pool needs: the kernel, limits, the cgroup, Python, what is installed. "bad" is what
    no pool starts with, "note" what it does less well with; either says how to mend it. The exit code is 1 if
    anything is bad.

    Example: mpworker doctor -n 16
    """
    count = None if count is None else check_int("processes", count, 1, N_MAX)
    findings = list(checkup(count))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _show(findings)
    return ExitCode.SOME_FAILED if any(finding.state == "bad" for finding in findings) else ExitCode.OK


def _show(findings: list[Finding]) -> None:
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        style = _STYLES[finding.state]
        words = map(escape, (finding.name, finding.found, finding.advice))
        table.add_row(f"[{style}]{finding.state}[/]", *words)
    console.print(table)
