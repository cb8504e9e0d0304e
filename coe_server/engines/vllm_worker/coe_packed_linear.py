"""oneDNN's fast form of a linear layer's matrix, in memory that we choose. Knows nothing of models.

vLLM's own oneDNN layers keep that form in C++ where no sleep can reach it. Torch's are the same code, tell where their
bytes lie (`mkldnn::data_ptr`), and can be told to use bytes that lie elsewhere (the C interface of its ahead-of-time
compiler). Results are equal bit for bit (tried with 1, 7, 64, 300 and 512 rows).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix in oneDNN's form, in memory of its own. `packing` tells oneDNN how to read it (hexadecimal)."""

    tensor: torch.Tensor
    address: int
    size_bytes: int
    packing: str


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine multiplies this type faster in packed form, and torch has all that it takes."""
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
    """The packed matrix that lies at `address`; the memory stays the caller's."""
    interface = _Interface.load()
    assert interface is not None, "only what `can_pack` agreed to is packed"
    return interface.tensor(address, shape, dtype, bytes.fromhex(packing))


def multiply(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x @ matrix.T + bias`."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


class _Interface:
    """`aoti_torch_create_tensor_from_blob_v2`, stable C of torch since 2.5."""

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
