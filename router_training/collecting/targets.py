"""Who is asked, where, as what model and with which options: an expert or the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router_training.collecting.endpoint import Endpoint
from router_training.collecting.questions import Message, fingerprint
from router_training.collecting.settings import CollectConfig, JudgeSettings, RequestSettings, api_key, proxy_for


@dataclass(frozen=True, slots=True)
class Target:
    """`name` is the expert's in the outcomes, `model` what the endpoint calls it."""

    name: str
    base_url: str
    model: str
    api_key_env: str | None
    options: Mapping[str, Any]
    key_setting: str = "api_key_env"  # which setting names the variable

    def asked(self, messages: Sequence[Message]) -> str:
        """The fingerprint of a request. The address is no part of it: a service may move."""
        return fingerprint(list(messages), self.model, self.options)

    def endpoint(self, request: RequestSettings) -> Endpoint:
        """Raises ConfigError if the key's environment variable is not set, or it or the proxy cannot be used."""
        key = api_key(self.api_key_env, self.key_setting)
        return Endpoint(
            self.base_url,
            self.model,
            key,
            self.options,
            timeout_seconds=request.timeout_seconds,
            retries=request.retries,
            proxy=proxy_for(self.base_url),
        )


def expert_targets(config: CollectConfig) -> tuple[Target, ...]:
    """The experts in the config's order. One with an address of its own never gets the service's key."""
    return tuple(
        Target(
            name=expert.name,
            base_url=expert.base_url or config.base_url,
            model=expert.model or expert.name,
            api_key_env=expert.api_key_env or (None if expert.base_url else config.api_key_env),
            options={**config.request.options, **expert.options},
            key_setting=f"experts.{expert.name}.api_key_env" if expert.api_key_env else "api_key_env",
        )
        for expert in config.experts
    )


def judge_target(config: CollectConfig, judge: JudgeSettings) -> Target:
    """The judge, by the same rules."""
    return Target(
        name="judge",
        base_url=judge.base_url or config.base_url,
        model=judge.model,
        api_key_env=judge.api_key_env or (None if judge.base_url else config.api_key_env),
        options=judge.options,
        key_setting="scorer.api_key_env" if judge.api_key_env else "api_key_env",
    )
