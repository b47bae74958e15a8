"""Products of floating-point tensors and numbers to the bit as torch gives them, piece by piece and without torch.

torch multiplies a tensor by a Python number in the dtype that it computes in (single precision for all narrower ones,
the number rounded to it), and rounds the product to the tensor's dtype, ties to even.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What is computed here; of other dtypes a multiple is not exact enough, or none at all.
FLOATS = ("float16", "bfloat16", "float32", "float64")


def multiplied(chunk: memoryview, dtype: str, factor: float) -> memoryview:
    """The bytes of a piece of a tensor, little-endian, times a number; ``dtype`` is one of :data:`FLOATS`."""
    import numpy as np

    if not chunk.nbytes:
        return chunk
    with np.errstate(over="ignore", invalid="ignore"):  # beyond the range lie infinities, as torch has it
        if dtype == "bfloat16":
            wide = np.frombuffer(chunk, "<u2").astype("<u4") << np.uint32(16)
            return _to_bfloat16(wide.view("<f4") * np.float32(factor)).view(np.uint8).data
        values = np.frombuffer(chunk, {"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype])
        if dtype == "float64":
            return (values * np.float64(factor)).view(np.uint8).data
        product = values.astype("<f4", copy=False) * np.float32(factor)
        return product.astype(values.dtype, copy=False).view(np.uint8).data


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of single-precision numbers, rounded to nearest, ties to even; a NaN stays one."""
    import numpy as np

    bits = values.view("<u4")
    rounded = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype("<u2")
