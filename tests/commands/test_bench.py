"""`coe bench` against a server of our own: what it counts, what it prints, how it ends."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.commands.load import Answer, Measured, Plan, made_up_questions, read_questions, send_load
from coe_server.errors import ConfigError
from tests.http.server import running_server
from tests.http.test_api import Breaking, simulated
from tests.http.test_failure import EVENTS, Says
from tests.test_cli import coe


@pytest.fixture(scope="module")
def url():
    with running_server({"math": simulated("math")}) as server:
        yield f"http://127.0.0.1:{server.port}/v1"


def test_every_answer_is_counted_with_its_tokens(url, tmp_path):
    (tmp_path / "prompts").write_text('{"prompt": "one two"}\nthree four\n')
    words = ("--model", "math", "--requests", "6", "--concurrency", "2", "--prompts", tmp_path / "prompts", "--json")
    done = coe("bench", url, *words)
    found = json.loads(done.stdout)
    assert (found["requests"], found["answered"], found["errors"]) == (6, 6, {})
    assert found["first_token_ms"]["p50"] > 0
    assert found["tokens_per_second"] * found["seconds"] == pytest.approx(6 * 4, rel=0.05)  # "math answers: one two"
    assert found["per_token_ms"]["max"] >= found["per_token_ms"]["p50"] > 0


def test_a_rate_and_a_duration_end_by_themselves_and_a_person_gets_a_table(url):
    done = coe("bench", f"{url}/chat/completions", "--model", "math", "--rate", "50", "--duration", "0.5")
    assert done.returncode == 0
    assert "requests/s" in done.stdout
    assert "first token, ms" in done.stdout


def test_errors_are_counted_by_their_code_and_nothing_answered_is_exit_code_1(url):
    done = coe("bench", url, "--model", "gone", "--requests", "3", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["errors"] == {"404 model_not_found": 3}
    unanswered = coe("bench", "http://127.0.0.1:1/v1", "--requests", "1")
    assert unanswered.returncode == 1
    (line,) = unanswered.stdout.split("\n")[:-1]  # no table of nothing, and no line broken in a file
    assert line.startswith("0 of 1 answered in ")
    assert line.endswith("; errors: 1 x cannot connect: connection refused")
    assert "has no path" not in unanswered.stderr


def test_an_address_without_a_path_that_answers_nothing_is_named(url):
    address = url.removesuffix("/v1")
    done = coe("bench", address, "--requests", "1")
    assert done.returncode == 1
    assert done.stderr.strip() == f"coe: URL: '{address}' has no path; most servers have OpenAI's API at /v1"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("127.0.0.1:8080",), "does not start with http"),
        (("http://x/v1", "--rate", "0"), "--rate: 0.0 is not a number above 0"),
        (("http://x/v1", "--rate", "nan"), "--rate: nan is not a number above 0"),
        (("http://x/v1", "--duration", "nan"), "--duration: nan is not a number above 0"),
        (("http://x/v1", "--duration", "inf"), "--duration: inf is not a number above 0"),
        (("http://x/v1", "--requests", "0"), "'--requests'"),
        (("http://x/v1", "--rate", "5", "--concurrency", "8"), "give one of them"),
        (("http://x/v1", "--prompts", "/nowhere"), "--prompts: /nowhere cannot be read"),
    ],
)
def test_a_mistake_is_a_sentence(words, sentence):
    done = CliRunner().invoke(app, ["bench", *words])
    assert done.exit_code == 2
    assert sentence in done.stderr


def test_figures_are_of_whole_answers_alone():
    measured = Measured([Answer(None, 0.1, 0.4, (0.1, 0.2)), Answer("broken off", 0.001, 0.002)], seconds=2.0)
    found = measured.as_json()
    assert (found["requests_per_second"], found["tokens_per_second"]) == (0.5, 1.5)
    assert found["first_token_ms"]["p50"] == 100.0
    assert found["per_token_ms"] == {"p50": 100.0, "p90": 200.0, "p99": 200.0, "max": 200.0}
    assert found["errors"] == {"broken off": 1}
    assert made_up_questions(3) == made_up_questions(3)


def test_of_a_hundred_answers_one_is_slower_than_the_99th_percentile():
    measured = Measured([Answer(None, None, number / 1000) for number in range(1, 101)], seconds=1.0)
    assert measured.as_json()["answer_ms"] == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def said(*events):
    return Says(200, *(b"data: " + event + b"\n\n" for event in events), headers=EVENTS)


WORD = b'{"choices":[{"delta":{"content":"bon"}}]}'
ODD = said(
    *(WORD, b"null", b"[]", b"5", b'{"choices":5}', b'{"choices":[null,{"delta":"x"}]}', b'{"error":"no"}', b"[DONE]")
)
NO_ERROR = said(b'{"error":null,"choices":[{"delta":{"content":"bon"}}]}', b"[DONE]")
THOUGHT = said(
    *(b'{"choices":[{"delta":{"%s":"hm"}}]}' % kind for kind in (b"reasoning_content", b"reasoning")), b"[DONE]"
)
WHOLE = Says(200, b'{"choices":[{"message":{"content":"bon"}}]}')


@pytest.mark.parametrize(
    ("answer", "errors", "tokens"),
    [(ODD, ["engine_died"], 1), (NO_ERROR, [], 1), (THOUGHT, [], 2), (WHOLE, ["not a stream of events"], 0)],
    ids=["odd", "no error", "thought", "whole"],
)
def test_what_other_servers_say_is_counted_and_never_a_traceback(answer, errors, tokens):
    with running_server({"a": Breaking("a", [answer])}) as server:
        url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
        plan = Plan(url, "a", made_up_questions(1), requests=1)
        measured = asyncio.run(send_load(plan, lambda _: None))
    (answered,) = measured.answers
    assert ([answered.error] if answered.error else [], answered.tokens) == (errors, tokens)


def test_conversations_are_sent_as_they_are_and_plain_lines_are_prompts(tmp_path):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}]
    (tmp_path / "p.txt").write_text(f'{json.dumps({"messages": talk})}\n\n{{"prompt": "Two?"}}\nThree?\n17\n')
    asked = [talk, *([{"role": "user", "content": text}] for text in ("Two?", "Three?", "17"))]
    assert read_questions(tmp_path / "p.txt") == asked


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path, name):
    (tmp_path / name).write_text('{"prompt": "One?"}\r\n', encoding="utf-8-sig", newline="")
    assert read_questions(tmp_path / name) == [[{"role": "user", "content": "One?"}]]


@pytest.mark.parametrize(
    ("name", "line", "sentence"),
    [
        ("p.txt", '{"text": "Two?"}', "line 3 has neither a text 'prompt' nor a list of 'messages'"),
        ("p.jsonl", '{"messages": []}', "line 3 has neither"),
        ("p.jsonl", '{"prompt": "half', "line 3 is not a JSON object"),
    ],
)
def test_a_line_that_asks_nothing_is_refused_with_its_number(tmp_path, name, line, sentence):
    (tmp_path / name).write_text(f'{{"prompt": "One?"}}\n\n{line}\n')
    with pytest.raises(ConfigError, match=sentence):
        read_questions(tmp_path / name)
