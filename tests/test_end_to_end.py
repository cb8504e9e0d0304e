"""The whole product with real vLLM engines: the demo from its first question to its score."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]  # beside eight busy processes a start takes two minutes
DEMO_SECONDS, DEMO_PATIENCE_SECONDS = 3500, 1500


@pytest.fixture(scope="module")
def demo(root, vllm_environment, tmp_path_factory):
    """What one run of the demo saw. Starts that were measured on a quiet machine are not known to it."""
    folder = tmp_path_factory.mktemp("demo")
    result, config = folder / "result.json", folder / "demo.yaml"
    shipped = (root / "configs/demo.yaml").read_text()
    config.write_text(shipped.replace("../artifacts/demo-state", str(folder / "state")).replace("../", f"{root}/"))
    run = subprocess.run(
        [
            *(sys.executable, "demo/run.py", "--json", result),
            *("--config", config, "--patience", str(DEMO_PATIENCE_SECONDS)),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return json.loads(result.read_text())


def test_the_composition_beats_the_best_single_expert_by_15_points(demo):
    assert demo["gain_points"] >= 15
    assert len(demo["share_of_traffic"]) == 5


def test_every_kind_of_move_happens(demo):
    kinds = {(move["from"], move["to"]) for move in demo["moves"]}
    assert kinds == {
        *(("disk", "device"), ("device", "host"), ("host", "device")),
        *(("host", "disk"), ("device", "disk")),
    }


def test_the_first_question_to_a_topic_moves_its_expert_and_the_second_finds_it_there(demo):
    for first, second in zip(demo["tour"][:10:2], demo["tour"][1:10:2], strict=True):
        assert first["expert"] == second["expert"]
        assert second["residency"] == "device"


def test_waking_is_faster_than_starting(demo):
    def fastest(source):
        return min(m["seconds"] for m in demo["moves"] if (m["from"], m["to"]) == (source, "device"))

    assert fastest("host") < fastest("disk") / 5
