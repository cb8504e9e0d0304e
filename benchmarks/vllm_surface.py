"""Checks a vLLM wheel for everything that we rely on: flags, endpoints, environment variables, classes and functions.

    pip download --no-deps vllm==0.33.0
    python -m benchmarks.vllm_surface vllm-0.33.0-….whl      prints what changed since our version
    python -m benchmarks.vllm_surface FOLDER --write         records an installed `vllm` as our version

The wheel's source is read, never run. Exit code 1 if anything is gone or its source changed. Changed code may behave
as before: each line names the file to read.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

KNOWN = Path(__file__).with_suffix(".json")

FLAGS = (  # each is a member of the class from which vLLM makes its command line
    *("allowed_media_domains", "compilation_config", "data_parallel_size", "distributed_executor_backend", "dtype"),
    *("enable_lora", "enable_nccl_comm_suspend", "enable_sleep_mode", "enforce_eager", "gpu_memory_utilization"),
    *("kv_cache_memory_bytes", "max_cpu_loras", "max_lora_rank", "max_loras", "max_model_len", "max_num_seqs"),
    *("numa_bind", "pipeline_parallel_size", "served_model_name", "sleep_mode_offload_cudagraph"),
    *("tensor_parallel_size", "worker_cls", "worker_extension_cls"),
)
FRONT_FLAGS = ("api_key", "api_server_count", "disable_uvicorn_access_log", "host", "lora_modules", "port", "uds")
ENDPOINTS = (
    *("/health", "/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/tokenize", "/detokenize", "/v1/models"),
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/rerank"),
    *("/v1/score", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/audio/transcriptions"),
)
VARIABLES = (
    *("VLLM_SERVER_DEV_MODE", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "VLLM_NO_USAGE_STATS", "VLLM_RPC_BASE_PATH"),
    *("VLLM_HOST_IP", "VLLM_LOOPBACK_IP", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_MEDIA_URL_ALLOW_REDIRECTS"),
    *("VLLM_LOGGING_COLOR", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_API_KEY"),
)
CODE = {  # file: functions and methods whose whole source is compared
    "v1/worker/utils.py": ("request_memory",),
    "v1/core/kv_cache_utils.py": ("_check_enough_kv_cache_memory", "_auto_fit_max_model_len"),
    "v1/worker/gpu_worker.py": ("Worker.sleep", "Worker.wake_up", "Worker.init_device", "Worker.load_model"),
    "v1/worker/cpu_worker.py": ("CPUWorker.init_device",),
    "v1/worker/worker_base.py": ("WorkerWrapperBase.init_worker",),
    "config/vllm.py": ("VllmConfig._set_cudagraph_sizes",),
    "device_allocator/cumem.py": ("CuMemAllocator.sleep", "CuMemAllocator.wake_up", "CuMemAllocator.get_instance"),
    "model_executor/model_loader/__init__.py": ("register_model_loader",),
    "model_executor/model_loader/dummy_loader.py": ("DummyModelLoader.load_weights",),
    "model_executor/layers/utils.py": ("dispatch_cpu_unquantized_gemm", "cpu_unquantized_gemm"),
    "entrypoints/serve/dev/sleep/api_router.py": ("sleep", "wake_up", "is_sleeping"),
    "v1/engine/core_client.py": ("DPLBAsyncMPClient.call_utility_async", "AsyncMPClient.collective_rpc_async"),
}


class Source(Protocol):
    """Files of a package `vllm`, in a wheel or in a folder."""

    def names(self) -> list[str]: ...

    def text(self, name: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Wheel:
    archive: zipfile.ZipFile

    def names(self) -> list[str]:
        return [name.removeprefix("vllm/") for name in self.archive.namelist() if name.startswith("vllm/")]

    def text(self, name: str) -> str | None:
        try:
            return self.archive.read(f"vllm/{name}").decode()
        except KeyError:
            return None


@dataclass(frozen=True, slots=True)
class Folder:
    folder: Path

    def names(self) -> list[str]:
        return [str(file.relative_to(self.folder)) for file in self.folder.rglob("*.py")]

    def text(self, name: str) -> str | None:
        file = self.folder / name
        return file.read_text() if file.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path, metavar="WHEEL", help="a wheel, or the folder of an installed `vllm`")
    parser.add_argument("--write", action="store_true", help=f"record the findings in {KNOWN.name}")
    options = parser.parse_args()
    if options.place.is_dir():
        found = surface(Folder(options.place))
    else:
        with zipfile.ZipFile(options.place) as archive:
            found = surface(Wheel(archive))
    if options.write:
        KNOWN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(f"{len(found)} things recorded in {KNOWN}")
        return 0
    changes = list(differences(json.loads(KNOWN.read_text()), found))
    print(*changes, sep="\n")
    print(f"{len(found)} things compared, {len(changes)} of them gone or changed")
    return 1 if changes else 0


def surface(source: Source) -> dict[str, str]:
    """Thing -> its place, its default, or a digest of its source; "gone" if it is missing."""
    found = {f"flag {name}": value for name, value in _members(source, "engine/arg_utils.py", "EngineArgs", FLAGS)}
    front = ("entrypoints/launchers/cli_args.py", "entrypoints/openai/cli_args.py")
    place = next((name for name in front if source.text(name)), front[0])
    classes = ("FrontendArgs", "BaseFrontendArgs")
    seen = [dict(_members(source, place, name, FRONT_FLAGS)) for name in classes]
    for name in FRONT_FLAGS:
        added = f'"--{name.replace("_", "-")}"' in (source.text(place) or "")  # without a member of the classes
        otherwise = "added by hand" if added else "gone"
        found[f"flag {name}"] = next((values[name] for values in seen if values[name] != "gone"), otherwise)
    routes = _routes(source)
    found |= {f"endpoint {path}": routes.get(path, "gone") for path in ENDPOINTS}
    variables = source.text("envs.py") or ""
    found |= {f"variable {name}": "there" if f'"{name}"' in variables else "gone" for name in VARIABLES}
    for file, names in CODE.items():
        found |= {f"code {file} {name}": _digest(source, file, name) for name in names}
    return found


def differences(known: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    """One line for each thing that is gone or changed."""
    for thing in sorted(known.keys() | found.keys()):
        before, now = known.get(thing, "not compared"), found.get(thing, "not compared")
        if now == "gone" and before != "gone":
            yield f"GONE     {thing}  (was: {before})"
        elif before != now:
            yield f"CHANGED  {thing}  {before} -> {now}"


def _members(source: Source, file: str, name: str, members: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each member with its default as in the source, or "gone"."""
    definition = _found(source, file, name)
    written = {
        node.target.id: ast.unparse(node.value) if node.value else "required"
        for node in (definition.body if isinstance(definition, ast.ClassDef) else [])
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for member in members:
        yield member, written.get(member, "gone")


def _routes(source: Source) -> dict[str, str]:
    """The file and methods of each path that a router under `entrypoints` serves."""
    found: dict[str, list[str]] = {}
    for name in sorted(source.names()):
        if name.startswith("entrypoints/") and name.endswith(".py") and "router." in (text := source.text(name) or ""):
            for method, path in _paths(ast.parse(text)):
                found.setdefault(path, []).append(f"{method} in {name}")
    return {path: ", ".join(dict.fromkeys(places)) for path, places in found.items()}


def _paths(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            path = getattr(node.args[0], "value", None)
            if node.func.attr in {"get", "post", "api_route"} and isinstance(path, str) and path.startswith("/"):
                yield node.func.attr.upper(), path


def _digest(source: Source, file: str, name: str) -> str:
    """A digest of the code without comments and docstring, so that only behaviour counts."""
    definition = _found(source, file, name)
    if definition is None:
        return "gone"
    if isinstance(definition.body[0], ast.Expr) and isinstance(definition.body[0].value, ast.Constant):
        definition.body = definition.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(definition).encode()).hexdigest()[:12]


def _found(source: Source, file: str, name: str) -> Any:
    """The class or function of that dotted name at the top of a file, or None."""
    text = source.text(file)
    nodes: Any = ast.parse(text).body if text else []
    definition = None
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        definition = next((node for node in nodes if isinstance(node, kinds) and node.name == part), None)
        nodes = definition.body if definition else []
    return definition


if __name__ == "__main__":
    sys.exit(main())
