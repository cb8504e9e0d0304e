"""`coe simulate`: its files, its table, its sentences."""

import json

import pytest
from typer.testing import CliRunner

from coe_server.cli import app

CONFIG = """
memory: {device: 20GiB, host: 60GiB}
experts:
  - {name: coder, engine: simulated, weights_bytes: 15GiB, start_seconds: 4}
  - {name: mathematician, engine: simulated, weights_bytes: 15GiB, start_seconds: 4}
  - {name: hosted, engine: remote, base_url: "http://127.0.0.1:1/v1", model: m}
"""
RUN = {"switches", "serving_share", "blocked_seconds", "makespan_seconds", "wait_seconds", "wait_bound_seconds"}


@pytest.fixture
def run(tmp_path):
    def run(*words):
        file = tmp_path / "figures.json"
        result = CliRunner().invoke(app, ["simulate", *map(str, words), "--json", str(file)])
        return result, json.loads(file.read_text()) if file.exists() else None

    return run


def test_a_profile_is_played_under_every_policy(run, tmp_path):
    picture = tmp_path / "timeline.svg"
    result, figures = run("--profile", "zipf", "--experts", 4, "--requests", 40, "--seed", 3, "--timeline", picture)
    assert result.exit_code == 0, result.output
    assert set(figures["policies"]) == {"coe", "fifo", "lru", "lfu"}
    assert all(set(one) >= RUN | {"bytes_moved"} for one in figures["policies"].values())
    assert set(figures["policies"]["coe"]["wait_seconds"]) == {"mean", "p95", "max"}
    assert set(figures["bound"]) == {"serving_share", "switches", "blocked_seconds", "exact"}
    assert figures["trace"]["requests"] == 40
    assert "<svg" in picture.read_text()
    lines = result.output.splitlines()
    assert any(line.startswith("zipf: 40 requests for 4 experts in ") for line in lines)
    assert "makespan s" in result.output  # nothing is cut where the output has no width
    assert "…" not in result.output


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_trace_file_for_the_experts_of_a_configuration(run, tmp_path, encoding):
    config, trace = tmp_path / "serve.yaml", tmp_path / "trace.jsonl"
    config.write_text(CONFIG)
    names = ["coder", "mathematician"] * 3
    lines = [{"arrival_seconds": n, "expert": name, "output_tokens": 50} for n, name in enumerate(names)]
    trace.write_text("\n".join(map(json.dumps, lines)), encoding=encoding)
    result, figures = run(config, "--trace", trace, "--policy", "coe")
    assert result.exit_code == 0, result.output
    assert set(figures["policies"]) == {"coe"}
    assert figures["bound"]["exact"]
    assert 4 <= figures["bound"]["blocked_seconds"] <= figures["policies"]["coe"]["blocked_seconds"]


def test_a_made_up_machine_may_have_several_cards_and_wide_experts(run):
    words = ("--profile", "interleaved", "--experts", 6, "--requests", 60, "--cards", 2, "--wide", 1, "--on-device", 1)
    result, figures = run(*words)
    assert result.exit_code == 0, result.output
    ours = figures["policies"]["coe"]
    assert ours["wait_bound_kept"]
    one_card = run("--profile", "interleaved", "--experts", 6, "--requests", 60, "--on-device", 1)[1]
    assert ours["switches"] != one_card["policies"]["coe"]["switches"]
    refused, _ = run("--profile", "zipf", "--wide", 1)
    assert "--wide: 1 experts take two cards each, and there is one; give --cards" in refused.stderr


def test_an_option_that_would_change_nothing_is_refused(run, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text(CONFIG)
    for option in ("--experts", "--on-device", "--in-host", "--cards", "--wide"):
        result, figures = run(config, "--profile", "zipf", option, 3)
        assert (result.exit_code, figures) == (2, None)
        assert f"{option}: has no effect, since experts and machine come from {config}" in result.stderr
    for option in ("--experts", "--requests", "--seed"):
        result, figures = run("--trace", tmp_path / "trace.jsonl", option, 0 if option == "--seed" else 3)
        assert (result.exit_code, figures) == (2, None)
        assert f"{option}: has no effect, since requests and their experts come from" in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "give either --trace FILE or --profile NAME"),
        (("--profile", "odd"), "--profile: 'odd' is not one of balanced, bursty"),
        (("--profile", "zipf", "--policy", "best"), "--policy: 'best' is not one of coe, fifo, lru, lfu"),
        (("--trace", "/nowhere/trace.jsonl"), "cannot be read"),
    ],
)
def test_a_mistake_is_a_sentence(run, words, sentence):
    result, figures = run(*words)
    assert (result.exit_code, figures) == (2, None)
    assert sentence in result.stderr


def test_several_nodes_are_played_under_every_rule_of_the_front(run):
    result, figures = run("--profile", "zipf", "--experts", 6, "--requests", 30, "--nodes", 3)
    assert result.exit_code == 0, result.output
    assert list(figures["policies"]) == ["coe", "round-robin", "least-queue", "hashed"]
    assert all(set(one) >= RUN for one in figures["policies"].values())
    assert "on 3 nodes" in result.output
    assert "bound:" not in result.output


def test_a_configuration_describes_each_of_the_nodes(run, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text(CONFIG)
    result, figures = run(config, "--profile", "balanced", "--requests", 20, "--nodes", 2, "--policy", "coe")
    assert result.exit_code == 0, result.output
    assert list(figures["policies"]) == ["coe"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--policy", "fifo"), "--policy: 'fifo' is not one of coe, round-robin, least-queue, hashed"),
        (("--timeline", "picture.svg"), "--timeline: has no effect with --nodes"),
    ],
)
def test_what_is_of_one_machine_is_refused_for_several_nodes(run, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    result, figures = run("--profile", "zipf", "--nodes", 2, *words)
    assert result.exit_code != 0
    assert figures is None
    assert sentence in " ".join(result.output.split())
