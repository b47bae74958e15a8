"""Linear mode connectivity: how the error rises along the straight line between two trained networks.

Frankle et al. 2020, *Linear Mode Connectivity and the Lottery Ticket Hypothesis*, section 2: the barrier is the highest
error on the line less the mean error of its ends; two trainings of a stable ticket have almost none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elastic_ir.training.data import Data
from elastic_ir.training.fit import Engine, measured
from elastic_ir.training.task import Loss


@dataclass(frozen=True)
class Line:
    """Accuracies or losses at shares of the way from one network to the other; the ends are the first and the last."""

    shares: list[float]
    values: list[float]
    measure: str = "accuracy"  #: or "loss", where targets are not classes

    @property
    def worst(self) -> float:
        return min(self.values) if self.measure == "accuracy" else max(self.values)

    @property
    def height(self) -> float:
        """The error barrier: 0 where no point of the line is worse than the mean of the ends."""
        ends = (self.values[0] + self.values[-1]) / 2
        return max(0.0, ends - self.worst if self.measure == "accuracy" else self.worst - ends)


def between(one: Mapping[str, Tensor], two: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """A state dict on the line; whole numbers (a norm's count of batches) are the first one's."""
    return {
        name: torch.lerp(value, two[name].to(value), share) if value.is_floating_point() else value
        for name, value in one.items()
    }


def barrier(
    network: nn.Module, one: Mapping[str, Tensor], two: Mapping[str, Tensor], data: Data, *, points: int = 11,
    engine: Engine | None = None, loss: Loss | None = None,
) -> Line:  # fmt: skip
    """The accuracies on the test split along the line between two state dicts; the network ends as the second.

    Where targets are not classes, it is the losses. Statistics of batch norms lie on the line too: they are part of the
    state, which the elastic ticket paper's code (Chen et al. 2021; VITA-Group/ElasticLTH,
    lottery/branch/change_depth_linear_connect.py) mixes whole but for masks.
    """
    shares = [index / (points - 1) for index in range(points)]
    found = []
    for share in shares:
        network.load_state_dict(between(one, two, share))
        found.append(measured(network, data.test, loss, engine=engine))
    return Line(shares, [point.value for point in found], found[0].measure)
