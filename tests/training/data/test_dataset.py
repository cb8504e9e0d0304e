from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coe_server.errors import DatasetError
from coe_server.routing.conversation import Conversation
from coe_server.routing.features import buckets
from router_training.data.dataset import Dataset, read_dataset
from router_training.data.rows import read_rows
from router_training.data.split import split
from tests.training.recorded import SIZES, outcomes, prompts, write_jsonl

ROW = {"prompt_id": "a", "prompt": "hello", "category": "greeting"}
OUTCOME = {"prompt_id": "a", "expert": "x", "score": 1.0}


def read(folder: Path, prompt_rows: list[Any], outcome_rows: list[Any]) -> Dataset:
    write_jsonl(folder / "p.jsonl", prompt_rows)
    write_jsonl(folder / "o.jsonl", outcome_rows)
    return read_dataset([folder / "p.jsonl"], [folder / "o.jsonl"], ("x", "y"))


def test_jsonl_and_parquet_read_the_same(tmp_path: Path) -> None:
    rows = prompts(5)
    recorded = outcomes(rows)
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "o.jsonl", recorded)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    pq.write_table(pa.Table.from_pylist(recorded), tmp_path / "o.parquet")
    lines = read_dataset([tmp_path / "p.jsonl"], [tmp_path / "o.jsonl"], tuple(SIZES))
    table = read_dataset([tmp_path / "p.parquet"], [tmp_path / "o.parquet"], tuple(SIZES))
    assert lines.prompt_ids == table.prompt_ids
    assert lines.conversations == table.conversations
    assert lines.categories == table.categories
    for one, other in (
        (lines.labels, table.labels),
        (lines.scores, table.scores),
        (lines.groups, table.groups),
        (lines.weights, table.weights),
    ):
        assert np.array_equal(one, other)


def test_a_missing_outcome_is_missing_and_not_zero(tmp_path: Path) -> None:
    dataset = read(tmp_path, [ROW, {**ROW, "prompt_id": "b"}], [OUTCOME])
    assert dataset.scores[0, 0] == 1.0
    assert np.isnan(dataset.scores[0, 1])
    assert np.isnan(dataset.scores[1]).all()
    assert not dataset.has_all_outcomes.any()


def test_a_prompt_may_be_a_conversation(tmp_path: Path) -> None:
    talk = {"prompt_id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "you"}]}
    assert [turn.text for turn in read(tmp_path, [talk], [OUTCOME]).conversations[0].turns] == ["hi", "you"]


def test_a_prompt_without_a_category_or_weight_is_welcome(tmp_path: Path) -> None:
    dataset = read(tmp_path, [{"prompt_id": "a", "prompt": "x"}, {**ROW, "prompt_id": "b", "weight": 2}], [OUTCOME])
    assert dataset.labels.tolist() == [-1, 0]
    assert dataset.weights.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("prompt_rows", "outcome_rows", "sentence"),
    [
        ([], [OUTCOME], "p.jsonl: no rows"),
        ([ROW, ROW], [OUTCOME], "prompt_id 'a' occurs twice"),
        ([ROW], [], "no outcome belongs to any of the 1 prompts"),
        ([ROW], [{**OUTCOME, "prompt_id": "z"}], "no outcome belongs to any of the 1 prompts"),
        ([ROW], [{**OUTCOME, "expert": "z"}], r"o.jsonl, row 1: unknown expert 'z' \(known: x, y\)"),
        ([ROW], [OUTCOME, {**OUTCOME, "score": 1.5}], "row 2: a second outcome of 'x' for prompt 'a'"),
        ([ROW], [{**OUTCOME, "score": 1.5}], "row 1: score must be a number from 0 to 1, not 1.5"),
        ([ROW], [{**OUTCOME, "score": -0.1}], "score must be a number from 0 to 1, not -0.1"),
        ([ROW], [{**OUTCOME, "score": float("inf")}], "o.jsonl, row 1: score must be a number from 0 to 1, not inf"),
        ([ROW], [{**OUTCOME, "score": float("-inf")}], "score must be a number from 0 to 1, not -inf"),
        ([ROW], [{**OUTCOME, "score": "good"}], "score must be a number from 0 to 1, not 'good'"),
        ([ROW], [{**OUTCOME, "score": "good" * 1000}], r"score must be a number from 0 to 1, not '(good)+goo\.\.\.$"),
        ([ROW], [{**OUTCOME, "score": None}], "no outcome of the 1 prompts has a score: 1 is null"),
        ([ROW], [{"prompt_id": "a", "expert": "x"}], "row 1 has no 'score'"),
        ([{"prompt_id": "a"}], [OUTCOME], "row 1 has neither a text 'prompt' nor a list of 'messages'"),
        ([{"prompt": "x"}], [OUTCOME], "row 1 has no 'prompt_id'"),
        ([{**ROW, "weight": -1}], [OUTCOME], "weight must be a number from 0 to 1e\\+09, not -1"),
        ([{**ROW, "weight": 1e300}], [OUTCOME], "not 1e\\+300"),
        ([{**ROW, "category": "a" * 201}], [OUTCOME], "row 1: category has 201 characters; the limit is 200"),
        ([ROW, {**ROW, "prompt_id": ["a" * 1000]}], [OUTCOME], r"row 2: prompt_id \['a+\.\.\. is not a text"),
        ([{**ROW, "category": ["a", "b"]}], [OUTCOME], r"row 1: category \['a', 'b'\] is not a text"),
        ([{**ROW, "group": {"a": 1}}], [OUTCOME], "row 1: group"),
        ([{"prompt_id": "a", "messages": [{"content": 5}]}], [OUTCOME], r"row 1: messages\[0\].content"),
        (
            [{"prompt_id": "a", "messages": [{"from": "human", "value": "x"}]}],
            [OUTCOME],
            "row 1: messages.0. has no 'role'",
        ),
        ([ROW], [{**OUTCOME, "scored_by": ["agreement"]}], r"row 1: scored_by \['agreement'\] is not a text"),
        ([ROW], [{**OUTCOME, "fault": {}}], "row 1: fault {} is not a text"),
        ([ROW], [{**OUTCOME, "prompt_id": "row-7"}], "the first prompt_id is 'row-7' here and 'a' in the prompts"),
        ([[1]], [OUTCOME], "row 1 is not an object; expected one JSON object a line, or Parquet"),
    ],
)
def test_wrong_data_is_refused_with_file_and_row(
    tmp_path: Path, prompt_rows: list[Any], outcome_rows: list[Any], sentence: str
) -> None:
    with pytest.raises(DatasetError, match=sentence):
        read(tmp_path, prompt_rows, outcome_rows)


@pytest.mark.parametrize("nothing", [None, float("nan")])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_outcome_without_a_score_is_missing_and_counted(tmp_path: Path, nothing: object, ending: str) -> None:
    """The score may come in another row, and only a second score is one too many."""
    rows = [
        {**OUTCOME, "score": nothing},
        {**OUTCOME, "expert": "y", "score": 0.25},
        {**OUTCOME, "prompt_id": "b", "score": nothing},
        {**OUTCOME, "prompt_id": "b", "score": 0.5},
        {**OUTCOME, "prompt_id": "of no prompt", "score": nothing},
    ]
    write_jsonl(tmp_path / "p.jsonl", [ROW, {**ROW, "prompt_id": "b"}])
    write_jsonl(tmp_path / "o.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "o.parquet")
    dataset = read_dataset([tmp_path / "p.jsonl"], [tmp_path / f"o.{ending}"], ("x", "y"))
    assert np.array_equal(dataset.scores, [[np.nan, 0.25], [0.5, np.nan]], equal_nan=True)
    assert dataset.unscored == 1


def test_scores_and_weights_may_be_decimals(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**ROW, "weight": Decimal("2.5")}]), tmp_path / "p.parquet")
    pq.write_table(pa.Table.from_pylist([{**OUTCOME, "score": Decimal("0.25")}]), tmp_path / "o.parquet")
    dataset = read_dataset([tmp_path / "p.parquet"], [tmp_path / "o.parquet"], ("x", "y"))
    assert (dataset.scores[0, 0], dataset.weights[0]) == (0.25, 2.5)


def test_a_weight_that_is_not_there_is_1(tmp_path: Path) -> None:
    rows = [{**ROW, "prompt_id": str(at), "weight": weight} for at, weight in enumerate((None, float("nan"), 3))]
    assert read(tmp_path, rows, [{**OUTCOME, "prompt_id": "0"}]).weights.tolist() == [1.0, 1.0, 3.0]


def test_half_a_surrogate_pair_is_read_as_serving_reads_it(tmp_path: Path) -> None:
    """As a question mark, in prompts, names and ids alike: nothing else could be written to a file again."""
    rows = [
        {"prompt_id": "a \ud800", "prompt": "\ud83d hello \ude00", "category": "c \udfff", "group": "g \ud83d"},
        {"prompt_id": "b", "messages": [{"role": "user", "content": "x \ud83d"}], "category": "\U0001f600"},
    ]
    dataset = read(tmp_path, rows, [{**OUTCOME, "prompt_id": "a \ud800"}])
    assert dataset.prompt_ids == ("a ?", "b")
    assert dataset.categories == ("c ?", "\U0001f600")
    assert dataset.groups.tolist() == ["g ?", ""]
    assert [talk.turns[0].text for talk in dataset.conversations] == ["? hello ?", "x ?"]
    assert dataset.scores[0, 0] == 1.0
    raw = Conversation.of_prompt(rows[0]["prompt"])
    assert np.array_equal(buckets(raw.turns[0].text, 12), buckets(dataset.conversations[0].turns[0].text, 12))


def test_surrogates_in_bytes_and_in_keys_are_read_too(tmp_path: Path) -> None:
    """Some programs write UTF-8 of halves of pairs (CESU-8)."""
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt_id": "a", "prompt": "x \xed\xa0\xbd y", "odd \\ud800": 1}\n')
    ((_, row),) = read_rows(tmp_path / "p.jsonl")
    assert row == {"prompt_id": "a", "prompt": "x ? y", "odd ?": 1}


def test_columns_that_are_not_requested_are_not_read(tmp_path: Path) -> None:
    """Of a time in nanoseconds pyarrow makes no Python value without pandas."""
    table = pa.Table.from_pylist([ROW]).append_column("when", pa.array([1], pa.timestamp("ns")))
    pq.write_table(table, tmp_path / "p.parquet")
    write_jsonl(tmp_path / "o.jsonl", [OUTCOME])
    assert read_dataset([tmp_path / "p.parquet"], [tmp_path / "o.jsonl"], ("x",)).prompt_ids == ("a",)


def test_parquet_whose_text_is_not_utf8_is_named(tmp_path: Path) -> None:
    wrong = pa.array([b"a \xff"]).view(pa.string())
    pq.write_table(pa.table({"prompt_id": ["a"], "prompt": wrong}), tmp_path / "p.parquet")
    write_jsonl(tmp_path / "o.jsonl", [OUTCOME])
    with pytest.raises(DatasetError, match=r"p.parquet cannot be read: 'utf-8' codec can't decode byte 0xff"):
        read_dataset([tmp_path / "p.parquet"], [tmp_path / "o.jsonl"], ("x",))


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "o.jsonl", [OUTCOME])
    with pytest.raises(DatasetError, match="no such file"):
        read_dataset([tmp_path / name], [tmp_path / "o.jsonl"], ("x",))
    (tmp_path / name).write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(DatasetError, match=name):
        read_dataset([tmp_path / name], [tmp_path / "o.jsonl"], ("x",))


def test_a_table_of_commas_is_told_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt_id,prompt\na,hello\n")
    with pytest.raises(DatasetError, match=r"p.csv, row 1 is not JSON .*; expected one JSON object a line, or"):
        read_dataset([tmp_path / "p.csv"], [tmp_path / "p.csv"], ("x",))


def test_a_category_and_a_group_may_be_numbers_from_0(tmp_path: Path) -> None:
    rows = [{"prompt_id": number, "prompt": "x", "category": number, "group": number} for number in (0, 1)]
    dataset = read(tmp_path, rows, [{**OUTCOME, "prompt_id": 0}])
    assert (dataset.prompt_ids, dataset.categories) == (("0", "1"), ("0", "1"))
    assert (dataset.labels.tolist(), dataset.groups.tolist()) == ([0, 1], ["0", "1"])


@pytest.mark.parametrize("nothing", [None, "", float("nan")])
def test_a_category_that_is_not_there_is_none(tmp_path: Path, nothing: object) -> None:
    dataset = read(tmp_path, [{**ROW, "category": nothing, "group": nothing}], [OUTCOME])
    assert (dataset.categories, dataset.groups.tolist()) == ((), [""])


def test_a_split_is_the_same_every_time_and_whatever_else_is_there(tmp_path: Path) -> None:
    rows = [{**ROW, "prompt_id": str(number)} for number in range(400)]
    recorded = [{**OUTCOME, "prompt_id": str(number)} for number in range(400)]
    sides = split(read(tmp_path, rows, recorded), 0.25, seed=7)
    training, held_out = sides.training, sides.held_out
    assert set(training.prompt_ids).isdisjoint(held_out.prompt_ids)
    assert len(training) + len(held_out) == 400
    assert 60 <= len(held_out) <= 140
    fewer = split(read(tmp_path, rows[:200], recorded), 0.25, seed=7).held_out
    assert set(fewer.prompt_ids) == set(held_out.prompt_ids) & {str(number) for number in range(200)}


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("\n" + json.dumps(ROW) + "\n\n")
    write_jsonl(tmp_path / "o.jsonl", [OUTCOME])
    assert len(read_dataset([tmp_path / "p.jsonl"], [tmp_path / "o.jsonl"], ("x",))) == 1


def test_whole_numbers_are_the_same_name_with_and_without_a_decimal_point(tmp_path: Path) -> None:
    """A table writes 7 as 7.0 in a column where a value is missing."""
    rows = [{"prompt_id": at, "prompt": "x", "category": 1 if at else 1.0, "group": 2.0} for at in range(3)]
    dataset = read(tmp_path, rows, [{**OUTCOME, "prompt_id": float(at)} for at in range(3)])
    assert dataset.prompt_ids == ("0", "1", "2")
    assert dataset.categories == ("1",)
    assert dataset.groups.tolist() == ["2"] * 3
    assert dataset.scores[:, 0].tolist() == [1.0] * 3


def test_outcomes_of_other_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = read(tmp_path, [ROW], [OUTCOME, {**OUTCOME, "prompt_id": "b"}, {**OUTCOME, "prompt_id": "c"}])
    assert dataset.foreign == 2


def test_a_prompt_marked_as_not_synthetic_is_a_users(tmp_path: Path) -> None:
    marks = (False, 0, None, "", True, "generalist")
    rows = [{**ROW, "prompt_id": str(at), "synthetic": mark} for at, mark in enumerate(marks)]
    dataset = read(tmp_path, rows, [{**OUTCOME, "prompt_id": "0"}])
    assert dataset.provenance.synthetic.tolist() == [False, False, False, False, True, True]


def test_a_folder_is_no_file_of_data(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"{tmp_path} is not a file"):
        read_dataset([tmp_path], [tmp_path], ("x",))
