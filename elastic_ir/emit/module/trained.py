"""Trained weights: what a training has made of an emitted module, given back to the graph that the module came from.

Depth, structure, masks and ghosts are the graph's and stay; only the tensors are new. So a pipeline goes on after the
training: remove-ghosts, squeeze, export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import MaskError, SourceError
from elastic_ir.ir.graph import Graph
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.torch_bridge import TorchData, dtype_name, mask_to_torch, unwrapped
from elastic_ir.tensors.weights import Storage, Weight

if TYPE_CHECKING:
    import torch


def with_weights(graph: Graph, trained: torch.nn.Module | Mapping[str, torch.Tensor]) -> Graph:
    """The graph with the tensors of a module that was emitted from it, or of such a module's state dict.

    The tensors are copied to the CPU, so training may go on. Buffers outside the state dict (a ghost's factor) come
    along from a module. Names must be the graph's, shapes and dtypes too. Raises SourceError where they are not or
    where names tied in the graph hold different tensors, and MaskError where a pruned weight is not zero any more.

    >>> import elastic_ir as eir
    >>> from elastic_ir.zoo import cifar_resnet
    >>> graph = eir.trace(cifar_resnet(8))
    >>> module = graph.to_module()
    >>> _ = torch.nn.init.ones_(module.fc.bias)
    >>> float(eir.with_weights(graph, module).state_dict()["fc.bias"].sum())
    10.0
    """
    tensors, transient = _tensors(trained)
    wanted = [name for name, weight in graph.weights.items() if weight.persistent]
    missing = [f"{name} is missing" for name in wanted if name not in tensors]
    extra = [f"{name} is unknown to it" for name in tensors if name not in set(wanted)]
    other = [
        why for name in wanted if name in tensors and (why := _unlike(graph.weights[name], tensors[name]))
    ]
    _refuse(graph, [*other, *missing, *extra])
    known = {name: weight for name, weight in graph.weights.items() if not weight.persistent}
    for name, weight in known.items():
        if name in transient and not _unlike(weight, transient[name]):
            tensors[name] = transient[name]
    taken: dict[int, tuple[str, torch.Tensor]] = {}  # by the storage that tied names share
    apart: list[str] = []
    for name, weight in graph.weights.items():
        if name not in tensors:
            continue
        tensor = tensors[name].detach().cpu().clone()
        first = taken.setdefault(id(weight.storage), (name, tensor))
        if first[0] != name:
            if not _equal(first[1], tensor):
                apart.append(f"{first[0]} and {name} are one tied weight there, but differ")
            continue
        _check_zeros(name, weight.storage, tensor)
    _refuse(graph, apart)
    made = graph.copy()
    with Rewriter(made) as rewriter:
        for name, tensor in taken.values():
            rewriter.set_data(name, TorchData(tensor))
    return made


def _tensors(trained: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The state dict, and the buffers that it leaves out."""
    import torch

    if isinstance(trained, torch.nn.Module):
        inner = unwrapped(trained)
        state = {n: t for n, t in inner.state_dict().items() if isinstance(t, torch.Tensor)}
        return state, {name: buffer for name, buffer in inner.named_buffers() if name not in state}
    bad = [name for name, tensor in trained.items() if not isinstance(tensor, torch.Tensor)]
    if bad:
        raise SourceError(
            f"{bad[0]!r} of the trained weights is not a tensor; give a module or its state dict"
        )
    return dict(trained), {}


def _unlike(weight: Weight, tensor: torch.Tensor) -> str:
    if tuple(tensor.shape) != weight.shape:
        return f"{weight.name} is {list(tensor.shape)}, the graph has {list(weight.shape)}"
    if dtype_name(tensor.dtype) != weight.dtype:
        return f"{weight.name} is {dtype_name(tensor.dtype)}, the graph has {weight.dtype} (cast it first)"
    if tensor.is_meta:
        return f"{weight.name} is on the meta device and has no values"
    return ""


def _refuse(graph: Graph, problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SourceError(f"the trained weights do not fit {graph.name}: {'; '.join(problems[:3])}{more}")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, so that NaN equals itself."""
    return b"".join(TorchData(one).chunks()) == b"".join(TorchData(other).chunks())


def _check_zeros(name: str, storage: Storage, tensor: torch.Tensor) -> None:
    """MaskError where a weight that is pruned has become another value than zero."""
    if storage.mask is not None:
        import torch

        wrong = int((tensor[~mask_to_torch(storage.mask, torch.bool)] != 0).sum())
        if wrong:
            raise MaskError(
                f"{wrong} pruned weights of {name!r} are not zero after the training; keep them by "
                "elastic_ir.tickets.enforce, or apply the masks (elastic_ir.tickets.apply_masks) first"
            )
