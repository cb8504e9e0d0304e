"""Adapters by their files: what they are, what is refused with a sentence, and whether they fit a base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coe_server.engines.adapter import RANKS, allowed_rank, misfit, read_adapter, slot_bytes, stamp_of
from coe_server.errors import ConfigError

from .small_adapter import HIDDEN, SHAPES, TENSORS, WIDE, make_adapter

DOWN = "model.layers.1.mlp.down_proj"


def test_rank_layers_and_size_are_read_from_its_files(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "sql", rank=2)
    found = read_adapter("sql", folder)
    assert (found.name, found.folder, found.rank) == ("sql", folder, 2)
    assert found.targets == ("down_proj", "q_proj")
    assert {one.path: (one.outputs, one.inputs) for one in found.layers} == SHAPES
    assert found.size_bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert misfit(found, TENSORS) is None


def test_the_largest_rank_of_its_layers_counts(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "sql", rank=2, rank_pattern={"down_proj": 24})
    assert read_adapter("sql", folder).rank == 24


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA is taken"),
        ({"use_dora": True}, "the adapter has DoRA, which vLLM does not take"),
        ({"bias": "all"}, "the adapter has biases (bias: all), which vLLM does not take"),
        ({"lora_bias": True}, "the adapter has biases (lora_bias)"),
        ({"modules_to_save": ["lm_head"]}, "the adapter has whole layers beside its low-rank matrices"),
        ({"alora_invocation_tokens": [1]}, "the adapter has Activated LoRA"),
        ({"layer_replication": [[0, 1]]}, "the adapter has repeated layers"),
        ({"use_bdlora": {"a": 1}}, "the adapter has block-diagonal LoRA"),
        ({"use_qalora": True}, "the adapter has QA-LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base"),
        ({"r": 0}, "r is 0; it must be a number from 1"),
        ({"r": "8"}, "r is '8'; it must be a number from 1"),
        ({"r": 1024}, "its rank is 1024; vLLM takes up to 512"),
        ({"lora_alpha": None}, "lora_alpha or target_modules is missing"),
        ({"rank_pattern": {"q_proj": "many"}}, "rank_pattern must have numbers from 1"),
        ({"rank_pattern": [1]}, "rank_pattern must have numbers from 1"),
    ],
)
def test_what_vllm_does_not_take_is_refused_with_a_sentence(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    folder = make_adapter(tmp_path / "sql", **config)
    with pytest.raises(ConfigError) as refused:
        read_adapter("sql", folder)
    assert told in str(refused.value)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"base_model.model.x.lora_magnitude_vector": (8,)}, "is DoRA's magnitudes"),
        ({"base_model.model.lm_head.weight": (32, 8)}, "is no low-rank matrix"),
        ({"base_model.model.x.lora_A.weight": (2, 8)}, "the matrices of layer 'x' do not belong together"),
        (
            {"base_model.model.x.lora_A.weight": (2, 8), "base_model.model.x.lora_B.weight": (8, 3)},
            "the matrices of layer 'x' do not belong together: (2, 8) and (8, 3)",
        ),
        (
            {"base_model.model.x.lora_A.weight": (2, 8, 1), "base_model.model.x.lora_B.weight": (8, 2, 1)},
            "the matrices of layer 'x' do not belong together",
        ),
    ],
)
def test_tensors_that_are_no_pair_of_matrices_are_refused(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_adapter("sql", make_adapter(tmp_path / "sql", more=tensors))
    assert told in str(refused.value)


def test_a_hostile_name_is_quoted_short_and_without_control_characters(tmp_path: Path) -> None:
    name = "\x1b]0;x\x07\nERROR all is lost" + "A" * 100_000
    for number, more in enumerate(({name: (2, 2)}, {f"{name}.lora_A.weight": (2, 8)})):
        with pytest.raises(ConfigError) as refused:
            read_adapter("sql", make_adapter(tmp_path / str(number), more=more))
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 1000
    for key in ("peft_type", "bias", "init_lora_weights", "r"):
        with pytest.raises(ConfigError) as refused:
            read_adapter("sql", make_adapter(tmp_path / key, **{key: name}))
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 1000
    found = read_adapter("sql", make_adapter(tmp_path / "fits", {name: (HIDDEN, WIDE)}))
    told = misfit(found, TENSORS)
    assert told is not None
    assert told.isprintable()
    assert len(told) < 1000


def test_an_adapter_without_matrices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no matrices"):
        read_adapter("sql", make_adapter(tmp_path / "sql", {}))


def test_a_pickle_is_refused_and_not_opened(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "sql")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"holds adapter_model\.bin, a pickle that may run code"):
        read_adapter("sql", folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-4]),
        lambda file: file.write_bytes(b"PK\x03\x04 this is a pickle"),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes((3).to_bytes(8, "little") + b"[1]"),
        lambda file: file.write_bytes((2).to_bytes(8, "little") + b"{}x" + b"[" * 100_000),
        lambda file: file.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
        lambda file: file.write_bytes((1 << 40).to_bytes(8, "little") + b"{}"),
        lambda file: file.write_bytes((4 << 20).to_bytes(8, "little") + b'{"a":[' + b"[]," * (4 << 20)),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Any) -> None:
    folder = make_adapter(tmp_path / "sql")
    damage(folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"is not a whole safetensors file|has no matrices"):
        read_adapter("sql", folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, " " * (2 << 20)])
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str) -> None:
    folder = make_adapter(tmp_path / "sql")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        read_adapter("sql", folder)


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ({DOWN: (HIDDEN, WIDE)}, None),
        ({DOWN: (HIDDEN, 2 * WIDE)}, "is for another base: its matrices for 'model.layers.1.mlp.down_proj' are for 12"),
        ({"model.layers.0.mlp.down_proj": (HIDDEN, WIDE)}, "changes layer 'model.layers.1.mlp.down_proj', which the"),
        ({f"language_model.{DOWN}": (HIDDEN, WIDE)}, None),
    ],
)
def test_shapes_decide_whether_it_fits_a_base(tmp_path: Path, base: dict[str, tuple[int, int]], told: str) -> None:
    found = read_adapter("sql", make_adapter(tmp_path / "sql", {DOWN: (HIDDEN, WIDE)}))
    fault = misfit(found, {f"{path}.weight": shape for path, shape in base.items()})
    assert fault is None if told is None else fault is not None and fault.startswith(told)


def test_a_quantized_base_is_taken_as_its_layers_are_packed(tmp_path: Path) -> None:
    found = read_adapter("sql", make_adapter(tmp_path / "sql", {DOWN: (HIDDEN, WIDE)}))
    assert misfit(found, {f"{DOWN}.qweight": (WIDE, 1), f"{DOWN}.scales": (1, HIDDEN)}) is None


def test_an_embeddings_matrices_are_compared_with_its_table(tmp_path: Path) -> None:
    path = "base_model.model.model.embed_tokens.lora_embedding_"
    folder = make_adapter(tmp_path / "sql", {}, more={f"{path}A": (2, 32), f"{path}B": (HIDDEN, 2)})
    assert misfit(read_adapter("sql", folder), TENSORS) is None


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_an_engine_starts_with_the_smallest_allowed_rank(rank: int, allowed: int) -> None:
    assert allowed_rank(rank) == allowed
    assert allowed in RANKS


def test_a_slot_has_matrices_for_every_linear_layer_of_the_base() -> None:
    linear = 2 * ((HIDDEN + HIDDEN) + (HIDDEN + WIDE)) + (32 + HIDDEN)
    assert slot_bytes(8, TENSORS) == 2 * 8 * linear


def test_a_stamp_changes_with_the_files(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "sql")
    before = stamp_of(folder)
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | {"lora_alpha": 99}))
    assert stamp_of(folder) != before
    (folder / "adapter_config.json").unlink()
    assert stamp_of(folder) == ""
