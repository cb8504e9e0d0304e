"""The rules by which vLLM 0.32 refuses to start: vLLM's own code if it is installed, else our copy of each rule.

Each rule names its source, relative to the folder of the wheel's package `vllm`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "NVIDIA_PRETEND_RULES"  # the socket of vllm_rules.py
PYTHON = Path(__file__).parents[2] / ".venv-vllm/bin/python"
GIB = 1 << 30


class Refused(Exception):
    """vLLM ends with this error."""


@contextmanager
def rules_of_vllm(folder: Path) -> Iterator[dict[str, str]]:
    """Environment that makes stand-ins use vLLM's own rules; empty if vLLM is not installed."""
    if not PYTHON.exists():
        yield {}
        return
    place = folder / "rules.sock"
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    words = [str(PYTHON), str(Path(__file__).with_name("vllm_rules.py")), str(place)]
    with (
        (folder / "rules.log").open("wb") as log,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline(), (folder / "rules.log").read_text()
        yield {VARIABLE: str(place)}
        process.stdin.close()
        process.wait(30)


def parse(words: list[str]) -> dict[str, Any]:
    """The options after `vllm serve`. Raises `Refused` where vLLM's parser exits."""
    return dict(_asked("parse", words=words) if VARIABLE in os.environ else _parse(words))


def fetched(domains: Sequence[str], urls: Sequence[str]) -> dict[str, str]:
    """What becomes of each URL where clients may load from these domains: fetched, read or refused. Needs vLLM."""
    return dict(_asked("fetched", domains=domains, urls=urls))


def check_free(total: int, free: int, utilization: float) -> None:
    """Require that share of the card to be free after context and NCCL: v1/worker/utils.py, request_memory."""
    if VARIABLE in os.environ:
        _asked("check_free", total=total, free=free, utilization=utilization)
    elif free < (wanted := math.ceil(total * utilization)):
        raise Refused(
            f"ValueError: Free memory on device cuda ({free / GIB:.2f}/{total / GIB:.2f} GiB) on startup is less than "
            f"desired GPU memory utilization ({utilization}, {wanted / GIB:.2f} GiB)."
        )


def check_kv_cache(available: int, token_bytes: int, max_model_len: int) -> None:
    """Require a cache for one request of full length: v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory."""
    if VARIABLE in os.environ:
        _asked("check_kv_cache", available=available, token_bytes=token_bytes, max_model_len=max_model_len)
    elif token_bytes * max_model_len > available:
        raise Refused(f"ValueError: To serve at least one request with the model's max seq len ({max_model_len})")


def graph_sizes(max_num_seqs: int | None) -> int:
    """How many batch sizes are captured: config/vllm.py, _set_cudagraph_sizes; 256 sequences where none are given."""
    largest = min((max_num_seqs or 256) * 2, 512)
    return len([size for size in (1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)) if size <= largest])


def _asked(what: str, **given: Any) -> Any:
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(os.environ[VARIABLE])
        wire.sendall(json.dumps({"what": what, **given}).encode() + b"\n")
        answer = json.loads(wire.makefile("rb").readline())
    if "error" in answer:
        raise Refused(answer["error"])
    return answer["value"]


def _parse(words: list[str]) -> dict[str, Any]:
    """Parse the flags that we rely on, with vLLM's defaults, and with prefixes and underscores as vLLM accepts them."""
    parser = argparse.ArgumentParser(prog="vllm serve", exit_on_error=False)
    parser.add_argument("model_tag")
    for flag in ("uds", "worker-cls", "worker-extension-cls", "distributed-executor-backend"):
        parser.add_argument(f"--{flag}")
    for flag in ("served-model-name", "allowed-media-domains"):
        parser.add_argument(f"--{flag}", nargs="+")
    for flag in ("kv-cache-memory-bytes", "max-num-seqs", "api-server-count", "max-loras", "max-lora-rank"):
        parser.add_argument(f"--{flag}", type=int)
    for flag in ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size"):
        parser.add_argument(f"--{flag}", type=int, default=1)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    parser.add_argument("--max-model-len", type=lambda text: -1 if text == "auto" else int(text))
    for flag in ("enable-sleep-mode", "enforce-eager", "sleep-mode-offload-cudagraph", "enable-nccl-comm-suspend"):
        parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=False)
    for flag in ("disable-uvicorn-access-log", "numa-bind", "enable-lora"):
        parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=False)
    spelled = [word.replace("_", "-") if word.startswith("--") and "=" not in word else word for word in words]
    try:
        return vars(parser.parse_args(spelled))
    except (argparse.ArgumentError, SystemExit) as error:
        raise Refused(f"vllm serve: error: {error}") from error
