"""The demo's recorded outcomes are those of its prompts and experts, and of the config that records them again."""

import json
from pathlib import Path

import pytest
import yaml

from router_training.collect.run import Files, plan
from router_training.collect.settings import read_collect_config
from router_training.data.first_tokens import COLUMNS

ROOT = Path(__file__).parents[2]
DATA = ROOT / "demo/data"


def test_the_collection_asks_the_demos_experts_with_the_demos_token_limit(tmp_path):
    from run import LONGEST_ANSWER_TOKENS  # noqa: PLC0415  the demo's folder is on the path in tests only

    config = read_collect_config(ROOT / "configs/collect-demo.yaml")
    served = yaml.safe_load((ROOT / "configs/demo-adapters.yaml").read_text())["experts"]
    assert list(config.expert_names) == [expert["name"] for expert in served]
    assert config.request.options["max_tokens"] == LONGEST_ANSWER_TOKENS
    prompts = [DATA / f"{split}.prompts.jsonl" for split in ("train", "held_out")]
    steps = plan(config, Files.of(prompts, tmp_path / "o.jsonl", None))
    assert [step.to_send for step in steps] == [1300] * 7


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("adapters", [False, True])
def test_every_prompt_has_one_recorded_outcome_of_every_expert(split, adapters):
    file = DATA / f"{split}.{'adapters.' if adapters else ''}outcomes.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    ids = [json.loads(line)["prompt_id"] for line in (DATA / f"{split}.prompts.jsonl").read_text().splitlines()]
    from collect_outcomes import adapter_names  # noqa: PLC0415

    asked = read_collect_config(ROOT / "configs/collect-demo.yaml").expert_names
    experts = [name for name in asked if (name in adapter_names()) is adapters]
    assert [(row["expert"], row["prompt_id"]) for row in rows] == [(expert, name) for expert in experts for name in ids]
    known = {"prompt_id", "expert", "score", "output_tokens", *COLUMNS}
    assert all(set(row) - {"fault"} == known for row in rows)
    assert {row.get("fault", "truncated") for row in rows} == {"truncated"}, "the only fault that an answer may have"
    assert all(row["score"] in {0.0, 1.0} and row["output_tokens"] > 0 for row in rows)
