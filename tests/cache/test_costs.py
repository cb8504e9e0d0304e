"""Costs are guesses until measured, and what was measured survives the server."""

import pytest

from coe_server.cache.costs import Costs, read_costs, write_costs
from coe_server.cache.tiers import Tier


def test_a_measurement_replaces_the_guess_and_later_ones_move_it():
    costs = Costs()
    guess = costs.move(Tier.HOST, Tier.DEVICE)
    costs.learn_move(Tier.HOST, Tier.DEVICE, 0.2)
    assert costs.move(Tier.HOST, Tier.DEVICE) == 0.2 != guess
    costs.learn_move(Tier.HOST, Tier.DEVICE, 0.4)
    assert 0.2 < costs.move(Tier.HOST, Tier.DEVICE) < 0.4
    assert costs.measured == {"wake": pytest.approx(0.26)}


def test_what_was_measured_comes_back_and_nothing_else(tmp_path):
    path = tmp_path / "state/costs.json"
    assert read_costs(path) == {}
    write_costs(path, {"a": {"start": 12.5, "service": 0.1}, "b": {}})
    assert read_costs(path) == {"a": {"start": 12.5, "service": 0.1}, "b": {}}
    assert Costs({"start": 12.5, "surprise": 1.0}).measured == {"start": 12.5}
    assert [file.name for file in path.parent.iterdir()] == ["costs.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a": 1}',
        '{"a": {"start": "x"}}',
        '{"a": {"start": -1}}',
        '{"a": {"start": NaN}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_makes_no_sense_is_no_costs(tmp_path, text, caplog):
    path = tmp_path / "costs.json"
    path.write_text(text)
    assert read_costs(path) == {}
    assert "starting without them" in caplog.text
