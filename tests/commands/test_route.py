"""A decision as `coe route` tells it."""

import json
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.commands.route import print_decision
from coe_server.routing import artifact as artifacts
from coe_server.routing.decision import BudgetReading, GateReading, RankedExpert, ResidentTrade, RoutingDecision
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact


def decision(category, reason, inside, **probabilities):
    return RoutingDecision(
        decision_id="0",
        router_version="v",
        objective="quality",
        category=category,
        confidence=max(probabilities.values()),
        probabilities=probabilities,
        expert="a",
        reason=reason,
        ranking=(RankedExpert("a", 0.5, 1.0, 0.5, "disk", 0.0, None),),
        gate=GateReading(0.5, 0.3, inside),
        budget=BudgetReading(None, None, 0.0),
        resident=ResidentTrade(),
        routing_ms=0.1,
    )


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (decision("sums", "mapped", True, sums=0.97, code=0.03), "a, category sums (97% sure), reason mapped"),
        (
            decision("general", "out_of_domain", False, sums=0.97, code=0.03),
            "a, category general (unlike the training prompts; likeliest category: sums, 97%), reason out_of_domain",
        ),
        (
            decision("general", "general", True, sums=0.4, code=0.3, general=0.3),
            "a, category general (too unsure; likeliest category: sums, 40%), reason general",
        ),
        (decision("general", "mapped", True, general=0.9, code=0.1), "a, category general (90% sure), reason mapped"),
    ],
)
def test_a_confidence_is_told_with_the_category_that_it_is_of(capsys, made, sentence):
    print_decision(made)
    assert capsys.readouterr().out.splitlines()[0] == sentence


def test_in_a_pipe_no_name_is_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    names = [f"{'organisation/a-model-with-a-long-name-' * 3}{digit}" for digit in (1, 2)]
    made = decision("sums", "mapped", True, sums=0.97, code=0.03)
    print_decision(replace(made, ranking=tuple(RankedExpert(n, 0.5, 1.0, 0.5, "disk", 0.0, None) for n in names)))
    printed = capsys.readouterr().out
    assert all(any(name in line for line in printed.splitlines()) for name in names)


def test_an_expert_that_comes_behind_is_told_with_the_reason(tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    experts = [{"name": name, "engine": "simulated"} for name in SIZES]
    experts = [{**one, "context_tokens": 150, "modalities": []} if one["name"] == "big" else one for one in experts]
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"router": {"artifact": "router"}, "experts": experts}))
    done = CliRunner().invoke(app, ["route", str(path), f"{TEXTS['code']} {'1, ' * 100}"], env={"COLUMNS": "200"})
    assert "│ holds 150 tokens and the request needs about 178 │" in done.stdout
    assert done.stdout.startswith("coder, ")
    assert done.stdout.count("holds ") == 1


def test_nothing_is_taken_to_be_on_the_device_and_a_remote_expert_is_remote(tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    experts = [{"name": name, "engine": "simulated"} for name in SIZES if name != "big"]
    experts.append({"name": "big", "engine": "remote", "base_url": "http://127.0.0.1:1/v1", "model": "m"})
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"router": {"artifact": "router"}, "experts": experts}))
    done = CliRunner().invoke(app, ["route", str(path), "hello", "--json"])
    found = {one["expert"]: one["residency"] for one in json.loads(done.stdout)["ranking"]}
    assert found == {name: "remote" if name == "big" else "disk" for name in SIZES}


ROUTES = {
    "routes": {
        "code": {"expert": "a", "examples": ["Why does this python loop never end?", "A python function that sorts"]},
        "tickets": {"expert": "b", "match": {"words": "urgent"}},
    },
    "default": {"expert": "b", "examples": ["Tell me a joke"]},
}


def served_by_routes(folder, routes):
    (folder / "routes.yaml").write_text(yaml.safe_dump(routes))
    experts = [{"name": name, "engine": "simulated"} for name in ("a", "b")]
    path = folder / "serve.yaml"
    memory = {"device": "40GiB", "host": "40GiB"}  # whatever this machine has
    path.write_text(yaml.safe_dump({"router": {"routes": "routes.yaml"}, "memory": memory, "experts": experts}))
    return path


def test_routes_in_the_configuration_are_a_router(tmp_path):
    config = served_by_routes(tmp_path, ROUTES)
    for prompt, sentence in (
        ("a loop in python", "a, category code ("),
        ("urgent: the printer", "b, category tickets (by a rule), reason route"),
        ("zzqx wwvk", "b, category default (unlike the training prompts"),
    ):
        result = CliRunner().invoke(app, ["route", str(config), prompt])
        assert result.exit_code == 0, result.output
        assert result.output.startswith(sentence)
    assert CliRunner().invoke(app, ["validate", str(config)]).exit_code == 0


def test_a_mistake_in_the_routes_is_one_sentence_of_validate(tmp_path):
    for change, sentence in (
        ({"default": "nobody"}, "there is no expert 'nobody'; the experts are a, b"),
        ({"features": {"model": "some-model"}}, "features need 'some-model'; set router.embeddings"),
        ({"routes": {"x": {"expert": "a", "match": {"regex": "("}}}}, "match.regex: '(' is invalid"),
    ):
        result = CliRunner().invoke(app, ["validate", str(served_by_routes(tmp_path, {**ROUTES, **change}))])
        assert result.exit_code == 1
        assert sentence in " ".join(result.output.split())


def test_a_router_has_an_artifact_or_routes(tmp_path):
    config = served_by_routes(tmp_path, ROUTES)
    config.write_text(config.read_text().replace("routes: routes.yaml", "{}"))
    result = CliRunner().invoke(app, ["validate", str(config)])
    assert (result.exit_code, "set either artifact or routes" in result.output) == (1, True)
