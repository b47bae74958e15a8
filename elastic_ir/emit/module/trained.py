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
from elastic_ir.tensors.torch_bridge import TorchData, mask_to_torch, unwrapped
from elastic_ir.tensors.weights import Storage, first_few, misfits, unlike

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
    state, transient = _tensors(trained)
    wanted = {name: weight for name, weight in graph.weights.items() if weight.persistent}
    problems = [f"{name} is on the meta device and has no values" for name in state if state[name].is_meta]
    problems = problems or misfits(
        wanted, {name: TorchData(tensor) for name, tensor in state.items()}, "the graph"
    )
    if problems:
        raise SourceError(f"the trained weights do not fit {graph.name}: {first_few(problems)}")
    for name, buffer in transient.items():
        weight = graph.weights.get(name)
        fits = weight is not None and not weight.persistent and not unlike(weight, TorchData(buffer), "")
        if fits and not buffer.is_meta:
            state[name] = buffer
    made = graph.copy()
    with Rewriter(made) as rewriter:
        done: set[int] = set()
        for name, weight in graph.weights.items():
            if name in state and id(weight.storage) not in done:  # what is tied is one tensor
                done.add(id(weight.storage))
                tensor = state[name].detach().cpu().clone()
                _check_zeros(name, weight.storage, tensor)
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
