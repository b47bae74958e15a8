"""N:M sparsity: of every M weights that lie side by side along the input, at most N stay.

The groups are those of NVIDIA's ASP (apex, ``contrib/sparsity/sparse_masklib.py``, ``create_mask`` with ``m4n2_1d``),
which are those of sparse tensor cores: a linear weight (K, C) is grouped along C; a convolution's (K, C, R, S) along C
too, for each output channel and each place of the kernel, since the products are taken over C innermost. A matrix
that is stored inputs first (ONNX's MatMul) is grouped along its axis 0.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from elastic_ir.tensors.lazy import Mask, TensorData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def keep_largest(magnitudes: NDArray[np.float64], kept: int, group: int, axis: int = 1) -> NDArray[np.bool_]:
    """For each group of entries along an axis, which are its ``kept`` largest; of equals the first stay."""
    import numpy as np

    rows = np.moveaxis(magnitudes, axis, -1)
    grouped = rows.reshape(-1, group)
    order = np.argsort(np.negative(grouped), axis=1, kind="stable")
    chosen = np.zeros(grouped.shape, np.bool_)
    np.put_along_axis(chosen, order[:, :kept], True, axis=1)
    return np.ascontiguousarray(np.moveaxis(chosen.reshape(rows.shape), -1, axis))


class PatternMask(Mask):
    """A mask worked out from a weight's magnitudes when it is first read; what ``within`` pruned stays pruned."""

    def __init__(
        self, data: TensorData, kept: int, group: int, within: Mask | None = None, axis: int = 1
    ) -> None:
        # a mask is frozen, and its bits are not there yet
        object.__setattr__(self, "shape", data.shape)
        object.__setattr__(self, "dtype", within.dtype if within is not None else "bool")
        self._data, self._kept, self._group, self._within, self._axis = data, kept, group, within, axis

    @cached_property
    def bits(self) -> bytes:
        import numpy as np

        from elastic_ir.tensors.arrays import as_array

        magnitudes = np.abs(as_array(self._data)).astype(np.float64)
        if self._within is not None:
            magnitudes = np.where(self._within.array(), magnitudes, -1.0)  # comes last, and goes in any case
        chosen = keep_largest(magnitudes, self._kept, self._group, self._axis)
        if self._within is not None:
            chosen &= self._within.array()
        return np.packbits(chosen.reshape(-1)).tobytes()
