"""The whole product with real vLLM engines: the demo from its first question to its score."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]  # beside eight busy processes a start takes two minutes
SPECIALISTS = ("french", "python", "units", "sql")
BASES = {"generalist-sql": "generalist", "generalist-units": "generalist"}
ADAPTERS = tuple(BASES)
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
    assert set(demo["share_of_traffic"]) == {*SPECIALISTS, "generalist", *ADAPTERS}


def test_what_adapters_answer_together_is_right_as_often_as_what_was_recorded_of_them_alone(demo, root):
    """Most rounding that differs in a batch changes no answer; matrices of another adapter would."""
    rows = [
        json.loads(line)
        for name in ("held_out.outcomes.jsonl", "held_out.adapters.outcomes.jsonl")
        for line in (root / "demo/data" / name).read_text().splitlines()
    ]
    recorded = {(row["expert"], row["prompt_id"]): row["score"] for row in rows}
    ids = [json.loads(line) for line in (root / "demo/data/held_out.prompts.jsonl").read_text().splitlines()]
    of_prompt = {row["prompt"]: row["prompt_id"] for row in ids}
    for expert in ("generalist", *ADAPTERS):
        answered = [one for one in demo["answered"] if one["expert"] == expert]
        alone = sum(recorded[expert, of_prompt[one["question"]]] for one in answered)
        assert abs(sum(one["right"] for one in answered) - alone) <= max(1, 0.05 * len(answered)), expert


def test_every_kind_of_move_happens(demo):
    kinds = {(move["from"], move["to"]) for move in demo["moves"]}
    assert kinds == {
        *(("disk", "device"), ("device", "host"), ("host", "device")),
        *(("host", "disk"), ("device", "disk")),
    }


def test_the_first_question_to_a_topic_moves_its_expert_and_the_second_finds_it_there(demo):
    pairs = [pair for pair in zip(demo["tour"][:10:2], demo["tour"][1:10:2], strict=True) if of_one_engine(*pair)]
    assert len(pairs) >= 3, "an adapter knows what its base knows, so a topic may have two experts"
    assert {second["residency"] for _, second in pairs} == {"device"}


def of_one_engine(first, second):
    """True if one engine answered both."""
    return BASES.get(first["expert"], first["expert"]) == BASES.get(second["expert"], second["expert"])


def test_waking_is_faster_than_starting(demo):
    def fastest(source):
        return min(m["seconds"] for m in demo["moves"] if (m["from"], m["to"]) == (source, "device"))

    assert fastest("host") < fastest("disk") / 5
