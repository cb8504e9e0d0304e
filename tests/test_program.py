"""How the programs are called, and what they say they are."""

import runpy
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from coe_server.cli import app as coe
from router_training.cli import app as coe_train


@pytest.mark.parametrize(("app", "name"), [(coe, "coe"), (coe_train, "coe-train")])
def test_a_program_says_its_version_and_what_it_is_for(app, name):
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"{name} {version('coe-server')}\n")
    told = CliRunner().invoke(app, ["--help"]).stdout
    assert "rout" in told.split("Options")[0]
    assert "in common" not in told


def test_the_package_runs_as_the_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["coe_server", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("coe_server", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"coe {version('coe-server')}\n"
