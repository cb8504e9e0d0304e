"""Settings of a vLLM expert that runs here, and the construction of its engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from coe_server.config.addresses import HostName, in_url
from coe_server.config.types import ByteCount
from coe_server.engines.adapter import Adapter, misfit
from coe_server.engines.cards import card_model
from coe_server.engines.engine import Engine
from coe_server.engines.settings import EndpointName, ExpertSettings, ReadsAdapter, Surroundings, never_in_host
from coe_server.engines.vllm.args import copies_of, named, width_of
from coe_server.engines.vllm.command import LONGEST_STEP_SECONDS, VllmLaunch, hub_source
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.footprint import base_shapes, footprint_key, known_bytes, model_bytes
from coe_server.errors import ConfigError

_OF_RUNNER: dict[object, tuple[EndpointName, ...]] = {
    "pooling": ("embeddings", "tokenize", "rerank", "score"),
    "generate": ("chat", "completions", "responses", "messages", "tokenize"),
}


class VllmExpert(ExpertSettings):
    weights_here = True
    wakes_by_copying = True
    takes_adapters = True

    engine: Literal["vllm"]
    model: str
    args: dict[str, bool | int | float | str | list[Any] | dict[str, Any] | None] = Field(default={})
    kv_cache: ByteCount | None = None
    weights_bytes: ByteCount | None = None  # only if neither files nor the hub give it
    allowed_media_domains: list[HostName] | None = None
    sleep: bool = True  # false: on the device or on disk, never in host memory

    def build(self, surroundings: Surroundings) -> Engine:
        launch = _sized(self, self.launch(surroundings), surroundings)
        if adapters := self.adapters(launch, surroundings):
            launch = replace(launch, adapters=adapters)
            check_fit(launch, adapters)
        measured = surroundings.measured
        if measured:
            launch = replace(launch, measured=measured.get(key_of(launch)))
        return VllmEngine(launch, surroundings.cards)

    def adapters(self, launch: VllmLaunch, surroundings: Surroundings) -> tuple[Adapter, ...]:
        """Its adapters by their files. Raises ConfigError."""
        return tuple(_adapter(one, launch, surroundings) for one in surroundings.adapters.get(self.name, ()))

    def launch(self, surroundings: Surroundings) -> VllmLaunch:
        """The launch of its engine, without the size of weights that are not downloaded."""
        vllm, longest_answer_seconds = surroundings.vllm, surroundings.longest_answer_seconds
        own_domains = self.allowed_media_domains
        return VllmLaunch(
            name=self.name,
            model=self.model,
            command=tuple(vllm.command),
            args=self.args,
            allowed_media_domains=tuple(
                map(in_url, vllm.allowed_media_domains if own_domains is None else own_domains)
            ),
            user=surroundings.user,
            inherited=surroundings.inherited,
            kv_cache_bytes=self.kv_cache or vllm.kv_cache,
            platform=surroundings.platform,
            can_sleep=self.sleep,
            max_concurrency=self.concurrency or surroundings.max_concurrency,
            start_timeout_seconds=vllm.start_timeout_seconds,
            process_bytes=vllm.process_memory,
            log_directory=surroundings.log_directory,
            cores=surroundings.cores,
            # one step is part of one answer
            pulse_timeout_seconds=min(LONGEST_STEP_SECONDS, longest_answer_seconds),
        )

    @property
    def cards_taken(self) -> int:
        return width_of(self.args)

    @property
    def concurrency(self) -> int | None:
        """What `args` set for vLLM is what is let in: more would wait in the engine, where no order is kept."""
        sequences = named(self.args).get("max_num_seqs")
        given = sequences * copies_of(self.args) if isinstance(sequences, int) and sequences > 0 else None
        return self.max_concurrency or given

    @property
    def served_endpoints(self) -> tuple[EndpointName, ...] | None:
        """The endpoints of the configured runner; None if vLLM chooses the runner."""
        return super().served_endpoints or _OF_RUNNER.get(self.args.get("runner"))

    @property
    def longest_context_tokens(self) -> int | None:
        limit = self.args.get("max_model_len")
        return self.context_tokens or (limit if isinstance(limit, int) and limit > 0 else None)

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if not self.sleep:
            yield from never_in_host(self, "`sleep: true`")

    def dangers(self) -> Iterator[str]:
        args = named(self.args)
        if args.get("trust_remote_code") not in {None, False}:
            yield (
                f"args.trust_remote_code: Python code of '{self.model}' runs here as the engines' user: "
                "it can access all files of this user (models, other engines' memory, the decision log) and every "
                "address that this machine reaches; review the code, and pin args.revision and args.code_revision"
            )
        if folder := args.get("allowed_local_media_path"):
            told = f"every client of '{self.name}' can make it read any media file in {folder}"
            yield f"args.allowed_local_media_path: {told}"

    def in_folder(self, folder: Path) -> Self:
        """The settings with an absolute model path. `./x`, `../x`, `/x`, `~/x` and existing paths are folders.

        Any other `model` is a Hugging Face id.
        """
        model = (folder / Path(self.model).expanduser()).resolve()
        if not self.model.startswith((".", "/", "~")) and not (model / "config.json").is_file():
            return self
        if not (model / "config.json").is_file():
            gguf = model.suffix == ".gguf" or any(model.glob("*.gguf"))
            told = f"{model} is GGUF, which vLLM does not serve; llama.cpp does: engine: command (docs/engines.md)"
            raise ConfigError(
                f"experts.{self.name}.model: {told if gguf else f'there is no model in the folder {model}'}"
            )
        return self.model_copy(update={"model": str(model)})


def _sized(expert: VllmExpert, launch: VllmLaunch, surroundings: Surroundings) -> VllmLaunch:
    """The launch with the size of its weights. Local files take precedence, then `weights_bytes`, then the hub."""
    source = hub_source(launch)
    try:
        if model_bytes(launch.model, source.environment, source.revision) is not None:
            return launch
        return replace(launch, weights_bytes=expert.weights_bytes or surroundings.size_of_missing(launch))
    except ConfigError as error:
        raise ConfigError(f"experts.{launch.name}.model: {error}") from error


_ASSUMED_RANK = 64  # of an adapter that is only planned with


def _adapter(wanted: ReadsAdapter, launch: VllmLaunch, surroundings: Surroundings) -> Adapter:
    """The adapter of a base with this launch; of one that is not downloaded only the size, if that may be asked."""
    source = hub_source(launch)
    if (found := wanted.found(source.environment)) is not None:
        return found
    try:
        size_bytes = surroundings.size_of_missing(replace(launch, name=wanted.name, model=wanted.adapter, args={}))
    except ConfigError as error:
        told = f"'{wanted.adapter}' is not downloaded; run `coe pull CONFIG {wanted.name}`, or start with --pull"
        raise ConfigError(f"experts.{wanted.name}.adapter: {told}") from error
    return Adapter(wanted.name, Path(wanted.adapter), _ASSUMED_RANK, size_bytes)


def check_fit(launch: VllmLaunch, adapters: Sequence[Adapter]) -> None:
    """Raise ConfigError for the first adapter with matrices that the base has no place for."""
    shapes = base_shapes(launch)
    for one in adapters if shapes else ():
        if fault := misfit(one, shapes):
            raise ConfigError(f"experts.{one.name}.adapter: {one.folder} {fault}")


def key_of(launch: VllmLaunch) -> str:
    """The key under which this launch's measured footprint is stored."""
    return footprint_key(launch, known_bytes(launch), card_model() if launch.platform == "cuda" else "")
