"""Networks on graphs, of PyTorch Geometric: convolutions and norms in lists side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layout_networks.entry import Table, each, floats, package

TABLE = Table()
EDGES = ([0, 1, 1, 2, 3, 0, 4, 2], [1, 0, 2, 1, 0, 3, 2, 4])
PAIR = ("convs.{i}", "norms.{i}")


def graph(width: int = 8) -> Any:
    return lambda: (floats(5, width)(), torch.tensor(EDGES))


def gnn(kind: str, **settings: Any) -> Any:
    def make(n: int) -> nn.Module:
        g = package("torch_geometric.nn")

        made: nn.Module = getattr(g, kind)(8, 8, num_layers=n, **settings)
        return made

    return make


def add(name: str, kinds: str, make: Any, inputs: Any, *stages: Any, **more: Any) -> None:
    TABLE.add(f"pyg_{name}", "torch_geometric", kinds, make, inputs, *stages, **more)


NO_NORM = "the last convolution has neither norm nor activation behind it"
add(
    "gcn_norms",
    "sibling lists, pinned ends",
    gnn("GCN", norm="batch_norm", add_self_loops=False),
    graph(),
    each(*PAIR, of=4, pinned=[-1]),
    depth=4,
    note=NO_NORM,
)
add(
    "gin_last",
    "sibling lists",
    gnn("GIN", norm="layer_norm", jk="last", out_channels=3),
    graph(),
    each(*PAIR, of=3),
    depth=3,
)
add(
    "gat_norms",
    "sibling lists, pinned ends",
    gnn("GAT", norm="batch_norm", heads=2, add_self_loops=False),
    graph(),
    each(*PAIR, of=4, pinned=[-1]),
    depth=4,
    note=NO_NORM,
)
add(
    "gat_v2_plain",
    "sibling lists",
    gnn("GAT", heads=2, v2=True),
    graph(),
    each("convs.{i}", of=4),
    depth=4,
    note="adding loops counts edges by value; the last one's activation is left out, which is the place's",
)
add(
    "sage_maximum",
    "sibling lists, running sum",
    gnn("GraphSAGE", norm="batch_norm", jk="max", out_channels=3),
    graph(),
    each(*PAIR, of=3),
    depth=3,
)
add(
    "sage_concatenated",
    "sibling lists, running sum",
    gnn("GraphSAGE", norm="batch_norm", jk="cat", out_channels=3),
    graph(),
    each(*PAIR, of=3),
    depth=3,
    step=0,
    refused="the last layer's weight has columns for each convolution",
    says=r"lin\b|as wide|columns|concatenat",
)
add(
    "edge_cnn",
    "sibling lists, pinned ends",
    gnn("EdgeCNN", norm="batch_norm"),
    graph(),
    each(*PAIR, of=4, pinned=[-1]),
    depth=4,
    note=NO_NORM,
)
add(
    "gin_in_out",
    "sibling lists, pinned ends",
    lambda n: _in_out(n),
    graph(4),
    each(*PAIR, of=5, pinned=[0, -1]),
    depth=5,
)


def _in_out(n: int) -> nn.Module:
    g = package("torch_geometric.nn")

    made: nn.Module = g.GIN(4, 8, num_layers=n, out_channels=3, norm="batch_norm")
    return made


def _mlp(n: int) -> nn.Module:
    g = package("torch_geometric.nn")

    made: nn.Module = g.MLP([4] + [8] * n + [3])
    return made


add(
    "mlp",
    "sibling lists, pinned ends",
    _mlp,
    floats(5, 4),
    each("lins.{i}", "norms.{i}", of=5, pinned=[0, -1]),
    depth=4,
)


class DeepGCN(nn.Module):
    """The library's example: the first layer's norm runs last."""

    def __init__(self, n: int) -> None:
        g = package("torch_geometric.nn")

        super().__init__()
        self.encode = nn.Linear(4, 8)
        self.layers: Any = nn.ModuleList(
            g.DeepGCNLayer(
                g.GENConv(8, 8, aggr="softmax", t=1.0, num_layers=2),
                nn.LayerNorm(8),
                nn.ReLU(),
                block="res+",
                dropout=0.0,
            )
            for _ in range(n)
        )
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.layers[0].conv(self.encode(x), edges)
        for layer in self.layers[1:]:
            x = layer(x, edges)
        result: Tensor = self.out(self.layers[0].act(self.layers[0].norm(x)))
        return result


add(
    "deep_gcn",
    "plain list, pinned ends",
    DeepGCN,
    graph(4),
    each("layers.{i}", of=4, pinned=[0]),
    depth=4,
    note="the first layer is taken apart: its norm runs behind the last",
)


class Stacked(nn.Module):
    """Convolutions, norms and skips in three lists, zipped."""

    def __init__(self, n: int) -> None:
        g = package("torch_geometric.nn")

        super().__init__()
        self.convs = nn.ModuleList(g.GCNConv(8, 8, add_self_loops=False) for _ in range(n))
        self.norms = nn.ModuleList(g.BatchNorm(8) for _ in range(n))
        self.skips = nn.ModuleList(nn.Linear(8, 8) for _ in range(n))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for conv, norm, skip in zip(self.convs, self.norms, self.skips, strict=True):
            x = torch.relu(norm(conv(x, edges))) + skip(x)
        return x


add(
    "three_lists",
    "sibling lists",
    Stacked,
    graph(),
    each("convs.{i}", "norms.{i}", "skips.{i}", of=3),
    depth=3,
)


class Gps(nn.Module):
    """Message passing and attention in one block."""

    def __init__(self, n: int) -> None:
        g = package("torch_geometric.nn")

        super().__init__()
        self.convs = nn.ModuleList(
            g.GPSConv(
                8,
                g.GINEConv(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))),
                heads=2,
                norm="layer_norm",
                attn_type="multihead",
            )
            for _ in range(n)
        )

    def forward(self, x: Tensor, edges: Tensor, attributes: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edges, edge_attr=attributes)
        return x


add("gps", "plain list", Gps, lambda: (*graph()(), floats(8, 8)()), each("convs.{i}", of=3), depth=3)


class Hetero(nn.Module):
    """A dictionary of convolutions for each layer, and a dictionary of tensors between layers."""

    def __init__(self, n: int) -> None:
        g = package("torch_geometric.nn")

        super().__init__()
        self.layers = nn.ModuleList(
            g.HeteroConv({("a", "to", "b"): g.SAGEConv((8, 8), 8), ("b", "to", "a"): g.SAGEConv((8, 8), 8)})
            for _ in range(n)
        )

    def forward(self, a: Tensor, b: Tensor, edges: Tensor) -> Tensor:
        x = {"a": a, "b": b}
        for layer in self.layers:
            x = layer(x, {("a", "to", "b"): edges, ("b", "to", "a"): edges.flip(0)})
            x = {key: value.relu() for key, value in x.items()}
        return x["a"] + x["b"]


add(
    "hetero",
    "two streams, module dict",
    Hetero,
    lambda: (floats(5, 8)(), floats(5, 8)(), torch.tensor(EDGES)),
    each("layers.{i}", of=3),
    depth=3,
)


def _everyone(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    edges = torch.tensor(EDGES)
    return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=-1)


def _schnet(n: int) -> nn.Module:
    g = package("torch_geometric.nn")

    made: nn.Module = g.SchNet(
        hidden_channels=8, num_filters=8, num_interactions=n, num_gaussians=6, interaction_graph=_everyone
    )
    return made


add(
    "schnet",
    "plain list",
    _schnet,
    lambda: (torch.tensor([1, 6, 6, 8, 1]), floats(5, 3)()),
    each("interactions.{i}", of=3),
    depth=3,
)
