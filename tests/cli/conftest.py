"""A folder with a config in it, a world behind it, and a way to call the commands."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from fedkeeper import cli, logs
from tests.cli.fakes import CONFIG, World


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The platforms and the log; the working directory has a config.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "only_ow").mkdir()
    yield World()
    logs.tear_down()


@pytest.fixture
def call(world):
    """Call a command as its script would: call("main", "-s")."""

    def run(command: str, *arguments: str):
        return CliRunner().invoke(getattr(cli, command), arguments, obj=world.backend())

    return run
