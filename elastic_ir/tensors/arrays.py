"""Lazy tensors as numpy arrays of their own dtypes: ml_dtypes has those that numpy lacks. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.tensors.lazy import TensorData, item_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What :func:`multiplied` takes; of other dtypes a multiple is not exact enough, or none at all.
FLOATS = ("float16", "bfloat16", "float32", "float64")


def array_dtype(name: str) -> np.dtype[Any]:
    """numpy's form of a dtype, little-endian; EmitError where several elements share a byte."""
    import ml_dtypes  # noqa: F401  makes bfloat16 and the eight-bit floats known to numpy
    import numpy as np

    item_size(name)
    return np.dtype(name).newbyteorder("<")


def as_array(data: TensorData) -> NDArray[Any]:
    """A lazy tensor read whole; the array cannot be written to."""
    import numpy as np

    return np.frombuffer(b"".join(data.chunks()), array_dtype(data.dtype)).reshape(data.shape)


def is_geometric(data: TensorData) -> bool:
    """Whether a vector falls from 1 by one factor, within a hundredth: the frequencies of rotary positions.

    What has no values, a type of less than a byte among it, is not; Su et al. (arXiv 2104.09864, 3.2.2) for the source.
    """
    import numpy as np

    try:
        values = as_array(data).astype(np.float64).ravel()
    except (EmitError, SourceError, ValueError):
        return False
    if len(values) < 3 or values[0] != 1 or not (values > 0).all():
        return False
    powers = np.log(values)
    return bool(powers[1] < 0) and np.allclose(powers, powers[-1] * np.linspace(0, 1, len(values)), atol=0.01)


def nonzero(data: TensorData) -> NDArray[np.bool_]:
    """Whether each element is anything but a zero of either sign, NaN among it: bool, of the tensor's shape.

    ``weight * mask`` leaves -0.0 where a weight was negative.
    """
    import numpy as np

    dtype = array_dtype(data.dtype)
    with np.errstate(invalid="ignore"):  # a NaN of eight bits
        parts = [np.frombuffer(chunk, dtype) != 0 for chunk in data.chunks()]
    return np.concatenate([np.empty(0, np.bool_), *parts]).reshape(data.shape)


def multiplied(chunk: memoryview, dtype: str, factor: float) -> memoryview:
    """The bytes of a piece of a tensor times a number, as torch gives them; ``dtype`` is one of :data:`FLOATS`.

    torch computes in single precision for all narrower dtypes, the number rounded to it, and rounds the product to
    the tensor's dtype, ties to even.
    """
    import numpy as np

    values = np.frombuffer(chunk, array_dtype(dtype))
    computed: Any = np.float64 if dtype == "float64" else np.float32
    with np.errstate(over="ignore", invalid="ignore"):  # beyond the range lie infinities, as torch has it
        product: NDArray[Any] = values.astype(computed, copy=False) * computed(factor)
        if dtype == "bfloat16":
            product = np.where(np.isnan(product), computed(np.nan), product)  # torch has one only
        return product.astype(values.dtype, copy=False).view(np.uint8).data
