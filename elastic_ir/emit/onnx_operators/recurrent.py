"""ONNX's recurrent layers as torch functions, with ONNX's order of gates brought into torch's.

ONNX keeps one weight for each direction with its gates below one another; torch takes them in another order (LSTM: i,
f, g, o instead of i, o, f, c; GRU: r, z, n instead of z, r, h).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: The activations that torch has, for one direction and for two.
LSTM_ACTIVATIONS = (["Sigmoid", "Tanh", "Tanh"], ["Sigmoid", "Tanh", "Tanh"] * 2)
GRU_ACTIVATIONS = (["Sigmoid", "Tanh"], ["Sigmoid", "Tanh"] * 2)
RNN_ACTIVATIONS = (["Tanh"], ["Tanh"] * 2, ["Relu"], ["Relu"] * 2)
_LSTM_ORDER = (0, 2, 3, 1)
_GRU_ORDER = (1, 0, 2)


def _reordered(item: Tensor, order: tuple[int, ...]) -> Tensor:
    parts = item.chunk(len(order))
    return torch.cat([parts[place] for place in order])


def _flat_weights(w: Tensor, r: Tensor, b: Tensor | None, order: tuple[int, ...]) -> list[Tensor]:
    flat = []
    for direction in range(w.shape[0]):
        flat += [_reordered(w[direction], order), _reordered(r[direction], order)]
        if b is not None:
            flat += [_reordered(half, order) for half in b[direction].chunk(2)]
    return flat


def _start(state: Tensor | None, x: Tensor, w: Tensor, r: Tensor, layout: int) -> Tensor:
    if state is None:
        return x.new_zeros(w.shape[0], x.shape[1], r.shape[2])
    return state.transpose(0, 1) if layout else state


def _results(
    y: Tensor, states: tuple[Tensor, ...], directions: int, direction: str, layout: int, outputs: int
) -> Any:
    """``y`` as [steps, directions, batch, hidden], or with the batch first."""
    if direction == "reverse":
        y = y.flip(0)
    steps, batch, _ = y.shape
    y = y.reshape(steps, batch, directions, -1)
    y = y.transpose(0, 1) if layout else y.transpose(1, 2)
    if layout:
        states = tuple(state.transpose(0, 1) for state in states)
    return (y, *states)[:outputs] if outputs > 1 else y


def lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: None = None,
    initial_h: Tensor | None = None, initial_c: Tensor | None = None, *, direction: str = "forward",
    hidden_size: int = 0, layout: int = 0, activations: list[str] | None = None, input_forget: int = 0, outputs: int,
) -> Any:  # fmt: skip
    x = x.transpose(0, 1) if layout else x
    start = (_start(initial_h, x, w, r, layout), _start(initial_c, x, w, r, layout))
    flat = _flat_weights(w, r, b, _LSTM_ORDER)
    steps = x.flip(0) if direction == "reverse" else x
    y, hidden, cell = torch.lstm(steps, start, flat, b is not None, 1, 0.0, False, w.shape[0] == 2, False)
    return _results(y, (hidden, cell), w.shape[0], direction, layout, outputs)


def gru(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: None = None,
    initial_h: Tensor | None = None, *, direction: str = "forward", hidden_size: int = 0, layout: int = 0,
    linear_before_reset: int = 0, activations: list[str] | None = None, outputs: int,
) -> Any:  # fmt: skip
    """torch resets behind the matrix; where ONNX resets before it, the steps are taken one by one."""
    x = x.transpose(0, 1) if layout else x
    start = _start(initial_h, x, w, r, layout)
    steps = x.flip(0) if direction == "reverse" else x
    if linear_before_reset:
        flat = _flat_weights(w, r, b, _GRU_ORDER)
        y, hidden = torch.gru(steps, start, flat, b is not None, 1, 0.0, False, w.shape[0] == 2, False)
    else:
        runs = []
        for place in range(w.shape[0]):
            bias = None if b is None else b[place]
            runs.append(_gru_steps(steps.flip(0) if place else steps, w[place], r[place], bias, start[place]))
        y = torch.cat([run.flip(0) if place else run for place, run in enumerate(runs)], -1)
        hidden = torch.stack([run[-1] for run in runs])
    return _results(y, (hidden,), w.shape[0], direction, layout, outputs)


def _gru_steps(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, state: Tensor) -> Tensor:
    inputs = x @ w.t()
    if b is not None:
        inputs = inputs + b.chunk(2)[0] + b.chunk(2)[1]
    size = r.shape[1]
    found = []
    for step in inputs:
        gates = torch.sigmoid(step[:, : 2 * size] + state @ r[: 2 * size].t())
        update, reset = gates.chunk(2, -1)
        fresh = torch.tanh(step[:, 2 * size :] + (reset * state) @ r[2 * size :].t())
        state = (1 - update) * fresh + update * state
        found.append(state)
    return torch.stack(found)


def rnn(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: None = None,
    initial_h: Tensor | None = None, *, direction: str = "forward", hidden_size: int = 0, layout: int = 0,
    activations: list[str] | None = None, outputs: int,
) -> Any:  # fmt: skip
    x = x.transpose(0, 1) if layout else x
    compute = torch.rnn_relu if activations and activations[0] == "Relu" else torch.rnn_tanh
    flat = _flat_weights(w, r, b, (0,))
    steps = x.flip(0) if direction == "reverse" else x
    start = _start(initial_h, x, w, r, layout)
    y, hidden = compute(steps, start, flat, b is not None, 1, 0.0, False, w.shape[0] == 2, False)
    return _results(y, (hidden,), w.shape[0], direction, layout, outputs)
