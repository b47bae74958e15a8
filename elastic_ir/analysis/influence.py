"""How much each unit does: one minus the cosine between what enters and what leaves it, over all positions of samples.

Block Influence of Men et al. 2024, *ShortGPT: Layers in Large Language Models are More Redundant Than You Expect*,
section 3. A position is a token, or a pixel of an image; the cosine is taken along the channels.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from elastic_ir.analysis.samples import Samples
from elastic_ir.analysis.summary import channel_axis
from elastic_ir.errors import PlanError, first_line
from elastic_ir.ir.example_inputs import tensors_in
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.structure import Stage, Unit

if TYPE_CHECKING:
    import torch


def block_influence(graph: Graph, samples: Samples, batch: int = 16) -> dict[Unit, float]:
    """The influence of each free unit, between 0 (it changes no direction) and 2; the network is run in evaluation.

    Raises PlanError where the network does not run on the samples, or where a unit cannot be watched.
    """
    import torch

    module = graph._module_for_shapes().eval()
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is not None and like.is_meta:
        raise PlanError(
            f"{graph.name} has no values (meta device), so it cannot be measured; load its weights"
        )
    for stage in graph.stages:
        if stage.container.parameters:
            raise PlanError(
                f"{stage.container.path!r} runs its {len(stage)} layers in one call, so what each of them does "
                "cannot be measured; say which are to go by their numbers"
            )
    units = [(stage, unit) for stage in graph.stages for unit in stage.units]
    sums = {unit: 0.0 for _, unit in units}
    counts = dict.fromkeys(sums, 0)
    named = samples.ordered(list(inspect.signature(module.forward).parameters))
    with torch.no_grad():
        for part in named.batches(batch, like):
            try:
                ends = _run(module, [unit for _, unit in units], part)
            except PlanError:
                raise
            except Exception as error:  # whatever a network raises on inputs that it was not made for
                raise PlanError(
                    f"{graph.name} does not run on the inputs given: {first_line(error)}"
                ) from error
            for stage, unit in units:
                cosines = _cosines(*ends[unit], stage)
                sums[unit] += float(cosines.sum())
                counts[unit] += cosines.numel()
    return {unit: 1 - sums[unit] / counts[unit] for unit in sums}


def _cosines(before: torch.Tensor, after: torch.Tensor, stage: Stage) -> torch.Tensor:
    """The cosine at each position; equal vectors, of zeros as well, have 1."""
    import torch
    from torch.nn import functional

    axis = channel_axis(stage, tuple(before.shape)) if before.ndim > 2 else 1
    if axis is None:
        axis = 1 if before.ndim > 3 else -1
    before, after = before.double(), after.double()
    cosines = functional.cosine_similarity(before, after, dim=axis, eps=1e-30)
    empty = (before == 0).all(axis) & (after == 0).all(axis)
    return torch.where(empty, torch.ones_like(cosines), cosines)


Ends = dict[Unit, tuple[Any, Any]]


def _run(module: torch.nn.Module, units: list[Unit], part: Samples) -> Ends:
    """What enters and leaves each unit in one run: values of a GraphModule's nodes, else what its modules saw."""
    from torch import fx

    ends: Ends = {}
    for unit in units:
        if len(unit.ends) != 2:
            raise PlanError(
                f"{len(unit.blocks[0].inputs)} tensors flow into {unit.path}, and what a unit does is measured on one"
            )
    if isinstance(module, fx.GraphModule) and any("values" in node.meta for node in module.graph.nodes):
        found = _interpreted(module, units, part)
        for unit in units:
            first, last = unit.ends
            ends[unit] = (found[first.name], found[last.name])
        return ends
    with contextlib.ExitStack() as hooks:
        for unit in units:
            hooks.enter_context(_watched(module, unit, ends))
        module(*part.args, **part.kwargs)
    for unit in units:
        if len(ends.get(unit, ())) != 2 or None in [type(end) for end in ends[unit]]:
            raise PlanError(
                f"the forward does not call {unit.path} as a module on a tensor, so what it does cannot be measured"
            )
    return ends


def _interpreted(module: Any, units: list[Unit], part: Samples) -> dict[str, Any]:
    """The wanted values of a GraphModule's run, by the names of the graph's nodes."""
    from torch import fx

    wanted = {end.name for unit in units for end in unit.ends}
    found: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            for name in wanted.intersection(n.meta.get("values", ())):
                found[name] = result.clone()  # what follows may write into it
            return result

    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    given = [*part.args, *(part.kwargs[name] for name in names[len(part.args) :] if name in part.kwargs)]
    if len(given) > len(names):
        raise PlanError(
            f"{len(given)} inputs are given, and the network has {len(names)}: {', '.join(names)}"
        )
    Recorder(module).run(*given)
    return found


@contextlib.contextmanager
def _watched(module: torch.nn.Module, unit: Unit, ends: Ends) -> Iterator[None]:
    """Notes what the unit's first module is called with, and what its last one returns."""

    def first(items: Any) -> Any:
        return next((tensor for tensor in tensors_in(items) if tensor.is_floating_point()), None)

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        given = first((args, kwargs))
        ends[unit] = (given.clone() if given is not None else None, None)  # a block may write into its input

    def leave(_: Any, args: Any, result: Any) -> None:
        given = first(result)
        if unit in ends and given is not None:
            ends[unit] = (ends[unit][0], given.clone())

    begin = module.get_submodule(unit.blocks[0].children[0].path)
    end = module.get_submodule(unit.blocks[-1].children[-1].path)
    hooks = (begin.register_forward_pre_hook(enter, with_kwargs=True), end.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
