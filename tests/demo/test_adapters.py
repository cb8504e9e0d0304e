"""The demo's adapters: they fit their base, change nothing else, and are worth their topic."""

import json
from pathlib import Path

import pytest
from questions import CATEGORIES

from coe_server.engines.adapter import misfit, read_adapter
from coe_server.engines.tensor_headers import shapes_in

DEMO = Path(__file__).parents[2] / "demo"
LEAST_GAIN = 0.20  # of exact match on the topic, over the base


@pytest.fixture(params=["sql", "units"])
def topic(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


def test_an_adapter_fits_the_generalist(topic: str) -> None:
    found = read_adapter(topic, DEMO / "adapters" / topic)
    assert misfit(found, shapes_in([DEMO / "experts/generalist/model.safetensors"])) is None
    assert found.targets == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert found.rank == 16


def test_an_adapter_answers_its_topic_20_points_better_than_its_base(topic: str) -> None:
    record = json.loads((DEMO / "adapters" / topic / "training.json").read_text())["held_out"]
    assert record["adapter"] - record["base"] >= LEAST_GAIN
    assert record["questions"] >= 100


def test_the_served_adapter_answered_its_topic_20_points_better_than_its_base(topic: str) -> None:
    rows = [
        json.loads(line)
        for name in ("outcomes", "adapters.outcomes")
        for line in (DEMO / f"data/held_out.{name}.jsonl").read_text().splitlines()
    ]

    def share(expert: str) -> float:
        scores = [
            row["score"]
            for row in rows
            if row["expert"] == expert and row["prompt_id"].startswith(f"{CATEGORIES.get(topic, topic)}-")
        ]
        return float(sum(scores)) / len(scores)

    assert share(f"generalist-{topic}") - share("generalist") >= LEAST_GAIN
