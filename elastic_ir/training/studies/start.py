"""A start: what a method trains from the rewind point on, and what it has done with it in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from elastic_ir.analysis.pruning.flops import ForwardCost, fixed_step, forward_cost
from elastic_ir.training.data import Data
from elastic_ir.training.losses import SoftLabels
from elastic_ir.training.task import Loss


@dataclass
class Start:
    """What is trained from the rewind point on, and under which masks."""

    network: nn.Module
    masks: dict[str, Tensor]
    loss: Loss | SoftLabels | None = None
    callbacks: Sequence[Any] = ()
    masks_at_end: Callable[[], dict[str, Tensor]] | None = None  #: where training changes them
    finish: Callable[[nn.Module], nn.Module] | None = None  #: what is done to the network when it is trained
    scoring: float = (
        0.0  #: floating-point operations that finding the masks (and scales) took, before the training
    )
    beside: float = 0.0  #: operations for each sample of the training beside the network's own: a teacher's
    #: operations of one sample's step, of its forward cost and the masks; by default those of masks that do not move
    step_cost: Callable[[ForwardCost, dict[str, Tensor]], float] | None = None

    def final_masks(self) -> dict[str, Tensor]:
        return self.masks if self.masks_at_end is None else self.masks_at_end()

    def flops(self, data: Data, samples: int) -> float:
        """Operations of the training, and of what was scored for it beforehand."""
        cost = forward_cost(self.network, data.example(self.network))
        masks = self.final_masks()
        each = fixed_step(cost.sparse(masks)) if self.step_cost is None else self.step_cost(cost, masks)
        return self.scoring + (each + self.beside) * samples

    def finished(self) -> nn.Module:
        return self.network if self.finish is None else self.finish(self.network)
