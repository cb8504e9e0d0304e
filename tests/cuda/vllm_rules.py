"""vLLM's own checks of a command line, a card and a URL. Runs in vLLM's environment, one process for all tests.

    python vllm_rules.py SOCKET        answers one JSON line for each JSON line; ends when its standard input is closed

Importing vLLM takes 20 s, so stand-in engines query this process through `rules.py` instead.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
from types import SimpleNamespace
from typing import Any

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.multimodal.media.connector import MediaConnector
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory
from vllm.v1.worker.utils import request_memory

WANTED = (
    *("model_tag", "uds", "host", "port", "served_model_name", "kv_cache_memory_bytes", "gpu_memory_utilization"),
    *("max_model_len", "max_num_seqs", "enable_sleep_mode", "enforce_eager", "tensor_parallel_size"),
    *("pipeline_parallel_size", "data_parallel_size", "api_server_count", "worker_cls", "worker_extension_cls"),
    *("sleep_mode_offload_cudagraph", "enable_nccl_comm_suspend", "numa_bind", "distributed_executor_backend"),
    *("allowed_media_domains", "disable_uvicorn_access_log", "enable_lora", "max_loras", "max_lora_rank"),
)
PARSER = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))


def parse(words: list[str]) -> dict[str, Any]:
    """The options that vLLM's parser reads from the words after `serve`, as far as we use them."""
    parsed = PARSER.parse_args(words)
    validate_parsed_serve_args(parsed)
    return {name: getattr(parsed, name, None) for name in WANTED}


def check_free(total: int, free: int, utilization: float) -> int:
    snapshot = SimpleNamespace(total_memory=total, free_memory=free, device_="cuda")
    return int(request_memory(snapshot, SimpleNamespace(gpu_memory_utilization=utilization)))


def check_kv_cache(available: int, token_bytes: int, max_model_len: int) -> None:
    _check_enough_kv_cache_memory(
        available, lambda: token_bytes * max_model_len, max_model_len, lambda memory: memory // token_bytes
    )


class Fetched(Exception):
    """vLLM would ask the network."""


class NoNetwork:
    def get_bytes(self, url: str, **options: Any) -> None:
        raise Fetched


class Media:
    def get_max_bytes(self) -> int:
        return 1

    def load_base64(self, media_type: str, data: str) -> str:
        return "read"


def fetched(domains: list[str], urls: list[str]) -> dict[str, str]:
    """What becomes of each URL."""
    connector = MediaConnector(connection=NoNetwork(), allowed_media_domains=domains)

    def outcome(url: str) -> str:
        try:
            return str(connector.load_from_url(url, Media()))
        except Fetched:
            return "fetched"
        except Exception:  # noqa: BLE001  vLLM's code: whatever it raises, it does not fetch
            return "refused"

    return {url: outcome(url) for url in urls}


ACTIONS = {"parse": parse, "check_free": check_free, "check_kv_cache": check_kv_cache, "fetched": fetched}


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            asked = json.loads(line)
            try:
                answer: dict[str, Any] = {"value": ACTIONS[asked.pop("what")](**asked)}
            except (Exception, SystemExit) as error:  # noqa: BLE001  vLLM's code: its error is the answer
                answer = {"error": f"{type(error).__name__}: {error}"}
            self.wfile.write(json.dumps(answer, default=str).encode() + b"\n")


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    with socketserver.ThreadingUnixStreamServer(sys.argv[1], Handler) as server:
        print("ready", flush=True)  # noqa: T201  its parent waits for this
        server.serve_forever()
