from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from coe_server.routing.conversation import Conversation
from coe_server.routing.features import normalised, word_hashes
from router_training import in_silence
from router_training.classifier.classifier import group_folds, prompt_folds
from router_training.cli import app
from router_training.data.dataset import Dataset, read_dataset
from router_training.data.near_duplicates import LEAST_RESEMBLANCE, near_duplicates, resemblance, with_near_duplicates
from router_training.data.report import check
from router_training.data.split import split
from tests.training.recorded import SIZES, outcomes, write_jsonl, write_run

VOCABULARY = [f"word{number}" for number in range(500)]


def texts_with_copies(count: int, copies: int, seed: int) -> list[str]:
    """Unrelated texts, then `copies` of the first ones with one word of sixty changed."""
    draw = random.Random(seed)
    originals = [" ".join(draw.choices(VOCABULARY, k=60)) for _ in range(count)]
    changed = []
    for text in originals[:copies]:
        words = text.split()
        words[draw.randrange(60)] = "other"
        changed.append(" ".join(words))
    return originals + changed


def talks(texts: list[str]) -> list[Conversation]:
    return [Conversation.of_prompt(text) for text in texts]


def by_brute_force(texts: list[str]) -> np.ndarray:
    """Every pair compared; chains joined."""
    words = [np.unique(word_hashes(normalised(text))) for text in texts]
    found = np.arange(len(texts))
    for one in range(len(texts)):
        for other in range(one):
            if len(words[one]) and resemblance(words[one], words[other]) >= LEAST_RESEMBLANCE:
                low, high = sorted((found[one], found[other]))
                found[found == high] = low
    return found


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_are_those_that_comparing_every_pair_finds(seed: int) -> None:
    texts = texts_with_copies(80, 30, seed)
    found = near_duplicates(talks(texts), in_silence)
    assert found.tolist() == by_brute_force(texts).tolist()
    assert (found[80:] == np.arange(30)).all()


@given(st.lists(st.text(alphabet="abc ", max_size=12), max_size=12))
def test_whatever_is_called_a_near_duplicate_is_one(texts: list[str]) -> None:
    found, truth = near_duplicates(talks(texts), in_silence), by_brute_force(texts)
    for one in range(len(texts)):
        for other in range(one):
            if found[one] == found[other]:
                assert truth[one] == truth[other]


@given(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=8), st.integers(2, 5))
def test_the_same_text_is_always_found(words: list[str], times: int) -> None:
    text = " ".join(words)
    assert near_duplicates(talks([text.upper(), "unlike", *[text] * times]), in_silence)[2:].tolist() == [0] * times


def test_texts_without_a_word_are_no_copies() -> None:
    assert near_duplicates(talks(["", "", "!!", "!!"]), in_silence).tolist() == [0, 1, 2, 3]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """200 prompts, 80 of them with a near-duplicate, in five groups."""
    texts = texts_with_copies(200, 80, seed=0)
    rows = [
        {
            "prompt_id": f"p{number}",
            "prompt": text,
            "category": list(SIZES)[number % 4],
            "group": f"set-{number % 5 if number < 200 else (number + 1) % 5}",
        }
        for number, text in enumerate(texts)
    ]
    recorded = [{"prompt_id": row["prompt_id"], "expert": "x", "score": 1.0} for row in rows]
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "o.jsonl", recorded)
    read = read_dataset([tmp_path / "p.jsonl"], [tmp_path / "o.jsonl"], ("x",))
    return with_near_duplicates(read, in_silence)


def test_no_near_duplicates_are_on_both_sides_of_a_split_by_prompt(dataset: Dataset) -> None:
    bare = replace(dataset, copies=np.arange(len(dataset)))
    assert len(np.intersect1d(*(dataset.copies[_rows(dataset, side)] for side in _sides(bare)))) > 0
    sides = split(dataset, 0.3, seed=1)
    assert len(np.intersect1d(sides.training.copies, sides.held_out.copies)) == 0
    assert 0 < sides.moved < 80
    report = check(dataset, sides, folds=5)
    assert (report.duplicates.prompts, report.duplicates.across_split) == (160, 0)
    assert report.duplicates.moved == sides.moved
    assert any(f"{sides.moved} prompts moved to the other side" in warning for warning in report.warnings)


def test_a_split_by_group_keeps_groups_whole_and_tells_of_near_duplicates_across(dataset: Dataset) -> None:
    sides = split(dataset, 0.4, seed=0, by="group")
    assert set(sides.training.groups).isdisjoint(sides.held_out.groups)
    assert len(sides.held_out) > 0
    report = check(dataset, sides, folds=5)
    expected = len(set(sides.training.copies) & set(sides.held_out.copies))
    assert report.duplicates.across_split == expected > 0


def test_a_category_with_fewer_prompts_than_folds_is_left_out_once(tmp_path: Path) -> None:
    rows = [{"prompt_id": str(n), "prompt": "x", "category": "rare" if n == 0 else "common"} for n in range(20)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "o.jsonl", [{"prompt_id": "0", "expert": "x", "score": 1.0}])
    folds = prompt_folds(read_dataset([tmp_path / "p.jsonl"], [tmp_path / "o.jsonl"], ("x",)), 5, seed=0)
    assert sum(0 in fold.left_out for fold in folds) == 1


def test_no_fold_judges_by_near_duplicates_of_what_it_saw(dataset: Dataset) -> None:
    folds = group_folds(dataset, 5)
    assert folds is not None
    for fold in [*prompt_folds(dataset, 5, seed=0), *folds]:
        assert len(np.intersect1d(dataset.copies[fold.seen], dataset.copies[fold.left_out])) == 0
    left_out = np.concatenate([fold.left_out for fold in prompt_folds(dataset, 5, seed=0)])
    assert sorted(left_out) == list(range(len(dataset)))


def test_a_group_whose_prompts_are_all_copies_of_the_others_is_left_out_by_itself(dataset: Dataset) -> None:
    """Without its copies nothing would be left to learn from; the other groups are left out as ever."""
    many = np.flatnonzero(dataset.groups == dataset.groups[0])
    groups = np.array(["all"] * len(dataset), dtype="<U3")
    groups[many[0]], groups[many[1]] = "one", "two"
    alike = replace(dataset, groups=groups, copies=np.zeros(len(dataset), dtype=np.int64))
    folds = group_folds(alike, 5)
    assert folds is not None
    assert [len(fold.seen) for fold in folds] == [2, len(dataset) - 1, len(dataset) - 1]


def test_check_prints_what_is_in_the_data(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    copied = {**json.loads(lines[0]), "prompt_id": "again", "category": None}
    (tmp_path / "prompts.jsonl").write_text("\n".join([*lines, json.dumps(copied)]))
    result = CliRunner().invoke(app, ["check", str(config)])
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    for expected in ("241 prompts", "4 categories", "4 groups", "near-duplicates", "1 prompt has no category", "gen"):
        assert expected in output


def test_check_refuses_what_cannot_be_trained_on(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    with (tmp_path / "outcomes.jsonl").open("a") as file:
        file.write('{"prompt_id": "x", "expert": "stranger", "score": 1}\n')
    result = CliRunner().invoke(app, ["check", str(config)])
    assert result.exit_code == 2
    assert "unknown expert 'stranger'" in " ".join(result.output.split())


def test_conversations_read_the_same_from_parquet_and_jsonl(tmp_path: Path) -> None:
    """Also where one row has text and another a list of parts, as far as a table can say it."""
    rows: list[dict[str, Any]] = [
        {
            "prompt_id": str(number),
            "category": "c",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": f"first {number}"},
                {"role": "assistant", "content": None},
                {"role": "user", "content": f"second {number}"},
            ],
        }
        for number in range(3)
    ]
    recorded = outcomes([{"prompt_id": row["prompt_id"], "category": "french"} for row in rows])
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "o.jsonl", recorded)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    lines = read_dataset([tmp_path / "p.jsonl"], [tmp_path / "o.jsonl"], tuple(SIZES))
    table = read_dataset([tmp_path / "p.parquet"], [tmp_path / "o.jsonl"], tuple(SIZES))
    assert lines.conversations == table.conversations
    assert [turn.text for turn in table.conversations[2].turns] == ["first 2", "second 2"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "image_url", "text": None}]}]
    pq.write_table(pa.Table.from_pylist([{"prompt_id": "0", "messages": parts}]), tmp_path / "parts.parquet")
    (talk,) = read_dataset([tmp_path / "parts.parquet"], [tmp_path / "o.jsonl"], tuple(SIZES)).conversations
    assert talk.turns[0].text == "hello"
    assert talk.modalities == {"image"}


def _sides(dataset: Dataset) -> tuple[Dataset, Dataset]:
    sides = split(dataset, 0.3, seed=1)
    return sides.training, sides.held_out


def _rows(dataset: Dataset, side: Dataset) -> list[int]:
    row_of = {name: row for row, name in enumerate(dataset.prompt_ids)}
    return [row_of[name] for name in side.prompt_ids]
