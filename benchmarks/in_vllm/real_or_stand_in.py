"""A `vllm` command for servers with both kinds of engines: real vLLM for a model with a tokenizer, else the stand-in.

real_or_stand_in.py VLLM STAND_IN serve MODEL ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

vllm, stand_in, *words = sys.argv[1:]
if (Path(words[1]) / "tokenizer.json").exists():
    os.execv(vllm, [vllm, *words])
os.execv(sys.executable, [sys.executable, stand_in, *words])
