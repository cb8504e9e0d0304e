"""Moves a loaded model's tensors into one arena, linear layers packed by oneDNN, and finds them after a restart.

vLLM's oneDNN layers keep the packed weights in C++, where they cannot be released. Torch's layers use the same code,
expose the address of the packed bytes (`mkldnn::data_ptr`) and accept bytes at another address (C interface of
torch's ahead-of-time compiler). Results are bit-identical (tested with 1, 7, 64, 300 and 512 rows).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from coe_pages import Arena, copy_bytes
from coe_weight_image import ALIGNMENT, Block, Layout, View, next_offset


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix packed by oneDNN, in separate memory. `packing`: oneDNN's description of the format (hexadecimal)."""

    tensor: torch.Tensor
    address: int
    size_bytes: int
    packing: str


def can_pack(dtype: torch.dtype) -> bool:
    """True if this machine multiplies this type faster in packed form and torch supports it."""
    operators = ("_reorder_linear_weight", "_linear_pointwise", "_get_mkldnn_serialized_md", "data_ptr", "_nbytes")
    if not all(hasattr(torch.ops.mkldnn, name) for name in operators) or _Interface.load() is None:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def pack(matrix: torch.Tensor) -> Packed:
    operators = torch.ops.mkldnn
    tensor = operators._reorder_linear_weight(matrix, None)
    packing = bytes(operators._get_mkldnn_serialized_md(tensor).tolist()).hex()
    return Packed(tensor, operators.data_ptr(tensor), operators._nbytes(tensor), packing)


def packed_at(address: int, shape: tuple[int, ...], dtype: torch.dtype, packing: str) -> torch.Tensor:
    """A tensor over the packed matrix at `address`; the caller owns the memory."""
    interface = _Interface.load()
    assert interface is not None, "packed only if `can_pack` returned True"
    return interface.tensor(address, shape, dtype, bytes.fromhex(packing))


def multiply(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x @ matrix.T + bias`."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


class _Interface:
    """`aoti_torch_create_tensor_from_blob_v2`, part of torch's stable C interface since 2.5."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._create = library.aoti_torch_create_tensor_from_blob_v2
        sizes = ctypes.POINTER(ctypes.c_int64)
        self._create.argtypes = (
            *(ctypes.c_void_p, ctypes.c_int64, sizes, sizes, ctypes.c_int64),  # data, dimensions, offset
            *(ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)),  # type, device, result
            *(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64),  # layout, its description
        )
        self._layout = library.aoti_torch_layout__mkldnn()
        self._device = library.aoti_torch_device_type_cpu()
        self._dtypes = {
            torch.bfloat16: library.aoti_torch_dtype_bfloat16(),
            torch.float16: library.aoti_torch_dtype_float16(),
        }
        self._capsule = ctypes.pythonapi.PyCapsule_New
        self._capsule.restype = ctypes.py_object
        self._capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

    @classmethod
    def load(cls) -> _Interface | None:
        try:
            return cls(ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so")))
        except (OSError, AttributeError):  # another torch: linear layers stay plain
            return None

    def tensor(self, address: int, shape: tuple[int, ...], dtype: torch.dtype, packing: bytes) -> torch.Tensor:
        rows, columns = shape
        pair, handle = ctypes.c_int64 * 2, ctypes.c_void_p()
        status = self._create(
            *(address, 2, pair(rows, columns), pair(columns, 1), 0),
            *(self._dtypes[dtype], self._device, 0, ctypes.byref(handle)),
            *(self._layout, packing, len(packing)),
        )
        if status != 0:
            raise RuntimeError("torch refused a packed matrix in our memory")
        return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(self._capsule(handle, None, None))


_PACKED_GROWTH = 1.25  # reserve for oneDNN's padding; address space only, the unused part is released
_PACKED_PADDING_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Found:
    """One storage of the model, the tensors that share it, and the linear layer whose weight can be packed, if any."""

    block: Block
    tensors: tuple[torch.Tensor, ...]
    layer: torch.nn.Module | None


def make_resident(model: torch.nn.Module, linear: Iterable[torch.nn.Module]) -> tuple[Arena, Layout]:
    """Move all tensors into a new arena, one storage at a time, so that little memory is used twice."""
    found = _found(model, linear)
    arena = Arena(sum(_room_for(piece.block) for piece in found))
    placed: list[Block] = []
    while found:
        piece = found.pop(0)  # its old memory is freed at the end of this iteration
        offset = next_offset(placed[-1]) if placed else 0
        placed.append(_move_packed(piece, arena, offset) if piece.layer else _move_plain(piece, arena, offset))
    layout = Layout(tuple(placed))
    arena.trim(layout.size_bytes)
    return arena, layout


def find_resident(
    model: torch.nn.Module, linear: Iterable[torch.nn.Module], layout: Layout, fill: Callable[[Arena], None]
) -> Arena:
    """Point an empty model at an arena that `fill` fills. Raises `ValueError` if the layout is another model's."""
    found = _found(model, linear)
    if not layout.holds(piece.block for piece in found):
        raise ValueError("the image holds other tensors than this model has")
    arena = Arena(layout.size_bytes)
    arena.trim(layout.size_bytes)
    fill(arena)
    for piece, block in zip(found, layout.blocks, strict=True):
        if piece.layer:
            _use_packed(piece.layer, arena, block)
        else:
            _point_at(piece.tensors, arena, block)
    return arena


def _found(model: torch.nn.Module, linear: Iterable[torch.nn.Module]) -> list[_Found]:
    """Every storage of the model in a fixed order, with the names of its tensors."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    sharing: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in named:
        if _movable(tensor):
            sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    layers = {layer.weight.data_ptr(): layer for layer in linear}
    return [_piece(pairs, layers) for pairs in sharing.values()]


def _piece(pairs: list[tuple[str, torch.Tensor]], layers: Mapping[int, torch.nn.Module]) -> _Found:
    tensors = tuple(tensor for _, tensor in pairs)
    alone = len(tensors) == 1  # false for an output layer tied to the embedding, whose rows are looked up
    layer = layers.get(tensors[0].data_ptr()) if alone and _is_plain_matrix(tensors[0]) else None
    views = tuple(
        View(name, str(tensor.dtype), tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
        for name, tensor in pairs
    )
    block = Block(views, tensors[0].untyped_storage().nbytes(), packable=layer is not None)
    return _Found(block, tensors, layer)


def _is_plain_matrix(tensor: torch.Tensor) -> bool:
    whole = tensor.nbytes == tensor.untyped_storage().nbytes()
    return tensor.ndim == 2 and tensor.is_contiguous() and whole and can_pack(tensor.dtype)


def _room_for(block: Block) -> int:
    if not block.packable:
        return block.loaded_bytes + ALIGNMENT
    return round(block.loaded_bytes * _PACKED_GROWTH) + _PACKED_PADDING_BYTES


def _move_plain(piece: _Found, arena: Arena, offset: int) -> Block:
    storage = piece.tensors[0].untyped_storage()
    copy_bytes(arena.address + offset, storage.data_ptr(), storage.nbytes())
    block = piece.block.at(offset, storage.nbytes())
    _point_at(piece.tensors, arena, block)
    return block


def _move_packed(piece: _Found, arena: Arena, offset: int) -> Block:
    assert piece.layer is not None, "only linear layers are packed"
    packed = pack(piece.tensors[0].detach())
    assert packed.size_bytes <= _room_for(piece.block), "oneDNN's padding exceeds the reserve"
    copy_bytes(arena.address + offset, packed.address, packed.size_bytes)
    block = piece.block.at(offset, packed.size_bytes, packed.packing)
    _use_packed(piece.layer, arena, block)
    return block


def _point_at(tensors: tuple[torch.Tensor, ...], arena: Arena, block: Block) -> None:
    """Point the tensors at the block; tied weights still share it."""
    whole = torch.frombuffer(arena.bytes(block.offset, block.size_bytes), dtype=torch.uint8)
    for tensor, view in zip(tensors, block.views, strict=True):
        tensor.data = whole.view(tensor.dtype).as_strided(view.shape, view.stride, view.storage_offset)


def _use_packed(layer: torch.nn.Module, arena: Arena, block: Block) -> None:
    dtype = layer.weight.dtype
    matrix = packed_at(arena.address + block.offset, block.views[0].shape, dtype, block.packing)
    layer.cpu_linear = lambda x, weight, bias: multiply(x, matrix, bias)
    layer.weight = torch.nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)  # as vLLM's oneDNN layers do


def _movable(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.untyped_storage().nbytes() > 0


def flat_tensors(caches: object) -> Iterator[torch.Tensor]:
    """The tensors of vLLM's KV caches; state-space layers have lists of tensors."""
    if isinstance(caches, torch.Tensor):
        yield caches
    elif isinstance(caches, list | tuple):
        for cache in caches:
            yield from flat_tensors(cache)


def unique_storages(tensors: Iterable[torch.Tensor]) -> list[torch.UntypedStorage]:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return list({storage.data_ptr(): storage for storage in storages}.values())
