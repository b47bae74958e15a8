"""Shapes of a traced module's values: it is run on fake tensors, each layer once for each form of its input.

Deep networks apply the same layer to the same shape over and over, and what torch does to find the shape of a batch
norm's result costs more than the rest of tracing. A layer of ``torch.nn`` whose settings, weights and input have the
form of one that was run gives what that one gave.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from elastic_ir.ir.example_inputs import Inputs, map_tensors
from elastic_ir.tensors.torch_bridge import device_of

_PLAIN = (bool, int, float, str, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Form(NamedTuple):
    """All of a tensor that decides what a layer makes of it, but its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Form:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def propagate(model: nn.Module, traced: fx.Graph, inputs: Inputs) -> dict[fx.Node, Any]:
    """Each node's result on fake tensors, in evaluation: shapes without arithmetic, and without allocating weights."""
    mode = None if device_of(model).type == "meta" else FakeTensorMode(allow_non_fake_inputs=True)

    def fake(item: Any) -> Any:
        return map_tensors(item, mode.from_tensor) if mode is not None else item

    names = [n.target for n in traced.nodes if n.op == "placeholder"]
    given = [fake(item) for item in inputs.args]
    given += [fake(inputs.kwargs[name]) if name in inputs.kwargs else None for name in names[len(given) :]]
    recorder = _Recorder(model, traced)
    with torch.no_grad(), mode if mode is not None else nullcontext():
        recorder.run(*given)
    return {
        node: value for node, value in recorder.results.items() if value is not None or node.op != "output"
    }


class _Recorder(fx.Interpreter):
    """Runs nodes one after another and keeps what each gives."""

    def __init__(self, model: nn.Module, traced: fx.Graph) -> None:
        super().__init__(model, garbage_collect_values=True, graph=traced)
        self.results: dict[fx.Node, Any] = {}
        self._settings: dict[
            int, Any
        ] = {}  # of a layer, by its id: what it is and what it holds, None if not plain
        #: The form of what a layer gave, by its settings and its input's form; None where it gave its input back.
        self._given: dict[Any, Form | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.results[n] = super().run_node(n)
        return self.results[n]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer's result; of one that is like another on a like input, by that one's."""
        layer: nn.Module = self.fetch_attr(target)
        plain = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
        settings = self._settings_of(layer) if plain else None
        if settings is None:
            return super().call_module(target, args, kwargs)
        key = settings, Form.of(args[0])
        if key in self._given:
            form = self._given[key]
            return (
                args[0]
                if form is None
                else torch.empty_strided(*form[:2], dtype=form.dtype, device=form.device)
            )
        made = super().call_module(target, args, kwargs)
        if type(made) is type(args[0]):
            self._given[key] = None if made is args[0] else Form.of(made)
        return made

    def _settings_of(self, layer: nn.Module) -> Any:
        if id(layer) not in self._settings:
            self._settings[id(layer)] = _settings_of(layer)
        return self._settings[id(layer)]


def _settings_of(layer: nn.Module) -> Any:
    """All that decides what a layer of torch does to a tensor's form; None where it may do anything else."""
    kind = type(layer)
    if getattr(nn, kind.__name__, None) is not kind or layer._modules or any(map(vars(layer).get, _HOOKS)):
        return None
    found: list[Any] = [kind]
    for name, value in vars(layer).items():
        if name.startswith("_"):
            continue  # tables of its own, and what its settings lead to
        parts = value if type(value) is tuple else (value,)
        if not all(isinstance(part, _PLAIN) for part in parts):
            return None
        found.append((name, value))
    for table in (layer._parameters, layer._buffers):
        found += ((name, None if held is None else Form.of(held)) for name, held in table.items())
    return tuple(found)
