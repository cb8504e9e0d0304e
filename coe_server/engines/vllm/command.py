"""The command line and environment of an expert's vLLM. Pure, except for looks for a GPU and into the hub's cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coe_server.config.environment import FOR_EVERY_ENGINE
from coe_server.engines.adapter import Adapter
from coe_server.engines.cards import visible_device
from coe_server.engines.cores import Cores
from coe_server.engines.engine import Footprint
from coe_server.engines.http_channel import IDLE_SECONDS
from coe_server.engines.hub import HubSource
from coe_server.engines.model_size import model_folder
from coe_server.engines.settings import Platform
from coe_server.engines.user import EngineUser
from coe_server.engines.vllm.adapter_args import adapter_args, contradiction
from coe_server.engines.vllm.args import ArgValue, check_args, copies_of, named, width_of, words_of
from coe_server.errors import ConfigError

LONGEST_STEP_SECONDS = 60.0  # an engine answers probes between steps only, and a long prompt is one step
IMAGE_VARIABLE = "COE_WEIGHT_IMAGE"  # one path for each rank, read by the sleeping worker

_WORKER_FOLDER = Path(__file__).with_name("worker")
_WORKER_CLASS = "coe_sleeping_worker.SleepingWorker"

_EXTENSION_CLASS = "coe_memory_report.MemoryReport"
REPORTS_VARIABLE = "COE_MEMORY_REPORTS"  # folder for memory reports, read by the extension

# vLLM takes an empty list for "all". No host name contains a slash, so this one matches nothing.
_NO_MEDIA_DOMAIN = "no-domain/"

# Options that may name a second repository of the hub.
_OTHER_REPOSITORIES = (
    *("tokenizer", "hf_config_path", "generation_config", "speculative_config", "lora_modules"),
    *("code_revision", "tokenizer_revision", "trust_remote_code"),
)

# Variables that an engine may inherit beside the common ones; no others.
_INHERITED_PREFIXES = (
    *("LC_", "XDG_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "VLLM_", "TORCH", "PYTORCH_", "TRITON_"),
    *("CUDA", "NVIDIA_", "NCCL_", "OMP_", "GOMP_", "KMP_", "MKL_", "NUMBA_", "GLOO_"),
    *("FLASHINFER_", "DG_", "TIKTOKEN_"),  # caches and settings of compiled kernels and fetched files
)
_ALSO_INHERITED = frozenset(("CC", "CXX"))  # Triton and FlashInfer compile with them
_NEVER_INHERITED = frozenset(("VLLM_API_KEY",))  # it would lock the server out of its engine

_COMMON_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # /sleep, /wake_up and /collective_rpc; the socket is private
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(round(2 * IDLE_SECONDS)),  # the server closes idle connections, not the engine
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # otherwise an allowed domain could redirect to another
    "VLLM_LOGGING_COLOR": "0",
    "PYTHONUNBUFFERED": "1",  # so that output before a crash reaches the log
}
# The processes of one engine are on one machine. By default Gloo and NCCL listen on the address of the host name,
# which in a container is not the loopback address.
_LOOPBACK_ENVIRONMENT = {
    **{"VLLM_HOST_IP": "127.0.0.1", "VLLM_LOOPBACK_IP": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"},
    **{"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"},
}
# One process and one thread per engine: on two cores a busy-waiting worker process would starve its own API server.
_CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
# A process for each rank; vLLM gives each the threads that its cores allow.
_WIDE_CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"}
_CPU_ARGS: dict[str, ArgValue] = {"enforce_eager": True, "worker_cls": _WORKER_CLASS}

# Pinned blocks are rounded up to powers of two unless they are larger than this (c10/core/AllocatorConfig.h of torch).
_PINNED_ROUNDING = "pinned_max_round_threshold_mb:1"
_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the first name is the older one


@dataclass(frozen=True, slots=True)
class VllmLaunch:
    """Everything needed to start one expert's engine. A wrong `args` raises `ConfigError` at once."""

    name: str
    model: str  # a folder or a hub id
    kv_cache_bytes: int
    log_directory: Path
    platform: Platform
    command: tuple[str, ...] = ("vllm",)
    args: Mapping[str, ArgValue] = field(default_factory=dict)  # vLLM's options, e.g. `max_model_len: 8192`
    inherited: Mapping[str, str] = field(default_factory=dict)  # the server's environment, filtered for the engine
    environment: Mapping[str, str] = field(default_factory=dict)  # overrides all other variables
    allowed_media_domains: tuple[str, ...] = ()  # hosts from which clients may load media by URL
    user: EngineUser | None = None  # None: the server's user
    can_sleep: bool = True
    start_timeout_seconds: float = 600.0
    move_timeout_seconds: float = 20.0  # for a sleep or wake, plus the time of its bytes at the slowest speed
    stop_timeout_seconds: float = 10.0  # vLLM ends about 2 s after SIGTERM
    pulse_seconds: float = 10.0  # interval of liveness probes
    pulse_timeout_seconds: float = LONGEST_STEP_SECONDS
    process_bytes: int = 1_200_000_000  # estimate of the process without weights, until measured
    max_concurrency: int | None = None  # concurrent answers; None: vLLM's limit
    weights_bytes: int | None = None  # for a model without local files
    measured: Footprint | None = None  # by an earlier start with the same settings and card
    cores: tuple[Cores, ...] = ()  # of each card, on a machine whose RAM and cores are divided into cards
    adapters: tuple[Adapter, ...] = ()  # under whose names it answers, too

    def __post_init__(self) -> None:
        check_args(self.name, self.args)
        if fault := contradiction(self.args, self.adapters):
            raise ConfigError(f"experts.{self.name}.args.{fault}")
        if self.platform == "cpu" and (fault := self._too_wide()):
            raise ConfigError(f"experts.{self.name}.args: {fault}")

    def _too_wide(self) -> str | None:
        """What a machine without a GPU cannot give."""
        if self.width > 1 and not self.cores:
            return (
                f"they need {self.width} cards; this machine has no GPU; memory.cards: {self.width} divides this"
                " machine's RAM and cores into as many"
            )
        if self.width > max(1, len(self.cores)):
            return f"they need {self.width} cards; there are {len(self.cores)} (memory.cards)"
        if self.width != (self.option("tensor_parallel_size") or 1):
            return "without a GPU only tensor_parallel_size takes several cards"
        return None

    def option(self, name: str) -> ArgValue:
        """The value of one of vLLM's options, with dashes or underscores; None if not given."""
        return next((value for key, value in self.args.items() if key.replace("-", "_") == name), None)

    @property
    def width(self) -> int:
        """The number of cards."""
        return width_of(self.args)

    @property
    def copies(self) -> int:
        """The number of data-parallel copies."""
        return copies_of(self.args)


@dataclass(frozen=True, slots=True)
class Place:
    """The memory of one run of an engine: image and cards."""

    image_paths: tuple[str, ...] = ()  # of each rank of the CPU worker
    cards: tuple[str, ...] = ()  # UUIDs
    utilization: float | None = None  # lower bound on the free share of each card at the start
    cores: tuple[Cores, ...] = ()  # of each rank, or of all together; none: any

    @property
    def all_cores(self) -> Cores:
        return tuple(sorted({core for cores in self.cores for core in cores}))


NOWHERE = Place()


def detect_platform(root: Path = Path("/")) -> Platform:
    """`cuda` if an NVIDIA driver is installed and shows a card, else `cpu`.

    /dev has no file for a card before the driver's first call, and never in WSL 2.
    """
    if visible_device() is None:
        return "cpu"
    signs = (root / "proc/driver/nvidia/version", root / "usr/lib/wsl/lib/libnvidia-ml.so.1")
    there = any(sign.exists() for sign in signs) or any((root / "dev").glob("nvidia[0-9]*"))
    return "cuda" if there else "cpu"


def unsupported_gpu(root: Path = Path("/")) -> str | None:
    """A sentence about a GPU that engines cannot use; None if there is none."""
    if (root / "dev/kfd").exists():
        return "the AMD GPU (/dev/kfd) is not supported: engines run on the CPU"
    return None


def serve_command(launch: VllmLaunch, socket: Path, place: Place = NOWHERE) -> list[str]:
    """The command line of `vllm serve` for this expert on this socket."""
    args: dict[str, ArgValue] = {
        "uds": str(socket),
        "served_model_name": launch.name,
        "kv_cache_memory_bytes": launch.kv_cache_bytes,
        "max_num_seqs": launch.max_concurrency,  # of each copy; for 256 or 1024, vLLM's own, more graphs are captured
        "disable_uvicorn_access_log": True,  # a line per request would bury failures in the log
        "allowed_media_domains": [*launch.allowed_media_domains] or [_NO_MEDIA_DOMAIN],
    }
    args |= _cpu_args(launch) if launch.platform == "cpu" else _cuda_args(launch, place)
    args |= adapter_args(launch.args, launch.adapters)
    args |= named(launch.args)
    return [*launch.command, "serve", launch.model, *words_of(args)]


def _cpu_args(launch: VllmLaunch) -> dict[str, ArgValue]:
    return _CPU_ARGS | {"distributed_executor_backend": "uni" if launch.width == 1 else "mp"}


def _cuda_args(launch: VllmLaunch, place: Place) -> dict[str, ArgValue]:
    args: dict[str, ArgValue] = {"worker_extension_cls": _EXTENSION_CLASS, "max_model_len": "auto"}
    if place.utilization is not None:
        args["gpu_memory_utilization"] = place.utilization
    if launch.can_sleep:
        args |= {"enable_sleep_mode": True, "sleep_mode_offload_cudagraph": True}
    if launch.copies > 1:
        args["api_server_count"] = 1  # otherwise each copy would have one, with a part of the requests
    return args


def engine_environment(launch: VllmLaunch, run_directory: Path, place: Place = NOWHERE) -> dict[str, str]:
    """The engine's environment: the variables that it may inherit, and the server's settings for it."""
    environment = {key: value for key, value in launch.inherited.items() if _may_inherit(key)}
    environment |= launch.user.environment if launch.user else {}
    environment |= _COMMON_ENVIRONMENT | _LOOPBACK_ENVIRONMENT
    environment |= {"TMPDIR": str(run_directory), "VLLM_RPC_BASE_PATH": str(run_directory)}
    environment["PYTHONPATH"] = str(_WORKER_FOLDER)
    if _asks_no_hub(launch):
        environment["HF_HUB_OFFLINE"] = "1"  # otherwise each start asks the hub for a newer version
    environment["OTEL_SERVICE_NAME"] = f"vllm {launch.name}"  # used if tracing is on
    environment |= (
        _cpu_environment(launch, place) if launch.platform == "cpu" else _cuda_environment(environment, place)
    )
    if launch.platform == "cuda":
        environment[REPORTS_VARIABLE] = str(run_directory)
    if launch.adapters or launch.option("enable_lora"):
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"  # a lost adapter is loaded again; the socket is private
    if place.image_paths:
        environment[IMAGE_VARIABLE] = os.pathsep.join(place.image_paths)
    return environment | dict(launch.environment)


def _cpu_environment(launch: VllmLaunch, place: Place) -> dict[str, str]:
    """With the cores of each rank: left to itself, vLLM wants a NUMA node for each (utils/ompmultiprocessing.py)."""
    if launch.width > 1:
        ranks = (",".join(map(str, cores)) for cores in place.cores)
        return _WIDE_CPU_ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": "|".join(ranks)}
    return _CPU_ENVIRONMENT | ({"OMP_NUM_THREADS": str(len(place.all_cores))} if place.cores else {})


def _cuda_environment(inherited: Mapping[str, str], place: Place) -> dict[str, str]:
    allocator = next((name for name in _ALLOCATOR_VARIABLES if name in inherited), _ALLOCATOR_VARIABLES[-1])
    settings = [part for part in (inherited.get(allocator), _PINNED_ROUNDING) if part]
    environment = {allocator: ",".join(settings)}
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of NVML
    if place.cards:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(place.cards)
    return environment


def hub_source(launch: VllmLaunch) -> HubSource:
    """The model's source as the engine sees it, with the engine's environment."""
    environment = dict(launch.inherited) | (launch.user.environment if launch.user else {}) | dict(launch.environment)
    if folder := launch.option("download_dir"):
        environment["HF_HUB_CACHE"] = str(folder)
    return HubSource(launch.model, environment, str(launch.option("revision") or "main"))


def _asks_no_hub(launch: VllmLaunch) -> bool:
    """True if weights, configuration and tokenizer are all in the hub cache."""
    source = hub_source(launch)
    if Path(launch.model).is_dir() or any(launch.option(name) is not None for name in _OTHER_REPOSITORIES):
        return False
    folder = model_folder(source.model, source.environment, source.revision)
    return folder is not None and (folder / "config.json").exists() and any(folder.glob("*token*"))


def _may_inherit(key: str) -> bool:
    known = key in FOR_EVERY_ENGINE | _ALSO_INHERITED
    return key not in _NEVER_INHERITED and (known or key.startswith(_INHERITED_PREFIXES))
