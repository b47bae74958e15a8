"""Optimizer state through clones and deletions: momentum and moments follow their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elastic_ir.emit.parameter_order import targets_in_order
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import module_order
from elastic_ir.tensors.recipes import Recipe, carried
from elastic_ir.tensors.weights import Weight


def remap_optimizer_state(
    graph: Graph, state: Mapping[str, Any], names: Sequence[str], order: Sequence[str] | None = None
) -> dict[str, Any]:
    """An optimizer's ``state_dict()`` for the target's parameters.

    ``names`` are the source's parameter names in the order of the optimizer's parameters. Each group's parameters
    come out in the order of the target's ``named_parameters()``, which ``order`` states; without it, the graph does, or
    where it has none, as one of a file of names, ``names`` do. A clone gets copies of its source's moments, and
    moments are zero where the parameter's mask is 0, so that they cannot revive what is pruned. Raises EmitError
    where names and state do not fit.
    """
    import torch

    from elastic_ir.tensors.torch_bridge import mask_to_torch

    groups = state["param_groups"]
    indices = [index for group in groups for index in group["params"]]
    if len(indices) != len(names):
        raise EmitError(f"the optimizer holds {len(indices)} parameters, {len(names)} names are given")
    if len(set(names)) != len(names):
        raise EmitError("a parameter name is given twice; tied parameters occur once in an optimizer")
    index_of = dict(zip(names, indices, strict=True))
    ties = graph.info.ties
    held = {ties.get(name, name): name for name in names}  # a tied parameter is held under any of its names
    sources: dict[str, list[str]] = {}
    source_of: dict[str, str] = {}
    seen: set[int] = set()
    if order is None and not len(
        graph
    ):  # a file may have its names sorted; those given have the network's order
        numbers = [{*group["params"]} for group in groups]
        order = targets_in_order(
            graph, [[name for name in names if index_of[name] in one] for one in numbers]
        )
    # an ONNX file lists its weights in any order, and no module has every order
    module = module_order(graph.weights) if graph.info.frontend == "onnx" else list(graph.weights)
    ordered = module if order is None else list(order)
    for name in ordered:
        weight = graph.weights[name]
        if weight.is_parameter and id(weight.storage) not in seen:
            seen.add(id(weight.storage))
            if weight.source:
                raise EmitError(
                    f"{name} is of another network, whose optimizer's state is not at hand; start the optimizer anew"
                )
            source_of[name] = held.get(ties.get(weight.origin, weight.origin), weight.origin)
            sources.setdefault(source_of[name], []).append(name)
    known = {weight.origin for weight in graph.weights.values()} | set(graph.info.source_names)
    for name in names:
        if name not in known:
            raise EmitError(
                f"{name!r} is not a parameter of the source network, which is the one that was traced or loaded; "
                "to start from a later one, trace its module"
            )
    places = {name: place for place, name in enumerate(ordered)}
    fresh_state: dict[int, Any] = {}
    fresh_groups = []
    count = 0
    for group in groups:
        own = set(group["params"])
        targets = sorted(
            (target for name in names if index_of[name] in own for target in sources.get(name, ())),
            key=places.__getitem__,
        )
        fresh = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        fresh["params"] = list(range(count, count + len(targets)))
        if "param_names" in group:
            fresh["param_names"] = targets
        for target in targets:
            weight = graph.weights[target]
            moments = _cut(weight, state["state"].get(index_of[source_of[target]]))
            if moments is not None:
                copied = {}
                for key, value in moments.items():
                    if isinstance(value, torch.Tensor):
                        value = value.detach().clone()
                        if weight.mask is not None and tuple(value.shape) == weight.shape:
                            keep = mask_to_torch(weight.mask, torch.bool).to(value.device)
                            value.masked_fill_(~keep, 0)
                    copied[key] = value
                fresh_state[count] = copied
            count += 1
        fresh_groups.append(fresh)
    return {"state": fresh_state, "param_groups": fresh_groups}


def _cut(weight: Weight, moments: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Moments cut as their weight was; None where they do not fit it, and the optimizer starts anew."""
    data = weight.storage.data
    if moments is None or not isinstance(data, Recipe):
        return moments
    cut: dict[str, Any] = {}
    for key, value in moments.items():
        whole = getattr(value, "ndim", 0) > 0
        cut[key] = carried(data, value) if whole else value
        if whole and cut[key] is None:
            return None
    return cut
