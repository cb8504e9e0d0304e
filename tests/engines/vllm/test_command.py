"""Settings in, command line and environment out."""

from __future__ import annotations

import dataclasses
import json
import stat
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from coe_server.engines.http_channel import IDLE_SECONDS
from coe_server.engines.kept_process import make_run_directory
from coe_server.engines.vllm.command import (
    IMAGE_VARIABLE,
    Place,
    VllmLaunch,
    detect_platform,
    engine_environment,
    serve_command,
    unsupported_gpu,
)
from coe_server.engines.vllm.footprint import estimated_footprint, model_bytes
from coe_server.errors import ConfigError

RUN = Path("/tmp/coe-12345678")
SOCKET = RUN / "engine.sock"


def launch(**changes: Any) -> VllmLaunch:
    settings: dict[str, Any] = {
        "name": "french",
        "model": "/models/french",
        "kv_cache_bytes": 1 << 27,
        "log_directory": Path("logs"),
        "platform": "cpu",
    }
    return VllmLaunch(**settings | changes)


def flags(command: list[str]) -> list[str]:
    return [word for word in command if word.startswith("--")]


def test_on_a_cpu_one_process_serves_with_our_worker_on_a_private_socket() -> None:
    command = serve_command(launch(command=("/venv/bin/vllm",)), SOCKET)
    assert command[:3] == ["/venv/bin/vllm", "serve", "/models/french"]
    pairs = dict(pairwise(command))
    assert pairs["--uds"] == str(SOCKET)
    assert pairs["--served-model-name"] == "french"
    assert pairs["--kv-cache-memory-bytes"] == "134217728"
    assert pairs["--distributed-executor-backend"] == "uni"
    assert pairs["--worker-cls"] == "coe_sleeping_worker.SleepingWorker"
    assert "--enforce-eager" in command
    assert not {"--host", "--port", "--enable-sleep-mode"} & set(command)


def test_on_cuda_vllms_own_sleep_mode_is_used_where_sleeping_is_allowed() -> None:
    cuda = serve_command(launch(platform="cuda"), SOCKET)
    ours = ["--uds", "--served-model-name", "--kv-cache-memory-bytes", "--disable-uvicorn-access-log"]
    ours += ["--allowed-media-domains", "--worker-extension-cls", "--max-model-len"]
    assert flags(cuda) == [*ours, "--enable-sleep-mode", "--sleep-mode-offload-cudagraph"]
    assert "--enable-sleep-mode" not in serve_command(launch(platform="cuda", can_sleep=False), SOCKET)


def test_args_become_flags_of_the_same_meaning() -> None:
    args = {"max_model_len": 8192, "quantization": "awq", "gpu-memory-utilization": 0.5, "seed": None}
    args |= {"trust_remote_code": True, "enable_prefix_caching": False}
    args |= {"lora_modules": ["a=b", "c=d"], "override_generation_config": {"top_k": 1}}
    args |= {"compilation_config.cudagraph_mode": "NONE"}
    command = serve_command(launch(platform="cuda", can_sleep=False, args=args), SOCKET)
    assert command[command.index("--max-model-len") :] == [
        *("--max-model-len", "8192", "--quantization", "awq", "--gpu-memory-utilization", "0.5"),
        *("--trust-remote-code", "--no-enable-prefix-caching", "--lora-modules", "a=b", "c=d"),
        *("--override-generation-config", json.dumps({"top_k": 1})),
        *("--compilation-config.cudagraph_mode", "NONE"),
    ]


def test_an_arg_replaces_our_default_instead_of_being_given_twice() -> None:
    command = serve_command(launch(args={"enforce_eager": False, "distributed-executor-backend": "mp"}), SOCKET)
    assert "--no-enforce-eager" in command
    assert "--enforce-eager" not in command
    assert command.count("--distributed-executor-backend") == 1
    assert command[command.index("--distributed-executor-backend") + 1] == "mp"


@pytest.mark.parametrize("key", ["uds", "port", "served-model-name", "kv_cache_memory_bytes", "enable_sleep_mode"])
def test_an_arg_that_is_ours_to_set_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^experts\.french\.args\.{key}: is set by the server, leave it out$"):
        launch(args={key: "x"})


def test_no_media_domain_is_allowed_unless_it_is_listed() -> None:
    def allowed(*domains: str) -> list[str]:
        command = serve_command(launch(allowed_media_domains=domains), SOCKET)
        rest = command[command.index("--allowed-media-domains") + 1 :]
        return rest[: next(place for place, word in enumerate(rest) if word.startswith("--"))]

    assert allowed("a.example", "b.example") == ["a.example", "b.example"]
    (none,) = allowed()
    assert "/" in none, "which no host's name has; an empty list would allow every domain"
    assert engine_environment(launch(), RUN)["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


@pytest.mark.parametrize("key", ["allowed_media_domains", "allowed-media-domains"])
def test_media_domains_have_a_key_of_their_own(key: str) -> None:
    with pytest.raises(ConfigError, match=r"experts\.french\.allowed_media_domains: \[HOST, \.\.\.\] instead"):
        launch(args={key: "a.example"})


def test_the_cards_of_an_engine_are_its_ranks() -> None:
    wide = launch(platform="cuda", args={"tensor-parallel-size": 2, "data_parallel_size": 3})
    assert (wide.width, wide.copies) == (6, 3)
    command = serve_command(wide, SOCKET, Place(cards=("GPU-a", "GPU-b"), utilization=0.25))
    pairs = dict(pairwise(command))
    assert (pairs["--api-server-count"], pairs["--gpu-memory-utilization"]) == ("1", "0.25")
    environment = engine_environment(wide, RUN, Place(cards=("GPU-a", "GPU-b")))
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    with pytest.raises(ConfigError, match=r"args\.tensor-parallel-size: 'two' is not a number from 1"):
        launch(args={"tensor-parallel-size": "two"})


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("kv_cache_memory", "vLLM takes it for kv_cache_memory_bytes, leave it out"),
        ("enable-sleep", "vLLM takes it for enable_sleep_mode, leave it out"),
        ("no_enable_sleep_mode", "is set by the server, leave it out"),
        ("tensor_parallel", "write it in full: tensor_parallel_size"),
        ("prefill_context_parallel_size", "is not supported, use tensor_parallel_size"),
        ("config", "give the options of that file here, by name"),
        ("headless", "is not supported: an expert runs on one machine, in one `vllm serve`"),
        ("ssl_keyfile", "is set by the server, leave it out"),
        ("kv_offloading_size", "is not supported: such an engine crashes after a wake"),
        ("cpu_offload", "vLLM takes it for cpu_offload_gb: is not supported"),
        ("--port", "is not an option name"),
    ],
)
def test_what_vllms_parser_would_take_for_a_refused_option_is_refused(key: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launch(args={key: 2})
    assert str(caught.value).startswith(f"experts.french.args.{key}: {why}")


def test_an_option_that_begins_like_a_refused_one_is_accepted() -> None:
    args = {"data_parallel_size": 1, "kv_cache_dtype": "fp8", "config_format": "auto", "hf_token": "x"}
    launch(args=args | {"prefill_context_parallel_size": 1, "enable_prefix_caching": True})


def test_pinned_memory_is_not_rounded_up_and_other_settings_of_the_allocator_stay() -> None:
    def allocator(**inherited: str) -> dict[str, str]:
        environment = engine_environment(launch(platform="cuda", inherited=inherited), RUN)
        return {key: value for key, value in environment.items() if key.endswith("ALLOC_CONF")}

    rounding = "pinned_max_round_threshold_mb:1"
    assert allocator() == {"PYTORCH_ALLOC_CONF": rounding}
    assert allocator(PYTORCH_ALLOC_CONF="a:b") == {"PYTORCH_ALLOC_CONF": f"a:b,{rounding}"}
    assert allocator(PYTORCH_CUDA_ALLOC_CONF="a:b") == {"PYTORCH_CUDA_ALLOC_CONF": f"a:b,{rounding}"}


def test_the_environment_has_what_an_engine_needs_and_none_of_our_secrets() -> None:
    inherited = {
        **{"PATH": "/bin", "HOME": "/root", "HF_TOKEN": "hub", "CUDA_VISIBLE_DEVICES": "1", "LD_LIBRARY_PATH": "/l"},
        **{"OPENAI_API_KEY": "secret", "HOSTED_KEY": "secret", "AWS_SECRET_ACCESS_KEY": "secret"},
        **{
            "FLASHINFER_WORKSPACE_BASE": "/f",
            "CC": "gcc",
            "VLLM_API_KEY": "secret",
            "PYTHONPATH": "/ours",
            "TMPDIR": "/elsewhere",
        },
    }
    environment = engine_environment(launch(inherited=inherited), RUN, Place(("/proc/1/fd/7",)))
    assert "secret" not in environment.values()
    assert environment["PATH"] == "/bin"
    assert environment["HF_TOKEN"] == "hub"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["LD_LIBRARY_PATH"] == "/l"
    assert (environment["FLASHINFER_WORKSPACE_BASE"], environment["CC"]) == ("/f", "gcc")
    assert environment["TMPDIR"] == environment["VLLM_RPC_BASE_PATH"] == str(RUN)
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"
    assert environment[IMAGE_VARIABLE] == "/proc/1/fd/7"
    assert environment["OTEL_SERVICE_NAME"] == f"vllm {launch().name}"
    assert "HF_HUB_OFFLINE" not in environment, "experts may be hub ids"


def test_the_engine_keeps_idle_connections_longer_than_we_do() -> None:
    environment = engine_environment(launch(), RUN)
    assert float(environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > IDLE_SECONDS


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_the_processes_of_an_engine_speak_to_each_other_over_loopback_alone(platform: str) -> None:
    elsewhere = {"VLLM_HOST_IP": "10.0.0.1", "NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"}
    environment = engine_environment(launch(platform=platform, inherited=elsewhere), RUN)
    assert environment["VLLM_HOST_IP"] == environment["VLLM_LOOPBACK_IP"] == environment["MASTER_ADDR"] == "127.0.0.1"
    assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "lo"


def test_on_a_cpu_only_the_workers_own_folder_is_on_the_python_path() -> None:
    environment = engine_environment(launch(), RUN)
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["OMP_NUM_THREADS"] == "1"
    modules = {file.stem for file in Path(environment["PYTHONPATH"]).glob("*.py")}
    assert "coe_sleeping_worker" in modules
    assert all(name.startswith("coe_") for name in modules), "any other name could shadow one of vLLM's modules"
    assert IMAGE_VARIABLE not in environment


def test_cuda_gets_none_of_the_cpus_settings() -> None:
    environment = engine_environment(launch(platform="cuda"), RUN)
    assert not {"OMP_NUM_THREADS", "VLLM_ENABLE_V1_MULTIPROCESSING"} & set(environment)
    assert environment["PYTHONPATH"] == engine_environment(launch(), RUN)["PYTHONPATH"], "the folder of our extension"
    assert environment["COE_MEMORY_REPORTS"] == str(RUN)


def test_an_experts_own_environment_wins() -> None:
    environment = engine_environment(
        launch(environment={"OMP_NUM_THREADS": "2"}, inherited={"OMP_NUM_THREADS": "3"}), RUN
    )
    assert environment["OMP_NUM_THREADS"] == "2"


def test_a_local_models_size_is_that_of_its_weight_files(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(234))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(5000))
    assert model_bytes(str(tmp_path)) == 1234


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-Coder-7B-Instruct", "microsoft/phi-4", "openai/gpt-oss-20b"])
def test_a_size_is_never_guessed_from_a_name(model: str, tmp_path: Path) -> None:
    assert model_bytes(model, {"HF_HOME": str(tmp_path)}) is None


def test_a_downloaded_models_size_is_that_of_its_files_where_the_engine_looks(tmp_path: Path) -> None:
    for cache, commit, size in (("home/hub", "main", 100), ("other", "v2", 200)):
        snapshot = tmp_path / cache / "models--a--b/snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(bytes(size))
    home = {"HF_HOME": str(tmp_path / "home")}
    awake = estimated_footprint(launch(model="a/b", inherited=home)).device_awake
    other = {"download-dir": str(tmp_path / "other"), "revision": "v2"}
    assert estimated_footprint(launch(model="a/b", inherited=home, args=other)).device_awake == awake + 100


def test_a_missing_or_empty_model_folder_and_an_unknown_size_are_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^experts\.french\.model: there is no model folder '/nowhere/x'$"):
        estimated_footprint(launch(model="/nowhere/x"))
    with pytest.raises(ConfigError, match=rf"^experts\.french\.model: the model folder '{tmp_path}' holds no weights"):
        estimated_footprint(launch(model=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"^experts\.french\.model: 'a/b' is not downloaded; run `coe pull"):
        estimated_footprint(launch(model="a/b"))
    assert estimated_footprint(launch(model="a/b", weights_bytes=5)).device_awake > 5 + (1 << 27)


def test_an_engine_of_a_downloaded_model_asks_no_hub(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b/snapshots/main"
    snapshot.mkdir(parents=True)
    here = launch(model="a/b", inherited={"HF_HUB_CACHE": str(tmp_path)})
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert "HF_HUB_OFFLINE" not in engine_environment(here, RUN)
        (snapshot / file).write_bytes(b"{}")
    assert engine_environment(here, RUN)["HF_HUB_OFFLINE"] == "1"
    other = dataclasses.replace(here, args={"tokenizer": "c/d"})
    assert "HF_HUB_OFFLINE" not in engine_environment(other, RUN)


def test_estimates_cover_weights_kv_cache_image_and_what_stays(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1 << 20))
    here = launch(model=str(tmp_path), process_bytes=123)
    cpu = estimated_footprint(here)
    assert cpu.device_awake >= (1 << 20) + (1 << 27)
    assert (cpu.device_asleep, cpu.host_process) == (0, 123)
    assert cpu.host_image >= 1 << 20
    cuda = estimated_footprint(dataclasses.replace(here, platform="cuda"))
    assert cuda.device_asleep > 1 << 30
    assert cuda.device_awake >= cpu.device_awake + cuda.device_asleep
    assert not estimated_footprint(dataclasses.replace(here, can_sleep=False)).can_sleep
    double = estimated_footprint(dataclasses.replace(here, args={"dtype": "float32"}))
    assert double.host_image >= cpu.host_image + (1 << 20)


@pytest.mark.parametrize("sign", ["dev/nvidia0", "proc/driver/nvidia/version", "usr/lib/wsl/lib/libnvidia-ml.so.1"])
def test_the_platform_is_cuda_where_a_driver_is(tmp_path: Path, sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert detect_platform(tmp_path) == "cpu"
    (tmp_path / sign).parent.mkdir(parents=True)
    (tmp_path / sign).touch()
    assert detect_platform(tmp_path) == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_platform(tmp_path) == "cpu"


def test_a_gpu_that_engines_do_not_use_is_named(tmp_path: Path) -> None:
    assert unsupported_gpu(tmp_path) is None
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    assert "the AMD GPU" in str(unsupported_gpu(tmp_path))


def test_on_a_cpu_an_expert_takes_one_card_unless_the_machine_is_divided() -> None:
    with pytest.raises(
        ConfigError, match=r"experts\.french\.args: they need 2 cards; this machine has no GPU; memory\.ca"
    ):
        launch(args={"tensor_parallel_size": 2})
    with pytest.raises(ConfigError, match=r"they need 4 cards; there are 2 \(memory\.cards\)"):
        launch(args={"tensor_parallel_size": 4}, cores=((0,), (1,)))
    with pytest.raises(ConfigError, match="without a GPU only tensor_parallel_size takes several cards"):
        launch(args={"data_parallel_size": 2}, cores=((0,), (1,)))


def test_on_a_divided_machine_each_rank_has_the_cores_of_its_card_and_an_image() -> None:
    wide = launch(args={"tensor_parallel_size": 2}, cores=((0, 1), (2, 3)))
    place = Place(("/proc/1/fd/3", "/proc/2/fd/3"), cores=((0, 1), (2, 3)))
    environment = engine_environment(wide, RUN, place)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2,3"
    assert environment[IMAGE_VARIABLE] == "/proc/1/fd/3:/proc/2/fd/3"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1", "a process for each rank"
    words = serve_command(wide, RUN / "engine.sock", place)
    assert words[words.index("--distributed-executor-backend") + 1] == "mp"
    assert words[words.index("--worker-cls") + 1] == "coe_sleeping_worker.SleepingWorker"
    assert place.all_cores == (0, 1, 2, 3)


def test_on_a_divided_machine_a_single_one_has_as_many_threads_as_its_card_has_cores() -> None:
    environment = engine_environment(launch(cores=((0, 1), (2, 3))), RUN, Place(cores=((2, 3),)))
    assert environment["OMP_NUM_THREADS"] == "2"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment


def test_a_run_directory_is_private_and_short_enough_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    for system in (str(deep), "/tmp"):
        monkeypatch.setattr(tempfile, "tempdir", system)
        folder = make_run_directory()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(folder / ("x" * 36))) < 108
        folder.rmdir()
