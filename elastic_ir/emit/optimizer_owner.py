"""Which optimizers of a training's folder are one network's, where it has several.

Accelerate numbers networks and optimizers each in the order in which they were prepared, and pairs them by number only
under FSDP. Elsewhere an optimizer is a network's if all of its parameters can be that network's, by names where it has
them, else by the moments' shapes, and no matrix of the network is left; and of no other network. What may be of two
networks, or is of none alone, is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from elastic_ir.emit.training_file import is_optimizer, moments_shape
from elastic_ir.errors import EmitError
from elastic_ir.formats.training_folder import (
    TrainingFolder,
    is_of_fsdp,
    network_number,
    optimizer_number,
)
from elastic_ir.tensors.arrays import FLOATS
from elastic_ir.tensors.lazy import TensorData

Tensors = Mapping[str, TensorData]


def optimizers_of(
    source: TrainingFolder, others: Mapping[str, Tensors], load: Callable[[str], Any]
) -> list[str]:
    """The names of the network's optimizers; ``others`` are the folder's further networks, ``load`` reads a file.

    Raises EmitError where that is not certain.
    """
    optimizers = [name for name in source.along() if optimizer_number(name) is not None]
    if not others:
        return optimizers
    if is_of_fsdp(source.network):
        number = network_number(source.network)
        return [name for name in optimizers if optimizer_number(name) == number]
    networks = {source.network: source.tensors, **others}
    mine = []
    for optimizer in optimizers:
        state: Any = load(optimizer) if (source.folder / optimizer).is_file() else None
        homes = [name for name, tensors in networks.items() if is_optimizer(state) and _fits(state, tensors)]
        if homes == [source.network]:
            mine.append(optimizer)
        elif source.network in homes or not homes:
            whose = f"may be that of {' or of '.join(homes)}" if homes else "is of none of them alone"
            raise EmitError(
                f"{source.folder} has several networks, {', '.join(sorted(networks))}, and {optimizer} {whose}; write "
                "the weights alone, with -o NAME.safetensors"
            )
    return mine


def _fits(state: Mapping[str, Any], tensors: Tensors) -> bool:
    """Whether an optimizer's parameters can be all of a network's; buffers and names of one tensor may be left."""
    groups = state["param_groups"]
    listed = [one for group in groups for one in group["params"]]
    shapes = [moments_shape(state["state"].get(one, {})) for one in listed]
    names = [name for group in groups for name in group.get("param_names", ())]
    names = names or [one for one in listed if isinstance(one, str)]
    left = dict.fromkeys(tensors.values())
    if len(listed) > len(left):
        return False
    if names:
        if len(names) != len(listed) or not tensors.keys() >= set(names):
            return False
        for name, shape in zip(names, shapes, strict=True):
            if shape not in (None, tensors[name].shape):
                return False
            left.pop(tensors[name], None)
        return not _matrices(Counter(data.shape for data in left if data.dtype in FLOATS))
    rest = Counter(data.shape for data in left if data.dtype in FLOATS)
    rest.subtract(shape for shape in shapes if shape is not None)
    return min(rest.values(), default=0) >= 0 and _matrices(rest) <= shapes.count(None)


def _matrices(shapes: Counter[tuple[int, ...]]) -> int:
    return sum(count for shape, count in shapes.items() if len(shape) > 1)
