"""Recurrent networks for tests: modules of several layers, lists of them, cells over time, and what passes states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 8


class Tagger(nn.Module):
    """A recurrent module of n layers, and a linear layer on its last step."""

    def __init__(
        self,
        kind: type[nn.LSTM | nn.GRU | nn.RNN],
        layers: int,
        features: int = WIDTH,
        width: int = WIDTH,
        **options: Any,
    ) -> None:
        super().__init__()
        self.rnn = kind(features, width, layers, batch_first=True, **options)
        ways = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear((options.get("proj_size") or width) * ways, 3)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.rnn(x)
        return self.head(y[:, -1])


class LastState(Tagger):
    """The classifier that reads the last layer's state, and hands out the cells of all."""

    def forward(self, x: Tensor) -> Any:
        _, (h, c) = self.rnn(x)
        return self.head(h[-1]), c


class FromZeros(Tagger):
    """Initial states made of zeros in the forward, by a count that it keeps."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU | nn.RNN], layers: int, **options: Any):
        super().__init__(kind, layers, **options)
        self.num_layers = layers

    def forward(self, x: Tensor) -> Any:
        h = torch.zeros(self.num_layers, x.size(0), WIDTH).to(x.device)
        y, (h, _) = self.rnn(x, (h, torch.zeros_like(h)))
        return self.head(y[:, -1]), h.view(self.num_layers, 1, x.size(0), WIDTH)[-1]


class Learned(Tagger):
    """Initial states that are parameters: one for each layer."""

    def __init__(self, layers: int):
        super().__init__(nn.GRU, layers)
        self.start = nn.Parameter(torch.randn(layers, 1, WIDTH))

    def forward(self, x: Tensor) -> Any:
        y, _ = self.rnn(x, self.start.expand(-1, x.shape[0], -1).contiguous())
        return self.head(y)


class Translator(nn.Module):
    """A decoder that starts from the states of the encoder."""

    def __init__(self, layers: int):
        super().__init__()
        self.encoder = nn.LSTM(WIDTH, WIDTH, layers, batch_first=True)
        self.decoder = nn.LSTM(WIDTH, WIDTH, layers, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        _, states = self.encoder(x)
        return self.decoder(x, states)[0]


class Listed(nn.Module):
    """A list of recurrent modules."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU | nn.RNN], layers: int):
        super().__init__()
        self.rnns = nn.ModuleList(kind(WIDTH, WIDTH, batch_first=True) for _ in range(layers))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        states = []
        for rnn in self.rnns:
            x, state = rnn(x)
            states.append(state)
        return self.head(x), torch.cat(states) if isinstance(states[0], Tensor) else torch.zeros(1)


class Block(nn.Module):
    """A residual block around an LSTM of both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.rnn = nn.LSTM(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        return x + self.out(self.rnn(self.norm(x))[0])


class Residual(nn.Module):
    """A row of such blocks."""

    def __init__(self, layers: int):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.blocks(x))


class OverTime(nn.Module):
    """Cells that take turns, all of them once for every step of time."""

    def __init__(self, kind: type[nn.GRUCell | nn.LSTMCell], layers: int):
        super().__init__()
        self.cells = nn.ModuleList(kind(WIDTH, WIDTH) for _ in range(layers))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        states: list[Any] = [None for _ in self.cells]
        given = []
        for step in x.unbind(1):
            for number, cell in enumerate(self.cells):
                states[number] = cell(step, states[number])
                step = states[number][0] if isinstance(cell, nn.LSTMCell) else states[number]
            given.append(step)
        return self.head(torch.stack(given, 1))


def onnx_stack(kind: str, layers: int, both: bool, seed: int = 0) -> Any:
    """Recurrent nodes in a row, as PyTorch's exporters write them: what lies between puts directions side by side."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.RandomState(seed)
    gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if both else 1
    width = WIDTH // ways
    nodes, tensors, value = [], [], "x"
    shape = numpy_helper.from_array(np.array([0, 0, -1]), "shape")
    axis = numpy_helper.from_array(np.array([1]), "axis")
    for number in range(layers):
        shapes = {"w": (gates * width, WIDTH), "r": (gates * width, width), "b": (2 * gates * width,)}
        names = []
        for role, extents in shapes.items():
            array = (random.randn(ways, *extents) * 0.5).astype("float32")
            names.append(f"{role}{number}")
            tensors.append(numpy_helper.from_array(array, names[-1]))
        direction = "bidirectional" if both else "forward"
        nodes.append(
            helper.make_node(kind, [value, *names], [f"y{number}"], hidden_size=width, direction=direction)
        )
        if both:
            nodes.append(helper.make_node("Transpose", [f"y{number}"], [f"t{number}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"t{number}", "shape"], [f"z{number}"]))
        else:
            nodes.append(helper.make_node("Squeeze", [f"y{number}", "axis"], [f"z{number}"]))
        value = f"z{number}"
    array = random.randn(WIDTH, 3).astype("float32")
    tensors += [numpy_helper.from_array(array, "head"), shape if both else axis]
    nodes.append(helper.make_node("MatMul", [value, "head"], ["out"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 2, size])
        for name, size in (("x", WIDTH), ("out", 3))
    ]
    made = helper.make_graph(nodes, "stack", ends[:1], ends[1:], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
