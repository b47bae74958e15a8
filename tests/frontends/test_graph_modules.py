"""GraphModules, exported programs and .pt2 files as sources: the structure of the network that they were made from."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import elastic_ir as eir
from elastic_ir.errors import SourceError
from elastic_ir.zoo import cifar_resnet

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.gate * torch.relu(self.linear(self.norm(x)))
        return made


def row(count: int = 3) -> nn.Module:
    """Blocks in a Sequential with the stem and the head."""
    return nn.Sequential(nn.Linear(4, 8), *[Residual() for _ in range(count)], nn.Linear(8, 2))


class Tagger(nn.Module):
    """Tables, attention, and a head whose weight is the table's."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(count)
        )
        self.register_buffer("places", torch.linspace(0, 1, 40).reshape(1, 5, 8), persistent=False)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(ids) + self.places
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x), "first": x.max(-1).values}


def resnet(count: int = 2) -> nn.Module:
    return cifar_resnet(6 * count + 2, width=4)


IDS = torch.arange(10).reshape(2, 5)
NETWORKS: dict[str, tuple[Callable[..., nn.Module], torch.Tensor, int]] = {
    "row": (row, X, 3), "tagger": (Tagger, IDS, 3), "resnet": (resnet, IMAGES, 2),
}  # fmt: skip


def made(kind: str, count: int | None = None) -> tuple[nn.Module, torch.Tensor]:
    build, x, usual = NETWORKS[kind]
    torch.manual_seed(0)
    return build(count or usual).eval(), x


def exported(model: nn.Module, x: torch.Tensor) -> Any:
    return torch.export.export(model, (x,), strict=False)


def shown(graph: eir.Graph) -> list[tuple[str, int, int | None, bool]]:
    return [(s.name, len(s), s.period, s.entry is not None) for s in graph.stages]


def tensors(output: Any) -> list[torch.Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def check_source(graph: eir.Graph, kind: str, tmp_path: Path) -> None:
    """The network's structure, names and weights; one unit more in each stage is the natively deeper network."""
    model, x = made(kind)
    native = eir.trace(model, (x,))
    assert shown(graph) == shown(native) and graph.depth == native.depth
    state = model.state_dict()
    assert list(graph.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in graph.state_dict().items())
    prunable = {name for name, weight in native.weights.items() if weight.prunable}
    assert {name for name, weight in graph.weights.items() if weight.prunable} == prunable
    deeper = eir.stretch(graph, to_stages={stage.name: len(stage) + 1 for stage in graph.stages})
    module = deeper.to_module().eval()
    assert isinstance(module, fx.GraphModule) and not deeper.emitted.replaced
    twin, _ = made(kind, NETWORKS[kind][2] + 1)
    twin.load_state_dict(deeper.state_dict())
    for ours, theirs in zip(tensors(module(x)), tensors(twin(x)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    back = eir.squeeze(deeper, to_stages={stage.name: len(stage) for stage in graph.stages})
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())
    eir.save(deeper, tmp_path / "deeper.pt")
    twin.load_state_dict(torch.load(tmp_path / "deeper.pt", weights_only=True))
    again = eir.load(tmp_path / "deeper.pt")
    assert shown(again) == shown(deeper)
    for ours, theirs in zip(tensors(again.to_module().eval()(x)), tensors(module(x)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["row", "resnet"])
def test_what_torch_fx_has_traced(kind: str, tmp_path: Path) -> None:
    model, x = made(kind)
    check_source(eir.trace(fx.symbolic_trace(model), (x,)), kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(NETWORKS))
def test_the_module_of_an_export(kind: str, tmp_path: Path) -> None:
    model, x = made(kind)
    check_source(eir.trace(exported(model, x).module(), (x,)), kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(NETWORKS))
def test_an_exported_program(kind: str, tmp_path: Path) -> None:
    """It brings its example inputs along."""
    check_source(eir.trace(exported(*made(kind))), kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(NETWORKS))
def test_a_file_of_an_exported_program(kind: str, tmp_path: Path) -> None:
    torch.export.save(exported(*made(kind)), tmp_path / "net.pt2")
    check_source(eir.load(tmp_path / "net.pt2"), kind, tmp_path)


@pytest.mark.slow
def test_a_graph_module_within_a_network(tmp_path: Path) -> None:
    """A traced backbone under a head of its own keeps its scopes, below the name that it has there."""

    class Headed(nn.Module):
        def __init__(self, count: int = 3) -> None:
            super().__init__()
            self.backbone: nn.Module = row(count)
            self.head = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.backbone(x))
            return result

    torch.manual_seed(0)
    model = Headed().eval()
    plain = shown(eir.trace(model, (X,)))
    model.backbone = fx.symbolic_trace(model.backbone)
    graph = eir.trace(model, (X,))
    assert shown(graph) == plain == [("backbone", 3, 1, False)]
    deeper = eir.stretch(graph, to_units=5)
    twin = Headed(5).eval()
    twin.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module().eval()(X), twin(X), atol=1e-6)
    assert deeper.emitted.replaced


class Plain(nn.Module):
    """Layers that a graph built by hand calls, in three ways."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.whole = nn.ModuleList(Residual() for _ in range(count))
        self.head = nn.Linear(8, 2)


def sums(graph: fx.Graph, value: fx.Node, count: int) -> fx.Node:
    for index in range(count):
        inner = graph.call_function(torch.relu, (graph.call_module(f"blocks.{index}", (value,)),))
        value = graph.call_function(torch.add, (value, inner))
    return value


def modules(graph: fx.Graph, value: fx.Node, count: int) -> fx.Node:
    for index in range(count):
        value = graph.call_module(f"whole.{index}", (value,))
    return value


def functions(graph: fx.Graph, value: fx.Node, count: int) -> fx.Node:
    for index in range(count):
        weights = graph.get_attr(f"blocks.{index}.weight"), graph.get_attr(f"blocks.{index}.bias")
        value = graph.call_function(
            torch.tanh, (graph.call_function(nn.functional.linear, (value, *weights)),)
        )
    return value


def by_hand(body: Callable[[fx.Graph, fx.Node, int], fx.Node], count: int = 3) -> fx.GraphModule:
    torch.manual_seed(0)
    graph = fx.Graph()
    value = body(graph, graph.call_module("stem", (graph.placeholder("x"),)), count)
    graph.output(graph.call_module("head", (value,)))
    return fx.GraphModule(Plain(count), graph).eval()


@pytest.mark.parametrize(("body", "name"), [(sums, "blocks"), (modules, "whole"), (functions, "blocks")])
def test_a_graph_built_by_hand(body: Callable[[fx.Graph, fx.Node, int], fx.Node], name: str) -> None:
    """It has no scopes: what runs between layers is the caller's."""
    graph = eir.trace(by_hand(body), (X,))
    assert shown(graph) == [(name, 3, 1, False)]
    deeper = eir.stretch(graph, to_units=4)
    twin = by_hand(body, 4)
    twin.load_state_dict(deeper.state_dict())
    assert torch.allclose(deeper.to_module().eval()(X), twin(X), atol=1e-6)


@pytest.mark.parametrize("form", ["fx", "export"])
def test_masks_follow(form: str, tmp_path: Path) -> None:
    model, x = made("row")
    source = fx.symbolic_trace(model) if form == "fx" else exported(model, x).module()
    masks = {f"{index}.linear.weight": (torch.rand(8, 8) > 0.5).float() for index in (1, 2, 3)}
    deeper = eir.stretch(eir.trace(source, (x,), masks=masks), to_units=6)
    assert [mask for _, mask in sorted(deeper.masks().items())][3].equal(masks["1.linear.weight"])
    state = deeper.to_module().state_dict()
    assert all((state[name][mask == 0] == 0).all() for name, mask in deeper.masks().items())
    eir.save(deeper, tmp_path / "net.ticket")
    assert eir.load(tmp_path / "net.ticket").masks().keys() == deeper.masks().keys()


def test_dropout_and_norm_of_an_export_follow_the_mode() -> None:
    block = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)) for _ in range(3)]
    program = exported(nn.Sequential(*block).eval(), X)
    module = eir.stretch(eir.trace(program), to_units=4).to_module()
    module.eval()
    assert torch.equal(module(X), module(X))
    module.train()
    assert not torch.equal(module(X), module(X))


def test_a_batch_that_is_open_stays_open(tmp_path: Path) -> None:
    model, x = made("row")
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, tmp_path / "net.pt2")
    for graph in (eir.trace(program), eir.load(tmp_path / "net.pt2")):
        assert eir.stretch(graph, to_units=4).to_module().eval()(torch.randn(7, 4)).shape == (7, 2)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.export.save(exported(*made("row")), tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def said(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        eir.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(path: Path, change: Callable[[dict[str, Any]], None], record: str = "models/model.json") -> Path:
    """The file with one of its records altered."""
    target = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith(record):
                data = json.loads(content)
                change(data)
                content = json.dumps(data).encode()
            new.writestr(item.filename, content)
    return target


def test_weights_that_do_not_lie_in_their_order(tmp_path: Path) -> None:
    """A transposed matrix and channels in the last place keep the strides that they had."""
    model = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3)])
    model = model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    torch.export.save(exported(model, IMAGES), tmp_path / "net.pt2")
    state = eir.load(tmp_path / "net.pt2").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_file_that_is_cut_short(file: Path) -> None:
    whole = file.read_bytes()
    for tenths in range(10):
        file.write_bytes(whole[: len(whole) * tenths // 10])
        assert any(word in said(file) for word in ("truncated", "damaged", "no zip file"))


@pytest.mark.slow
def test_what_is_another_zip(file: Path) -> None:
    torch.save({"a": torch.ones(1)}, file)
    assert "in another form than torch 2.9 and later write" in said(file)


def test_damaged_programs_are_told(file: Path) -> None:
    def without(*path: Any) -> Callable[[dict[str, Any]], None]:
        def change(data: dict[str, Any]) -> None:
            for key in path[:-1]:
                data = data[key]
            del data[path[-1]]

        return change

    graph = "graph_module", "graph"
    for path in (("graph_module",), (*graph, "nodes"), (*graph, "nodes", 0), (*graph, "tensor_values"),
                 (*graph, "nodes", 1, "inputs", 0, "arg"), ("graph_module", "module_call_graph", 0)):  # fmt: skip
        assert "is damaged, or of a version that is not known" in said(changed(file, without(*path)))
    table = "data/weights/model_weights_config.json"
    assert "has no tensor '1.gate'" in said(changed(file, without("config", "1.gate"), table))
    assert "is damaged in its list of tensors" in said(
        changed(file, without("config", "1.gate", "tensor_meta"), table)
    )

    def larger(data: dict[str, Any]) -> None:
        data["config"]["1.gate"]["tensor_meta"]["sizes"] = [{"as_int": 1 << 40}]

    assert "the tensor '1.gate' is larger than its record" in said(changed(file, larger, table))


def test_an_operation_that_a_file_may_not_name(file: Path) -> None:
    """Its structure can be looked at; no module is made that would call it."""

    def call(target: str) -> Callable[[dict[str, Any]], None]:
        def change(data: dict[str, Any]) -> None:
            data["graph_module"]["graph"]["nodes"][-1]["target"] = target

        return change

    for target in ("os.system", "torch.load", "torch.ops.aten.from_file.default", "builtins.eval"):
        graph = eir.load(changed(file, call(target)))
        assert shown(graph) == [("network", 3, 1, False)]
        with pytest.raises(eir.EmitError, match="not among the functions that a file may name"):
            graph.to_module()


def test_control_flow_is_refused(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))
            return result

    torch.export.save(torch.export.export(Branching(), (X,)), tmp_path / "net.pt2")
    assert "holds graph arguments (control flow, or an object of a class), which are not read" in said(
        tmp_path / "net.pt2"
    )


def test_other_ways_to_say_what_it_is(file: Path) -> None:
    with pytest.raises(SourceError, match=r"net\.pt2 says itself what network it holds; leave out --arch"):
        eir.load(file, arch=row())
    with pytest.raises(eir.OutputError, match="the format 'exported' is read and not written"):
        eir.save(eir.load(file), file.with_name("other.pt2"))
    shutil.copy(file, file.with_suffix(".pt"))
    assert said(file.with_suffix(".pt")).endswith("is an exported program of torch.export; name it .pt2")
