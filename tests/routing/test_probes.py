from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coe_server.errors import ArtifactError
from coe_server.routing import artifact as artifacts
from coe_server.routing.features import well_formed
from coe_server.routing.probes import PROBES, Probe, failing, read_probes, run_probe, write_probes
from coe_server.routing.router import Router
from tests.routing.small_artifact import BEST, SMALL, TEXTS, held_out, small_artifact


def good(category: str) -> Probe:
    experts = {"quality": BEST[category], "cheap": SMALL[category]}
    return Probe(prompt=TEXTS[category], category=category, experts=experts)


def test_probes_come_back_as_they_were_written(folder: Path) -> None:
    probes = (good("code"), Probe(prompt="« bonjour »\nline two: yes", category=None))
    write_probes(folder, probes)
    assert read_probes(folder) == probes
    write_probes(folder, [])
    assert read_probes(folder) == ()


@given(st.lists(st.text(st.characters(exclude_categories=()), min_size=1, max_size=30), min_size=1, max_size=3))
@example(["half \ud83d", "\0", "a\rb", "\x85\u2028\ufeff", "\u202e", "# : - {", "\ud83d\ude00"])
def test_a_probe_may_say_anything(texts: list[str]) -> None:
    """Half a surrogate pair comes back as features read it."""
    with tempfile.TemporaryDirectory() as name:
        write_probes(Path(name), [Probe.model_construct(prompt=text) for text in texts])
        assert [probe.prompt for probe in read_probes(Path(name))] == [well_formed(text) for text in texts]


def test_probes_that_hold_say_nothing(folder: Path) -> None:
    write_probes(folder, [good(category) for category in TEXTS])
    assert failing(Router.load(folder), folder) == []


def test_an_artifact_without_probes_is_as_good_as_any(folder: Path) -> None:
    assert failing(Router.load(folder), folder) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"category": "french"}, "its category is code, not french"),
        ({"experts": {"quality": "linguist"}}, "under quality it goes to big, not to linguist"),
        ({"experts": {"nothing": "big"}}, "there is no objective 'nothing'"),
        ({"experts": {"unearned": "big"}}, "is not served: it lost"),
    ],
)
def test_a_probe_that_fails_says_how(folder: Path, change: dict[str, object], sentence: str) -> None:
    router = Router.load(folder)
    probe = Probe.model_validate({**good("code").model_dump(), **change})
    result = run_probe(router, probe)
    assert sentence in " ".join(result.failures)
    write_probes(folder, [good("maths"), probe])
    (line,) = failing(router, folder)
    assert TEXTS["code"] in line
    assert "\n" not in line


def test_a_category_that_a_person_gave_away_fails_where_the_decision_disagrees(tmp_path: Path) -> None:
    artifacts.save(small_artifact(pins={"code": "linguist"}), held_out(), None, tmp_path / "pinned")
    router = Router.load(tmp_path / "pinned")
    assert run_probe(router, Probe(prompt=TEXTS["code"], category="code")).failures == ()
    failures = run_probe(router, Probe(prompt=TEXTS["maths"], category="code")).failures
    assert "under quality it goes to big, but category code was given to linguist" in failures


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "probes: 3",
        "probes: [{prompt: 1}]",
        "probes: [{prompt: a, wheels: 4}]",
        "!!python/object:os.system {}",
        "\x00",
    ],
)
def test_what_is_no_list_of_probes_is_refused_in_one_sentence(folder: Path, text: str) -> None:
    (folder / PROBES).write_text(text)
    with pytest.raises(ArtifactError) as caught:
        read_probes(folder)
    assert "\n" not in str(caught.value)
