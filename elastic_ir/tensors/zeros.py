"""Which elements of a lazy tensor are zero, of either sign: `weight * mask` leaves -0.0 where a weight was negative.

Told from the bytes, in pieces, because numpy knows neither bfloat16 nor any eight-bit float.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from elastic_ir.tensors.lazy import ITEM_SIZES, TensorData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def nonzero(data: TensorData) -> NDArray[np.bool_]:
    """Whether each element is anything but zero, NaN among it: bool, of the tensor's shape."""
    import numpy as np

    item = ITEM_SIZES[data.dtype]
    found = np.empty(prod(data.shape), np.bool_)
    done = 0
    for chunk in data.chunks():
        elements = magnitudes(np.frombuffer(chunk, np.uint8), data.dtype).reshape(-1, item)
        found[done : done + len(elements)] = elements.any(axis=1)
        done += len(elements)
    return found.reshape(data.shape)


def magnitudes(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.uint8]:
    """The bytes without the signs of floats, so that only zeros are all zero; the given ones are not changed."""
    if (
        dtype.endswith("fnuz")
        or dtype == "float8_e8m0fnu"
        or not dtype.startswith(("float", "bfloat", "complex"))
    ):
        return raw  # these have no negative zero: the byte 0x80 is NaN there
    parts = raw.copy().reshape(-1, ITEM_SIZES[dtype] // (2 if dtype.startswith("complex") else 1))
    parts[:, -1] &= 0x7F  # little-endian: the sign is the top bit of the last byte
    return parts.reshape(-1)
