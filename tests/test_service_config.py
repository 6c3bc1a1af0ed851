"""What a supervisor that runs as a service is to be, and how that is said."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpworker.cli.app import cli, run
from mpworker.service import config as configs
from mpworker.service import paths
from mpworker.service.config import SETTINGS, BadSetting, read
from mpworker.service.launch import told


def written(folder: Path, text: str) -> str:
    path = folder / "mpworker.toml"
    path.write_text(text)
    return str(path)


def test_flags_go_before_variables_and_these_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'n = 2\nlog_level = "debug"\n[children]\ngrace = 1.5\nnice = 3\n[clients]\nmax = 7\n')
    environment = {"MPWORKER_CHILDREN_GRACE": "2.5", "MPWORKER_N": "3", "MPWORKER_OTHER": "x"}
    config = read(path, environment, {"n": 4, "socket": None})
    found = {name: (config[name], config.origins[name]) for name in ("n", "children.grace", "children.nice")}
    assert found == {
        "n": (4, "--n"),
        "children.grace": (2.5, "MPWORKER_CHILDREN_GRACE"),
        "children.nice": (3, path),
    }
    assert config.origins["stop_timeout"] == "default"
    assert config["clients.max"] == 7


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("n = 0", "n must be at least 1, not 0"),
        ("n = 9\nn_max = 8", "n must be at most n_max=8, not 9"),
        ('n = "two"', "n must be an int from 1 to 256, not 'two'"),
        ("[children]\ngrase = 1", "there is no setting 'children.grase': did you mean 'children.grace'?"),
        ("[children]\nlease_ttl = -1", "children.lease_ttl must be greater than 0 s, not -1"),
        ("children = 3", "children must be a table, not 3"),
        ('log_level = "loud"', "log_level must be 'debug' or 'info' or 'warning' or 'error', not 'loud'"),
        ("burst = 3", "burst=3 is for a rate, which is not given"),
        ("[clients]\nring_bytes = 5000", "clients.ring_bytes must be a power of two, not 5000"),
        ('[clients]\nsocket_mode = "0999"', "clients.socket_mode must be octal"),
        ("[clients]\nuids = 3", "clients.uids must be a list, not 3"),
        ("[queues.mail]\nweight = 0", "queues.mail: weight must be at least 1, not 0"),
        ("[queues.mail]\nspeed = 1", "there is no setting queues.mail.speed"),
        ("n = ", "it is no TOML"),
        (
            "[children]\nmemory_limit = 200000000\nmemory_limit_hard = 100000000",
            "must be at least children.memory_limit",
        ),
    ],
)
def test_an_error_names_the_setting_the_value_and_the_bound(tmp_path: Path, text: str, complaint: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadSetting) as caught:
        read(path, {}, {})
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(path)


def test_root_takes_nobody_elses_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(BadSetting, match=r"would run as root: not \[1000\]"):
        read(written(tmp_path, "[clients]\nuids = [0, 1000]"), {}, {})
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert read(written(tmp_path, "[clients]\nuids = [0, 1000]"), {}, {})["clients.uids"] == [0, 1000]


def test_what_is_shown_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    text = 'rate = 5.0\nstop_timeout = "none"\n[queues.mail]\nweight = 3\nrate = 1.0\n[clients]\nsocket_mode = 0o660\n'
    path = written(tmp_path, text)
    config = read(path, {}, {})
    shown = CliRunner().invoke(cli, ["config", "show", "--config", path])
    assert shown.exit_code == 0
    again = read(written(tmp_path, shown.output), {}, {})
    assert again.values == config.values
    assert again.queues == config.queues
    assert f"# {path}: " in shown.output
    assert "# default: " in shown.output


def test_as_json_each_has_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPWORKER_N", "5")
    shown = CliRunner().invoke(cli, ["config", "show", "--json", "--config", written(tmp_path, "")])
    said = json.loads(shown.output)
    assert said["settings"]["n"] == {"value": 5, "origin": "MPWORKER_N"}
    assert set(said["settings"]) == {setting.name for setting in SETTINGS}


def test_a_wrong_configuration_has_an_exit_code_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = written(tmp_path, "n = 0")
    assert run(["config", "check", "--config", bad]) == 78
    assert run(["serve", "--config", bad]) == 78
    assert capsys.readouterr().err.count("n must be at least 1") == 2
    assert run(["config", "check", "--config", str(tmp_path / "missing.toml")]) == 78
    assert run(["config", "check", "--config", written(tmp_path, "n = 1")]) == 0


def test_where_it_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MPWORKER_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    own = f"{tmp_path}/mpworker/mpworker.sock"
    assert paths.to_listen_at() == own
    assert paths.to_connect_to() == "/run/mpworker/mpworker.sock"
    (tmp_path / "mpworker").mkdir()
    Path(own).touch()
    assert paths.to_connect_to() == own
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert paths.to_listen_at() == "/run/mpworker/mpworker.sock"
    monkeypatch.setenv("MPWORKER_SOCKET", "/elsewhere")
    assert paths.to_connect_to() == "/elsewhere"


def test_every_setting_reaches_the_supervisor(tmp_path: Path) -> None:
    """None is read, checked and shown, and then left out."""
    config = read(written(tmp_path, ""), {}, {})

    class Seen(configs.Effective):
        def __getitem__(self, name: str) -> object:
            asked.add(name)
            return self.values[name]

    asked: set[str] = set()
    told(Seen(config.values, config.origins, config.queues))
    assert asked == {setting.name for setting in SETTINGS}
