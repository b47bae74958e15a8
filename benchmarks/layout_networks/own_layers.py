"""Minimal networks of layers without a weight of that name: parametrized, recurrent, raw; shared ones;
and graph modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from benchmarks.layout_networks.entry import Table, each, floats
from benchmarks.layout_networks.own_blocks import Attend, D, Residual

TABLE = Table()


def symbolic(n: int) -> nn.Module:
    return torch.fx.symbolic_trace(
        nn.Sequential(nn.Linear(4, D), *[Residual() for _ in range(n)], nn.Linear(D, 2))
    )


def exported(n: int) -> nn.Module:
    source = nn.Sequential(nn.Linear(4, D), *[Residual() for _ in range(n)], nn.Linear(D, 2)).eval()
    module = torch.export.export(source, (torch.randn(3, 4),)).module()
    module.eval = lambda: module  # type: ignore[method-assign]  # it refuses to change modes
    return module


TABLE.add(
    "own_fx_graph_module", "own", "graph module", symbolic, floats(3, 4), each("{i}", of=[1, 2, 3]), depth=3
)
TABLE.add(
    "own_export_graph_module",
    "own",
    "graph module",
    exported,
    floats(3, 4),
    each("{i}", of=[1, 2, 3]),
    depth=3,
)


class Fixed(nn.Module):
    """Multiplies a weight by a pattern that never changes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.pattern: Tensor
        self.register_buffer("pattern", (torch.rand(shape) > 0.5).float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.pattern


def normed(apply: Any) -> Any:
    def make(n: int) -> nn.Module:
        net = nn.Sequential(*[Residual() for _ in range(n)])
        for block in net:
            apply(block.a)
            apply(block.b)
        return nn.Sequential(nn.Linear(4, D), net, nn.Linear(D, 2))

    return make


for _name, _apply in {
    "weight_norm": parametrizations.weight_norm,
    "old_weight_norm": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "fixed_pattern": lambda layer: parametrize.register_parametrization(
        layer, "weight", Fixed(layer.weight.shape)
    ),
}.items():
    TABLE.add(
        f"own_{_name}", "own", "parametrized", normed(_apply), floats(3, 4), each("1.{i}", of=3), depth=3
    )


class Recurrent(nn.Module):
    """Recurrent layers: several levels of one, or one each in a list."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], n: int, listed: bool, both: bool = False) -> None:
        super().__init__()
        width = D // 2 if both else D
        if listed:
            self.layers = nn.ModuleList(
                kind(D, width, batch_first=True, bidirectional=both) for _ in range(n)
            )
        else:
            self.rnn = kind(D, width, n, batch_first=True, bidirectional=both)
        self.fc = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers if hasattr(self, "layers") else [self.rnn]:
            x, _ = layer(x)
        result: Tensor = self.fc(x[:, -1])
        return result


_ONE_WAY = ("rnn.weight_ih_l{i}", "rnn.weight_hh_l{i}", "rnn.bias_ih_l{i}", "rnn.bias_hh_l{i}")
TABLE.add(
    "own_lstm_layers",
    "own",
    "recurrent",
    lambda n: Recurrent(nn.LSTM, n, False),
    floats(2, 5, D),
    each(*_ONE_WAY, of=3),
    depth=3,
)
TABLE.add(
    "own_gru_both_ways",
    "own",
    "recurrent",
    lambda n: Recurrent(nn.GRU, n, False, True),
    floats(2, 5, D),
    each(*_ONE_WAY, *(f"{slot}_reverse" for slot in _ONE_WAY), of=3),
    depth=3,
)
TABLE.add(
    "own_lstm_list",
    "own",
    "recurrent",
    lambda n: Recurrent(nn.LSTM, n, True),
    floats(2, 5, D),
    each("layers.{i}", of=3),
    depth=3,
)


class Raw(nn.Module):
    """Weights and biases in two ParameterLists."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(nn.Parameter(torch.randn(D, D)) for _ in range(n))
        self.shifts = nn.ParameterList(nn.Parameter(torch.randn(D)) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for kernel, shift in zip(self.kernels, self.shifts, strict=True):
            x = x + torch.tanh(x @ kernel + shift)
        return x


class RawBlock(nn.Module):
    """A block of two matrices that are parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in, self.w_out = nn.Parameter(torch.randn(D, 2 * D)), nn.Parameter(torch.randn(2 * D, D))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(x @ self.w_in) @ self.w_out


TABLE.add(
    "own_parameter_lists",
    "own",
    "raw parameters, sibling lists",
    Raw,
    floats(2, D),
    each("kernels.{i}", "shifts.{i}", of=3),
    depth=3,
)
TABLE.add(
    "own_raw_parameters",
    "own",
    "raw parameters",
    lambda n: nn.Sequential(*[RawBlock() for _ in range(n)]),
    floats(2, D),
    each("{i}", of=3),
    depth=3,
)


class Rope(nn.Module):
    """A table of rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor
        self.register_buffer("cache", torch.randn(16, D), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.cache[: x.shape[1]]


class Rotated(nn.Module):
    """A block that uses the table."""

    def __init__(self, rope: Rope) -> None:
        super().__init__()
        self.rope, self.fc = rope, nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.fc(x * self.rope(x))
        return result


class SharedRope(nn.Module):
    """Every layer holds the same table."""

    def __init__(self, n: int) -> None:
        super().__init__()
        torch.manual_seed(3)  # the table is no weight: another network of the kind has the same
        rope = Rope()
        self.layers = nn.ModuleList(Rotated(rope) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


TABLE.add(
    "own_shared_rotary_table",
    "own",
    "shared buffer",
    SharedRope,
    floats(2, 5, D),
    each("layers.{i}", of=3),
    depth=3,
)


class OverTime(nn.Module):
    """A cell for each layer, run once for every step of time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.GRUCell(D, D) for _ in range(n))
        self.out = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = list(x.unbind(1))
        for cell in self.cells:
            state, given = torch.zeros(x.shape[0], D), []
            for step in steps:
                state = cell(step, state)
                given.append(state)
            steps = given
        result: Tensor = self.out(steps[-1])
        return result


TABLE.add(
    "own_cells_over_time",
    "own",
    "recurrent, shared block",
    OverTime,
    floats(2, 4, D),
    each("cells.{i}", of=3),
    depth=3,
)


class SharedBlock(nn.Module):
    """Zamba's way: one large block used at every layer, with an adapter of each layer's own."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.shared = Attend()
        self.adapters = nn.ModuleList(nn.Linear(D, D) for _ in range(n))
        self.layers = nn.ModuleList(Residual() for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for layer, adapter in zip(self.layers, self.adapters, strict=True):
            x = layer(x + adapter(self.shared(x)))
        return x


TABLE.add(
    "own_shared_block_with_adapters",
    "own",
    "shared block, sibling lists",
    SharedBlock,
    floats(2, 5, D),
    each("adapters.{i}", "layers.{i}", of=3),
    depth=3,
)


class Albert(nn.Module):
    """One layer, many times."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.layer = n, Residual()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.n):
            x = self.layer(x)
        return x


TABLE.add(
    "own_one_layer_many_times",
    "own",
    "shared block",
    lambda n: Albert(4),
    floats(2, D),
    refused="one layer is applied many times",
    says=r"runs \d+ times over the same weights",
)
