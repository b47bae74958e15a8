"""The types of tensors in GGUF files: plain numbers, which have torch's names here, and blocks of quantised ones.

Which blocks there are, of how many elements and bytes, is what the ``gguf`` package of llama.cpp states: a later one
knows later types. Nothing here computes with them; their bytes are carried as they are.
"""

from __future__ import annotations

import functools

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.tensors.lazy import BLOCK_SIZES, ITEM_SIZES

#: ggml's names of types that torch has too.
_PLAIN = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}


@functools.cache
def tensor_types() -> dict[int, str]:
    """The dtype of each type by its number; blocks are entered into :data:`BLOCK_SIZES`.

    Raises SourceError where the package that states them is missing.
    """
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise SourceError(
            f"the types of GGUF files are those that the gguf package states, and it cannot be imported ({error}); "
            "pip install 'elastic-ir[gguf]'"
        ) from error
    found: dict[int, str] = {}
    for kind, (elements, size) in GGML_QUANT_SIZES.items():
        dtype = _PLAIN.get(kind.name, kind.name)
        found[int(kind)] = dtype
        if dtype not in ITEM_SIZES:
            BLOCK_SIZES[dtype] = int(elements), int(size)
    return found


def type_number(dtype: str) -> int:
    """The number of a type; EmitError where GGUF has no such type."""
    for number, one in tensor_types().items():
        if one == dtype:
            return number
    raise EmitError(f"a GGUF file cannot hold tensors of {dtype}")


def type_name(dtype: str) -> str:
    """What ggml calls a dtype: ``F32``, ``Q8_0``."""
    return next((theirs for theirs, ours in _PLAIN.items() if ours == dtype), dtype)
