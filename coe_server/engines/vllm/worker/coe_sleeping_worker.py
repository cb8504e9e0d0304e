"""A vLLM worker for the CPU that can sleep: it releases the memory of weights and KV cache, and restores it.

Runs in vLLM's environment (`--worker-cls coe_sleeping_worker.SleepingWorker`), so this folder imports nothing from
coe_server. Weights are in one arena at fixed addresses. They are written once to the server's image, before the
engine serves; a sleep then only releases pages. A restarted engine loads its weights from the image.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from coe_base_rows import keep_base_rows
from coe_pages import Arena, Pages, die_with_parent, return_free_memory
from coe_resident_weights import find_resident, flat_tensors, make_resident, unique_storages
from coe_weight_image import Image, Layout
from vllm import _custom_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.model_executor.layers import utils as linear_layers
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
from vllm.v1.worker.cpu_worker import CPUWorker

# vLLM's oneDNN and AMX kernels keep a packed copy of every linear layer in C++, which cannot be released. Without
# them vLLM leaves the parameters unpacked, and `coe_resident_weights` packs them into its own arena.
_custom_ops._supports_onednn = False
linear_layers.check_cpu_sgl_kernel = lambda n, k, dtype: False

IMAGE_VARIABLE = "COE_WEIGHT_IMAGE"  # one path for each rank
EMPTY_FORMAT = "coe-empty"


class SleepingWorker(CPUWorker):
    """vLLM's CPU worker with `sleep(level=1)` and `wake_up(tags)` that move memory."""

    _arena: Arena
    _layout: Layout
    _image: Image
    _source: str
    _kv_pages: list[Pages]
    _kv_cache_bytes = 0
    _loaded_from_image = False
    _load_seconds = 0.0
    _last_sleep_seconds = 0.0
    _last_wake_seconds = 0.0
    _last_copy_seconds = 0.0  # copying of the weights in the last wake

    def load_model(self, **options: Any) -> None:
        # Die with the API server, which forked this process from its main thread. The keeper also ensures that, but it
        # may be killed at the same time as the server.
        die_with_parent(signal.SIGKILL)
        if self.vllm_config.lora_config is not None:
            keep_base_rows(punica_cpu)
        started = time.perf_counter()
        self._image = Image(image_path(self.rank))
        self._source = describe_source(self.vllm_config, self.rank)
        # Quantized layers may keep values outside their tensors, which only the files restore.
        plain = self.vllm_config.model_config.quantization is None
        left = self._image.left_from(self._source) if plain else None
        with linear_layers_noted() as noted, empty_weights(self.vllm_config, left is not None):
            super().load_model(**options)
        model = self.model_runner.get_model()
        if left is None:
            self._arena, self._layout = make_resident(model, noted)
        else:
            self._arena, self._layout = find_resident(model, noted, left, self._fill), left
            self._loaded_from_image = True
        return_free_memory()  # return the loader's freed copies before memory is measured
        self._load_seconds = time.perf_counter() - started

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        storages = unique_storages(flat_tensors(self.model_runner.kv_caches))
        self._kv_cache_bytes = sum(storage.nbytes() for storage in storages)
        self._kv_pages = [Pages.inside(storage.data_ptr(), storage.nbytes()) for storage in storages]
        for pages in self._kv_pages:
            pages.use_huge_pages()
            pages.release()  # replaces small zeroed pages by huge ones here, not in the first wake
            pages.populate()  # the reserved memory is used from the start, not from the first long answer

    def write_image(self) -> None:
        """Write the image, at the server's request once the engine answers. Further calls do nothing."""
        if not self._image.present:
            self._image.write(self._arena.bytes(0, self._layout.size_bytes), self._layout, self._source)

    def sleep(self, level: int = 1) -> None:
        if level != 1:
            raise RuntimeError(f"sleep level {level} is refused: only level 1 keeps the weights")
        started = time.perf_counter()
        self.write_image()
        self._arena.pages.release()
        self.discard(("kv_cache",))
        self._last_sleep_seconds = time.perf_counter() - started

    def wake_up(self, tags: list[str] | None = None) -> None:
        started = time.perf_counter()
        if tags is None or "weights" in tags:
            self._fill(self._arena)
            self._last_copy_seconds = time.perf_counter() - started
        if tags is None or "kv_cache" in tags:
            for pages in self._kv_pages:
                pages.populate()
        self._last_wake_seconds = time.perf_counter() - started

    def discard(self, tags: tuple[str, ...]) -> None:
        if tags != ("kv_cache",):
            raise RuntimeError(f"cannot discard {tags}: only the KV cache can be discarded")
        for pages in self._kv_pages:
            pages.release()

    def memory_report(self) -> dict[str, float]:
        """Exact sizes in bytes and durations in seconds, for the server (`/collective_rpc`)."""
        return {
            "pid": os.getpid(),
            "weights_bytes": self._arena.pages.size_bytes,
            "kv_cache_bytes": self._kv_cache_bytes,
            "image_bytes": self._image.size_bytes,
            "image_writes": self._image.writes,
            "loaded_from_image": self._loaded_from_image,
            "load_seconds": self._load_seconds,
            "packed_layers": sum(block.packable for block in self._layout.blocks),
            "last_sleep_seconds": self._last_sleep_seconds,
            "last_wake_seconds": self._last_wake_seconds,
            "last_copy_seconds": self._last_copy_seconds,
        }

    def _fill(self, arena: Arena) -> None:
        arena.pages.fill_from(self._image.address)


@register_model_loader(EMPTY_FORMAT)
class EmptyModelLoader(DummyModelLoader):
    """Builds the model without initialising its parameters, which the image replaces."""

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        pass


@contextmanager
def empty_weights(vllm_config: Any, wanted: bool) -> Iterator[None]:
    """If `wanted`, loading reads no weight files within this context."""
    load_config, usual = vllm_config.load_config, vllm_config.load_config.load_format
    if wanted:
        load_config.load_format = EMPTY_FORMAT
    try:
        yield
    finally:
        load_config.load_format = usual


@contextmanager
def linear_layers_noted() -> Iterator[list[torch.nn.Module]]:
    """Collects the layers that vLLM would pack with oneDNN."""
    usual, noted = linear_layers.dispatch_cpu_unquantized_gemm, []

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        usual(layer, remove_weight)
        if remove_weight or isinstance(layer, ParallelLMHead):  # an embedding needs its rows
            noted.append(layer)

    linear_layers.dispatch_cpu_unquantized_gemm = dispatch
    try:
        yield noted
    finally:
        linear_layers.dispatch_cpu_unquantized_gemm = usual


def image_path(rank: int) -> str | None:
    """Of this rank's own image; None where the server offers none."""
    offered = os.environ.get(IMAGE_VARIABLE)
    return offered.split(os.pathsep)[rank] if offered else None


def describe_source(vllm_config: Any, rank: int) -> str:
    """What an image's bytes are made from; another model, file, option, rank or program gives another text."""
    model = vllm_config.model_config
    folder = Path(model.model)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    stats = [(file.name, file.stat()) for file in files]
    facts = {
        "model": [model.model, model.revision],
        "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        "config": vllm_config.compute_hash(),
        "rank": [rank, vllm_config.parallel_config.world_size],
        "versions": [version("vllm"), torch.__version__],
    }
    return json.dumps(facts)
