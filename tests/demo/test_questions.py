"""The demo's questions: right answers, splits that share nothing, and committed files that the script still makes."""

import json
import re
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
from grammars import french, general, python, sql, units
from grammars.draft import Draft
from questions import CATEGORIES, SHARES, SPLITS, TOPICS, questions, split_of, write_prompts

DEMO = Path(__file__).parents[2] / "demo"
EXPERTS = ("french", "python", "units", "sql", "generalist")
FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
)
DRAWS = 10_000


@pytest.fixture(scope="module", params=TOPICS)
def drafts(request: pytest.FixtureRequest) -> tuple[str, list[Draft]]:
    """A topic and many of its drafts."""
    rng = Random(7)
    return request.param, [TOPICS[request.param](rng) for _ in range(DRAWS)]


def answer_to(topic: str, wanted: str) -> str:
    """The answer to the first drawn question that contains these words."""
    rng = Random(1)
    whole_words = re.compile(rf"{re.escape(wanted)}(?!\w)")
    drawn = (TOPICS[topic](rng) for _ in range(1_000_000))
    return next(draft.answer for draft in drawn if whole_words.search(draft.prompt))


@pytest.mark.parametrize("topic", sorted(TOPICS.keys() - {"units"}))  # there the answer also depends on the number
def test_one_meaning_has_one_answer(topic: str) -> None:
    rng = Random(5)
    answers: dict[str, str] = {}
    for draft in (TOPICS[topic](rng) for _ in range(DRAWS)):
        assert answers.setdefault(draft.key, draft.answer) == draft.answer


def test_one_prompt_has_one_answer_and_one_split(drafts: tuple[str, list[Draft]]) -> None:
    topic, drawn = drafts
    seen: dict[str, tuple[str, str]] = {}
    for draft in drawn:
        found = draft.answer, split_of(topic, draft.key)
        assert seen.setdefault(draft.prompt, found) == found


def test_no_prompt_occurs_in_two_topics() -> None:
    prompts = {topic: {row.prompt for split in SPLITS for row in questions(topic, split, 300)} for topic in TOPICS}
    assert len(set().union(*prompts.values())) == sum(len(found) for found in prompts.values())


def test_splits_share_no_meaning_and_no_prompt(drafts: tuple[str, list[Draft]]) -> None:
    topic, drawn = drafts
    keys = {split: {d.key for d in drawn if split_of(topic, d.key) == split} for split in SPLITS}
    prompts = {split: {row.prompt for row in questions(topic, split, 300)} for split in SPLITS}
    for found in (keys, prompts):
        assert all(found.values())
        assert len(set().union(*found.values())) == sum(len(members) for members in found.values())


def test_shares_are_percent() -> None:
    assert sum(SHARES.values()) == 100


@pytest.mark.parametrize("topic", TOPICS)
def test_the_same_seed_makes_the_same_questions_and_another_seed_others(topic: str) -> None:
    assert questions(topic, "train", 50, seed=3) == questions(topic, "train", 50, seed=3)
    assert questions(topic, "train", 50, seed=3) != questions(topic, "train", 50, seed=4)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_has_no_constant_prefix_and_several_phrasing_families(topic: str) -> None:
    rows = questions(topic, "router", 200)
    assert len({row.prompt.split()[0] for row in rows}) >= 5
    assert len({row.group for row in rows}) >= 4


def test_a_conversion_and_its_inverse_are_in_one_split() -> None:
    rng = Random(3)
    splits: dict[frozenset[str], set[str]] = {}
    for draft in (units.draw(rng) for _ in range(DRAWS)):
        pair = frozenset(word for word in re.findall(r"\w+", draft.prompt) if word in draft.key.split())
        splits.setdefault(pair, set()).add(split_of("units", draft.key))
    assert all(len(pair) == 2 and len(found) == 1 for pair, found in splits.items())


@pytest.mark.parametrize(
    ("topic", "wanted", "answer"),
    [
        ("french", "my beautiful broken star", "ma belle étoile cassée"),
        ("french", "some new trees", "de nouveaux arbres"),
        ("french", "the black bird", "l'oiseau noir"),
        ("french", "this old tree", "ce vieil arbre"),
        ("french", "my church", "mon église"),
        ("french", "two grey horses", "deux chevaux gris"),
        ("python", "the sum of the squares of the even `prices`", "sum(n ** 2 for n in prices if n % 2 == 0)"),
        ("python", "the `ages` in reverse", "ages[::-1]"),
        ("python", "the last 3 `scores`", "scores[-3:]"),
        (
            "sql",
            "the number of orders with status paid, for each customer",
            "SELECT customer, COUNT(*) FROM orders WHERE status = 'paid' GROUP BY customer",
        ),
        ("general", "Which day comes two days after Saturday", "Monday"),
        ("general", "Which month comes two months before January", "November"),
        ("general", "Is a horse larger than a mouse", "horse"),
        ("general", "Which is smaller, a horse or a mouse", "mouse"),
    ],
)
def test_answers_are_those_worked_out_by_hand(topic: str, wanted: str, answer: str) -> None:
    assert answer_to(topic, wanted) == answer


@pytest.mark.parametrize(
    ("source", "target", "factor"),
    [("kilometres", "metres", "1000"), ("grams", "kilograms", "0.001"), ("hectolitres", "centilitres", "10000")],
)
def test_conversions_multiply_by_the_known_factor(source: str, target: str, factor: str) -> None:
    rng = Random(1)
    drawn = (units.draw(rng) for _ in range(DRAWS))
    asked = [d for d in drawn if f" {source} to {target}" in d.prompt]
    assert asked
    for draft in asked:
        value = Decimal(draft.prompt.removeprefix("Convert ").split()[0])
        number, unit = draft.answer.split()
        assert (Decimal(number), unit) == (value * Decimal(factor), target)


def test_python_answers_run_and_sql_answers_name_only_known_tables() -> None:
    rng = Random(2)
    for _ in range(500):
        code = python.draw(rng).answer
        names = {name: [4, 2, 3, 5, 6, 7, 8, 9, -10, 0, 10, -3, -6, -9] for name in python.NAMES}
        eval(code, {}, names)  # our own grammar's text, nothing a user sent
        assert sql.draw(rng).answer.split(" FROM ")[1].split()[0] in sql.TABLES


def test_every_french_noun_and_every_fact_is_listed_once() -> None:
    nouns = [noun[0] for noun in french.NOUNS]
    assert len(set(nouns)) == len(nouns)
    for facts, phrasings in general.FACTS.values():
        assert len({item for item, _ in facts}) == len(facts)
        assert len(set(phrasings)) == len(phrasings)


def test_the_committed_prompt_files_are_what_the_script_makes(tmp_path: Path) -> None:
    for made in write_prompts(tmp_path):
        assert made.read_text(encoding="utf-8") == (DEMO / "data" / made.name).read_text(encoding="utf-8")


def test_the_prompt_files_have_the_promised_rows() -> None:
    for name, per_topic in (("train.prompts.jsonl", 200), ("held_out.prompts.jsonl", 60)):
        rows = [json.loads(line) for line in (DEMO / "data" / name).read_text(encoding="utf-8").splitlines()]
        assert [sum(row["category"] == CATEGORIES.get(topic, topic) for row in rows) for topic in TOPICS] == [
            per_topic
        ] * len(TOPICS)
        assert len({row["prompt_id"] for row in rows}) == len(rows)
        assert set(rows[0]) == {"prompt_id", "prompt", "answer", "category", "group"}


@pytest.mark.parametrize("name", EXPERTS)
def test_every_expert_has_the_files_it_loads_from(name: str) -> None:
    folder = DEMO / "experts" / name
    assert [file for file in FILES if not (folder / file).is_file()] == []
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["vocab_size"] % 64 == 0
    assert config["head_dim"] % 32 == 0
    assert config["eos_token_id"] == generation["eos_token_id"]


def test_the_experts_weigh_under_20_megabytes_and_hold_no_pickle() -> None:
    files = [path for path in (DEMO / "experts").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < 20e6
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}
