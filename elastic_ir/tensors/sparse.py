"""Tensors of torch's sparse layouts as lazy ones: values are kept as they are stored, and made dense piece by piece.

Indices come from a file and torch checks none when it loads: they are checked here, before anything goes by them. Torch
is imported by the functions, never by this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from elastic_ir.errors import SourceError, first_line
from elastic_ir.safety.limits import REPEATED, SPARSE
from elastic_ir.tensors.lazy import TensorData, item_size

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_STEP = 1 << 20  #: bytes that are made dense at once
_DENSE = "load it with torch, make it dense (tensor.to_dense()) and save it again"


@dataclass(frozen=True, eq=False)
class SparseData:
    """The tensor that is zero but for some places; of each place one element is stored, or a block of the last axes."""

    shape: tuple[int, ...]
    places: NDArray[np.int64]  #: rising; flat over the axes that ``values`` does not have
    values: TensorData  #: of shape [places, *the last axes]

    @property
    def dtype(self) -> str:
        return self.values.dtype

    def chunks(self) -> Iterator[memoryview]:
        """The dense bytes, about a million of them at a time; the stored values are in memory meanwhile."""
        import numpy as np

        width = prod(self.values.shape[1:]) * item_size(self.dtype)
        size = prod(self.shape) // max(1, prod(self.values.shape[1:]))
        stored = np.frombuffer(b"".join(self.values.chunks()), np.uint8).reshape(len(self.places), width)
        step = max(1, _STEP // max(1, width))
        for begin in range(0, size if width else 0, step):
            count = min(step, size - begin)
            first, last = np.searchsorted(self.places, (begin, begin + count))
            dense = np.zeros((count, width), np.uint8)
            dense[self.places[first:last] - begin] = stored[first:last]
            yield dense.reshape(-1).data


def data_of(tensor: torch.Tensor, name: str) -> TensorData:
    """A tensor of any layout as a lazy one; of a sparse one, entries of one place are added, as torch does it.

    Raises SourceError, which names the tensor: indices beyond its shape, fewer values than a tensor of its size needs.
    """
    from elastic_ir.tensors.torch_bridge import TorchData, is_sparse

    if not is_sparse(tensor):
        return TorchData(tensor)
    given = tensor.detach().cpu()
    shape, stored = tuple(given.shape), _values(given).numel()
    if prod(shape) > max(REPEATED, SPARSE * stored):
        raise SourceError(f"{name!r} is of {prod(shape)} numbers and stores {stored}; {_DENSE}")
    try:
        found = _checked(given)
    except (RuntimeError, ValueError, IndexError) as error:
        raise SourceError(
            f"{name!r} cannot be read as a sparse tensor ({first_line(error)[:160]}); {_DENSE}"
        ) from error
    indices, values = found.indices(), found.values().contiguous()
    places = indices.new_zeros(len(values))
    for axis, index in enumerate(indices):
        places = places * shape[axis] + index
    return SparseData(shape, places.numpy(), TorchData(values))


def _values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor._values() if str(tensor.layout) == "torch.sparse_coo" else tensor.values()


def _checked(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor in rising order of its places, each once; what torch raises where its indices cannot be."""
    import torch

    values, shape = _values(tensor), tensor.shape
    if tensor.layout == torch.sparse_coo:
        indices = tensor._indices()
        return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True).coalesce()
    rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    outer = tensor.crow_indices() if rows else tensor.ccol_indices()
    inner = tensor.col_indices() if rows else tensor.row_indices()
    checked = torch.sparse_compressed_tensor(
        outer, inner, values, shape, layout=tensor.layout, check_invariants=True
    )
    return checked.to_sparse(layout=torch.sparse_coo).coalesce()
