"""What an expert's first tokens say: probabilities, the rule, and how both are kept in an artifact."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import ArtifactError
from coe_server.routing import artifact as artifacts
from coe_server.routing.certainty import WHOLE, CertaintyModel, Curve, Handover, Instead, mean_of_first
from coe_server.routing.manifest import CurveEntry, HandoverEntry, InsteadEntry
from tests.routing.small_artifact import held_out, small_artifact

FOUR, EIGHT, ALL = (Curve(tokens, -1.0 - tokens, 1.0, 2.0, -1.0, 1.5) for tokens in (4, 8, WHOLE))
MODEL = CertaintyModel((ALL, EIGHT, FOUR))
LOGPROBS = st.lists(st.floats(-9999.0, 0.0), min_size=1, max_size=20)


def test_a_number_of_tokens_without_a_curve_is_judged_by_the_next_shorter_one() -> None:
    assert [MODEL.curve(tokens).tokens for tokens in (WHOLE, 1, 4, 7, 8, 100)] == [WHOLE, 4, 4, 4, 8, 8]


def test_only_the_first_tokens_count_and_an_answer_that_ended_earlier_counts_whole() -> None:
    assert MODEL.probability([-0.1] * 4 + [-50.0], 0.5, 4) == MODEL.probability([-0.1] * 4, 0.5, 4)
    assert MODEL.probability([-0.1, -0.3], 0.5, 4) == pytest.approx(FOUR.probability(-0.2, 0.5))
    assert MODEL.probability([-0.1, -0.3], 0.5) == pytest.approx(ALL.probability(-0.2, 0.5))


def test_what_others_score_instead_depends_on_how_likely_the_answer_is_right() -> None:
    model = CertaintyModel((FOUR,), {"big": Instead(0.9, 0.5)})
    assert model.expected_instead("big", 0.25) == pytest.approx(0.6)
    assert model.expected_instead("unheard of", 0.25) is None


def test_others_that_are_unknown_are_refused(tmp_path: Path) -> None:
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    path = tmp_path / "router" / "manifest.json"
    manifest = json.loads(path.read_text())
    for instead in ({"stranger": {}}, {"coder": {"stranger": {"where_right": 0.5, "where_wrong": 0.5}}}):
        path.write_text(json.dumps({**manifest, "instead": instead}))
        with pytest.raises(ArtifactError, match="unknown expert 'stranger'"):
            artifacts.load(tmp_path / "router")


def test_an_answer_without_tokens_is_never_right() -> None:
    assert MODEL.probability([], 0.9, 4) == 0.0


@given(LOGPROBS, st.none() | st.floats(-0.1, 1.1), st.sampled_from((WHOLE, 4, 8)))
def test_a_probability_is_one_and_grows_with_certainty(
    logprobs: list[float], expected: float | None, tokens: int
) -> None:
    found = MODEL.probability(logprobs, expected, tokens)
    assert 0.0 <= found <= MODEL.probability([one / 2 for one in logprobs], expected, tokens) <= 1.0


def test_impossible_tokens_and_extreme_curves_give_numbers() -> None:
    steep = Curve(WHOLE, -1e300, 1e300, 1e300, 1e300, 1e300)
    for value in (-math.inf, -9999.0, 0.0):
        for expected in (None, 1.0):
            assert 0.0 <= steep.probability(mean_of_first([value], WHOLE), expected) <= 1.0


def test_the_second_expert_takes_over_only_if_it_is_better_by_more_than_the_margin() -> None:
    rule = Handover(4, 0.1)
    assert not rule.takes(0.5, 0.6)
    assert rule.takes(0.5, 0.61)


CURVE = {"tokens": 4, "intercept": 0.5, "certainty": 1.0, "score": 2.0, "alone_intercept": 0.1, "alone_certainty": 1.5}
EARNED = HandoverEntry(tokens=4, margin=0.1, share=0.2, gain=0.03, gain_ci95=(0.01, 0.05), shipped=True)


def test_curves_and_handovers_are_kept_and_an_artifact_without_them_is_unchanged(tmp_path: Path) -> None:
    plain = small_artifact()
    objectives = {name: one.model_copy(update={"handover": EARNED}) for name, one in plain.manifest.objectives.items()}
    instead = {"coder": {"big": InsteadEntry(where_right=0.9, where_wrong=0.6)}}
    judged = small_artifact(certainty={"coder": [CurveEntry(**CURVE)]}, instead=instead, objectives=objectives)
    for name, one in (("plain", plain), ("judged", judged)):
        artifacts.save(one, held_out(), None, tmp_path / name)
    assert {"certainty", "instead", "handover"}.isdisjoint(
        json.loads((tmp_path / "plain" / "manifest.json").read_text())
    )
    assert "handover" not in (tmp_path / "plain" / "manifest.json").read_text()
    before, after = (artifacts.load(tmp_path / name) for name in ("plain", "judged"))
    assert before.manifest.certainty_models == {}
    assert after.manifest.certainty_models == {"coder": CertaintyModel((Curve(**CURVE),), {"big": Instead(0.9, 0.6)})}
    handover = after.manifest.objectives["quality"].handover
    assert handover == EARNED
    assert handover is not None
    assert handover.rule == Handover(4, 0.1)
    assert before.version != after.version


@pytest.mark.parametrize(
    ("certainty", "handover", "sentence"),
    [
        ({"stranger": [CURVE]}, None, "unknown expert 'stranger'"),
        ({"coder": [CURVE, CURVE]}, None, "two certainty curves of 'coder' for one number of tokens"),
        ({"coder": [{**CURVE, "certainty": -1.0}]}, None, "certainty.coder.0.certainty"),
        ({"coder": [{**CURVE, "tokens": 5000}]}, None, "certainty.coder.0.tokens"),
        ({"coder": [{**CURVE, "more": 1}]}, None, "certainty.coder.0.more"),
        ({"coder": []}, None, "certainty.coder"),
        (
            {"coder": [CURVE]},
            {"tokens": 8},
            "hands over by the first 8 tokens, and no expert's certainty is calibrated",
        ),
        (None, {}, "hands over by the first 4 tokens, and no expert's certainty is calibrated"),
        ({"coder": [CURVE]}, {"margin": "much"}, "objectives.quality.handover.margin"),
        ({"coder": [CURVE]}, {"shipped": False}, "a handover is shipped or has a refusal"),
        ({"coder": [CURVE]}, {"refusal": "it lost"}, "a handover is shipped or has a refusal"),
    ],
)
def test_certainty_that_makes_no_sense_is_refused(
    tmp_path: Path, certainty: Any, handover: dict[str, Any] | None, sentence: str
) -> None:
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    path = tmp_path / "router" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["certainty"] = certainty
    if handover is not None:
        manifest["objectives"]["quality"]["handover"] = {**EARNED.model_dump(), **handover}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError) as caught:
        artifacts.load(tmp_path / "router")
    assert sentence in str(caught.value)
