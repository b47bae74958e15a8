"""Recurrent layers: the layers of a module are its blocks, by trace and from names; lists of modules and cells too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

import elastic_ir as eir
from elastic_ir.choices import Frontend
from elastic_ir.ir.graph import Graph
from tests.networks.recurrent import (
    WIDTH,
    FromZeros,
    LastState,
    Learned,
    Listed,
    OverTime,
    Residual,
    Tagger,
    Translator,
    onnx_stack,
)

Make = Callable[[int], nn.Module]
MODULES: dict[str, tuple[Make, int]] = {
    "lstm": (lambda n: Tagger(nn.LSTM, n), 0),
    "lstm of other features": (lambda n: Tagger(nn.LSTM, n, 6), 1),
    "gru both ways": (lambda n: Tagger(nn.GRU, n, width=WIDTH // 2, bidirectional=True), 0),
    "projected both ways": (lambda n: Tagger(nn.LSTM, n, proj_size=4, bidirectional=True), 0),
    "rnn without biases": (lambda n: Tagger(nn.RNN, n, bias=False, nonlinearity="relu"), 0),
    "states read": (lambda n: LastState(nn.LSTM, n, dropout=0.1), 0),
    "from zeros": (lambda n: FromZeros(nn.LSTM, n), 0),
}
LISTS: dict[str, Make] = {
    "lstms": lambda n: Listed(nn.LSTM, n),
    "grus with states": lambda n: Listed(nn.GRU, n),
    "blocks": Residual,
    "gru cells": lambda n: OverTime(nn.GRUCell, n),
    "lstm cells": lambda n: OverTime(nn.LSTMCell, n),
}


def rnn_of(module: nn.Module) -> Any:
    """The recurrent module of a network."""
    return module.get_submodule("rnn")


def traced(module: nn.Module, features: int = WIDTH, frontend: Frontend = "auto") -> Graph:
    return eir.trace(module.eval(), (torch.randn(2, 4, features),), frontend=frontend)


def by_names(module: nn.Module, folder: Path) -> Graph:
    torch.save(module.state_dict(), folder / "state.pt")
    return eir.load(folder / "state.pt")


def shape_of(graph: Graph) -> list[tuple[str, int, list[str]]]:
    return [
        (stage.name, stage.pinned, [child.path for block in stage.all_blocks for child in block.children])
        for stage in graph.stages
    ]


def same(left: Any, right: Any) -> bool:
    lefts, rights = (item if isinstance(item, tuple) else (item,) for item in (left, right))
    return all(torch.equal(a, b) for a, b in zip(lefts, rights, strict=True))


@pytest.mark.parametrize("name", MODULES)
def test_the_layers_of_a_module_are_its_blocks(name: str, tmp_path: Path) -> None:
    """Stretched by two and back: the class with another count, the native names, equal outputs."""
    make, pinned = MODULES[name]
    torch.manual_seed(0)
    source, native = make(3).eval(), make(5).eval()
    x = torch.randn(2, 4, rnn_of(source).input_size)
    graph = eir.trace(source, (x,))
    (stage,) = graph.stages
    assert (stage.name, len(stage), stage.pinned) == ("rnn", 3, pinned)
    assert graph.depth == 4
    assert shape_of(by_names(source, tmp_path)) == shape_of(graph)
    assert by_names(source, tmp_path).depth == 4
    deeper = eir.stretch(graph, to_stages=(5,))
    made = deeper.to_module().eval()
    assert type(made) is type(source) and rnn_of(made).num_layers == 5
    assert list(made.state_dict()) == list(native.state_dict())
    native.load_state_dict(made.state_dict(), strict=True)
    assert same(made(x), native(x))
    back = eir.squeeze(deeper, to_stages=(3,))
    assert list(back.state_dict()) == list(source.state_dict())
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in back.state_dict().items())
    assert same(back.to_module().eval()(x), source(x))


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("order", ["append", "interpolate"])
@pytest.mark.everyday(4)
def test_lists_of_recurrent_layers(
    name: str, order: Literal["append", "interpolate"], tmp_path: Path
) -> None:
    """Cells that take turns over time as well, where a copy's first step runs before the last step of its source."""
    torch.manual_seed(0)
    source, native = LISTS[name](3).eval(), LISTS[name](5).eval()
    x = torch.randn(2, 4, WIDTH)
    graph = eir.trace(source, (x,))
    (stage,) = graph.stages
    assert len(stage.blocks) == 3
    assert shape_of(by_names(source, tmp_path)) == shape_of(graph)
    deeper = eir.stretch(graph, to_stages=(5,), order=order)
    made = deeper.to_module().eval()
    assert type(made) is type(source)
    native.load_state_dict(made.state_dict(), strict=True)
    assert same(made(x), native(x))
    back = eir.squeeze(deeper, to_stages=(3,), drop="tail" if order == "append" else "even")
    assert same(back.to_module().eval()(x), source(x))


def test_two_layers_are_enough_of_a_stack() -> None:
    """A recurrent module says itself that its layers repeat, even where the first one reads other features."""
    graph = traced(Tagger(nn.LSTM, 2, 6), 6)
    assert [(len(stage), stage.pinned) for stage in graph.stages] == [(2, 1)]
    assert rnn_of(eir.stretch(graph, to_stages=(4,)).to_module()).num_layers == 4


@pytest.mark.parametrize("make", [MODULES["lstm"][0], MODULES["gru both ways"][0], MODULES["states read"][0]])
def test_an_export_shows_the_same_layers(make: Make) -> None:
    module = make(3)
    found = traced(module, frontend="export")
    assert shape_of(found) == shape_of(traced(module))
    assert found.depth == 4
    assert rnn_of(eir.stretch(found, to_stages=(4,)).to_module()).num_layers == 4


def test_matrices_are_prunable_and_biases_are_not(tmp_path: Path) -> None:
    graph = traced(Tagger(nn.LSTM, 2, proj_size=4))
    found = {name for name, weight in graph.weights.items() if weight.prunable}
    matrices = {f"rnn.weight_{kind}_l{i}" for kind in ("ih", "hh", "hr") for i in (0, 1)}
    assert found == {"head.weight", *matrices}
    named = by_names(Tagger(nn.LSTM, 2, proj_size=4), tmp_path)
    assert {name for name, weight in named.weights.items() if weight.prunable} == found
    cells = traced(OverTime(nn.GRUCell, 2))
    assert cells.weights["cells.0.weight_hh"].prunable and not cells.weights["cells.0.bias_hh"].prunable


def test_a_mask_goes_with_its_layer() -> None:
    source = Tagger(nn.LSTM, 3)
    mask = (torch.rand(4 * WIDTH, WIDTH) < 0.5).float()
    graph = eir.trace(source.eval(), (torch.randn(2, 4, WIDTH),), masks={"rnn.weight_hh_l1": mask})
    deeper = eir.stretch(graph, plan=[[0, 1, 1, 2]])
    assert sorted(deeper.masks()) == ["rnn.weight_hh_l1", "rnn.weight_hh_l2"]
    made = deeper.to_module()
    for name in ("weight_hh_l1", "weight_hh_l2"):
        assert torch.equal(getattr(rnn_of(made), name), rnn_of(source).weight_hh_l1 * mask)
    x = torch.randn(1, 3, WIDTH)
    with torch.no_grad():  # the module runs over what it shows, and not over what it was copied from
        rnn_of(source).weight_hh_l1.mul_(mask)
        y, _ = rnn_of(source)(x)
        shorter = eir.squeeze(deeper, plan=[[0, 1, 3]]).to_module()
        assert torch.equal(rnn_of(shorter)(x)[0], y)


def test_pruning_hooks_of_a_recurrent_module_are_masks() -> None:
    source = Tagger(nn.GRU, 2).eval()
    nn.utils.prune.random_unstructured(source.rnn, "weight_hh_l1", 0.5)  # type: ignore[no-untyped-call]
    graph = traced(source)
    assert set(graph.masks()) == {"rnn.weight_hh_l1"}
    made = eir.stretch(graph, plan=[[0, 1, 1]]).to_module()
    assert (rnn_of(made).weight_hh_l2 == 0).float().mean() >= 0.5


def test_states_that_do_not_grow_are_the_reason_given() -> None:
    with pytest.raises(
        eir.ElasticError, match=r"the 3 layers of 'rnn' \(nn.GRU\) start from states that the network"
    ):
        _ = traced(Learned(3)).stages
    with pytest.raises(eir.ElasticError, match=r"the 3 layers of 'decoder' .* Leave the initial states out"):
        _ = traced(Translator(3)).stages


def test_a_call_is_one_node_again_in_what_is_emitted(tmp_path: Path) -> None:
    """Python source, and a GraphModule from a file whose class is not at hand."""
    torch.manual_seed(0)
    deeper = eir.stretch(traced(LastState(nn.LSTM, 3, dropout=0.1)), to_stages=(4,))
    x = torch.randn(2, 4, WIDTH)
    expected = deeper.to_module().eval()(x)
    eir.save(deeper, tmp_path / "net.py")
    assert "nn.LSTM(8, 8, num_layers=4, batch_first=True, dropout=0.1)" in (tmp_path / "net.py").read_text()
    eir.save(deeper, tmp_path / "net.pt")
    read = eir.load(tmp_path / "net.pt")
    assert shape_of(read) == shape_of(deeper)
    made = read.to_module().eval()
    assert (
        isinstance(made, torch.fx.GraphModule)
        and rnn_of(made).num_layers == 4
        and rnn_of(made).dropout == 0.1
    )
    assert same(made(x), expected)
    again = eir.stretch(read, to_stages=(6,)).to_module()
    assert rnn_of(again).num_layers == 6 and rnn_of(again.train()).training


@pytest.mark.parametrize(("kind", "both"), [("LSTM", False), ("GRU", True), ("RNN", False)])
def test_recurrent_nodes_of_onnx_are_blocks(kind: str, both: bool, tmp_path: Path) -> None:
    """Stretched by two and back, run by onnxruntime; a clone applied twice is the layer applied twice."""
    import numpy as np
    import onnx
    import onnxruntime

    def run(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        made: np.ndarray[Any, Any] = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
        return made

    onnx.save(onnx_stack(kind, 3, both), tmp_path / "source.onnx")
    graph = eir.load(tmp_path / "source.onnx")
    (stage,) = graph.stages
    assert (len(stage), graph.depth) == (3, 4)
    assert sum(weight.prunable for weight in graph.weights.values()) == 7
    deeper = eir.stretch(graph, plan=[[0, 1, 2, 1, 2]])
    eir.save(deeper, tmp_path / "deeper.onnx")
    native = onnx_stack(kind, 5, both)
    held = {tensor.name: tensor for tensor in onnx_stack(kind, 3, both).graph.initializer}
    for tensor in native.graph.initializer:
        source = (
            tensor.name[0] + str([0, 1, 2, 1, 2][int(tensor.name[1])])
            if tensor.name[1:].isdigit()
            else tensor.name
        )
        tensor.raw_data = held[source].raw_data
    onnx.save(native, tmp_path / "native.onnx")
    x = np.random.RandomState(1).randn(4, 2, WIDTH).astype("float32")
    assert np.array_equal(run(tmp_path / "deeper.onnx", x), run(tmp_path / "native.onnx", x))
    module = deeper.to_module().eval()
    assert np.allclose(module(torch.tensor(x)).detach().numpy(), run(tmp_path / "native.onnx", x), atol=1e-6)
    eir.save(eir.squeeze(deeper, plan=[[0, 1, 2]]), tmp_path / "back.onnx")
    assert np.array_equal(run(tmp_path / "back.onnx", x), run(tmp_path / "source.onnx", x))


def test_layers_that_run_in_one_call_have_no_influence_of_their_own() -> None:
    from elastic_ir.analysis.influence import block_influence
    from elastic_ir.analysis.samples import Samples
    from elastic_ir.errors import PlanError

    graph = traced(Tagger(nn.LSTM, 3))
    with pytest.raises(PlanError, match="'rnn' runs its 3 layers in one call"):
        block_influence(graph, Samples((torch.randn(2, 4, WIDTH),), {}))
