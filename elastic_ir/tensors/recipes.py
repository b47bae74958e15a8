"""Recipes: lazy tensors that are computed from other lazy tensors, and read nothing until they are read themselves.

Slices of channels (:class:`Selected`, :class:`Taken`), biases that take over what a constant channel contributed
(:class:`Shifted`), the two halves of a folded batch norm (:class:`ScaledRows`, :class:`NormBias`), and multiples
(:class:`Scaled`). Arithmetic is done in double precision and rounded once, to the dtype of what is replaced; a multiple
is what torch computes, since checkpoints that others scaled are to come out the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import EmitError
from elastic_ir.tensors.lazy import Mask, OfTensor, ShapeOnly, TensorData, item_size, size_of

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 20  #: bytes of zeros at a time; a multiple of every element's size

#: For each run of rows (one for each group of a grouped convolution) the columns that stay.
Columns = tuple[tuple[int, ...], ...]


class Recipe:
    """A tensor that is computed from others, or from nothing."""

    computed = True  #: for who does not load this file to ask what a tensor is

    def carried(self, moment: torch.Tensor) -> torch.Tensor | None:
        """An optimizer's moment of the tensor that this one was made from; None where it begins anew."""
        return None


@dataclass(frozen=True)
class Derived(OfTensor, Recipe):
    """A tensor that is computed from another one."""


class Folded(Recipe):
    """A tensor that belongs to another parametrisation than its source."""

    def carried(self, moment: torch.Tensor) -> torch.Tensor | None:
        raise EmitError(
            "fold-batchnorm has rescaled the weights, and an optimizer's state cannot follow; train before folding"
        )


@dataclass(frozen=True)
class Selected(Derived):
    """The tensor cut to some rows (axis 0) and columns (axis 1); None keeps all of an axis.

    ``columns`` has one list for each group of the result; the rows are shared out among the groups in equal runs.
    """

    rows: tuple[int, ...] | None = None
    columns: Columns | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        height = self.data.shape[0] if self.rows is None else len(self.rows)
        if self.columns is None:
            return (height, *self.data.shape[1:])
        return (height, len(self.columns[0]), *self.data.shape[2:])

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        table = index_tables(self.data.shape, self.rows, self.columns)
        yield np.ascontiguousarray(_raw(self.data)[table]).reshape(-1).data

    def carried(self, moment: torch.Tensor) -> torch.Tensor | None:
        """The moment cut as the tensor is."""
        import torch

        inner = carried(self.data, moment)
        if inner is None or tuple(inner.shape) != self.data.shape:
            return None
        table = index_tables(tuple(inner.shape), self.rows, self.columns)
        return inner[tuple(torch.from_numpy(part).to(inner.device) for part in table)]


def index_tables(
    shape: tuple[int, ...], rows: tuple[int, ...] | None, columns: Columns | None
) -> tuple[Any, ...]:
    """Index arrays that cut an array of this shape to some rows and columns."""
    import numpy as np

    places = np.arange(shape[0]) if rows is None else np.asarray(rows, np.int64)
    if columns is None:
        return (places,)
    table = np.asarray(columns, np.int64).repeat(len(places) // len(columns), axis=0)
    return places[:, None], table


@dataclass(frozen=True)
class Taken(Derived):
    """The tensor cut to some places along one axis."""

    axis: int
    places: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.data.shape
        return (*shape[: self.axis], len(self.places), *shape[self.axis + 1 :])

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        taken: Any = np.take(_raw(self.data), np.asarray(self.places, np.int64), axis=self.axis)
        yield np.ascontiguousarray(taken).reshape(-1).data


@dataclass(frozen=True)
class Turned(Derived):
    """A matrix with its axes swapped."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape[::-1]

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np

        yield np.ascontiguousarray(_raw(self.data).swapaxes(0, 1)).reshape(-1).data


def _raw(data: TensorData) -> Any:
    """A tensor's bytes as an array of its shape, with the bytes of one element along the last axis."""
    import numpy as np

    whole = bytearray(b"".join(data.chunks()))
    return np.frombuffer(whole, np.uint8).reshape(*data.shape, item_size(data.dtype))


def with_values(recipe: TensorData, *parts: TensorData | None) -> TensorData:
    """A recipe, or only its shape where something that it is made of has no values (the meta device)."""
    known = not any(isinstance(part, ShapeOnly) for part in parts)
    return recipe if known else ShapeOnly(recipe.shape, recipe.dtype)


def select(data: TensorData, rows: tuple[int, ...] | None, columns: Columns | None = None) -> TensorData:
    """A lazy tensor cut to some rows and columns; one without values stays one."""
    return with_values(Selected(data, rows, columns), data)


def select_mask(mask: Mask, rows: tuple[int, ...] | None, columns: Columns | None = None) -> Mask:
    """A mask cut as its weight is."""
    array = mask.array()
    return Mask.from_array(array[index_tables(mask.shape, rows, columns)], dtype=mask.dtype)


@dataclass(frozen=True)
class Zeros(Recipe):
    """A tensor of zeros: a bias that a layer did not have, the last layer of a copy that computes nothing yet."""

    shape: tuple[int, ...]
    dtype: str

    def chunks(self) -> Iterator[memoryview]:
        left = size_of(self.shape, self.dtype)
        piece = memoryview(bytes(min(left, _PIECE)))
        while left:
            yield piece[: min(left, _PIECE)]
            left -= min(left, _PIECE)


def double(data: TensorData) -> torch.Tensor:
    """A lazy tensor evaluated, in double precision."""
    from elastic_ir.tensors.torch_bridge import to_torch

    return to_torch(data).double()


def written(tensor: torch.Tensor, dtype: str) -> Iterator[memoryview]:
    """The bytes of a tensor, rounded to a dtype."""
    import torch

    from elastic_ir.tensors.torch_bridge import TorchData

    yield from TorchData(tensor.to(getattr(torch, dtype))).chunks()


@dataclass(frozen=True)
class Shifted(Derived):
    """``data + sign * (weight applied to constant input channels)``: what those channels gave to every row."""

    weight: TensorData
    constants: tuple[float, ...]  #: one for each input channel; 0 for those that go on flowing
    groups: int = 1
    sign: int = 1

    def chunks(self) -> Iterator[memoryview]:
        shift = contribution(double(self.weight), self.constants, self.groups)
        yield from written(double(self.data) + self.sign * shift, self.dtype)

    def carried(self, moment: torch.Tensor) -> torch.Tensor | None:
        return carried(self.data, moment)


def contribution(weight: torch.Tensor, constants: tuple[float, ...], groups: int) -> torch.Tensor:
    """What constant input channels add to each row of a layer's output, for a weight in double precision."""
    import torch

    summed = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(-1)
    table = torch.tensor(constants, dtype=torch.float64).reshape(groups, 1, -1)
    return (summed * table).sum(-1).reshape(-1)


@dataclass(frozen=True)
class Norm:
    """What a batch norm does in evaluation: its statistics, and its scale and shift where it has them."""

    mean: TensorData
    variance: TensorData
    scale: TensorData | None
    shift: TensorData | None
    epsilon: float

    def factors(self) -> torch.Tensor:
        """``scale / sqrt(variance + epsilon)`` in double precision."""
        import torch

        inverse = torch.rsqrt(double(self.variance) + self.epsilon)
        return inverse if self.scale is None else inverse * double(self.scale)

    def offsets(self, bias: TensorData | None) -> torch.Tensor:
        """What is added once the input is scaled, for an input that carries a bias, in double precision."""
        moved = -double(self.mean) if bias is None else double(bias) - double(self.mean)
        shifted = moved * self.factors()
        return shifted if self.shift is None else shifted + double(self.shift)


@dataclass(frozen=True)
class ScaledRows(Folded, Derived):
    """A weight with each row scaled as the batch norm behind it would scale its channel; zeros stay zeros."""

    norm: Norm

    def chunks(self) -> Iterator[memoryview]:
        weight = double(self.data)
        factors = self.norm.factors().reshape(-1, *[1] * (weight.ndim - 1))
        yield from written(weight * factors, self.dtype)


@dataclass(frozen=True)
class NormBias(Folded):
    """The bias of a layer that has taken over the batch norm behind it."""

    bias: TensorData | None
    norm: Norm
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.norm.mean.shape

    def chunks(self) -> Iterator[memoryview]:
        yield from written(self.norm.offsets(self.bias), self.dtype)


@dataclass(frozen=True)
class Scaled(Derived):
    """A tensor times a number, to the bit as torch computes it; one chunk of it is in memory, and no torch."""

    factor: float

    def chunks(self) -> Iterator[memoryview]:
        from elastic_ir.tensors.arrays import FLOATS, multiplied

        if self.dtype not in FLOATS:  # eight bits, which torch does not multiply either
            yield from written(double(self.data) * self.factor, self.dtype)
            return
        for chunk in self.data.chunks():
            yield multiplied(chunk, self.dtype, self.factor)

    def carried(self, moment: torch.Tensor) -> torch.Tensor | None:
        """The moment as it is: the gradient of a smaller step is smaller by what the weight is."""
        return carried(self.data, moment)


def factor_of(data: TensorData) -> float | None:
    """What a lazy tensor multiplies its source by: 0 where it is zeros, None where it multiplies nothing."""
    return 0.0 if isinstance(data, Zeros) else data.factor if isinstance(data, Scaled) else None


def carried(data: TensorData, moment: torch.Tensor) -> torch.Tensor | None:
    """An optimizer's moment of the source tensor, changed as the tensor was; None where it does not fit.

    Raises EmitError where the tensor was rescaled: its moments belong to another parametrisation.
    """
    if isinstance(data, Recipe):
        return data.carried(moment)
    return moment if tuple(moment.shape) == data.shape else None
