"""An adapter (LoRA): a name on its base's slot whose requests the base's vLLM answers with further low-rank matrices.

It has no engine: leases, residency, queue and bound are its base's, and so are the keys that decide about them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field

from coe_server.config.types import ByteCount
from coe_server.engines.adapter import CONFIG, Adapter, read_adapter
from coe_server.engines.engine import Engine
from coe_server.engines.model_size import downloaded_folder
from coe_server.engines.settings import ExpertSettings, Surroundings, of_its_base
from coe_server.errors import ConfigError


class LoraExpert(ExpertSettings):
    launched_by_base: ClassVar[bool] = True

    engine: Literal["lora"]
    of: str = Field(alias="base")
    adapter: str
    kv_cache: ByteCount | None = None  # refused with the sentence that the others have

    def build(self, surroundings: Surroundings) -> Engine:
        raise ConfigError(f"experts.{self.name}: has no engine of its own, it is an adapter of '{self.of}'")

    @property
    def base(self) -> str | None:
        return self.of

    def unfit_base(self, base: ExpertSettings) -> str | None:
        return None if base.takes_adapters else f"'{base.name}' is engine: {base.engine}; an adapter's is engine: vllm"

    def contradictions(self) -> Iterator[str]:
        yield from of_its_base(self)
        yield from (fault for fault in super().contradictions() if not fault.startswith("cards:"))

    def found(self, environment: Mapping[str, str]) -> Adapter | None:
        """The adapter; None if it is on the hub and not downloaded. `environment`: the base's. Raises ConfigError."""
        folder: Path | None = Path(self.adapter)
        if folder is not None and not folder.is_absolute():
            folder = downloaded_folder(self.adapter, environment)
            if folder is None or not (folder / CONFIG).exists():
                return None
        assert folder is not None, "it is a folder or was downloaded"
        try:
            return read_adapter(self.name, folder)
        except ConfigError as error:
            raise ConfigError(f"experts.{self.name}.adapter: {error}") from error

    def in_folder(self, folder: Path) -> Self:
        """As a model's: `./x`, `../x`, `/x`, `~/x` and existing folders are paths, all else is a Hugging Face id."""
        there = (folder / Path(self.adapter).expanduser()).resolve()
        if not self.adapter.startswith((".", "/", "~")) and not (there / CONFIG).is_file():
            return self
        if not (there / CONFIG).is_file():
            raise ConfigError(f"experts.{self.name}.adapter: there is no adapter in the folder {there} ({CONFIG})")
        return self.model_copy(update={"adapter": str(there)})
