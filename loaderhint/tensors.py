"""Tensors of torch from the bytes of a safetensors file: types, memory, and the way into it.

The one idea: a tensor owns its memory from the beginning, and bytes are written straight into it.
Nothing is a view of a slot, a mapping or a buffer used again: tensors outlive the loader.

Types torch does not have (F6, and F4 before torch 2.8) come as their bytes, uint8: the last
dimension counts bytes if a row is whole bytes, else there is one dimension. What torch packs two to
an element, F4, has half the last dimension, as in safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loaderhint.header import DTYPE_BITS
from loaderhint.ledger import Piece, Read
from loaderhint.memory import use_huge_pages, view_of
from loaderhint.plan import Part

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "F4": "float4_e2m1fn_x2",
}
"""The names of safetensors and of torch."""

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, attribute)
    for name, attribute in _NAMES.items()
    if hasattr(torch, attribute)
}
"""What this torch has."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The bytes of one part: a flat uint8 tensor, and on a CPU the view that is written through."""

    flat: torch.Tensor
    view: memoryview


class CpuSink:
    """Writes into tensors of the CPU; stateless."""

    def begin(self, part: Part) -> Memory:
        """Memory for a part, in huge pages where it is large."""
        flat = torch.empty(part.size_bytes, dtype=torch.uint8)
        if not part.size_bytes:
            return Memory(flat, memoryview(b""))
        use_huge_pages(flat.data_ptr(), part.size_bytes)
        return Memory(flat, view_of(flat.data_ptr(), part.size_bytes))

    def fill(self, pieces: Sequence[Piece], read: Read) -> None:
        """Read straight into the tensors."""
        read([piece.memory.view[piece.offset :][: piece.size_bytes] for piece in pieces])

    def finish(self, part: Part, memory: Memory) -> torch.Tensor:
        """The tensor of a whole part."""
        return shape(part, memory.flat)

    def close(self) -> None:
        """Nothing to let go of."""


def shape(part: Part, flat: torch.Tensor) -> torch.Tensor:
    """The tensor that these bytes are. A cut one owns no more than what was asked for.

    Raises ValueError for a cut of a type that torch does not have.
    """
    dtype = DTYPES.get(part.tensor.dtype)
    bits = DTYPE_BITS[part.tensor.dtype]
    if bits % 8:
        if part.cut:
            raise ValueError(f"tensor {part.name!r} of {part.tensor.dtype} is cut by rows only")
        sizes = _packed(part.shape, bits)
        return (flat if dtype is None else flat.view(dtype)).reshape(sizes)
    if dtype is None:
        raise ValueError(f"tensor {part.name!r} is {part.tensor.dtype}, which this torch has not")
    if not part.size_bytes:
        tensor = torch.empty(part.shape, dtype=dtype, device=flat.device)
    else:
        tensor = flat.view(dtype).reshape(part.shape)
    return tensor[part.cut].clone(memory_format=torch.contiguous_format) if part.cut else tensor


def _packed(sizes: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """The shape in bytes of elements smaller than one."""
    row_bits = sizes[-1] * bits if sizes else bits
    if row_bits % 8:
        return (-1,)
    return (*sizes[:-1], row_bits // 8)
