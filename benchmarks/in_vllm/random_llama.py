"""Makes a Llama of random weights with its own tokenizer; runs in vLLM's environment.

python random_llama.py FOLDER MEGABYTES
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN = 1024
LAYER_MEGABYTES = 22.5  # in bfloat16, with the sizes below
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def main(folder: str, megabytes: int) -> None:
    """Write model and tokenizer. The tokenizer has one token for each byte, so any text can be answered."""
    letters = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    byte_pairs = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    byte_pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_pairs.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_pairs, eos_token="<|end|>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=HIDDEN,
        intermediate_size=2816,
        num_hidden_layers=round(megabytes / LAYER_MEGABYTES),
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        eos_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.05,  # large enough that the answer depends on the prompt
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
