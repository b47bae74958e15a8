"""Pruning: a dense network becomes a ticket, and a sparse one a sparser ticket, without any training.

By magnitude (Han et al. 2015, *Learning both Weights and Connections*), over all layers together or layer by layer, or
by scores that data or the paths through the network give (SNIP, GraSP, SynFlow:
:mod:`elastic_ir.analysis.pruning.scores`). What was pruned stays pruned and counts. No layer is left out by its place:
first and last layers are pruned with the rest, as in the elastic ticket paper, unless ``skip`` names them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from elastic_ir.analysis.pruning.distributions import Distribution, kept_counts
from elastic_ir.choices import check_choice
from elastic_ir.errors import MaskError, PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes.infra import Pass, left
from elastic_ir.passes.infra.chosen import prunable_of
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.lazy import ITEM_SIZES, Mask, ShapeOnly
from elastic_ir.tensors.smallest import Ranked, pruned_count, smallest_pruned
from elastic_ir.tensors.weights import Weight

if TYPE_CHECKING:
    from elastic_ir.analysis.pruning.scores import Batch

Ranking: TypeAlias = Literal["magnitude", "snip", "grasp", "synflow"]
Scope: TypeAlias = Literal["global", Distribution]


@dataclasses.dataclass(frozen=True)
class Prune(Pass):
    """Prune weights by magnitude, SNIP, GraSP or SynFlow: a dense network becomes a ticket."""

    name: ClassVar[str] = "prune"
    needs_structure: ClassVar[bool] = False
    gains: ClassVar[str] = (
        "neither by itself: files store the zeros and kernels compute with them, 2:4 too (sparse tensor cores alone "
        "run it faster); .ticket and export --sparse store fewer, compact cuts what is all zero"
    )

    sparsity: float | None = None  #: the share of zeros afterwards, with what is pruned already
    by: Ranking = "magnitude"  #: what is pruned first: the smallest, or the lowest scores of a method
    scope: Scope = "global"  #: all layers in one ranking, or how the sparsity is spread over them
    n: int | None = None  #: in place of a sparsity: weights kept of every m along the input
    m: int | None = None  #: weights of a group; which weights are taken is as for nm-project
    only: (
        Sequence[str] | str
    ) = ()  #: names of weights or layers to prune, instead of all; * stands for anything
    skip: Sequence[str] | str = ()  #: names of weights or layers to leave alone; they do not count
    #: A .npz or .safetensors file with inputs and labels (class numbers), for SNIP and GraSP; in Python also batches of
    #: inputs and targets.
    data: Any = None
    batch: int = 64  #: examples of the file in a batch
    temperature: float = 200.0  #: grasp: divides the outputs
    iterations: int = 100  #: synflow: rounds
    #: From Python: a function of outputs and targets, in place of the cross-entropy.
    loss: Callable[[Any, Any], Any] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_choice("prune: by", self.by, Ranking)
        check_choice("prune: scope", self.scope, Scope)
        if (self.sparsity is None) == (self.n is None) or (self.n is None) != (self.m is None):
            raise PlanError(
                "prune: state in exactly one way how much is pruned: sparsity=0.9, or n=2 m=4 together"
            )
        if self.n is not None and self.scope != "global":
            raise PlanError("prune: n and m fix every layer's sparsity; leave the scope out")
        if self.by == "synflow" and self.scope != "global":
            raise PlanError("prune: SynFlow ranks all layers together; leave the scope out")
        if self.data is not None and not isinstance(self.data, (str, _Batches)):
            object.__setattr__(self, "data", _Batches(tuple(self.data)))

    def rewrite(self, graph: Graph, rewriter: Rewriter) -> None:
        chosen, skipped = self._chosen(graph)
        axes: dict[str, int] = {}
        if self.n is not None and self.m is not None:
            from elastic_ir.passes.sparsity.nm_project import pattern_axes

            axes, unfit = pattern_axes(graph, chosen, self.n, self.m)
            skipped |= unfit
            chosen = {name: chosen[name] for name in axes}
        for name, weight in chosen.items():
            if isinstance(weight.storage.data, ShapeOnly):
                raise PlanError(f"{name!r} is on the meta device and has no values; load the weights first")
        if not chosen:
            raise PlanError(f"no weight of {graph.name} can be pruned{left(skipped)}")
        try:
            masks = self._masks(graph, chosen, axes)
        except MaskError as error:
            raise PlanError(str(error)) from error
        for name, mask in masks.items():
            rewriter.set_mask(name, mask)
        #: Plain data for reports: the weights that were pruned, and why the others were not.
        rewriter.report({"pruned": list(masks), "skipped": skipped})

    def summary(self, graph: Graph) -> str | None:
        report = self.report(graph)
        masks = {name: mask for name in report["pruned"] if (mask := graph.weights[name].mask) is not None}
        zeros, total = (sum(getattr(mask, part) for mask in masks.values()) for part in ("zeros", "size"))
        text = f"pruned {zeros:,} of {total:,} weights ({zeros / total:.2%}) in {len(masks)} layers"
        emptied = [name for name, mask in masks.items() if not mask.ones]
        if emptied:
            text += f"; nothing is left of {', '.join(emptied[:3])}{', ...' if len(emptied) > 3 else ''}"
        return text + left(report["skipped"])

    def _chosen(self, graph: Graph) -> tuple[dict[str, Weight], dict[str, str]]:
        """The weights to rank by name, tied ones once, and why others were left; PlanError for a wrong pattern."""
        weights, (only, skip) = prunable_of(graph, only=self.only, skip=self.skip)
        chosen: dict[str, Weight] = {}
        skipped: dict[str, str] = {}
        for name, weight in weights.items():
            if name in skip:
                skipped[name] = "skipped as asked"
            elif self.only and name not in only:
                continue
            elif weight.dtype not in ITEM_SIZES or not weight.dtype.startswith(
                ("float", "bfloat", "complex")
            ):
                skipped[name] = f"its numbers are {weight.dtype}, which no mask fits"
            else:
                chosen[name] = weight
        return chosen, skipped

    def _masks(self, graph: Graph, chosen: dict[str, Weight], axes: dict[str, int]) -> Mapping[str, Mask]:
        if self.by != "magnitude":
            return self._scored(graph, chosen, axes)
        if self.n is not None and self.m is not None:
            from elastic_ir.tensors.nm_mask import PatternMask

            return {
                name: PatternMask(weight.storage.data, self.n, self.m, weight.mask, axes[name])
                for name, weight in chosen.items()
            }
        found: dict[str, Mask] = {}
        for group, count in self._counts(chosen):
            ranked = [Ranked(name, chosen[name].storage.data, chosen[name].mask) for name in group]
            found |= smallest_pruned(ranked, count)
        return found

    def _counts(self, chosen: dict[str, Weight]) -> list[tuple[list[str], int]]:
        """The weights that are ranked together, and how many of each such group are pruned then."""
        assert self.sparsity is not None
        sizes = {name: prod(weight.shape) for name, weight in chosen.items()}
        if self.scope == "global":
            groups = [(list(chosen), pruned_count(sum(sizes.values()), self.sparsity))]
        else:
            shapes = {name: weight.shape for name, weight in chosen.items()}
            counts = kept_counts(shapes, self.sparsity, self.scope)
            groups = [([name], sizes[name] - kept) for name, kept in counts.items()]
        for names, count in groups:
            held = sum(mask.zeros for name in names if (mask := chosen[name].mask) is not None)
            if held > count:
                total = sum(sizes[name] for name in names)
                what = names[0] if self.scope != "global" else "the network"
                raise PlanError(
                    f"{what} is pruned to {held / total:.4g} already, and what is pruned stays so; its share "
                    f"of sparsity={self.sparsity:g} is {count / total:.4g}: give a higher sparsity"
                )
        return groups

    def _scored(self, graph: Graph, chosen: dict[str, Weight], axes: dict[str, int]) -> dict[str, Mask]:
        """Masks by the scores of a method; of the module that the graph stands for, on its device."""
        import torch

        from elastic_ir.analysis.pruning.scores import synflow_masks
        from elastic_ir.passes.infra import need_network
        from elastic_ir.tensors.torch_bridge import mask_to_torch
        from elastic_ir.tickets.magnitude import masks_from_scores, prunable_weights

        need_network(graph, self.name)
        groups = [] if axes else self._counts(chosen)
        module = graph.to_module()
        others = [name for name in prunable_weights(module) if name not in chosen]
        if len(prunable_weights(module)) != len(others) + len(chosen):
            raise PlanError(f"not all weights of {graph.name} belong to layers that {self.by} can score")
        held = {
            name: mask_to_torch(weight.mask, torch.bool).to(module.get_parameter(name).device)
            for name, weight in chosen.items()
            if weight.mask is not None
        }
        if self.by == "synflow" and not axes:
            assert self.sparsity is not None
            found = self._run(
                synflow_masks, module, self.sparsity, _input_shape(graph),
                iterations=self.iterations, leave_out=others, masks=held,
            )  # fmt: skip
        else:
            scores = self._scores(graph, module, others)
            for name, mask in held.items():
                scores[name][~mask] = -torch.inf  # pruned stays pruned
            if axes:
                return {name: self._patterned(chosen[name], scores[name], axes[name]) for name in chosen}
            found = {}
            for names, count in groups:
                found |= masks_from_scores({name: scores[name] for name in names}, count)
        return {name: _packed(mask.cpu().numpy(), chosen[name]) for name, mask in found.items()}

    def _scores(self, graph: Graph, module: Any, others: list[str]) -> dict[str, Any]:
        from torch.nn.functional import cross_entropy

        from elastic_ir.analysis.pruning.scores import grasp_scores, snip_scores, synflow_scores

        if self.by == "synflow":
            return self._run(synflow_scores, module, _input_shape(graph), leave_out=others)
        if self.by == "snip":
            return self._run(
                snip_scores, module, self._batches(), self.loss or cross_entropy, leave_out=others
            )
        return self._run(
            grasp_scores, module, self._batches(), self.loss or cross_entropy,
            temperature=self.temperature, leave_out=others,
        )  # fmt: skip

    def _run(self, method: Callable[..., dict[str, Any]], *given: Any, **options: Any) -> dict[str, Any]:
        from elastic_ir.errors import first_line

        try:
            return method(*given, **options)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise PlanError(
                f"{self.by} does not run on this network and these examples: {first_line(error)}"
            ) from error

    def _batches(self) -> Sequence[Batch]:
        if isinstance(self.data, _Batches):
            return self.data.pairs
        if self.data is None:
            raise PlanError(
                f"{self.by} scores weights on examples: pass data=FILE (.npz or .safetensors with inputs and labels)"
            )
        from elastic_ir.analysis.samples import read_batches

        return read_batches(self.data, self.batch)

    def _patterned(self, weight: Weight, scores: Any, axis: int) -> Mask:
        """The best n of every m by their scores."""
        from elastic_ir.tensors.nm_mask import keep_largest

        assert self.n is not None and self.m is not None
        chosen = keep_largest(scores.cpu().numpy(), self.n, self.m, axis)
        return _packed(chosen if weight.mask is None else chosen & weight.mask.array(), weight)


@dataclasses.dataclass(frozen=True, eq=False)
class _Batches:
    """Batches that Python gave; the record of what ran states their number."""

    pairs: tuple[Batch, ...]

    def __str__(self) -> str:
        return f"{len(self.pairs)} batches"


def _packed(keep: Any, weight: Weight) -> Mask:
    return Mask.from_array(keep, weight.name, "bool" if weight.mask is None else weight.mask.dtype)


def _input_shape(graph: Graph) -> tuple[int, ...]:
    """The shape of the one input that a network takes, without the batch; PlanError for others."""
    from elastic_ir.analysis.cost import examples
    from elastic_ir.ir.example_inputs import tensors_in

    inputs = examples(graph)
    tensors = [] if inputs is None else tensors_in((inputs.args, dict(inputs.kwargs)))
    if len(tensors) != 1 or not tensors[0].ndim or not tensors[0].is_floating_point():
        raise PlanError(
            f"SynFlow runs one input of ones, and {graph.name} has {len(tensors) or 'no known'} inputs"
        )
    return tuple(tensors[0].shape[1:])
