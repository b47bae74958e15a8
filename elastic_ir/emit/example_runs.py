"""Runs of a module on its example inputs, and on a second set made from them.

One input proves little: what adds zero there, or reads only where the input is zero, does not show. The second input is
made of the first one's own numbers, which are surely ones that the network takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from elastic_ir.emit.comparison import Outputs, coarsest, refuse_not_finite
from elastic_ir.errors import EmitError
from elastic_ir.ir.example_inputs import tensors_in
from elastic_ir.tensors.torch_bridge import device_of, dtype_name

#: Positional and keyword arguments of one call.
Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls_of(inputs: Any, device: torch.device | str) -> list[Call]:
    """The example inputs on a device, and a second set of the same shapes; only one, where they hold no tensor."""
    moved = inputs.to(device)
    first = (tuple(moved.args), dict(moved.kwargs))
    second = another(first)
    return [first] if second is None else [first, second]


def another(call: Call) -> Call | None:
    """A second set of inputs; None where the first holds no numbers that could be others."""
    leaves, form = _pytree.tree_flatten(call)
    changed = [_other(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    same = all(
        one is other or (isinstance(one, torch.Tensor) and not one.is_meta and torch.equal(one, other))
        for one, other in zip(leaves, changed, strict=True)
    )
    if same:
        return None
    made: Call = _pytree.tree_unflatten(changed, form)
    return made


def _other(tensor: torch.Tensor) -> torch.Tensor:
    """Other numbers of the kind: the elements in reverse, floats smaller by a quarter; noise for what is constant."""
    if tensor.is_meta or not tensor.numel() or tensor.dtype == torch.bool:
        return tensor
    turned = tensor.flatten().flip(0).reshape(tensor.shape)
    if not tensor.is_floating_point():
        return turned
    if bool((tensor == tensor.flatten()[0]).all()):
        generator = torch.Generator().manual_seed(1)
        return torch.rand(tensor.shape, generator=generator).to(tensor)
    return turned * 0.75


def with_another(module: nn.Module, first: Call) -> list[Call]:
    """A call, and a second one of other numbers where the module takes it and returns no NaN."""
    second = another(first)
    try:
        if second is not None:
            refuse_not_finite(run_module(module, [second]), None)
    except EmitError:  # these numbers are made up, and the network need not take them
        second = None
    return [first] if second is None else [first, second]


def run_module(module: nn.Module, calls: Sequence[Call], what: str = "the network made") -> Outputs:
    """What a module returns on each input, without gradients, with the same random numbers each time.

    Modes are the caller's. Raises EmitError with what the forward raised.
    """
    runs: list[tuple[Any, ...]] = []
    kinds: tuple[str, ...] = ()
    dtypes = {dtype_name(p.dtype) for p in module.parameters() if p.is_floating_point()}
    device = device_of(module)
    for args, kwargs in calls:
        given, options = _pytree.tree_map(_copied, (args, kwargs))
        try:
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(0)
                made = module(*given, **options)
        except Exception as error:  # a forward may raise anything
            raise EmitError(f"{what} does not run: {type(error).__name__}: {message(error)}") from error
        tensors = tensors_in(made)
        dtypes.update(dtype_name(tensor.dtype) for tensor in tensors if tensor.is_floating_point())
        if not runs:
            kinds = tuple(dtype_name(tensor.dtype) for tensor in tensors)
        runs.append(tuple(map(_array, tensors)))
    return Outputs(tuple(runs), coarsest(tuple(dtypes)), kinds)


def _copied(item: Any) -> Any:
    return item.clone() if isinstance(item, torch.Tensor) else item


def _array(tensor: torch.Tensor) -> Any:
    if tensor.is_meta:
        return np.broadcast_to(np.float32(0), tuple(tensor.shape))  # of its shape, and of no memory
    plain = tensor.detach().cpu()
    if plain.is_sparse:
        plain = plain.to_dense()
    if plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32, torch.float64):
        plain = plain.float()  # numpy has no bfloat16
    return plain.resolve_conj().resolve_neg().numpy()


def message(error: Exception) -> str:
    """What an exception says, on one line of at most 300 characters."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]
