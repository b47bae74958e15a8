"""ONNX's recurrent layers as torch functions, with ONNX's order of gates brought into torch's.

ONNX keeps one weight for each direction with its gates below one another; torch takes them in another order (LSTM: i,
f, g, o instead of i, o, f, c; GRU: r, z, n instead of z, r, h).
"""

from __future__ import annotations

from collections.abc import Callable
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


def _run(
    compute: Callable[..., Any], order: tuple[int, ...], x: Tensor, w: Tensor, r: Tensor, b: Tensor | None,
    states: tuple[Tensor | None, ...], direction: str, layout: int, outputs: int,
) -> Any:  # fmt: skip
    """Run a recurrent function of torch's; ``x`` is [steps, batch, inputs], or with the batch first (``layout`` 1).

    The first result is [steps, directions, batch, hidden], or with the batch first as well.
    """
    steps = x.transpose(0, 1) if layout else x
    directions, batch = w.shape[0], steps.shape[1]
    start = [
        x.new_zeros(directions, batch, r.shape[2])
        if state is None
        else state.transpose(0, 1)
        if layout
        else state
        for state in states
    ]
    steps = steps.flip(0) if direction == "reverse" else steps
    flat = _flat_weights(w, r, b, order)
    y, *ends = compute(
        steps,
        start if len(start) > 1 else start[0],
        flat,
        b is not None,
        1,
        0.0,
        False,
        directions == 2,
        False,
    )
    y = (y.flip(0) if direction == "reverse" else y).reshape(len(steps), batch, directions, -1)
    y = y.transpose(0, 1) if layout else y.transpose(1, 2)
    if layout:
        ends = [state.transpose(0, 1) for state in ends]
    return (y, *ends)[:outputs] if outputs > 1 else y


def lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: None = None,
    initial_h: Tensor | None = None, initial_c: Tensor | None = None, *, direction: str = "forward",
    hidden_size: int = 0, layout: int = 0, activations: list[str] | None = None, input_forget: int = 0, outputs: int,
) -> Any:  # fmt: skip
    return _run(torch.lstm, _LSTM_ORDER, x, w, r, b, (initial_h, initial_c), direction, layout, outputs)


def gru(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: None = None,
    initial_h: Tensor | None = None, *, direction: str = "forward", hidden_size: int = 0, layout: int = 0,
    linear_before_reset: int = 0, activations: list[str] | None = None, outputs: int,
) -> Any:  # fmt: skip
    """torch resets behind the matrix; where ONNX resets before it, the steps are taken one by one."""
    compute = torch.gru if linear_before_reset else _gru_resetting_first
    return _run(compute, _GRU_ORDER, x, w, r, b, (initial_h,), direction, layout, outputs)


def _gru_resetting_first(
    steps: Tensor, start: Tensor, flat: list[Tensor], *options: Any
) -> tuple[Tensor, Tensor]:
    """As torch.gru of one layer, with the state reset before its product with the matrix."""
    runs, size = [], len(flat) // len(start)
    for place, state in enumerate(start):
        w, r, *biases = flat[place * size : (place + 1) * size]
        inputs = (steps.flip(0) if place else steps) @ w.t()
        for bias in biases:
            inputs = inputs + bias
        hidden, found = r.shape[1], []
        for step in inputs:
            gates = torch.sigmoid(step[:, : 2 * hidden] + state @ r[: 2 * hidden].t())
            reset, update = gates.chunk(2, -1)
            fresh = torch.tanh(step[:, 2 * hidden :] + (reset * state) @ r[2 * hidden :].t())
            state = (1 - update) * fresh + update * state
            found.append(state)
        runs.append(torch.stack(found))
    y = torch.cat([run.flip(0) if place else run for place, run in enumerate(runs)], -1)
    return y, torch.stack([run[-1] for run in runs])


def rnn(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, sequence_lens: None = None,
    initial_h: Tensor | None = None, *, direction: str = "forward", hidden_size: int = 0, layout: int = 0,
    activations: list[str] | None = None, outputs: int,
) -> Any:  # fmt: skip
    compute = torch.rnn_relu if activations and activations[0] == "Relu" else torch.rnn_tanh
    return _run(compute, (0,), x, w, r, b, (initial_h,), direction, layout, outputs)
