"""The types of tensors in GGUF files: plain numbers, which have torch's names here, and blocks of quantised ones.

Nothing here computes with blocks; their bytes are carried as they are, so a type's name, and how many elements and
bytes a block of it has, is all there is to know. Types that are newer than this table are those of the installed
``gguf`` package of llama.cpp, which is imported only where a file has one: it takes longer than reading a file does.
"""

from __future__ import annotations

import functools

from elastic_ir.errors import EmitError
from elastic_ir.tensors.lazy import BLOCK_SIZES

#: The numbers and ggml's names of types that torch has too.
_PLAIN = {
    0: ("F32", "float32"), 1: ("F16", "float16"), 24: ("I8", "int8"), 25: ("I16", "int16"), 26: ("I32", "int32"),
    27: ("I64", "int64"), 28: ("F64", "float64"), 30: ("BF16", "bfloat16"),
}  # fmt: skip
#: Blocks: name, elements, bytes. Numbers that are missing were taken out of the format.
_BLOCKS = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


def dtype_of(number: int) -> str | None:
    """The dtype of a type, and its blocks entered into :data:`BLOCK_SIZES`; None for one that nobody here knows."""
    if number in _PLAIN:
        return _PLAIN[number][1]
    block = _BLOCKS.get(number) or _later().get(number)
    if block is None:
        return None
    name, elements, size = block
    BLOCK_SIZES[name] = elements, size
    return name


@functools.cache
def _later() -> dict[int, tuple[str, int, int]]:
    """The types that the installed package knows, if there is one."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError:
        return {}
    known = {name for name, _, _ in _BLOCKS.values()}
    return {
        int(kind): (kind.name, int(elements), int(size))
        for kind, (elements, size) in GGML_QUANT_SIZES.items()
        if kind.name not in known
    }


def type_number(dtype: str) -> int:
    """The number of a type; EmitError where GGUF has no such type."""
    found = {ours: number for number, (_, ours) in _PLAIN.items()}
    found |= {name: number for number, (name, _, _) in _BLOCKS.items()}
    if dtype not in found and dtype in BLOCK_SIZES:
        found |= {name: number for number, (name, _, _) in _later().items()}
    if dtype not in found:
        raise EmitError(f"a GGUF file cannot hold tensors of {dtype}")
    return found[dtype]


def type_name(dtype: str) -> str:
    """What ggml calls a dtype: ``F32``, ``Q8_0``."""
    return next((theirs for theirs, ours in _PLAIN.values() if ours == dtype), dtype)
