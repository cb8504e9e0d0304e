"""Rules of a tokenizer.json that could end the process, or never end, are refused before they are loaded."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from coe_server.errors import ConfigError, EmbeddingUnavailable
from coe_server.routing.embeddings import StaticEmbeddings
from coe_server.routing.tokens import LONGEST_TEXT, MOST_GROWTH

TABLE = np.ones((3, 4), dtype=np.float32)
WORDS = {"[UNK]": 0, "a": 1, "b": 2}
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def tokenizer(normalizer: Any = None, pre_tokenizer: Any = None, model: Any = None, **more: Any) -> str:
    words = {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"} if model is None else model
    nothing = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    rules = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": words}
    return json.dumps({"version": "1.0", **nothing, "added_tokens": [], **rules, **more})


def replaced(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def in_turn(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(rules)}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def charsmap(texts: bytes, nodes: int = 512) -> dict[str, Any]:
    blob = (4 * nodes).to_bytes(4, "little") + bytes(4 * nodes) + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


PUNCTUATION = [replaced(sign, f" {sign} ") for sign in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"]
LOWERCASE = {"type": "Lowercase"}
BOMBS = {
    "ten of one, and so on": in_turn(*[replaced("a", "a" * 10)] * 4),
    "two of one, and back": in_turn(*[replaced("b", "aa"), replaced("a", "b")] * 10),
    "two of one in capitals, and back": in_turn(*[replaced("a", "AA"), LOWERCASE] * 10),
    "three of two": in_turn(*[replaced("ab", "abab")] * 40),
    "Arabic, and back": in_turn(*[{"type": "NFKC"}, replaced("\u0644", "\ufdfa")] * 4),
    "nested": in_turn(in_turn(*[replaced("a", "a" * 40)] * 2), in_turn(replaced("a", "a" * 40))),
    "nothing into something": replaced("", "aaaa"),
    "an expression into more": replaced(r"\s+", "  ", "Regex"),
    "a long text": replaced("a", "a" * (LONGEST_TEXT + 1)),
    "a table of long texts": charsmap(b"x" * (MOST_GROWTH + 1) + b"\0"),
    "no table": charsmap(b"\xff\0"),
    "a table cut short": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    "a rule of tomorrow": {"type": "Python", "code": "1"},
    "no rule": [1],
    "too many": in_turn(*[LOWERCASE] * 1_000),
}


@pytest.mark.parametrize("normalizer", BOMBS.values(), ids=BOMBS)
def test_a_text_cannot_grow_without_bound(normalizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"static embeddings: tokenizer.json is not used: ") as caught:
        StaticEmbeddings.of(TABLE, tokenizer(normalizer))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "a*a*a*a*b", ".*.*=.*", r"(\s*)*x", "((", "a{1,999}{1,999}"])
@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder", "post_processor"])
def test_an_expression_that_may_take_exponential_time_is_not_used(pattern: str, part: str) -> None:
    rule = split(pattern) if part == "pre_tokenizer" else replaced(pattern, "", "Regex")
    with pytest.raises(ConfigError, match="is not known to take linear time"):
        StaticEmbeddings.of(TABLE, tokenizer(**{part: rule}))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"type": "WordPiece", "vocab": WORDS, "unk_token": "[UNK]", "max_input_chars_per_word": 10**9}, "max_input"),
        (
            {"type": "WordPiece", "vocab": WORDS, "unk_token": "[UNK]", "continuing_subword_prefix": "#" * 10**6},
            "a text",
        ),
        ({"type": "Python"}, "the model 'Python' is not one of"),
        ([], "the model None is not one of"),
        ({"type": "WordLevel", "vocab": {"a": 1}, "unk_token": "[UNK]"}, "is not valid: WordLevel"),
        ({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}, "is not valid: "),
    ],
)
def test_a_model_is_one_that_takes_linear_time_and_knows_every_text(model: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        StaticEmbeddings.of(TABLE, tokenizer(model=model))


@pytest.mark.parametrize("text", ["", "[", "3", "[" * 100_000, "null", '{"model": ' + '{"a": ' * 50_000])
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"static embeddings: tokenizer.json is not"):
        StaticEmbeddings.of(TABLE, text)


BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
USUAL = {
    "BERT": (BERT, {"type": "BertPreTokenizer"}),
    "BERT with signs apart": (
        in_turn(
            BERT,
            *PUNCTUATION,
            replaced(r"\s+", " ", "Regex"),
            {"type": "Strip", "strip_left": True, "strip_right": True},
        ),
        {"type": "BertPreTokenizer"},
    ),
    "XLM-R": (
        in_turn(charsmap("ﷺ".encode() + b"\0"), replaced(" {2,}", " ", "Regex")),
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    ),
    "ALBERT": (
        in_turn(replaced("``", '"'), replaced("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"}, LOWERCASE),
        {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}]},
    ),
    "GPT-2": (None, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}),
    "an expression of GPT-2's": ({"type": "NFC"}, {"type": "Sequence", "pretokenizers": [split(GPT_2)]}),
    "Llama": (in_turn({"type": "Prepend", "prepend": "▁"}, replaced(" ", "▁")), None),
    "digits": (
        None,
        {
            "type": "Sequence",
            "pretokenizers": [split(r"\p{N}{1,3}"), split("[一-龥]+"), {"type": "Digits", "individual_digits": True}],
        },
    ),
}


@pytest.mark.parametrize(("normalizer", "pre_tokenizer"), USUAL.values(), ids=USUAL)
def test_the_rules_of_usual_models_are_used(normalizer: Any, pre_tokenizer: Any) -> None:
    table = StaticEmbeddings.of(TABLE, tokenizer(normalizer, pre_tokenizer))
    assert table.embed(["a b"]).shape == (1, 4)


def test_a_table_that_leads_outside_itself_is_found_when_it_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer.json is not valid: index out of bounds"):
        StaticEmbeddings.of(TABLE, tokenizer(charsmap(b"a\0", nodes=1)))


class PanicException(BaseException):
    """As Rust's panics reach Python."""


class Panics:
    """A tokenizer whose rule leads outside of its own table for this text."""

    def encode_batch_fast(self, *args: object, **named: object) -> None:
        raise PanicException("index out of bounds")


def test_a_rule_that_fails_on_one_text_fails_that_request_alone() -> None:
    table = StaticEmbeddings(TABLE, tokenizer(), Panics())  # type: ignore[arg-type]  # it stands in for one
    with pytest.raises(EmbeddingUnavailable, match=r"tokenizer.json fails: index out of bounds"):
        table.embed(["a"])
