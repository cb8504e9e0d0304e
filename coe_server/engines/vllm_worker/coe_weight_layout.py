"""Where each tensor of a loaded model lies in one stretch of bytes. Pure: knows no device, no memory and no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

ALIGNMENT = 64  # a cache line, and what oneDNN and the widest vector instructions ask for


@dataclass(frozen=True, slots=True)
class View:
    """One tensor: how it looks at the bytes of its block. `storage_offset` counts elements, as torch does."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes that belong together: one storage with all tensors that share it, or one matrix in a packed form.

    `packing` describes the packed form to the library that made it (hexadecimal); empty for plain tensors.
    """

    views: tuple[View, ...]
    loaded_bytes: int  # of the storage as it was loaded
    packable: bool = False
    size_bytes: int = 0  # as it lies here
    offset: int = 0
    packing: str = ""

    def at(self, offset: int, size_bytes: int, packing: str = "") -> Block:
        return replace(self, offset=offset, size_bytes=size_bytes, packing=packing)

    def unplaced(self) -> Block:
        """What was loaded, without where it lies."""
        return self.at(0, 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """All blocks of a model, placed."""

    blocks: tuple[Block, ...]

    @property
    def size_bytes(self) -> int:
        return max((next_offset(block) for block in self.blocks), default=0)

    def holds(self, model: Iterable[Block]) -> bool:
        """Whether these are the tensors of `model`: same names, shapes, types, sharing and order."""
        return tuple(block.unplaced() for block in self.blocks) == tuple(block.unplaced() for block in model)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Raises `ValueError`, `KeyError` or `TypeError` if this is not a layout."""
        return cls(tuple(_block(fields) for fields in json.loads(text)["blocks"]))


def next_offset(block: Block) -> int:
    """Where the block after this one may begin."""
    return aligned(block.offset + block.size_bytes)


def aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def _block(fields: dict[str, object]) -> Block:
    views = fields.pop("views")
    assert isinstance(views, list), "a block has a list of views"
    return Block(views=tuple(_view(**view) for view in views), **fields)  # type: ignore[arg-type]  # checked by Block


def _view(shape: list[int], stride: list[int], **others: object) -> View:
    return View(shape=tuple(shape), stride=tuple(stride), **others)  # type: ignore[arg-type]  # checked by View
