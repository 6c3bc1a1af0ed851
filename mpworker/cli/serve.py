"""``mpworker serve`` and ``mpworker config``: a supervisor that programs attach to, and what it is to be."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from mpworker.cli.errors import CommandError, ExitCode
from mpworker.service.config import SETTINGS, BadSetting, Effective, read

__all__ = ["config_command", "serve_command"]

_CONFIG_VARIABLE = "MPWORKER_CONFIG"
_SYSTEM_CONFIG = "/etc/mpworker/mpworker.toml"


def _config_option(command: Any) -> Any:
    return click.option(
        "--config",
        "path",
        metavar="FILE",
        help=f"The configuration, in TOML. [{_CONFIG_VARIABLE}, or {_SYSTEM_CONFIG} if it is there]",
    )(command)


def _flags(command: Any) -> Any:
    """The settings that have a flag."""
    for option in (
        click.option("--log-level", help="debug, info, warning or error. [info]"),
        click.option("-n", "--processes", "n", type=int, help="Children. [one for each core]"),
        click.option(
            "--socket", metavar="PATH", help="Where it listens. [$XDG_RUNTIME_DIR or /run, mpworker/mpworker.sock]"
        ),
    ):
        command = option(command)
    return command


def effective(path: str | None, **flags: Any) -> Effective:
    """The settings that are in force.

    Args:
        path: The file; None for that of the environment, or the system's.
        **flags: What the command line says.

    Raises:
        CommandError: One is wrong.
    """
    if path is None:
        path = os.environ.get(_CONFIG_VARIABLE) or (_SYSTEM_CONFIG if os.path.exists(_SYSTEM_CONFIG) else None)
    try:
        return read(path, os.environ, flags)
    except BadSetting as error:
        raise CommandError(str(error), ExitCode.CONFIG) from error


@click.command("serve")
@_config_option
@_flags
def serve_command(path: str | None, socket: str | None, n: int | None, log_level: str | None) -> ExitCode:
    """Be a supervisor that programs attach to with mpworker.connect().

    It runs in this process until SIGTERM or Ctrl-C, which lets tasks finish for stop_timeout seconds; a second one
    stops it now. It logs lines of JSON to standard error. Under systemd it says when it is ready, and takes a socket
    that is passed on. Exit codes: 0 after a stop, 78 for a wrong configuration, 69 if another one listens there, 71
    if the system refuses something, 70 after a crash.

    Example: mpworker serve --socket /tmp/pool.sock -n 8
    """
    config = effective(path, socket=socket, n=n, log_level=log_level)
    from mpworker.service.launch import become_supervisor

    said = {"config": path and os.path.abspath(path), "socket": socket, "processes": n, "log_level": log_level}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in said.items() if value is not None]
    try:
        become_supervisor(config, arguments)
    except OSError as error:
        raise CommandError(f"the supervisor cannot be started: {error}", ExitCode.SYSTEM) from error


@click.group("config")
def config_command() -> None:
    """What a supervisor would be, and where each setting comes from."""


@config_command.command("show")
@_config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON, each with its origin.")
def _show(path: str | None, as_json: bool) -> ExitCode:
    """Print every setting that is in force, with where it comes from.

    Example: mpworker config show --config /etc/mpworker/mpworker.toml
    """
    config = effective(path)
    queues = {
        name: {key: getattr(each, key) for key in each.__dataclass_fields__} for name, each in config.queues.items()
    }
    if as_json:
        told = {name: {"value": value, "origin": config.origins[name]} for name, value in config.values.items()}
        click.echo(json.dumps({"settings": told, "queues": queues}, indent=1))
        return ExitCode.OK
    for line in _lines(config, queues):
        click.echo(line)
    return ExitCode.OK


@config_command.command("check")
@_config_option
def _check(path: str | None) -> ExitCode:
    """Say whether a configuration is good: nothing and exit code 0, or what is wrong with it and 78.

    Example: mpworker config check --config new.toml
    """
    effective(path)
    return ExitCode.OK


@config_command.command("told", hidden=True)
@_config_option
@_flags
def _told(path: str | None, **flags: Any) -> ExitCode:
    """What a supervisor is told of it: see `mpworker.supervisor.reloading`."""
    config = effective(path, **flags)
    from mpworker.service.launch import told

    what = told(config)
    del what["blob"]  # what only the next start can change, and the environment with it
    click.echo(json.dumps(what))
    return ExitCode.OK


def _lines(config: Effective, queues: dict[str, dict[str, Any]]) -> list[str]:
    """As a file that says the same."""
    lines, table = [], ""
    for setting in sorted(SETTINGS, key=lambda each: each.name.rpartition(".")[0]):
        head, _, key = setting.name.rpartition(".")
        if head != table:
            table = head
            lines += ["", f"[{table}]"]
        value = config[setting.name]
        text = f"0o{value:o}" if key == "socket_mode" else _toml(value)
        lines.append(f"{key} = {text}  # {config.origins[setting.name]}: {setting.what}")
    for name, options in queues.items():
        lines += ["", f"[queues.{json.dumps(name)}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in options.items() if value is not None]
    return lines


def _toml(value: Any) -> str:
    return '"none"' if value is None else json.dumps(value)
