"""Tweaks: a method's start changed so that its ticket trains better, by name, alone or together.

Jaiswal et al. 2022, *Training Your Sparse Neural Network Better with Any Mask*: ghosts that fade while it trains,
layers re-scaled for the first step, softer labels. Masks stay; what is measured in the end has no ghosts.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

import elastic_ir as eir
from elastic_ir.analysis.gradinit import GradInit, find_scales
from elastic_ir.analysis.pruning.flops import gradinit_cost
from elastic_ir.choices import check_choice
from elastic_ir.errors import PlanError
from elastic_ir.ir.graph import Graph
from elastic_ir.passes import LayerwiseRescale, RemoveGhosts
from elastic_ir.training.callbacks import FollowSchedule
from elastic_ir.training.losses import ClassEntropy, SoftLabels
from elastic_ir.training.schedules import schedule_of
from elastic_ir.training.studies.methods import Start
from elastic_ir.training.studies.names import build
from elastic_ir.training.studies.study import Tweak
from elastic_ir.training.studies.transforms import GHOSTS, with_ghosts
from elastic_ir.training.studies.work import Work

_SMOOTHING = 0.1
_SCORED = 16  # batches on which scales are found


def tweaked(start: Start, names: Sequence[str], work: Work) -> Start:
    """A start with these tweaks; ``soft-labels`` needs the folder ``needs["teacher"]`` of the trained dense network.

    Raises PlanError for an unknown tweak, and for two that both choose the loss's labels.
    """
    if not names:
        return start
    for name in names:
        check_choice("tweak", name, Tweak)
    if start.callbacks:
        raise PlanError(
            "tweaks are for tickets whose masks stay as they are, not for dynamic sparse training"
        )
    if "soft-labels" in names and "label-smoothing" in names:
        raise PlanError("soft-labels and label-smoothing both choose the labels; give one of them")
    if "label-smoothing" in names:
        start.loss = ClassEntropy(label_smoothing=_SMOOTHING)
    if "soft-labels" in names:
        teacher = build(work.options)
        teacher.load_state_dict(work.tensors("teacher", "trained.pt"))
        start.loss = SoftLabels(teacher)
        start.beside += work.cost(teacher).dense
    ghosts = any(name in names for name in GHOSTS)
    if not ghosts and "layerwise-rescale" not in names:
        return start
    example = work.data.example(start.network)
    graph = eir.trace(start.network.eval(), (example,), masks=start.masks or None)
    if "layerwise-rescale" in names:
        graph = _rescaled(start, graph, work)
    if not ghosts:
        start.network = graph.to_module(masked=False)
        return start
    graph = with_ghosts(graph, names)
    start.network = graph.to_module(masked=False)
    start.callbacks = [FollowSchedule(schedule_of(graph), work.options["rewind"], work.training.steps)]
    haunted = graph

    def finish(module: nn.Module) -> nn.Module:
        return RemoveGhosts().run(eir.with_weights(haunted, module)).to_module()

    start.finish = finish
    return start


def _rescaled(start: Start, graph: Graph, work: Work) -> Graph:
    """The graph with its layers scaled by what GradInit finds under the training's own loss."""
    size, settings = min(work.training.batch_size, 64), GradInit()
    batches = work.batches(start.network, _SCORED, size, 20_011)
    # soft labels need the images, which this search does not pass on: it goes by the labels themselves
    own = None if isinstance(start.loss, SoftLabels) else start.loss
    loss = own or ClassEntropy(label_smoothing=work.training.label_smoothing)
    cost = work.cost(start.network).sparse(start.masks)
    start.scoring += gradinit_cost(cost, settings.steps * 2 * size)  # two batches a step
    return LayerwiseRescale(scales=find_scales(graph, batches, loss, settings)).run(graph)
