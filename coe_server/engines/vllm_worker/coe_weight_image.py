"""The write-once copy of a model's bytes in a memfd that outlives the engine, and the layout of the tensors in it.

File: the bytes, filled up to a page; a manifest (JSON); its length and a magic number. Sealed means complete. Knows no
device: what fills its memory from the image, on a CPU or a GPU, asks for `address`.
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


_MAGIC = b"coe-image-1\n\0\0\0\0"
_FOOTER = struct.Struct(f"<Q{len(_MAGIC)}s")
_IO_BYTES = 256 << 20  # Linux moves at most 2 GiB in one call
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Image:
    """Written by this process or left by an earlier one of the engine; nothing can change it then."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._mapping: mmap.mmap | None = None
        self.size_bytes = 0  # of the whole file
        self.writes = 0

    @property
    def present(self) -> bool:
        """Whether its bytes can be read here."""
        return self._mapping is not None

    @property
    def address(self) -> int:
        assert self._mapping is not None, "an image is written or opened before it is read"
        return address_of(self._mapping)

    def write(self, data: memoryview, layout: Layout, source: str) -> None:
        """Write once, seal, and stay ready to read. `source` names what the bytes were made from."""
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
        """The layout of an image that an earlier process made from the same source; None if none can be trusted.

        Whole, of this format, of this source, and every byte as it was when it was written.
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
        assert self._path, "asked for only where an image was offered"
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
        # Private only because ctypes wants to see a writable buffer; it is never written, so nothing is copied.
        self._mapping = mmap.mmap(descriptor, self.size_bytes, access=mmap.ACCESS_COPY)
        Pages(self.address, _whole_pages(self.size_bytes)).map_for_reading()  # else the first wake pays for it

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
    """Changes with any bit, any order of huge pages and the length; at the speed of memory.

    SHA-256 over the sums of each huge page's 64-bit words. It detects damage, not attacks: a sealed file cannot change.
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
