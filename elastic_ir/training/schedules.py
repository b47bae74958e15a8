"""Schedules: what a graph's passes want done to its module while it trains, independent of any trainer.

Ghosts (:mod:`elastic_ir.rewrite.ghosts`) fade by the schedule that the pass has recorded in the graph; it is read back
here, from a graph in memory or from a file, and applied to the emitted module by setting buffers in place, which a
compiled module sees without being compiled again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic_ir.errors import PlanError, SourceError
from elastic_ir.ir.graph import Graph
from elastic_ir.rewrite.ghosts import Decay, decays, factors
from elastic_ir.tensors.torch_bridge import unwrapped

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Fading:
    """One kind of ghost: the buffers that hold its factors, and how these move."""

    kind: str
    buffers: tuple[str, ...]
    decay: Decay


@dataclass(frozen=True)
class Schedule:
    """All that moves with the training's progress; empty for a graph without ghosts."""

    fadings: tuple[Fading, ...] = ()

    def __len__(self) -> int:
        return sum(len(fading.buffers) for fading in self.fadings)

    def at(self, progress: float) -> dict[str, float]:
        """The value of every buffer at a point of the training, by name; PlanError outside 0 to 1."""
        if not 0 <= progress <= 1:
            raise PlanError(f"progress={progress} is outside the training, which goes from 0 to 1")
        return {name: fading.decay.at(progress) for fading in self.fadings for name in fading.buffers}

    def apply(self, module: torch.nn.Module, progress: float) -> None:
        """Set the buffers of the graph's module in place; ``progress`` goes from 0 (no step done) to 1 (all done).

        DataParallel, DistributedDataParallel and ``torch.compile`` may wrap the module. Raises PlanError for a module
        that lacks a buffer (one emitted from another graph), or for a progress outside 0 to 1.
        """
        values = self.at(progress)
        inner = unwrapped(module)
        buffers = dict(inner.named_buffers())
        for name in values:
            if name not in buffers:
                raise PlanError(
                    f"{type(inner).__name__} has no buffer {name!r} to set; apply the schedule to the module that "
                    "its own graph gave (graph.to_module())"
                )
        for name, value in values.items():
            buffers[name].fill_(value)


def schedule_of(graph: Graph) -> Schedule:
    """The schedule of a graph's ghosts, copies of blocks included; SourceError where a file's record is damaged.

    >>> import elastic_ir as eir
    >>> from elastic_ir.passes import GhostSkips
    >>> from elastic_ir.zoo import cifar_resnet
    >>> schedule = schedule_of(GhostSkips(decay="linear").run(eir.trace(cifar_resnet(8))))
    >>> len(schedule), schedule.at(0.25)["layer1.0.conv1.ghost_skip"]
    (4, 0.5)
    """
    known = decays(graph)
    fadings = []
    for kind, names in factors(graph).items():
        if kind not in known:
            raise SourceError(f"{graph.name} has ghosts of kind {kind!r}, and no record of how they fade")
        fadings.append(Fading(kind, tuple(names), known[kind]))
    return Schedule(tuple(fadings))
