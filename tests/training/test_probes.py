from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.build.router import build_router
from coe_server.config.schema import load_config
from coe_server.errors import ConfigError
from coe_server.routing.probes import read_probes
from router_training import in_silence
from router_training.assignment.objectives import Limits
from router_training.cli import app
from router_training.config import read_config
from router_training.fit import fit
from router_training.map_options import MapOptions
from router_training.remap import remap
from tests.training.recorded import SIZES, SPECIALIST, write_run

runner = CliRunner()
OWN = {"prompt": "merci bonjour chien", "category": "french", "experts": {"quality": "fr"}}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = read_config(write_run(folder, probes={"per_category": 2, "own": [OWN]}))
    fit(config, folder / "router", force=True, track=in_silence)
    return folder / "router"


@pytest.fixture
def trained(fitted: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(fitted, tmp_path / "router"))


def broken(folder: Path) -> Path:
    probes = yaml.safe_load((folder / "probes.yaml").read_text())
    probes["probes"][0]["experts"]["quality"] = "un"
    (folder / "probes.yaml").write_text(yaml.safe_dump(probes))
    return folder


def served(folder: Path, **router: object) -> Path:
    path = folder / "serve.yaml"
    experts = [{"name": name, "engine": "simulated"} for name in SIZES]
    path.write_text(yaml.safe_dump({"router": {"artifact": str(folder / "router"), **router}, "experts": experts}))
    return path


def test_fit_writes_ones_own_probes_and_two_of_each_category(trained: Path) -> None:
    own, *chosen = read_probes(trained)
    assert own.model_dump() == OWN
    assert sorted(probe.category or "" for probe in chosen) == sorted([*SPECIALIST, *SPECIALIST])
    for probe in chosen:
        assert probe.experts["quality"] == SPECIALIST[probe.category or ""]
    result = runner.invoke(app, ["probe", str(trained)])
    assert result.exit_code == 0, result.output
    assert "fails" not in result.output


def test_fit_says_which_of_ones_own_probes_fails(tmp_path: Path) -> None:
    own = {"prompt": "merci bonjour chien", "category": "python", "experts": {"quality": "py"}}
    config = write_run(tmp_path, probes={"per_category": 0, "own": [own]})
    result = runner.invoke(app, ["fit", str(config), "--out", str(tmp_path / "router")])
    assert result.exit_code == 0, result.stderr
    failure = "under quality it goes to fr, not to py; its category is french, not python"
    assert f"note: a probe 'merci bonjour chien': {failure}\n" in result.stderr


def test_a_failing_probe_ends_the_command_with_1_and_is_shown(trained: Path) -> None:
    result = runner.invoke(app, ["probe", str(broken(trained))])
    assert result.exit_code == 1
    assert "fails" in result.output


def test_an_artifact_without_probes_is_a_mistake_of_the_caller(trained: Path) -> None:
    (trained / "probes.yaml").unlink()
    assert runner.invoke(app, ["probe", str(trained)]).exit_code == 2


def test_the_server_warns_of_a_failing_probe_and_starts(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(served(tmp_path))
    with caplog.at_level(logging.WARNING):
        build_router(config)
        assert caplog.text == ""
        broken(trained)
        build_router(config)
    assert "it goes to fr, not to un" in caplog.text


def test_the_server_refuses_to_start_where_it_is_told_to(trained: Path, tmp_path: Path) -> None:
    config = load_config(served(tmp_path, failing_probes="refuse"))
    build_router(config)
    broken(trained)
    with pytest.raises(ConfigError, match="it goes to fr, not to un"):
        build_router(config)


def test_after_solving_again_the_probes_name_the_new_experts(trained: Path, tmp_path: Path) -> None:
    remap(trained, tmp_path / "new", MapOptions(limits=Limits(bans={"french": ["fr"]})), in_silence)
    french = [probe for probe in read_probes(tmp_path / "new") if probe.category == "french"]
    assert {probe.experts["quality"] for probe in french} == {"gen"}
    assert runner.invoke(app, ["probe", str(tmp_path / "new")]).exit_code == 0
    assert "The mapping has been solved again" in (tmp_path / "new" / "report.html").read_text()
