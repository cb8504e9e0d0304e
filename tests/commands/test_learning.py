"""`coe learning`: the steps are shown and undone, with a server and without one."""

import time

import pytest
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.commands.learning import lines_of
from coe_server.journal.steps import Step, Steps, read_steps, write_steps
from coe_server.system.process import state_lock

CONFIG = """
state_directory: state
experts:
  - {name: big, engine: simulated, weights_bytes: 1GiB, start_seconds: 1, wake_seconds: 1, sleep_seconds: 1,
     ttft_seconds: 0.1, tokens_per_second: 50}
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "serve.yaml").write_text(CONFIG)
    steps = Steps().and_then(Step(time.time(), 100, "score", {"code": {"big": 0.05, "small": -0.03}}))
    write_steps(tmp_path / "state" / "learned.json", steps)
    return tmp_path / "serve.yaml"


def ran(*words):
    return CliRunner().invoke(app, ["learning", *map(str, words)])


def test_the_steps_are_shown_without_a_server(config):
    told = ran("show", config)
    assert told.exit_code == 0, told.output
    assert "by 100 ratings (score)" in told.output
    assert "code: big +0.0 -> +5.0 points" in told.output


def test_the_last_step_is_undone_without_a_server(config):
    assert "steps in force: 0" in ran("undo", config).output
    assert read_steps(config.parent / "state" / "learned.json").table == {}
    again = ran("undo", config)
    assert (again.exit_code, "there is no step to undo" in again.output) == (1, True)


def test_a_running_server_is_asked_and_not_its_file(config):
    with state_lock(config.parent / "state"):
        told = ran("undo", config, "--port", 1)
    assert told.exit_code == 1
    assert "no server answers" in told.output
    assert read_steps(config.parent / "state" / "learned.json").table


def test_what_is_known_of_differences_is_told_with_what_is_still_needed():
    known = {"category": "code", "best": "big", "other": "small", "ratings": 80, "difference": -0.2, "low": -0.31}
    unknown = known | {"other": "tiny", "ratings": 3, "difference": None}
    found = {
        "steps": [],
        "ratings": 90,
        "source": "exact",
        "pooled": {"thumbs": 5},
        "left_out": {"one key has its share of the cell": 7},
        "differences": [known | {"high": -0.09, "needed": 4200}, unknown],
    }
    assert lines_of(found) == [
        "no steps: ratings have moved no score",
        "",
        "ratings in use: 90 (exact)",
        "pooled after calibration: 5 by thumbs",
        "left out: 7, one key has its share of the cell",
        "code: small against big, 80 ratings: -20.0 points (-31.0 to -9.0);"
        " 4,200 more ratings tell a difference of 3 points",
        "code: tiny against big, 3 ratings: not known yet",
    ]
