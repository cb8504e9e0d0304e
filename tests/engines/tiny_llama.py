"""Makes a Llama of random weights with its own tokenizer, without torch, whose import takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
END = "<|end|>"
HIDDEN, WIDE, LAYERS, HEADS, KEY_HEADS = 256, 512, 4, 4, 2
KEYS = KEY_HEADS * HIDDEN // HEADS
SPREAD = 0.2  # of the weights: so large that the answer depends on the prompt
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}


def tiny_llama(folder: Path) -> Path:
    """The folder, with 5 MB of weights in it."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in LAYER.items()}
    shapes |= {"model.embed_tokens": (_tokenizer(folder), HIDDEN), "model.norm": (HIDDEN,)}
    numbers = np.random.default_rng(0)
    tensors = {f"{name}.weight": _weights(numbers, shape) for name, shape in shapes.items()}
    (folder / "model.safetensors").write_bytes(_safetensors(tensors))
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"},
        **{"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "head_dim": HIDDEN // HEADS},
        **{"num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "max_position_embeddings": 1024},
        **{"vocab_size": shapes["model.embed_tokens"][0], "tie_word_embeddings": True, "hidden_act": "silu"},
        **{"eos_token_id": 0, "bos_token_id": None, "rms_norm_eps": 1e-6},
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _tokenizer(folder: Path) -> int:
    """Write it; the number of its tokens."""
    byte_pairs = Tokenizer(models.BPE())
    byte_pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_pairs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[END], initial_alphabet=alphabet)
    byte_pairs.train_from_iterator(["the quick brown fox jumps over the lazy dog"], trainer)
    byte_pairs.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return byte_pairs.get_vocab_size()


def _weights(numbers: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    is_of_a_norm = len(shape) == 1
    return np.ones(shape, np.float32) if is_of_a_norm else SPREAD * numbers.standard_normal(shape, np.float32)


def _safetensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A file of these tensors in 16 bits: bfloat16 is the first half of float32, and numpy does not know it."""
    told: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        told[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": (len(data), len(data) + len(raw))}
        data += raw
    header = json.dumps(told).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data
