"""Checks an expert's `args` for `vllm serve` and turns them into command-line words. Pure.

vLLM's parser accepts unambiguous prefixes of options, `no-` before a switch, and dashes for underscores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from coe_server.errors import ConfigError

ArgValue = bool | int | float | str | Sequence[object] | Mapping[str, object] | None

WIDTH = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")

_OURS = (
    *("model", "served_model_name", "uds", "host", "port", "root_path", "api_key", "api_server_count", "grpc"),
    *("grpc_port", "kv_cache_memory_bytes", "worker_cls", "worker_extension_cls", "enable_sleep_mode"),
    *("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh"),
)
_REFUSED = (
    {"allowed_media_domains": "give experts.{expert}.allowed_media_domains: [HOST, ...] instead"}
    | {"config": "give the options of that file here, by name"}
    | dict.fromkeys(
        (
            *("headless", "nnodes", "node_rank", "master_addr", "master_port", "data_parallel_address"),
            *("data_parallel_backend", "data_parallel_rpc_port", "data_parallel_rank", "data_parallel_start_rank"),
            *("data_parallel_size_local", "data_parallel_hybrid_lb", "data_parallel_external_lb"),
            *("data_parallel_multi_port_external_lb", "data_parallel_supervisor_port"),
        ),
        "is not supported: an expert runs on one machine, in one `vllm serve`",
    )
    | {"prefill_context_parallel_size": "is not supported, use tensor_parallel_size"}
    | dict.fromkeys(
        ("kv_offloading_size", "kv_offloading_backend"),
        "is not supported: such an engine crashes after a wake, and its host memory would not be counted",
    )
    | dict.fromkeys(
        ("cpu_offload_gb", "cpu_offload_params", "offload_backend"),
        "is not supported: its host memory would not be counted",
    )
)
# Options that are read here or have a default here: an abbreviation would be missed.
_READ = (
    *WIDTH,
    *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "runner", "dtype"),
    *("enable_lora", "lora_modules", "max_loras", "max_cpu_loras", "max_lora_rank"),
    *("distributed_executor_backend", "enforce_eager", "numa_bind", "sleep_mode_offload_cudagraph"),
)
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_.-]+)?")


def check_args(expert: str, args: Mapping[str, ArgValue]) -> None:
    """Raise `ConfigError` for the first option that must not be set or is abbreviated."""
    for key, value in args.items():
        if fault := _fault(expert, key, value):
            raise ConfigError(f"experts.{expert}.args.{key}: {fault}")


def option_name(key: str) -> str:
    """`max-model-len` -> `max_model_len`; a field name after a dot is unchanged."""
    option, dot, field = key.partition(".")
    return option.replace("-", "_") + dot + field


def named(args: Mapping[str, ArgValue]) -> dict[str, ArgValue]:
    return {option_name(key): value for key, value in args.items()}


def width_of(args: Mapping[str, ArgValue]) -> int:
    """The number of cards of an engine with these options: one for each rank of each copy."""
    return prod(_count(args, name) for name in WIDTH)


def copies_of(args: Mapping[str, ArgValue]) -> int:
    return _count(args, "data_parallel_size")


def words_of(args: Mapping[str, ArgValue]) -> Iterator[str]:
    """Options, by `option_name`, as command-line words; an option with value None is left out."""
    for name, value in args.items():
        option, dot, field = name.partition(".")
        yield from _words(option.replace("_", "-") + dot + field, value)


def _fault(expert: str, key: str, value: ArgValue) -> str | None:
    if _KEY.fullmatch(key) is None:
        return "is not an option name; write it without leading dashes, as in max_model_len"
    name = option_name(key).partition(".")[0]
    name = name.removeprefix("no_")
    if name in _READ:
        return None if name not in WIDTH or _is_count(value) else f"{value!r} is not a number from 1"
    for ours in _OURS:
        if ours.startswith(name):
            return "is set by the server, leave it out" if ours == name else f"vLLM takes it for {ours}, leave it out"
    for refused, why in _REFUSED.items():
        if refused.startswith(name) and not (refused == "prefill_context_parallel_size" and value == 1):
            said = why.format(expert=expert)
            return said if refused == name else f"vLLM takes it for {refused}: {said}"
    full = next((full for full in _READ if full.startswith(name)), None)
    return full and f"write it in full: {full}"


def _count(args: Mapping[str, ArgValue], name: str) -> int:
    value = named(args).get(name)
    return value if _is_count(value) and isinstance(value, int) else 1


def _is_count(value: ArgValue) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _words(name: str, value: ArgValue) -> list[str]:
    match value:
        case None:
            return []
        case True:
            return [f"--{name}"]
        case False:
            return [f"--no-{name}"]
        case str() | int() | float():
            return [f"--{name}", str(value)]
        case Mapping():
            return [f"--{name}", json.dumps(value)]
    return [f"--{name}", *(json.dumps(one) if isinstance(one, Mapping | list) else str(one) for one in value)]
