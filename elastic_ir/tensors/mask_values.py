"""Lazy tensors of zeros and ones as masks, whatever their dtype. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from elastic_ir.errors import MaskError
from elastic_ir.tensors.lazy import Mask, TensorData
from elastic_ir.tensors.zeros import magnitudes

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The byte that is 1.0 in each eight-bit float; numpy knows none of them.
_ONE_OF_FLOAT8 = {
    "float8_e4m3fn": 0x38,
    "float8_e5m2": 0x3C,
    "float8_e4m3fnuz": 0x40,
    "float8_e5m2fnuz": 0x40,
}


def mask_of_data(data: TensorData, name: str) -> Mask:
    """A lazy 0/1 tensor as a packed mask; MaskError where it holds anything else."""
    raw = np.frombuffer(b"".join(data.chunks()), np.uint8)
    if data.dtype == "bfloat16":
        array: NDArray[Any] = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    elif data.dtype in _ONE_OF_FLOAT8:
        array = np.full(raw.shape, 2, np.uint8)
        array[raw == _ONE_OF_FLOAT8[data.dtype]] = 1
        array[magnitudes(raw, data.dtype) == 0] = 0
        if bool((array == 2).any()):
            raise MaskError(f"the mask of {name!r} holds other values than 0 and 1")
    elif data.dtype.startswith("float8"):
        raise MaskError(
            f"the mask of {name!r} has the dtype {data.dtype}, which has no zero; give it as bool"
        )
    else:
        array = raw.view(np.dtype(data.dtype).newbyteorder("<"))
    return Mask.from_array(array.reshape(data.shape), name, data.dtype)
