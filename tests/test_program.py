"""How the programs are called, and what they say they are."""

import runpy
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coe_server.cli import app as coe
from coe_server.system.interruption import quiet_interruption
from router_training.cli import app as coe_train
from tests.patience import PATIENCE_SECONDS

PROGRAMS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
# The program as its script calls it, with Ctrl-C where a module begins to be imported.
INTERRUPTED = """
import os, signal, sys
from importlib import import_module

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.meta_path.insert(0, Interrupts())
module, _, name = "{program}".partition(":")
getattr(import_module(module), name)()
"""


@pytest.mark.parametrize("program", PROGRAMS.values())
def test_ctrl_c_while_a_program_is_imported_ends_it_without_a_word(program):
    words = [sys.executable, "-c", INTERRUPTED.format(program=program), "--version"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_the_handling_of_ctrl_c_is_restored_and_an_ignored_one_stays_ignored(before):
    ours = signal.signal(signal.SIGINT, before)
    try:
        with quiet_interruption():
            assert (signal.getsignal(signal.SIGINT) is before) == (before is signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, ours)


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
