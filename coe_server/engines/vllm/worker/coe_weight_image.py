"""The write-once copy of a model's weights in a memfd that outlives the engine, and the layout of its tensors.

File format: the bytes, padded to a page; a manifest (JSON); its length and a magic number. A sealed file is complete.
Independent of the device: readers use `address`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
from coe_pages import HUGE_PAGE, Pages, address_of

ALIGNMENT = 64  # a cache line; required by oneDNN and the widest vector instructions


@dataclass(frozen=True, slots=True)
class View:
    """One tensor as a view of its block's bytes. `storage_offset` is in elements, as in torch."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int


@dataclass(frozen=True, slots=True)
class Block:
    """One storage with all tensors that share it, or one packed matrix.

    `packing`: the packed format as described by the packing library (hexadecimal); empty for plain tensors.
    """

    views: tuple[View, ...]
    loaded_bytes: int  # size of the storage when loaded
    packable: bool = False
    size_bytes: int = 0  # size in the image
    offset: int = 0
    packing: str = ""

    def at(self, offset: int, size_bytes: int, packing: str = "") -> Block:
        return replace(self, offset=offset, size_bytes=size_bytes, packing=packing)

    def unplaced(self) -> Block:
        """The block without its position."""
        return self.at(0, 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """All blocks of a model, placed."""

    blocks: tuple[Block, ...]

    @property
    def size_bytes(self) -> int:
        return max((next_offset(block) for block in self.blocks), default=0)

    def holds(self, model: Iterable[Block]) -> bool:
        """True if these are the tensors of `model`: same names, shapes, types, sharing and order."""
        return tuple(block.unplaced() for block in self.blocks) == tuple(block.unplaced() for block in model)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Parse a layout. Raises `ValueError`, `KeyError` or `TypeError` if it is invalid."""
        return cls(tuple(_block(fields) for fields in json.loads(text)["blocks"]))


def next_offset(block: Block) -> int:
    """The first aligned offset after this block."""
    return aligned(block.offset + block.size_bytes)


def aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def _block(fields: dict[str, object]) -> Block:
    views = fields.pop("views")
    assert isinstance(views, list), "a block has a list of views"
    return Block(views=tuple(_view(**view) for view in views), **fields)  # type: ignore[arg-type]  # checked by Block


def _view(shape: list[int], stride: list[int], **others: object) -> View:
    return View(shape=tuple(shape), stride=tuple(stride), **others)  # type: ignore[arg-type]  # checked by View


_MAGIC = b"coe-image-1\n\0\0\0\0"
_FOOTER = struct.Struct(f"<Q{len(_MAGIC)}s")
_IO_BYTES = 256 << 20  # Linux moves at most 2 GiB in one call
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Image:
    """The image file, written by this process or an earlier one of the engine; then it is immutable."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._mapping: mmap.mmap | None = None
        self.size_bytes = 0  # whole file
        self.writes = 0

    @property
    def present(self) -> bool:
        """True if the image is mapped and readable."""
        return self._mapping is not None

    @property
    def address(self) -> int:
        assert self._mapping is not None, "an image is written or opened before it is read"
        return address_of(self._mapping)

    def write(self, data: memoryview, layout: Layout, source: str) -> None:
        """Write the image, seal it, and map it for reading. `source` identifies the origin of the bytes."""
        if not self._path:
            raise RuntimeError("this engine cannot sleep: no image was offered to it")
        manifest = {"source": source, "layout": layout.to_json(), "digest": digest(data)}
        text = json.dumps(manifest).encode()
        tail = text + _FOOTER.pack(len(text), _MAGIC)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            data_bytes = _whole_pages(len(data))
            os.ftruncate(descriptor, data_bytes + len(tail))
            for start in range(0, len(data), _IO_BYTES):
                _write_all(descriptor, data[start : start + _IO_BYTES], start)
            _write_all(descriptor, memoryview(tail), data_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._map(descriptor)
        finally:
            os.close(descriptor)
        self.writes += 1

    def left_from(self, source: str) -> Layout | None:
        """The layout of an image left by an earlier process; None if there is no valid one.

        Checks that it is complete, in this format, from this source, and undamaged.
        """
        if not self._path or not self._open_sealed():
            return None
        manifest = self._manifest()
        if manifest is not None and manifest["source"] == source:
            layout = Layout.from_json(manifest["layout"])
            assert self._mapping is not None, "it was opened above"
            if digest(memoryview(self._mapping)[: layout.size_bytes]) == manifest["digest"]:
                return layout
        self._mapping = None
        return None

    def _open_sealed(self) -> bool:
        assert self._path, "called only with an image path"
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(descriptor).st_size == 0:
                return False
            self._map(descriptor)
        finally:
            os.close(descriptor)
        return True

    def _map(self, descriptor: int) -> None:
        self.size_bytes = os.fstat(descriptor).st_size
        # Private because ctypes requires a writable buffer. It is never written, so nothing is copied.
        self._mapping = mmap.mmap(descriptor, self.size_bytes, access=mmap.ACCESS_COPY)
        Pages(self.address, _whole_pages(self.size_bytes)).map_for_reading()  # otherwise the first wake would do it

    def _manifest(self) -> dict[str, str] | None:
        assert self._mapping is not None, "opened before it is read"
        footer_start = self.size_bytes - _FOOTER.size
        if footer_start < 0:
            return None
        text_bytes, magic = _FOOTER.unpack(self._mapping[footer_start:])
        if magic != _MAGIC or text_bytes > footer_start:
            return None
        manifest: dict[str, str] = json.loads(self._mapping[footer_start - text_bytes : footer_start])
        return manifest


def digest(data: memoryview) -> str:
    """A checksum at memory speed: SHA-256 over the sum of 64-bit words of each huge page.

    It changes with any bit, with the order of huge pages and with the length. It detects damage, not attacks: a sealed
    file cannot be changed.
    """
    whole = len(data) // 8 * 8
    words = np.frombuffer(data[:whole], np.uint64)
    starts = range(0, len(words), HUGE_PAGE // 8)
    sums = [int(words[start : start + HUGE_PAGE // 8].sum(dtype=np.uint64)) for start in starts]
    return hashlib.sha256(json.dumps([len(data), sums, list(data[whole:])]).encode()).hexdigest()


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _write_all(descriptor: int, view: memoryview, position: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count
