"""Inputs that a network is measured on: what it was traced with, tensors, or a file of arrays, perhaps with labels."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import PlanError, SourceError
from elastic_ir.formats import SAFETENSORS
from elastic_ir.formats.safetensors import tensors_of_file
from elastic_ir.ir.example_inputs import map_tensors, tensors_in
from elastic_ir.ir.graph import Graph

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Samples:
    """Positional and keyword inputs of a network, samples along the first axis."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(given: Any) -> Samples:
        """From a path, a tensor, a tuple of them in the order of the network's inputs, or a mapping by their names."""
        if isinstance(given, Samples):
            return given
        if isinstance(given, (str, os.PathLike)):
            return _read(Path(given))
        if isinstance(given, Mapping):
            return Samples((), {name: _tensor(item) for name, item in given.items()})
        parts = given if isinstance(given, (tuple, list)) else (given,)
        return Samples(tuple(_tensor(item) for item in parts))

    @staticmethod
    def traced(graph: Graph, name: str) -> Samples:
        """The example inputs that a user traced a network with; PlanError where they are guessed or noise."""
        inputs = graph.origin.inputs
        if inputs is None or inputs.guessed or inputs.noise:
            raise PlanError(
                f"{name} measures the network on inputs, and none were given: pass data=FILE (.npy, .npz or "
                ".safetensors, samples along the first axis), or trace with example inputs of the kind it is used on"
            )
        return Samples(inputs.args, inputs.kwargs)

    def __len__(self) -> int:
        """How many samples there are; PlanError where the inputs do not agree."""
        counts = {len(item) for item in self._tensors() if item.ndim}
        if len(counts) != 1:
            raise PlanError(f"the inputs hold {sorted(counts)} samples; give the same number of each")
        return int(counts.pop())

    def _tensors(self) -> list[torch.Tensor]:
        return tensors_in((self.args, dict(self.kwargs)))

    def batches(self, size: int, like: torch.Tensor | None) -> Iterator[Samples]:
        """Parts of so many samples, on the device and with the floating dtype of a parameter."""

        def cut(item: torch.Tensor, begin: int) -> torch.Tensor:
            part = item[begin : begin + size] if item.ndim else item
            if like is None:
                return part
            return part.to(like.device, like.dtype if part.is_floating_point() else part.dtype)

        for begin in range(0, len(self), size):
            whole = (self.args, dict(self.kwargs))
            yield Samples(*map_tensors(whole, functools.partial(cut, begin=begin)))

    def ordered(self, names: list[str]) -> Samples:
        """By name where the names are a network's inputs, in the order that they came in where none is.

        PlanError where only some are.
        """
        unknown = [name for name in self.kwargs if name not in names]
        if not unknown:
            return self
        if len(unknown) < len(self.kwargs):
            raise PlanError(f"the network has no input {unknown[0]!r}; its inputs are {', '.join(names)}")
        return Samples((*self.args, *self.kwargs.values()))


def _tensor(item: Any) -> torch.Tensor:
    import numpy as np
    import torch

    if isinstance(item, torch.Tensor):
        return item
    array = np.ascontiguousarray(item)
    if array.dtype.kind not in "fiub":
        raise PlanError(f"data holds {array.dtype}, which cannot be an input of a network; give numbers")
    return torch.from_numpy(array)


def _read(path: Path) -> Samples:
    """The arrays of a file; SourceError where there is none, or where it is of another kind. No file may run code."""
    import numpy as np

    if not path.is_file():
        raise SourceError(f"{path} does not exist")
    try:
        if path.suffix.lower() == ".npy":
            return Samples((_tensor(np.load(path, allow_pickle=False)),))
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return Samples.of({name: arrays[name] for name in arrays.files})
        if SAFETENSORS.names(path):
            return Samples((), tensors_of_file(path))
    except PlanError:
        raise
    except Exception as error:  # the readers raise anything on damaged files
        raise SourceError(f"{path.name} cannot be read as inputs: {error}") from error
    raise SourceError(f"{path.name} is none of .npy, .npz and .safetensors, which inputs are read from")


def read_batches(path: str, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The labelled examples of a file in its order, in batches; the last one is smaller.

    The file, ``.npz`` or ``.safetensors``, holds ``inputs``, [examples, ...], and ``labels``, class numbers [examples].
    Raises SourceError for a file that cannot be read, or does not hold ``inputs`` and as many ``labels``.
    """
    file = Path(path)
    if batch < 1:
        raise SourceError(f"batch={batch}: a batch holds one example or more")
    found = _read(file).kwargs
    missing = next((name for name in ("inputs", "labels") if name not in found), None)
    if missing is not None:
        raise SourceError(
            f"{file.name} holds no {missing!r} but {', '.join(map(repr, found)) or 'nothing'}; "
            "call the examples 'inputs' and their class numbers 'labels'"
        )
    x, y = found["inputs"], found["labels"]
    kind = str(y.dtype).removeprefix("torch.")
    if y.ndim != 1 or "int" not in kind:
        raise SourceError(f"{file.name}: the labels are {kind}{list(y.shape)}, not a row of class numbers")
    if not x.ndim or len(x) != len(y) or not len(x):
        raise SourceError(f"{file.name}: {len(y)} labels do not fit inputs of {list(x.shape)}")
    inputs, labels = x.float() if x.is_floating_point() else x, y.long()
    return [(inputs[at : at + batch], labels[at : at + batch]) for at in range(0, len(labels), batch)]
