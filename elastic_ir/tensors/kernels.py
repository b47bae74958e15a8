"""Kernels of morphed convolutions: one kernel as two in a row, and kernels with zeros around them.

Wei, Wang, Rui & Chen 2016, *Network Morphism*: two convolutions in a row are one whose kernel is the convolution of
theirs, summed over the channels between (section 3.2). Given the one, the two are found by least squares for either in
turn, with the other held (algorithm 1). Where one side has as many unknowns as equations, a single step is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import EmitError
from elastic_ir.tensors.lazy import TensorData
from elastic_ir.tensors.recipes import Derived, Recipe, carried, double, written

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_STEPS = 200


@dataclass(frozen=True)
class Split:
    """A kernel of shape (out, in / groups, \\*size) as two in a row, with ``middle`` channels between.

    ``first`` and ``second`` are their sizes: first + second - 1 >= size, and the even surplus lies around the kernel.
    """

    name: str
    data: TensorData
    groups: int
    middle: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    seed: int
    tolerance: float  #: the largest distance of what the two make from the kernel, relative to the kernel

    @property
    def exact(self) -> bool:
        """Whether the sizes let one step of least squares be exact, whatever the kernel is."""
        return self._by_second or self._by_first

    @property
    def _whole(self) -> tuple[int, ...]:
        return tuple(a + b - 1 for a, b in zip(self.first, self.second, strict=True))

    @property
    def _by_second(self) -> bool:
        between = self.middle // self.groups
        return between * prod(self.second) >= self.data.shape[1] * prod(self._whole)

    @property
    def _by_first(self) -> bool:
        between, rows = self.middle // self.groups, self.data.shape[0] // self.groups
        return between * prod(self.first) >= rows * prod(self._whole)

    def kernels(self) -> tuple[Array, Array]:
        """Both kernels, in double precision; EmitError where they miss the source's by more than the tolerance."""
        import numpy as np

        source = double(self.data).numpy()
        pads = [(w - s) // 2 for w, s in zip(self._whole, source.shape[2:], strict=True)]
        source = np.pad(source, [(0, 0), (0, 0), *((p, p) for p in pads)])
        dice = np.random.default_rng(self.seed)
        parts = [self._solve(part, dice) for part in np.split(source, self.groups)]
        one, two = (np.concatenate(side) for side in zip(*parts, strict=True))
        missed = sum(
            float(np.square(_composed(a, b, self._whole) - part).sum())
            for (a, b), part in zip(parts, np.split(source, self.groups), strict=True)
        )
        distance = float(np.sqrt(missed / max(float(np.square(source).sum()), 1e-300)))
        if distance > self.tolerance:
            raise EmitError(
                f"morph: two kernels miss that of {self.name} by {distance:.2g} of its size, more than "
                f"tolerance={self.tolerance:g}; give more channels between them (mid)"
            )
        return one, two

    def _solve(self, kernel: Array, dice: np.random.Generator) -> tuple[Array, Array]:
        """One group's two kernels: algorithm 1, begun on the side that is held well-conditioned."""
        import numpy as np

        between = self.middle // self.groups
        rows, columns = kernel.shape[:2]
        size = float(np.sqrt(np.square(kernel).mean())) or 1.0
        one = _orthonormal(dice, between, columns * prod(self.first)).reshape(between, columns, *self.first)
        two = _orthonormal(dice, rows, between * prod(self.second)).reshape(rows, between, *self.second)
        begin_with_second = self._by_second or not self._by_first
        best = float("inf")
        for step in range(1 if self.exact else _STEPS):
            if begin_with_second == (step % 2 == 0):
                two = _second_of(kernel, one, self.second)
            else:
                one = _first_of(kernel, two, self.first)
            missed = float(np.sqrt(np.square(_composed(one, two, self._whole) - kernel).mean())) / size
            if missed <= self.tolerance / 2 or missed > best * (1 - 1e-6):
                break
            best = missed if step % 2 else best
        return one, two


def _orthonormal(dice: np.random.Generator, rows: int, columns: int) -> Array:
    """A random matrix with orthonormal rows or columns, whichever there are fewer of."""
    import numpy as np

    tall = rows >= columns
    found, _ = np.linalg.qr(dice.standard_normal((rows, columns) if tall else (columns, rows)))
    return found if tall else found.T


def _composed(one: Array, two: Array, whole: tuple[int, ...]) -> Array:
    """The kernel that two in a row make: offsets add up, channels between are summed."""
    import numpy as np

    made = np.zeros((two.shape[0], one.shape[1], *whole))
    for v in product(*map(range, two.shape[2:])):
        for w in product(*map(range, one.shape[2:])):
            place = tuple(a + b for a, b in zip(v, w, strict=True))
            target: Any = (..., *place)
            one_at: Any = (..., *w)
            two_at: Any = (..., *v)
            made[target] += two[two_at] @ one[one_at]
    return made


def _second_of(kernel: Array, one: Array, size: tuple[int, ...]) -> Array:
    """Least squares for the second kernel, with the first held."""
    import numpy as np

    rows, columns, *whole = kernel.shape
    between = one.shape[0]
    if prod(one.shape[2:]) == 1:  # each place of the kernel by itself
        table = one.reshape(between, columns)
        places = np.moveaxis(kernel, 1, -1)  # (rows, *whole, columns)
        return np.moveaxis(places @ np.linalg.pinv(table), -1, 1)
    system = np.zeros((columns, *whole, between, *size))
    for v in product(*map(range, size)):
        for w in product(*map(range, one.shape[2:])):
            place = tuple(a + b for a, b in zip(v, w, strict=True))
            target: Any = (slice(None), *place, slice(None), *v)
            one_at: Any = (..., *w)
            system[target] = one[one_at].T
    wanted = kernel.reshape(rows, -1).T
    found, *_ = np.linalg.lstsq(system.reshape(columns * prod(whole), -1), wanted, rcond=None)
    made: Any = found.T.reshape(rows, between, *size)
    return made  # type: ignore[no-any-return]


def _first_of(kernel: Array, two: Array, size: tuple[int, ...]) -> Array:
    """Least squares for the first kernel, with the second held: the same with inputs and outputs swapped."""
    import numpy as np

    return np.swapaxes(_second_of(np.swapaxes(kernel, 0, 1), np.swapaxes(two, 0, 1), size), 0, 1)


@dataclass(frozen=True)
class Factor(Recipe):
    """One of the two kernels of a split; moments begin anew, since no gradient of it was ever taken."""

    split: Split
    place: int  #: 0 for the kernel that runs first, 1 for the one behind it

    @property
    def shape(self) -> tuple[int, ...]:
        split = self.split
        rows, columns = split.data.shape[:2]
        if self.place == 0:
            return (split.middle, columns, *split.first)
        return (rows, split.middle // split.groups, *split.second)

    @property
    def dtype(self) -> str:
        return self.split.data.dtype

    def chunks(self) -> Iterator[memoryview]:
        import numpy as np
        import torch

        made = torch.from_numpy(np.ascontiguousarray(self.split.kernels()[self.place]))
        yield from written(made, self.dtype)


@dataclass(frozen=True)
class PaddedKernel(Derived):
    """A kernel with zeros around it, to a larger size."""

    size: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.data.shape[:2], *self.size)

    def chunks(self) -> Iterator[memoryview]:
        from elastic_ir.tensors.torch_bridge import to_torch

        yield from written(self._padded(to_torch(self.data)), self.dtype)

    def carried(self, moment: torch.Tensor) -> torch.Tensor | None:
        """The moment with zeros around it, where the new weights have none yet."""
        inner = carried(self.data, moment)
        return None if inner is None else self._padded(inner)

    def _padded(self, tensor: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        pads = [(a - b) // 2 for a, b in zip(self.size, tensor.shape[2:], strict=True)]
        return functional.pad(tensor, [pad for pad in reversed(pads) for _ in range(2)])
