"""Normalising flows: nflows, normflows, FrEIA. A log-determinant goes along with the sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layout_networks.entry import Table, cls, each, floats, runs

TABLE = Table()


class Density(nn.Module):
    """The log-density of samples under a flow."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.flow.log_prob(x)
        return result


def maf(n: int) -> nn.Module:
    steps: list[nn.Module] = []
    for _ in range(n):
        steps.append(cls("nflows.transforms.permutations.ReversePermutation")(6))
        steps.append(
            cls("nflows.transforms.autoregressive.MaskedAffineAutoregressiveTransform")(6, 8, num_blocks=2)
        )
    return Density(
        cls("nflows.flows.base.Flow")(
            cls("nflows.transforms.base.CompositeTransform")(steps),
            cls("nflows.distributions.normal.StandardNormal")([6]),
        )
    )


TABLE.add(
    "nflows_maf",
    "nflows",
    "state passed along, mixed kinds, repeats within repeats",
    maf,
    floats(3, 6),
    each("flow._transform._transforms.{i}", of=6, unit=2),
    depth=3,
)


def couplings(n: int) -> nn.Module:
    steps = [
        cls("nflows.transforms.coupling.AffineCouplingTransform")(
            torch.tensor([1, -1] * 3) * (1 if i % 2 else -1),
            lambda a, b: cls("nflows.nn.nets.resnet.ResidualNet")(a, b, hidden_features=8, num_blocks=1),
        )
        for i in range(n)
    ]
    return Density(
        cls("nflows.flows.base.Flow")(
            cls("nflows.transforms.base.CompositeTransform")(steps),
            cls("nflows.distributions.normal.StandardNormal")([6]),
        )
    )


TABLE.add(
    "nflows_couplings",
    "nflows",
    "state passed along",
    couplings,
    floats(3, 6),
    each("flow._transform._transforms.{i}", of=4, or_units=[2], grows=2),
    depth=4,
    step=2,
    note="which half changes is a buffer's matter; stretched by one block it is another one's turn",
)
TABLE.add(
    "nflows_residual_net",
    "nflows",
    "lists inside blocks, plain list",
    lambda n: cls("nflows.nn.nets.resnet.ResidualNet")(
        4, 3, hidden_features=8, num_blocks=n, use_batch_norm=True
    ),
    floats(3, 4),
    each("blocks.{i}", of=3),
    depth=3,
)


def real_nvp(n: int) -> nn.Module:
    steps: list[nn.Module] = []
    for _ in range(n):
        steps.append(cls("normflows.flows.AffineCouplingBlock")(cls("normflows.nets.MLP")([3, 8, 6])))
        steps.append(cls("normflows.flows.Permute")(6, mode="swap"))
    return Density(cls("normflows.NormalizingFlow")(cls("normflows.distributions.DiagGaussian")(6), steps))


TABLE.add(
    "normflows_real_nvp",
    "normflows",
    "state passed along, mixed kinds",
    real_nvp,
    floats(3, 6),
    runs("flow.flows", of=3, width=2),
    depth=3,
    note="the density runs through the list backwards; every second entry has no weights",
)


def planar(n: int) -> nn.Module:
    made: nn.Module = cls("normflows.NormalizingFlow")(
        cls("normflows.distributions.DiagGaussian")(6),
        [cls("normflows.flows.Planar")((6,)) for _ in range(n)],
    )
    return made


TABLE.add(
    "normflows_planar",
    "normflows",
    "raw parameters, state passed along",
    planar,
    floats(3, 6),
    each("flows.{i}", of=3),
    depth=3,
    note="a block is three parameters, none of them called weight",
)


def subnet(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Linear(a, 8), nn.ReLU(), nn.Linear(8, b))


class Invertible(nn.Module):
    """A sequence of invertible modules, with permutations between them or without."""

    def __init__(self, n: int, kind: str, permuted: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inn = cls("FrEIA.framework.SequenceINN")(6)
        for _ in range(n):
            self.inn.append(cls(f"FrEIA.modules.{kind}"), subnet_constructor=subnet)
            if permuted:
                self.inn.append(cls("FrEIA.modules.PermuteRandom"), seed=0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.inn(x)
        return result


TABLE.add(
    "freia_all_in_one",
    "FrEIA",
    "state passed along, raw parameters",
    lambda n: Invertible(n, "AllInOneBlock", False),
    floats(3, 6),
    each("inn.module_list.{i}", of=3),
    or_stages=(each("inn.module_list.{i}", of=3, pinned=[0]),),
    depth=3,
    note="the log-determinant starts as a literal zero, so that the first block may be kept",
)
TABLE.add(
    "freia_glow_permuted",
    "FrEIA",
    "state passed along, mixed kinds",
    lambda n: Invertible(n, "GLOWCouplingBlock", True),
    floats(3, 6),
    runs("inn.module_list", of=3, width=2),
    or_stages=(runs("inn.module_list", of=3, width=2, pinned=[0]),),
    depth=3,
    note="the log-determinant starts as a literal zero, so that the first block may be kept",
)
