"""Settings of learning that contradict others are refused at the start."""

import pytest

from coe_server.build.router import build_handover, build_router
from coe_server.config.schema import load_config, read_config
from coe_server.errors import ConfigError
from coe_server.routing import artifact as artifacts
from coe_server.routing.certainty import WHOLE
from coe_server.routing.handover import HandoverTerms
from tests.routing.small_artifact import SIZES, held_out, small_artifact

EXPERTS = """
experts:
  - {name: big, engine: simulated, weights_bytes: 1GiB, start_seconds: 1, wake_seconds: 1, sleep_seconds: 1,
     ttft_seconds: 0.1, tokens_per_second: 50}
  - {name: far, engine: remote, base_url: "http://127.0.0.1:1/v1", model: m}
"""


def mistakes(folder, router, more=""):
    file = folder / "serve.yaml"
    file.write_text(f"router: {router}\n{more}{EXPERTS}")
    return read_config(file)


@pytest.mark.parametrize(("given", "read"), [("off", "off"), ("learn", "learn"), ("0.05", 0.05)])
def test_exploration_is_off_learn_or_a_share(tmp_path, given, read):
    found, wrong = mistakes(tmp_path, f"{{artifact: r, exploration: {given}}}")
    assert (found.router.exploration, wrong) == (read, [])


@pytest.mark.parametrize(
    ("router", "more", "sentence"),
    [
        ("{artifact: r, exploration: 0.9}", "", "router.exploration"),
        ("{artifact: r, exploration: learn}", "log: {decisions: false}", "set log.decisions: true"),
        ("{artifact: r, compare: 0.1}", "", "compare: needs judge"),
        ("{artifact: r, exploration: learn, handover: {}}", "", "set exploration: off"),
        ("{artifact: r, handover: {tokens: 0}}", "", "router.handover.tokens"),
        ("{artifact: r, handover: {at_most: 9}}", "", "router.handover.at_most"),
        (
            "{artifact: r, handover: {objectives: {cheap: {at_most: 0}}}}",
            "",
            "handover.objectives.cheap.at_most",
        ),
        ("{artifact: r, compare: 0.1, judge: gone}", "", "router.judge: there is no expert 'gone'"),
        ("{artifact: r, compare: 0.1, judge: far}", "", "allow it (compare_remote)"),
        ("{artifact: r, split: {a: 0.6, b: 0.4}}", "", "the shares leave nothing for the router itself"),
    ],
)
def test_a_contradiction_is_named(tmp_path, router, more, sentence):
    _, wrong = mistakes(tmp_path, router, f"{more}\n")
    assert any(sentence in one for one in wrong), wrong


def test_handover_judges_by_all_tokens_by_some_or_as_the_artifact_says(tmp_path):
    for given, read in (("all", WHOLE), ("8", 8), ("null", None)):
        found, wrong = mistakes(tmp_path, f"{{artifact: r, handover: {{tokens: {given}, at_most: 2}}}}")
        assert wrong == []
        assert build_handover(found.router) == HandoverTerms(tokens=read, at_most=2)
    assert build_handover(mistakes(tmp_path, "{artifact: r}")[0].router) is None


def test_an_objective_says_how_answers_are_handed_over_under_it_and_what_it_leaves_open_is_as_for_all(tmp_path):
    own = "{cheap: {at_most: 3, tokens: all}, fast: null}"
    found, wrong = mistakes(tmp_path, f"{{artifact: r, handover: {{tokens: 4, margin: 0.1, objectives: {own}}}}}")
    assert wrong == []
    terms = build_handover(found.router)
    assert terms.under("cheap") == HandoverTerms(WHOLE, 3, 0.1)
    assert terms.under("fast").at_most == 0
    assert terms.under("quality") is terms


@pytest.mark.parametrize("key", ["objective: fast", "handover: {objectives: {fast: null}}"])
def test_an_objective_that_the_artifact_lacks_is_refused_with_those_it_has(tmp_path, key):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "r")
    file = tmp_path / "serve.yaml"
    experts = "".join(f"- {{name: {name}, engine: simulated, weights_bytes: 1MiB}}\n" for name in SIZES)
    file.write_text(f"router: {{artifact: r, {key}}}\nexperts:\n{experts}")
    with pytest.raises(ConfigError, match="'fast' is not one of quality"):
        build_router(load_config(file))


def test_paths_of_other_routers_start_at_the_files_folder(tmp_path):
    found, _ = mistakes(tmp_path, "{artifact: r, shadow: s, split: {t: 0.1}}")
    assert (found.router.shadow, found.router.split) == (tmp_path / "s", {tmp_path / "t": 0.1})
