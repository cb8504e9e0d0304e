"""The two sides: bare `vllm serve` processes, and our server over the same models. Loopback only."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from coe_server.config.schema import SchedulingSettings
from coe_server.routing import artifact as artifacts
from coe_server.routing.manifest import CurveEntry, ExpertEntry, HandoverEntry, ScoreEntry
from tests.ports import free_port
from tests.routing.small_artifact import TEXTS, held_out, objective, small_artifact

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "demo/experts/generalist"
EXPERT, EMBEDDER, OTHER = "generalist", "embedder", "other"
CONTEXT_TOKENS = 256
KV_CACHE_BYTES = 64 << 20
# Arguments of the generating engine alone. The parser needs no special tokens; an untrained model, free to emit white
# space inside JSON, would never stop.
GENERATING_ARGS = {
    "enable_auto_tool_choice": True,
    "tool_call_parser": "pythonic",
    "structured_outputs_config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
}
START_SECONDS = 400.0
ENVIRONMENT = {
    **{"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    **{"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_COLOR": "0"},
}


@contextmanager
def bare(vllm: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """URLs of two bare `vllm serve`, one to generate and one to embed, started one after the other."""
    with ExitStack() as stack:
        urls = []
        for name, runner in ((EXPERT, "generate"), (EMBEDDER, "pooling")):
            port = free_port()
            command = [vllm, "serve", MODEL, "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
            command += ["--runner", runner, "--max-model-len", str(CONTEXT_TOKENS), "--enforce-eager"]
            for key, value in (GENERATING_ARGS if runner == "generate" else {}).items():
                command += [f"--{key.replace('_', '-')}", *([value] if isinstance(value, str) else [])]
            command += ["--max-num-seqs", str(SchedulingSettings().max_concurrency)]  # part of vLLM's fingerprint
            command += ["--kv-cache-memory-bytes", str(KV_CACHE_BYTES), "--distributed-executor-backend", "uni"]
            urls.append(f"http://127.0.0.1:{port}")
            environment = os.environ | ENVIRONMENT
            stack.enter_context(running(command, environment, folder / f"bare-{name}.log", f"{urls[-1]}/health"))
        yield urls[0], urls[1]


@contextmanager
def ours(vllm: Path, folder: Path, judged: bool = False) -> Iterator[str]:
    """URL of our server with the same two models, requested by name.

    `judged`: with a router, which chooses the generating one for `auto` and judges the first tokens of its answers.
    """
    port = free_port()
    experts: list[dict[str, Any]] = [
        {
            **{"name": name, "engine": "vllm", "model": str(MODEL), "preload": "device"},
            "args": {"max_model_len": CONTEXT_TOKENS, "runner": runner}
            | (GENERATING_ARGS if runner == "generate" else {}),
        }
        for name, runner in ((EXPERT, "generate"), (EMBEDDER, "pooling"))
    ]
    config = folder / "serve.yaml"
    settings: dict[str, Any] = {
        "http": {"port": port},
        "memory": {"device": "400MiB", "host": "4GiB"},
        "vllm": {"command": str(vllm), "kv_cache": KV_CACHE_BYTES, "platform": "cpu", "log_directory": str(folder)},
        "state_directory": str(folder / "state"),
        "experts": experts,
    }
    if judged:
        save_router(folder / "router")
        limits = {"context_tokens": CONTEXT_TOKENS, "vision": False}
        experts.append({"name": OTHER, "engine": "simulated", "weights_bytes": "1MiB", **limits})
        settings["router"] = {"artifact": str(folder / "router"), "handover": {"tokens": 4}}
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [Path(sys.executable).with_name("coe"), "serve", config]
    with running(command, dict(os.environ), folder / "ours.log", f"http://127.0.0.1:{port}/readyz"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def bare_program(command: str, model: Path, folder: Path) -> Iterator[str]:
    """URL of a program that serves one model by itself; `command` as of an expert with `engine: command`."""
    port = free_port()
    placeholders = {"{model}": str(model), "{port}": str(port), "{api_key}": "none", "{name}": EXPERT}
    words = [reduce(lambda word, one: word.replace(*one), placeholders.items(), word) for word in shlex.split(command)]
    with running([*words], dict(os.environ), folder / "bare-program.log", f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def ours_program(command: str, model: Path, folder: Path) -> Iterator[str]:
    """URL of our server with the same program as its expert."""
    port, config = free_port(), folder / "serve.yaml"
    expert: dict[str, Any] = {"name": EXPERT, "engine": "command", "command": command, "model": str(model)}
    expert |= {"preload": "device", "endpoints": ["chat", "completions", "messages"]}
    settings = {
        "http": {"port": port},
        "memory": {"device": "2GiB", "host": "100MiB"},
        "scheduling": {"max_generation_seconds": 600},  # some cases end only with the context
        "vllm": {"platform": "cpu"},
        "state_directory": str(folder / "state"),
        "experts": [expert],
    }
    config.write_text(json.dumps(settings))
    program = [Path(sys.executable).with_name("coe"), "serve", config]
    with running(program, dict(os.environ), folder / "ours.log", f"http://127.0.0.1:{port}/readyz"):
        yield f"http://127.0.0.1:{port}"


def save_router(folder: Path) -> None:
    """A router that prefers the generating expert, holds its first tokens, and is always sure of them.

    The other expert takes no image and no more tokens: it would answer what the first one must refuse.
    """
    known: dict[str, Any] = {"active_params_b": 1.0, "total_params_b": 1.0, "tools": True}
    entries = [
        ExpertEntry(name=EXPERT, context_tokens=None, vision=True, **known),
        ExpertEntry(name=OTHER, context_tokens=CONTEXT_TOKENS, vision=False, **known),
    ]
    scores = {
        name: ScoreEntry(score=score, prompts=9, standard_error=0.1) for name, score in ((EXPERT, 0.9), (OTHER, 0.5))
    }
    curve: dict[str, Any] = {"certainty": 0.0, "score": 0.0, "alone_certainty": 0.0}
    curves = [CurveEntry(tokens=4, intercept=30.0, alone_intercept=30.0, **curve)]
    earned = HandoverEntry(tokens=4, margin=0.0, share=0.1, gain=0.1, gain_ci95=(0.1, 0.1), shipped=True)
    mapping = dict.fromkeys((*TEXTS, "general"), EXPERT)
    artifact = small_artifact(
        experts=entries,
        score=dict.fromkeys(TEXTS, scores),
        overall=scores,
        objectives={"quality": objective(mapping, experts=[EXPERT, OTHER], handover=earned)},
        certainty={EXPERT: curves},
    )
    artifacts.save(artifact, replace(held_out(), corrections=np.zeros((2, 2), dtype=np.float32)), None, folder)


@contextmanager
def running(command: list[object], environment: dict[str, str], log: Path, ready_url: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(ready_url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{log.name}: the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
