"""Log-probabilities of answers: asked for where an expert gives them, kept as optional columns, read back by `fit`."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import DatasetError
from coe_server.routing.certainty import WHOLE
from router_training.collect.endpoint import read_completion
from router_training.data.dataset import read_dataset
from router_training.data.first_tokens import COLUMN_OF, COLUMNS, COUNT, LEAST, FirstTokens, summary
from tests.training.recorded import write_jsonl
from tests.training.stand_in_endpoint import Body, Says, endpoint
from tests.training.test_collect import config, echo, files, run, written

REFUSAL = json.dumps({"error": {"message": "Unsupported parameter: 'logprobs'"}}).encode()


def telling(body: Body, times: int) -> Says:
    """Expert `a` gives log-probabilities, `b` refuses the parameter, `c` takes and forgets it."""
    del times
    match body["model"], body.get("logprobs"):
        case "a", True:
            return Says("yes", logprobs=(-0.1, -0.3, -0.5))
        case "b", True:
            return Says(status=400, raw=REFUSAL)
    return Says("yes")


def test_an_expert_that_gives_log_probabilities_has_them_recorded_and_others_are_asked_without(tmp_path: Path) -> None:
    where = files(tmp_path, 5)
    experts = [{"name": name} for name in "abc"]
    with endpoint(telling) as stand_in:
        run(config(stand_in, experts=experts, request={"concurrency": 1}), where)
    plain = {"prompt_id", "expert", "score", "output_tokens"}
    columns = {row["expert"]: set(row) for row in written(where)}
    assert columns == {"a": plain | set(COLUMNS), "b": plain, "c": plain}
    asked = [body.get("logprobs") for body in stand_in.bodies if body["model"] == "b"]
    assert asked == [True, None, None, None, None, None]
    said = read_dataset(where.prompts, [where.out], ["a", "b", "c"]).said
    assert said is not None
    assert said.recorded.tolist() == [[True, False, False]] * 5
    assert said.of(WHOLE)[:, 0].tolist() == pytest.approx([-0.3] * 5)
    assert said.of(1)[:, 0].tolist() == pytest.approx([-0.1] * 5)
    assert said.of(8)[:, 0].tolist() == pytest.approx([-0.3] * 5)
    assert said.tokens[0].tolist() == [3, 1, 1]


def test_a_request_that_is_refused_for_another_reason_is_not_sent_twice(tmp_path: Path) -> None:
    with endpoint(lambda body, times: Says(status=400, raw=b'{"error": {"message": "too long"}}')) as stand_in:
        run(config(stand_in, experts=[{"name": "a"}]), files(tmp_path, 3))
    assert set(stand_in.asked.values()) == {1}


def test_an_option_of_ones_own_is_kept_and_null_asks_for_none(tmp_path: Path) -> None:
    experts = [{"name": "a", "options": {"logprobs": None}}, {"name": "b", "options": {"logprobs": False}}]
    with endpoint(echo) as stand_in:
        run(config(stand_in, experts=experts), files(tmp_path, 1))
    assert [body.get("logprobs") for body in stand_in.bodies] == [None, False]
    assert "logprobs" not in stand_in.bodies[0]


def test_answers_recorded_before_there_were_log_probabilities_are_still_used(tmp_path: Path) -> None:
    where = files(tmp_path, 2)
    with endpoint(telling) as stand_in:
        run(config(stand_in, experts=[{"name": "a"}]), where)
        records = [json.loads(line) for line in where.raw.read_text().splitlines()]
        assert all(record.pop("certainty") for record in records)
        where.raw.write_text("".join(json.dumps(record) + "\n" for record in records))
        run(config(stand_in, experts=[{"name": "a"}]), where)
    assert set(stand_in.asked.values()) == {1}
    assert not any(set(COLUMNS) & set(row) for row in written(where))


def test_parquet_has_the_columns_where_some_expert_gave_them(tmp_path: Path) -> None:
    where = files(tmp_path, 2, "outcomes.parquet")
    with endpoint(telling) as stand_in:
        run(config(stand_in), where)
    assert pq.read_table(where.out).column_names[-len(COLUMNS) :] == list(COLUMNS)
    said = read_dataset(where.prompts, [where.out], ["a", "b"]).said
    assert said is not None
    assert said.recorded.tolist() == [[True, False]] * 2


@given(st.lists(st.floats(-1e4, 0.0), min_size=1, max_size=30))
def test_a_summary_has_the_means_of_the_beginning(logprobs: list[float]) -> None:
    found = summary(logprobs)
    assert set(found) == set(COLUMNS)
    assert found[COUNT] == len(logprobs)
    assert found[COLUMN_OF[1]] == pytest.approx(max(logprobs[0], -100.0), abs=1e-6)
    assert -100.0 <= found[LEAST] <= found[COLUMN_OF[WHOLE]] + 1e-6 <= 1e-6


@pytest.mark.parametrize(
    "found",
    [None, [], {"content": None}, {"content": []}, {"content": [{}]}, {"content": [{"logprob": "x"}]},
     {"content": [{"logprob": 3.0}]}, {"content": [{"logprob": math.nan}]}],
)  # fmt: skip
def test_log_probabilities_that_are_none_are_left_out(found: Any) -> None:
    choice = {"message": {"content": "yes"}, "finish_reason": "stop", "logprobs": found}
    completion = read_completion(json.dumps({"choices": [choice]}).encode())
    assert completion is not None
    assert completion.logprobs == ()


@pytest.mark.parametrize("value", ["high", 0.5, True, []])
def test_a_log_probability_that_is_no_number_up_to_0_is_refused_with_its_row(tmp_path: Path, value: Any) -> None:
    where = files(tmp_path, 1)
    outcome = {"prompt_id": "p0", "expert": "a", "score": 1.0, "logprob_mean": value}
    with pytest.raises(DatasetError, match="row 1: logprob_mean must be a number up to 0, not"):
        read_dataset(where.prompts, [write_jsonl(tmp_path / "o.jsonl", [outcome])], ["a"])


@pytest.mark.parametrize("value", [10**400, -(10**400), Decimal("sNaN")])
def test_a_number_beyond_all_floats_is_no_log_probability(value: object) -> None:
    said = FirstTokens.empty(1, 1)
    assert said.note(0, 0, {COLUMN_OF[WHOLE]: value}) == COLUMN_OF[WHOLE]
    assert said.note(0, 0, {COUNT: value}) is None
    assert math.isnan(said.tokens[0, 0])
