"""`collect` against a real endpoint on this machine: what is asked, what is written, what is asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from coe_server.errors import ConfigError, DatasetError
from router_training import in_silence
from router_training.cli import app
from router_training.collect import endpoint as limits
from router_training.collect.bars import SilentBars
from router_training.collect.progress import Tally
from router_training.collect.run import Files, collect, plan
from router_training.collect.settings import CollectConfig, read_collect_config
from router_training.data.dataset import read_dataset
from tests.patience import PATIENCE_SECONDS
from tests.training.recorded import write_jsonl
from tests.training.stand_in_endpoint import Body, Says, StandIn, endpoint

ROOT = Path(__file__).parents[2]


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt_id": f"p{n}", "prompt": f"question {n}", "answer": f"a answers question {n}"} for n in range(count)
    ]


def echo(body: Body, times: int) -> Says:
    """As the simulated engines do: the model's name and the question."""
    return Says(f"{body['model']} answers {body['messages'][-1]['content']}")


def config(stand_in: StandIn, **changes: Any) -> CollectConfig:
    least = {"base_url": stand_in.base_url, "experts": [{"name": "a"}, {"name": "b"}], "scorer": {"kind": "exact"}}
    return CollectConfig.model_validate({**least, **changes})


def files(folder: Path, count: int, out: str = "outcomes.jsonl") -> Files:
    return Files.of([write_jsonl(folder / "prompts.jsonl", rows(count))], folder / out, None)


def run(settings: CollectConfig, where: Files, **options: Any) -> Tally:
    return collect(settings, where, SilentBars(), in_silence, **options)


def written(where: Files) -> list[dict[str, Any]]:
    return [json.loads(line) for line in where.out.read_text().splitlines()]


def test_every_expert_is_asked_every_prompt_once_and_one_after_the_other(tmp_path: Path) -> None:
    where = files(tmp_path, 20)
    with endpoint(echo) as stand_in:
        run(config(stand_in), where)
    assert set(stand_in.asked.values()) == {1}
    assert len(stand_in.asked) == 40
    assert stand_in.models_in_order() == ["a", "b"]
    assert 1 < stand_in.most_at_once <= 8
    assert {row["prompt_id"] for row in written(where)} == {f"p{n}" for n in range(20)}
    assert {(row["expert"], row["score"], row["output_tokens"]) for row in written(where)} == {
        ("a", 1.0, 4),
        ("b", 0.0, 4),
    }


@pytest.mark.parametrize("name", ["outcomes.jsonl", "outcomes.parquet"])
def test_what_is_written_is_what_fit_reads(tmp_path: Path, name: str) -> None:
    where = files(tmp_path, 5, name)
    with endpoint(echo) as stand_in:
        run(config(stand_in), where)
    dataset = read_dataset(where.prompts, [where.out], ["a", "b"])
    assert dataset.scores.tolist() == [[1.0, 0.0]] * 5
    if name.endswith(".parquet"):
        assert pq.read_table(where.out).column_names == ["prompt_id", "expert", "score", "output_tokens"]


def test_conversations_and_options_are_sent_as_they_are(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt_id": 7, "messages": talk, "answer": "x"}])
    experts = [{"name": "a", "model": "over-there", "options": {"temperature": 1, "max_tokens": None, "seed": 3}}]
    with endpoint(echo) as stand_in:
        run(config(stand_in, experts=experts), Files.of([prompts], tmp_path / "o.jsonl", None))
    asked = {"model": "over-there", "messages": talk, "temperature": 1, "seed": 3, "logprobs": True}
    assert stand_in.bodies == [asked]


def test_a_key_goes_to_its_own_address_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "ours")
    monkeypatch.setenv("THEIR_KEY", "theirs")
    with endpoint(echo) as service, endpoint(echo) as elsewhere, endpoint(echo) as open_to_all:
        experts = [
            {"name": "a"},
            {"name": "b", "base_url": elsewhere.base_url, "api_key_env": "THEIR_KEY"},
            {"name": "c", "base_url": open_to_all.base_url},
        ]
        run(config(service, experts=experts, api_key_env="OUR_KEY"), files(tmp_path, 1))
    assert (service.keys, elsewhere.keys, open_to_all.keys) == (["Bearer ours"], ["Bearer theirs"], [None])
    assert "ours" not in (tmp_path / "outcomes.raw.jsonl").read_text().replace("answers", "")


def test_a_missing_key_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with endpoint(echo) as stand_in, pytest.raises(ConfigError, match="'NO_SUCH_KEY' is not set"):
        run(config(stand_in, api_key_env="NO_SUCH_KEY"), files(tmp_path, 1))
    assert not stand_in.bodies


def test_blanks_around_a_key_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", " ours\n")
    with endpoint(echo) as stand_in:
        run(config(stand_in, experts=[{"name": "a"}], api_key_env="OUR_KEY"), files(tmp_path, 1))
    assert stand_in.keys == ["Bearer ours"]


JUDGE = {"kind": "judge", "mode": "grade", "model": "j", "api_key_env": "BROKEN"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"api_key_env": "BROKEN"}, "api_key_env"),
        ({"experts": [{"name": "a", "api_key_env": "BROKEN"}]}, r"experts\.a\.api_key_env"),
        ({"scorer": JUDGE}, r"scorer\.api_key_env"),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused_unseen_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], key: str
) -> None:
    monkeypatch.setenv("BROKEN", "s3cret\nword")
    told = f"^{key}: the environment variable 'BROKEN' has a line break"
    with endpoint(echo) as stand_in, pytest.raises(ConfigError, match=told) as refused:
        run(config(stand_in, **changes), files(tmp_path, 1))
    assert "s3cret" not in str(refused.value)
    assert not stand_in.bodies


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"base_url": "http://a/v1/chat/completions"},
            "base_url: 'http://a/v1/chat/completions' is the address of one",
        ),
        ({"base_url": "http://u:s3cret@a/v1"}, "base_url: 'http://...@a/v1' has credentials in it"),
        ({"experts": [{"name": "a", "base_url": "a/v1"}]}, "experts.a.base_url: 'a/v1' is not an address"),
        ({"scorer": JUDGE | {"base_url": "http://a/v1#x"}}, "scorer.base_url: 'http://a/v1#x' has a fragment"),
    ],
)
def test_an_address_that_cannot_be_asked_is_refused(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    least = {"experts": [{"name": "a"}], "scorer": {"kind": "exact"}}
    path = tmp_path / "collect.yaml"
    path.write_text(yaml.safe_dump({**least, **settings}))
    with pytest.raises(ConfigError) as refused:
        read_collect_config(path)
    assert sentence in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_the_address_of_the_option_is_checked_as_the_files_is(tmp_path: Path) -> None:
    path = tmp_path / "collect.yaml"
    path.write_text(yaml.safe_dump({"experts": [{"name": "a"}], "scorer": {"kind": "exact"}}))
    with pytest.raises(ConfigError, match=r"^--base-url: 'nowhere' is not an address"):
        read_collect_config(path, "nowhere")


def test_a_query_of_the_base_url_stands_behind_the_path(tmp_path: Path) -> None:
    with endpoint(echo) as stand_in:
        run(config(stand_in, base_url=f"{stand_in.base_url}/?api-version=1"), files(tmp_path, 1))
        assert set(stand_in.asked.values()) == {1}


def test_an_endpoint_is_asked_through_the_proxy_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with endpoint(echo) as stand_in:
        monkeypatch.setenv("HTTP_PROXY", stand_in.base_url.removesuffix("/v1"))
        run(config(stand_in, base_url="http://somewhere.invalid/v1"), files(tmp_path, 1))
    assert len(stand_in.bodies) == 2


def test_the_same_command_again_asks_nothing_and_writes_the_same(tmp_path: Path) -> None:
    where = files(tmp_path, 6)
    with endpoint(echo) as stand_in:
        run(config(stand_in), where)
        before = where.out.read_bytes(), where.raw.read_bytes()
        run(config(stand_in), where)
    assert len(stand_in.bodies) == 12
    assert (where.out.read_bytes(), where.raw.read_bytes()) == before


def test_other_words_options_or_model_are_asked_anew_and_count(tmp_path: Path) -> None:
    where = files(tmp_path, 3)
    with endpoint(echo) as stand_in:
        run(config(stand_in), where)
        run(config(stand_in, request={"options": {"temperature": 1}}), where)
        assert len(stand_in.bodies) == 12
        changed = [{**row, "prompt": row["prompt"] + "!"} for row in rows(3)]
        write_jsonl(where.prompts[0], changed)
        tally = run(config(stand_in), where)
    assert len(stand_in.bodies) == 18
    assert len(written(where)) == 6
    assert tally.by_expert["a"].mean_score == 0.0


def test_busy_and_broken_endpoints_are_asked_again(tmp_path: Path) -> None:
    troubles = [
        Says(raw=b'{"choices": []}'),
        Says(raw=b"\xff"),
        Says(status=429, headers={"Retry-After": "0.2"}),
        Says(status=503, raw=b"loading", headers={"Retry-After": "0.1"}),
    ]
    with endpoint(lambda body, times: troubles[times - 1] if times <= 4 else echo(body, times)) as stand_in:
        tally = run(config(stand_in, experts=[{"name": "a"}]), files(tmp_path, 2))
    assert set(stand_in.asked.values()) == {5}
    assert tally.by_expert["a"].mean_score == 1.0
    assert not tally.may_grow


def test_a_failed_request_is_missing_never_zero_and_is_asked_again_next_time(tmp_path: Path) -> None:
    broken = {"question 1": Says(status=500, raw=b'{"error": {"message": "out of memory"}}')}
    broken["question 2"] = Says(status=400, raw=b'{"error": {"message": "too long"}}')

    def script(body: Body, times: int) -> Says:
        return broken.get(body["messages"][-1]["content"]) or echo(body, times)

    where = files(tmp_path, 4)
    with endpoint(script) as stand_in:
        settings = config(stand_in, experts=[{"name": "a"}], request={"retries": 1})
        tally = run(settings, where)
        assert stand_in.asked == Counter({("a", f"question {n}"): 2 if n == 1 else 1 for n in range(4)})
        assert [row["prompt_id"] for row in written(where)] == ["p0", "p3"]
        assert tally.by_expert["a"].open == {"HTTP 500: out of memory": 1, "HTTP 400: too long": 1}
        assert tally.by_expert["a"].mean_score == 1.0
        assert tally.may_grow
        broken.clear()
        tally = run(settings, where)
    assert stand_in.asked["a", "question 0"] == 1
    assert [row["prompt_id"] for row in written(where)] == ["p0", "p1", "p2", "p3"]
    assert not tally.may_grow


def test_a_slow_answer_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    with endpoint(lambda body, times: Says(held=True)) as stand_in:
        settings = config(stand_in, experts=[{"name": "a"}], request={"timeout_seconds": 0.2, "retries": 0})
        tally = run(settings, files(tmp_path, 1))
    assert tally.by_expert["a"].open == {"no answer within 0.2 s": 1}
    assert not (tmp_path / "outcomes.jsonl").exists()


def test_more_patience_than_the_timeout_is_not_shown(tmp_path: Path) -> None:
    with endpoint(lambda body, times: Says(status=429, headers={"Retry-After": "9999"})) as stand_in:
        tally = run(config(stand_in, experts=[{"name": "a"}]), files(tmp_path, 1))
    assert stand_in.asked.total() == 1
    assert tally.may_grow


@pytest.mark.parametrize("status", [401, 404])
def test_an_expert_that_cannot_answer_is_given_up_and_the_others_are_asked(tmp_path: Path, status: int) -> None:
    def script(body: Body, times: int) -> Says:
        return Says(status=status) if body["model"] == "a" else echo(body, times)

    with endpoint(script) as stand_in:
        tally = run(config(stand_in, request={"concurrency": 1}), files(tmp_path, 30))
    assert sum(count for (model, _), count in stand_in.asked.items() if model == "a") == 1
    assert tally.by_expert["a"].missing == 30
    assert len(tally.by_expert["b"].outcomes) == 30


def test_an_endpoint_that_only_fails_is_given_up(tmp_path: Path) -> None:
    with endpoint(lambda body, times: Says(status=500)) as stand_in:
        settings = config(stand_in, experts=[{"name": "a"}], request={"retries": 0, "concurrency": 1})
        run(settings, files(tmp_path, limits.GIVE_UP_AFTER + 5))
    assert stand_in.asked.total() == limits.GIVE_UP_AFTER


def test_a_dry_run_sends_and_writes_nothing(tmp_path: Path) -> None:
    where = files(tmp_path, 4)
    with endpoint(echo) as stand_in:
        steps = plan(config(stand_in), where)
    assert [(step.target.name, step.recorded, step.to_send) for step in steps] == [("a", 0, 4), ("b", 0, 4)]
    assert not stand_in.bodies
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl"]


def test_rescoring_asks_no_expert(tmp_path: Path) -> None:
    where = files(tmp_path, 4)
    with endpoint(echo) as stand_in:
        run(config(stand_in), where)
        tally = run(config(stand_in, scorer={"kind": "regex", "pattern": "^b"}), where, rescore=True)
        more = Files.of([write_jsonl(tmp_path / "more.jsonl", rows(6))], where.out, where.raw)
        run(config(stand_in), more, rescore=True)
    assert len(stand_in.bodies) == 8
    assert (tally.by_expert["a"].mean_score, tally.by_expert["b"].mean_score) == (0.0, 1.0)


def test_rescoring_nothing_is_a_mistake(tmp_path: Path) -> None:
    with endpoint(echo) as stand_in, pytest.raises(DatasetError, match="no recorded answers to score"):
        run(config(stand_in), files(tmp_path, 4), rescore=True)


def test_only_what_follows_the_mark_is_scored_and_everything_is_kept(tmp_path: Path) -> None:
    where = files(tmp_path, 1)
    with endpoint(lambda body, times: Says("<think>no</think>\na answers question 0")) as stand_in:
        tally = run(config(stand_in, answer_after="</think>"), where)
    assert tally.by_expert["a"].mean_score == 1.0
    assert "<think>" in where.raw.read_text()


def test_answers_cut_at_the_token_limit_are_counted(tmp_path: Path) -> None:
    with endpoint(lambda body, times: Says("a answers", finish_reason="length")) as stand_in:
        tally = run(config(stand_in), files(tmp_path, 3))
    assert tally.by_expert["a"].faults["truncated"] == 3


# A kill in the middle


def start(folder: Path, settings: dict[str, Any], largest_file_kib: int | str = "unlimited") -> subprocess.Popen[str]:
    (folder / "collect.yaml").write_text(yaml.safe_dump(settings))
    listening = ["env", "--default-signal=INT"]  # tests that run in the background inherit an ignored SIGINT
    limited = [*listening, "bash", "-c", f'ulimit -f {largest_file_kib}; exec "$@"', "-"]
    command = [
        *limited,
        Path(sys.executable).with_name("coe-train"),
        "collect",
        "collect.yaml",
        "--prompts",
        "prompts.jsonl",
    ]
    return subprocess.Popen(
        [*command, "--out", "outcomes.jsonl"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_collection_that_was_stopped_goes_on_without_a_lost_or_doubled_row(
    tmp_path: Path, how: signal.Signals
) -> None:
    """The endpoint holds three requests of the second expert back; then the process is stopped."""
    at_once, count, stuck = 3, 25, {"question 11", "question 12", "question 13"}
    holding = [True]

    def script(body: Body, times: int) -> Says:
        question = body["messages"][-1]["content"]
        says = echo(body, times)
        return Says(says.text, held=holding[0] and body["model"] == "b" and question in stuck)

    where = files(tmp_path, count)
    with endpoint(script) as stand_in:
        settings = {
            "base_url": stand_in.base_url,
            "experts": [{"name": "a"}, {"name": "b"}],
            "scorer": {"kind": "exact"},
            "request": {"concurrency": at_once},
        }
        process = start(tmp_path, settings)
        for _ in range(at_once):
            assert stand_in.held.acquire(timeout=PATIENCE_SECONDS)
        process.send_signal(how)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
        answered = len(where.raw.read_text().splitlines())
        assert answered == len(stand_in.bodies) - at_once
        assert not where.out.exists()
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert "run the same command again to resume" in said
            assert "Traceback" not in said
        holding[0] = False
        process = start(tmp_path, settings)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, said
    twice = {question for question, times in stand_in.asked.items() if times > 1}
    assert twice == {("b", question) for question in stuck}
    assert stand_in.asked.total() == 2 * count + at_once
    pairs = [(row["expert"], row["prompt_id"]) for row in written(where)]
    assert pairs == [(expert, f"p{n}") for expert in "ab" for n in range(count)]


def test_a_second_collection_into_the_same_files_is_refused(tmp_path: Path) -> None:
    where = files(tmp_path, 3)
    with endpoint(lambda body, times: Says(held=True)) as stand_in:
        settings = {"base_url": stand_in.base_url, "experts": [{"name": "a"}], "scorer": {"kind": "exact"}}
        first = start(tmp_path, settings)
        assert stand_in.held.acquire(timeout=PATIENCE_SECONDS)
        with pytest.raises(DatasetError, match="another `coe-train collect` is writing to it"):
            run(config(stand_in), where)
        first.kill()
        first.communicate(timeout=PATIENCE_SECONDS)


def test_a_full_disk_ends_with_a_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    where = files(tmp_path, 40)
    with endpoint(echo) as stand_in:
        settings = {"base_url": stand_in.base_url, "experts": [{"name": "a"}], "scorer": {"kind": "exact"}}
        process = start(tmp_path, settings, largest_file_kib=3)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 2
        assert "outcomes.raw.jsonl: write failed: File too large; earlier records are kept" in said
        kept = len(where.raw.read_text().splitlines())
        assert 0 < kept < 40
        stand_in.bodies.clear()
        process = start(tmp_path, settings)
        process.communicate(timeout=PATIENCE_SECONDS)
    assert len(stand_in.bodies) == 40 - kept
    assert [row["prompt_id"] for row in written(where)] == [f"p{n}" for n in range(40)]


# The command


def command(folder: Path, *words: str) -> tuple[int, str]:
    arguments = ["collect", folder / "collect.yaml", "--prompts", folder / "prompts.jsonl", *words]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_the_command_shows_scores_failures_and_where_everything_is(tmp_path: Path) -> None:
    files(tmp_path, 3)

    def script(body: Body, times: int) -> Says:
        fails = body["model"] == "b" and body["messages"][-1]["content"] == "question 2"
        return Says(status=400, raw=b"no") if fails else echo(body, times)

    with endpoint(script) as stand_in:
        settings = config(stand_in).model_dump(mode="json", exclude_unset=True)
        (tmp_path / "collect.yaml").write_text(yaml.safe_dump(settings))
        out = tmp_path / "outcomes.jsonl"
        code, said = command(tmp_path, "--out", str(out), "--dry-run")
        assert (code, out.exists()) == (0, False)
        assert "nothing was sent" in said
        code, said = command(tmp_path, "--out", str(out))
    assert code == 4
    for part in (
        "1.000",
        "b: 1 without an outcome: HTTP 400: no",
        "5 outcomes ->",
        "outcomes.raw.jsonl",
        "same command",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt_id": "x", "prompt": "q"}, "row 2 has no 'answer'"),
        ({"prompt": "q", "answer": "a"}, "row 2 has no 'prompt_id'"),
        ({"prompt_id": "x", "answer": "a"}, "row 2 has neither"),
        ({"prompt_id": ["x"], "prompt": "q", "answer": "a"}, "row 2: prompt_id ['x'] is not a text"),
        ({"prompt_id": "x", "answer": "a", "messages": [{"from": "human", "value": "q"}]}, "messages[0] has no 'role'"),
        ({"prompt_id": "x", "answer": "a", "messages": [{"role": "user", "content": 5}]}, "row 2: messages[0].content"),
        ({"prompt_id": "p0", "prompt": "q", "answer": "a"}, "'p0' occurs twice"),
    ],
)
def test_a_mistake_in_the_prompts_is_one_sentence_and_nothing_is_sent(
    tmp_path: Path, row: dict[str, Any], sentence: str
) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [*rows(1), row])
    with endpoint(echo) as stand_in:
        settings = config(stand_in).model_dump(mode="json", exclude_unset=True)
        (tmp_path / "collect.yaml").write_text(yaml.safe_dump(settings))
        code, said = command(tmp_path, "--out", str(tmp_path / "o.jsonl"))
    assert code == 2
    assert sentence in said.replace("\n", "")
    assert not stand_in.bodies
    assert sorted(path.name for path in tmp_path.iterdir()) == ["collect.yaml", "prompts.jsonl"]


@pytest.mark.parametrize("name", ["prompts.jsonl", "outcomes.jsonl"])
def test_no_file_is_overwritten_by_another(tmp_path: Path, name: str) -> None:
    where = files(tmp_path, 1, name)
    before = where.prompts[0].read_bytes()
    with endpoint(echo) as stand_in, pytest.raises(DatasetError, match="need separate files"):
        run(config(stand_in), Files(where.prompts, where.out, where.out))
    assert where.prompts[0].read_bytes() == before
    assert not stand_in.bodies


def test_conversations_from_parquet_are_sent_without_the_keys_of_others(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    talks = [
        [{"role": "user", "content": [{"type": "text", "text": "Hi?"}, image]}],
        [{"role": "assistant", "content": [{"type": "text", "text": "Yes"}], "name": "x"}],
    ]
    table = pa.Table.from_pylist(
        [{"prompt_id": str(n), "messages": talk, "answer": "-"} for n, talk in enumerate(talks)]
    )
    pq.write_table(table, tmp_path / "p.parquet")
    with endpoint(echo) as stand_in:
        settings = config(stand_in, experts=[{"name": "a"}], request={"concurrency": 1})
        run(settings, Files.of([tmp_path / "p.parquet"], tmp_path / "o.jsonl", None))
    assert [body["messages"] for body in stand_in.bodies] == talks


@pytest.mark.parametrize(
    ("out", "sentence"),
    [("/proc/o.jsonl", "--out: /proc cannot be written"), ("taken.jsonl", "is a folder; name a file")],
)
def test_outcomes_that_could_not_be_written_are_refused_before_anything_is_sent(
    tmp_path: Path, out: str, sentence: str
) -> None:
    (tmp_path / "taken.jsonl").mkdir()
    with endpoint(echo) as stand_in:
        for attempt in (run, plan):
            with pytest.raises((ConfigError, DatasetError), match=sentence):
                attempt(config(stand_in), files(tmp_path, 2, out))
    assert not stand_in.asked


def test_outcomes_of_an_unknown_format_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with endpoint(echo) as stand_in, pytest.raises(DatasetError, match=r"\.jsonl or \.parquet"):
        run(config(stand_in), files(tmp_path, 1, "outcomes.csv"))
    assert not stand_in.bodies


def test_the_address_of_the_service_may_be_given_on_the_command_line(tmp_path: Path) -> None:
    files(tmp_path, 1)
    with endpoint(echo) as stand_in:
        settings = config(stand_in, base_url="http://127.0.0.1:1/v1").model_dump(mode="json", exclude_unset=True)
        (tmp_path / "collect.yaml").write_text(yaml.safe_dump(settings))
        code, _ = command(tmp_path, "--out", str(tmp_path / "o.jsonl"), "--base-url", stand_in.base_url)
    assert code == 0
    assert len(stand_in.bodies) == 2


def by_name(body: Body, times: int) -> Says:
    """Two experts know the answer, a third says another, a fourth nothing, a fifth refuses."""
    del times
    number = str(body["messages"][-1]["content"]).rpartition(" ")[2]
    said = {"a": number, "b": number, "c": f"{number}9", "d": "I do not know", "e": "I'm sorry, but I can't help."}
    return Says(f"It is {said[body['model']]}" if body["model"] in "abc" else said[body["model"]])


def test_consensus_scores_by_the_others_and_says_what_is_unknown(tmp_path: Path) -> None:
    rows_ = [{"prompt_id": f"p{n}", "prompt": f"question {n}", "category": "sums"} for n in range(40)]
    where = Files.of([write_jsonl(tmp_path / "prompts.jsonl", rows_)], tmp_path / "o.jsonl", None)
    with endpoint(by_name) as stand_in:
        experts = [{"name": name} for name in "abcde"]
        tally = run(config(stand_in, experts=experts, scorer={"kind": "consensus", "compare": "number"}), where)
    scores = {name: one.mean_score for name, one in tally.by_expert.items()}
    assert scores == {"a": None, "b": None, "c": 0.0, "d": 0.0, "e": 0.0}
    assert tally.by_expert["a"].closed == {"fewer than two independent other experts agree": 40}
    assert {row["scored_by"] for row in written(where)} == {"agreement"}
    faults = Counter((row["expert"], row.get("fault")) for row in written(where))
    assert faults == {("c", None): 40, ("d", "unparsed"): 40, ("e", "refused"): 40}
    assert tally.findings is not None
    assert tally.findings.categories[0].best is None


def test_the_scorer_of_the_command_replaces_that_of_the_file(tmp_path: Path) -> None:
    with endpoint(by_name) as stand_in:
        settings = {"base_url": stand_in.base_url, "experts": [{"name": name} for name in "abcde"]}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**settings, "scorer": {"kind": "exact"}}))
        prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt_id": "p", "prompt": "question 7"}])
        arguments = ["collect", tmp_path / "c.yaml", "--prompts", prompts, "--out", tmp_path / "o.jsonl"]
        result = CliRunner().invoke(app, [str(one) for one in (*arguments, "--scorer", "consensus")])
    assert result.exit_code == 0, result.output
    assert "scored by agreement" in result.output
    assert "unknown" in result.output


@pytest.mark.parametrize(
    ("scorer", "why", "advice"),
    [
        ("consensus", "a: 2 without an outcome: fewer than two independent other experts agree", "scorer.compare"),
        ("certainty", "a: 2 without an outcome: the expert gave no log-probabilities", "another scorer"),
    ],
)
def test_a_collection_without_any_outcome_is_a_failure_that_says_what_to_do(
    tmp_path: Path, scorer: str, why: str, advice: str
) -> None:
    where = files(tmp_path, 2)
    with endpoint(lambda body, times: Says(f"{body['model']} says {times}")) as stand_in:
        settings = {"base_url": stand_in.base_url, "experts": [{"name": name} for name in "abc"]}
        (tmp_path / "collect.yaml").write_text(yaml.safe_dump({**settings, "scorer": {"kind": scorer}}))
        code, said = command(tmp_path, "--out", str(where.out))
    assert code == 2
    assert not where.out.exists()
    assert why in said
    assert "no answer could be scored" in said
    assert advice in said
    assert "--rescore" in said


@pytest.mark.parametrize(
    ("scorer", "said"),
    [({"kind": "consensus"}, "needs three experts"), ({"kind": "consensus", "families": {"f": ["a", "z"]}}, "'z'")],
)
def test_a_consensus_that_cannot_be_is_refused(scorer: dict[str, Any], said: str) -> None:
    names = "ab" if "families" not in scorer else "abc"
    with pytest.raises(ValueError, match=said):
        CollectConfig.model_validate({"experts": [{"name": name} for name in names], "scorer": scorer})
